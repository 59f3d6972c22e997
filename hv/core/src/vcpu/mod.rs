//! A virtual CPU: what every pCPU may know of it and do to it.

mod areas;
mod pending;
mod runstate;

pub(crate) use areas::write_runstate;
pub use pending::Pending;
pub use runstate::Runstate;

use crate::domain::Domain;
use crate::platform::{Arch, Lock, PageOf};
use crate::sched::{Affinity, Schedulable, Unit};
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};
use crate::time::{Timed, TimerKind, TimerLink, write_time};
use addr::GuestPage;
use alloc::sync::Arc;
use areas::Areas;
use core::fmt;
use spin::Once;
use xen_abi::shared::{LEGACY_MAX_VCPUS, VCPU_INFO_SIZE, vcpu_info};
use xen_abi::vcpu::RunState;

/// A vCPU's number within its domain, from 0 without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VcpuId(pub u32);

impl VcpuId {
    /// As an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for VcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// Where a vcpu_info is: a pinned page and an offset in it.
#[derive(Clone, Debug)]
pub struct VcpuInfo<P> {
    /// The page.
    pub page: P,
    /// Where in it; a multiple of 8, and all of it lies within the page.
    pub offset: usize,
}

/// A virtual CPU.
pub struct Vcpu<A: Arch> {
    id: VcpuId,
    domain: Arc<Domain<A>>,
    /// What the architecture keeps here for others to touch.
    pub shared: A::VcpuShared,
    unit: Unit,
    pending: AtomicU64,
    up: AtomicBool,
    initialised: AtomicBool,
    runstate: Lock<A, Runstate>,
    /// The place the guest registered; until then the one in the shared info page, if there is one.
    registered_info: Once<VcpuInfo<PageOf<A>>>,
    areas: Lock<A, Areas>,
    upcall_vector: AtomicU8,
    /// 0: polls for nothing; [`POLL_ANY`]; else the port it polls for.
    poll: AtomicU32,
    timers: [TimerLink; TimerKind::COUNT],
    period: AtomicU64,
}

/// Polls for several ports.
pub(crate) const POLL_ANY: u32 = u32::MAX;

impl<A: Arch> Vcpu<A> {
    pub(crate) fn new(domain: Arc<Domain<A>>, id: VcpuId, shared: A::VcpuShared) -> Self {
        let unit =
            Unit::new(domain.config().weight, domain.config().affinity).within(domain.budget().cloned());
        Self {
            id,
            domain,
            shared,
            unit,
            pending: AtomicU64::new(0),
            up: AtomicBool::new(false),
            initialised: AtomicBool::new(id.0 == 0),
            runstate: Lock::<A, _>::new(Runstate::new(A::now())),
            registered_info: Once::new(),
            areas: Lock::<A, _>::new(Areas::default()),
            upcall_vector: AtomicU8::new(0),
            poll: AtomicU32::new(0),
            timers: core::array::from_fn(|_| TimerLink::new()),
            period: AtomicU64::new(0),
        }
    }

    /// Its number.
    pub fn id(&self) -> VcpuId {
        self.id
    }
    /// Its domain.
    pub fn domain(&self) -> &Arc<Domain<A>> {
        &self.domain
    }

    // ---- running and waiting -------------------------------------------------------------------------

    /// Sets reasons to look around; wakes the vCPU, or makes it leave its guest, if one of them is new.
    pub fn post(self: &Arc<Self>, reasons: Pending) {
        let old = self.pending.fetch_or(reasons.0, SeqCst);
        if reasons.0 & !old != 0 {
            self.wake();
        }
    }

    /// Makes the vCPU look around if it sleeps or runs. The reason must be visible already;
    /// [`Vcpu::post`] is the usual way.
    pub fn wake(self: &Arc<Self>) {
        // A vCPU that may not run looks around when that changes, because whoever changes it wakes it.
        if !self.may_run() {
            return;
        }
        if let Some(pcpu) = self.domain.machine().sched.wake(self, A::now())
            && pcpu != A::this_pcpu()
        {
            A::kick(pcpu);
        }
    }

    /// Takes all reasons. Own pCPU only; called before each entry, with interrupts off from here to the
    /// entry, so that a reason set later makes the guest exit.
    pub fn take_pending(&self) -> Pending {
        // The plain load keeps the common case free of a locked instruction.
        if self.pending.load(SeqCst) == 0 { Pending::NONE } else { Pending(self.pending.swap(0, SeqCst)) }
    }

    /// Puts reasons back that could not be acted on yet. Own pCPU only.
    pub fn defer(&self, reasons: Pending) {
        self.pending.fetch_or(reasons.0, SeqCst);
    }

    /// The reasons, left where they are.
    pub fn pending(&self) -> Pending {
        Pending(self.pending.load(SeqCst))
    }

    /// First step of going to sleep: wake-ups from now on keep it from sleeping. Then test
    /// [`Vcpu::pending`] and the interrupt controller, and if there is nothing put it as
    /// [`crate::sched::WhyPut::Blocked`].
    pub fn arm(&self) {
        self.unit.arm();
    }

    /// Whether it may run: it is up, and its domain runs and is not paused.
    pub fn may_run(&self) -> bool {
        self.up.load(SeqCst) && self.domain.may_run()
    }

    /// Whether it is up (started and not taken down).
    pub fn is_up(&self) -> bool {
        self.up.load(SeqCst)
    }

    /// Starts it (`VCPUOP_up`, SIPI). Its registers must be in place.
    pub fn bring_up(self: &Arc<Self>) {
        self.initialised.store(true, SeqCst);
        self.up.store(true, SeqCst);
        self.wake();
    }

    /// Takes it down (`VCPUOP_down`, INIT). A vCPU on another pCPU leaves its guest for that.
    pub fn take_down(self: &Arc<Self>) {
        self.up.store(false, SeqCst);
        self.stop_running();
    }

    /// Makes it leave its pCPU, if it is on one, as it may not run any more.
    pub(crate) fn stop_running(self: &Arc<Self>) {
        self.pending.fetch_or(Pending::STOP.0, SeqCst);
        if let crate::sched::Place::Running(pcpu) = self.unit.place()
            && pcpu != A::this_pcpu()
        {
            A::kick(pcpu);
        }
    }

    /// Claims the right to initialise it; `false`: it has its registers already.
    pub(crate) fn claim_initialise(&self) -> bool {
        !self.initialised.swap(true, SeqCst)
    }
    /// Gives the claim back.
    pub(crate) fn unclaim_initialise(&self) {
        self.initialised.store(false, SeqCst);
    }
    /// Whether it ever had registers to start with.
    pub fn is_initialised(&self) -> bool {
        self.initialised.load(SeqCst)
    }

    /// How long it was in which state.
    pub fn runstate(&self) -> Runstate {
        *self.runstate.lock()
    }

    pub(crate) fn enter_state(&self, state: RunState, now: u64) {
        self.runstate.lock().enter(state, now);
    }

    /// Picked: its clock and its areas are brought up to date, its poll is over.
    pub(crate) fn started(&self, now: u64, migrated: bool) {
        self.enter_state(RunState::RUNNING, now);
        if migrated {
            self.update_time();
        }
        if self.areas.lock().any() {
            self.defer(Pending::AREAS);
        }
        self.end_poll();
    }

    /// Changes where it may run.
    pub fn set_affinity(self: &Arc<Self>, affinity: Affinity) {
        self.unit.set_affinity(affinity);
        self.post(Pending::RESCHED);
    }

    // ---- events ----------------------------------------------------------------------------------------

    /// The vector that the guest chose for this vCPU's upcalls; 0: none.
    pub fn upcall_vector(&self) -> u8 {
        self.upcall_vector.load(SeqCst)
    }
    pub(crate) fn set_upcall_vector(&self, vector: u8) {
        self.upcall_vector.store(vector, SeqCst);
    }

    /// Where its vcpu_info is; a vCPU from 32 on has none before the guest registers one.
    pub fn vcpu_info(&self) -> Option<VcpuInfo<PageOf<A>>> {
        self.with_info(|page, offset| VcpuInfo { page: page.clone(), offset })
    }

    /// The same without counting a reference.
    pub(crate) fn with_info<T>(&self, f: impl FnOnce(&PageOf<A>, usize) -> T) -> Option<T> {
        match self.registered_info.get() {
            Some(info) => Some(f(&info.page, info.offset)),
            None if self.id.index() < LEGACY_MAX_VCPUS => {
                Some(f(self.domain.shared_info(), self.id.index() * VCPU_INFO_SIZE))
            }
            None => None,
        }
    }

    /// Whether the guest has an upcall to take (`evtchn_upcall_pending`).
    pub fn upcall_due(&self) -> bool {
        self.with_info(|page, at| page.read_u8(at + vcpu_info::UPCALL_PENDING) != 0).unwrap_or(false)
    }

    /// Sets `evtchn_upcall_pending`, and tells the architecture and the vCPU if it was clear.
    pub(crate) fn mark_upcall(self: &Arc<Self>) {
        let was = self.with_info(|page, at| page.swap_u8(at + vcpu_info::UPCALL_PENDING, 1));
        if was == Some(0) {
            A::set_upcall(self);
            self.post(Pending::EVENT);
        }
    }

    /// The way upcalls arrive has changed: one that is due already takes the new way.
    pub(crate) fn renew_upcall(self: &Arc<Self>) {
        if self.upcall_due() {
            A::set_upcall(self);
            self.post(Pending::EVENT);
        }
    }

    /// Moves the vcpu_info to where the guest wants it. `false`: it was moved before.
    pub(crate) fn register_info(self: &Arc<Self>, info: VcpuInfo<PageOf<A>>) -> bool {
        let mut first = false;
        self.registered_info.call_once(|| {
            first = true;
            self.copy_info(&info);
            info
        });
        if first {
            self.update_time();
            // An event may have been marked in the old place after the copy: look at everything.
            let layout = self.domain.layout();
            self.with_info(|page, at| match layout.word {
                8 => page.write_u64(at + layout.pending_sel, u64::MAX),
                _ => page.write_u32(at + layout.pending_sel, u32::MAX),
            });
            self.mark_upcall();
        }
        first
    }

    fn copy_info(&self, to: &VcpuInfo<PageOf<A>>) {
        if self.id.index() >= LEGACY_MAX_VCPUS {
            return;
        }
        let from = self.id.index() * VCPU_INFO_SIZE;
        for at in (0..VCPU_INFO_SIZE).step_by(8) {
            to.page.write_u64(to.offset + at, self.domain.shared_info().read_u64(from + at));
        }
        // Clear, so that marking the upcall below is an edge.
        to.page.write_u8(to.offset + vcpu_info::UPCALL_PENDING, 0);
    }

    /// Writes the vCPU's clock into its vcpu_info. Own pCPU, or while it is not running.
    pub fn update_time(&self) {
        let clock = A::clock(self);
        self.with_info(|page, at| write_time(page, at, &clock));
    }

    // ---- polling ---------------------------------------------------------------------------------------

    /// Starts to poll for `port` ([`POLL_ANY`]: for several).
    pub(crate) fn begin_poll(&self, port: u32) {
        if self.poll.swap(port, SeqCst) == 0 {
            self.domain.pollers.fetch_add(1, SeqCst);
        }
    }
    pub(crate) fn end_poll(&self) {
        if self.poll.load(SeqCst) != 0 && self.poll.swap(0, SeqCst) != 0 {
            self.domain.pollers.fetch_sub(1, SeqCst);
        }
    }
    pub(crate) fn polls_for(&self, port: u32) -> bool {
        let poll = self.poll.load(SeqCst);
        poll == port || poll == POLL_ANY
    }

    // ---- timers ----------------------------------------------------------------------------------------

    /// Sets (`Some`: absolute system time in ns) or stops a timer. A deadline that has passed fires
    /// within the call. Own pCPU for setting.
    pub fn set_timer(self: &Arc<Self>, kind: TimerKind, deadline: Option<u64>) {
        self.domain.machine().set_timer(self, kind, deadline);
    }
    /// The period of the periodic timer, ns; 0: stopped.
    pub fn period(&self) -> u64 {
        self.period.load(SeqCst)
    }
    pub(crate) fn set_period(&self, ns: u64) {
        self.period.store(ns, SeqCst);
    }
}

impl<A: Arch> Schedulable for Vcpu<A> {
    fn unit(&self) -> &Unit {
        &self.unit
    }
    fn woken(&self, now: u64) {
        self.enter_state(RunState::RUNNABLE, now);
    }
}

impl<A: Arch> fmt::Debug for Vcpu<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.domain.id(), self.id)
    }
}

/// One timer of one vCPU.
pub struct VcpuTimer<A: Arch> {
    /// Whose.
    pub vcpu: Arc<Vcpu<A>>,
    /// Which.
    pub kind: TimerKind,
}

impl<A: Arch> Timed for VcpuTimer<A> {
    fn link(&self) -> &TimerLink {
        &self.vcpu.timers[self.kind.index()]
    }
}

impl<A: Arch> fmt::Debug for VcpuTimer<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.vcpu, self.kind)
    }
}
