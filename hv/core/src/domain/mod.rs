//! A domain: a guest, its resources, and its life.

mod config;
mod console;
mod registry;
#[cfg(test)]
mod tests;

pub use config::{Action, DomainConfig, MemoryRegion};
pub use console::ConsoleRing;
pub use registry::Domains;

use crate::console::gate;
use crate::evtchn::EventChannels;
use crate::grant::{GrantTable, Maptrack};
use crate::hypercall::Width;
use crate::machine::Machine;
use crate::platform::{Arch, DomainMemory, Lock, PageOf};
use crate::sched::Budget;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use crate::time::write_wallclock;
use crate::vcpu::{Pending, Vcpu, VcpuId};
use addr::{Frame, GuestPhys};
use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use core::fmt;
use spin::Once;
use xen_abi::hvm::{HvmParam, NR_PARAMS};
use xen_abi::sched::ShutdownReason;
use xen_abi::shared::{LAYOUT_32, LAYOUT_64, SharedLayout};
use xen_abi::{DomId, Errno};

/// Where a domain is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It is being built.
    Building,
    /// It runs (or is paused).
    Running,
    /// It has stopped by itself or by its own fault.
    Shutdown(ShutdownReason),
    /// It is being destroyed.
    Dying,
}

const BUILDING: u32 = 0;
const RUNNING: u32 = 1;
const SHUTDOWN: u32 = 2;
const DYING: u32 = 3;
const REASON_SHIFT: u32 = 8;

/// How the guest wants to hear of events where a vCPU has no vector of its own (`HVM_PARAM_CALLBACK_IRQ`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callback {
    /// Not at all.
    None,
    /// As this vector, on any vCPU, as long as its upcall byte is set.
    Vector(u8),
    /// By an interrupt line, GSI or PCI INTx: the parameter's value.
    Line(u64),
}

/// A domain.
pub struct Domain<A: Arch> {
    id: DomId,
    config: DomainConfig,
    machine: Arc<Machine<A>>,
    budget: Option<Arc<Budget>>,
    /// Its physical memory.
    pub memory: A::Memory,
    /// What the architecture keeps here.
    pub arch: A::DomainData,
    /// Its event channels.
    pub evtchn: EventChannels<A>,
    vcpus: Once<Box<[Weak<Vcpu<A>>]>>,
    shared_info: PageOf<A>,
    /// Where the guest mapped it.
    pub(crate) shared_info_at: Lock<A, Option<Frame<GuestPhys>>>,
    /// The guest was 32-bit when that was last asked: the shared info page has the 32-bit layout.
    narrow: AtomicBool,
    wallclock: Lock<A, ()>,
    params: Lock<A, [u64; NR_PARAMS]>,
    life: AtomicU32,
    pauses: AtomicU32,
    /// vCPUs that poll.
    pub(crate) pollers: AtomicU32,
    runstate_update_flag: AtomicBool,
    pub(crate) console: Lock<A, Option<ConsoleRing<PageOf<A>>>>,
    pub(crate) grants: Lock<A, GrantTable<PageOf<A>>>,
    pub(crate) maptrack: Lock<A, Maptrack<A>>,
    /// Counts for whoever wants to know.
    pub counters: DomainCounters,
}

/// What a domain did since it was made.
#[derive(Debug, Default)]
pub struct DomainCounters {
    /// Hypercalls.
    pub hypercalls: AtomicU64,
    /// Events raised for it.
    pub events: AtomicU64,
}

impl<A: Arch> Domain<A> {
    pub(crate) fn new(
        machine: Arc<Machine<A>>,
        id: DomId,
        config: DomainConfig,
        memory: A::Memory,
        arch: A::DomainData,
    ) -> Result<Self, Errno> {
        if config.vcpus == 0 || config.vcpus > DomainConfig::MAX_VCPUS {
            return Err(Errno::EINVAL);
        }
        let shared_info = memory.new_page().ok_or(Errno::ENOMEM)?;
        let domain = Self {
            id,
            evtchn: EventChannels::new(config.vcpus, config.max_port),
            grants: Lock::<A, _>::new(GrantTable::new(config.max_grant_frames)),
            budget: Budget::new(config.cap, config.vcpus, machine.sched.period()).map(Arc::new),
            maptrack: Lock::<A, _>::new(Maptrack::new(config.max_maptrack_frames)),
            config,
            machine,
            memory,
            arch,
            vcpus: Once::new(),
            shared_info,
            shared_info_at: Lock::<A, _>::new(None),
            narrow: AtomicBool::new(false),
            wallclock: Lock::<A, _>::new(()),
            params: Lock::<A, _>::new([0; NR_PARAMS]),
            life: AtomicU32::new(BUILDING),
            pauses: AtomicU32::new(0),
            pollers: AtomicU32::new(0),
            runstate_update_flag: AtomicBool::new(false),
            console: Lock::<A, _>::new(None),
            counters: DomainCounters::default(),
        };
        domain.update_wallclock();
        Ok(domain)
    }

    pub(crate) fn set_vcpus(&self, vcpus: Box<[Weak<Vcpu<A>>]>) {
        self.vcpus.call_once(|| vcpus);
    }

    /// Its id.
    pub fn id(&self) -> DomId {
        self.id
    }
    /// Its name.
    pub fn name(&self) -> &str {
        &self.config.name
    }
    /// What it was made from.
    pub fn config(&self) -> &DomainConfig {
        &self.config
    }
    /// The machine it runs on.
    pub fn machine(&self) -> &Arc<Machine<A>> {
        &self.machine
    }
    /// The CPU time that its vCPUs share, if it is capped.
    pub(crate) fn budget(&self) -> Option<&Arc<Budget>> {
        self.budget.as_ref()
    }
    /// The vCPU of this number; `None` also when the domain has been destroyed.
    pub fn vcpu(&self, id: VcpuId) -> Option<Arc<Vcpu<A>>> {
        self.vcpus.get()?.get(id.index())?.upgrade()
    }
    /// Its vCPUs in order.
    pub fn vcpus(&self) -> impl Iterator<Item = Arc<Vcpu<A>>> + '_ {
        self.vcpus.get().into_iter().flat_map(|vcpus| vcpus.iter()).filter_map(Weak::upgrade)
    }

    // ---- life ------------------------------------------------------------------------------------------

    /// Where it is in its life.
    pub fn life(&self) -> Life {
        let word = self.life.load(SeqCst);
        match word & 0xff {
            BUILDING => Life::Building,
            RUNNING => Life::Running,
            SHUTDOWN => Life::Shutdown(ShutdownReason(word >> REASON_SHIFT)),
            _ => Life::Dying,
        }
    }

    /// Whether its vCPUs may run.
    pub fn may_run(&self) -> bool {
        self.life.load(SeqCst) == RUNNING && self.pauses.load(SeqCst) == 0
    }

    /// Starts it once it is built: vCPU 0 is up then. `false`: it was started before.
    pub fn start(&self) -> bool {
        if self.life.compare_exchange(BUILDING, RUNNING, SeqCst, SeqCst).is_err() {
            return false;
        }
        if let Some(first) = self.vcpu(VcpuId(0)) {
            first.bring_up();
        }
        log::info!(target: gate::life(), "domain {}: started", self.name());
        true
    }

    /// Stops its vCPUs until as many [`Domain::unpause`]s. They may still be on their pCPUs when this
    /// returns; [`Domain::is_quiet`] tells.
    pub fn pause(&self) {
        self.pauses.fetch_add(1, SeqCst);
        self.stop_vcpus();
    }

    /// Undoes one [`Domain::pause`].
    pub fn unpause(&self) {
        let before = self.pauses.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1));
        if before == Ok(1) {
            // Whatever was posted meanwhile did not wake them.
            self.vcpus().for_each(|vcpu| vcpu.wake());
        }
    }

    /// Whether none of its vCPUs is on a pCPU.
    pub fn is_quiet(&self) -> bool {
        use crate::sched::{Place, Schedulable};
        !self.vcpus().any(|vcpu| matches!(vcpu.unit().place(), Place::Running(_)))
    }

    /// It stops for `reason`. It is then in [`Machine::take_stopped`]. `false`: it was not running.
    pub fn shutdown(self: &Arc<Self>, reason: ShutdownReason) -> bool {
        // What the guest names is kept in 24 bits; anything else than the known reasons is a crash.
        let reason = if reason.name().is_some() { reason } else { ShutdownReason::CRASH };
        let word = SHUTDOWN | reason.0 << REASON_SHIFT;
        let mut old = self.life.load(SeqCst);
        loop {
            if old != RUNNING && old != BUILDING {
                return false;
            }
            match self.life.compare_exchange(old, word, SeqCst, SeqCst) {
                Ok(_) => break,
                Err(found) => old = found,
            }
        }
        log::info!(target: gate::life(), "domain {}: shut down: {}", self.name(), reason.text());
        self.stop_vcpus();
        self.machine.stopped(self);
        true
    }

    /// It did what a domain may not, or what we cannot answer: it stops, the others go on.
    pub fn crash(self: &Arc<Self>, why: fmt::Arguments<'_>) {
        // The first reason is the one that matters; later ones follow from it.
        if matches!(self.life(), Life::Running | Life::Building) {
            log::error!(target: gate::life(), "domain {}: crashed: {why}", self.name());
        }
        self.shutdown(ShutdownReason::CRASH);
    }

    /// It is about to be destroyed. Its vCPUs leave their pCPUs.
    pub(crate) fn die(&self) {
        self.life.store(DYING, SeqCst);
        self.stop_vcpus();
    }

    fn stop_vcpus(&self) {
        self.vcpus().for_each(|vcpu| vcpu.stop_running());
    }

    /// A vCPU was taken down; a domain without any that is up has powered off.
    pub(crate) fn vcpu_went_down(self: &Arc<Self>) {
        if !self.vcpus().any(|vcpu| vcpu.is_up()) {
            self.shutdown(ShutdownReason::POWEROFF);
        }
    }

    // ---- shared info -----------------------------------------------------------------------------------

    /// The shared info page. It belongs to the hypervisor and exists before the guest maps it.
    pub fn shared_info(&self) -> &PageOf<A> {
        &self.shared_info
    }

    /// The layout of the shared info page.
    pub fn layout(&self) -> &'static SharedLayout {
        if self.narrow.load(SeqCst) { &LAYOUT_32 } else { &LAYOUT_64 }
    }

    /// The width of the guest as last latched.
    pub fn width(&self) -> Width {
        if self.narrow.load(SeqCst) { Width::Bits32 } else { Width::Bits64 }
    }

    /// Takes the caller's present width for the guest's: on a write of the hypercall page's address, and
    /// when the callback parameter is set. Nothing is converted; the wallclock is written anew.
    pub fn latch_width(&self, width: Width) {
        let narrow = width == Width::Bits32;
        if self.narrow.swap(narrow, SeqCst) != narrow {
            self.update_wallclock();
        }
    }

    /// Writes the wallclock into the shared info page: at creation, and when UTC is set.
    pub fn update_wallclock(&self) {
        let utc = A::wallclock();
        let _one_writer = self.wallclock.lock();
        write_wallclock(&self.shared_info, self.layout(), utc);
    }

    pub(crate) fn runstate_update_flag(&self) -> bool {
        self.runstate_update_flag.load(SeqCst)
    }
    pub(crate) fn set_runstate_update_flag(&self, on: bool) {
        self.runstate_update_flag.store(on, SeqCst);
    }

    // ---- parameters ------------------------------------------------------------------------------------

    /// A parameter's value; 0 for an index that does not exist.
    pub fn param(&self, param: HvmParam) -> u64 {
        self.params.lock().get(param.0 as usize).copied().unwrap_or(0)
    }
    /// Sets a parameter, as the builder does: without the rules for guests.
    pub fn set_param(&self, param: HvmParam, value: u64) {
        if let Some(slot) = self.params.lock().get_mut(param.0 as usize) {
            *slot = value;
        }
    }

    /// How the guest wants to hear of events.
    pub fn callback(&self) -> Callback {
        let value = self.param(HvmParam::CALLBACK_IRQ);
        match value >> 56 {
            2 => Callback::Vector(value as u8),
            0 if value == 0 => Callback::None,
            0 | 1 => Callback::Line(value),
            _ => Callback::None,
        }
    }

    /// Posts `reasons` to all its vCPUs.
    pub fn post_all(&self, reasons: Pending) {
        self.vcpus().for_each(|vcpu| vcpu.post(reasons));
    }
}

impl<A: Arch> fmt::Debug for Domain<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {:?})", self.id, self.config.name, self.life())
    }
}
