//! What L1 finds after a #VMEXIT, and how L1 goes on.

use super::*;
use crate::events::{borrow_window, set_vgif};
use crate::layout::{Event, ExitCode, int_ctl, int_state};
use crate::reflect::{L1Resume, reflect, refuse};
use crate::route::Exit;

fn leave(rig: &mut Rig, exit: Exit) -> L1Resume {
    reflect(&rig.vmcb02, &exit, &mut rig.c12, &rig.page)
}

/// After a reflect the copy is what a fresh load of the page gives: this is what makes clean bits sound.
pub(crate) fn copy_equals_page(rig: &Rig) {
    let mut fresh = crate::vmcb12::Cached12::new(rig.c12.gpa());
    let _ = fresh.load(&rig.page, &rig.caps, L1_CR0, false);
    assert_eq!(fresh.data.save, rig.c12.data.save);
    assert_eq!(fresh.data.control.int_ctl, rig.c12.data.control.int_ctl);
    assert_eq!(fresh.data.control.interrupt_shadow, rig.c12.data.control.interrupt_shadow);
    assert_eq!(fresh.data.control.event_inj, rig.c12.data.control.event_inj);
}

#[test]
fn the_exit_is_described_in_full() {
    let mut rig = Rig::new();
    rig.vmrun(false);
    rig.ran();
    let exit = Exit { code: ExitCode::CPUID, info1: 1, info2: 2, int_info: 0, nrip: 0x1002, ecx: 0 };
    (rig.vmcb02.control.insn_len, rig.vmcb02.control.insn_bytes[0]) = (2, 0x0f);
    let _ = leave(&mut rig, exit);
    let p = &rig.page;
    assert_eq!((p.read_u64(at::EXIT_CODE), p.read_u64(at::EXIT_INFO_1)), (0x72, 1));
    assert_eq!((p.read_u64(at::EXIT_INFO_2), p.read_u64(at::NRIP)), (2, 0x1002));
    assert_eq!((p.read_u8(at::INSN), p.read_u8(at::INSN + 1)), (2, 0x0f));
    // The next exit has no bytes: the old ones must go.
    rig.vmcb02.control.insn_len = 0;
    rig.vmrun(false);
    let _ = leave(&mut rig, exit);
    assert_eq!(rig.page.read_u64(at::INSN), 0);
}

#[test]
fn invalid_is_64_bits_wide() {
    let mut rig = Rig::new();
    rig.page.write_u64(at::ASID, 0);
    rig.page.write_u64(at::EVENT_INJ, Event::soft(0x80).0);
    assert!(rig.c12.load(&rig.page, &rig.caps, L1_CR0, false).is_err());
    let _ = refuse(&mut rig.c12, &rig.page);
    assert_eq!(rig.page.read_u64(at::EXIT_CODE), u64::MAX);
    assert_eq!(rig.page.read_u64(at::EVENT_INJ), Event::soft(0x80).spent().0);
    assert_eq!(rig.page.read_u64(at::RIP), 0x1000);
}

#[test]
fn features_that_are_not_offered_leave_their_fields_alone() {
    let mut rig = Rig::new();
    rig.caps.features.remove(Features::NRIPS | Features::DECODE_ASSISTS);
    rig.page.write_u64(at::NRIP, 0x77);
    rig.page.write_u64(at::INSN, 0x88);
    rig.vmrun(false);
    rig.vmcb02.control.insn_len = 3;
    let _ = leave(&mut rig, Exit { nrip: 0x1002, ..Exit::default() });
    assert_eq!((rig.page.read_u64(at::NRIP), rig.page.read_u64(at::INSN)), (0x77, 0x88));
}

#[test]
fn every_register_that_l2_changed_is_written() {
    let mut rig = Rig::new();
    with_np(&rig.page);
    rig.vmrun(false);
    rig.ran();
    let s = &mut rig.vmcb02.save;
    (s.rip, s.rsp, s.rax, s.rflags) = (1, 2, 3, 0x246);
    (s.cr0, s.cr2, s.cr3, s.cr4, s.efer) = (0x8001_0011, 5, 0x6000, CR4_PAE | 0x80, 0x1d01);
    (s.dr6, s.dr7, s.g_pat, s.cpl) = (0xffff_0ff1, 0x401, 0x0606_0606_0606_0606, 3);
    (s.es.selector, s.cs.attrib, s.ss.limit, s.ds.base) = (0x2b, 0xafb, 0xffff_ffff, 0x1234);
    (s.gdtr.limit, s.idtr.base) = (0x7f, 0xffff_8000_0000_0000);
    let want = s.clone();
    let _ = leave(&mut rig, Exit::default());
    let p = &rig.page;
    for (offset, value) in [
        (at::RIP, want.rip),
        (at::RSP, want.rsp),
        (at::RAX, want.rax),
        (at::RFLAGS, want.rflags),
        (at::CR0, want.cr0),
        (at::CR2, want.cr2),
        (at::CR3, want.cr3),
        (at::CR4, want.cr4),
        (at::EFER, want.efer),
        (at::DR6, want.dr6),
        (at::DR7, want.dr7),
        (at::G_PAT, want.g_pat),
        (at::IDTR + 8, want.idtr.base),
        (at::DS + 8, want.ds.base),
    ] {
        assert_eq!(p.read_u64(offset), value, "{offset:#x}");
    }
    assert_eq!(p.read_u8(at::CPL), 3);
    assert_eq!(p.read_u64(at::ES) as u16, 0x2b);
    assert_eq!(p.read_u32(at::CS) >> 16, 0xafb);
    assert_eq!(p.read_u32(at::SS + 4), 0xffff_ffff);
    assert_eq!(p.read_u32(at::GDTR + 4), 0x7f);
    // And the copy has followed: with all clean bits set, L2 goes on with them.
    copy_equals_page(&rig);
    p.write_u32(at::CLEAN, !0);
    rig.vmrun(true);
    let s = &rig.vmcb02.save;
    assert_eq!((s.cr3, s.es, s.dr7, s.g_pat), (want.cr3, want.es, want.dr7, want.g_pat));
    assert_eq!(rig.touched(), Clean::empty());
}

#[test]
fn an_injection_that_was_not_delivered_becomes_exitintinfo() {
    let (pf, irq) = (Event::exception(14, Some(2)), Event::intr(0x31));
    let inject = |event: Event| {
        let mut rig = Rig::new();
        rig.page.write_u64(at::EVENT_INJ, event.0);
        rig.vmrun(false);
        assert_eq!(rig.vmcb02.control.event_inj, event.0);
        rig
    };
    // L0 leaves before the entry.
    let mut rig = inject(pf);
    let _ = leave(&mut rig, Exit::default());
    assert_eq!(rig.page.read_u64(at::EXIT_INT_INFO), pf.0);
    assert_eq!(rig.page.read_u64(at::EVENT_INJ), pf.spent().0);
    // The processor reports it.
    let mut rig = inject(irq);
    rig.ran();
    let _ = leave(&mut rig, Exit { int_info: irq.0, ..Exit::default() });
    assert_eq!(rig.page.read_u64(at::EXIT_INT_INFO), irq.0);
    // Delivered; TCG leaves the bits without "valid" behind.
    let mut rig = inject(irq);
    rig.ran();
    let _ = leave(&mut rig, Exit { int_info: irq.spent().0, ..Exit::default() });
    assert_eq!(rig.page.read_u64(at::EXIT_INT_INFO), 0);
}

#[test]
fn a_soft_injection_returns_behind_its_instruction_on_every_processor() {
    let soft = Event::soft(0x80);
    let start = |l0| {
        let mut rig = Rig::new();
        rig.l0 = l0;
        rig.page.write_u64(at::EVENT_INJ, soft.0);
        rig.page.write_u64(at::NRIP, 0x1002);
        rig.vmrun(false);
        rig
    };
    let mut with_nrips = start(policy());
    assert_eq!((with_nrips.vmcb02.save.rip, with_nrips.vmcb02.control.nrip), (0x1000, 0x1002));
    let mut without = start(tcg());
    assert_eq!(without.vmcb02.save.rip, 0x1002);
    // Not delivered: L1 must find RIP at the instruction, to inject again.
    for rig in [&mut with_nrips, &mut without] {
        rig.ran();
        let _ = leave(rig, Exit { code: ExitCode::NPF, int_info: soft.0, ..Exit::default() });
        assert_eq!(rig.page.read_u64(at::RIP), 0x1000);
    }
    // Delivered, and L2 then stopped elsewhere.
    let mut rig = start(tcg());
    rig.ran();
    rig.vmcb02.save.rip = 0x8000;
    let _ = leave(&mut rig, Exit::default());
    assert_eq!(rig.page.read_u64(at::RIP), 0x8000);
}

#[test]
fn virtual_interrupt_tpr_and_gif_come_back_and_l1s_other_bits_stay() {
    use int_ctl::*;
    let mut rig = Rig::new();
    let written = V_IRQ | V_GIF | V_GIF_ENABLE | V_INTR_MASKING | AVIC_ENABLE | 3 | 0x55 << 32;
    rig.page.write_u64(at::INT_CTL, written);
    rig.vmrun(false);
    rig.ran();
    let now = &mut rig.vmcb02.control.int_ctl;
    *now = *now & !(V_IRQ | V_GIF | V_TPR) | 7;
    assert_eq!(leave(&mut rig, Exit::default()).tpr, None);
    assert_eq!(rig.page.read_u64(at::INT_CTL), written & !(V_IRQ | V_GIF | V_TPR) | 7);
}

#[test]
fn a_shared_tpr_is_reported() {
    let mut rig = Rig::new();
    rig.vmcb01.control.int_ctl = 5;
    rig.vmrun(false);
    assert_eq!(rig.vmcb02.control.int_ctl & int_ctl::V_TPR, 5);
    rig.vmcb02.control.int_ctl = rig.vmcb02.control.int_ctl & !int_ctl::V_TPR | 9;
    let resume = leave(&mut rig, Exit::default());
    assert_eq!(resume.tpr, Some(9));
    resume.apply(0, &mut rig.vmcb01);
    assert_eq!(rig.vmcb01.control.int_ctl & int_ctl::V_TPR, 9);
}

#[test]
fn l1_goes_on_as_the_manual_says() {
    let mut vmcb01 = Vmcb::new();
    vmcb01.save.rflags = RFLAGS_VM | RFLAGS_IF | RFLAGS_FIXED;
    (vmcb01.save.dr7, vmcb01.save.cpl, vmcb01.save.rax) = (0x4ff, 0, 0x5000);
    vmcb01.control.int_ctl = int_ctl::V_GIF | int_ctl::V_GIF_ENABLE;
    vmcb01.control.int_state = int_state::INTERRUPT_SHADOW;
    vmcb01.control.mark_all_clean();
    L1Resume { tpr: None }.apply(0x1003, &mut vmcb01);
    let s = &vmcb01.save;
    assert_eq!((s.rip, s.rax, s.dr7, s.rflags), (0x1003, 0x5000, 0x400, RFLAGS_IF | RFLAGS_FIXED));
    assert_eq!(vmcb01.control.int_ctl, int_ctl::V_GIF_ENABLE);
    assert_eq!(vmcb01.control.int_state, 0);
    assert_eq!(vmcb01.control.vmcb_clean, (Clean::all() - Clean::DRX - Clean::TPR).bits());
    const { assert!(!L1Resume::GIF) };
}

#[test]
fn a_borrowed_window_is_invisible() {
    use int_ctl::*;
    for irq in [0, V_IRQ] {
        let mut rig = Rig::new();
        let written = V_INTR_MASKING | irq | 4 << 16 | 0x66 << 32;
        rig.page.write_u64(at::INT_CTL, written);
        rig.vmrun(false);
        let before = rig.vmcb02.control.clone();
        borrow_window(&mut rig.c12, &mut rig.vmcb02);
        borrow_window(&mut rig.c12, &mut rig.vmcb02);
        assert!(rig.c12.window_borrowed());
        assert!(rig.vmcb02.control.int_ctl & V_IRQ != 0 && rig.vmcb02.control.int_ctl & V_IGN_TPR != 0);
        assert!(rig.vmcb02.control.intercepts.has(Intercept::VINTR));
        crate::events::return_window(&mut rig.c12, &mut rig.vmcb02);
        assert_eq!(rig.vmcb02.control.int_ctl, before.int_ctl);
        assert_eq!(rig.vmcb02.control.intercepts, before.intercepts);
        // Still borrowed at a reflect.
        borrow_window(&mut rig.c12, &mut rig.vmcb02);
        let _ = leave(&mut rig, Exit::default());
        assert!(!rig.c12.window_borrowed());
        assert_eq!(rig.page.read_u64(at::INT_CTL), written);
        rig.vmrun(false);
        assert_eq!(rig.vmcb02.control.int_ctl, before.int_ctl);
        assert_eq!(rig.vmcb02.control.intercepts, before.intercepts);
    }
}

#[test]
fn a_virtual_gif_that_l0_keeps_holds_the_virtual_interrupt() {
    use int_ctl::*;
    let mut rig = Rig::new();
    rig.l0.hardware = Features::NPT;
    let written = V_INTR_MASKING | V_GIF_ENABLE | V_GIF | V_IRQ | 0x66 << 32;
    rig.page.write_u64(at::INT_CTL, written);
    rig.vmrun(false);
    let control = |rig: &Rig| rig.vmcb02.control.int_ctl;
    assert!(rig.vmcb02.control.intercepts.has(Intercept::STGI));
    assert!(rig.vmcb02.control.intercepts.has(Intercept::CLGI));
    assert_eq!(control(&rig) & (V_GIF | V_GIF_ENABLE | V_IRQ), V_IRQ);
    assert!(set_vgif(&mut rig.c12, &mut rig.vmcb02, false));
    assert_eq!(control(&rig) & V_IRQ, 0);
    // A window borrowed and returned meanwhile does not let it through or lose it.
    borrow_window(&mut rig.c12, &mut rig.vmcb02);
    crate::events::return_window(&mut rig.c12, &mut rig.vmcb02);
    assert_eq!(control(&rig) & V_IRQ, 0);
    let _ = leave(&mut rig, Exit::default());
    assert_eq!(rig.page.read_u64(at::INT_CTL), written & !V_GIF);
    rig.vmrun(false);
    assert_eq!(control(&rig) & V_IRQ, 0);
    assert!(set_vgif(&mut rig.c12, &mut rig.vmcb02, true));
    assert_eq!(control(&rig) & V_IRQ, V_IRQ);
    // Taken by L2.
    rig.vmcb02.control.int_ctl &= !V_IRQ;
    let _ = leave(&mut rig, Exit::default());
    assert_eq!(rig.page.read_u64(at::INT_CTL), written & !V_IRQ);
}

#[test]
fn without_a_virtual_gif_stgi_is_about_l1s() {
    let mut rig = Rig::new();
    rig.vmrun(false);
    assert!(rig.vmcb02.control.intercepts.has(Intercept::STGI));
    assert!(!set_vgif(&mut rig.c12, &mut rig.vmcb02, false));
    // Lent: no exit for them, and not L0's to change.
    rig.page.write_u64(at::INT_CTL, int_ctl::V_GIF_ENABLE | int_ctl::V_GIF);
    rig.vmrun(false);
    assert!(!rig.vmcb02.control.intercepts.has(Intercept::STGI));
    assert!(!set_vgif(&mut rig.c12, &mut rig.vmcb02, false));
}
