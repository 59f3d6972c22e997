//! The trace ring: the last events of one CPU, in fixed-size records, oldest overwritten.

use super::Level;
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering};

/// What a record is about. An open set: the architecture adds numbers of its own from 128 up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(pub u8);

impl Kind {
    /// The guest was left: `code` exit code, `a` instruction pointer, `b` exit qualification.
    pub const EXIT: Kind = Kind(1);
    /// The guest is entered: `a` instruction pointer.
    pub const ENTRY: Kind = Kind(2);
    /// An exit of L2 was given to L1: `code` exit code.
    pub const REFLECT: Kind = Kind(3);
    /// L1 entered L2: `a` the guest-physical address of its control block.
    pub const NESTED_ENTRY: Kind = Kind(4);
    /// An event was injected: `code` as the hardware encodes it.
    pub const INJECT: Kind = Kind(5);
    /// A hypercall: `code` number, `a` first argument, `b` result.
    pub const HYPERCALL: Kind = Kind(6);
    /// The scheduler put another vCPU on this CPU.
    pub const SWITCH: Kind = Kind(7);
    /// A shootdown was paid: `code` how many CPUs were waited for.
    pub const FLUSH: Kind = Kind(8);
}

/// One event, 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Time stamp counter (or the architecture's nearest thing).
    pub tsc: u64,
    /// Which vCPU; the upper byte may carry the low byte of the domain.
    pub vcpu: u16,
    /// Who was running.
    pub level: Level,
    /// What it is about.
    pub kind: Kind,
    /// By [`Kind`].
    pub code: u32,
    /// By [`Kind`].
    pub a: u64,
    /// By [`Kind`].
    pub b: u64,
}

impl Record {
    const WORDS: usize = 4;

    fn encode(&self) -> [u64; Self::WORDS] {
        let id = u64::from(self.vcpu) | (self.level as u64) << 16 | u64::from(self.kind.0) << 24;
        [self.tsc, id | u64::from(self.code) << 32, self.a, self.b]
    }
    fn decode([tsc, id, a, b]: [u64; Self::WORDS]) -> Self {
        Self {
            tsc,
            vcpu: id as u16,
            level: Level::of(id >> 16 & 1 == 1),
            kind: Kind((id >> 24) as u8),
            code: (id >> 32) as u32,
            a,
            b,
        }
    }
}

/// The ring of one CPU. Only that CPU pushes, not from within an interrupt of its own push (an NMI may
/// spoil one record). Anyone may read.
#[derive(Debug)]
pub struct TraceRing {
    slots: Box<[[AtomicU64; Record::WORDS]]>,
    /// Records pushed since the start; the next goes to slot `pushed` modulo the length.
    pushed: AtomicU64,
}

impl TraceRing {
    /// A ring of 2^`log2` records (2 at least, 2^20 at most), allocated here once.
    pub fn new(log2: u32) -> Self {
        let slot = || [const { AtomicU64::new(0) }; Record::WORDS];
        Self { slots: (0..1usize << log2.clamp(1, 20)).map(|_| slot()).collect(), pushed: AtomicU64::new(0) }
    }

    /// Records that fit.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Records ever pushed.
    pub fn pushed(&self) -> u64 {
        self.pushed.load(Ordering::Acquire)
    }

    /// Adds a record: two loads, a mask and five stores.
    #[inline]
    pub fn push(&self, record: Record) {
        let at = self.pushed.load(Ordering::Relaxed);
        // The length is a power of two, so the mask keeps the index inside.
        let slot = &self.slots[at as usize & (self.slots.len() - 1)];
        for (word, value) in slot.iter().zip(record.encode()) {
            // Release, so that who sees a word of this record sees `pushed` at least at its slot.
            word.store(value, Ordering::Release);
        }
        self.pushed.store(at.wrapping_add(1), Ordering::Release);
    }

    /// The last `n` records (or as many as there are, at most one less than the capacity), oldest first.
    /// Records that are overwritten while the iterator runs are left out.
    pub fn tail(&self, n: usize) -> impl Iterator<Item = Record> {
        let end = self.pushed();
        let len = self.slots.len() as u64;
        let start = end - end.min(len - 1).min(n as u64);
        (start..end).filter_map(move |at| {
            let slot = &self.slots[at as usize & (self.slots.len() - 1)];
            let words = core::array::from_fn(|i| slot[i].load(Ordering::Acquire));
            // The writer may be filling slot `pushed` now: a record a whole lap behind it is suspect.
            (self.pushed() - at < len).then(|| Record::decode(words))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn record(n: u64) -> Record {
        Record {
            tsc: n,
            vcpu: n as u16,
            level: Level::of(n % 2 == 1),
            kind: Kind(n as u8),
            code: (n as u32) ^ 0xffff_0000,
            a: !n,
            b: n << 32,
        }
    }

    #[test]
    fn records_come_back_as_they_went_in() {
        let ring = TraceRing::new(3);
        assert_eq!(ring.tail(5).count(), 0);
        (0..6).for_each(|n| ring.push(record(n)));
        assert_eq!(ring.tail(100).collect::<Vec<_>>(), (0..6).map(record).collect::<Vec<_>>());
        assert_eq!(ring.tail(2).collect::<Vec<_>>(), [record(4), record(5)]);
        assert_eq!(ring.tail(0).count(), 0);
    }

    #[test]
    fn the_oldest_are_overwritten() {
        let ring = TraceRing::new(3);
        (0..21).for_each(|n| ring.push(record(n)));
        assert_eq!(ring.tail(100).collect::<Vec<_>>(), (14..21).map(record).collect::<Vec<_>>());
        assert_eq!(ring.pushed(), 21);
    }

    #[test]
    fn a_reader_never_sees_half_a_record() {
        let ring = TraceRing::new(4);
        std::thread::scope(|s| {
            let writer = s.spawn(|| (0..200_000).for_each(|n| ring.push(record(n))));
            while !writer.is_finished() {
                let seen: Vec<_> = ring.tail(16).collect();
                assert!(seen.iter().all(|r| *r == record(r.tsc)), "{seen:?}");
                assert!(seen.windows(2).all(|w| w[0].tsc < w[1].tsc));
            }
        });
    }
}
