//! The address spaces and their value types.

use core::cmp::Ordering;
use core::fmt;
use core::hash::{Hash, Hasher};
use core::marker::PhantomData;

/// log2 of the smallest page, 4 KiB.
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in the smallest page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// An address space. Implemented by the markers behind [`Hpa`], [`Gpa`], [`Ngpa`] and [`Gva`].
pub trait Space: 'static {
    /// How an address of this space is named in a log line.
    const NAME: &'static str;
}

macro_rules! spaces {
    ($($(#[$doc:meta])* $marker:ident $alias:ident $name:literal;)*) => {$(
        #[doc = concat!("Marker of the space of [`", stringify!($alias), "`].")]
        #[derive(Debug)]
        pub enum $marker {}
        impl Space for $marker { const NAME: &'static str = $name; }
        $(#[$doc])*
        pub type $alias = Addr<$marker>;
    )*};
}

spaces! {
    /// Host physical: what the machine's memory bus sees.
    HostPhys Hpa "hpa";
    /// Guest physical of L1 (ARM calls it IPA).
    GuestPhys Gpa "gpa";
    /// Guest physical of L2: what L1 gives its own guest as physical memory.
    NestedPhys Ngpa "ngpa";
    /// Guest linear address, in whichever regime the vCPU runs.
    GuestVirt Gva "gva";
}

/// An address in the space `S`, in bytes.
pub struct Addr<S: Space>(u64, PhantomData<fn() -> S>);

/// A 4 KiB frame number in the space `S`.
pub struct Frame<S: Space>(u64, PhantomData<fn() -> S>);

macro_rules! value_type {
    ($ty:ident) => {
        impl<S: Space> Clone for $ty<S> {
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<S: Space> Copy for $ty<S> {}
        impl<S: Space> PartialEq for $ty<S> {
            fn eq(&self, other: &Self) -> bool {
                self.0 == other.0
            }
        }
        impl<S: Space> Eq for $ty<S> {}
        impl<S: Space> PartialOrd for $ty<S> {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }
        impl<S: Space> Ord for $ty<S> {
            fn cmp(&self, other: &Self) -> Ordering {
                self.0.cmp(&other.0)
            }
        }
        impl<S: Space> Hash for $ty<S> {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.0.hash(state);
            }
        }
        impl<S: Space> fmt::LowerHex for $ty<S> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}
value_type!(Addr);
value_type!(Frame);

impl<S: Space> Addr<S> {
    /// The address zero.
    pub const ZERO: Self = Self::new(0);

    /// An address from its number.
    pub const fn new(raw: u64) -> Self {
        Self(raw, PhantomData)
    }
    /// The number.
    pub const fn raw(self) -> u64 {
        self.0
    }
    /// The 4 KiB frame that holds this byte.
    pub const fn frame(self) -> Frame<S> {
        Frame::new(self.0 >> PAGE_SHIFT)
    }
    /// Offset within the 4 KiB frame.
    pub const fn page_offset(self) -> usize {
        (self.0 & (PAGE_SIZE - 1)) as usize
    }
    /// Rounded down to a multiple of `size`.
    pub const fn align_down(self, size: PageSize) -> Self {
        Self::new(self.0 & !(size.bytes() - 1))
    }
    /// Rounded up to a multiple of `size`; `None` past the end of the space.
    pub fn align_up(self, size: PageSize) -> Option<Self> {
        Some(Self::new(self.0.checked_add(size.bytes() - 1)? & !(size.bytes() - 1)))
    }
    /// Whether the address is a multiple of `size`.
    pub const fn is_aligned(self, size: PageSize) -> bool {
        self.0 & (size.bytes() - 1) == 0
    }
    /// The address `n` bytes further on; `None` past the end of the space.
    pub const fn checked_add(self, n: u64) -> Option<Self> {
        match self.0.checked_add(n) {
            Some(raw) => Some(Self::new(raw)),
            None => None,
        }
    }
    /// The address `n` bytes further on, modulo 2^64 (as hardware computes linear addresses).
    pub const fn wrapping_add(self, n: u64) -> Self {
        Self::new(self.0.wrapping_add(n))
    }
}

impl<S: Space> Frame<S> {
    /// A frame from its number.
    pub const fn new(number: u64) -> Self {
        Self(number, PhantomData)
    }
    /// The frame number.
    pub const fn number(self) -> u64 {
        self.0
    }
    /// Address of the frame's first byte. Frame numbers above 2^52 wrap, as no machine has them.
    pub const fn start(self) -> Addr<S> {
        Addr::new(self.0 << PAGE_SHIFT)
    }
    /// The frame `n` further on.
    pub const fn wrapping_add(self, n: u64) -> Self {
        Self::new(self.0.wrapping_add(n))
    }
}

impl<S: Space> fmt::Debug for Addr<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:#x}", S::NAME, self.0)
    }
}
impl<S: Space> fmt::Display for Addr<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
impl<S: Space> fmt::Debug for Frame<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-frame:{:#x}", S::NAME, self.0)
    }
}

/// The three page sizes that EPT, NPT and VMSAv8 (4 KiB granule) share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB, a leaf at level 1.
    Size4K,
    /// 2 MiB, a leaf at level 2.
    Size2M,
    /// 1 GiB, a leaf at level 3.
    Size1G,
}

impl PageSize {
    /// Largest first, for "as big as fits" loops.
    pub const LARGEST_FIRST: [PageSize; 3] = [PageSize::Size1G, PageSize::Size2M, PageSize::Size4K];

    /// log2 of the size.
    pub const fn shift(self) -> u32 {
        match self {
            PageSize::Size4K => 12,
            PageSize::Size2M => 21,
            PageSize::Size1G => 30,
        }
    }
    /// Bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }
    /// The table level whose leaf has this size: 1, 2 or 3.
    pub const fn level(self) -> u8 {
        match self {
            PageSize::Size4K => 1,
            PageSize::Size2M => 2,
            PageSize::Size1G => 3,
        }
    }
    /// The size of a leaf at `level`; `None` where no leaf can be.
    pub const fn of_level(level: u8) -> Option<Self> {
        match level {
            1 => Some(PageSize::Size4K),
            2 => Some(PageSize::Size2M),
            3 => Some(PageSize::Size1G),
            _ => None,
        }
    }
}

/// A half-open range of addresses `start..end`, never inverted.
pub struct Range<S: Space> {
    start: Addr<S>,
    end: Addr<S>,
}

impl<S: Space> Clone for Range<S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Space> Copy for Range<S> {}
impl<S: Space> PartialEq for Range<S> {
    fn eq(&self, other: &Self) -> bool {
        (self.start, self.end) == (other.start, other.end)
    }
}
impl<S: Space> Eq for Range<S> {}
impl<S: Space> fmt::Debug for Range<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:#x}..{:#x}", S::NAME, self.start.raw(), self.end.raw())
    }
}

impl<S: Space> Range<S> {
    /// The range from `start` of `bytes` bytes; `None` if it runs past the end of the space.
    pub fn new(start: Addr<S>, bytes: u64) -> Option<Self> {
        Some(Self { start, end: start.checked_add(bytes)? })
    }
    /// First address.
    pub const fn start(&self) -> Addr<S> {
        self.start
    }
    /// First address behind the range.
    pub const fn end(&self) -> Addr<S> {
        self.end
    }
    /// Bytes in the range.
    pub const fn bytes(&self) -> u64 {
        self.end.raw() - self.start.raw()
    }
    /// Whether `addr` lies inside.
    pub fn contains(&self, addr: Addr<S>) -> bool {
        self.start <= addr && addr < self.end
    }
    /// Whether the two share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_stops_at_the_end_of_the_space() {
        assert_eq!(Gpa::new(0x1fff).align_down(PageSize::Size4K), Gpa::new(0x1000));
        assert_eq!(Gpa::new(0x1001).align_up(PageSize::Size2M), Some(Gpa::new(0x20_0000)));
        assert_eq!(Gpa::new(u64::MAX).align_up(PageSize::Size4K), None);
    }

    #[test]
    fn a_range_cannot_wrap() {
        assert!(Range::new(Gpa::new(u64::MAX), 2).is_none());
        let r = Range::new(Gpa::new(0x1000), 0x1000).unwrap();
        assert!(r.contains(Gpa::new(0x1fff)) && !r.contains(Gpa::new(0x2000)));
        assert!(!r.overlaps(&Range::new(Gpa::new(0x2000), 1).unwrap()));
    }
}
