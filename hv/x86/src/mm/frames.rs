//! The one frame allocator of the machine, and where its tables lie.
// UNSAFETY: makes the frame table out of raw RAM at boot.
#![allow(unsafe_code)]

use crate::mm::direct;
use addr::{Frame, HostPhys, Hpa, PAGE_SIZE, Range};
use core::sync::atomic::{AtomicU64, Ordering};
use hv_core::memory::{Account, FrameAllocator, FrameEntry, Kind, Owner, Reason, Zone};
use spin::Once;

static FRAMES: Once<FrameAllocator<'static>> = Once::new();
/// Reserved frames that are not Testudo's: modules, and RAM that must not be used.
static MODULES: AtomicU64 = AtomicU64::new(0);
static UNUSABLE: AtomicU64 = AtomicU64::new(0);

/// Domains whose frames are accounted one by one; as many as there can be at a time.
pub const MAX_DOMAINS: usize = 256;

/// The allocator. Panics before [`init`], which is one of the first things done at boot.
#[inline]
pub fn frames() -> &'static FrameAllocator<'static> {
    FRAMES.get().expect("the frame allocator is set up before anything allocates")
}

/// Whether [`init`] has run.
pub fn ready() -> bool {
    FRAMES.is_completed()
}

/// Memory that must not be handed out.
#[derive(Clone, Copy, Debug)]
pub struct Reserved {
    /// Where.
    pub range: Range<HostPhys>,
    /// Why.
    pub reason: Reason,
}

/// Why memory could not be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// Bytes that the frame table needs in one piece below 4 GiB.
    pub need: u64,
}

/// Sets up the allocator over the RAM ranges `ram`, keeping `reserved` out of it.
///
/// The frame table is put into the highest hole of RAM below 4 GiB that is big enough (the early map ends
/// there).
pub fn init(ram: &[Range<HostPhys>], reserved: &[Reserved]) -> Result<(), NoRoom> {
    let frames = ram.iter().map(|r| r.end().raw()).max().unwrap_or(0).div_ceil(PAGE_SIZE) as usize;
    let entries = frames * size_of::<FrameEntry>();
    let accounts = MAX_DOMAINS * size_of::<Account>();
    let need = (entries as u64).next_multiple_of(PAGE_SIZE) + (accounts as u64).next_multiple_of(PAGE_SIZE);
    let table = ram.iter().rev().find_map(|r| highest_gap(*r, need, reserved)).ok_or(NoRoom { need })?;
    let base = direct::pointer(table.start());
    // SAFETY: the range is RAM, below 4 GiB and so mapped, and nobody else's. All-zero bytes are valid
    // entries (absent) and valid accounts.
    let (table_entries, table_accounts) = unsafe {
        core::ptr::write_bytes(base, 0, need as usize);
        (
            core::slice::from_raw_parts(base.cast::<FrameEntry>(), frames),
            core::slice::from_raw_parts(
                base.add((entries as u64).next_multiple_of(PAGE_SIZE) as usize).cast::<Account>(),
                MAX_DOMAINS,
            ),
        )
    };
    let allocator = FrameAllocator::new(table_entries, table_accounts);
    let own = Reserved { range: table, reason: Reason::BootTable };
    for r in reserved.iter().chain([&own]) {
        allocator.reserve(r.range, r.reason).expect("nothing is allocated yet");
    }
    for range in ram {
        allocator.add_range(*range);
    }
    for (total, reason) in [(&MODULES, Reason::Module), (&UNUSABLE, Reason::Bad)] {
        let pages =
            reserved.iter().filter(|r| r.reason == reason).map(|r| r.range.bytes().div_ceil(PAGE_SIZE));
        total.store(pages.sum(), Ordering::Relaxed);
    }
    FRAMES.call_once(|| allocator);
    Ok(())
}

/// Where the machine's memory is, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uses {
    /// All RAM but what must not be used.
    pub total: u64,
    /// Free.
    pub free: u64,
    /// Charged to domains: their RAM, tables, and what else is made for them.
    pub domains: u64,
    /// The boot modules: kernels and ramdisks, kept for domains that restart.
    pub modules: u64,
    /// Testudo's own: all the rest.
    pub own: u64,
    /// Of these, Testudo's image and boot-time tables.
    pub fixed: u64,
}

/// Where the machine's memory is now. Counted while others allocate, so that numbers may be off by what they do.
pub fn uses() -> Uses {
    let stats = frames().stats();
    let (modules, unusable) = (MODULES.load(Ordering::Relaxed), UNUSABLE.load(Ordering::Relaxed));
    let domains = (0..MAX_DOMAINS as u16).map(|id| frames().usage(Owner(id)).total()).sum();
    Uses::of(stats.total, stats.reserved, stats.free, domains, modules, unusable)
}

impl Uses {
    fn of(given: u64, reserved: u64, free: u64, domains: u64, modules: u64, unusable: u64) -> Uses {
        let total = (given + reserved).saturating_sub(unusable);
        Uses {
            total,
            free,
            domains,
            modules,
            own: total.saturating_sub(free).saturating_sub(domains).saturating_sub(modules),
            fixed: reserved.saturating_sub(modules).saturating_sub(unusable),
        }
    }
}

/// The highest range of `need` bytes in `ram`, below 4 GiB, that touches none of `reserved`.
fn highest_gap(ram: Range<HostPhys>, need: u64, reserved: &[Reserved]) -> Option<Range<HostPhys>> {
    let mut end = ram.end().raw().min(1 << 32);
    loop {
        let start = end.checked_sub(need)? & !(PAGE_SIZE - 1);
        if start < ram.start().raw().max(0x10_0000) {
            return None;
        }
        let candidate = Range::new(Hpa::new(start), need)?;
        match reserved.iter().filter(|r| r.range.overlaps(&candidate)).map(|r| r.range.start().raw()).min() {
            Some(lower) => end = lower & !(PAGE_SIZE - 1),
            None => return Some(candidate),
        }
    }
}

/// A zeroed frame for Testudo itself.
pub fn alloc_own(zone: Zone) -> Option<Frame<HostPhys>> {
    let frame = frames().alloc(0, Owner::HYPERVISOR, Kind::Hypervisor, zone).ok()?;
    // SAFETY: the frame was just given to us.
    unsafe { direct::zero(frame) };
    Some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_memory_is_somebodys() {
        let uses = Uses::of(10_000, 700, 4000, 5500, 500, 20);
        let Uses { total, free, domains, modules, own, fixed } = uses;
        assert_eq!((total, own, fixed), (10_680, 680, 180));
        assert_eq!(free + domains + modules + own, total);
    }

    #[test]
    fn the_table_goes_below_what_is_reserved() {
        let ram = Range::new(Hpa::new(0x10_0000), 0x70_0000).unwrap();
        let taken =
            Reserved { range: Range::new(Hpa::new(0x60_0000), 0x10_0000).unwrap(), reason: Reason::Module };
        let got = highest_gap(ram, 0x18_0000, &[taken]).unwrap();
        assert_eq!(got.end(), Hpa::new(0x60_0000));
        assert!(highest_gap(ram, 0x60_0000, &[taken]).is_none());
    }
}
