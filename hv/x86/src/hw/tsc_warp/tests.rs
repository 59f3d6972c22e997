use super::*;
use alloc::string::ToString;
use std::sync::Arc;
use std::thread;

/// A time that all CPUs share: each look at it lets a tick go by.
#[derive(Default)]
struct Time(AtomicU64);

impl Time {
    /// The clock of a CPU that is `late` ticks behind.
    fn clock(self: &Arc<Self>, late: u64) -> Clock<impl Fn() -> u64 + use<>> {
        let time = self.clone();
        Clock {
            tsc: move || 1_000_000 + time.0.fetch_add(1, Ordering::SeqCst) - late,
            compare: 20_000,
            patience: 100_000_000,
            turns: MAX_TURNS,
        }
    }
}

fn meet(boot_late: u64, peer_late: u64) -> Option<Outcome> {
    let (time, meeting) = (Arc::new(Time::default()), Arc::new(Meeting::new()));
    let (boot, peer) = (time.clock(boot_late), time.clock(peer_late));
    let other = meeting.clone();
    let peer = thread::spawn(move || other.peer_side(5, &peer));
    let outcome = meeting.boot_side(5, u64::MAX, &boot);
    peer.join().unwrap();
    assert_eq!(meeting.state.load(Ordering::SeqCst), phase::IDLE);
    outcome
}

#[test]
fn counters_that_agree_do_not_warp() {
    for _ in 0..20 {
        assert_eq!(meet(0, 0), Some(Outcome::Warp(0)));
        assert_eq!(meet(700, 700), Some(Outcome::Warp(0)));
    }
}

#[test]
fn a_counter_that_lags_is_found_on_either_side() {
    for (boot, peer) in [(0, 5_000), (5_000, 0)] {
        let Some(Outcome::Warp(warp)) = meet(boot, peer) else { panic!("they did not meet") };
        // The two values were read at least a tick apart.
        assert!((4_000..5_000).contains(&warp), "{warp}");
    }
}

#[test]
fn cpus_that_run_one_after_the_other_are_not_compared() {
    let (time, meeting) = (Arc::new(Time::default()), Meeting::new());
    let clock = Clock { patience: 50_000, ..time.clock(0) };
    assert!(!meeting.compare(PEER, &clock));
    assert!(!meeting.compare(BOOT, &clock));
}

#[test]
fn a_cpu_that_never_comes_costs_its_time_only() {
    let (time, meeting) = (Arc::new(Time::default()), Meeting::new());
    assert_eq!(meeting.boot_side(3, 1_000, &time.clock(0)), None);
    assert!(time.0.load(Ordering::SeqCst) < 2_000);
    // And it is welcome the second time.
    let meeting = Arc::new(meeting);
    let (other, clock) = (meeting.clone(), time.clock(0));
    let peer = thread::spawn(move || other.peer_side(3, &clock));
    assert_eq!(meeting.boot_side(3, u64::MAX, &time.clock(0)), Some(Outcome::Warp(0)));
    peer.join().unwrap();
}

#[test]
fn a_cpu_that_dies_in_the_middle_is_lost() {
    let (time, meeting) = (Arc::new(Time::default()), Arc::new(Meeting::new()));
    let other = meeting.clone();
    let peer = thread::spawn(move || while !other.step(1, phase::OFFERED, phase::ARRIVED) {});
    let clock = Clock { patience: 1_000, ..time.clock(0) };
    assert_eq!(meeting.boot_side(1, u64::MAX, &clock), Some(Outcome::Lost));
    peer.join().unwrap();
}

#[test]
fn a_cpu_is_not_kept_by_a_boot_cpu_that_does_not_answer() {
    let (time, meeting) = (Arc::new(Time::default()), Meeting::new());
    let clock = Clock { patience: 1_000, ..time.clock(0) };
    meeting.peer_side(1, &clock);
    assert_eq!(meeting.state.load(Ordering::SeqCst), phase::IDLE);
    // An offer to somebody else is not taken; one that leads nowhere is left.
    meeting.state.store(word(2, phase::OFFERED), Ordering::SeqCst);
    meeting.peer_side(1, &clock);
    assert_eq!(meeting.state.load(Ordering::SeqCst), word(2, phase::OFFERED));
    meeting.peer_side(2, &clock);
    assert_eq!(meeting.state.load(Ordering::SeqCst), word(2, phase::ARRIVED));
}

#[test]
fn a_counter_that_stands_still_ends_all_loops() {
    let meeting = Meeting::new();
    let stuck = Clock { tsc: || 7, compare: 1, patience: 1, turns: 1_000 };
    assert_eq!(meeting.boot_side(1, 1, &stuck), None);
    meeting.peer_side(1, &stuck);
    assert!(!meeting.compare(BOOT, &stuck));
    assert_eq!(meeting.warp.load(Ordering::SeqCst), 0);
}

#[test]
fn the_verdict_follows_option_then_measurement_then_cpuid() {
    let clean = Measured { compared: 3, ..Measured::default() };
    let warped = Measured { warp: 9, warped_cpu: 2, ..clean };
    let missed = Measured { missed: 1, ..clean };
    // (measured, invariant, option) -> stable, and what the log says.
    let table = [
        (clean, true, None, true, "TSC: stable (invariant, no warp on 4 CPUs)"),
        (Measured::default(), true, None, true, "TSC: stable (invariant, one CPU)"),
        (clean, false, None, false, "TSC: unstable (not announced as invariant)"),
        (warped, true, None, false, "TSC: unstable (CPU 2 warps by 9 ticks)"),
        (missed, true, None, false, "TSC: unstable (1 CPUs could not be compared)"),
        (clean, true, Some(Tsc::Unstable), false, "TSC: unstable by tsc="),
        (clean, true, Some(Tsc::Skewed), false, "TSC: unstable by tsc="),
        (clean, true, Some(Tsc::StableSocket), true, "TSC: stable by tsc=stable:socket"),
        (
            warped,
            false,
            Some(Tsc::StableSocket),
            true,
            "TSC: stable by tsc=stable:socket, though not announced as invariant, though CPU 2 warps by 9 \
             ticks",
        ),
    ];
    for (measured, invariant, option, stable, text) in table {
        let verdict = verdict(measured, invariant, option);
        assert_eq!((verdict.stable(), verdict.to_string().as_str()), (stable, text));
    }
}
