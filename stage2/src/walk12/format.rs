//! The four formats of page tables that an L1 may use for its nested paging, as tables of masks.
//! AMD64 APM vol. 2, "Legacy-Mode Page Translation", "Long-Mode Page Translation".

use crate::Perms;
use addr::{Frame, Gpa, GuestPage, GuestPhys, Ngpa, PageSize};

/// Levels and entry width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// 32-bit: two levels of 1024 entries of 4 bytes.
    TwoLevel,
    /// PAE: four pointers, then two levels of 512.
    Pae,
    /// Long mode, four levels.
    FourLevel,
    /// Long mode, five levels.
    FiveLevel,
}

const P: u64 = 1 << 0;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const NX: u64 = 1 << 63;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Bits `high..=low`.
const fn bits(high: u32, low: u32) -> u64 {
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

/// The regime of L1's nested tables: what L1's control registers were at VMRUN and what its CPUID says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Paging12 {
    shape: Shape,
    /// 32-bit only: 4 MiB pages.
    pse: bool,
    /// Bit 63 is no-execute; else it is reserved.
    nx: bool,
    smep: bool,
    pages_1g: bool,
    /// Physical address bits, 32..=52.
    maxphyaddr: u8,
    /// Bits reserved in every 8-byte entry, for the sake of speed: follows from the above.
    always_zero: u64,
}

/// An entry that points to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next12 {
    /// The table.
    pub frame: Frame<GuestPhys>,
    /// Rights left below it.
    pub perms: Perms,
    /// U is set.
    pub user: bool,
    /// A is set (always so where there is no such bit).
    pub accessed: bool,
}

/// An entry that maps a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf12 {
    /// First byte of the page.
    pub gpa: Gpa,
    /// Its size.
    pub size: PageSize,
    /// Rights.
    pub perms: Perms,
    /// U is set.
    pub user: bool,
    /// A is set.
    pub accessed: bool,
    /// D is set.
    pub dirty: bool,
}

/// A decoded entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry12 {
    /// P is clear.
    Empty,
    /// P and a reserved bit are set.
    Reserved,
    /// Points to a table.
    Table(Next12),
    /// Maps a page.
    Leaf(Leaf12),
}

impl Paging12 {
    /// The regime that L1's CR4 and EFER choose at VMRUN. `maxphyaddr` and `pages_1g` are what L1's CPUID
    /// says (8000_0008h EAX\[7:0\], clamped to 32..=52; 8000_0001h EDX\[26\]).
    pub fn from_host(cr4: u64, efer: u64, maxphyaddr: u8, pages_1g: bool) -> Self {
        let on = |word: u64, bit: u32| word & (1 << bit) != 0;
        let (pse, pae, la57, smep) = (on(cr4, 4), on(cr4, 5), on(cr4, 12), on(cr4, 20));
        let (lma, nxe) = (on(efer, 10), on(efer, 11));
        let shape = match (lma, la57, pae) {
            (true, true, _) => Shape::FiveLevel,
            (true, false, _) => Shape::FourLevel,
            (false, _, true) => Shape::Pae,
            (false, _, false) => Shape::TwoLevel,
        };
        let wide = !matches!(shape, Shape::TwoLevel);
        let maxphyaddr = maxphyaddr.clamp(32, 52);
        let nx = nxe && wide;
        let always_zero = if maxphyaddr < 52 { bits(51, maxphyaddr.into()) } else { 0 }
            | if nx { 0 } else { NX }
            | if shape == Shape::Pae { bits(62, 52) } else { 0 };
        Self { shape, pse, nx, smep, pages_1g: pages_1g && lma, maxphyaddr, always_zero }
    }

    /// Levels and entry width.
    pub const fn shape(&self) -> Shape {
        self.shape
    }
    /// Levels of a walk.
    pub const fn levels(&self) -> u8 {
        match self.shape {
            Shape::TwoLevel => 2,
            Shape::Pae => 3,
            Shape::FourLevel => 4,
            Shape::FiveLevel => 5,
        }
    }
    /// Bits of an L2-physical address.
    pub const fn input_bits(&self) -> u32 {
        match self.shape {
            Shape::TwoLevel | Shape::Pae => 32,
            Shape::FourLevel => 48,
            Shape::FiveLevel => 57,
        }
    }
    /// Whether faults report instruction fetches: with no-execute or SMEP.
    pub(super) const fn reports_fetch(&self) -> bool {
        self.nx || self.smep
    }

    /// Offset of the entry for `ngpa` from the start of its table, bytes.
    pub(super) const fn entry_offset(&self, ngpa: Ngpa, level: u8) -> usize {
        let n = ngpa.raw();
        let index = match (self.shape, level) {
            (Shape::TwoLevel, 1) => return ((n >> 12) as usize & 1023) * 4,
            (Shape::TwoLevel, _) => return ((n >> 22) as usize & 1023) * 4,
            (Shape::Pae, 3) => (n >> 30) as usize & 3,
            _ => crate::format::slot(n, level),
        };
        index * 8
    }

    /// Reads an entry, once.
    pub(crate) fn read(&self, page: &impl GuestPage, offset: usize) -> u64 {
        match self.shape {
            Shape::TwoLevel => page.read_u32(offset).into(),
            _ => page.read_u64(offset),
        }
    }
    /// Replaces an entry if it still is `old`.
    pub(super) fn compare_exchange(&self, page: &impl GuestPage, offset: usize, old: u64, new: u64) -> bool {
        match self.shape {
            Shape::TwoLevel => page.compare_exchange_u32(offset, old as u32, new as u32).is_ok(),
            _ => page.compare_exchange_u64(offset, old, new).is_ok(),
        }
    }
    /// `raw` with A set, and D if `dirty`. PAE's pointers have neither.
    pub(super) const fn marked(&self, raw: u64, level: u8, dirty: bool) -> u64 {
        match (self.shape, level) {
            (Shape::Pae, 3) => raw,
            _ => raw | A | if dirty { D } else { 0 },
        }
    }

    #[inline]
    const fn is_leaf(&self, raw: u64, level: u8) -> bool {
        match (self.shape, level) {
            (_, 1) => true,
            (Shape::TwoLevel, 2) => self.pse && raw & PS != 0,
            (_, 2) => raw & PS != 0,
            (Shape::FourLevel | Shape::FiveLevel, 3) => self.pages_1g && raw & PS != 0,
            _ => false,
        }
    }

    /// The bits that must be zero in a present entry.
    #[inline]
    const fn reserved(&self, level: u8, leaf: bool) -> u64 {
        if matches!(self.shape, Shape::TwoLevel) {
            // Bits 20:13 of a 4 MiB page are its address bits 39:32.
            let beyond = if self.maxphyaddr < 40 { bits(20, self.maxphyaddr as u32 - 19) } else { 0 };
            return if level == 2 && leaf { 1 << 21 | beyond } else { 0 };
        }
        self.always_zero
            | match (self.shape, level, leaf) {
                (Shape::Pae, 3, _) => NX | bits(8, 5) | bits(2, 1),
                (_, 3, true) => bits(29, 13),
                // Not a leaf though PS may be set: 1 GiB pages are not offered.
                (_, 3, false) => PS,
                (_, 2, true) => bits(20, 13),
                (_, 4 | 5, _) => bits(8, 7),
                _ => 0,
            }
    }

    /// What the entry `raw` of a table of level `level` says. `odd` is bit 21 of the input address: it
    /// picks the half of a 4 MiB page.
    #[inline]
    pub fn decode(&self, raw: u64, level: u8, odd: bool) -> Entry12 {
        if raw & P == 0 {
            return Entry12::Empty;
        }
        let leaf = self.is_leaf(raw, level);
        if raw & self.reserved(level, leaf) != 0 {
            return Entry12::Reserved;
        }
        let pointer = matches!((self.shape, level), (Shape::Pae, 3));
        let perms =
            Perms::R | Perms::W.when(pointer || raw & W != 0) | Perms::X.when(!self.nx || raw & NX == 0);
        let (user, accessed) = (pointer || raw & U != 0, pointer || raw & A != 0);
        if !leaf {
            return Entry12::Table(Next12 { frame: Gpa::new(raw & FRAME).frame(), perms, user, accessed });
        }
        let (size, gpa) = match level {
            1 => (PageSize::Size4K, raw & FRAME),
            2 if matches!(self.shape, Shape::TwoLevel) => {
                (PageSize::Size2M, (raw & bits(31, 22)) | (raw & bits(20, 13)) << 19 | u64::from(odd) << 21)
            }
            2 => (PageSize::Size2M, raw & bits(51, 21)),
            _ => (PageSize::Size1G, raw & bits(51, 30)),
        };
        Entry12::Leaf(Leaf12 { gpa: Gpa::new(gpa), size, perms, user, accessed, dirty: raw & D != 0 })
    }
}
