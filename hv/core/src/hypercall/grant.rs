//! `grant_table_op`: a guest's own table, version 1. What concerns other domains' pages is refused
//! element by element, as for a domain that granted nothing.

use super::args::Ctx;
use super::{Args, CallResult, Width, target};
use crate::domain::Domain;
use crate::platform::{Arch, DomainMemory};
use alloc::sync::Arc;
use xen_abi::grant::*;
use xen_abi::{DomId, Errno};

/// Elements that one call works through before it looks for pending work.
const BATCH: u64 = 64;

/// Where, in an element of `size` bytes, the domain and the status are.
struct Refusal {
    size: u64,
    dom: Option<u64>,
    status: u64,
    answer: GrantStatus,
}

pub(super) fn grant_table_op<A: Arch>(ctx: &mut Ctx<'_, A>, args: Args) -> CallResult {
    let [op, uop, count, ..] = args;
    let one = |result: Result<i64, Errno>| if count == 1 { result.into() } else { Errno::EINVAL.into() };
    match GrantOp(op as u32) {
        GrantOp::QUERY_SIZE => one(query_size(ctx, uop)),
        GrantOp::SETUP_TABLE => one(setup_table(ctx, uop)),
        GrantOp::SET_VERSION => one(set_version(ctx, uop)),
        GrantOp::GET_VERSION => one(get_version(ctx, uop)),
        GrantOp::MAP_GRANT_REF => {
            let answer = GrantStatus::BAD_GNTREF;
            refuse(ctx, args, Refusal { size: 32, dom: Some(16), status: 18, answer })
        }
        GrantOp::UNMAP_GRANT_REF => {
            let answer = GrantStatus::BAD_HANDLE;
            refuse(ctx, args, Refusal { size: 24, dom: None, status: 20, answer })
        }
        GrantOp::COPY => {
            let answer = GrantStatus::GENERAL_ERROR;
            refuse(
                ctx,
                args,
                match ctx.width {
                    Width::Bits64 => Refusal { size: 40, dom: Some(8), status: 36, answer },
                    // The frame number is a long there: each end is 8 bytes.
                    Width::Bits32 => Refusal { size: 24, dom: Some(4), status: 20, answer },
                },
            )
        }
        _ => Errno::ENOSYS.into(),
    }
}

fn refuse<A: Arch>(ctx: &mut Ctx<'_, A>, args: Args, how: Refusal) -> CallResult {
    let [op, uop, count, ..] = args;
    let count = count & 0xffff_ffff;
    for i in 0..count.min(BATCH) {
        let at = ctx.element(uop, i, how.size);
        if let Err(error) = refuse_one(ctx, at, &how) {
            return error.into();
        }
    }
    if count > BATCH {
        return CallResult::Continue([op, ctx.element(uop, BATCH, how.size), count - BATCH, 0, 0, 0]);
    }
    CallResult::Return(0)
}

fn refuse_one<A: Arch>(ctx: &mut Ctx<'_, A>, at: u64, how: &Refusal) -> Result<(), Errno> {
    let mut answer = how.answer;
    if let Some(dom) = how.dom {
        let id = DomId(ctx.read(at.wrapping_add(dom))?);
        let own = ctx.vcpu.domain();
        if id != DomId::SELF && own.machine().domains.get(id).is_none() {
            answer = GrantStatus::BAD_DOMAIN;
        }
    }
    ctx.write(at.wrapping_add(how.status), &answer.0)
}

/// Grows the table of `domain` to at least `frames` frames. `EINVAL`: it may not; `ENOMEM`.
pub(super) fn grow_to<A: Arch>(domain: &Arc<Domain<A>>, frames: u32) -> Result<(), Errno> {
    if frames > domain.grants.lock().max() {
        return Err(Errno::EINVAL);
    }
    while domain.grants.lock().len() < frames {
        let page = domain.memory.new_page().ok_or(Errno::ENOMEM)?;
        // Another vCPU may have grown it: then this page is one too many, and freed.
        domain.grants.lock().grow_below(frames, page);
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
    let status = match &grown {
        Ok(_) => GrantStatus::OKAY,
        Err(error) => status_of(*error),
    };
    if let Ok(domain) = grown {
        let size = ctx.long_size();
        for i in 0..nr {
            let at = domain.grants.lock().mapped_at(i).map_or(u64::MAX, |frame| frame.number());
            let to = ctx.element(list, i.into(), size);
            ctx.io.copy_out(to, &at.to_le_bytes()[..size as usize])?;
        }
    }
    ctx.write(uop.wrapping_add(8), &status.0)?;
    Ok(0)
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
