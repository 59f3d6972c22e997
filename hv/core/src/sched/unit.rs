//! One schedulable thing: where it is, and its account.
//!
//! The word is the whole protocol between those who wake and the one who blocks. A waker makes its
//! reason visible first and then calls [`Unit::wake`]; the pCPU calls [`Unit::arm`], tests for reasons,
//! and then [`Unit::block`]. Either the waker finds `Blocked` and enqueues, or it finds `Running` and
//! leaves the mark that makes `block` fail. A wake-up can so be one too many, never lost.

use super::budget::Budget;
use crate::platform::PcpuId;
use crate::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering::SeqCst};
use alloc::sync::Arc;

const STATE: u32 = 0b11;
const BLOCKED: u32 = 0;
const QUEUED: u32 = 1;
const RUNNING: u32 = 2;
/// Somebody called `wake` since the vCPU started or armed.
const WOKEN: u32 = 0b100;
const PCPU_SHIFT: u32 = 8;
/// In the place of a pCPU: chosen to be queued, not in a queue yet.
const NOWHERE: u32 = 0xff_ffff;

/// Where a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Waits for a reason to run.
    Blocked,
    /// On its way into a run queue.
    Waking,
    /// In the run queue of a pCPU.
    Queued(PcpuId),
    /// On a pCPU.
    Running(PcpuId),
}

/// What [`Unit::wake`] asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Put it into a run queue: it was blocked, and the caller is the one who woke it.
    Enqueue,
    /// It runs there; it will not block without looking again.
    Running(PcpuId),
    /// It waits for a pCPU already.
    Already,
}

/// The scheduler's part of a vCPU.
#[derive(Debug)]
pub struct Unit {
    word: AtomicU32,
    last: AtomicU32,
    /// Relative share of the machine.
    weight: AtomicU32,
    /// pCPUs it may run on.
    affinity: [AtomicU64; Affinity::WORDS],
    /// ns it may still run before others come first; negative if it ran more than its share.
    credit: AtomicI64,
    /// ns it ran in all.
    ran: AtomicU64,
    /// What it may use together with others, if that is limited.
    budget: Option<Arc<Budget>>,
    /// It yielded: the others in its queue go first, once.
    pub(super) yielded: AtomicBool,
    /// Within a distribution: it holds all the credit it may.
    pub(super) full: AtomicBool,
}

/// A set of pCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity(pub [u64; Affinity::WORDS]);

impl Affinity {
    const WORDS: usize = 4;
    /// Highest number of pCPUs.
    pub const MAX: u32 = 64 * Self::WORDS as u32;
    /// Every pCPU.
    pub const ALL: Self = Self([u64::MAX; Self::WORDS]);
    /// No pCPU.
    pub const NONE: Self = Self([0; Self::WORDS]);

    /// With `pcpu` added.
    pub const fn with(mut self, pcpu: PcpuId) -> Self {
        if pcpu.0 < Self::MAX {
            self.0[pcpu.index() / 64] |= 1 << (pcpu.0 % 64);
        }
        self
    }
    /// Whether `pcpu` is in it.
    pub const fn contains(&self, pcpu: PcpuId) -> bool {
        pcpu.0 < Self::MAX && self.0[pcpu.index() / 64] & 1 << (pcpu.0 % 64) != 0
    }
}

impl Unit {
    /// A blocked unit.
    pub fn new(weight: u32, affinity: Affinity) -> Self {
        Self {
            word: AtomicU32::new(BLOCKED),
            last: AtomicU32::new(0),
            weight: AtomicU32::new(weight.max(1)),
            affinity: affinity.0.map(AtomicU64::new),
            credit: AtomicI64::new(0),
            ran: AtomicU64::new(0),
            budget: None,
            yielded: AtomicBool::new(false),
            full: AtomicBool::new(false),
        }
    }

    /// Limited to what `budget` has, which others may draw from too.
    pub fn within(mut self, budget: Option<Arc<Budget>>) -> Self {
        self.budget = budget;
        self
    }
    /// What it may use, if that is limited.
    pub fn budget(&self) -> Option<&Budget> {
        self.budget.as_deref()
    }
    /// Whether its budget lets it run at `now` (system time, ns).
    pub(super) fn affords(&self, now: u64) -> bool {
        self.budget().is_none_or(|budget| budget.left(now) > 0)
    }

    /// Relative share of the machine; 256 is usual.
    pub fn weight(&self) -> u32 {
        self.weight.load(SeqCst)
    }
    /// Changes the share. 0 counts as 1.
    pub fn set_weight(&self, weight: u32) {
        self.weight.store(weight.max(1), SeqCst);
    }
    /// Where it may run.
    pub fn affinity(&self) -> Affinity {
        Affinity(core::array::from_fn(|i| self.affinity[i].load(SeqCst)))
    }
    /// Changes where it may run; takes effect when it is next queued.
    pub fn set_affinity(&self, to: Affinity) {
        self.affinity.iter().zip(to.0).for_each(|(word, bits)| word.store(bits, SeqCst));
    }
    /// ns of credit.
    pub fn credit(&self) -> i64 {
        self.credit.load(SeqCst)
    }
    /// Adds credit, up to `most`.
    pub fn add_credit(&self, ns: i64, most: i64) {
        let _ = self.credit.fetch_update(SeqCst, SeqCst, |c| Some(c.saturating_add(ns).min(most.max(c))));
    }
    /// Takes credit, down to `least`.
    pub fn charge(&self, ns: u64, least: i64) {
        self.ran.fetch_add(ns, SeqCst);
        let ns = i64::try_from(ns).unwrap_or(i64::MAX);
        let _ = self.credit.fetch_update(SeqCst, SeqCst, |c| Some(c.saturating_sub(ns).max(least)));
    }
    /// ns it ran in all, up to when it was last put.
    pub fn ran(&self) -> u64 {
        self.ran.load(SeqCst)
    }
    /// The pCPU it ran on last.
    pub fn last(&self) -> PcpuId {
        PcpuId(self.last.load(SeqCst))
    }

    /// Where it is.
    pub fn place(&self) -> Place {
        let word = self.word.load(SeqCst);
        let pcpu = PcpuId(word >> PCPU_SHIFT);
        match word & STATE {
            BLOCKED => Place::Blocked,
            RUNNING => Place::Running(pcpu),
            _ if pcpu.0 == NOWHERE => Place::Waking,
            _ => Place::Queued(pcpu),
        }
    }

    /// There may be a reason to run.
    pub fn wake(&self) -> Wake {
        let mut word = self.word.load(SeqCst);
        loop {
            let (new, answer) = match word & STATE {
                BLOCKED => (QUEUED | NOWHERE << PCPU_SHIFT, Wake::Enqueue),
                RUNNING => (word | WOKEN, Wake::Running(PcpuId(word >> PCPU_SHIFT))),
                _ => return Wake::Already,
            };
            match self.word.compare_exchange(word, new, SeqCst, SeqCst) {
                Ok(_) => return answer,
                Err(found) => word = found,
            }
        }
    }

    /// It is in `pcpu`'s queue now. Only under that queue's lock.
    pub(super) fn queued(&self, pcpu: PcpuId) {
        self.word.store(QUEUED | pcpu.0 << PCPU_SHIFT, SeqCst);
    }
    /// It was queued, and starts on `pcpu`. Only under the lock of the queue it was in.
    pub(super) fn start(&self, pcpu: PcpuId) {
        self.last.store(pcpu.0, SeqCst);
        self.word.store(RUNNING | pcpu.0 << PCPU_SHIFT, SeqCst);
    }
    /// It was taken out of a queue to be put nowhere. Only under that queue's lock.
    pub(super) fn unqueued(&self) {
        self.word.store(BLOCKED, SeqCst);
    }
    /// It stops running and will be queued again.
    pub(super) fn stop(&self) {
        self.word.store(QUEUED | NOWHERE << PCPU_SHIFT, SeqCst);
    }

    /// Forgets wake-ups so far: whoever calls this tests for reasons to run *after* it.
    pub fn arm(&self) {
        self.word.fetch_and(!WOKEN, SeqCst);
    }
    /// It stops running to wait. `false`: woken meanwhile, it must be queued again (and counts as on its
    /// way there).
    pub fn block(&self) -> bool {
        let mut word = self.word.load(SeqCst);
        loop {
            let woken = word & WOKEN != 0;
            let new = if woken { QUEUED | NOWHERE << PCPU_SHIFT } else { BLOCKED };
            match self.word.compare_exchange(word, new, SeqCst, SeqCst) {
                Ok(_) => return !woken,
                Err(found) => word = found,
            }
        }
    }
}

/// The protocol of waking and blocking under every interleaving of its steps. Run with
/// `RUSTFLAGS="--cfg loom" cargo test -p hv-core --release loom_`.
#[cfg(all(test, loom))]
mod model {
    use super::*;

    /// What a waker does: reason, then wake. Tells whether it must enqueue.
    fn post(unit: &Unit, pending: &AtomicU64) -> bool {
        pending.fetch_or(1, SeqCst) & 1 == 0 && unit.wake() == Wake::Enqueue
    }

    /// A pCPU that takes what is pending, arms, looks again and blocks; `true`: it sleeps.
    fn sleep(unit: &Unit, pending: &AtomicU64, taken: &mut u32) -> bool {
        *taken += (pending.swap(0, SeqCst) & 1) as u32;
        unit.arm();
        if pending.load(SeqCst) != 0 {
            return false;
        }
        unit.block()
    }

    #[test]
    fn loom_a_reason_is_never_left_with_a_sleeping_unit() {
        loom::model(|| {
            let shared = Arc::new((Unit::new(1, Affinity::ALL), AtomicU64::new(0)));
            shared.0.start(PcpuId(0));
            let wakers: [_; 2] = core::array::from_fn(|_| {
                let shared = shared.clone();
                loom::thread::spawn(move || post(&shared.0, &shared.1))
            });
            let mut taken = 0;
            let asleep = sleep(&shared.0, &shared.1, &mut taken);
            let enqueued = wakers.map(|waker| waker.join().unwrap());
            let left = shared.1.load(SeqCst) != 0;
            // Asleep with a reason left: one waker must have taken it upon itself to enqueue. Without
            // a reason left that may happen, too: it was taken between the waker's two steps.
            let enqueuers = enqueued.iter().filter(|&&e| e).count();
            assert!(enqueuers <= 1);
            if asleep {
                assert!(!left || enqueuers == 1, "lost: {:?}", shared.0.place());
            } else {
                assert_eq!(enqueuers, 0);
            }
            if enqueuers == 1 {
                assert_eq!(shared.0.place(), Place::Waking);
            }
        });
    }
}
