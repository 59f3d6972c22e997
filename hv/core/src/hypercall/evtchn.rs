//! `event_channel_op`.

use super::args::Ctx;
use super::{Args, CallResult, target};
use crate::domain::Domain;
use crate::platform::Arch;
use addr::{Frame, GuestPhys};
use alloc::sync::Arc;
use xen_abi::evtchn::*;
use xen_abi::{DomId, Errno};

pub(super) fn event_channel_op<A: Arch>(ctx: &mut Ctx<'_, A>, args: Args) -> CallResult {
    let [op, arg, ..] = args;
    match EvtchnOp(op as u32) {
        op @ (EvtchnOp::RESET | EvtchnOp::RESET_CONT) => reset(ctx, op, arg).unwrap_or_else(CallResult::from),
        op => answer(ctx, op, arg).map(|()| 0).into(),
    }
}

fn reset<A: Arch>(ctx: &mut Ctx<'_, A>, op: EvtchnOp, arg: u64) -> Result<CallResult, Errno> {
    let Reset { dom } = ctx.read(arg)?;
    let domain = target(ctx, dom)?;
    // Another domain must not run meanwhile.
    if domain.id() != ctx.vcpu.domain().id() && domain.may_run() {
        return Err(Errno::EINVAL);
    }
    Ok(if domain.reset_ports(op == EvtchnOp::RESET_CONT)? {
        CallResult::Return(0)
    } else {
        CallResult::Continue([EvtchnOp::RESET_CONT.0.into(), arg, 0, 0, 0, 0])
    })
}

/// A frame that a guest names. 4 PiB are the end of all guest memory that there can be, and nothing is there.
fn frame(gfn: u64) -> Frame<GuestPhys> {
    Frame::new(gfn.min(1 << 40))
}

fn answer<A: Arch>(ctx: &mut Ctx<'_, A>, op: EvtchnOp, arg: u64) -> Result<(), Errno> {
    let own = ctx.vcpu.domain().clone();
    match op {
        EvtchnOp::ALLOC_UNBOUND => {
            let mut alloc: AllocUnbound = ctx.read(arg)?;
            let domain = target(ctx, alloc.dom)?;
            let remote = DomId(alloc.remote_dom);
            let remote = if remote == DomId::SELF { own.id() } else { remote };
            alloc.port = domain.alloc_unbound(remote)?;
            ctx.write(arg, &alloc).inspect_err(|_| abandon(&domain, alloc.port))
        }
        EvtchnOp::BIND_INTERDOMAIN => {
            let mut bind: BindInterdomain = ctx.read(arg)?;
            let id = DomId(bind.remote_dom);
            let remote = if id == DomId::SELF { Some(own.clone()) } else { own.machine().domains.get(id) };
            bind.local_port = own.bind_interdomain(&remote.ok_or(Errno::ESRCH)?, bind.remote_port)?;
            ctx.write(arg, &bind).inspect_err(|_| abandon(&own, bind.local_port))
        }
        EvtchnOp::BIND_VIRQ => {
            let mut bind: BindVirq = ctx.read(arg)?;
            bind.port = own.bind_virq(Virq(bind.virq), bind.vcpu)?;
            ctx.write(arg, &bind).inspect_err(|_| abandon(&own, bind.port))
        }
        EvtchnOp::BIND_IPI => {
            let mut bind: BindIpi = ctx.read(arg)?;
            bind.port = own.bind_ipi(bind.vcpu)?;
            ctx.write(arg, &bind).inspect_err(|_| abandon(&own, bind.port))
        }
        EvtchnOp::CLOSE => {
            let PortArg { port } = ctx.read(arg)?;
            own.close(port)
        }
        EvtchnOp::SEND => {
            let PortArg { port } = ctx.read(arg)?;
            own.send(port)
        }
        EvtchnOp::UNMASK => {
            let PortArg { port } = ctx.read(arg)?;
            own.unmask(port)
        }
        EvtchnOp::STATUS => {
            let mut status: Status = ctx.read(arg)?;
            let found = target(ctx, status.dom)?.port_status(status.port)?;
            (status.status, status.vcpu, status.detail) = (found.status, found.vcpu.0, found.detail);
            ctx.write(arg, &status)
        }
        EvtchnOp::BIND_VCPU => {
            let BindVcpu { port, vcpu } = ctx.read(arg)?;
            own.bind_vcpu(port, vcpu)
        }
        EvtchnOp::INIT_CONTROL => {
            let mut init: InitControl = ctx.read(arg)?;
            own.init_control(init.vcpu, frame(init.control_gfn), init.offset)?;
            init.link_bits = fifo::LINK_BITS;
            ctx.write(arg, &init)
        }
        EvtchnOp::EXPAND_ARRAY => {
            let ExpandArray { array_gfn } = ctx.read(arg)?;
            own.expand_array(frame(array_gfn))
        }
        EvtchnOp::SET_PRIORITY => {
            let SetPriority { port, priority } = ctx.read(arg)?;
            own.set_priority(port, priority)
        }
        // PIRQs: no domain has physical interrupts.
        _ => Err(Errno::ENOSYS),
    }
}

/// Closes a port whose number the caller could not be told.
fn abandon<A: Arch>(domain: &Arc<Domain<A>>, port: u32) {
    // It fails only if another vCPU of the guest guessed the number and closed it first.
    let _ = domain.close(port);
}
