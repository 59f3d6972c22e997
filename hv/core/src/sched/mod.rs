//! The scheduler: which vCPU runs on which pCPU, until when.
//!
//! Each pCPU has a run queue under a lock of its own; nobody holds two of them. A pCPU that looks for
//! work also looks into the other queues and takes from there what is further ahead than its own best,
//! so that shares hold machine-wide and no pCPU idles beside work. What "ahead" means is the
//! [`Policy`]'s business; the protocol of waking and blocking is [`Unit`]'s. A unit whose [`Budget`] is used up stays
//! queued and is passed over until the next period.

mod budget;
mod policy;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
mod unit;

pub use budget::Budget;
pub use policy::{Credit, Policy, RoundRobin, Tunables, Visit};
pub use unit::{Affinity, Place, Unit, Wake};

use crate::platform::PcpuId;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use crate::sync::{Irq, IrqLock};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Something that has a [`Unit`].
pub trait Schedulable: Send + Sync + 'static {
    /// Its unit.
    fn unit(&self) -> &Unit;
    /// It was blocked, or was about to be, and is about to be queued. Called before any pCPU can pick it, with no lock held.
    fn woken(&self, now: u64);
}

/// Why a vCPU leaves its pCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyPut {
    /// It waits for an event.
    Blocked,
    /// Its slice is over.
    SliceEnd,
    /// Another came first.
    Preempted,
    /// It let others go first.
    Yield,
    /// It may not run (down, paused, its domain stopped).
    Offline,
}

/// What a pCPU shall run.
#[derive(Debug)]
pub struct Picked<V> {
    /// Which vCPU.
    pub vcpu: Arc<V>,
    /// System time (ns) at which to put it back at the latest.
    pub slice_end: u64,
    /// It ran elsewhere before, or nowhere.
    pub migrated: bool,
}

/// The vCPU is on a pCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

struct Queue<V> {
    waiting: Vec<Arc<V>>,
    current: Option<Current<V>>,
}

/// What runs on a pCPU.
struct Current<V> {
    vcpu: Arc<V>,
    /// System time (ns) at which it began.
    since: u64,
    slice_end: u64,
}

struct Runqueue<V, I: Irq> {
    queue: IrqLock<Queue<V>, I>,
    /// How many wait.
    waiting: AtomicUsize,
    idle: AtomicBool,
    resched: AtomicBool,
}

struct Accounts<V> {
    units: Vec<Arc<V>>,
}

/// The scheduler of the machine. All methods may be called on any pCPU, also by interrupt handlers, with
/// no lock held.
pub struct Scheduler<V: Schedulable, I: Irq> {
    queues: Box<[Runqueue<V, I>]>,
    accounts: IrqLock<Accounts<V>, I>,
    policy: Box<dyn Policy>,
    tunables: Tunables,
    next_distribution: AtomicU64,
    consumed: AtomicU64,
}

impl<V: Schedulable, I: Irq> Scheduler<V, I> {
    /// A scheduler for `pcpus` pCPUs (at most [`Affinity::MAX`]), all idle.
    pub fn new(pcpus: u32, policy: Box<dyn Policy>, tunables: Tunables) -> Self {
        let queue = || Runqueue {
            queue: IrqLock::new(Queue { waiting: Vec::new(), current: None }),
            waiting: AtomicUsize::new(0),
            idle: AtomicBool::new(true),
            resched: AtomicBool::new(false),
        };
        Self {
            queues: (0..pcpus.clamp(1, Affinity::MAX)).map(|_| queue()).collect(),
            accounts: IrqLock::new(Accounts { units: Vec::new() }),
            policy,
            tunables,
            next_distribution: AtomicU64::new(0),
            consumed: AtomicU64::new(0),
        }
    }

    /// Number of pCPUs.
    pub fn pcpus(&self) -> u32 {
        self.queues.len() as u32
    }
    /// How often consumed time is given back, in ns.
    pub fn period(&self) -> u64 {
        self.tunables.period
    }
    /// The policy's name.
    pub fn policy(&self) -> &'static str {
        self.policy.name()
    }

    /// Makes a vCPU known. It is blocked; [`Scheduler::wake`] starts it. All allocation happens here:
    /// each queue has room for every vCPU.
    pub fn add(&self, vcpu: &Arc<V>) {
        let total = {
            let mut accounts = self.accounts.lock();
            accounts.units.push(vcpu.clone());
            accounts.units.len()
        };
        for rq in &self.queues {
            let mut queue = rq.queue.lock();
            let room = total.saturating_sub(queue.waiting.len());
            queue.waiting.reserve(room);
        }
    }

    /// Forgets a vCPU. [`Busy`]: it is on a pCPU, or on its way to a queue; make it ineligible to run,
    /// kick it, and call again.
    pub fn remove(&self, vcpu: &Arc<V>) -> Result<(), Busy> {
        match vcpu.unit().place() {
            Place::Blocked => {}
            Place::Running(_) | Place::Waking => return Err(Busy),
            Place::Queued(pcpu) => {
                let rq = self.rq(pcpu);
                let mut queue = rq.queue.lock();
                let at = queue.waiting.iter().position(|other| Arc::ptr_eq(other, vcpu)).ok_or(Busy)?;
                queue.waiting.remove(at);
                rq.waiting.store(queue.waiting.len(), SeqCst);
                vcpu.unit().unqueued();
            }
        }
        self.accounts.lock().units.retain(|other| !Arc::ptr_eq(other, vcpu));
        Ok(())
    }

    /// There may be a reason for `vcpu` to run; make the reason visible (a pending bit) before.
    /// Returns the pCPU to kick, if any; it may be the caller's own, which then tests
    /// [`Scheduler::resched_wanted`] before it goes on.
    pub fn wake(&self, vcpu: &Arc<V>, now: u64) -> Option<PcpuId> {
        match vcpu.unit().wake() {
            Wake::Already => None,
            Wake::Running(pcpu) => Some(pcpu),
            Wake::Enqueue => {
                vcpu.woken(now);
                self.enqueue(vcpu, now)
            }
        }
    }

    /// What `pcpu` shall run next; `None`: nothing, it is idle now, and will be kicked when there is
    /// something. What it ran before must have been [`Scheduler::put`].
    pub fn pick(&self, pcpu: PcpuId, now: u64) -> Option<Picked<V>> {
        self.distribute(now);
        let rq = self.rq(pcpu);
        rq.resched.store(false, SeqCst);
        // Idle first, look afterwards: a waker enqueues first and looks for idle pCPUs afterwards, so one
        // of the two sees the other.
        rq.idle.store(true, SeqCst);
        let own = self.best(&rq.queue.lock(), pcpu, now).map(|(_, precedence)| precedence);
        let other = self.best_elsewhere(pcpu, now);
        let steal = match (own, other) {
            (_, None) => None,
            (None, Some((from, _))) => Some(from),
            (Some(mine), Some((from, theirs))) => {
                let margin = i64::try_from(self.tunables.margin).unwrap_or(i64::MAX);
                (theirs > mine.saturating_add(margin)).then_some(from)
            }
        };
        let taken = steal.and_then(|from| self.take(from, pcpu, now)).or_else(|| self.take(pcpu, pcpu, now));
        let (vcpu, migrated) = taken?;
        let budget = vcpu.unit().budget();
        let slice = budget.map_or(u64::MAX, |budget| budget.slice(now)).min(self.tunables.slice);
        let slice_end = now.saturating_add(slice);
        rq.queue.lock().current = Some(Current { vcpu: vcpu.clone(), since: now, slice_end });
        rq.idle.store(false, SeqCst);
        Some(Picked { vcpu, slice_end, migrated })
    }

    /// Whether `pcpu` must put `vcpu`, which it runs and whose slice ended at `slice_end`: others wait, or its
    /// budget must be looked at.
    pub fn slice_over(&self, pcpu: PcpuId, vcpu: &V, slice_end: u64, now: u64) -> bool {
        now >= slice_end && (self.waiting(pcpu) > 0 || vcpu.unit().budget().is_some())
    }

    /// When something that waits and may run on `pcpu` will have time again; after `now`. An idle pCPU must look
    /// ([`Scheduler::pick`]) then.
    pub fn next_refill(&self, pcpu: PcpuId, now: u64) -> Option<u64> {
        let refill_of = |vcpu: &Arc<V>| {
            let unit = vcpu.unit();
            let budget = unit.budget().filter(|_| self.may_run_on(unit, pcpu))?;
            Some(budget.refill_at(now))
        };
        let of_queue = |rq: &Runqueue<V, I>| rq.queue.lock().waiting.iter().filter_map(refill_of).min();
        self.queues.iter().filter(|rq| rq.waiting.load(SeqCst) > 0).filter_map(of_queue).min()
    }

    /// `vcpu`, picked by `pcpu`, stops running there. Returns a pCPU to kick, if any.
    /// With [`WhyPut::Blocked`] a wake-up since [`Unit::arm`] makes it runnable at once.
    pub fn put(&self, pcpu: PcpuId, vcpu: &Arc<V>, now: u64, why: WhyPut) -> Option<PcpuId> {
        let current = self.rq(pcpu).queue.lock().current.take();
        if let Some(Current { since, .. }) = current {
            let ran = now.saturating_sub(since);
            self.policy.charge(vcpu.unit(), ran);
            if let Some(budget) = vcpu.unit().budget() {
                budget.charge(ran);
            }
            self.consumed.fetch_add(ran, SeqCst);
        }
        let unit = vcpu.unit();
        match why {
            WhyPut::Blocked | WhyPut::Offline => {
                if unit.block() {
                    return None;
                }
                vcpu.woken(now);
            }
            WhyPut::SliceEnd | WhyPut::Preempted => unit.stop(),
            WhyPut::Yield => {
                unit.yielded.store(true, SeqCst);
                unit.stop();
            }
        }
        if !unit.affinity().contains(pcpu) {
            return self.enqueue(vcpu, now);
        }
        self.push(pcpu, vcpu);
        // Something waits beside it; a pCPU that went idle in the moment it was queued may not know.
        let affinity = unit.affinity();
        let idle = |&other: &PcpuId| affinity.contains(other) && self.rq(other).idle.load(SeqCst);
        if self.waiting(pcpu) > 1 { self.pcpu_ids().find(idle) } else { None }
    }

    /// Whether `pcpu` should put what it runs, because something that comes first was woken.
    pub fn resched_wanted(&self, pcpu: PcpuId) -> bool {
        self.rq(pcpu).resched.load(SeqCst)
    }

    /// How many vCPUs wait for `pcpu`.
    pub fn waiting(&self, pcpu: PcpuId) -> usize {
        self.rq(pcpu).waiting.load(SeqCst)
    }

    /// Out-of-range ids are a bug of the machine layer; they fold onto a valid queue.
    fn rq(&self, pcpu: PcpuId) -> &Runqueue<V, I> {
        &self.queues[pcpu.index() % self.queues.len()]
    }

    fn pcpu_ids(&self) -> impl Iterator<Item = PcpuId> + use<V, I> {
        (0..self.queues.len() as u32).map(PcpuId)
    }

    /// Puts a unit that is on its way into the queue that suits it, and tells whom to kick.
    fn enqueue(&self, vcpu: &Arc<V>, now: u64) -> Option<PcpuId> {
        let unit = vcpu.unit();
        let affinity = unit.affinity();
        let allowed = || self.pcpu_ids().filter(|&pcpu| affinity.contains(pcpu));
        let idle = |pcpu: &PcpuId| self.rq(*pcpu).idle.load(SeqCst);
        let last = Some(unit.last()).filter(|&last| last.0 < self.pcpus() && affinity.contains(last));

        let target = last.filter(idle).or_else(|| allowed().find(idle));
        if let Some(target) = target {
            self.push(target, vcpu);
            return Some(target);
        }
        // Nobody is idle: preempt the one that is furthest behind, if it is far enough. What may not run preempts none.
        let mine = if unit.affords(now) { self.policy.precedence(unit, 0) } else { i64::MIN };
        let weakest = allowed().filter_map(|pcpu| Some((pcpu, self.running(pcpu, now)?))).min_by_key(|r| r.1);
        let margin = i64::try_from(self.tunables.margin).unwrap_or(i64::MAX);
        if let Some((pcpu, _)) = weakest.filter(|&(_, theirs)| mine > theirs.saturating_add(margin)) {
            self.push(pcpu, vcpu);
            self.rq(pcpu).resched.store(true, SeqCst);
            return Some(pcpu);
        }
        // An affinity to no pCPU of this machine counts as to all, or the vCPU could never stop.
        let shortest = || allowed().min_by_key(|&pcpu| self.waiting(pcpu));
        let target = last.or_else(shortest).unwrap_or(PcpuId(0));
        self.push(target, vcpu);
        // A pCPU that went idle meanwhile may have looked before the push. One that runs something whose slice ended
        // while nobody waited has no timer set for it any more: it must be told.
        let late = |pcpu: &PcpuId| {
            let queue = self.rq(*pcpu).queue.lock();
            queue.current.as_ref().is_some_and(|current| current.slice_end <= now)
        };
        allowed().find(idle).or_else(|| Some(target).filter(late))
    }

    /// Precedence of what runs on `pcpu`.
    fn running(&self, pcpu: PcpuId, now: u64) -> Option<i64> {
        let queue = self.rq(pcpu).queue.lock();
        let Current { vcpu, since, .. } = queue.current.as_ref()?;
        Some(self.policy.precedence(vcpu.unit(), now.saturating_sub(*since)))
    }

    fn push(&self, pcpu: PcpuId, vcpu: &Arc<V>) {
        let rq = self.rq(pcpu);
        let mut queue = rq.queue.lock();
        vcpu.unit().queued(pcpu);
        queue.waiting.push(vcpu.clone());
        rq.waiting.store(queue.waiting.len(), SeqCst);
    }

    /// Whether affinity lets `unit` run on `pcpu`. One to no pCPU of this machine counts as to all.
    fn may_run_on(&self, unit: &Unit, pcpu: PcpuId) -> bool {
        let affinity = unit.affinity();
        affinity.contains(pcpu) || !self.pcpu_ids().any(|other| affinity.contains(other))
    }

    /// Index and precedence of the first in `queue` that may run on `pcpu` now.
    fn best(&self, queue: &Queue<V>, pcpu: PcpuId, now: u64) -> Option<(usize, i64)> {
        let mut best = None;
        for (i, vcpu) in queue.waiting.iter().enumerate() {
            let unit = vcpu.unit();
            if !self.may_run_on(unit, pcpu) || !unit.affords(now) {
                continue;
            }
            let yielded = unit.yielded.load(SeqCst);
            let precedence = if yielded { i64::MIN } else { self.policy.precedence(unit, 0) };
            if best.is_none_or(|(_, other)| precedence > other) {
                best = Some((i, precedence));
            }
        }
        best
    }

    fn best_elsewhere(&self, pcpu: PcpuId, now: u64) -> Option<(PcpuId, i64)> {
        let others = self.pcpu_ids().filter(|&other| other != pcpu && self.waiting(other) > 0);
        others
            .filter_map(|other| {
                let queue = self.rq(other).queue.lock();
                Some((other, self.best(&queue, pcpu, now)?.1))
            })
            .max_by_key(|&(_, precedence)| precedence)
    }

    /// Takes the best of `from`'s queue to run on `pcpu`.
    fn take(&self, from: PcpuId, pcpu: PcpuId, now: u64) -> Option<(Arc<V>, bool)> {
        let rq = self.rq(from);
        let mut queue = rq.queue.lock();
        let (at, _) = self.best(&queue, pcpu, now)?;
        let vcpu = queue.waiting.remove(at);
        // Those that yielded have let one go first.
        queue.waiting.iter().for_each(|other| other.unit().yielded.store(false, SeqCst));
        let unit = vcpu.unit();
        unit.yielded.store(false, SeqCst);
        rq.waiting.store(queue.waiting.len(), SeqCst);
        let migrated = unit.last() != pcpu || unit.ran() == 0;
        unit.start(pcpu);
        Some((vcpu, migrated))
    }

    /// Once per period, by whichever pCPU comes first.
    fn distribute(&self, now: u64) {
        let due = self.next_distribution.load(SeqCst);
        let next = now.saturating_add(self.tunables.period);
        if now < due || self.next_distribution.compare_exchange(due, next, SeqCst, SeqCst).is_err() {
            return;
        }
        let Some(accounts) = self.accounts.try_lock() else { return };
        let consumed = self.consumed.swap(0, SeqCst);
        let visit = |f: &mut dyn FnMut(&Unit)| accounts.units.iter().for_each(|vcpu| f(vcpu.unit()));
        self.policy.distribute(&visit, consumed);
    }
}

impl<V: Schedulable, I: Irq> core::fmt::Debug for Scheduler<V, I> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Scheduler({}, {} pcpus)", self.policy.name(), self.queues.len())
    }
}
