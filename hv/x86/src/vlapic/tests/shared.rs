//! What other CPUs do: kicks, start-up messages, and that nothing gets lost between threads.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use std::vec::Vec;

use super::*;

#[test]
fn one_kick_until_collected() {
    let (mut apic, shared) = xapic(0);
    assert!(shared.post(0x30));
    assert!(!shared.post(0x30) && !shared.post(0x31) && !shared.post_nmi());
    assert!(shared.has_outstanding());
    assert!(apic.sync(&shared).is_none());
    assert!(!shared.has_outstanding());
    assert!(apic.is_requested(0x30) && apic.is_requested(0x31) && apic.nmi_pending());
    assert!(shared.post(0x30));
}

#[test]
fn at_most_two_nmis_wait() {
    let (mut apic, shared) = xapic(0);
    for _ in 0..5 {
        _ = shared.post_nmi();
    }
    assert!(apic.sync(&shared).is_none());
    _ = shared.post_nmi();
    assert!(apic.sync(&shared).is_none());
    assert!(apic.take_nmi() && apic.take_nmi() && !apic.take_nmi());
}

#[test]
fn start_up_messages_in_their_order() {
    let (mut apic, shared) = xapic(0);
    assert!(shared.post_init());
    assert!(!shared.post_sipi(0x12));
    assert!(!shared.post_sipi(0x34));
    assert_eq!(apic.sync(&shared), Startup { init: true, sipi: Some(0x12) });
    assert_eq!(apic.sync(&shared), Startup::default());
    assert!(shared.post_sipi(0x56));
    assert!(!shared.post_init());
    assert_eq!(apic.sync(&shared), Startup { init: true, sipi: None }, "INIT came after");
    _ = shared.post_init();
    _ = shared.post_sipi(0xff);
    _ = shared.post_nmi();
    assert_eq!(apic.sync(&shared), Startup { init: true, sipi: Some(0xff) });
    assert!(apic.take_nmi() && !apic.nmi_pending());
}

#[test]
fn an_apic_never_run_takes_start_up_but_no_interrupt() {
    let shared = VlapicShared::new(4);
    assert!(!shared.post(0x30));
    assert!(!shared.has_outstanding());
    assert_eq!(shared.addressing(), Vlapic::new(config(4)).addressing());
    assert!(shared.post_init());
}

#[test]
fn illegal_vectors_are_the_receivers_error() {
    let (mut apic, shared) = xapic(0);
    assert!(shared.post(0x0f));
    assert!(apic.sync(&shared).is_none());
    assert_eq!(apic.next_injectable(), Injectable::Nothing);
    _ = write(&mut apic, Reg::ESR, 0);
    assert_eq!(read(&mut apic, Reg::ESR), 1 << 6);
}

#[test]
fn delivery_by_type() {
    let dest = Destination { value: 0xff, logical: false, wide: false };
    let message = |mode| Ipi { dest, shorthand: Shorthand::None, mode, vector: 0x42, level: false };
    let (mut apic, shared) = xapic(0);
    for mode in [DeliveryMode::Smi, DeliveryMode::RemoteRead, DeliveryMode::ExtInt] {
        assert!(!shared.deliver(&message(mode)));
    }
    assert!(!shared.has_outstanding());
    assert!(shared.deliver(&message(DeliveryMode::Init)));
    for mode in [DeliveryMode::Startup, DeliveryMode::Nmi, DeliveryMode::LowestPriority] {
        assert!(!shared.deliver(&message(mode)));
    }
    assert_eq!(apic.sync(&shared), Startup { init: true, sipi: Some(0x42) });
    assert!(apic.nmi_pending() && apic.is_requested(0x42));
    assert!(apic.write_base(0xfee0_0000).is_ok());
    assert!(apic.sync(&shared).is_none());
    assert!(!shared.deliver(&message(DeliveryMode::Init)), "a disabled APIC hears nothing");
}

#[test]
fn addresses_are_published_with_sync() {
    let (mut apic, shared) = xapic(7);
    _ = write(&mut apic, Reg::LDR, 0x8100_0000);
    _ = write(&mut apic, Reg::DFR, 0x0fff_ffff);
    apic.set_tpr(0x73);
    assert!(apic.sync(&shared).is_none());
    let expected =
        Addressing { id: 7, mode: Mode::Xapic, ldr: 0x81, model: 0, accepting: true, priority: 0x70 };
    assert_eq!(shared.addressing(), expected);
}

/// Spins a little before it yields: the races are between CPUs, not between time slices.
fn wait(spins: &mut u32) {
    *spins += 1;
    if spins.is_multiple_of(256) { thread::yield_now() } else { core::hint::spin_loop() }
}

/// Each sender posts its vectors one by one, each only after the one before was taken; the owner collects
/// only when kicked. A lost request or a lost kick stops the test.
#[test]
fn nothing_is_lost_between_threads() {
    const SENDERS: u8 = 3;
    const ROUNDS: u64 = 10_000;
    let limit = Instant::now() + Duration::from_secs(60);
    let (mut apic, shared) = xapic(0);
    let taken: Vec<AtomicU64> = (0..256).map(|_| AtomicU64::new(0)).collect();
    let kicked = AtomicBool::new(false);
    let send = |sender: u8| {
        let mut spins = 0;
        for round in 0..ROUNDS {
            // Vectors of different senders share words, so their bits race.
            let vector = 32 + sender + SENDERS * (round % 60) as u8;
            let before = taken[usize::from(vector)].load(Ordering::Acquire);
            if shared.post(vector) {
                kicked.store(true, Ordering::Release);
            }
            while taken[usize::from(vector)].load(Ordering::Acquire) == before {
                wait(&mut spins);
                let late = spins.is_multiple_of(4096) && Instant::now() >= limit;
                assert!(!late, "lost vector {vector:#x} in round {round}");
            }
        }
    };
    thread::scope(|scope| {
        for sender in 0..SENDERS {
            scope.spawn(move || send(sender));
        }
        let (mut total, mut spins) = (0, 0u32);
        while total < ROUNDS * u64::from(SENDERS) {
            if !kicked.swap(false, Ordering::AcqRel) {
                wait(&mut spins);
                if spins.is_multiple_of(4096) && Instant::now() >= limit {
                    break; // the senders say which
                }
                continue;
            }
            assert!(apic.sync(&shared).is_none());
            while let Some(vector) = apic.highest_pending() {
                assert!(apic.ack(vector));
                assert_eq!(apic.eoi(), None);
                taken[usize::from(vector)].fetch_add(1, Ordering::Release);
                total += 1;
            }
        }
    });
    assert_eq!(taken.iter().map(|n| n.load(Ordering::Relaxed)).sum::<u64>(), ROUNDS * 3);
}

/// A sender posts in bursts, so that its last request meets the collection of the ones before; whatever it
/// wrote before posting must be seen by who takes the vector.
#[test]
fn the_last_of_a_burst_arrives() {
    const BURSTS: u64 = 25_000;
    let limit = Instant::now() + Duration::from_secs(60);
    let (mut apic, shared) = xapic(0);
    let (kicked, written, seen) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let send = || {
        let mut spins = 0;
        for burst in 0..BURSTS {
            for _ in 0..=burst % 5 {
                let number = written.load(Ordering::Relaxed) + 1;
                written.store(number, Ordering::Relaxed);
                if shared.post(0x31) {
                    kicked.store(true, Ordering::Release);
                }
            }
            while seen.load(Ordering::Relaxed) != written.load(Ordering::Relaxed) {
                wait(&mut spins);
                assert!(!spins.is_multiple_of(4096) || Instant::now() < limit, "lost in burst {burst}");
            }
        }
        written.store(u64::MAX, Ordering::Relaxed);
    };
    thread::scope(|scope| {
        scope.spawn(send);
        let mut spins = 0;
        while written.load(Ordering::Relaxed) != u64::MAX {
            if !kicked.swap(false, Ordering::AcqRel) {
                wait(&mut spins);
                if spins.is_multiple_of(4096) && Instant::now() >= limit {
                    break; // the sender says it
                }
                continue;
            }
            assert!(apic.sync(&shared).is_none());
            if apic.ack(0x31) {
                seen.store(written.load(Ordering::Relaxed), Ordering::Relaxed);
                assert_eq!(apic.eoi(), None);
            }
        }
    });
}
