//! One test for each published failure of nested SVM elsewhere that belongs to this layer.

use super::*;
use crate::insn::{self, Context, Fault, Insn};
use crate::layout::{Event, ExitCode, int_ctl, int_state, misc_ctl2};
use crate::perm::{Maps12, msr_bit};
use crate::reflect::{L1Resume, reflect, refuse};
use crate::route::{Exit, L0Wants, Route, route};
use crate::state::Nested;

const CLOSED: Maps12<HeapPage> = Maps12 { msrpm: [None, None], iopm: [None, None, None] };

fn owner(rig: &Rig, code: ExitCode) -> Route {
    let exit = Exit { code, ..Exit::default() };
    route(&exit, rig.c12.checked().unwrap(), &L0Wants::default(), &CLOSED)
}

/// KVM read vmcb12 twice, once to check and once to use.
#[test]
fn cve_2021_29657_double_fetch() {
    for seed in 0..50 {
        super::spy::double_fetch(&noisy_page(seed), !seed);
    }
    super::spy::double_fetch(&valid_page(), 1);
}

/// KVM let L1 turn AVIC on for L2, with addresses of L1's choice.
#[test]
fn cve_2021_3653_avic_bits() {
    let mut rig = Rig::new();
    rig.page.write_u64(at::INT_CTL, int_ctl::AVIC_ENABLE | int_ctl::X2AVIC_ENABLE);
    for offset in [0x98, 0xe0, 0xf0, 0xf8] {
        rig.page.write_u64(offset, 0x1000);
    }
    rig.vmrun(false);
    let c = &rig.vmcb02.control;
    assert_eq!(c.int_ctl & (int_ctl::AVIC_ENABLE | int_ctl::X2AVIC_ENABLE), 0);
    let addresses = [c.avic_apic_bar, c.avic_backing_page, c.avic_logical_table, c.avic_physical_table];
    assert_eq!(addresses, [0; 4]);
}

/// KVM let L2 execute VMLOAD and VMSAVE on host-physical addresses.
#[test]
fn cve_2021_3656_vmload_and_vmsave_always_exit() {
    let mut rig = Rig::new();
    rig.page.write_u64(0xb8, misc_ctl2::V_VMSAVE_VMLOAD);
    with_np(&rig.page);
    rig.vmrun(false);
    let c = &rig.vmcb02.control;
    assert!(c.intercepts.has(Intercept::VMLOAD) && c.intercepts.has(Intercept::VMSAVE));
    assert_eq!(c.misc_ctl2, 0);
    assert_eq!(owner(&rig, ExitCode::VMLOAD), Route::L0);
}

/// KVM freed nested state on a shutdown in L2.
#[test]
fn cve_2022_3344_shutdown_in_l2() {
    let mut rig = Rig::new();
    rig.vmrun(false);
    assert!(rig.vmcb02.control.intercepts.has(Intercept::SHUTDOWN));
    assert_eq!(owner(&rig, ExitCode::SHUTDOWN), Route::L0);
    // L0 resets the vCPU with L2 active.
    let mut n = Nested::<4>::new();
    let pick = n.pick(Gpa::new(0x5000));
    n.msrs.hsave_pa = 0x8000;
    n.enter(pick.slot, 0);
    n.init();
    assert!(n.active().is_none() && n.gif && n.msrs.hsave_pa == 0x8000);
    assert!(!n.pick(Gpa::new(0x5000)).hit);
}

/// KVM left x2APIC MSRs open in the merged map.
#[test]
fn cve_2023_5090_closed_msrs_stay_closed() {
    let ours = [!0u64; crate::perm::MSRPM_WORDS];
    let open = crate::perm::OpenWords::of(&ours);
    let l0 = crate::perm::L0Map { bits: &ours, open: &open, generation: 1 };
    let mut out = [0u64; crate::perm::MSRPM_WORDS];
    crate::perm::MergedMap::new().refresh(l0, Some(Gpa::ZERO), None, |_| 0, &mut out);
    for msr in 0x800..0x900 {
        let bit = usize::from(msr_bit(msr).unwrap());
        assert_eq!(out[bit / 64] >> (bit % 64) & 3, 3);
    }
}

/// KVM opened the NMI window by virtual NMI state of the wrong level. Ours is never vmcb02's.
#[test]
fn cve_2024_39483_virtual_nmi_is_not_lent() {
    let mut rig = Rig::new();
    let bits = int_ctl::V_NMI | int_ctl::V_NMI_MASK | int_ctl::V_NMI_ENABLE;
    rig.page.write_u64(at::INT_CTL, bits);
    rig.vmrun(false);
    assert_eq!(rig.vmcb02.control.int_ctl & bits, 0);
    let _ = reflect(&rig.vmcb02, &Exit::default(), &mut rig.c12, &rig.page);
    assert_eq!(rig.page.read_u64(at::INT_CTL), bits);
}

/// KVM indexed page-directory pointers with unchecked low bits of nCR3.
#[test]
fn cve_2024_50115_ncr3_low_bits_pass_to_the_walker_unharmed() {
    let mut rig = Rig::new();
    with_np(&rig.page);
    rig.page.write_u64(at::N_CR3, 0x7fff);
    rig.vmrun(false);
    assert_eq!(rig.c12.checked().unwrap().control().n_cr3, Gpa::new(0x7fff));
    assert_eq!(rig.vmcb02.control.n_cr3, rig.l0.n_cr3.raw());
}

/// KVM skipped instructions on a fast path without nRIP.
#[test]
fn cve_2025_40038_an_exit_without_nrip_says_so() {
    let mut rig = Rig::new();
    rig.page.write_u64(at::NRIP, 0x1234);
    rig.vmrun(false);
    rig.ran();
    let _ = reflect(&rig.vmcb02, &Exit { code: ExitCode::HLT, ..Exit::default() }, &mut rig.c12, &rig.page);
    assert_eq!(rig.page.read_u64(at::NRIP), 0);
}

/// KVM used the wrong VMCB for VMLOAD's state. Ours is in neither direction part of VMRUN.
#[test]
fn cve_2026_43133_vmload_state_is_not_vmruns() {
    let mut rig = Rig::new();
    let fields = [0x440, 0x448, 0x458, 0x478, 0x498, 0x600, 0x608, 0x620, 0x638];
    for offset in fields {
        rig.page.write_u64(offset, 0xdead);
    }
    rig.vmcb02.save.fs.base = 0x77;
    rig.vmcb02.save.star = 0x88;
    rig.vmrun(false);
    let s = &rig.vmcb02.save;
    assert_eq!((s.fs.base, s.star, s.gs.base, s.tr.base, s.kernel_gs_base), (0x77, 0x88, 0, 0, 0));
    let _ = reflect(&rig.vmcb02, &Exit::default(), &mut rig.c12, &rig.page);
    for offset in fields {
        assert_eq!(rig.page.read_u64(offset), 0xdead);
    }
}

/// KVM forgot to keep the interrupt shadow in its copy.
#[test]
fn cve_2026_45987_interrupt_shadow_is_copied() {
    let mut rig = Rig::new();
    rig.page.write_u64(at::INT_STATE, int_state::INTERRUPT_SHADOW);
    rig.vmrun(false);
    assert_eq!(rig.vmcb02.control.int_state, int_state::INTERRUPT_SHADOW);
    rig.vmcb02.control.int_state = 0;
    let _ = reflect(&rig.vmcb02, &Exit::default(), &mut rig.c12, &rig.page);
    assert_eq!(rig.page.read_u64(at::INT_STATE), 0);
    rig.page.write_u64(at::INT_STATE, int_state::INTERRUPT_SHADOW);
    rig.page.write_u32(at::CLEAN, !0);
    rig.vmrun(true);
    assert_eq!(rig.vmcb02.control.int_state, int_state::INTERRUPT_SHADOW);
}

/// KVM mixed up LBR state on save and restore. LBR virtualization is never on for L2.
#[test]
fn cve_2026_46014_lbr() {
    let mut rig = Rig::new();
    rig.page.write_u64(0xb8, misc_ctl2::LBR_VIRTUALIZATION);
    rig.page.write_u64(0x670, 1);
    rig.vmrun(false);
    assert_eq!(rig.vmcb02.control.misc_ctl2, 0);
    assert_eq!(rig.vmcb02.save.dbgctl, 0);
}

/// KVM served VMMCALL of an L2 as a hypercall though L1 had not asked for it.
#[test]
fn cve_2026_46076_vmmcall_of_l2_is_never_a_hypercall() {
    let mut rig = Rig::new();
    rig.vmrun(false);
    assert!(rig.vmcb02.control.intercepts.has(Intercept::VMMCALL));
    assert_eq!(owner(&rig, ExitCode::VMMCALL), Route::L0);
    intercept(&rig.page, Intercept::VMMCALL);
    rig.vmrun(false);
    assert_eq!(owner(&rig, ExitCode::VMMCALL), Route::L1);
}

/// KVM: INVLPGA with SVM off was no #UD.
#[test]
fn kvm_2026_invlpga_without_svme_is_ud() {
    let l1 = Context { efer: 0, cr0: CR0_PE, rflags: 2, cpl: 0, rax: 0 };
    assert_eq!(insn::check(Insn::Invlpga, &l1, &test_caps()), Err(Fault::InvalidOpcode));
}

/// KVM and Xen: GIF after a VMRUN that fails its checks, and a pending injection that stayed.
#[test]
fn xen_5fa2c584_gif_is_clear_after_a_refused_vmrun() {
    let mut n = Nested::<4>::new();
    let pick = n.pick(Gpa::new(0x5000));
    let page = valid_page();
    page.write_u64(at::EVENT_INJ, Event::NMI.0);
    page.write_u64(at::DR6, 1 << 32);
    let c12 = &mut n.slot_mut(pick.slot).c12;
    assert!(c12.load(&page, &test_caps(), L1_CR0, false).is_err());
    let resume = refuse(c12, &page);
    assert!(n.leave().is_none() && !n.gif);
    assert_eq!(page.read_u64(at::EVENT_INJ) & Event::VALID, 0);
    let mut vmcb01 = Vmcb::new();
    vmcb01.control.int_ctl = int_ctl::V_GIF | int_ctl::V_GIF_ENABLE;
    resume.apply(0x1003, &mut vmcb01);
    assert_eq!(vmcb01.control.int_ctl & int_ctl::V_GIF, 0);
    const { assert!(!L1Resume::GIF) };
}

/// Xen: the I/O map's range was not checked.
#[test]
fn xen_8c36d5a5_iopm_range() {
    let page = valid_page();
    page.write_u64(at::IOPM, (1 << 40) - 0x1000);
    let got = Cached12::new(Gpa::ZERO).load(&page, &test_caps(), L1_CR0, false);
    assert_eq!(got, Err(crate::check::Refusal::IopmTooHigh));
}

/// KVM: CR2 was taken from vmcb12 and not from L2.
#[test]
fn kvm_2026_cr2_is_l2s() {
    let mut rig = Rig::new();
    rig.page.write_u64(at::CR2, 1);
    rig.vmrun(false);
    rig.vmcb02.save.cr2 = 0xcafe;
    let _ = reflect(&rig.vmcb02, &Exit::default(), &mut rig.c12, &rig.page);
    assert_eq!(rig.page.read_u64(at::CR2), 0xcafe);
}

/// KVM: TLB_CONTROL of L1 reached the processor as it was.
#[test]
fn kvm_2026_tlb_control_is_never_passed_on() {
    for control in 0..=255u64 {
        let mut rig = Rig::new();
        rig.page.write_u64(at::ASID, 1 | control << 32);
        rig.vmrun(false);
        assert_eq!((rig.vmcb02.control.tlb_control, rig.vmcb02.control.asid), (0, 42));
    }
}

/// TCG reports every CR read as CR0's: L0 must see them all if L1 wants any, and none if not.
#[test]
fn tcg_cr_reads() {
    let mut rig = Rig::new();
    rig.l0 = tcg();
    rig.vmrun(false);
    assert!(!rig.vmcb02.control.intercepts.has(Intercept::cr_read(0)));
    intercept(&rig.page, Intercept::cr_read(3));
    rig.vmrun(false);
    assert!(rig.vmcb02.control.intercepts.has(Intercept::cr_read(0)));
    // By the register that the decoder found.
    assert_eq!(owner(&rig, ExitCode::cr_read(3)), Route::L1);
    assert_eq!(owner(&rig, ExitCode::cr_read(0)), Route::L0);
}

/// Nested paging off in 12 is not nested paging off in 02, and PAT is then L1's.
#[test]
fn nested_paging_is_always_on() {
    let mut rig = Rig::new();
    rig.vmcb01.save.g_pat = 0x0101_0101_0101_0101;
    rig.vmrun(false);
    assert_eq!(rig.vmcb02.control.misc_ctl, misc_ctl::NP_ENABLE);
    assert_eq!(rig.vmcb02.save.g_pat, rig.vmcb01.save.g_pat);
    with_np(&rig.page);
    rig.vmrun(false);
    assert_eq!(rig.vmcb02.save.g_pat, 0x0007_0406_0007_0406);
}
