//! Event channels: the ports of a domain, what they are bound to, and how events are raised.
//!
//! Configuration (bind, close …) of a domain goes under its `config` lock; two domains are locked in the
//! order of their ids. The state of a channel has a lock of its own, which a sender holds while it sets
//! the peer's bits: so the peer cannot close and reuse its port meanwhile, and senders on different
//! channels never meet. Waking the target happens after all locks are released.
//!
//! Source: `public/event_channel.h` and `public/xen.h` of Xen 4.17.

mod bind;
mod fifo;
mod reset;
#[cfg(test)]
mod tests;
mod two_level;

use crate::domain::Domain;
use crate::platform::{Arch, DomainMemory, Lock, PageOf};
use crate::sync::atomic::{AtomicU32, Ordering::SeqCst};
use crate::vcpu::{Pending, VcpuId};
use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use fifo::{Fifo, Pages, Place};
use spin::Once;
use xen_abi::evtchn::{NR_VIRQS, TWO_LEVEL_PORTS_32, Virq, fifo as abi};
use xen_abi::{DomId, Errno};

/// A peer within the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// The backend of the PV console.
    Console,
}

/// What a channel is bound to.
pub(crate) enum State<A: Arch> {
    Free,
    Unbound { remote: DomId },
    Interdomain { id: DomId, remote: Weak<Domain<A>>, port: u32 },
    Virq(Virq),
    Ipi,
    Service(Service),
}

impl<A: Arch> Clone for State<A> {
    fn clone(&self) -> Self {
        match self {
            State::Free => State::Free,
            State::Unbound { remote } => State::Unbound { remote: *remote },
            State::Interdomain { id, remote, port } => {
                State::Interdomain { id: *id, remote: remote.clone(), port: *port }
            }
            State::Virq(virq) => State::Virq(*virq),
            State::Ipi => State::Ipi,
            State::Service(service) => State::Service(*service),
        }
    }
}

pub(crate) struct Channel<A: Arch> {
    pub(crate) state: Lock<A, State<A>>,
    place: Place,
}

/// Channels that are made together. Xen's number, too: a port beyond the last bucket in use is not valid.
const BUCKET: usize = 64;
/// Buckets whose slots are made together.
const GROUP: usize = 64;
type Bucket<A> = Box<[Channel<A>; BUCKET]>;
type Group<A> = Box<[Once<Bucket<A>>; GROUP]>;

/// What binding and closing change.
pub(crate) struct Config<P> {
    /// No port below is free.
    hint: u32,
    /// Ports that are open, without those of services.
    open: u32,
    /// What the FIFO ABI shares with the guest, while the domain uses it.
    fifo: Option<Arc<Pages<P>>>,
    /// The memory of the FIFO ABI is charged to the domain.
    fifo_charged: bool,
    /// The next port to be closed by the reset under way; 0: none is.
    reset_at: u32,
}

/// The event channels of one domain. Memory is taken for 64 ports at a time, as they are used.
pub struct EventChannels<A: Arch> {
    /// Held while ports are bound and closed.
    config: Lock<A, Config<PageOf<A>>>,
    groups: Box<[Once<Group<A>>]>,
    fifo: Fifo<PageOf<A>, A::Irq>,
    max_port: u32,
    vcpus: u32,
    /// The port that each virtual interrupt of each vCPU is bound to; 0: none. Global ones are vCPU 0's.
    virqs: Vec<AtomicU32>,
}

impl<A: Arch> EventChannels<A> {
    pub(crate) fn new(vcpus: u32, max_port: u32) -> Self {
        let max_port = max_port.min(abi::PORTS - 1);
        let groups = (max_port as usize + 1).div_ceil(BUCKET * GROUP);
        let config = Config { hint: 1, open: 0, fifo: None, fifo_charged: false, reset_at: 0 };
        Self {
            config: Lock::<A, _>::new(config),
            groups: (0..groups).map(|_| Once::new()).collect(),
            fifo: Fifo::new(),
            max_port,
            vcpus,
            virqs: (0..vcpus * NR_VIRQS).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// Bytes that `ports` ports take at most.
    pub fn bytes_for(ports: u32) -> u64 {
        let buckets = u64::from(ports.min(abi::PORTS)).div_ceil(BUCKET as u64);
        let groups = buckets.div_ceil(GROUP as u64);
        buckets * size_of::<[Channel<A>; BUCKET]>() as u64
            + groups * size_of::<[Once<Bucket<A>>; GROUP]>() as u64
    }

    fn bucket(&self, port: u32) -> Option<&[Channel<A>; BUCKET]> {
        let index = port as usize / BUCKET;
        Some(self.groups.get(index / GROUP)?.get()?.get(index % GROUP)?.get()?)
    }

    /// The channel of a port that was ever used, or is beside one that was.
    pub(crate) fn channel(&self, port: u32) -> Option<&Channel<A>> {
        if port == 0 || port > self.max_port {
            return None;
        }
        self.bucket(port)?.get(port as usize % BUCKET)
    }

    /// All channels that exist from port `first` on.
    fn channels_from(&self, first: u32) -> impl Iterator<Item = (u32, &Channel<A>)> {
        let buckets = first / BUCKET as u32..=self.max_port / BUCKET as u32;
        buckets
            .filter_map(|index| Some((index, self.bucket(index * BUCKET as u32)?)))
            .flat_map(|(index, bucket)| (index * BUCKET as u32..).zip(bucket))
            .filter(move |(port, _)| *port >= first.max(1) && *port <= self.max_port)
    }

    fn channels(&self) -> impl Iterator<Item = (u32, &Channel<A>)> {
        self.channels_from(1)
    }

    /// The highest port the guest may have with its ABI; `two_level`: how many the 2-level ABI has.
    fn limit(&self, two_level: u32) -> u32 {
        let ports = if self.fifo.on() { abi::PORTS } else { two_level };
        self.max_port.min(ports - 1)
    }

    /// The channel of `port`, made if need be. `ENOMEM`: the domain's account does not allow it.
    fn make(&self, port: u32, memory: &A::Memory) -> Result<&Channel<A>, Errno> {
        let index = port as usize / BUCKET;
        let charge = |bytes: usize| memory.charge(bytes as u64).then_some(()).ok_or(Errno::ENOMEM);
        let group = self.groups.get(index / GROUP).ok_or(Errno::ENOSPC)?.try_call_once(|| {
            charge(size_of::<[Once<Bucket<A>>; GROUP]>())?;
            Ok::<_, Errno>(Box::new([const { Once::new() }; GROUP]))
        })?;
        let bucket = group[index % GROUP].try_call_once(|| {
            charge(size_of::<[Channel<A>; BUCKET]>())?;
            let channel = |_| Channel { state: Lock::<A, _>::new(State::Free), place: Place::new() };
            Ok::<_, Errno>(Box::new(core::array::from_fn(channel)))
        })?;
        Ok(&bucket[port as usize % BUCKET])
    }

    /// Opens the lowest free port up to `limit`, notifying `vcpu`. `ENOSPC`: none is free; `ENOMEM`.
    fn open(
        &self,
        config: &mut Config<PageOf<A>>,
        limit: u32,
        memory: &A::Memory,
        vcpu: VcpuId,
        state: impl FnOnce(u32) -> State<A>,
    ) -> Result<(u32, &Channel<A>), Errno> {
        // Where the next search begins: at a closed port that the guest must take off its queue first.
        let mut passed = None;
        for port in config.hint..=limit {
            let channel = self.make(port, memory)?;
            let mut held = channel.state.lock();
            if !matches!(*held, State::Free) {
                continue;
            }
            if fifo::busy::<A>(config, port) {
                passed.get_or_insert(port);
                continue;
            }
            config.hint = passed.unwrap_or(port + 1);
            channel.place.open(vcpu);
            *held = state(port);
            if !matches!(*held, State::Service(_)) {
                config.open += 1;
            }
            return Ok((port, channel));
        }
        Err(Errno::ENOSPC)
    }

    fn virq(&self, vcpu: VcpuId, virq: Virq) -> Option<&AtomicU32> {
        if virq.0 >= NR_VIRQS || vcpu.0 >= self.vcpus {
            return None;
        }
        self.virqs.get((vcpu.0 * NR_VIRQS + virq.0) as usize)
    }
}

impl<A: Arch> fmt::Debug for EventChannels<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventChannels(to {})", self.max_port)
    }
}

/// What is left to do after an event's bits are set and the locks are released.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Raised {
    /// The port became pending: those that poll for it go on.
    pending: bool,
    /// Who must take an upcall.
    upcall: Option<VcpuId>,
}

impl<A: Arch> Domain<A> {
    /// Opens a port whose peer is in the hypervisor.
    pub(crate) fn open_service(&self, service: Service) -> Result<u32, Errno> {
        let mut config = self.evtchn.config.lock();
        // One that every guest can have.
        let limit = self.evtchn.limit(TWO_LEVEL_PORTS_32);
        let state = |_| State::Service(service);
        Ok(self.evtchn.open(&mut config, limit, &self.memory, VcpuId(0), state)?.0)
    }

    /// Finishes a raise: wakes who polls for `port` and who must take an upcall.
    fn deliver(&self, port: u32, raised: Raised) {
        if let Some(vcpu) = raised.upcall.and_then(|target| self.vcpu(target)) {
            vcpu.mark_upcall();
        }
        if !raised.pending {
            return;
        }
        self.counters.events.fetch_add(1, SeqCst);
        if self.pollers.load(SeqCst) != 0 {
            self.vcpus().filter(|vcpu| vcpu.polls_for(port)).for_each(|vcpu| vcpu.post(Pending::POLL));
        }
    }

    /// Raises `port` if its state, looked at under its lock, is right.
    fn raise_if(&self, port: u32, right: impl FnOnce(&State<A>) -> bool) {
        let Some(channel) = self.evtchn.channel(port) else { return };
        let raised = {
            let state = channel.state.lock();
            if !right(&state) {
                return;
            }
            self.raise_port(port, &channel.place)
        };
        self.deliver(port, raised);
    }

    /// Raises a port that a service of the hypervisor is the peer of.
    pub(crate) fn raise_service(&self, port: u32) {
        self.raise_if(port, |state| matches!(state, State::Service(_)));
    }

    /// Raises a virtual interrupt of one vCPU, if the guest bound it.
    pub fn send_vcpu_virq(&self, vcpu: VcpuId, virq: Virq) {
        let Some(port) = self.evtchn.virq(vcpu, virq).map(|port| port.load(SeqCst)) else { return };
        self.raise_if(port, |state| matches!(state, State::Virq(bound) if *bound == virq));
    }

    /// Raises a global virtual interrupt, if the guest bound it.
    pub fn send_global_virq(&self, virq: Virq) {
        self.send_vcpu_virq(VcpuId(0), virq);
    }

    /// `EVTCHNOP_send`. `EINVAL`: not a port that can be sent on.
    pub(crate) fn send(self: &Arc<Self>, port: u32) -> Result<(), Errno> {
        let channel = self.evtchn.channel(port).ok_or(Errno::EINVAL)?;
        let (domain, port, raised) = {
            let state = channel.state.lock();
            match &*state {
                State::Free | State::Virq(_) => return Err(Errno::EINVAL),
                State::Unbound { .. } => return Ok(()),
                State::Service(Service::Console) => {
                    drop(state);
                    self.drain_console();
                    return Ok(());
                }
                State::Ipi => (self.clone(), port, self.raise_port(port, &channel.place)),
                State::Interdomain { remote, port: peer, .. } => {
                    // A peer that is gone has made us unbound, or is about to.
                    let Some(remote) = remote.upgrade() else { return Ok(()) };
                    let Some(other) = remote.evtchn.channel(*peer) else { return Ok(()) };
                    let raised = remote.raise_port(*peer, &other.place);
                    (remote, *peer, raised)
                }
            }
        };
        domain.deliver(port, raised);
        Ok(())
    }

    /// `EVTCHNOP_unmask`. `EINVAL`: no such port.
    pub(crate) fn unmask(&self, port: u32) -> Result<(), Errno> {
        let channel = self.evtchn.channel(port).ok_or(Errno::EINVAL)?;
        let raised = {
            // The lock keeps the port from being closed, and the FIFO ABI from being left, meanwhile.
            let state = channel.state.lock();
            if matches!(*state, State::Free) {
                return Ok(());
            }
            let raised = self.evtchn.fifo.unmask(port, &channel.place);
            raised.unwrap_or_else(|| self.unmask_bits(port, &channel.place))
        };
        self.deliver(port, raised);
        Ok(())
    }

    /// Whether `port` is pending; `EINVAL` for a port the guest cannot have.
    pub(crate) fn port_pending(&self, port: u32) -> Result<bool, Errno> {
        if port > self.evtchn.limit(self.layout().ports) {
            return Err(Errno::EINVAL);
        }
        let channel = self.evtchn.channel(port);
        let fifo = channel.and_then(|channel| self.evtchn.fifo.pending(port, &channel.place));
        Ok(fifo.unwrap_or_else(|| self.pending_bit(port)))
    }
}
