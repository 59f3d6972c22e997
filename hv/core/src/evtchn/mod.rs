//! Event channels: the ports of a domain, what they are bound to, and how events are raised.
//!
//! Configuration (bind, close …) of a domain goes under its `config` lock; two domains are locked in the
//! order of their ids. The state of a channel has a lock of its own, which a sender holds while it sets
//! the peer's bits: so the peer cannot close and reuse its port meanwhile, and senders on different
//! channels never meet. Waking the target happens after all locks are released.
//!
//! Source: `public/event_channel.h` and `public/xen.h` of Xen 4.17.

mod bind;
#[cfg(test)]
mod tests;
mod two_level;

use crate::domain::Domain;
use crate::platform::{Arch, Lock};
use crate::sync::atomic::{AtomicU32, Ordering::SeqCst};
use crate::vcpu::{Pending, VcpuId};
use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use spin::Once;
use xen_abi::evtchn::{NR_VIRQS, TWO_LEVEL_PORTS_64, Virq};
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
    /// The vCPU that is notified.
    pub(crate) notify: AtomicU32,
}

const BUCKET: usize = 64;
type Bucket<A> = Box<[Channel<A>]>;

/// The event channels of one domain. Memory is taken for 64 ports at a time, as they are used.
pub struct EventChannels<A: Arch> {
    /// Held while ports are bound and closed; no port below the number is free.
    pub(crate) config: Lock<A, u32>,
    buckets: Box<[Once<Bucket<A>>]>,
    max_port: u32,
    vcpus: u32,
    /// The port that each virtual interrupt of each vCPU is bound to; 0: none. Global ones are vCPU 0's.
    virqs: Vec<AtomicU32>,
}

impl<A: Arch> EventChannels<A> {
    pub(crate) fn new(vcpus: u32, max_port: u32) -> Self {
        let max_port = max_port.min(TWO_LEVEL_PORTS_64 - 1);
        let buckets = (max_port as usize + 1).div_ceil(BUCKET);
        Self {
            config: Lock::<A, _>::new(1),
            buckets: (0..buckets).map(|_| Once::new()).collect(),
            max_port,
            vcpus,
            virqs: (0..vcpus * NR_VIRQS).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// The channel of a port that was ever used.
    pub(crate) fn channel(&self, port: u32) -> Option<&Channel<A>> {
        if port == 0 || port > self.max_port {
            return None;
        }
        self.buckets.get(port as usize / BUCKET)?.get()?.get(port as usize % BUCKET)
    }

    /// The highest port the guest may have with its layout.
    fn limit(&self, ports: u32) -> u32 {
        self.max_port.min(ports - 1)
    }

    /// Takes the lowest free port up to `limit`. Under `config`; the port stays free until the caller
    /// writes its state.
    fn lowest_free(&self, hint: &mut u32, limit: u32) -> Result<(u32, &Channel<A>), Errno> {
        for port in *hint..=limit {
            let bucket = self.buckets.get(port as usize / BUCKET).ok_or(Errno::ENOSPC)?;
            let bucket = bucket.call_once(|| {
                let channel = || Channel { state: Lock::<A, _>::new(State::Free), notify: AtomicU32::new(0) };
                (0..BUCKET).map(|_| channel()).collect()
            });
            let Some(channel) = bucket.get(port as usize % BUCKET) else { continue };
            if matches!(*channel.state.lock(), State::Free) {
                *hint = port;
                return Ok((port, channel));
            }
        }
        Err(Errno::ENOSPC)
    }

    /// Opens a port whose peer is in the hypervisor.
    pub(crate) fn open_service(&self, service: Service) -> Result<u32, Errno> {
        let mut config = self.config.lock();
        let (port, channel) =
            self.lowest_free(&mut config, self.limit(xen_abi::evtchn::TWO_LEVEL_PORTS_32))?;
        channel.notify.store(0, SeqCst);
        *channel.state.lock() = State::Service(service);
        Ok(port)
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
#[derive(Debug, Default)]
pub(crate) struct Raised {
    /// The port became pending: those that poll for it go on.
    pending: bool,
    /// The target must take an upcall.
    upcall: bool,
}

impl<A: Arch> Domain<A> {
    /// Finishes a raise: wakes who polls for `port` and who must take an upcall.
    fn deliver(&self, port: u32, target: VcpuId, raised: Raised) {
        if !raised.pending {
            return;
        }
        self.counters.events.fetch_add(1, SeqCst);
        if raised.upcall
            && let Some(vcpu) = self.vcpu(target)
        {
            vcpu.mark_upcall();
        }
        if self.pollers.load(SeqCst) != 0 {
            self.vcpus().filter(|vcpu| vcpu.polls_for(port)).for_each(|vcpu| vcpu.post(Pending::POLL));
        }
    }

    /// Raises `port` if its state, looked at under its lock, is right.
    fn raise_if(&self, port: u32, right: impl FnOnce(&State<A>) -> bool) {
        let Some(channel) = self.evtchn.channel(port) else { return };
        let target = VcpuId(channel.notify.load(SeqCst));
        let raised = {
            let state = channel.state.lock();
            if !right(&state) {
                return;
            }
            self.raise_bits(port, target)
        };
        self.deliver(port, target, raised);
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
        let (domain, port, target, raised) = {
            let state = channel.state.lock();
            match &*state {
                State::Free | State::Virq(_) => return Err(Errno::EINVAL),
                State::Unbound { .. } => return Ok(()),
                State::Service(Service::Console) => {
                    drop(state);
                    self.drain_console();
                    return Ok(());
                }
                State::Ipi => {
                    let target = VcpuId(channel.notify.load(SeqCst));
                    (self.clone(), port, target, self.raise_bits(port, target))
                }
                State::Interdomain { remote, port: peer, .. } => {
                    // A peer that is gone has made us unbound, or is about to.
                    let Some(remote) = remote.upgrade() else { return Ok(()) };
                    let Some(other) = remote.evtchn.channel(*peer) else { return Ok(()) };
                    let target = VcpuId(other.notify.load(SeqCst));
                    let raised = remote.raise_bits(*peer, target);
                    (remote, *peer, target, raised)
                }
            }
        };
        domain.deliver(port, target, raised);
        Ok(())
    }

    /// `EVTCHNOP_unmask`.
    pub(crate) fn unmask(&self, port: u32) -> Result<(), Errno> {
        let channel = self.evtchn.channel(port).ok_or(Errno::EINVAL)?;
        let target = VcpuId(channel.notify.load(SeqCst));
        if self.unmask_bits(port, target)
            && let Some(vcpu) = self.vcpu(target)
        {
            vcpu.mark_upcall();
        }
        Ok(())
    }

    /// Whether `port` is pending; `EINVAL` for a port the guest cannot have.
    pub(crate) fn port_pending(&self, port: u32) -> Result<bool, Errno> {
        if port > self.evtchn.limit(self.layout().ports) {
            return Err(Errno::EINVAL);
        }
        Ok(self.pending_bit(port))
    }
}
