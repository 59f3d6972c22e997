//! The machine as a whole: its domains, its scheduler, its timers, and what a pCPU's loop needs.
//!
//! A pCPU runs this loop; there is no stack per vCPU, every exit is handled to its end:
//! ```text
//! loop {
//!     machine.expire_timers(pcpu);
//!     match machine.pick(pcpu) {
//!         Some(picked) => { run it until it blocks, its slice ends, or resched_wanted; machine.put(..) }
//!         None => halt until kicked or machine.next_deadline(pcpu)
//!     }
//! }
//! ```

use crate::console::gate;
use crate::domain::{Action, Domain, DomainConfig, Domains, Life};
use crate::platform::{Arch, Lock, PcpuId};
use crate::sched::{Busy, Picked, Policy, Scheduler, Tunables, WhyPut};
use crate::time::{Expired, TimerKind, TimerQueue};
use crate::vcpu::{Pending, Vcpu, VcpuId, VcpuTimer};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use xen_abi::evtchn::Virq;
use xen_abi::vcpu::RunState;
use xen_abi::{DomId, Errno};

/// What the hypervisor says about itself.
#[derive(Clone, Debug, Default)]
pub struct SystemInfo {
    /// Its command line.
    pub command_line: String,
    /// Compiler and its version.
    pub compiler: String,
    /// When it was built.
    pub compile_date: String,
    /// Of which revision.
    pub changeset: String,
    /// The build id.
    pub build_id: Vec<u8>,
}

/// A domain that has stopped, and what its configuration says to do.
#[derive(Debug)]
pub struct Stopped<A: Arch> {
    /// Which.
    pub domain: Arc<Domain<A>>,
    /// What to do: [`Machine::destroy`] it in the first two cases.
    pub action: Action,
}

/// The machine.
pub struct Machine<A: Arch> {
    /// Its domains.
    pub domains: Domains<A>,
    /// Its scheduler.
    pub sched: Scheduler<Vcpu<A>, A::Irq>,
    /// What it says about itself.
    pub info: SystemInfo,
    timers: Box<[Lock<A, TimerQueue<VcpuTimer<A>>>]>,
    stopped: Lock<A, VecDeque<Arc<Domain<A>>>>,
}

impl<A: Arch> Machine<A> {
    /// A machine of `pcpus` pCPUs without domains.
    pub fn new(pcpus: u32, policy: Box<dyn Policy>, tunables: Tunables, info: SystemInfo) -> Arc<Self> {
        let sched = Scheduler::new(pcpus, policy, tunables);
        let timers = (0..sched.pcpus()).map(|id| Lock::<A, _>::new(TimerQueue::new(id))).collect();
        let stopped = Lock::<A, _>::new(VecDeque::new());
        Arc::new(Self { domains: Domains::new(), sched, info, timers, stopped })
    }

    // ---- the loop of a pCPU ------------------------------------------------------------------------------

    /// What `pcpu` (the caller) shall run, with its clock and runstate up to date. `None`: it is idle; its timer is
    /// armed for when something may run again whose domain has used up its `cap=`.
    /// `Picked::migrated` asks the architecture for what a change of pCPU costs.
    pub fn pick(&self, pcpu: PcpuId) -> Option<Picked<Vcpu<A>>> {
        // Each round takes one vCPU out of the queues that may not run; it comes back only when woken.
        loop {
            let now = A::now();
            let Some(picked) = self.sched.pick(pcpu, now) else {
                if let Some(refill) = self.sched.next_refill(pcpu, now) {
                    A::arm_timer(refill);
                }
                return None;
            };
            if picked.vcpu.may_run() {
                picked.vcpu.started(now, picked.migrated);
                return Some(picked);
            }
            self.put(pcpu, &picked.vcpu, WhyPut::Offline);
        }
    }

    /// `vcpu`, which `pcpu` (the caller) picked, stops running there. The architecture has saved it.
    pub fn put(&self, pcpu: PcpuId, vcpu: &Arc<Vcpu<A>>, why: WhyPut) {
        let now = A::now();
        vcpu.enter_state(
            match why {
                WhyPut::Blocked => RunState::BLOCKED,
                WhyPut::Offline => RunState::OFFLINE,
                WhyPut::SliceEnd | WhyPut::Preempted | WhyPut::Yield => RunState::RUNNABLE,
            },
            now,
        );
        if let Some(other) = self.sched.put(pcpu, vcpu, now, why)
            && other != pcpu
        {
            A::kick(other);
        }
        if vcpu.domain().life() == Life::Dying {
            A::tend(vcpu.domain());
        }
    }

    /// Whether `pcpu` must put `vcpu`, which it runs: its slice, which ended at `slice_end`, is over and somebody else
    /// waits or its domain is capped.
    pub fn slice_over(&self, pcpu: PcpuId, vcpu: &Vcpu<A>, slice_end: u64) -> bool {
        self.sched.slice_over(pcpu, vcpu, slice_end, A::now())
    }

    /// Whether `pcpu` should put what it runs because something else comes first.
    pub fn resched_wanted(&self, pcpu: PcpuId) -> bool {
        self.sched.resched_wanted(pcpu)
    }

    // ---- timers ------------------------------------------------------------------------------------------

    /// Acts on the timers of `pcpu` that have run out.
    pub fn expire_timers(&self, pcpu: PcpuId) {
        let now = A::now();
        let queue = &self.timers[pcpu.index() % self.timers.len()];
        // At most as many as are set now: periodic ones come back later than now.
        // (Counted before the loop: a guard in the loop's head would live through its body.)
        let set = queue.lock().len();
        for _ in 0..set {
            let Some(Expired { timer, deadline }) = queue.lock().expire(now) else { break };
            self.fire(&timer.vcpu, timer.kind, deadline, now);
        }
    }

    /// When `pcpu` must look at its timers next.
    pub fn next_deadline(&self, pcpu: PcpuId) -> Option<u64> {
        self.timers[pcpu.index() % self.timers.len()].lock().next_deadline()
    }

    pub(crate) fn set_timer(&self, vcpu: &Arc<Vcpu<A>>, kind: TimerKind, deadline: Option<u64>) {
        self.cancel_timer(vcpu, kind);
        let Some(deadline) = deadline else { return };
        let now = A::now();
        if deadline <= now {
            return self.fire(vcpu, kind, deadline, now);
        }
        let timer = VcpuTimer { vcpu: vcpu.clone(), kind };
        let earliest = {
            let mut queue = self.timers[A::this_pcpu().index() % self.timers.len()].lock();
            queue.set(timer, deadline);
            queue.next_deadline()
        };
        if earliest == Some(deadline) {
            A::arm_timer(deadline);
        }
    }

    fn cancel_timer(&self, vcpu: &Arc<Vcpu<A>>, kind: TimerKind) {
        use crate::time::Timed;
        let timer = VcpuTimer { vcpu: vcpu.clone(), kind };
        // It leaves its queue only by running out or by being cancelled, and enters one only when its
        // own vCPU sets it: a second round can only find it gone.
        if let Some(id) = timer.link().queue()
            && let Some(queue) = self.timers.get(id as usize)
        {
            queue.lock().cancel(&timer);
        }
    }

    fn fire(&self, vcpu: &Arc<Vcpu<A>>, kind: TimerKind, deadline: u64, now: u64) {
        match kind {
            TimerKind::Arch => vcpu.post(Pending::TIMER),
            TimerKind::Poll => vcpu.post(Pending::POLL),
            TimerKind::Singleshot => vcpu.domain().send_vcpu_virq(vcpu.id(), Virq::TIMER),
            TimerKind::Periodic => {
                vcpu.domain().send_vcpu_virq(vcpu.id(), Virq::TIMER);
                let period = vcpu.period();
                // Ticks that nobody could take are left out.
                if let Some(behind) = now.saturating_sub(deadline).checked_div(period) {
                    let next = deadline.saturating_add(period.saturating_mul(behind + 1));
                    self.set_timer(vcpu, kind, Some(next.max(now + 1)));
                }
            }
        }
    }

    // ---- domains -----------------------------------------------------------------------------------------

    /// Makes a domain, not running yet, with the id that [`Domains::reserve`] gave. `shared` makes the
    /// architecture's part of each vCPU. `EINVAL`: bad number of vCPUs, or the id was not reserved;
    /// `ENOMEM`. On an error the id is free again.
    pub fn create_domain(
        self: &Arc<Self>,
        id: DomId,
        config: DomainConfig,
        memory: A::Memory,
        arch: A::DomainData,
        shared: impl FnMut(VcpuId) -> A::VcpuShared,
    ) -> Result<Arc<Domain<A>>, Errno> {
        let made = self.make_domain(id, config, memory, arch, shared);
        if made.is_err() {
            self.domains.release(id);
        }
        made
    }

    fn make_domain(
        self: &Arc<Self>,
        id: DomId,
        config: DomainConfig,
        memory: A::Memory,
        arch: A::DomainData,
        mut shared: impl FnMut(VcpuId) -> A::VcpuShared,
    ) -> Result<Arc<Domain<A>>, Errno> {
        let domain = Arc::new(Domain::new(self.clone(), id, config, memory, arch)?);
        let ids = (0..domain.config().vcpus).map(VcpuId);
        let vcpus: Vec<_> = ids.map(|id| Arc::new(Vcpu::new(domain.clone(), id, shared(id)))).collect();
        domain.set_vcpus(vcpus.iter().map(Arc::downgrade).collect());
        for queue in &self.timers {
            let mut queue = queue.lock();
            let set = queue.len();
            queue.reserve(set + vcpus.len() * TimerKind::COUNT);
        }
        for vcpu in &vcpus {
            vcpu.update_time();
            self.sched.add(vcpu);
        }
        self.domains.insert(&domain, vcpus)?;
        Ok(domain)
    }

    /// Ends a domain: nothing of it runs or is scheduled any more, its event channels are closed, its
    /// timers stopped, its id is free as soon as the last reference is gone (and its memory then, too).
    /// [`Busy`]: a vCPU is still on a pCPU; call again after [`Arch::tend`].
    pub fn destroy(&self, domain: &Arc<Domain<A>>) -> Result<(), Busy> {
        domain.die();
        for vcpu in domain.vcpus() {
            self.sched.remove(&vcpu)?;
        }
        for vcpu in domain.vcpus() {
            const KINDS: [TimerKind; TimerKind::COUNT] =
                [TimerKind::Singleshot, TimerKind::Periodic, TimerKind::Poll, TimerKind::Arch];
            KINDS.into_iter().for_each(|kind| self.cancel_timer(&vcpu, kind));
        }
        domain.close_all_ports();
        *domain.console.lock() = None;
        // What others have mapped of it keeps it, and its id, until they let go.
        domain.unmap_all_grants();
        self.stopped.lock().retain(|other| !Arc::ptr_eq(other, domain));
        self.domains.remove(domain.id());
        log::info!(target: gate::life(), "domain {}: destroyed", domain.name());
        Ok(())
    }

    pub(crate) fn stopped(&self, domain: &Arc<Domain<A>>) {
        self.stopped.lock().push_back(domain.clone());
        A::tend(domain);
    }

    /// A domain that has stopped since the last call.
    pub fn take_stopped(&self) -> Option<Stopped<A>> {
        let domain = self.stopped.lock().pop_front()?;
        let action = match domain.life() {
            Life::Shutdown(reason) => domain.config().action(reason),
            _ => Action::Destroy,
        };
        Some(Stopped { domain, action })
    }
}

impl<A: Arch> fmt::Debug for Machine<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Machine({:?}, {:?})", self.sched, self.domains)
    }
}
