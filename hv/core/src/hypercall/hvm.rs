//! `hvm_op`.

use super::args::Ctx;
use super::{Args, CallResult, target};
use crate::platform::Arch;
use crate::vcpu::VcpuId;
use xen_abi::Errno;
use xen_abi::hvm::{HvmOp, HvmParam, NR_PARAMS, Param, UpcallVector};

pub(super) fn hvm_op<A: Arch>(ctx: &mut Ctx<'_, A>, args: Args) -> CallResult {
    let [op, arg, ..] = args;
    match HvmOp(op as u32) {
        HvmOp::SET_PARAM => set_param(ctx, arg).into(),
        HvmOp::GET_PARAM => get_param(ctx, arg).into(),
        HvmOp::SET_EVTCHN_UPCALL_VECTOR => set_upcall_vector(ctx, arg).into(),
        HvmOp::GET_TIME => CallResult::Return(A::now() as i64),
        HvmOp::ALTP2M => Errno::EOPNOTSUPP.into(),
        // PAGETABLE_DYING: hints for shadow paging, which is not used; guests ask first.
        _ => Errno::ENOSYS.into(),
    }
}

/// What a guest may do with one of its own parameters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    /// There is no such parameter.
    Absent,
    /// The tools' only.
    None,
    Get,
    GetSet,
}

const fn access(param: HvmParam) -> Access {
    match param {
        HvmParam::CALLBACK_IRQ
        | HvmParam::STORE_EVTCHN
        | HvmParam::CONSOLE_EVTCHN
        | HvmParam::VM86_TSS
        | HvmParam::VM86_TSS_SIZED
        | HvmParam::ACPI_IOPORTS_LOCATION
        | HvmParam::VM_GENERATION_ID_ADDR
        | HvmParam::X87_FIP_WIDTH => Access::GetSet,
        HvmParam::STORE_PFN | HvmParam::CONSOLE_PFN | HvmParam::ALTP2M => Access::Get,
        HvmParam(4 | 13 | 20..=26 | 30) => Access::Absent,
        HvmParam(n) if n as usize >= NR_PARAMS => Access::Absent,
        // Index 3 was never used for x86; 7 and 8 neither: kept, for the tools.
        _ => Access::None,
    }
}

/// Written by the tools once only.
const fn write_once(param: HvmParam) -> bool {
    matches!(
        param,
        HvmParam::IOREQ_PFN
            | HvmParam::BUFIOREQ_PFN
            | HvmParam::VIRIDIAN
            | HvmParam::IOREQ_SERVER_PFN
            | HvmParam::NR_IOREQ_SERVER_PAGES
            | HvmParam::ALTP2M
            | HvmParam::MCA_CAP
    )
}

fn set_param<A: Arch>(ctx: &mut Ctx<'_, A>, arg: u64) -> Result<i64, Errno> {
    let Param { domid, index, value, .. } = ctx.read(arg)?;
    let param = HvmParam(index);
    let access = access(param);
    if access == Access::Absent {
        return Err(Errno::EINVAL);
    }
    let domain = target(ctx, domid)?;
    if access != Access::GetSet && !ctx.vcpu.domain().config().privileged {
        return Err(Errno::EPERM);
    }
    if write_once(param) && domain.param(param) != 0 && domain.param(param) != value {
        return Err(Errno::EEXIST);
    }
    domain.set_param(param, value);
    if param == HvmParam::CALLBACK_IRQ && domain.id() == ctx.vcpu.domain().id() {
        domain.latch_width(ctx.width);
    }
    Ok(0)
}

fn get_param<A: Arch>(ctx: &mut Ctx<'_, A>, arg: u64) -> Result<i64, Errno> {
    let mut param: Param = ctx.read(arg)?;
    let access = access(HvmParam(param.index));
    if access == Access::Absent {
        return Err(Errno::EINVAL);
    }
    let domain = target(ctx, param.domid)?;
    if access == Access::None && !ctx.vcpu.domain().config().privileged {
        return Err(Errno::EPERM);
    }
    param.value = domain.param(HvmParam(param.index));
    ctx.write(arg, &param)?;
    Ok(0)
}

fn set_upcall_vector<A: Arch>(ctx: &mut Ctx<'_, A>, arg: u64) -> Result<i64, Errno> {
    let UpcallVector { vcpu, vector, .. } = ctx.read(arg)?;
    if vector < 16 {
        return Err(Errno::EINVAL);
    }
    let vcpu = ctx.vcpu.domain().vcpu(VcpuId(vcpu)).ok_or(Errno::ENOENT)?;
    vcpu.set_upcall_vector(vector);
    // An upcall that is due already had no way to arrive.
    vcpu.renew_upcall();
    Ok(0)
}
