//! Events for L1: every combination, and the cases that the manual spells out.

use super::*;
use crate::events::{Action, Line, Pending, View, Windows, next};
use crate::layout::{Event, ExitCode};

fn from_bits(bits: u32) -> (View, Pending) {
    let b = |n: u32| bits >> n & 1 != 0;
    let view = View {
        gif: b(0),
        host_if: b(1),
        guest_if: b(2),
        shadow: b(3),
        masking: b(4),
        intercepts: Pending { init: b(5), smi: b(6), nmi: b(7), intr: b(8) },
        nmi_blocked: b(9),
        entry_pending: b(10),
    };
    (view, Pending { init: b(11), smi: b(12), nmi: b(13), intr: b(14) })
}

#[test]
fn every_combination_keeps_the_rules() {
    for bits in 0..1 << 15 {
        let (v, p) = from_bits(bits);
        let i = v.intercepts;
        let open = if v.masking { v.host_if } else { v.guest_if };
        match next(&v, p) {
            Action::Nothing => {}
            Action::EnterFirst => assert!(v.gif && v.entry_pending),
            Action::Reflect(code) => {
                assert!(v.gif && !v.entry_pending, "{v:?} {p:?}");
                assert!(match code {
                    ExitCode::INIT => p.init && i.init,
                    ExitCode::SMI => p.smi && i.smi,
                    ExitCode::NMI => p.nmi && i.nmi && !v.nmi_blocked,
                    ExitCode::INTR => p.intr && i.intr && open,
                    _ => false,
                });
            }
            Action::Deliver(line) => {
                assert!(v.gif, "{v:?} {p:?}");
                assert!(match line {
                    Line::Init => p.init && !i.init,
                    Line::Smi => p.smi && !i.smi,
                    Line::Nmi => p.nmi && !i.nmi && !v.nmi_blocked && !v.shadow && !v.entry_pending,
                    Line::Intr => p.intr && !i.intr && open && !v.shadow && !v.entry_pending,
                });
            }
            Action::OpenWindow(w) => {
                assert!(v.gif && !w.is_empty());
                assert!(!w.contains(Windows::NMI) || p.nmi && v.nmi_blocked);
                assert!(!w.contains(Windows::INTR) || p.intr && !v.masking);
                assert!(!w.contains(Windows::SHADOW) || v.shadow);
            }
        }
    }
}

#[test]
fn nothing_that_can_happen_is_forgotten() {
    for bits in 0..1 << 15 {
        let (v, p) = from_bits(bits);
        if !v.gif || next(&v, p) != Action::Nothing {
            continue;
        }
        // Only L1's own IF may hold an interrupt without a window: L1 must exit or be left to change it.
        assert!(!p.init && !p.smi && !p.nmi, "{v:?} {p:?}");
        assert!(!p.intr || v.masking && !v.host_if, "{v:?} {p:?}");
    }
}

fn kvm_like() -> View {
    let intercepts = Pending { init: true, smi: true, nmi: true, intr: true };
    View { gif: true, host_if: true, masking: true, intercepts, ..View::default() }
}
const INTR: Pending = Pending { init: false, smi: false, nmi: false, intr: true };
const NMI: Pending = Pending { init: false, smi: false, nmi: true, intr: false };

#[test]
fn with_masking_l1s_if_decides_and_l2s_does_not() {
    let v = kvm_like();
    assert_eq!(next(&v, INTR), Action::Reflect(ExitCode::INTR));
    assert_eq!(next(&View { shadow: true, ..v }, INTR), Action::Reflect(ExitCode::INTR));
    assert_eq!(next(&View { host_if: false, guest_if: true, ..v }, INTR), Action::Nothing);
    assert_eq!(next(&View { gif: false, ..v }, INTR), Action::Nothing);
    assert_eq!(next(&View { entry_pending: true, ..v }, INTR), Action::EnterFirst);
}

#[test]
fn without_masking_l2s_if_decides() {
    let v = View { masking: false, host_if: false, ..kvm_like() };
    assert_eq!(next(&v, INTR), Action::OpenWindow(Windows::INTR));
    assert_eq!(next(&View { guest_if: true, ..v }, INTR), Action::Reflect(ExitCode::INTR));
}

#[test]
fn a_partitioning_l1_lets_interrupts_through() {
    let v = View { gif: true, guest_if: true, ..View::default() };
    assert_eq!(next(&v, INTR), Action::Deliver(Line::Intr));
    assert_eq!(next(&View { shadow: true, ..v }, INTR), Action::OpenWindow(Windows::INTR));
    // Gated by L1's IF, in L2's shadow: a window that L2's IF gates might never open.
    let masked = View { masking: true, host_if: true, guest_if: false, shadow: true, ..v };
    assert_eq!(next(&masked, INTR), Action::OpenWindow(Windows::SHADOW));
    assert_eq!(next(&v, NMI), Action::Deliver(Line::Nmi));
}

#[test]
fn a_blocked_nmi_does_not_hold_up_interrupts() {
    let v = View { nmi_blocked: true, ..kvm_like() };
    let both = Pending { nmi: true, ..INTR };
    assert_eq!(next(&v, NMI), Action::OpenWindow(Windows::NMI));
    assert_eq!(next(&v, both), Action::Reflect(ExitCode::INTR));
    let waiting = View { masking: false, ..v };
    assert_eq!(next(&waiting, both), Action::OpenWindow(Windows::NMI | Windows::INTR));
    assert_eq!(next(&View { host_if: false, ..v }, both), Action::OpenWindow(Windows::NMI));
}

#[test]
fn init_before_smi_before_nmi_before_intr() {
    let all = Pending { init: true, smi: true, nmi: true, intr: true };
    let v = kvm_like();
    let order = [ExitCode::INIT, ExitCode::SMI, ExitCode::NMI, ExitCode::INTR];
    let mut p = all;
    for code in order {
        assert_eq!(next(&v, p), Action::Reflect(code));
        match code {
            ExitCode::INIT => p.init = false,
            ExitCode::SMI => p.smi = false,
            ExitCode::NMI => p.nmi = false,
            _ => p.intr = false,
        }
    }
    assert_eq!(next(&v, p), Action::Nothing);
}

#[test]
fn the_view_is_taken_from_the_right_level() {
    let mut rig = Rig::new();
    intercept(&rig.page, Intercept::NMI);
    rig.vmcb01.save.rflags = RFLAGS_FIXED;
    rig.vmrun(false);
    let c12 = rig.c12.checked().unwrap();
    let v = View::of(true, &rig.vmcb01, c12, &rig.vmcb02, false, false);
    assert!(!v.host_if && v.guest_if && !v.masking && v.intercepts == NMI && !v.entry_pending);
    assert!(View::of(true, &rig.vmcb01, c12, &rig.vmcb02, false, true).entry_pending);
    rig.vmcb02.control.event_inj = Event::NMI.0;
    assert!(View::of(true, &rig.vmcb01, c12, &rig.vmcb02, false, false).entry_pending);
}
