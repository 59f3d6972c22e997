//! Laws of the composition, over random vmcs12s, policies and processors.

use super::*;
use crate::code::Reason;
use crate::field::Flow;
use crate::merge::{PIN_REQUIRED, PRIMARY_REQUIRED, is_back_ends};
use crate::route::{L0Wants, route};
use crate::timer::{Deadline, ONE, compose};
use crate::vmcs12::layout;
use proptest::prelude::*;

/// A vmcs12 that passes the checks, random where these leave room.
pub(crate) fn noisy(caps: &Caps, seed: u64) -> Vmcs12 {
    let (mut v, mut r) = (valid(caps), Noise(seed));
    let m = &caps.msrs;
    for field in Field::all().filter(|f| caps.exists(*f)) {
        let page = (r.next() % caps.phys_end()) & !0xfff;
        match field.encoding() {
            // Addresses, sets of bits, TSC.
            0x2000..=0x2004 | 0x200e | 0x2012..=0x2016 | 0x2024..=0x2028 => _ = v.set(field, page),
            0x2010 | 0x201c..=0x2022 | 0x202c | 0x2032 | 0x4004..=0x4008 | 0x4020 | 0x4022 => {
                _ = v.set(field, r.next())
            }
            0x6000..=0x600e | 0x681c | 0x6822 | 0x0 => {}
            _ => {}
        }
    }
    let second = r.next() as u32 & m.secondary.may() & !secondary::VMCS_SHADOWING;
    let ept = second & secondary::EPT != 0;
    let mut second = if ept {
        second
    } else {
        second & !(secondary::UNRESTRICTED_GUEST | secondary::PML | secondary::VM_FUNCTIONS)
    };
    if second & secondary::X2APIC != 0 {
        second &= !secondary::APIC_ACCESS;
    }
    let pins = r.next() as u32 & m.pin.may() & !pin::POSTED_INTERRUPTS;
    let mut first = r.next() as u32 & m.primary.may() | m.primary.must() | primary::SECONDARY;
    if pins & pin::VIRTUAL_NMIS == 0 {
        first &= !primary::NMI_WINDOW;
    }
    if first & primary::TPR_SHADOW == 0 {
        second &= !(secondary::X2APIC | secondary::APIC_REGISTERS | secondary::INTERRUPT_DELIVERY);
    }
    let posted =
        if second & secondary::INTERRUPT_DELIVERY != 0 { m.pin.may() & pin::POSTED_INTERRUPTS } else { 0 };
    let ack = if posted != 0 { exit::ACK_INTERRUPT } else { 0 };
    let saves = r.next() as u32
        & m.exit.may()
        & (exit::SAVE_DEBUG | exit::SAVE_PAT | exit::SAVE_EFER | exit::ACK_INTERRUPT);
    let loads = r.next() as u32 & m.entry.may() & !entry::LOAD_CET;
    for (field, value) in [
        (Field::PIN_CONTROLS, m.pin.must() | pins | posted | pin::EXTERNAL_INTERRUPT | pin::NMI),
        (Field::PRIMARY_CONTROLS, first),
        (Field::SECONDARY_CONTROLS, second),
        (Field::EXIT_CONTROLS, m.exit.must() | exit::HOST_64 | saves | ack),
        (Field::ENTRY_CONTROLS, m.entry.must() | loads | entry::IA32E),
        (Field::EXCEPTION_BITMAP, r.next() as u32),
    ] {
        v.set(field, value.into());
    }
    let cr4 = r.next() & caps.cpu.cr4 & !CR4_CET | CR4_PAE | CR4_VMXE;
    for (field, value) in [
        (Field::VPID, r.next() | 1),
        (Field::CR0_MASK, r.next()),
        (Field::CR4_MASK, r.next() | CR4_VMXE),
        (Field::CR0_SHADOW, r.next() as u32 as u64),
        (Field::CR4_SHADOW, r.next()),
        (Field::GUEST_CR0, r.next() as u32 as u64 | CR0_PE | CR0_PG | CR0_NE),
        (Field::GUEST_CR4, cr4),
        (Field::GUEST_CR3, r.next() % caps.phys_end()),
        (Field::GUEST_RSP, r.next()),
        (Field::GUEST_ES_BASE, r.next() as u32 as u64),
        (Field::GUEST_FS_BASE, r.next() >> 17),
        (Field::GUEST_SYSENTER_ESP, r.next() >> 17),
        (Field::GUEST_DR7, r.next() as u32 as u64),
        (Field::HOST_RIP, r.next() >> 17),
        (Field::HOST_CR3, r.next() % caps.phys_end()),
        (Field::HOST_FS_BASE, r.next() >> 17),
    ] {
        if caps.exists(field) {
            v.set(field, value);
        }
    }
    v
}

/// A processor between the oldest and the newest.
fn random_cpu(seed: u64) -> VmxMsrs {
    let (new, old, mut r) = (new_cpu(), old_cpu(), Noise(seed));
    let mut pick = |new: Ctl, old: Ctl| {
        let may = old.may() | r.next() as u32 & new.may();
        let must = old.must() & (new.must() | r.next() as u32);
        Ctl::new(must, may)
    };
    let (pin, primary, exit, entry) = (
        pick(new.pin, old.pin),
        pick(new.primary, old.primary),
        pick(new.exit, old.exit),
        pick(new.entry, old.entry),
    );
    let mut secondary = pick(new.secondary, old.secondary);
    if !primary.has(primary::TPR_SHADOW) {
        secondary = Ctl::new(
            0,
            secondary.may()
                & !(secondary::X2APIC | secondary::APIC_REGISTERS | secondary::INTERRUPT_DELIVERY),
        );
    }
    let vmfunc = u64::from(secondary.has(secondary::VM_FUNCTIONS));
    VmxMsrs { pin, primary, exit, entry, secondary, vmfunc, misc: r.next() & new.misc | old.misc, ..new }
}

fn rig(hw: VmxMsrs, seed: u64) -> Rig {
    let mut rig = Rig::on(hw);
    rig.load(0x2000);
    let v = noisy(&rig.caps, seed);
    rig.write_all(&v);
    rig
}

/// What holds of every vmcs02 that was merged from `v`.
fn obeys(rig: &Rig, v: &Vmcs12) {
    let (hw, l0) = (&rig.hw, &rig.l0);
    let get = |field| hw.get(field) as u32;
    let [pin02, pri02, sec02] =
        [Field::PIN_CONTROLS, Field::PRIMARY_CONTROLS, Field::SECONDARY_CONTROLS].map(get);
    // What the processor would refuse.
    assert!(l0.hw.pin.allows(pin02) && l0.hw.primary.allows(pri02) && l0.hw.secondary.allows(sec02));
    assert!(l0.hw.entry.allows(get(Field::ENTRY_CONTROLS)));
    // L0's required bits survive.
    assert_eq!(pin02 & PIN_REQUIRED, PIN_REQUIRED);
    assert_eq!(pri02 & PRIMARY_REQUIRED, PRIMARY_REQUIRED);
    assert!(sec02 & secondary::EPT != 0 && sec02 & (secondary::VMCS_SHADOWING | secondary::EPT_VE) == 0);
    assert_eq!(hw.get(Field::EXCEPTION_BITMAP) & u64::from(l0.exceptions), l0.exceptions.into());
    assert_eq!(hw.get(Field::CR0_MASK) & l0.cr0_mask, l0.cr0_mask);
    assert_eq!(hw.get(Field::CR4_MASK) & l0.cr4_mask, l0.cr4_mask);
    assert_eq!(hw.get(Field::GUEST_CR4) & l0.cr4_set, l0.cr4_set);
    // No intercept of L1's is lost.
    const WINDOWS: u32 = primary::INTERRUPT_WINDOW | primary::NMI_WINDOW | primary::MONITOR_TRAP;
    let asks = primary::HLT
        | primary::INVLPG
        | primary::MWAIT
        | primary::RDPMC
        | primary::RDTSC
        | primary::CR3_LOAD
        | primary::CR3_STORE
        | primary::CR8_LOAD
        | primary::CR8_STORE
        | primary::MOV_DR
        | primary::MONITOR
        | primary::PAUSE
        | WINDOWS;
    let theirs = v.get32(Field::PRIMARY_CONTROLS);
    assert_eq!(pri02 & theirs & asks, theirs & asks);
    let asks = secondary::DESCRIPTOR_TABLE
        | secondary::WBINVD
        | secondary::RDRAND
        | secondary::RDSEED
        | secondary::PAUSE_LOOP;
    assert_eq!(sec02 & v.secondary_word() & asks, v.secondary_word() & asks);
    assert_eq!(
        hw.get(Field::EXCEPTION_BITMAP) & v.get(Field::EXCEPTION_BITMAP),
        v.get(Field::EXCEPTION_BITMAP)
    );
    assert_eq!(hw.get(Field::CR0_MASK) & v.get(Field::CR0_MASK), v.get(Field::CR0_MASK));
    assert_eq!(hw.get(Field::CR4_MASK) & v.get(Field::CR4_MASK), v.get(Field::CR4_MASK));
    // Every port, MSR and CR8 access that could reach the machine comes to L0 or goes by L0's merged maps.
    assert!(pri02 & (primary::UNCONDITIONAL_IO | primary::IO_BITMAPS) != 0);
    let cr8 = primary::CR8_LOAD | primary::CR8_STORE;
    assert!(pri02 & primary::TPR_SHADOW != 0 || pri02 & cr8 == cr8);
    if pri02 & primary::MSR_BITMAPS != 0 {
        assert_eq!(Some(hw.get(Field::MSR_BITMAP)), l0.msr_bitmap.map(Hpa::raw));
    }
    // Physical addresses are L0's.
    let addresses = [
        (Field::EPT_POINTER, Some(l0.eptp)),
        (Field::IO_BITMAP_A, l0.io_bitmaps.map(|b| b.0.raw())),
        (Field::IO_BITMAP_B, l0.io_bitmaps.map(|b| b.1.raw())),
        (Field::VIRTUAL_APIC_ADDRESS, l0.virtual_apic.map(Hpa::raw)),
        (Field::APIC_ACCESS_ADDRESS, l0.apic_access.map(Hpa::raw)),
        (Field::POSTED_INTR_DESC_ADDR, l0.posted.map(|p| p.0.raw())),
        (Field::VMCS_LINK_POINTER, Some(u64::MAX)),
        (Field::PML_ADDRESS, None),
        (Field::EPTP_LIST_ADDRESS, None),
        (Field::VMREAD_BITMAP, None),
        (Field::VMWRITE_BITMAP, None),
    ];
    for (field, value) in &hw.writes {
        assert!(!is_back_ends(*field), "{field:?} is the back end's");
        if let Some((_, ours)) = addresses.iter().find(|a| a.0 == *field) {
            assert_eq!(Some(*value), *ours, "{field:?}");
        }
        assert!(!matches!(field.flow(), Flow::Host | Flow::Info | Flow::Unused), "{field:?}");
    }
    if let Some(vpid) = l0.vpid {
        assert_eq!(hw.get(Field::VPID), vpid.into());
    }
}

/// The life of a VMCS region with any contents: nothing panics, what is entered obeys the laws.
pub(crate) fn run_bytes(bytes: &[u8], exits: &[(u32, u64, u64)]) {
    let mut rig = Rig::on(new_cpu());
    rig.mem.write(Gpa::new(0x2000), &bytes[..bytes.len().min(4096)]).unwrap();
    rig.mem.write(Gpa::new(0x2000), &REVISION.to_le_bytes()).unwrap();
    rig.load(0x2000);
    for (reason, qualification, operand) in exits {
        let launched = rig.nested.current().unwrap().launched();
        match rig.enter(if launched { Entry::Resume } else { Entry::Launch }) {
            Ok(accepted) => {
                let v = rig.nested.current().unwrap().fields().clone();
                let _ = rig.merge(&accepted);
                obeys(&rig, &v);
                rig.nested.accept(&accepted);
                rig.nested.has_run();
                let exit = Exit {
                    reason: *reason,
                    qualification: *qualification,
                    operand: *operand,
                    intr_info: *operand as u32,
                    ..Exit::default()
                };
                let _ =
                    route(&exit, rig.nested.running().unwrap(), &L0Wants::default(), &Flat(*operand as u8));
                rig.leave(&exit);
            }
            Err(_) => assert!(rig.hw.writes.is_empty() || launched),
        }
        let _ = rig.nested.vmwrite(*qualification & 0xffff, *operand, &rig.caps);
    }
    rig.clear(0x2000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn arbitrary_regions_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096), exits in proptest::collection::vec(any::<(u32, u64, u64)>(), 1..8)) {
        run_bytes(&bytes, &exits);
    }

    #[test]
    fn nearly_valid_regions_obey_the_laws(seed: u64, at in 64usize..1600, byte: u8, exits in proptest::collection::vec(any::<(u32, u64, u64)>(), 1..8)) {
        let caps = caps();
        let v = noisy(&caps, seed);
        let mut bytes = std::vec![0; 4096];
        for field in Field::all() {
            let at = layout::offset(field);
            bytes[at..at + 8].copy_from_slice(&v.get(field).to_le_bytes());
        }
        bytes[at] = byte;
        run_bytes(&bytes, &exits);
    }

    #[test]
    fn merge_obeys_on_any_processor_under_any_policy(hw: u64, seed: u64, bits: [u32; 4], without: u8) {
        let mut rig = rig(random_cpu(hw), seed);
        rig.l0.pin |= bits[0] & rig.l0.hw.pin.may();
        rig.l0.primary |= bits[1] & rig.l0.hw.primary.may() & !(primary::NMI_WINDOW | primary::TERTIARY);
        rig.l0.secondary |= bits[2] & rig.l0.hw.secondary.may();
        rig.l0.exceptions |= bits[3];
        if without & 1 != 0 { rig.l0.virtual_apic = None; }
        if without & 2 != 0 { rig.l0.apic_access = None; }
        if without & 4 != 0 { rig.l0.io_bitmaps = None; }
        if without & 8 != 0 { rig.l0.msr_bitmap = None; }
        if without & 16 != 0 { rig.l0.posted = None; }
        let v = rig.nested.current().unwrap().fields().clone();
        rig.run();
        obeys(&rig, &v);
    }

    #[test]
    fn merge_is_deterministic_whatever_the_02_held(hw: u64, seed: u64, other: u64) {
        let hw = random_cpu(hw);
        let mut fresh = rig(hw, seed);
        fresh.run();
        // The same vmcs02 first serves another vmcs12.
        let mut used = rig(hw, other);
        used.run();
        used.leave(&Exit::default());
        used.clear(0x2000);
        used.load(0x2000);
        let v = noisy(&used.caps, seed);
        used.write_all(&v);
        used.run();
        for (field, _) in &fresh.hw.writes {
            prop_assert_eq!(fresh.hw.get(*field), used.hw.get(*field), "{:?}", field);
        }
    }

    /// What L1 wrote comes back where the processor changed nothing.
    #[test]
    fn sync_after_merge_is_a_round_trip(hw: u64, seed: u64) {
        let mut rig = rig(random_cpu(hw), seed);
        let v = rig.nested.current().unwrap().fields().clone();
        rig.run();
        rig.leave(&Exit::default());
        for field in rig.fields() {
            let got = rig.read(field);
            match field.flow() {
                Flow::Info => {}
                // Not loaded, but saved: L1's own values.
                _ if matches!(field, Field::GUEST_PKRS | Field::GUEST_S_CET | Field::GUEST_SSP | Field::GUEST_SSP_TABLE
                    | Field::GUEST_PAT | Field::GUEST_EFER | Field::GUEST_DR7 | Field::GUEST_DEBUGCTL) => {}
                _ => prop_assert_eq!(got, v.get(field), "{:?}", field),
            }
        }
    }

    /// Edits between two entries give the 02 that a merge from nothing gives.
    #[test]
    fn merging_only_what_changed_changes_nothing(hw: u64, seed: u64, other: u64, which: [u64; 3], l2: u64) {
        let cpu = random_cpu(hw);
        let (mut lazy, mut eager) = (rig(cpu, seed), rig(cpu, seed));
        let wanted = noisy(&lazy.caps, other);
        for rig in [&mut lazy, &mut eager] {
            rig.run();
            // L2 runs.
            let mut r = Noise(l2);
            for field in [Field::GUEST_RIP, Field::GUEST_RSP, Field::GUEST_ES_BASE, Field::GUEST_TR_BASE, Field::GUEST_CR3] {
                rig.hw.set(field, r.next() >> 33);
            }
            rig.leave(&Exit::default());
            for field in rig.fields() {
                if which[field.index() / 64] >> (field.index() % 64) & 1 != 0 || field.flow() == Flow::Control {
                    rig.write(field, wanted.get(field));
                }
            }
        }
        let slot = eager.nested.slot_mut(0);
        slot.mirror = crate::merge::Mirror::new();
        let c12 = slot.c12.as_mut().unwrap();
        crate::reflect::sync_rare(c12, |f| eager.hw.values[0][f.index()]);
        c12.unmerged = crate::field::FieldSet::ALL;
        let (a, b) = (lazy.enter(Entry::Resume), eager.enter(Entry::Resume));
        prop_assert_eq!(a, b);
        if let Ok(accepted) = a {
            prop_assert_eq!(lazy.merge(&accepted), eager.merge(&accepted));
            for field in Field::all() {
                prop_assert_eq!(lazy.hw.get(field), eager.hw.get(field), "{:?}", field);
            }
        }
    }

    #[test]
    fn tsc_composes(tsc in 0u64..1 << 50, off01: i32, mult01 in 1u64 << 40..1 << 54, mult12 in 1u64 << 40..1 << 54, off12: u64) {
        let tsc01 = Tsc { multiplier: mult01, offset: off01 as i64 as u64 };
        let tsc12 = Tsc { multiplier: mult12, offset: off12 };
        prop_assert_eq!(compose(tsc01, None), tsc01);
        let l1 = tsc01.at(tsc) as i64;
        let want = (((i128::from(l1) * i128::from(mult12)) >> 48) as u64).wrapping_add(off12);
        let got = compose(tsc01, Some(tsc12)).at(tsc);
        // Rounding: one tick of each part, and the product's lost bits times the TSC.
        let slack = 3 + (tsc >> 40) + (mult12 >> 48);
        prop_assert!(want.abs_diff(got) <= slack, "{} {}", want, got);
        let plain = compose(tsc01, Some(Tsc { multiplier: ONE, offset: off12 }));
        prop_assert_eq!(plain.at(tsc), tsc01.at(tsc).wrapping_add(off12));
    }
}

/// Else an L1 with a tiny multiplier would make the processor refuse vmcs02.
#[test]
fn no_composed_multiplier_is_zero() {
    let half = Tsc { multiplier: ONE / 2, offset: 0 };
    assert_eq!(compose(half, Some(Tsc { multiplier: 1, offset: 5 })).multiplier, 1);
    let most = Tsc { multiplier: u64::MAX, offset: 0 };
    assert_eq!(compose(most, Some(most)).multiplier, u64::MAX);
}

#[test]
fn the_preemption_timer_counts_in_its_own_ticks() {
    let deadline = Deadline::new(10, 0x1001, 5);
    assert_eq!((deadline.left(0x1001), deadline.left(0x101f), deadline.left(0x1020)), (10, 10, 9));
    assert!(
        !deadline.passed(0x1000 + 9 * 32 + 31)
            && deadline.passed(0x1000 + 10 * 32)
            && deadline.passed(u64::MAX >> 1)
    );
    assert!(Deadline::new(0, 77, 5).passed(77), "0 exits before the first instruction");
    assert_eq!(Deadline::new(u32::MAX, u64::MAX - 5, 31).left(u64::MAX - 5), u32::MAX, "no overflow");
}

/// An L1 that does nothing but resume, as KVM's fast path: what one round trip costs.
#[test]
fn a_steady_round_trip_writes_little() {
    let mut rig = Rig::new();
    rig.write(
        Field::EXIT_CONTROLS,
        (0x3_6dfb | exit::HOST_64 | exit::SAVE_DEBUG | exit::LOAD_EFER | exit::LOAD_PAT).into(),
    );
    rig.write(
        Field::ENTRY_CONTROLS,
        (0x11fb | entry::IA32E | entry::LOAD_DEBUG | entry::LOAD_EFER | entry::LOAD_PAT).into(),
    );
    rig.run();
    rig.leave(&Exit { reason: Reason::CPUID.0.into(), ..Exit::default() });
    rig.write(Field::GUEST_RIP, 0x2000);
    rig.run();
    rig.leave(&Exit { reason: Reason::CPUID.0.into(), ..Exit::default() });
    rig.hw.writes.clear();
    rig.hw.reads = 0;
    rig.write(Field::GUEST_RIP, 0x3000);
    rig.run();
    let written: Vec<_> = rig.hw.writes.iter().map(|w| w.0).collect();
    assert!(written.contains(&Field::GUEST_RIP));
    assert_eq!(written.len(), STEADY_WRITES, "{written:?}");
    rig.leave(&Exit { reason: Reason::CPUID.0.into(), ..Exit::default() });
    assert_eq!(rig.hw.reads, STEADY_READS);
}
const STEADY_WRITES: usize = 1;
/// With CET and PKRS offered; 13 without.
const STEADY_READS: usize = 17;
