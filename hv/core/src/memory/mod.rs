//! Physical memory: which frame is whose, and how many hold it.
//!
//! [`FrameAllocator`] is a buddy allocator over every frame of RAM (orders 0 to [`MAX_ORDER`], 4 KiB to
//! 1 GiB). It keeps one [`FrameEntry`] of 8 bytes per frame, in a table that the boot code finds room
//! for, and nothing else that grows: the free lists run through the entries of the free frames.
//!
//! An allocated frame has an owner, a [`Kind`] and a number of *pins*. The owner's own claim is apart from
//! the pins: a frame goes back to the free lists when the owner has released it **and** the last pin is
//! gone, so that a page which a guest balloons away while somebody still has it mapped stays that guest's
//! page, under the same owner's account, until the last user lets go.
//!
//! Invariants:
//! - Free entries ([`FrameState::Free`]) change only under the allocator's lock; entries of allocated
//!   frames change only by compare-exchange, without the lock. Who moves an entry out of the allocated
//!   state owns it alone until it is back on a free list.
//! - A frame is counted in its owner's account from the allocation until it is free again.
//! - Contents are not looked at: a frame comes dirty, and who allocates it for a guest clears it first.
//!
//! The lock is a plain spin lock: nothing here may be called from an interrupt handler.
//!
//! A wrong call (double free, wrong owner, a range in use) is a bug of ours, never a guest's: it is found,
//! leaves the state as it was, and comes back as a [`FrameBug`].

mod account;
mod allocator;
mod buddy;
mod entry;
#[cfg(test)]
mod tests;

pub use account::{Account, Limits, Usage};
pub use allocator::{AllocError, FrameAllocator, FrameBug, Released, Stats};
pub use entry::{FrameEntry, FrameState, Kind, Owner, Reason};

/// The largest order: 2^18 frames of 4 KiB are 1 GiB.
pub const MAX_ORDER: u8 = 18;

/// The most frames that one table can describe (4 TiB less one frame): links are 30 bits wide.
pub const MAX_FRAMES: u64 = (1 << 30) - 1;

/// Where an allocation may lie. A preference order is built in: the highest zone allowed that has room,
/// so that low memory is kept for those who need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// Anywhere.
    Any,
    /// Below 4 GiB: structures and DMA with 32-bit addresses.
    Below4G,
    /// Below 16 MiB: start-up code of other CPUs, ISA DMA.
    Below16M,
}
