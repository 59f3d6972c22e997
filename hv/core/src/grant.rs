//! Grant tables, version 1: a guest's own table. Mapping another domain's grants is refused.

use addr::{Frame, GuestPage, GuestPhys};
use alloc::vec::Vec;

/// The table of one domain: pages of the hypervisor that the guest maps.
#[derive(Debug)]
pub struct GrantTable<P> {
    frames: Vec<(P, Option<Frame<GuestPhys>>)>,
    max: u32,
}

impl<P: GuestPage> GrantTable<P> {
    /// An empty table that may grow to `max` frames.
    pub const fn new(max: u32) -> Self {
        Self { frames: Vec::new(), max }
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
        self.frames.get(index as usize).map(|(page, _)| page.clone())
    }
    /// Where frame `index` is mapped.
    pub fn mapped_at(&self, index: u32) -> Option<Frame<GuestPhys>> {
        self.frames.get(index as usize)?.1
    }
    /// Notes where frame `index` is mapped; returns where it was.
    pub fn set_mapped(&mut self, index: u32, at: Frame<GuestPhys>) -> Option<Frame<GuestPhys>> {
        self.frames.get_mut(index as usize)?.1.replace(at)
    }
    /// Adds a zeroed page, if the table has fewer than `frames` and may grow.
    pub fn grow_below(&mut self, frames: u32, page: P) {
        if self.len() < frames.min(self.max) {
            self.frames.push((page, None));
        }
    }
    /// Gives all frames back.
    pub fn clear(&mut self) {
        self.frames.clear();
    }
}
