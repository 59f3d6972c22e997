//! What an entry of a stage-2 table says, apart from how a vendor spells it.

use addr::{Addr, Hpa, PageSize, Space};
use core::fmt;
use core::ops::{BitAnd, BitOr};

/// Access rights of a mapping: any of read, write, execute.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Perms(u8);

impl Perms {
    /// No access.
    pub const NONE: Self = Self(0);
    /// Read.
    pub const R: Self = Self(1);
    /// Write.
    pub const W: Self = Self(2);
    /// Execute.
    pub const X: Self = Self(4);
    /// Read and write.
    pub const RW: Self = Self(3);
    /// Read and execute.
    pub const RX: Self = Self(5);
    /// Everything.
    pub const RWX: Self = Self(7);

    /// Whether every right in `other` is in `self`.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
    /// Whether no right is left.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// `self` without the rights in `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
    /// `other` if `on`, else nothing: for `R | W.when(writable)`.
    pub const fn when(self, on: bool) -> Self {
        if on { self } else { Self::NONE }
    }
    /// The low three bits, R = 1, W = 2, X = 4.
    pub const fn bits(self) -> u8 {
        self.0
    }
    /// From [`Perms::bits`]; other bits are dropped.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & 7)
    }
}

impl BitOr for Perms {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
impl BitAnd for Perms {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}
impl fmt::Debug for Perms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = |right, c| if self.contains(right) { c } else { "-" };
        write!(f, "{}{}{}", mark(Self::R, "r"), mark(Self::W, "w"), mark(Self::X, "x"))
    }
}

/// The memory type a mapping asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemType {
    /// Write-back: RAM.
    WriteBack,
    /// Strongly uncached: device registers.
    Uncached,
}

/// A leaf: one page of guest address space and what stands behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First byte of the page, a multiple of `size`.
    pub hpa: Hpa,
    /// Size of the page.
    pub size: PageSize,
    /// Rights.
    pub perms: Perms,
    /// Memory type.
    pub memtype: MemType,
}

impl Mapping {
    /// Where `addr`, an input address in this page, lands.
    pub const fn at<S: Space>(&self, addr: Addr<S>) -> Hpa {
        Hpa::new(self.hpa.raw() | (addr.raw() & (self.size.bytes() - 1)))
    }
    /// The part of the page of size `size` that holds the input address `addr`: `self` if it is no
    /// larger than that.
    pub fn piece<S: Space>(&self, addr: Addr<S>, size: PageSize) -> Self {
        let size = size.min(self.size);
        Self { hpa: self.at(addr).align_down(size), size, ..*self }
    }
}

/// A decoded table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Maps nothing.
    Empty,
    /// Points to the table of the next lower level.
    Table {
        /// That table.
        next: Hpa,
        /// Rights that this entry leaves to all below it.
        perms: Perms,
    },
    /// Maps a page.
    Leaf(Mapping),
}

/// How a vendor spells stage-2 entries. Tables have 512 entries of 8 bytes, level 1 is the lowest, and a
/// zero entry maps nothing.
///
/// Encodings are canonical: entries made here are final, hardware finds nothing to set in them
/// (accessed and dirty bits are set from the start), so they may be replaced by plain stores and
/// compared by value.
pub trait Format: Copy + Send + Sync + 'static {
    /// Levels of a walk, 3 to 5; the root is a table of that level.
    fn levels(&self) -> u8;
    /// Largest page that the hardware knows.
    fn max_page(&self) -> PageSize;
    /// Whether a leaf can have exactly these rights.
    fn expressible(perms: Perms) -> bool;
    /// A leaf. `hpa` must be a multiple of `size`, `perms` expressible.
    fn leaf(mapping: &Mapping) -> u64;
    /// An entry that points to a table and leaves `perms` to all below it. Formats without hierarchical
    /// rights ignore `perms`.
    fn table(next: Hpa, perms: Perms) -> u64;
    /// What `entry`, read from a table of level `level`, says.
    fn decode(entry: u64, level: u8) -> Entry;

    /// Bits of an input address.
    fn input_bits(&self) -> u32 {
        level_shift(self.levels() + 1)
    }
}

/// log2 of the bytes that one entry of a table of level `level` spans.
pub(crate) const fn level_shift(level: u8) -> u32 {
    12 + 9 * (level as u32 - 1)
}

/// Index of `addr` in a table of level `level`.
pub(crate) const fn slot(addr: u64, level: u8) -> usize {
    (addr >> level_shift(level)) as usize & 511
}
