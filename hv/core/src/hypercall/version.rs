//! `xen_version`.

use super::args::Ctx;
use super::{Args, CallResult};
use crate::platform::Arch;
use xen_abi::Errno;
use xen_abi::version::{CompileInfo, FeatureInfo, VersionOp, feature};

/// The version we are compatible with.
pub(crate) const MAJOR: u32 = 4;
pub(crate) const MINOR: u32 = 17;

pub(super) fn xen_version<A: Arch>(ctx: &mut Ctx<'_, A>, args: Args) -> CallResult {
    let [op, arg, ..] = args;
    answer(ctx, VersionOp(op as u32), arg).into()
}

fn answer<A: Arch>(ctx: &mut Ctx<'_, A>, op: VersionOp, arg: u64) -> Result<i64, Errno> {
    let machine = ctx.vcpu.domain().machine().clone();
    let info = &machine.info;
    match op {
        VersionOp::VERSION => Ok((MAJOR << 16 | MINOR).into()),
        VersionOp::EXTRAVERSION => text::<A, 16>(ctx, arg, ".0-testudo"),
        VersionOp::COMPILE_INFO => {
            let answer = CompileInfo {
                compiler: padded(&info.compiler),
                compile_by: padded("testudo"),
                compile_domain: padded(""),
                compile_date: padded(&info.compile_date),
            };
            ctx.write(arg, &answer)?;
            Ok(0)
        }
        VersionOp::CAPABILITIES => text::<A, 1024>(ctx, arg, A::capabilities()),
        VersionOp::CHANGESET => text::<A, 64>(ctx, arg, &info.changeset),
        VersionOp::PLATFORM_PARAMETERS => {
            // No part of the guest's address space is ours.
            let size = ctx.long_size() as usize;
            ctx.io.copy_out(arg, &[0; 8][..size])?;
            Ok(0)
        }
        VersionOp::GET_FEATURES => {
            let mut answer: FeatureInfo = ctx.read(arg)?;
            if answer.submap_idx != 0 {
                return Err(Errno::EINVAL);
            }
            answer.submap = feature::WRITABLE_PAGE_TABLES
                | feature::AUTO_TRANSLATED_PHYSMAP
                | feature::HVM_CALLBACK_VECTOR
                | feature::HVM_SAFE_PVCLOCK
                | feature::MEMORY_OP_VNODE
                | feature::NOT_DIRECT_MAPPED;
            if ctx.vcpu.domain().config().privileged {
                answer.submap |= feature::DOM0;
            }
            ctx.write(arg, &answer)?;
            Ok(0)
        }
        VersionOp::PAGESIZE if arg != 0 => Err(Errno::EINVAL),
        VersionOp::PAGESIZE => Ok(addr::PAGE_SIZE as i64),
        VersionOp::GUEST_HANDLE => {
            let uuid = ctx.vcpu.domain().config().uuid;
            ctx.write(arg, &uuid)?;
            Ok(0)
        }
        // What the machine's owner told the hypervisor is nothing for an ordinary guest.
        VersionOp::COMMANDLINE if ctx.vcpu.domain().config().privileged => {
            text::<A, 1024>(ctx, arg, &info.command_line)
        }
        VersionOp::COMMANDLINE => text::<A, 1024>(ctx, arg, "<denied>"),
        VersionOp::BUILD_ID => build_id(ctx, arg, &info.build_id),
        _ => Err(Errno::ENOSYS),
    }
}

/// Bytes of `text` in a field of `N`, ended by a zero.
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    let n = text.len().min(N.saturating_sub(1));
    field[..n].copy_from_slice(&text.as_bytes()[..n]);
    field
}

fn text<A: Arch, const N: usize>(ctx: &mut Ctx<'_, A>, arg: u64, text: &str) -> Result<i64, Errno> {
    ctx.io.copy_out(arg, &padded::<N>(text))?;
    Ok(0)
}

/// NULL asks for the length; else the argument begins with the room that the caller has.
fn build_id<A: Arch>(ctx: &mut Ctx<'_, A>, arg: u64, id: &[u8]) -> Result<i64, Errno> {
    if id.is_empty() {
        return Err(Errno::ENODATA);
    }
    if arg == 0 {
        return Ok(id.len() as i64);
    }
    let room: u32 = ctx.read(arg)?;
    if room == 0 {
        return Err(Errno::EINVAL);
    }
    if (room as usize) < id.len() {
        return Err(Errno::ENOSPC);
    }
    ctx.io.copy_out(arg.wrapping_add(4), id)?;
    Ok(id.len() as i64)
}
