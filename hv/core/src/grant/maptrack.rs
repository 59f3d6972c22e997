//! What a domain has mapped of others, by handle.

use crate::domain::Domain;
use crate::platform::{Arch, PageOf};
use addr::{Frame, GuestPhys};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

/// Handles that a frame of Xen's maptrack holds: what a limit in frames means.
const PER_FRAME: u32 = 256;
/// Slots for which memory is taken at a time.
const STEP: usize = 256;

/// A grant that is mapped. It keeps the granting domain.
pub(super) struct Mapping<A: Arch> {
    pub(super) granter: Arc<Domain<A>>,
    pub(super) gref: u32,
    pub(super) at: Frame<GuestPhys>,
    pub(super) readonly: bool,
    pub(super) page: PageOf<A>,
}

enum Slot<A: Arch> {
    /// Not given out; the next one that is not.
    Free(Option<u32>),
    /// Being mapped, or being unmapped by somebody.
    Busy,
    Used(Mapping<A>),
}

/// What a domain has mapped of others, by handle.
pub struct Maptrack<A: Arch> {
    slots: Vec<Slot<A>>,
    free: Option<u32>,
    max: u32,
    /// Nothing can be mapped any more: the domain is dying.
    closed: bool,
}

impl<A: Arch> Maptrack<A> {
    /// No mappings yet, and as many as `frames` frames of Xen's hold at most.
    pub(crate) fn new(frames: u32) -> Self {
        Self { slots: Vec::new(), free: None, max: frames.saturating_mul(PER_FRAME), closed: false }
    }

    /// Bytes that it takes at most.
    pub fn bytes_for(frames: u32) -> u64 {
        u64::from(frames) * u64::from(PER_FRAME) * size_of::<Slot<A>>() as u64
    }

    /// A handle for a mapping to be made; `charge` is asked before memory is taken.
    pub(super) fn reserve(&mut self, charge: impl FnOnce(u64) -> bool) -> Option<u32> {
        if self.closed {
            return None;
        }
        if let Some(handle) = self.free {
            let slot = self.slots.get_mut(handle as usize)?;
            let Slot::Free(next) = *slot else { return None };
            *slot = Slot::Busy;
            self.free = next;
            return Some(handle);
        }
        let len = self.slots.len();
        if len >= self.max as usize {
            return None;
        }
        if len.is_multiple_of(STEP) && !charge((STEP * size_of::<Slot<A>>()) as u64) {
            return None;
        }
        if len == self.slots.capacity() {
            self.slots.reserve_exact(STEP);
        }
        self.slots.push(Slot::Busy);
        Some(len as u32)
    }

    /// Takes a mapping out, to be unmapped; the handle stays taken. `None`: there is none of this handle.
    pub(super) fn take(&mut self, handle: u32) -> Option<Mapping<A>> {
        let slot = self.slots.get_mut(handle as usize)?;
        match core::mem::replace(slot, Slot::Busy) {
            Slot::Used(mapping) => Some(mapping),
            other => {
                *slot = other;
                None
            }
        }
    }

    /// Puts a mapping at its handle. It comes back if the domain is dying.
    pub(super) fn put(&mut self, handle: u32, mapping: Mapping<A>) -> Result<(), Mapping<A>> {
        if self.closed {
            return Err(mapping);
        }
        if let Some(slot) = self.slots.get_mut(handle as usize) {
            *slot = Slot::Used(mapping);
        }
        Ok(())
    }

    /// Gives a handle back that has no mapping any more.
    pub(super) fn free(&mut self, handle: u32) {
        if let Some(slot @ Slot::Busy) = self.slots.get_mut(handle as usize) {
            *slot = Slot::Free(self.free.replace(handle));
        }
    }

    /// The domain is dying: no more mappings.
    pub(super) fn close(&mut self) -> usize {
        self.closed = true;
        self.slots.len()
    }
}

impl<A: Arch> fmt::Debug for Maptrack<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Maptrack({} of {})", self.slots.len(), self.max)
    }
}
