//! The allocator itself: boot-time ranges, allocation, pins and release.

use super::account::{Account, Accounts, Limits, Usage};
use super::buddy::{Buddy, ORDERS};
use super::entry::{FrameEntry, FrameState, Kind, Owner, Reason, Word};
use super::{MAX_FRAMES, MAX_ORDER, Zone};
use crate::sync::{IrqLock, NoIrq};
use addr::{Frame, HostPhys, PAGE_SHIFT, PAGE_SIZE, Range};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why there is no memory to be had. Whoever asked is to be told; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocError {
    /// No block of that size in the zones allowed.
    NoMemory,
    /// The owner's limit for this kind of frame would be exceeded, or no such owner is known.
    Quota,
    /// An order above [`MAX_ORDER`].
    Order,
}

/// A call that our own code should not have made. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameBug {
    /// The frame (or the whole block) is not in the table, or the block is not aligned to its size.
    Range(Frame<HostPhys>),
    /// The frame is not allocated: freed twice, or never given.
    NotOwned(Frame<HostPhys>),
    /// The frame is another's, or its owner has already released it.
    WrongOwner(Frame<HostPhys>),
    /// The frame is still pinned, and was to be freed at once.
    Pinned(Frame<HostPhys>),
    /// A pin was dropped that nobody held.
    NotPinned(Frame<HostPhys>),
    /// A range to be reserved is already in use.
    InUse(Frame<HostPhys>),
    /// A frame to be unreserved is not reserved.
    NotReserved(Frame<HostPhys>),
}

/// What became of a frame that its owner released, or whose pin was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// It is free.
    Freed,
    /// Somebody still holds it; it will be free when the last one lets go.
    StillHeld,
}

/// Numbers for reports, all in frames. Not a snapshot of one moment where other CPUs allocate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// RAM given to the allocator, reserved frames not counted.
    pub total: u64,
    /// Reserved at boot.
    pub reserved: u64,
    /// Free, altogether.
    pub free: u64,
    /// Free below 16 MiB; from there to 4 GiB; above 4 GiB.
    pub free_by_zone: [u64; 3],
    /// Free blocks of each order.
    pub blocks: [u32; ORDERS],
}

/// The allocator. `'t` is the life of the tables, `'static` outside tests.
#[derive(Debug)]
pub struct FrameAllocator<'t> {
    table: &'t [FrameEntry],
    accounts: Accounts<'t>,
    /// No interrupt handler allocates, so interrupts may stay on.
    buddy: IrqLock<Buddy, NoIrq>,
    total: AtomicU64,
    reserved: AtomicU64,
}

impl<'t> FrameAllocator<'t> {
    /// An allocator with no memory yet. `table` has one zeroed entry per frame from frame 0 up to the
    /// last that is to be managed (entries beyond [`MAX_FRAMES`] are not used); `accounts` one zeroed
    /// account per possible domain id from 0 up.
    pub fn new(table: &'t [FrameEntry], accounts: &'t [Account]) -> Self {
        let used = table.len().min(MAX_FRAMES as usize);
        Self {
            table: &table[..used],
            accounts: Accounts::new(accounts),
            buddy: IrqLock::new(Buddy::new()),
            total: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
        }
    }

    /// Bytes that a table for RAM up to `end` (exclusive) takes.
    pub const fn table_bytes(end: addr::Hpa) -> u64 {
        end.raw().div_ceil(PAGE_SIZE) * size_of::<FrameEntry>() as u64
    }

    /// Gives the allocator RAM: those whole frames of `ram` that are inside the table and about which
    /// nothing is known yet. Frames that were added or reserved before stay as they are, so that
    /// overlapping firmware ranges do no harm. Returns how many frames became free.
    pub fn add_range(&self, ram: Range<HostPhys>) -> u64 {
        let first = ram.start().raw().div_ceil(PAGE_SIZE);
        let end = (ram.end().raw() >> PAGE_SHIFT).min(self.table.len() as u64);
        self.free_those(first, end, |word| word == Word::Absent)
    }

    /// Sets apart every frame that `range` touches, free or unknown, whether or not it is RAM. A frame
    /// reserved before keeps its first reason. Fails, with nothing changed, if one of them is allocated.
    pub fn reserve(&self, range: Range<HostPhys>, reason: Reason) -> Result<(), FrameBug> {
        let first = range.start().raw() >> PAGE_SHIFT;
        let end = range.end().raw().div_ceil(PAGE_SIZE).min(self.table.len() as u64);
        let mut buddy = self.buddy.lock();
        let in_use = |&at: &u64| matches!(self.entry(at).get(), Word::Owned { .. } | Word::Busy);
        if let Some(at) = (first..end).find(in_use) {
            return Err(FrameBug::InUse(Frame::new(at)));
        }
        let mut at = first;
        while at < end {
            let Some((start, order)) = buddy.containing(self.table, at) else {
                if self.entry(at).get() == Word::Absent {
                    self.entry(at).set(Word::Reserved(reason));
                    self.reserved.fetch_add(1, Relaxed);
                }
                at += 1;
                continue;
            };
            let block_end = start + (1 << order);
            let stop = block_end.min(end);
            buddy.unlink(self.table, start, order);
            buddy.insert_span(self.table, start, at);
            (at..stop).for_each(|n| self.entry(n).set(Word::Reserved(reason)));
            buddy.insert_span(self.table, stop, block_end);
            self.total.fetch_sub(stop - at, Relaxed);
            self.reserved.fetch_add(stop - at, Relaxed);
            at = stop;
        }
        Ok(())
    }

    /// Makes the whole frames of `range` ordinary free RAM; all must be reserved (a module that has been
    /// loaded, start-up code no longer needed). Returns how many.
    pub fn unreserve(&self, range: Range<HostPhys>) -> Result<u64, FrameBug> {
        let first = range.start().raw().div_ceil(PAGE_SIZE);
        let end = range.end().raw() >> PAGE_SHIFT;
        let reserved = |at: u64| matches!(self.get(at), Some(Word::Reserved(_)));
        if let Some(at) = (first..end).find(|&at| !reserved(at)) {
            return Err(FrameBug::NotReserved(Frame::new(at)));
        }
        let freed = self.free_those(first, end, |word| matches!(word, Word::Reserved(_)));
        self.reserved.fetch_sub(freed, Relaxed);
        Ok(freed)
    }

    /// Sets how much `owner` may have. Before this is called for a domain it may have nothing. Frames
    /// beyond a lowered limit stay, only no more are given. `false` if no such owner can be.
    pub fn set_limits(&self, owner: Owner, limits: Limits) -> bool {
        self.accounts.of(owner).map(|account| account.set_limits(limits)).is_some()
    }

    /// How many frames `owner` has. Frames it has released count until the last pin is gone.
    pub fn usage(&self, owner: Owner) -> Usage {
        self.accounts.of(owner).map(Account::usage).unwrap_or_default()
    }

    /// Counts `frames` of kind `kind` against the account of `owner` without allocating any: for memory of ours that
    /// is taken from a heap for the owner's sake. `false`: its limit is in the way.
    pub fn charge(&self, owner: Owner, kind: Kind, frames: u32) -> bool {
        self.accounts.of(owner).is_some_and(|account| account.charge(kind, frames))
    }

    /// Undoes as much of [`charge`](Self::charge).
    pub fn refund(&self, owner: Owner, kind: Kind, frames: u32) {
        if let Some(account) = self.accounts.of(owner) {
            account.refund(kind, frames);
        }
    }

    /// Allocates 2^`order` frames, aligned to their size, and returns the first. Each frame of the block
    /// can be pinned, released and freed by itself. The contents are whatever was there before.
    pub fn alloc(
        &self,
        order: u8,
        owner: Owner,
        kind: Kind,
        zone: Zone,
    ) -> Result<Frame<HostPhys>, AllocError> {
        if order > MAX_ORDER {
            return Err(AllocError::Order);
        }
        let account = self.accounts.of(owner).ok_or(AllocError::Quota)?;
        if !account.charge(kind, 1 << order) {
            return Err(AllocError::Quota);
        }
        let taken = self.buddy.lock().take(self.table, order, zone);
        let Some(start) = taken else {
            account.refund(kind, 1 << order);
            return Err(AllocError::NoMemory);
        };
        // Off the lists, the entries are ours alone: no need to hold the lock while writing up to 2^18.
        let word = Word::Owned { owner, kind, held: true, pins: 0 };
        (start..start + (1 << order)).for_each(|at| self.entry(at).set(word));
        Ok(Frame::new(start))
    }

    /// Frees 2^`order` frames at once; all must be `owner`'s, unreleased and without pins. For frames that
    /// nobody else can hold (our own memory, translation tables whose TLB debt is paid).
    pub fn free(&self, frame: Frame<HostPhys>, order: u8, owner: Owner) -> Result<(), FrameBug> {
        let frames = self.block(frame, order)?;
        let Word::Owned { kind, .. } = self.entry(frames.start).get() else {
            return Err(FrameBug::NotOwned(frame));
        };
        let expected = Word::Owned { owner, kind, held: true, pins: 0 };
        let claim = |at| self.update(Frame::new(at), |word| (word == expected).then_some(Word::Busy));
        for at in frames.clone() {
            if let Err(found) = claim(at) {
                // What was claimed so far is ours alone, so plain stores undo it.
                (frames.start..at).for_each(|done| self.entry(done).set(expected));
                return Err(match found {
                    Some(Word::Owned { owner: is, held: true, pins: 1.., .. }) if is == owner => {
                        FrameBug::Pinned(Frame::new(at))
                    }
                    Some(Word::Owned { .. }) => FrameBug::WrongOwner(Frame::new(at)),
                    _ => FrameBug::NotOwned(Frame::new(at)),
                });
            }
        }
        self.give_back(frames, owner, kind);
        Ok(())
    }

    /// Takes a pin: the frame stays `owner`'s until [`put_ref`](Self::put_ref). Fails if `owner` does not
    /// have the frame, has released it, if no guest may reach a frame of this kind, or if it has 2^32 - 1
    /// pins.
    #[must_use]
    pub fn get_ref(&self, frame: Frame<HostPhys>, owner: Owner) -> bool {
        self.known(frame).is_some_and(|entry| entry.pin(owner))
    }

    /// Takes one more pin of a frame on which the caller already has one, released by its owner or not.
    #[must_use]
    pub fn dup_ref(&self, frame: Frame<HostPhys>) -> bool {
        self.known(frame).is_some_and(FrameEntry::pin_again)
    }

    /// Drops a pin. The last pin of a released frame frees it.
    pub fn put_ref(&self, frame: Frame<HostPhys>) -> Result<Released, FrameBug> {
        if self.known(frame).is_some_and(FrameEntry::unpin) {
            return Ok(Released::StillHeld);
        }
        let old = self.update(frame, |word| match word {
            Word::Owned { held: false, pins: 1, .. } => Some(Word::Busy),
            Word::Owned { owner, kind, held, pins: pins @ 1.. } => {
                Some(Word::Owned { owner, kind, held, pins: pins - 1 })
            }
            _ => None,
        });
        match old {
            Ok(Word::Owned { owner, kind, held: false, pins: 1 }) => {
                self.give_back(frame.number()..frame.number() + 1, owner, kind);
                Ok(Released::Freed)
            }
            Ok(_) => Ok(Released::StillHeld),
            Err(Some(Word::Owned { .. })) => Err(FrameBug::NotPinned(frame)),
            Err(Some(_)) => Err(FrameBug::NotOwned(frame)),
            Err(None) => Err(FrameBug::Range(frame)),
        }
    }

    /// The owner gives up one frame; it is freed now, or with its last pin.
    pub fn release(&self, frame: Frame<HostPhys>, owner: Owner) -> Result<Released, FrameBug> {
        let old = self.update(frame, |word| match word {
            Word::Owned { owner: is, held: true, pins: 0, .. } if is == owner => Some(Word::Busy),
            Word::Owned { owner: is, kind, held: true, pins } if is == owner => {
                Some(Word::Owned { owner, kind, held: false, pins })
            }
            _ => None,
        });
        match old {
            Ok(Word::Owned { kind, pins: 0, .. }) => {
                self.give_back(frame.number()..frame.number() + 1, owner, kind);
                Ok(Released::Freed)
            }
            Ok(_) => Ok(Released::StillHeld),
            Err(Some(Word::Owned { .. })) => Err(FrameBug::WrongOwner(frame)),
            Err(Some(_)) => Err(FrameBug::NotOwned(frame)),
            Err(None) => Err(FrameBug::Range(frame)),
        }
    }

    /// The owner gives up a block of 2^`order` frames, pinned or not; what has no pins is freed. On an
    /// error the frames before the one named are released, the others untouched.
    pub fn release_block(
        &self,
        frame: Frame<HostPhys>,
        order: u8,
        owner: Owner,
    ) -> Result<Released, FrameBug> {
        // The usual case: nobody else holds any of it, and it goes back in one piece.
        if self.free(frame, order, owner).is_ok() {
            return Ok(Released::Freed);
        }
        let mut all = Released::Freed;
        for at in self.block(frame, order)? {
            if self.release(Frame::new(at), owner)? == Released::StillHeld {
                all = Released::StillHeld;
            }
        }
        Ok(all)
    }

    /// Who has the frame; `None` if it is not allocated. A released frame that is still pinned counts as
    /// its last owner's.
    pub fn owner(&self, frame: Frame<HostPhys>) -> Option<Owner> {
        match self.get(frame.number()) {
            Some(Word::Owned { owner, .. }) => Some(owner),
            _ => None,
        }
    }

    /// Everything known about a frame.
    pub fn state(&self, frame: Frame<HostPhys>) -> FrameState {
        self.table.get(frame.number() as usize).map_or(FrameState::Absent, FrameEntry::state)
    }

    /// The first frame from `from` on, within `span` frames, that `owner` still claims: for taking a dead
    /// domain's memory back, and for finding what it leaked, in steps of bounded length.
    pub fn next_owned(&self, owner: Owner, from: Frame<HostPhys>, span: u64) -> Option<Frame<HostPhys>> {
        let end = from.number().saturating_add(span).min(self.table.len() as u64);
        (from.number()..end)
            .find(
                |&at| matches!(self.entry(at).get(), Word::Owned { owner: is, held: true, .. } if is == owner),
            )
            .map(Frame::new)
    }

    /// How many frames the table covers, from frame 0 up.
    pub fn frames(&self) -> u64 {
        self.table.len() as u64
    }

    /// Numbers for reports.
    pub fn stats(&self) -> Stats {
        let buddy = self.buddy.lock();
        let free_by_zone = buddy.free_by_zone();
        Stats {
            total: self.total.load(Relaxed),
            reserved: self.reserved.load(Relaxed),
            free: free_by_zone.iter().sum(),
            free_by_zone,
            blocks: buddy.blocks_by_order(),
        }
    }

    /// Puts frames that this CPU has made [`Word::Busy`] on the free lists.
    fn give_back(&self, frames: core::ops::Range<u64>, owner: Owner, kind: Kind) {
        if let Some(account) = self.accounts.of(owner) {
            account.refund(kind, (frames.end - frames.start) as u32);
        }
        frames.clone().for_each(|at| self.entry(at).set(Word::FreeBody));
        self.buddy.lock().insert_span(self.table, frames.start, frames.end);
    }

    /// Frees those of the frames `from..to` whose entry is one of `which`.
    fn free_those(&self, from: u64, to: u64, which: impl Fn(Word) -> bool) -> u64 {
        let mut buddy = self.buddy.lock();
        let (mut at, mut freed) = (from, 0);
        while at < to {
            let start = at;
            while at < to && which(self.entry(at).get()) {
                self.entry(at).set(Word::FreeBody);
                at += 1;
            }
            buddy.insert_span(self.table, start, at);
            freed += at - start;
            at = at.max(start + 1);
        }
        self.total.fetch_add(freed, Relaxed);
        freed
    }

    /// `at` must be below [`Self::frames`].
    fn entry(&self, at: u64) -> &FrameEntry {
        &self.table[at as usize]
    }

    fn get(&self, at: u64) -> Option<Word> {
        Some(self.table.get(usize::try_from(at).ok()?)?.get())
    }

    #[inline]
    fn known(&self, frame: Frame<HostPhys>) -> Option<&FrameEntry> {
        self.table.get(usize::try_from(frame.number()).ok()?)
    }

    /// Changes an entry by `f` until no other CPU interferes. `Ok` holds the old word; `Err` holds the
    /// word that `f` refused, or nothing where there is no such frame.
    fn update(&self, frame: Frame<HostPhys>, f: impl Fn(Word) -> Option<Word>) -> Result<Word, Option<Word>> {
        let entry = self.known(frame).ok_or(None)?;
        let mut old = entry.get();
        loop {
            match entry.replace(old, f(old).ok_or(Some(old))?) {
                Ok(()) => return Ok(old),
                Err(found) => old = found,
            }
        }
    }

    /// The frames of an aligned block inside the table.
    fn block(&self, frame: Frame<HostPhys>, order: u8) -> Result<core::ops::Range<u64>, FrameBug> {
        let start = frame.number();
        if order > MAX_ORDER || start & ((1 << order) - 1) != 0 {
            return Err(FrameBug::Range(frame));
        }
        match start.checked_add(1 << order) {
            Some(end) if end <= self.table.len() as u64 => Ok(start..end),
            _ => Err(FrameBug::Range(frame)),
        }
    }
}
