//! The trace ring: the last events of one CPU, in fixed-size records, oldest overwritten.
//!
//! # In memory
//! A ring is one piece of memory, so that it can be found in a dump and read without Testudo. All numbers are
//! little-endian.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | [`MAGIC`] |
//! | 8 | 4 | CPU |
//! | 12 | 4 | bytes of a record: 32 |
//! | 16 | 8 | records that fit: a power of two |
//! | 24 | 8 | bytes ever written; the next record goes to this number modulo the ring's size |
//! | 32 | 8 | frequency of the time stamps, kHz; 0: not known |
//! | 40 | 24 | 0 |
//! | 64 | 32 each | records |
//!
//! A record: 8 bytes time stamp; 2 bytes vCPU (the lower byte its number, the upper the lower byte of its
//! domain's; [`NOBODY`]: none); 1 byte [`Level`]; 1 byte [`Kind`]; 4 bytes `code`; 8 bytes `a`; 8 bytes `b`.

use super::Level;
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering};
use zerocopy::FromZeros;

/// The first bytes of a ring.
pub const MAGIC: [u8; 8] = *b"TESTTRC1";
/// [`Record::vcpu`] of what no vCPU did.
pub const NOBODY: u16 = 0xffff;

/// What a record is about. An open set: the architecture adds numbers of its own from 128 up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(pub u8);

impl Kind {
    /// The guest was left: `code` exit code, cut to 32 bits, `a` instruction pointer, `b` what qualifies the exit
    /// (SVM: EXITINFO1, but the address, EXITINFO2, of a nested page fault).
    pub const EXIT: Kind = Kind(1);
    /// The guest is entered: `code` the event that is injected as the hardware encodes it, without its error
    /// code, or 0; `a` instruction pointer; `b` the virtual interrupt controls.
    pub const ENTRY: Kind = Kind(2);
    /// An exit of L2 was given to L1: `code` exit code.
    pub const REFLECT: Kind = Kind(3);
    /// L1 entered L2: `a` the guest-physical address of its control block.
    pub const NESTED_ENTRY: Kind = Kind(4);
    /// A hypercall: `code` number, `a` first argument, `b` result.
    pub const HYPERCALL: Kind = Kind(5);
    /// The scheduler put the vCPU on this CPU.
    pub const SCHEDULE_IN: Kind = Kind(6);
    /// The vCPU left this CPU: `code` is why, in the order of [`crate::sched::WhyPut`].
    pub const SCHEDULE_OUT: Kind = Kind(7);
    /// Translations are flushed: `code` the CPU's number, `a` the new generation of the domain's tables.
    pub const FLUSH: Kind = Kind(8);
    /// A piece of a line of the log: `code` its bytes, at most 16, which are in `a` and `b`. A piece of less
    /// than 16 is a line's last one.
    pub const LOG: Kind = Kind(9);
}

/// One event, 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Time stamp counter (or the architecture's nearest thing).
    pub tsc: u64,
    /// Which vCPU: [`vcpu`], or [`NOBODY`].
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

/// How records name vCPU `vcpu` of domain `domain`.
pub const fn vcpu(domain: u16, vcpu: u32) -> u16 {
    (domain & 0xff) << 8 | (vcpu & 0xff) as u16
}

impl Record {
    const WORDS: usize = 4;
    const BYTES: u64 = 8 * Self::WORDS as u64;

    #[inline(always)]
    const fn encode(&self) -> [u64; Self::WORDS] {
        let id = self.vcpu as u64 | (self.level as u64) << 16 | (self.kind.0 as u64) << 24;
        [self.tsc, id | (self.code as u64) << 32, self.a, self.b]
    }
    const fn decode([tsc, id, a, b]: [u64; Self::WORDS]) -> Self {
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

/// The ring of one CPU, of `N` records (a power of two). Only that CPU pushes; what interrupts a push and
/// pushes itself (an interrupt handler that logs, an NMI) may spoil one record. Anyone may read.
#[derive(Debug, FromZeros)]
#[repr(C)]
pub struct TraceRing<const N: usize> {
    magic: AtomicU64,
    /// The CPU, and the bytes of a record.
    shape: AtomicU64,
    capacity: AtomicU64,
    written: AtomicU64,
    khz: AtomicU64,
    reserved: [AtomicU64; 3],
    slots: [[AtomicU64; Record::WORDS]; N],
}

impl<const N: usize> TraceRing<N> {
    /// An empty ring for CPU `cpu`, whose time stamps run at `khz`. `None`: no memory.
    pub fn new(cpu: u32, khz: u64) -> Option<Box<Self>> {
        const { assert!(N.is_power_of_two() && N > 1, "a ring's index is masked") };
        // Never on the stack: it is larger than a stack may be.
        let ring = Self::new_box_zeroed().ok()?;
        ring.shape.store(u64::from(cpu) | Record::BYTES << 32, Ordering::Relaxed);
        ring.capacity.store(N as u64, Ordering::Relaxed);
        ring.khz.store(khz, Ordering::Relaxed);
        ring.magic.store(u64::from_le_bytes(MAGIC), Ordering::Release);
        Some(ring)
    }

    /// Records ever pushed.
    pub fn pushed(&self) -> u64 {
        self.written.load(Ordering::Acquire) / Record::BYTES
    }

    /// Frequency of the time stamps, kHz; 0: not known.
    pub fn khz(&self) -> u64 {
        self.khz.load(Ordering::Relaxed)
    }

    /// Adds a record: a load, a mask and five stores.
    #[inline(always)]
    pub fn push(&self, record: Record) {
        let at = self.written.load(Ordering::Relaxed);
        let slot = &self.slots[Self::index(at)];
        let [tsc, id, a, b] = record.encode();
        // Release, so that who sees a word of this record sees `written` at least at its slot.
        slot[0].store(tsc, Ordering::Release);
        slot[1].store(id, Ordering::Release);
        slot[2].store(a, Ordering::Release);
        slot[3].store(b, Ordering::Release);
        self.written.store(at.wrapping_add(Record::BYTES), Ordering::Release);
    }

    #[inline(always)]
    const fn index(written: u64) -> usize {
        (written / Record::BYTES) as usize & (N - 1)
    }

    /// The last `n` records (or as many as there are, at most one less than fit), oldest first. Records that
    /// are overwritten while the iterator runs are left out.
    pub fn tail(&self, n: usize) -> impl Iterator<Item = Record> {
        let end = self.pushed();
        let len = N as u64;
        let start = end - end.min(len - 1).min(n as u64);
        (start..end).filter_map(move |at| {
            let slot = &self.slots[at as usize & (N - 1)];
            let words = core::array::from_fn(|i| slot[i].load(Ordering::Acquire));
            // The writer may be filling slot `pushed` now: a record a whole lap behind it is suspect.
            self.pushed().checked_sub(at).is_some_and(|newer| newer < len).then(|| Record::decode(words))
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

    fn ring<const N: usize>() -> Box<TraceRing<N>> {
        TraceRing::new(3, 1000).unwrap()
    }

    #[test]
    fn records_come_back_as_they_went_in() {
        let ring = ring::<8>();
        assert_eq!(ring.tail(5).count(), 0);
        (0..6).for_each(|n| ring.push(record(n)));
        assert_eq!(ring.tail(100).collect::<Vec<_>>(), (0..6).map(record).collect::<Vec<_>>());
        assert_eq!(ring.tail(2).collect::<Vec<_>>(), [record(4), record(5)]);
        assert_eq!(ring.tail(0).count(), 0);
    }

    #[test]
    fn the_oldest_are_overwritten() {
        let ring = ring::<8>();
        (0..21).for_each(|n| ring.push(record(n)));
        assert_eq!(ring.tail(100).collect::<Vec<_>>(), (14..21).map(record).collect::<Vec<_>>());
        assert_eq!(ring.pushed(), 21);
    }

    #[test]
    fn in_memory_it_is_as_documented() {
        let ring = ring::<4>();
        let event = Record {
            tsc: 0x0123_4567_89ab_cdef,
            vcpu: vcpu(0x102, 5),
            level: Level::L2,
            kind: Kind::HYPERCALL,
            code: 0x1d,
            a: 1,
            b: u64::MAX,
        };
        (0..5).for_each(|_| ring.push(event));
        let at = |words: &[AtomicU64]| {
            words.iter().flat_map(|w| w.load(Ordering::Relaxed).to_le_bytes()).collect::<Vec<u8>>()
        };
        assert_eq!(core::mem::offset_of!(TraceRing<4>, slots), 64);
        assert_eq!(core::mem::offset_of!(TraceRing<4>, written), 24);
        assert_eq!(size_of::<TraceRing<4>>(), 64 + 4 * 32);
        assert_eq!(ring.magic.load(Ordering::Relaxed).to_le_bytes(), *b"TESTTRC1");
        assert_eq!(ring.written.load(Ordering::Relaxed), 160);
        assert_eq!(ring.shape.load(Ordering::Relaxed), 3 | 32 << 32);
        let mut want = Vec::from([0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01]);
        want.extend([0x05, 0x02, 1, 5, 0x1d, 0, 0, 0]);
        want.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        want.extend([0xff; 8]);
        assert_eq!(at(&ring.slots[0]), want);
    }

    #[test]
    fn a_reader_never_sees_half_a_record() {
        let ring = ring::<16>();
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
