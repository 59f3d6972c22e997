//! The pool of hot vmcb02 and the life of a run.

use super::*;
use crate::state::{Nested, Pick};

fn gpa(n: u64) -> Gpa {
    Gpa::new(n * 0x1000)
}

#[test]
fn alternating_guests_stay_hot_and_the_oldest_goes() {
    let mut n = Nested::<2>::new();
    assert_eq!(n.pick(gpa(1)), Pick { slot: 0, hit: false });
    assert_eq!(n.pick(gpa(2)), Pick { slot: 1, hit: false });
    assert_eq!(n.pick(gpa(1)), Pick { slot: 0, hit: true });
    assert_eq!(n.pick(gpa(3)), Pick { slot: 1, hit: false });
    assert_eq!(n.pick(gpa(1)), Pick { slot: 0, hit: true });
    assert_eq!(n.pick(gpa(2)), Pick { slot: 1, hit: false });
    assert_eq!(n.slot(1).c12.gpa(), gpa(2));
}

#[test]
fn address_zero_is_an_address() {
    let mut n = Nested::<4>::new();
    assert!(!n.pick(Gpa::ZERO).hit);
    assert!(n.pick(Gpa::ZERO).hit);
}

#[test]
fn forgotten_memory_is_read_again() {
    let mut n = Nested::<2>::new();
    let Pick { slot, .. } = n.pick(gpa(1));
    n.forget(gpa(1));
    assert!(!n.pick(gpa(1)).hit);
    // A running one keeps its copy until it is left.
    n.enter(slot, 0x1003);
    n.forget(gpa(1));
    n.forget_all();
    assert_eq!(n.slot(slot).c12.gpa(), gpa(1));
    let _ = n.leave();
    assert!(!n.pick(gpa(1)).hit);
    assert!(n.pick(gpa(1)).hit);
}

#[test]
fn gif_follows_vmrun_and_vmexit() {
    let mut n = Nested::<4>::new();
    n.gif = false;
    n.enter(2, 0x1003);
    assert!(n.gif && n.active().unwrap().run_pending);
    n.has_run();
    assert!(!n.active().unwrap().run_pending);
    let left = n.leave().unwrap();
    assert_eq!((left.slot, left.resume_rip, n.gif, n.active()), (2, 0x1003, false, None));
}

#[test]
fn indices_from_anywhere_stay_inside() {
    let mut n = Nested::<4>::new();
    assert!(!n.slot_mut(usize::MAX).c12.window_borrowed());
    n.enter(7, 0);
    assert_eq!(n.active().unwrap().slot, 3);
}
