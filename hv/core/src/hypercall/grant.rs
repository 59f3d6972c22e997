//! `grant_table_op`, version 1 tables.

use super::args::Ctx;
use super::{Args, CallResult, Width, target};
use crate::domain::Domain;
use crate::platform::{Arch, DomainMemory};
use alloc::sync::Arc;
use xen_abi::Errno;
use xen_abi::grant::*;

/// Elements that one call works through before it looks for pending work.
const BATCH: u64 = 64;
/// Bits of the first argument that name the operation; the others are for continuations of Xen's own.
const CMD_MASK: u32 = 0xfff;

pub(super) fn grant_table_op<A: Arch>(ctx: &mut Ctx<'_, A>, args: Args) -> CallResult {
    let [op, uop, count, ..] = args;
    if count as i32 <= -1 || op as u32 & !CMD_MASK != 0 {
        return Errno::EINVAL.into();
    }
    let one = |result: &mut dyn FnMut() -> Result<i64, Errno>| {
        if count as u32 == 1 { result() } else { Err(Errno::EINVAL) }
    };
    match GrantOp(op as u32) {
        GrantOp::QUERY_SIZE => one(&mut || query_size(ctx, uop)).into(),
        GrantOp::SETUP_TABLE => one(&mut || setup_table(ctx, uop)).into(),
        GrantOp::SET_VERSION => set_version(ctx, uop).into(),
        GrantOp::GET_VERSION => get_version(ctx, uop).into(),
        GrantOp::MAP_GRANT_REF => batch(ctx, args, 32, map),
        GrantOp::UNMAP_GRANT_REF => batch(ctx, args, 24, unmap),
        GrantOp::COPY => match ctx.width {
            Width::Bits64 => batch(ctx, args, 40, copy),
            Width::Bits32 => batch(ctx, args, 24, copy_32),
        },
        GrantOp::SWAP_GRANT_REF => batch(ctx, args, 12, swap),
        // Version 2, and what only PV guests or other architectures have.
        _ => Errno::ENOSYS.into(),
    }
}

/// Does `one` to each element, of `size` bytes. An element's failure is in its status; the call fails only if the
/// array cannot be read or written.
fn batch<A: Arch>(
    ctx: &mut Ctx<'_, A>,
    args: Args,
    size: u64,
    one: fn(&mut Ctx<'_, A>, u64) -> Result<(), Errno>,
) -> CallResult {
    let [op, uop, count, ..] = args;
    let count = count & 0xffff_ffff;
    for i in 0..count.min(BATCH) {
        let at = ctx.element(uop, i, size);
        if let Err(error) = one(ctx, at) {
            return error.into();
        }
    }
    if count > BATCH {
        return CallResult::Continue([op, ctx.element(uop, BATCH, size), count - BATCH, 0, 0, 0]);
    }
    CallResult::Return(0)
}

fn status<T>(result: &Result<T, GrantStatus>) -> i16 {
    result.as_ref().err().unwrap_or(&GrantStatus::OKAY).0
}

fn map<A: Arch>(ctx: &mut Ctx<'_, A>, at: u64) -> Result<(), Errno> {
    let mut map: MapGrantRef = ctx.read(at)?;
    let domain = ctx.vcpu.domain().clone();
    let result = domain.map_grant(&map);
    map.status = status(&result);
    if let Ok(done) = result {
        (map.handle, map.dev_bus_addr) = done;
    }
    ctx.write(at, &map).inspect_err(|_| {
        // The guest cannot be told the handle, so nobody could unmap it.
        if result.is_ok() {
            let undo = UnmapGrantRef {
                host_addr: map.host_addr,
                dev_bus_addr: 0,
                handle: map.handle,
                status: 0,
                pad: 0,
            };
            let _ = domain.unmap_grant(&undo);
        }
    })
}

fn unmap<A: Arch>(ctx: &mut Ctx<'_, A>, at: u64) -> Result<(), Errno> {
    let unmap: UnmapGrantRef = ctx.read(at)?;
    let result = ctx.vcpu.domain().unmap_grant(&unmap);
    let field = core::mem::offset_of!(UnmapGrantRef, status) as u64;
    ctx.write(ctx.element(at, field, 1), &status(&result))
}

fn copy<A: Arch>(ctx: &mut Ctx<'_, A>, at: u64) -> Result<(), Errno> {
    let copy: Copy = ctx.read(at)?;
    let result = ctx.vcpu.domain().copy_grant(&copy);
    let field = core::mem::offset_of!(Copy, status) as u64;
    ctx.write(ctx.element(at, field, 1), &status(&result))
}

fn copy_32<A: Arch>(ctx: &mut Ctx<'_, A>, at: u64) -> Result<(), Errno> {
    let narrow: Copy32 = ctx.read(at)?;
    let end =
        |end: CopyEnd32| CopyEnd { what: end.what.into(), domid: end.domid, offset: end.offset, pad: 0 };
    let Copy32 { source, dest, len, flags, .. } = narrow;
    let copy = Copy { source: end(source), dest: end(dest), len, flags, status: 0, pad: 0 };
    let result = ctx.vcpu.domain().copy_grant(&copy);
    let field = core::mem::offset_of!(Copy32, status) as u64;
    ctx.write(ctx.element(at, field, 1), &status(&result))
}

fn swap<A: Arch>(ctx: &mut Ctx<'_, A>, at: u64) -> Result<(), Errno> {
    let swap: SwapGrantRef = ctx.read(at)?;
    let result = ctx.vcpu.domain().grants.lock().swap(swap.ref_a, swap.ref_b);
    let field = core::mem::offset_of!(SwapGrantRef, status) as u64;
    ctx.write(ctx.element(at, field, 1), &status(&result))
}

/// Grows the table of `domain` to at least `frames` frames. `EINVAL`: it may not; `ENOMEM`.
pub(super) fn grow_to<A: Arch>(domain: &Arc<Domain<A>>, frames: u32) -> Result<(), Errno> {
    if frames > domain.grants.lock().max() {
        return Err(Errno::EINVAL);
    }
    while domain.grants.lock().len() < frames {
        let page = domain.memory.new_page().ok_or(Errno::ENOMEM)?;
        // Another vCPU may have grown it: then this page is one too many, and freed.
        let surplus = domain.grants.lock().grow_below(frames, page);
        drop(surplus);
    }
    Ok(())
}

fn query_size<A: Arch>(ctx: &mut Ctx<'_, A>, uop: u64) -> Result<i64, Errno> {
    let mut query: QuerySize = ctx.read(uop)?;
    match target(ctx, query.dom) {
        Ok(domain) => {
            let grants = domain.grants.lock();
            (query.nr_frames, query.max_nr_frames) = (grants.len(), grants.max());
            query.status = GrantStatus::OKAY.0;
        }
        Err(error) => query.status = status_of(error).0,
    }
    ctx.write(uop, &query)?;
    Ok(0)
}

fn status_of(error: Errno) -> GrantStatus {
    match error {
        Errno::ESRCH => GrantStatus::BAD_DOMAIN,
        Errno::EPERM => GrantStatus::PERMISSION_DENIED,
        _ => GrantStatus::GENERAL_ERROR,
    }
}

fn setup_table<A: Arch>(ctx: &mut Ctx<'_, A>, uop: u64) -> Result<i64, Errno> {
    // The two layouts differ in the pointer only: the status is at 8 in both.
    let (dom, nr, list) = match ctx.width {
        Width::Bits64 => {
            let setup: SetupTable = ctx.read(uop)?;
            (setup.dom, setup.nr_frames, setup.frame_list)
        }
        Width::Bits32 => {
            let [first, nr, _, list]: [u32; 4] = ctx.read(uop)?;
            (first as u16, nr, list.into())
        }
    };
    let grown = target(ctx, dom).and_then(|domain| grow_to(&domain, nr).map(|()| domain));
    let status = match grown {
        Ok(domain) => list_frames(ctx, &domain, nr, list),
        Err(error) => status_of(error),
    };
    ctx.write(ctx.element(uop, 8, 1), &status.0)?;
    Ok(0)
}

/// Tells where the frames of the table are mapped; all ones: nowhere.
fn list_frames<A: Arch>(ctx: &mut Ctx<'_, A>, domain: &Domain<A>, nr: u32, list: u64) -> GrantStatus {
    let size = ctx.long_size();
    for i in 0..nr {
        let at = domain.grants.lock().mapped_at(i).map_or(u64::MAX, |frame| frame.number());
        let to = ctx.element(list, i.into(), size);
        if ctx.io.copy_out(to, &at.to_le_bytes()[..size as usize]).is_err() {
            return GrantStatus::BAD_VIRT_ADDR;
        }
    }
    GrantStatus::OKAY
}

fn set_version<A: Arch>(ctx: &mut Ctx<'_, A>, uop: u64) -> Result<i64, Errno> {
    let version: SetVersion = ctx.read(uop)?;
    let result = match version.version {
        1 => Ok(0),
        2 => Err(Errno::ENOSYS),
        _ => Err(Errno::EINVAL),
    };
    // The version in force is told in any case.
    ctx.write(uop, &SetVersion { version: 1 })?;
    result
}

fn get_version<A: Arch>(ctx: &mut Ctx<'_, A>, uop: u64) -> Result<i64, Errno> {
    let mut version: GetVersion = ctx.read(uop)?;
    target(ctx, version.dom)?;
    version.version = 1;
    ctx.write(uop, &version)?;
    Ok(0)
}
