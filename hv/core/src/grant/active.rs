//! Entries in use: who uses them, how often, and the page behind them.

use super::entry::{self, Use};
use super::{GrantTable, TableFrame};
use addr::{Frame, GuestPage, GuestPhys};
use xen_abi::DomId;
use xen_abi::grant::entry::{READING, WRITING};
use xen_abi::grant::{ENTRIES_PER_FRAME, GrantStatus};

/// Uses of a kind that an entry can have at a time.
const MOST: u16 = u16::MAX / 2;

/// What we remember of an entry in use, whatever the guest writes into it.
#[derive(Debug)]
pub(super) struct Active<P> {
    /// Pinned as long as the entry is in use.
    page: Option<P>,
    by: DomId,
    readers: u16,
    writers: u16,
}

impl<P> Active<P> {
    fn idle() -> Self {
        Self { page: None, by: DomId(0), readers: 0, writers: 0 }
    }
    pub(super) fn in_use(&self) -> bool {
        self.page.is_some()
    }
}

impl<P: GuestPage> GrantTable<P> {
    /// Takes entry `gref` into use; the page stays what it is until [`GrantTable::release`]. `pin` pins a frame of
    /// the granting domain; `charge` is asked before memory is taken.
    pub(super) fn acquire(
        &mut self,
        gref: u32,
        how: Use,
        pin: impl FnOnce(Frame<GuestPhys>) -> Option<P>,
        charge: impl FnOnce(u64) -> bool,
    ) -> Result<P, GrantStatus> {
        let (TableFrame { page, active, .. }, index) = self.find(gref)?;
        if active.is_none() {
            let bytes = ENTRIES_PER_FRAME as usize * size_of::<Active<P>>();
            if !charge(bytes as u64) {
                return Err(GrantStatus::GENERAL_ERROR);
            }
            *active = Some((0..ENTRIES_PER_FRAME).map(|_| Active::idle()).collect());
        }
        let active =
            active.as_mut().and_then(|active| active.get_mut(index)).ok_or(GrantStatus::BAD_GNTREF)?;
        let again = active.in_use();
        if again && (active.by != how.by || active.readers.max(active.writers) >= MOST) {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        let first_writer = !how.readonly && active.writers == 0;
        if !again || first_writer {
            entry::mark(page, index, how, again)?;
        }
        let granted = match &active.page {
            Some(granted) => granted.clone(),
            // The frame is read after the mark: from then on it is what was granted.
            None => match pin(Frame::new(entry::frame(page, index).into())) {
                Some(granted) => granted,
                None => {
                    entry::unmark(page, index, READING | WRITING);
                    return Err(GrantStatus::BAD_PAGE);
                }
            },
        };
        active.page.get_or_insert_with(|| granted.clone());
        active.by = how.by;
        *(if how.readonly { &mut active.readers } else { &mut active.writers }) += 1;
        Ok(granted)
    }

    /// Ends one use. With the last the entry is the guest's again, and the page comes back to be unpinned once the
    /// table's lock is released.
    pub(super) fn release(&mut self, gref: u32, readonly: bool) -> Option<P> {
        let (TableFrame { page, active, .. }, index) = self.find(gref).ok()?;
        let active = active.as_mut()?.get_mut(index)?;
        let count = if readonly { &mut active.readers } else { &mut active.writers };
        *count = count.checked_sub(1)?;
        let mut bits = if !readonly && active.writers == 0 { WRITING } else { 0 };
        let last = active.readers == 0 && active.writers == 0;
        if last {
            bits |= READING;
        }
        let unpinned = if last { active.page.take() } else { None };
        entry::unmark(page, index, bits);
        unpinned
    }

    /// Whether entry `gref` asks for a memory type other than the usual.
    pub(super) fn odd_cache(&mut self, gref: u32) -> bool {
        self.find(gref).is_ok_and(|(frame, index)| entry::odd_cache(&frame.page, index))
    }
}
