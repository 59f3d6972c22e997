//! Grant tables, version 1: what a domain lets others do with its pages.
//!
//! The table is memory that the guest shares with us and writes at any time; what counts is what we remember of the
//! entries in use (`active`). An entry is taken into use by setting its `READING` and `WRITING` bits with a
//! compare-exchange that also proves that it still grants what it did (`entry`); the guest ends a grant by a
//! compare-exchange from "neither bit set". What a domain has mapped of others is its `maptrack`.
//!
//! One lock for each granting domain covers its table; a leaf, but for [`addr::GuestMemory::pin`] of that domain.
//!
//! Source: `public/grant_table.h` of Xen 4.17.

mod active;
mod copy;
mod entry;
mod map;
mod maptrack;
#[cfg(test)]
mod tests;

use active::Active;
use addr::{Frame, GuestPage, GuestPhys};
use alloc::boxed::Box;
use alloc::vec::Vec;
pub use maptrack::Maptrack;
use xen_abi::grant::{ENTRIES_PER_FRAME, GrantStatus};

/// A frame of the table.
#[derive(Debug)]
struct TableFrame<P> {
    page: P,
    /// Where the guest mapped it.
    mapped: Option<Frame<GuestPhys>>,
    /// Its entries in use; made when the first is.
    active: Option<Box<[Active<P>]>>,
}

/// The table of one domain: pages of the hypervisor that the guest maps.
#[derive(Debug)]
pub struct GrantTable<P> {
    frames: Vec<TableFrame<P>>,
    max: u32,
}

impl<P: GuestPage> GrantTable<P> {
    /// An empty table that may grow to `max` frames.
    pub const fn new(max: u32) -> Self {
        Self { frames: Vec::new(), max }
    }
    /// Bytes of ours that a table of `frames` frames takes at most, besides its pages.
    pub fn bytes_for(frames: u32) -> u64 {
        let one = ENTRIES_PER_FRAME as usize * size_of::<Active<P>>() + 2 * size_of::<TableFrame<P>>();
        u64::from(frames) * one as u64
    }
    /// Frames now.
    pub fn len(&self) -> u32 {
        self.frames.len() as u32
    }
    /// Whether it has no frames.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
    /// Frames at most.
    pub fn max(&self) -> u32 {
        self.max
    }
    /// The page of frame `index`.
    pub fn frame(&self, index: u32) -> Option<P> {
        self.frames.get(index as usize).map(|frame| frame.page.clone())
    }
    /// Where frame `index` is mapped.
    pub fn mapped_at(&self, index: u32) -> Option<Frame<GuestPhys>> {
        self.frames.get(index as usize)?.mapped
    }
    /// Notes where frame `index` is mapped; returns where it was.
    pub fn set_mapped(&mut self, index: u32, at: Frame<GuestPhys>) -> Option<Frame<GuestPhys>> {
        self.frames.get_mut(index as usize)?.mapped.replace(at)
    }
    /// Adds a zeroed page, if the table has fewer than `frames` and may grow; else the page comes back.
    pub fn grow_below(&mut self, frames: u32, page: P) -> Option<P> {
        if self.len() >= frames.min(self.max) {
            return Some(page);
        }
        self.frames.push(TableFrame { page, mapped: None, active: None });
        None
    }

    /// The frame and the index in it of entry `gref`.
    fn find(&mut self, gref: u32) -> Result<(&mut TableFrame<P>, usize), GrantStatus> {
        let frame = self.frames.get_mut((gref / ENTRIES_PER_FRAME) as usize);
        Ok((frame.ok_or(GrantStatus::BAD_GNTREF)?, (gref % ENTRIES_PER_FRAME) as usize))
    }

    /// Exchanges two entries that are not in use.
    pub(crate) fn swap(&mut self, a: u32, b: u32) -> Result<(), GrantStatus> {
        let mut idle = |gref: u32| {
            let (frame, index) = self.find(gref)?;
            let used = frame.active.as_ref().is_some_and(|active| active[index].in_use());
            Ok((frame.page.clone(), index, used))
        };
        let ((page_a, at_a, used_a), (page_b, at_b, used_b)) = (idle(a)?, idle(b)?);
        if a == b {
            return Ok(());
        }
        if used_a || used_b {
            return Err(GrantStatus::EAGAIN);
        }
        entry::swap((&page_a, at_a), (&page_b, at_b));
        Ok(())
    }
}
