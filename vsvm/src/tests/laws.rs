//! Laws of the composition, over random vmcb12s.

use super::*;
use crate::layout::{ExitCode, int_ctl};
use crate::merge::{REQUIRED, tsc_offset02, tsc_ratio02};
use crate::reflect::{reflect, refuse};
use crate::route::{Exit, L0Wants, Route, route};
use proptest::prelude::*;

/// The whole life of one vmcb12 of arbitrary bytes: nothing may panic, and what is entered obeys the laws.
pub(crate) fn run_bytes(bytes: &[u8]) {
    let page = HeapPage::default();
    for (offset, byte) in bytes.iter().take(4096).enumerate() {
        page.write_u8(offset, *byte);
    }
    let mut rig = Rig::with(page);
    for trust in [false, true] {
        match rig.c12.load(&rig.page, &rig.caps, L1_CR0, trust) {
            Ok(dirty) => {
                let c12 = rig.c12.checked().unwrap();
                merge(&rig.vmcb01, c12, dirty, &rig.l0, &mut rig.vmcb02);
                obeys(&rig);
                let code = ExitCode(rig.page.read_u64(at::EXIT_CODE));
                let exit = Exit { code, info1: rig.page.read_u64(at::EXIT_INFO_1), ..Exit::default() };
                let maps = crate::perm::Maps12::<HeapPage> { msrpm: [None, None], iopm: [None, None, None] };
                let _ = route(&exit, c12, &L0Wants::default(), &maps);
                let _ = reflect(&rig.vmcb02, &exit, &mut rig.c12, &rig.page);
            }
            Err(_) => {
                let _ = refuse(&mut rig.c12, &rig.page);
                assert_eq!(rig.page.read_u64(at::EXIT_CODE), u64::MAX);
            }
        }
    }
}

/// What holds of every vmcb02 that was merged from `rig.c12`.
fn obeys(rig: &Rig) {
    let (c, c12) = (&rig.vmcb02.control, rig.c12.checked().unwrap());
    // L0's required bits survive, and no intercept of L1's is lost.
    assert!(c.intercepts.contains(&REQUIRED));
    assert!(c.intercepts.contains(&rig.l0.intercepts));
    assert!(c.intercepts.contains(&c12.control().intercepts));
    let raw = Intercepts(core::array::from_fn(|i| rig.page.read_u32(at::INTERCEPTS + i * 4)));
    assert!(c.intercepts.contains(&(raw & rig.caps.intercepts())));
    // No physical address of L1's choice, and none of the features that bring one.
    assert_eq!(c.msrpm_base_pa, rig.l0.msrpm.raw());
    assert_eq!(c.iopm_base_pa, rig.l0.iopm.raw());
    assert_eq!(c.n_cr3, rig.l0.n_cr3.raw());
    let foreign = [
        c.avic_apic_bar,
        c.avic_backing_page,
        c.avic_logical_table,
        c.avic_physical_table,
        c.ghcb_pa,
        c.vmsa_pa,
        c.misc_ctl2,
    ];
    assert_eq!(foreign, [0; 7]);
    assert_eq!(c.misc_ctl, misc_ctl::NP_ENABLE);
    assert_eq!(c.asid, rig.l0.asid);
    assert_eq!(c.tlb_control, rig.l0.tlb_control);
    let never = int_ctl::AVIC_ENABLE | int_ctl::X2AVIC_ENABLE | int_ctl::V_NMI | int_ctl::V_NMI_ENABLE;
    assert_eq!(c.int_ctl & never, 0);
    assert_ne!(c.int_ctl & int_ctl::V_INTR_MASKING, 0);
    // What the processor would refuse.
    let s = &rig.vmcb02.save;
    assert!(s.efer & EFER_SVME != 0 && s.efer & !rig.caps.efer_allowed & !EFER_LMA == 0);
    assert!(s.cr4 & !rig.caps.cr4_allowed == 0);
}

/// The parts of a VMCB that merge writes.
fn essence(vmcb: &Vmcb) -> std::string::String {
    let mut vmcb = vmcb.clone();
    vmcb.control.vmcb_clean = 0;
    std::format!("{:?}", vmcb)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        run_bytes(&bytes);
    }

    #[test]
    fn nearly_valid_bytes_obey_the_laws(seed: u64, at in 0usize..4096, byte: u8) {
        let page = noisy_page(seed);
        page.write_u8(at, byte);
        run_bytes(&bytes(&page));
    }

    #[test]
    fn merge_obeys_under_any_policy(seed: u64, wants: [u32; 6], hw: u32, trap: bool, tlb: u8) {
        let mut rig = Rig::with(noisy_page(seed));
        rig.l0 = L0Policy {
            intercepts: Intercepts(wants),
            hardware: Features::from_bits_truncate(hw),
            cr0_read_trap: trap,
            tlb_control: tlb,
            ..policy()
        };
        rig.vmrun(false);
        obeys(&rig);
        let reads = rig.c12.checked().unwrap().control().intercepts.any_cr_read();
        prop_assert!(!(trap && reads) || rig.vmcb02.control.intercepts.has(Intercept::cr_read(0)));
    }

    #[test]
    fn merge_is_deterministic_whatever_the_02_held(seed: u64, other: u64) {
        let mut fresh = Rig::with(noisy_page(seed));
        fresh.vmrun(false);
        let mut used = Rig::with(noisy_page(other));
        used.vmrun(false);
        used.page = noisy_page(seed);
        used.c12 = Cached12::new(Gpa::new(0x6000));
        used.vmrun(false);
        prop_assert_eq!(essence(&fresh.vmcb02), essence(&used.vmcb02));
    }

    #[test]
    fn an_unchanged_vmcb12_leaves_the_02_clean(seed: u64, trust: bool) {
        let mut rig = Rig::with(noisy_page(seed));
        rig.vmrun(false);
        rig.ran();
        let _ = reflect(&rig.vmcb02, &Exit::default(), &mut rig.c12, &rig.page);
        if trust {
            rig.page.write_u32(at::CLEAN, !0);
        }
        let dirty = rig.vmrun(trust);
        prop_assert_eq!(dirty, Dirty::empty());
        prop_assert_eq!(rig.touched(), Clean::empty());
    }

    #[test]
    fn what_l1_wrote_comes_back_where_the_cpu_may_not_change_it(seed: u64) {
        let page = noisy_page(seed);
        let before = bytes(&page);
        let mut rig = Rig::with(page);
        rig.vmrun(false);
        rig.ran();
        let _ = reflect(&rig.vmcb02, &Exit::default(), &mut rig.c12, &rig.page);
        let after = bytes(&rig.page);
        // int_ctl and what #VMEXIT writes: APM vol. 2, "#VMEXIT".
        let may = |i: usize| {
            (at::INT_CTL..at::INT_CTL + 2).contains(&i)
                || (at::INT_STATE..at::MISC_CTL).contains(&i)
                || (at::EVENT_INJ..at::EVENT_INJ + 8).contains(&i)
                || (at::NRIP..at::NRIP + 24).contains(&i)
                || (at::RFLAGS..at::RFLAGS + 8).contains(&i)
                || i == at::CPL
        };
        for i in (0..4096).filter(|&i| !may(i)) {
            prop_assert_eq!(before[i], after[i], "byte {:#x}", i);
        }
    }

    /// L1 that edits its vmcb12 and clears exactly the right clean bits gets the same 02 as one whose clean
    /// bits are not trusted.
    #[test]
    fn trusted_clean_bits_change_nothing(seed: u64, edits in proptest::collection::vec((0usize..GROUPS.len(), any::<u64>()), 0..6), noise: u64) {
        let mut trusting = Rig::with(noisy_page(seed));
        let mut wary = Rig::with(noisy_page(seed));
        for rig in [&mut trusting, &mut wary] {
            rig.vmrun(false);
            rig.ran();
            // L2 runs.
            let mut r = Noise(noise);
            let s = &mut rig.vmcb02.save;
            (s.rax, s.rip, s.cr2, s.rflags) = (r.next(), r.next(), r.next(), r.next() & 0xcd5 | 2);
            (s.cr3, s.es.base, s.gdtr.limit) = (r.below(1 << 39), r.next(), r.next() as u32);
            s.es.base = rig.caps.canonical(s.es.base);
            let _ = reflect(&rig.vmcb02, &Exit::default(), &mut rig.c12, &rig.page);
            super::reflect::copy_equals_page(rig);
            rig.page.write_u32(at::CLEAN, !0);
            for (which, value) in &edits {
                let (offset, mask, group) = GROUPS[*which];
                rig.page.write_u64(offset, rig.page.read_u64(offset) ^ value & mask);
                rig.page.fetch_and_u32(at::CLEAN, !group.bits());
            }
        }
        trusting.vmrun(true);
        wary.vmrun(false);
        prop_assert_eq!(essence(&trusting.vmcb02), essence(&wary.vmcb02));
        prop_assert_eq!(trusting.touched(), wary.touched());
    }

    #[test]
    fn tsc_composes(tsc in 0u64..1 << 50, off01: i32, r12 in 1u64..1 << 34, off12: u64) {
        let l1 = tsc.wrapping_add(off01 as i64 as u64);
        let scale = |t: u64, r: u64| ((i128::from(t as i64) * i128::from(r)) >> 32) as u64;
        let want = scale(l1, r12).wrapping_add(off12);
        let got = scale(tsc, tsc_ratio02(RATIO_ONE, r12))
            .wrapping_add(tsc_offset02(off01 as i64 as u64, r12, off12));
        // One tick is lost where both parts round down.
        prop_assert!(want.wrapping_sub(got) <= 1, "{} {}", want, got);
    }

    #[test]
    fn route_is_total_and_unknown_is_l1(code: u64, seed: u64) {
        let mut rig = Rig::with(noisy_page(seed));
        rig.vmrun(false);
        let maps = crate::perm::Maps12::<HeapPage> { msrpm: [None, None], iopm: [None, None, None] };
        let exit = Exit { code: ExitCode(code), ..Exit::default() };
        let owner = route(&exit, rig.c12.checked().unwrap(), &L0Wants::default(), &maps);
        if (0x404..u64::MAX - 3).contains(&code) {
            prop_assert_eq!(owner, Route::L1);
        }
    }
}

/// An offset, the bits to play with, and their group.
const GROUPS: &[(usize, u64, Clean)] = &[
    (at::INTERCEPTS, !0, Clean::I),
    (at::TSC_OFFSET, !0, Clean::I),
    (at::PAUSE & !7, !0, Clean::I),
    (at::MSRPM, 0xffff_ffff, Clean::PERM),
    (at::INT_CTL, !0, Clean::TPR),
    (at::CR2, !0, Clean::CR2),
    (at::CR3, 0xffff_ffff, Clean::CRX),
    (at::DR7, 0xffff_ffff, Clean::DRX),
    (at::IDTR + 8, !0, Clean::DT),
    (at::SS, !0, Clean::SEG),
    (at::RIP, !0, Clean::empty()),
    (at::RAX, !0, Clean::empty()),
    (at::RFLAGS, 0xcd5, Clean::empty()),
];

/// While nested paging is off its group is not kept, so a clean bit for it can't be trusted afterwards.
#[test]
fn nested_paging_turned_on_again_is_read_again() {
    let mut rig = Rig::new();
    with_np(&rig.page);
    for mode in [misc_ctl::NP_ENABLE, 0, misc_ctl::NP_ENABLE] {
        rig.page.write_u64(at::MISC_CTL, mode);
        rig.page.write_u32(at::CLEAN, !0);
        rig.vmrun(true);
        let root = rig.c12.checked().unwrap().control().n_cr3;
        assert_eq!(root, Gpa::new(if mode == 0 { 0 } else { 0x7000 }));
        let _ = reflect(&rig.vmcb02, &Exit::default(), &mut rig.c12, &rig.page);
    }
}

/// L0 may give an entry up between the load and the merge.
#[test]
fn what_was_loaded_but_not_merged_is_not_lost() {
    let mut rig = Rig::new();
    rig.vmrun(false);
    rig.ran();
    let _ = reflect(&rig.vmcb02, &Exit::default(), &mut rig.c12, &rig.page);
    rig.page.write_u64(at::CR3, 0x9000);
    assert_eq!(rig.c12.load(&rig.page, &rig.caps, L1_CR0, false), Ok(Clean::CRX));
    assert_eq!(rig.vmrun(false), Clean::CRX);
    assert_eq!(rig.vmcb02.save.cr3, 0x9000);
}

#[test]
fn one_edit_dirties_one_group() {
    for (offset, _, group) in GROUPS.iter().filter(|(_, _, g)| !g.is_empty()) {
        let mut rig = Rig::new();
        intercept(&rig.page, Intercept::PAUSE);
        rig.vmrun(false);
        rig.ran();
        let _ = reflect(&rig.vmcb02, &Exit::default(), &mut rig.c12, &rig.page);
        // A bit that exists and L0 doesn't set: CR3 writes, an address bit, a priority; the PAUSE count.
        let bit = if *offset == at::PAUSE & !7 { 1 << 50 } else { 1 << 19 };
        rig.page.write_u64(*offset, rig.page.read_u64(*offset) ^ bit);
        assert_eq!(rig.vmrun(false), *group, "{offset:#x}");
        // The maps of vmcb02 are L0's, wherever L1's lie.
        let want = if *group == Clean::PERM { Clean::empty() } else { *group };
        assert_eq!(rig.touched(), want, "{offset:#x}");
    }
}
