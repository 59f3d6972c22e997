//! Events while L2 runs.

use super::*;
use crate::code::{Reason, blocking};
use crate::events::{Action, NMI, Pending, View, Window, acknowledged, again, made_up, next};

const OPEN: View = View { rflags: RFLAGS_IF, interruptibility: 0, injecting: 0, run_pending: false };
const INTR: Pending = Pending { init: false, mtf: false, timer: false, nmi: false, intr: Some(0x41) };

/// An L1 with these pin controls.
fn rig(pins: u32, exits: u32) -> Rig {
    let mut rig = Rig::new();
    rig.write(Field::PIN_CONTROLS, (0x16 | pins).into());
    rig.write(Field::EXIT_CONTROLS, (0x3_6dfb | exit::HOST_64 | exits).into());
    rig.run();
    rig
}
fn ask(rig: &Rig, view: View, pending: Pending) -> Action {
    next(rig.nested.running().unwrap(), &view, pending)
}
fn leaves(reason: Reason) -> Action {
    Action::Reflect { reason, info: 0, ack: false }
}

#[test]
fn an_interrupt_exits_whatever_l2s_if() {
    let closed = View { rflags: 0, interruptibility: blocking::STI, ..OPEN };
    let l1 = rig(pin::EXTERNAL_INTERRUPT | pin::NMI, 0);
    assert_eq!(ask(&l1, closed, INTR), leaves(Reason::EXTERNAL_INTERRUPT));
    // Xen a8effbff: acknowledged if L1 asks, and only then is the information valid.
    let acks = rig(pin::EXTERNAL_INTERRUPT | pin::NMI, exit::ACK_INTERRUPT);
    let want = Action::Reflect { reason: Reason::EXTERNAL_INTERRUPT, info: 0, ack: true };
    assert_eq!(ask(&acks, OPEN, INTR), want);
    assert_eq!(acknowledged(0x41), 0x8000_0041);
}

#[test]
fn an_interrupt_that_l1_lets_through_goes_to_l2_when_it_can() {
    let l1 = rig(pin::NMI, 0);
    assert_eq!(ask(&l1, OPEN, INTR), Action::Inject(0x8000_0041));
    let wait = Action::Wait(Window::Interrupt);
    for view in [
        View { rflags: 0, ..OPEN },
        View { interruptibility: blocking::STI, ..OPEN },
        View { interruptibility: blocking::MOV_SS, ..OPEN },
        View { injecting: 0x8000_0030, ..OPEN },
    ] {
        assert_eq!(ask(&l1, view, INTR), wait, "{view:?}");
    }
}

#[test]
fn nmis_exit_or_wait_for_their_window() {
    let nmi = Pending { nmi: true, ..Pending::default() };
    let blocked = View { interruptibility: blocking::NMI, ..OPEN };
    let exits = Action::Reflect { reason: Reason::EXCEPTION_NMI, info: NMI, ack: false };
    assert_eq!(ask(&rig(pin::EXTERNAL_INTERRUPT | pin::NMI, 0), OPEN, nmi), exits);
    assert_eq!(ask(&rig(pin::EXTERNAL_INTERRUPT | pin::NMI, 0), blocked, nmi), Action::Wait(Window::Nmi));
    let virtualized = rig(pin::EXTERNAL_INTERRUPT | pin::NMI | pin::VIRTUAL_NMIS, 0);
    assert_eq!(ask(&virtualized, blocked, nmi), exits, "L2 blocks only its virtual ones");
    let through = rig(pin::EXTERNAL_INTERRUPT, 0);
    assert_eq!(ask(&through, OPEN, nmi), Action::Inject(NMI));
    assert_eq!(
        ask(&through, View { interruptibility: blocking::STI, ..OPEN }, nmi),
        Action::Wait(Window::Nmi)
    );
    // An NMI that waits does not hold up an interrupt that exits.
    let both = Pending { nmi: true, ..INTR };
    assert_eq!(ask(&through, blocked, both), leaves(Reason::EXTERNAL_INTERRUPT));
}

#[test]
fn the_more_urgent_comes_first_and_nothing_before_l2_has_run() {
    let l1 = rig(pin::EXTERNAL_INTERRUPT | pin::NMI | pin::PREEMPTION_TIMER, 0);
    let mut all = Pending { init: true, mtf: true, timer: true, nmi: true, intr: Some(0x41) };
    assert_eq!(ask(&l1, View { run_pending: true, ..OPEN }, all), Action::EnterFirst);
    assert_eq!(ask(&l1, OPEN, all), leaves(Reason::INIT));
    all.init = false;
    assert_eq!(ask(&l1, OPEN, all), leaves(Reason::MONITOR_TRAP));
    all.mtf = false;
    assert_eq!(ask(&l1, OPEN, all), leaves(Reason::PREEMPTION_TIMER));
    all.timer = false;
    assert!(matches!(ask(&l1, OPEN, all), Action::Reflect { reason: Reason::EXCEPTION_NMI, .. }));
    assert_eq!(ask(&l1, OPEN, Pending::default()), Action::Nothing);
    // A timer that L1 did not activate is nobody's.
    let none = rig(pin::EXTERNAL_INTERRUPT | pin::NMI, 0);
    assert_eq!(ask(&none, OPEN, Pending { timer: true, ..INTR }), leaves(Reason::EXTERNAL_INTERRUPT));
}

#[test]
fn a_notification_is_processed_not_reflected() {
    let mut rig = Rig::new();
    for (field, value) in [
        (Field::PIN_CONTROLS, 0x16 | 9 | pin::POSTED_INTERRUPTS),
        (Field::PRIMARY_CONTROLS, 0x0400_6172 | primary::SECONDARY | primary::TPR_SHADOW),
        (Field::SECONDARY_CONTROLS, secondary::EPT | secondary::INTERRUPT_DELIVERY),
        (Field::EXIT_CONTROLS, 0x3_6dfb | exit::HOST_64 | exit::ACK_INTERRUPT),
        (Field::POSTED_INTR_NV, 0x41),
    ] {
        rig.write(field, value.into());
    }
    rig.run();
    assert_eq!(ask(&rig, OPEN, INTR), Action::Posted);
    let other = Pending { intr: Some(0x42), ..INTR };
    assert!(matches!(ask(&rig, OPEN, other), Action::Reflect { ack: true, .. }));
}

#[test]
fn an_event_that_was_not_delivered_is_not_lost() {
    // Xen 5fdfc1ee: lost when an exit raced with its delivery.
    let gp = 0x8000_0b0d;
    let exit = made_up(Reason::EXTERNAL_INTERRUPT, 0, gp, 0x18, 9);
    assert_eq!((exit.idt_info, exit.idt_error, exit.insn_length), (gp, 0x18, 0));
    let soft = made_up(Reason::EXTERNAL_INTERRUPT, 0, 0x8000_0480, 0x18, 2);
    assert_eq!((soft.idt_info, soft.idt_error, soft.insn_length), (0x8000_0480, 0, 2));
    assert_eq!(made_up(Reason::INIT, 0, 0x0b0d, 1, 2).idt_info, 0);
    let delivering = Exit { idt_info: 0x8000_1480, insn_length: 2, ..Exit::default() };
    assert_eq!(again(&delivering), Some((0x8000_0480, 0, 2)), "bit 12 is undefined there");
    assert_eq!(again(&Exit::default()), None);
}
