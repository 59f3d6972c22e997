//! Routing against the table of nested SVM exits.

use super::*;
use crate::layout::ExitCode;
use crate::perm::{Maps12, Perm12};
use crate::route::*;

/// Maps that intercept nothing.
struct Open;
impl Perm12 for Open {
    fn msr_byte(&self, _: usize) -> u8 {
        0
    }
    fn io_byte(&self, _: usize) -> u8 {
        0
    }
}
/// Maps that must not be asked.
struct Untouched;
impl Perm12 for Untouched {
    fn msr_byte(&self, _: usize) -> u8 {
        panic!("asked for an MSR")
    }
    fn io_byte(&self, _: usize) -> u8 {
        panic!("asked for a port")
    }
}
const CLOSED: Maps12<HeapPage> = Maps12 { msrpm: [None, None], iopm: [None, None, None] };

fn rig(intercepts: &[Intercept]) -> Rig {
    let mut rig = Rig::new();
    for what in intercepts {
        intercept(&rig.page, *what);
    }
    rig.vmrun(false);
    rig
}
fn owner(rig: &Rig, code: ExitCode, perm: &impl Perm12) -> Route {
    let exit = Exit { code, ..Exit::default() };
    route(&exit, rig.c12.checked().unwrap(), &L0Wants::default(), perm)
}

#[test]
fn a_route_is_one_byte() {
    assert!(size_of::<Route>() == 1);
}

#[test]
fn an_exit_is_l1s_exactly_if_l1_asked() {
    let special = [ExitCode::SMI, ExitCode::IOIO, ExitCode::MSR];
    let both = [ExitCode::exception(18), ExitCode::INTR, ExitCode::NMI];
    let caps = test_caps();
    for n in 0..0xc0u64 {
        let code = ExitCode(n);
        let bit = Intercept::of(code).unwrap();
        if special.contains(&code) {
            continue;
        }
        let asked = owner(&rig(&[bit]), code, &Untouched);
        // VMRUN is intercepted by every valid vmcb12.
        let unasked = if bit == Intercept::VMRUN { Route::L0 } else { owner(&rig(&[]), code, &Untouched) };
        if (0x8f..0xa0).contains(&n) || n >= 0xa7 {
            assert_eq!((asked, unasked), (Route::L1, Route::L1), "{code}");
        } else if !caps.intercepts().has(bit) {
            assert_eq!((asked, unasked), (Route::L0, Route::L0), "{code}");
        } else {
            let want = if both.contains(&code) { Route::Both } else { Route::L1 };
            assert_eq!((asked, unasked), (want, Route::L0), "{code}");
        }
    }
}

#[test]
fn machine_check_interrupts_and_nmis_go_to_l0_first() {
    let rig = rig(&[Intercept::INTR, Intercept::NMI, Intercept::SMI, Intercept::exception(18)]);
    for code in [ExitCode::INTR, ExitCode::NMI, ExitCode::exception(18)] {
        assert_eq!(owner(&rig, code, &Untouched), Route::Both);
    }
    assert_eq!(owner(&rig, ExitCode::SMI, &Untouched), Route::L0);
}

#[test]
fn nested_page_faults_go_to_l0_first() {
    assert_eq!(owner(&rig(&[]), ExitCode::NPF, &Untouched), Route::L0);
    let mut rig = Rig::new();
    with_np(&rig.page);
    rig.vmrun(false);
    assert_eq!(owner(&rig, ExitCode::NPF, &Untouched), Route::Both);
}

#[test]
fn hardware_failures_and_avic_are_l0s_and_the_rest_l1s() {
    let rig = rig(&[]);
    let host = [
        ExitCode::INVALID,
        ExitCode::BUSY,
        ExitCode::IDLE_REQUIRED,
        ExitCode::INVALID_PMC,
        ExitCode::AVIC_INCOMPLETE_IPI,
        ExitCode::AVIC_NOACCEL,
        ExitCode::VMGEXIT,
    ];
    for code in host {
        assert_eq!(owner(&rig, code, &Untouched), Route::L0, "{code}");
    }
    for code in [0xc0, 0x3ff, 0x404, 0xf000_0000, 0xffff_ffff, u64::MAX - 4, 1 << 63] {
        assert_eq!(owner(&rig, ExitCode(code), &Untouched), Route::L1, "{code:#x}");
    }
}

#[test]
fn ports_and_msrs_need_the_class_and_the_map() {
    for (code, class) in [(ExitCode::IOIO, Intercept::IOIO), (ExitCode::MSR, Intercept::MSR)] {
        assert_eq!(owner(&rig(&[]), code, &Untouched), Route::L0);
        assert_eq!(owner(&rig(&[class]), code, &Open), Route::L0);
        assert_eq!(owner(&rig(&[class]), code, &CLOSED), Route::L1);
    }
    let rig = rig(&[Intercept::MSR]);
    let outside = Exit { code: ExitCode::MSR, ecx: 0x4000_0000, ..Exit::default() };
    let c12 = rig.c12.checked().unwrap();
    assert_eq!(route(&outside, c12, &L0Wants::default(), &Open), Route::L1);
}

#[test]
fn l0_may_insist() {
    let rig = rig(&[Intercept::exception(1), Intercept::VINTR]);
    let c12 = rig.c12.checked().unwrap();
    let debugging = L0Wants { first: Intercepts::of(&[Intercept::exception(1)]), window_borrowed: true };
    for code in [ExitCode::exception(1), ExitCode::VINTR] {
        let exit = Exit { code, ..Exit::default() };
        assert_eq!(route(&exit, c12, &L0Wants::default(), &Open), Route::L1);
        assert_eq!(route(&exit, c12, &debugging, &Open), Route::L0);
    }
}

#[test]
fn cr0_writes_that_only_l0_intercepts_are_routed_as_selective() {
    let old = CR0_PE | CR0_PG;
    let (ts_mp, wp) = (old | 0b1010, old | CR0_WP);
    let plain = ExitCode::cr_write(0);
    let code = |list: &[Intercept], new| cr0_write_code(rig(list).c12.checked().unwrap(), old, new);
    assert_eq!(code(&[Intercept::CR0_SEL_WRITE], wp), ExitCode::CR0_SEL_WRITE);
    assert_eq!(code(&[Intercept::CR0_SEL_WRITE], ts_mp), plain);
    assert_eq!(code(&[Intercept::CR0_SEL_WRITE, Intercept::cr_write(0)], wp), plain);
    assert_eq!(code(&[], wp), plain);
}
