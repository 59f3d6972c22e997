//! One frame's entry: 8 bytes that are either a link of a free list or an owner with a count.

use core::sync::atomic::{AtomicU64, Ordering};

/// Who owns a frame: a domain id, or [`Owner::HYPERVISOR`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner(pub u16);

impl Owner {
    /// Testudo itself. The number is that of `DOMID_XEN` (Xen public header `xen.h`), which no domain has.
    pub const HYPERVISOR: Owner = Owner(0x7ff2);
}

/// What an allocated frame is used as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Testudo's own data (heap, per-CPU areas), never reachable by a guest.
    Hypervisor = 0,
    /// RAM of a domain: what its guest-physical memory is made of.
    DomainRam = 1,
    /// A page of translation tables, built for the owner and charged to it, never reachable by it.
    Table = 2,
    /// A page of ours that the owner may map (shared info, grant table).
    Shared = 3,
}

impl Kind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Kind; 4] = [Kind::Hypervisor, Kind::DomainRam, Kind::Table, Kind::Shared];

    /// Whether a guest may be given this frame, and so whether it can be pinned for a guest's sake.
    pub const fn guest_visible(self) -> bool {
        matches!(self, Kind::DomainRam | Kind::Shared)
    }
}

/// Why a frame is reserved: shown in reports, and nothing depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// The firmware's: ACPI tables, legacy areas.
    Firmware = 0,
    /// Testudo's own image.
    Image = 1,
    /// A boot module (kernel, initrd).
    Module = 2,
    /// Boot-time tables: this frame table, the first page tables.
    BootTable = 3,
    /// Memory with a fault, or otherwise not to be used.
    Bad = 4,
}

impl Reason {
    const ALL: [Reason; 5] =
        [Reason::Firmware, Reason::Image, Reason::Module, Reason::BootTable, Reason::Bad];
}

/// What one frame is, as of the moment of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameState {
    /// No RAM that we may use, or beyond the table.
    Absent,
    /// On a free list, as part of some block.
    Free,
    /// On its way to or from a free list.
    Busy,
    /// Set apart at boot.
    Reserved(Reason),
    /// Allocated.
    Owned {
        /// Whose it is (or was, while pins remain after the release).
        owner: Owner,
        /// What it is used as.
        kind: Kind,
        /// Whether the owner still claims it.
        held: bool,
        /// How many pins it has.
        pins: u32,
    },
}

/// The state of one frame. All-zero bytes are a valid entry (absent), so a table may be made from zeroed
/// memory of 8 bytes per frame.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct FrameEntry(AtomicU64);

/// "No frame" in a link.
pub(super) const NIL: u32 = (1 << 30) - 1;
const LINK: u64 = NIL as u64;

/// The decoded entry. What a free-list entry holds depends on the block's order, because a single frame
/// has one entry for both links and a larger block has several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// All zeroes.
    Absent,
    /// In a free block, neither first nor second.
    FreeBody,
    /// A free block of order 0.
    FreeOne { prev: u32, next: u32 },
    /// First entry of a free block of order ≥ 1.
    FreeHead { order: u8, next: u32 },
    /// Second entry of a free block of order ≥ 1.
    FreePrev { prev: u32 },
    /// Between the states, belonging to one CPU.
    Busy,
    /// See [`Reason`].
    Reserved(Reason),
    /// See [`FrameState::Owned`].
    Owned { owner: Owner, kind: Kind, held: bool, pins: u32 },
}

/// Bits 63:60 say which form the entry has.
mod tag {
    pub const ABSENT: u64 = 0;
    pub const FREE_BODY: u64 = 1; //                                  (nothing)
    pub const FREE_ONE: u64 = 2; //  prev 59:30        next 29:0
    pub const FREE_HEAD: u64 = 3; // order 34:30       next 29:0
    pub const FREE_PREV: u64 = 4; //                   prev 29:0
    pub const BUSY: u64 = 5; //                                       (nothing)
    pub const RESERVED: u64 = 6; //  reason 3:0
    pub const OWNED: u64 = 7; //     kind 59:56  held 48  owner 47:32  pins 31:0
}

/// In an owned entry, that the owner still claims the frame.
const HELD: u64 = 1 << 48;
/// Where an owned entry has its pins.
const PINS: u64 = u32::MAX as u64;

impl Word {
    #[inline]
    pub(super) fn encode(self) -> u64 {
        let (tag, body) = match self {
            Word::Absent => (tag::ABSENT, 0),
            Word::FreeBody => (tag::FREE_BODY, 0),
            Word::FreeOne { prev, next } => (tag::FREE_ONE, u64::from(prev) << 30 | u64::from(next)),
            Word::FreeHead { order, next } => (tag::FREE_HEAD, u64::from(order) << 30 | u64::from(next)),
            Word::FreePrev { prev } => (tag::FREE_PREV, prev.into()),
            Word::Busy => (tag::BUSY, 0),
            Word::Reserved(reason) => (tag::RESERVED, reason as u64),
            Word::Owned { owner, kind, held, pins } => (
                tag::OWNED,
                (kind as u64) << 56 | u64::from(held) << 48 | u64::from(owner.0) << 32 | u64::from(pins),
            ),
        };
        tag << 60 | body
    }

    pub(super) fn decode(raw: u64) -> Word {
        let link = |shift: u32| ((raw >> shift) & LINK) as u32;
        match raw >> 60 {
            tag::FREE_BODY => Word::FreeBody,
            tag::FREE_ONE => Word::FreeOne { prev: link(30), next: link(0) },
            tag::FREE_HEAD => Word::FreeHead { order: (raw >> 30 & 0x1f) as u8, next: link(0) },
            tag::FREE_PREV => Word::FreePrev { prev: link(0) },
            tag::BUSY => Word::Busy,
            tag::RESERVED => Word::Reserved(*Reason::ALL.get((raw & 0xf) as usize).unwrap_or(&Reason::Bad)),
            tag::OWNED => Word::Owned {
                owner: Owner((raw >> 32) as u16),
                kind: Kind::ALL[(raw >> 56 & 3) as usize],
                held: raw >> 48 & 1 == 1,
                pins: raw as u32,
            },
            _ => Word::Absent,
        }
    }
}

impl FrameEntry {
    /// An entry that describes no RAM.
    pub const fn absent() -> Self {
        Self(AtomicU64::new(0))
    }
    pub(super) fn get(&self) -> Word {
        Word::decode(self.0.load(Ordering::Acquire))
    }
    pub(super) fn set(&self, word: Word) {
        self.0.store(word.encode(), Ordering::Release);
    }
    /// Replaces `old` by `new`; `Err` holds what was found instead.
    pub(super) fn replace(&self, old: Word, new: Word) -> Result<(), Word> {
        self.0
            .compare_exchange_weak(old.encode(), new.encode(), Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
            .map_err(Word::decode)
    }
    /// One pin more, if `owner` has the frame, has not released it, and a guest may be given its kind. As all other
    /// pinning this works on the encoded entry, of which only the count changes: it is done for each page of a
    /// guest's tables that is looked at.
    #[inline]
    pub(super) fn pin(&self, owner: Owner) -> bool {
        let free_of_pins = |kind| Word::Owned { owner, kind, held: true, pins: 0 }.encode();
        let (ram, shared) = (free_of_pins(Kind::DomainRam), free_of_pins(Kind::Shared));
        self.recount(|raw| {
            let rest = raw & !PINS;
            ((rest == ram || rest == shared) && raw & PINS != PINS).then(|| raw + 1)
        })
    }
    /// One pin more, if the frame has one.
    #[inline]
    pub(super) fn pin_again(&self) -> bool {
        self.recount(|raw| (raw >> 60 == tag::OWNED && !matches!(raw & PINS, 0 | PINS)).then(|| raw + 1))
    }
    /// One pin less, if something keeps the frame after that: another pin, or its owner.
    #[inline]
    pub(super) fn unpin(&self) -> bool {
        self.recount(|raw| {
            let least = if raw & HELD != 0 { 1 } else { 2 };
            (raw >> 60 == tag::OWNED && raw & PINS >= least).then(|| raw - 1)
        })
    }
    #[inline]
    fn recount(&self, change: impl Fn(u64) -> Option<u64>) -> bool {
        let mut old = self.0.load(Ordering::Acquire);
        loop {
            let Some(new) = change(old) else { return false };
            match self.0.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(found) => old = found,
            }
        }
    }
    /// What the frame is at this moment.
    pub fn state(&self) -> FrameState {
        match self.get() {
            Word::Absent => FrameState::Absent,
            Word::FreeBody | Word::FreeOne { .. } | Word::FreeHead { .. } | Word::FreePrev { .. } => {
                FrameState::Free
            }
            Word::Busy => FrameState::Busy,
            Word::Reserved(reason) => FrameState::Reserved(reason),
            Word::Owned { owner, kind, held, pins } => FrameState::Owned { owner, kind, held, pins },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_survives_encoding() {
        let words = [
            Word::Absent,
            Word::FreeBody,
            Word::FreeOne { prev: NIL, next: 0 },
            Word::FreeOne { prev: 0, next: NIL },
            Word::FreeHead { order: 18, next: NIL },
            Word::FreeHead { order: 1, next: 12345 },
            Word::FreePrev { prev: NIL },
            Word::Busy,
            Word::Reserved(Reason::Module),
            Word::Owned { owner: Owner(0xffff), kind: Kind::Shared, held: true, pins: u32::MAX },
            Word::Owned { owner: Owner(0), kind: Kind::Hypervisor, held: false, pins: 0 },
        ];
        for word in words {
            assert_eq!(Word::decode(word.encode()), word);
        }
        assert_eq!(Word::Absent.encode(), 0, "zeroed memory must be an empty table");
    }

    #[test]
    fn only_what_is_owned_is_pinned_and_only_the_count_changes() {
        let entry = FrameEntry::absent();
        let owned = |kind, held, pins| Word::Owned { owner: Owner(7), kind, held, pins };
        // Before, after a pin for the owner, after one more pin, after one less.
        let no = None;
        let cases = [
            (Word::Absent, no, no, no),
            (Word::Busy, no, no, no),
            (Word::FreeOne { prev: 1, next: 1 }, no, no, no),
            (Word::FreeHead { order: 1, next: 2 }, no, no, no),
            (Word::Reserved(Reason::Module), no, no, no),
            (owned(Kind::Hypervisor, true, 1), no, Some(2), Some(0)),
            (owned(Kind::Table, true, 0), no, no, no),
            (owned(Kind::DomainRam, true, 0), Some(1), no, no),
            (owned(Kind::Shared, true, 4), Some(5), Some(5), Some(3)),
            (owned(Kind::DomainRam, false, 2), no, Some(3), Some(1)),
            (owned(Kind::DomainRam, false, 1), no, Some(2), no),
            (owned(Kind::DomainRam, true, u32::MAX), no, no, Some(u32::MAX - 1)),
        ];
        for (word, pin, again, unpin) in cases {
            let with = |pins| match word {
                Word::Owned { owner, kind, held, .. } => Word::Owned { owner, kind, held, pins },
                other => other,
            };
            type Act = fn(&FrameEntry) -> bool;
            let acts: [(Act, Option<u32>); 3] = [
                (|entry| entry.pin(Owner(7)), pin),
                (FrameEntry::pin_again, again),
                (FrameEntry::unpin, unpin),
            ];
            for (n, (act, wanted)) in acts.into_iter().enumerate() {
                entry.set(word);
                assert_eq!(act(&entry), wanted.is_some(), "{word:?}, act {n}");
                assert_eq!(entry.get(), wanted.map_or(word, with), "{word:?}, act {n}");
            }
            entry.set(word);
            assert!(!entry.pin(Owner(8)), "{word:?} is not theirs");
        }
    }

    #[test]
    fn an_entry_is_eight_bytes() {
        assert_eq!(size_of::<FrameEntry>(), 8);
    }
}
