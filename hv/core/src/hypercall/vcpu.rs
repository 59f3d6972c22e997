//! `vcpu_op`.

use super::args::Ctx;
use super::{Args, CallResult};
use crate::platform::Arch;
use crate::time::TimerKind;
use crate::vcpu::{Pending, Vcpu, VcpuId, VcpuInfo};
use addr::{Frame, GuestMemory, PAGE_SIZE};
use alloc::sync::Arc;
use xen_abi::Errno;
use xen_abi::shared::VCPU_INFO_SIZE;
use xen_abi::vcpu::*;

/// Longest period of the periodic timer: beyond it the sums would overflow in practice, too.
const MAX_PERIOD_NS: u64 = 1 << 50;

pub(super) fn vcpu_op<A: Arch>(ctx: &mut Ctx<'_, A>, args: Args) -> CallResult {
    let [op, id, arg, ..] = args;
    let found = u32::try_from(id).ok().and_then(|id| ctx.vcpu.domain().vcpu(VcpuId(id)));
    let Some(vcpu) = found else { return Errno::ENOENT.into() };
    let own = Arc::ptr_eq(&vcpu, ctx.vcpu);
    match VcpuOp(op as u32) {
        VcpuOp::INITIALISE => initialise(ctx, &vcpu, arg).into(),
        VcpuOp::UP => up(&vcpu).into(),
        VcpuOp::DOWN => {
            vcpu.take_down();
            vcpu.domain().vcpu_went_down();
            if ctx.vcpu.may_run() { CallResult::Return(0) } else { CallResult::Stop(0) }
        }
        VcpuOp::IS_UP => CallResult::Return(vcpu.is_up().into()),
        VcpuOp::GET_RUNSTATE_INFO => {
            let info = vcpu.runstate().info_at(A::now());
            let marked = false;
            let written = crate::vcpu::write_runstate(ctx.io, arg, ctx.width, marked, &info);
            written.map(|()| 0).map_err(Errno::from).into()
        }
        VcpuOp::REGISTER_RUNSTATE_MEMORY_AREA => register_area(ctx, &vcpu, own, arg, true).into(),
        VcpuOp::REGISTER_VCPU_TIME_MEMORY_AREA => register_area(ctx, &vcpu, own, arg, false).into(),
        VcpuOp::SET_PERIODIC_TIMER => set_periodic(ctx, &vcpu, arg).into(),
        VcpuOp::STOP_PERIODIC_TIMER => {
            vcpu.set_period(0);
            vcpu.set_timer(TimerKind::Periodic, None);
            CallResult::Return(0)
        }
        // These two are for the caller's own timer only.
        VcpuOp::SET_SINGLESHOT_TIMER | VcpuOp::STOP_SINGLESHOT_TIMER if !own => Errno::EINVAL.into(),
        VcpuOp::SET_SINGLESHOT_TIMER => set_singleshot(ctx, arg).into(),
        VcpuOp::STOP_SINGLESHOT_TIMER => {
            vcpu.set_timer(TimerKind::Singleshot, None);
            CallResult::Return(0)
        }
        VcpuOp::REGISTER_VCPU_INFO => register_info(ctx, &vcpu, own, arg).into(),
        VcpuOp::SEND_NMI => {
            vcpu.post(Pending::NMI);
            CallResult::Return(0)
        }
        // Only a domain whose vCPUs are pinned for good could use the answer.
        VcpuOp::GET_PHYSID => Errno::EINVAL.into(),
        _ => Errno::ENOSYS.into(),
    }
}

fn initialise<A: Arch>(ctx: &mut Ctx<'_, A>, vcpu: &Arc<Vcpu<A>>, arg: u64) -> Result<i64, Errno> {
    // One beyond the shared info page's must have registered its vcpu_info first.
    if vcpu.vcpu_info().is_none() {
        return Err(Errno::EINVAL);
    }
    let context: HvmContext = ctx.read(arg)?;
    if !vcpu.claim_initialise() {
        return Err(Errno::EEXIST);
    }
    let result = A::initialise_vcpu(vcpu, &context);
    // It may have been started in another way meanwhile.
    if result.is_err() && !vcpu.is_up() {
        vcpu.unclaim_initialise();
    }
    result.map(|()| 0)
}

fn up<A: Arch>(vcpu: &Arc<Vcpu<A>>) -> Result<i64, Errno> {
    if !vcpu.is_initialised() {
        return Err(Errno::EINVAL);
    }
    if !vcpu.is_up() {
        vcpu.bring_up();
    }
    Ok(0)
}

fn register_area<A: Arch>(
    ctx: &mut Ctx<'_, A>,
    vcpu: &Arc<Vcpu<A>>,
    own: bool,
    arg: u64,
    runstate: bool,
) -> Result<i64, Errno> {
    let area = ctx.read_long(arg)?;
    if runstate {
        vcpu.set_runstate_area(area, ctx.width);
    } else {
        vcpu.set_time_area(area);
    }
    if own {
        vcpu.write_areas(ctx.io);
    }
    Ok(0)
}

fn set_periodic<A: Arch>(ctx: &mut Ctx<'_, A>, vcpu: &Arc<Vcpu<A>>, arg: u64) -> Result<i64, Errno> {
    let SetPeriodicTimer { period_ns } = ctx.read(arg)?;
    if !(MIN_PERIOD_NS..=MAX_PERIOD_NS).contains(&period_ns) {
        return Err(Errno::EINVAL);
    }
    vcpu.set_period(period_ns);
    vcpu.set_timer(TimerKind::Periodic, Some(A::now().saturating_add(period_ns)));
    Ok(0)
}

fn set_singleshot<A: Arch>(ctx: &mut Ctx<'_, A>, arg: u64) -> Result<i64, Errno> {
    // All of the structure that matters, in both widths: whatever the flags, a past deadline fires at once.
    let timeout: u64 = ctx.read(arg)?;
    ctx.vcpu.set_timer(TimerKind::Singleshot, Some(timeout));
    Ok(0)
}

fn register_info<A: Arch>(
    ctx: &mut Ctx<'_, A>,
    vcpu: &Arc<Vcpu<A>>,
    own: bool,
    arg: u64,
) -> Result<i64, Errno> {
    // The same in both widths: the frame is 64 bits wide, and what follows is aligned to 4.
    let RegisterVcpuInfo { mfn, offset, .. } = ctx.read(arg)?;
    let offset = offset as usize;
    if offset > PAGE_SIZE as usize - VCPU_INFO_SIZE || !offset.is_multiple_of(8) {
        return Err(Errno::ENXIO);
    }
    // A vCPU that runs could use the old place meanwhile.
    if !own && vcpu.is_up() {
        return Err(Errno::EINVAL);
    }
    let page = vcpu.domain().memory.pin(Frame::new(mfn.min(1 << 40))).map_err(|_| Errno::EINVAL)?;
    if vcpu.register_info(VcpuInfo { page, offset }) { Ok(0) } else { Err(Errno::EINVAL) }
}
