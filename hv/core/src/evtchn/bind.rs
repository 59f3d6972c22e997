//! Binding and closing ports: the operations under the configuration lock.

use super::{Config, Service, State, fifo};
use crate::domain::Domain;
use crate::platform::{Arch, PageOf};
use crate::sync::atomic::Ordering::SeqCst;
use crate::sync::{Irq, IrqGuard};
use crate::vcpu::VcpuId;
use alloc::sync::Arc;
use xen_abi::evtchn::{NR_VIRQS, Virq, status};
use xen_abi::{DomId, Errno};

/// What `EVTCHNOP_status` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortStatus {
    pub(crate) status: u32,
    pub(crate) vcpu: VcpuId,
    pub(crate) detail: [u32; 2],
}

/// How often closing tries again when the peer changes the channel meanwhile.
const CLOSE_TRIES: u32 = 8;

impl<A: Arch> Domain<A> {
    fn port_limit(&self) -> u32 {
        self.evtchn.limit(self.layout().ports)
    }

    pub(super) fn check_vcpu(&self, vcpu: u32) -> Result<VcpuId, Errno> {
        if vcpu < self.config().vcpus { Ok(VcpuId(vcpu)) } else { Err(Errno::ENOENT) }
    }

    /// Opens a port of this domain's own.
    fn open(&self, config: &mut Config<PageOf<A>>, vcpu: VcpuId, state: State<A>) -> Result<u32, Errno> {
        let opened = self.evtchn.open(config, self.port_limit(), &self.memory, vcpu, |_| state);
        opened.map(|(port, _)| port)
    }

    /// `EVTCHNOP_alloc_unbound`. `ENOSPC`: no port is free; `ENOMEM`: nor memory for more.
    pub(crate) fn alloc_unbound(&self, remote: DomId) -> Result<u32, Errno> {
        self.open(&mut self.evtchn.config.lock(), VcpuId(0), State::Unbound { remote })
    }

    /// `EVTCHNOP_bind_interdomain`. `EINVAL`: the remote port is not one this domain may bind.
    pub(crate) fn bind_interdomain(
        self: &Arc<Self>,
        remote: &Arc<Domain<A>>,
        peer: u32,
    ) -> Result<u32, Errno> {
        let (port, raised) = {
            let mut both = lock_pair(self, remote);
            let other = remote.evtchn.channel(peer).ok_or(Errno::EINVAL)?;
            let reserved =
                |state: &State<A>| matches!(state, State::Unbound { remote } if *remote == self.id());
            // Under both configuration locks it stays so.
            if !reserved(&other.state.lock()) {
                return Err(Errno::EINVAL);
            }
            let (port, channel) =
                self.evtchn.open(&mut both.mine, self.port_limit(), &self.memory, VcpuId(0), |_| {
                    State::Interdomain { id: remote.id(), remote: Arc::downgrade(remote), port: peer }
                })?;
            *other.state.lock() = State::Interdomain { id: self.id(), remote: Arc::downgrade(self), port };
            // Whatever was sent before the channel was whole is not lost.
            let _state = channel.state.lock();
            (port, self.raise_port(port, &channel.place))
        };
        self.deliver(port, raised);
        Ok(port)
    }

    /// `EVTCHNOP_bind_virq`. `EINVAL`: no such interrupt, or a global one not on vCPU 0; `ENOENT`: no
    /// such vCPU; `EEXIST`: bound already.
    pub(crate) fn bind_virq(&self, virq: Virq, vcpu: u32) -> Result<u32, Errno> {
        if virq.0 >= NR_VIRQS || (!virq.is_per_vcpu() && vcpu != 0) {
            return Err(Errno::EINVAL);
        }
        let vcpu = self.check_vcpu(vcpu)?;
        let mut config = self.evtchn.config.lock();
        let slot = self.evtchn.virq(vcpu, virq).ok_or(Errno::EINVAL)?;
        if slot.load(SeqCst) != 0 {
            return Err(Errno::EEXIST);
        }
        let port = self.open(&mut config, vcpu, State::Virq(virq))?;
        slot.store(port, SeqCst);
        Ok(port)
    }

    /// `EVTCHNOP_bind_ipi`. `ENOENT`: no such vCPU.
    pub(crate) fn bind_ipi(&self, vcpu: u32) -> Result<u32, Errno> {
        let vcpu = self.check_vcpu(vcpu)?;
        self.open(&mut self.evtchn.config.lock(), vcpu, State::Ipi)
    }

    /// `EVTCHNOP_bind_vcpu`: who is notified from now on. `ENOENT`: no such vCPU; `EINVAL`: not a port
    /// that can be moved.
    pub(crate) fn bind_vcpu(&self, port: u32, vcpu: u32) -> Result<(), Errno> {
        let vcpu = self.check_vcpu(vcpu)?;
        let _config = self.evtchn.config.lock();
        let channel = self.evtchn.channel(port).ok_or(Errno::EINVAL)?;
        match *channel.state.lock() {
            State::Virq(virq) if virq.is_per_vcpu() => return Err(Errno::EINVAL),
            State::Virq(_) | State::Interdomain { .. } | State::Service(_) => {}
            // Xen lets an unbound port be moved, too: its events come once it is bound.
            State::Unbound { .. } => {}
            State::Free | State::Ipi => return Err(Errno::EINVAL),
        }
        channel.place.notify.store(vcpu.0, SeqCst);
        Ok(())
    }

    /// `EVTCHNOP_status`. `EINVAL`: no such port, as those beyond the last that was ever used.
    pub(crate) fn port_status(&self, port: u32) -> Result<PortStatus, Errno> {
        // `lsevtchn` counts up from 0, which exists and is closed, until it gets an error.
        if port == 0 {
            return Ok(PortStatus { status: status::CLOSED, vcpu: VcpuId(0), detail: [0; 2] });
        }
        let channel = self.evtchn.channel(port).ok_or(Errno::EINVAL)?;
        let vcpu = channel.place.target();
        let (status, detail) = match &*channel.state.lock() {
            State::Free => (status::CLOSED, [0, 0]),
            State::Unbound { remote } => (status::UNBOUND, [remote.0.into(), 0]),
            State::Interdomain { id, port, .. } => (status::INTERDOMAIN, [id.0.into(), *port]),
            State::Virq(virq) => (status::VIRQ, [virq.0, 0]),
            State::Ipi => (status::IPI, [0, 0]),
            State::Service(_) => (status::INTERDOMAIN, [DomId::XEN.0.into(), 0]),
        };
        Ok(PortStatus { status, vcpu, detail })
    }

    /// `EVTCHNOP_close`. `EINVAL`: not open.
    ///
    /// ABI: a port whose peer is the hypervisor itself stays bound, and only what is pending is dropped.
    /// There is no toolstack that would make a new one for the next kernel (kexec), and Linux takes an
    /// error here for its own bug.
    pub(crate) fn close(self: &Arc<Self>, port: u32) -> Result<(), Errno> {
        self.close_port(port, false)
    }

    /// Closes everything, services too: the domain is dying.
    pub(crate) fn close_all_ports(self: &Arc<Self>) {
        for (port, _) in self.evtchn.channels() {
            // A port that is not open is fine here.
            let _ = self.close_port(port, true);
        }
        let pages = fifo::leave(self, &mut self.evtchn.config.lock());
        drop(pages);
    }

    pub(super) fn close_port(self: &Arc<Self>, port: u32, force: bool) -> Result<(), Errno> {
        let channel = self.evtchn.channel(port).ok_or(Errno::EINVAL)?;
        for _ in 0..CLOSE_TRIES {
            let seen = channel.state.lock().clone();
            let peer = match &seen {
                State::Free => return Err(Errno::EINVAL),
                State::Service(Service::Console) if !force => {
                    let config = self.evtchn.config.lock();
                    self.take_pending_bit(port);
                    fifo::clear_pending::<A>(&config, port, &channel.place);
                    return Ok(());
                }
                State::Interdomain { remote, port, .. } => remote.upgrade().map(|domain| (domain, *port)),
                _ => None,
            };
            let other = peer.as_ref().map_or(self, |(domain, _)| domain);
            let mut both = lock_pair(self, other);
            // Only the state as it is under both locks counts.
            let mut state = channel.state.lock();
            let same = match (&*state, &peer) {
                (State::Free, _) => return Err(Errno::EINVAL),
                (State::Interdomain { remote, port, .. }, Some((domain, peer))) => {
                    remote.as_ptr() == Arc::as_ptr(domain) && port == peer
                }
                (State::Interdomain { remote, .. }, None) => remote.strong_count() == 0,
                (_, None) => true,
                (_, Some(_)) => false,
            };
            if !same {
                continue;
            }
            if let State::Virq(virq) = *state
                && let Some(slot) = self.evtchn.virq(virq_vcpu(virq, channel), virq)
            {
                slot.store(0, SeqCst);
            }
            if !matches!(*state, State::Service(_)) {
                both.mine.open -= 1;
            }
            *state = State::Free;
            drop(state);
            // The peer's lock also waits for a sender that is setting our bits: clear them after it.
            if let Some((domain, peer)) = &peer
                && let Some(far) = domain.evtchn.channel(*peer)
            {
                *far.state.lock() = State::Unbound { remote: self.id() };
            }
            self.take_pending_bit(port);
            fifo::clear_pending::<A>(&both.mine, port, &channel.place);
            channel.place.open(VcpuId(0));
            both.mine.hint = port.min(both.mine.hint);
            return Ok(());
        }
        Err(Errno::EAGAIN)
    }
}

/// The vCPU whose table holds a bound virtual interrupt.
fn virq_vcpu<A: Arch>(virq: Virq, channel: &super::Channel<A>) -> VcpuId {
    if virq.is_per_vcpu() { channel.place.target() } else { VcpuId(0) }
}

/// The configuration locks of one or two domains.
struct Pair<'a, P, I: Irq> {
    mine: IrqGuard<'a, Config<P>, I>,
    _other: Option<IrqGuard<'a, Config<P>, I>>,
}

/// Locks the configuration of `a`, and of `b` if that is another, the lower id first.
fn lock_pair<'a, A: Arch>(a: &'a Arc<Domain<A>>, b: &'a Arc<Domain<A>>) -> Pair<'a, PageOf<A>, A::Irq> {
    if Arc::ptr_eq(a, b) {
        return Pair { mine: a.evtchn.config.lock(), _other: None };
    }
    if a.id() < b.id() {
        let mine = a.evtchn.config.lock();
        return Pair { mine, _other: Some(b.evtchn.config.lock()) };
    }
    let other = b.evtchn.config.lock();
    Pair { mine: a.evtchn.config.lock(), _other: Some(other) }
}
