//! `sched_op`.

use super::args::Ctx;
use super::{Args, CallResult, Width, target};
use crate::platform::Arch;
use crate::time::TimerKind;
use crate::vcpu::POLL_ANY;
use addr::GuestPage;
use xen_abi::Errno;
use xen_abi::sched::*;
use xen_abi::shared::vcpu_info;

pub(super) fn sched_op<A: Arch>(ctx: &mut Ctx<'_, A>, args: Args) -> CallResult {
    let [op, arg, ..] = args;
    match SchedOp(op as u32) {
        SchedOp::YIELD => CallResult::Yield(0),
        SchedOp::BLOCK => {
            ctx.vcpu.with_info(|page, at| page.write_u8(at + vcpu_info::UPCALL_MASK, 0));
            CallResult::Block(0)
        }
        SchedOp::SHUTDOWN => shutdown(ctx, arg).unwrap_or_else(CallResult::from),
        SchedOp::POLL => poll(ctx, arg).unwrap_or_else(CallResult::from),
        SchedOp::REMOTE_SHUTDOWN => remote_shutdown(ctx, arg).unwrap_or_else(CallResult::from),
        SchedOp::PIN_OVERRIDE => Errno::EPERM.into(),
        _ => Errno::ENOSYS.into(),
    }
}

fn shutdown<A: Arch>(ctx: &mut Ctx<'_, A>, arg: u64) -> Result<CallResult, Errno> {
    let reason: u32 = ctx.read(arg)?;
    ctx.vcpu.domain().shutdown(ShutdownReason(reason));
    Ok(CallResult::Stop(0))
}

fn remote_shutdown<A: Arch>(ctx: &mut Ctx<'_, A>, arg: u64) -> Result<CallResult, Errno> {
    let remote: RemoteShutdown = ctx.read(arg)?;
    let domain = target(ctx, remote.domid)?;
    // It is for others; the own domain uses the plain call.
    if !ctx.vcpu.domain().config().privileged {
        return Err(Errno::EPERM);
    }
    domain.shutdown(ShutdownReason(remote.reason));
    Ok(if ctx.vcpu.may_run() { CallResult::Return(0) } else { CallResult::Stop(0) })
}

fn poll<A: Arch>(ctx: &mut Ctx<'_, A>, arg: u64) -> Result<CallResult, Errno> {
    let (ports, count, timeout) = match ctx.width {
        Width::Bits64 => {
            let poll: Poll = ctx.read(arg)?;
            (poll.ports, poll.nr_ports, poll.timeout)
        }
        Width::Bits32 => {
            let poll: Poll32 = ctx.read(arg)?;
            let [low, high] = poll.timeout;
            (poll.ports.into(), poll.nr_ports, u64::from(high) << 32 | u64::from(low))
        }
    };
    if count > POLL_MAX_PORTS {
        return Err(Errno::EINVAL);
    }
    let mut list = [0u32; POLL_MAX_PORTS as usize];
    let list = &mut list[..count as usize];
    for (i, port) in list.iter_mut().enumerate() {
        *port = ctx.read(ctx.element(ports, i as u64, 4))?;
    }
    let domain = ctx.vcpu.domain();
    // First say what is polled for, then look: who raises does it the other way round.
    ctx.vcpu.begin_poll(if let [only] = *list { only } else { POLL_ANY });
    let mut pending = Ok(false);
    for &port in &*list {
        pending = pending.and_then(|seen| Ok(seen | domain.port_pending(port)?));
    }
    match pending {
        Ok(false) => {}
        Ok(true) => {
            ctx.vcpu.end_poll();
            return Ok(CallResult::Return(0));
        }
        Err(error) => {
            ctx.vcpu.end_poll();
            return Err(error);
        }
    }
    ctx.vcpu.set_timer(TimerKind::Poll, (timeout != 0).then_some(timeout));
    Ok(CallResult::Block(0))
}
