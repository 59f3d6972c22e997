//! Testudo's heap: a small part of the image's data first, then chunks from the frame allocator.
// UNSAFETY: hands raw memory to the allocator crate.
#![allow(unsafe_code)]

use crate::mm::{direct, frames, host};
use core::alloc::Layout;
use hv_core::memory::{Kind, Owner, Zone};
use talc::DefaultBinning;
use talc::base::{Talc, binning::Binning};
use talc::source::Source;

/// Bytes at hand before the frame allocator is up: what the boot parsers need.
const EARLY: usize = 256 * 1024;
/// Smallest order taken when the heap grows: 2^5 frames, 128 KiB.
const GROWTH_ORDER: u8 = 5;

#[repr(align(4096))]
struct Early(core::cell::UnsafeCell<[u8; EARLY]>);
// SAFETY: only the allocator touches it, under its lock.
unsafe impl Sync for Early {}
static EARLY_HEAP: Early = Early(core::cell::UnsafeCell::new([0; EARLY]));

/// Where the heap gets its memory from.
#[derive(Debug, Default)]
pub struct Frames {
    early_used: bool,
}

// SAFETY: `acquire` claims only memory that nobody else has, and never allocates from the heap itself.
unsafe impl Source for Frames {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        if !talc.source.early_used {
            talc.source.early_used = true;
            // SAFETY: the static is claimed once, here.
            return unsafe { talc.claim(EARLY_HEAP.0.get().cast(), EARLY) }.map(drop).ok_or(());
        }
        if !frames::ready() {
            return Err(());
        }
        // Room for the allocator's own bookkeeping beside the request.
        let bytes = (layout.size() + layout.align() + 4096) as u64;
        let order =
            (bytes.div_ceil(addr::PAGE_SIZE).next_power_of_two().trailing_zeros() as u8).max(GROWTH_ORDER);
        let zone = if host::ready() { Zone::Any } else { Zone::Below4G };
        let frame = frames::frames().alloc(order, Owner::HYPERVISOR, Kind::Hypervisor, zone).map_err(drop)?;
        let base = direct::pointer(frame.start());
        // SAFETY: the block was just given to us, and is mapped by the direct map.
        unsafe { talc.claim(base, (addr::PAGE_SIZE << order) as usize) }.map(drop).ok_or(())
    }
}

/// The lock around the heap. Interrupt handlers never allocate, so a plain spin lock will do.
pub type Lock = spin::mutex::SpinMutex<()>;

/// The heap, to be the image's `#[global_allocator]`.
pub type Heap = talc::sync::TalcLock<Lock, Frames, DefaultBinning>;

/// An empty heap.
pub const fn new() -> Heap {
    talc::sync::TalcLock::new(Frames { early_used: false })
}
