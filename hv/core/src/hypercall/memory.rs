//! `memory_op`.

use super::args::Ctx;
use super::{Args, CallResult, Width, target};
use crate::domain::Domain;
use crate::platform::{Arch, DomainMemory, MapError, PageOf};
use addr::{Frame, GuestPhys};
use alloc::sync::Arc;
use xen_abi::Errno;
use xen_abi::memory::*;

/// Pages that one call works through before it looks for pending work.
const BUDGET: u64 = 512;
/// Largest extent that an unprivileged domain may name (2 MiB).
const MAX_ORDER: u32 = 9;

pub(super) fn memory_op<A: Arch>(ctx: &mut Ctx<'_, A>, args: Args) -> CallResult {
    let [cmd, arg, ..] = args;
    let op = MemoryOp(cmd as u32 & ((1 << MEMOP_BITS) - 1));
    let start = (cmd as u32 >> MEMOP_BITS).into();
    match op {
        MemoryOp::DECREASE_RESERVATION | MemoryOp::POPULATE_PHYSMAP => {
            reservation(ctx, op, start, arg).unwrap_or_else(CallResult::from)
        }
        MemoryOp::ADD_TO_PHYSMAP => add_to_physmap(ctx, arg).into(),
        MemoryOp::REMOVE_FROM_PHYSMAP => remove_from_physmap(ctx, arg).into(),
        MemoryOp::MEMORY_MAP => memory_map(ctx, arg).into(),
        MemoryOp::CURRENT_RESERVATION => of_domain(ctx, arg, |domain| domain.memory.pages()).into(),
        MemoryOp::MAXIMUM_RESERVATION => of_domain(ctx, arg, |domain| domain.config().max_pages).into(),
        MemoryOp::MAXIMUM_GPFN => of_domain(ctx, arg, |domain| domain.memory.max_frame().number()).into(),
        _ => Errno::ENOSYS.into(),
    }
}

/// The calls whose argument is the address of a domain id.
fn of_domain<A: Arch>(ctx: &mut Ctx<'_, A>, arg: u64, f: fn(&Domain<A>) -> u64) -> Result<i64, Errno> {
    let id: u16 = ctx.read(arg)?;
    Ok(f(&*target(ctx, id)?) as i64)
}

fn read_reservation<A: Arch>(ctx: &mut Ctx<'_, A>, arg: u64) -> Result<Reservation, Errno> {
    Ok(match ctx.width {
        Width::Bits64 => ctx.read(arg)?,
        Width::Bits32 => {
            let r: Reservation32 = ctx.read(arg)?;
            Reservation {
                extent_start: r.extent_start.into(),
                nr_extents: r.nr_extents.into(),
                extent_order: r.extent_order,
                mem_flags: r.mem_flags,
                domid: r.domid,
                pad: [0; 3],
            }
        }
    })
}

/// Takes memory from, or gives it to, the domain, extent by extent from number `start`. The answer is how
/// many extents were done: fewer than asked is how both say that they could not go on.
fn reservation<A: Arch>(
    ctx: &mut Ctx<'_, A>,
    op: MemoryOp,
    start: u64,
    arg: u64,
) -> Result<CallResult, Errno> {
    let r = read_reservation(ctx, arg)?;
    let done = |n: u64| Ok(CallResult::Return(n as i64));
    if r.nr_extents > u64::from(u32::MAX >> MEMOP_BITS) {
        return done(start);
    }
    let domain = target(ctx, r.domid)?;
    let largest = if ctx.vcpu.domain().config().privileged { MAX_EXTENT_ORDER } else { MAX_ORDER };
    if r.extent_order > largest || start >= r.nr_extents {
        return done(start);
    }
    let mut budget = BUDGET;
    for i in start..r.nr_extents {
        let at = ctx.element(r.extent_start, i, ctx.long_size());
        let Ok(frame) = ctx.read_long(at) else {
            return if i == 0 { Err(Errno::EFAULT) } else { done(i) };
        };
        let ok = match op {
            MemoryOp::POPULATE_PHYSMAP => populate(&domain, frame, r.extent_order),
            _ => decrease(&domain, frame, r.extent_order),
        };
        if !ok {
            return done(i);
        }
        budget = budget.saturating_sub(1 << r.extent_order);
        if budget == 0 && i + 1 < r.nr_extents {
            let cmd = u64::from(op.0) | (i + 1) << MEMOP_BITS;
            return Ok(CallResult::Continue([cmd, arg, 0, 0, 0, 0]));
        }
    }
    done(r.nr_extents)
}

fn frames_of(first: u64, order: u32) -> Option<core::ops::Range<u64>> {
    // Frame numbers above 2^40 (4 PiB of guest memory) do not exist.
    let end = first.checked_add(1 << order)?;
    (end <= 1 << 40).then_some(first..end)
}

fn populate<A: Arch>(domain: &Arc<Domain<A>>, first: u64, order: u32) -> bool {
    let Some(frames) = frames_of(first, order) else { return false };
    if domain.memory.pages().saturating_add(1 << order) > domain.config().max_pages {
        return false;
    }
    if first.is_multiple_of(1 << order) {
        return domain.memory.populate(Frame::new(first), order).is_ok();
    }
    for frame in frames.clone() {
        if domain.memory.populate(Frame::new(frame), 0).is_err() {
            // All of an extent or nothing.
            (first..frame).for_each(|done| {
                let _ = domain.memory.unmap(Frame::new(done));
            });
            return false;
        }
    }
    true
}

fn decrease<A: Arch>(domain: &Arc<Domain<A>>, first: u64, order: u32) -> bool {
    let Some(mut frames) = frames_of(first, order) else { return false };
    frames.all(|frame| domain.memory.unmap(Frame::new(frame)).is_ok())
}

fn add_to_physmap<A: Arch>(ctx: &mut Ctx<'_, A>, arg: u64) -> Result<i64, Errno> {
    let a: AddToPhysmap = match ctx.width {
        Width::Bits64 => ctx.read(arg)?,
        Width::Bits32 => {
            let a: AddToPhysmap32 = ctx.read(arg)?;
            AddToPhysmap {
                domid: a.domid,
                size: a.size,
                space: a.space,
                idx: a.idx.into(),
                gpfn: a.gpfn.into(),
            }
        }
    };
    let domain = target(ctx, a.domid)?;
    let at = frames_of(a.gpfn, 0).map(|frames| Frame::new(frames.start)).ok_or(Errno::EINVAL)?;
    match MapSpace(a.space) {
        MapSpace::SHARED_INFO if a.idx == 0 => {
            domain.memory.map_page(at, domain.shared_info())?;
            let before = domain.shared_info_at.lock().replace(at);
            leave(&domain, before, at, domain.shared_info());
            Ok(0)
        }
        MapSpace::SHARED_INFO => Err(Errno::EINVAL),
        MapSpace::GRANT_TABLE if a.idx & MAPIDX_GRANT_TABLE_STATUS != 0 => Err(Errno::EINVAL),
        MapSpace::GRANT_TABLE => {
            let index = u32::try_from(a.idx).map_err(|_| Errno::EINVAL)?;
            super::grant::grow_to(&domain, index.saturating_add(1))?;
            let page = domain.grants.lock().frame(index).ok_or(Errno::EINVAL)?;
            domain.memory.map_page(at, &page)?;
            let before = domain.grants.lock().set_mapped(index, at);
            leave(&domain, before, at, &page);
            Ok(0)
        }
        MapSpace::DEV_MMIO => Err(Errno::EOPNOTSUPP),
        _ => Err(Errno::ENOSYS),
    }
}

/// A special page is at one frame only: where it was before becomes a hole, unless the guest has put something else
/// there meanwhile.
fn leave<A: Arch>(
    domain: &Arc<Domain<A>>,
    before: Option<Frame<GuestPhys>>,
    now: Frame<GuestPhys>,
    page: &PageOf<A>,
) {
    if let Some(before) = before.filter(|&before| before != now) {
        let _ = domain.memory.unmap_page(before, page);
    }
}

fn remove_from_physmap<A: Arch>(ctx: &mut Ctx<'_, A>, arg: u64) -> Result<i64, Errno> {
    let (domid, gpfn) = match ctx.width {
        Width::Bits64 => {
            let a: RemoveFromPhysmap = ctx.read(arg)?;
            (a.domid, a.gpfn)
        }
        Width::Bits32 => {
            let a: RemoveFromPhysmap32 = ctx.read(arg)?;
            (a.domid, a.gpfn.into())
        }
    };
    let domain = target(ctx, domid)?;
    let frame = frames_of(gpfn, 0).ok_or(Errno::EINVAL)?.start;
    match domain.memory.unmap(Frame::new(frame)) {
        Ok(()) => Ok(0),
        Err(MapError::BadFrame) => Err(Errno::ENOENT),
        Err(other) => Err(other.into()),
    }
}

fn memory_map<A: Arch>(ctx: &mut Ctx<'_, A>, arg: u64) -> Result<i64, Errno> {
    let domain = ctx.vcpu.domain().clone();
    let regions = &domain.config().memory_map;
    if regions.is_empty() {
        return Err(Errno::ENOSYS);
    }
    let (room, buffer) = match ctx.width {
        Width::Bits64 => {
            let map: MemoryMap = ctx.read(arg)?;
            (map.nr_entries, map.buffer)
        }
        Width::Bits32 => {
            let map: MemoryMap32 = ctx.read(arg)?;
            (map.nr_entries, map.buffer.into())
        }
    };
    if buffer != 0 {
        if (room as usize) < regions.len() {
            return Err(Errno::EINVAL);
        }
        for (i, region) in regions.iter().enumerate() {
            let mut entry = [0; E820_ENTRY_SIZE];
            entry[..8].copy_from_slice(&region.start.to_le_bytes());
            entry[8..16].copy_from_slice(&region.bytes.to_le_bytes());
            entry[16..].copy_from_slice(&region.kind.0.to_le_bytes());
            let at = ctx.element(buffer, i as u64, E820_ENTRY_SIZE as u64);
            ctx.io.copy_out(at, &entry)?;
        }
    }
    // The count is the first field in both layouts.
    ctx.write(arg, &(regions.len() as u32))?;
    Ok(0)
}
