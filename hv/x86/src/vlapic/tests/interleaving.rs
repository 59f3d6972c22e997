//! The request protocol under every interleaving and reordering that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p hv-x86 --lib --release vlapic::tests::interleaving`

use std::sync::Arc;

use hv_core::sync::atomic::{AtomicU32, Ordering, fence};
use loom::thread;

use super::*;

/// Whoever is told to kick says so here; the owner collects once for each.
#[test]
fn a_request_is_collected_or_kicked_for() {
    loom::model(|| {
        let (mut apic, shared) = xapic(0);
        let shared = Arc::new(shared);
        let kicks = Arc::new(AtomicU32::new(0));
        let send = |post: fn(&VlapicShared) -> bool| {
            let (shared, kicks) = (shared.clone(), kicks.clone());
            thread::spawn(move || {
                if post(&shared) {
                    kicks.fetch_add(1, Ordering::Release);
                }
            })
        };
        let senders = [send(|shared| shared.post(0x31)), send(|shared| shared.post_nmi())];
        // The owner collects at any time; this may take nothing, one, or both.
        assert!(apic.sync(&shared).is_none());
        for sender in senders {
            sender.join().unwrap();
        }
        // Now all is posted. Without a kick still owed, all must have been collected.
        let collected = apic.is_requested(0x31) && apic.nmi_pending();
        assert!(collected || shared.has_outstanding());
        assert!(collected || kicks.load(Ordering::Acquire) > 0);
        assert!(apic.sync(&shared).is_none());
        assert!(apic.is_requested(0x31) && apic.nmi_pending());
    });
}

/// The trigger mode and what the sender wrote before are seen with the request.
#[test]
fn a_request_brings_what_was_written_before() {
    loom::model(|| {
        let (mut apic, shared) = xapic(0);
        let shared = Arc::new(shared);
        let data = Arc::new(AtomicU32::new(0));
        let sender = {
            let (shared, data) = (shared.clone(), data.clone());
            thread::spawn(move || {
                data.store(1, Ordering::Relaxed);
                _ = shared.post_level(0x31);
            })
        };
        assert!(apic.sync(&shared).is_none());
        if apic.ack(0x31) {
            assert_eq!(data.load(Ordering::Relaxed), 1);
            assert_eq!(apic.eoi(), Some(0x31));
        }
        sender.join().unwrap();
    });
}

/// A sleeper that announces itself and then looks never sleeps through a request. Loom knows sequential
/// consistency for fences only, so they stand for that of the accesses themselves.
#[test]
fn nobody_sleeps_through_a_request() {
    loom::model(|| {
        let (_, shared) = xapic(0);
        let shared = Arc::new(shared);
        let asleep = Arc::new(AtomicU32::new(0));
        let sender = {
            let (shared, asleep) = (shared.clone(), asleep.clone());
            thread::spawn(move || {
                let kick = shared.post(0x31);
                fence(Ordering::SeqCst);
                kick && asleep.load(Ordering::SeqCst) == 1
            })
        };
        asleep.store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let sleeps = !shared.has_outstanding();
        let woken = sender.join().unwrap();
        assert!(!sleeps || woken);
    });
}
