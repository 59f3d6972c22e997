//! Memory maps of the e820 kind: one type for the host's map and for those that guests are given.

use addr::{Addr, PageSize, Space};
use alloc::vec::Vec;
use core::fmt;

/// What a range of memory is, in e820 numbers (ACPI 6.5, "Address Range Types"). Unknown numbers are kept
/// and never treated as RAM.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct E820Type(pub u32);

impl E820Type {
    /// Usable RAM.
    pub const RAM: Self = Self(1);
    /// Not for the operating system.
    pub const RESERVED: Self = Self(2);
    /// ACPI tables; RAM once they have been read.
    pub const ACPI: Self = Self(3);
    /// ACPI non-volatile storage: to be kept over sleep, never RAM.
    pub const NVS: Self = Self(4);
    /// RAM found to be bad.
    pub const UNUSABLE: Self = Self(5);
    /// RAM that is not enabled.
    pub const DISABLED: Self = Self(6);
    /// Persistent memory.
    pub const PERSISTENT: Self = Self(7);

    /// Among overlapping claims the highest rank wins: what may break if used beats what may be used.
    const fn rank(self) -> usize {
        match self {
            Self::RAM => 0,
            Self::ACPI => 1,
            Self::PERSISTENT => 2,
            Self::DISABLED => 3,
            Self::NVS => 4,
            Self::UNUSABLE => 6,
            _ => 5,
        }
    }
}

impl fmt::Debug for E820Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::RAM => "RAM",
            Self::RESERVED => "reserved",
            Self::ACPI => "ACPI tables",
            Self::NVS => "ACPI NVS",
            Self::UNUSABLE => "unusable",
            Self::DISABLED => "disabled",
            Self::PERSISTENT => "persistent",
            Self(other) => return write!(f, "type {other}"),
        };
        f.write_str(name)
    }
}

/// A range `start..end` of one kind of memory.
pub struct Region<S: Space> {
    /// First byte.
    pub start: Addr<S>,
    /// First byte behind the range.
    pub end: Addr<S>,
    /// What it is.
    pub kind: E820Type,
}

impl<S: Space> Region<S> {
    /// The range of `bytes` bytes from `start`, cut short at the end of the space.
    pub const fn new(start: Addr<S>, bytes: u64, kind: E820Type) -> Self {
        Self { start, end: Addr::new(start.raw().saturating_add(bytes)), kind }
    }
    /// Bytes in the range; zero if it is inverted.
    pub const fn bytes(&self) -> u64 {
        self.end.raw().saturating_sub(self.start.raw())
    }
}

// By hand, as derives would ask the same of the marker `S`.
impl<S: Space> Clone for Region<S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Space> Copy for Region<S> {}
impl<S: Space> PartialEq for Region<S> {
    fn eq(&self, other: &Self) -> bool {
        (self.start, self.end, self.kind) == (other.start, other.end, other.kind)
    }
}
impl<S: Space> Eq for Region<S> {}
impl<S: Space> fmt::Debug for Region<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x} {:?}", self.start, self.end, self.kind)
    }
}

/// Sorts `regions`, resolves overlaps in favour of the kind that is safer not to use, joins neighbours of
/// one kind, and shrinks RAM to whole 4 KiB pages. Bytes that no region claims stay a gap.
pub fn normalise<S: Space>(regions: &[Region<S>]) -> Vec<Region<S>> {
    const RANKS: usize = 7;
    /// What ranks 0..7 stand for; unknown kinds come out as reserved.
    const KIND: [E820Type; RANKS] = [
        E820Type::RAM,
        E820Type::ACPI,
        E820Type::PERSISTENT,
        E820Type::DISABLED,
        E820Type::NVS,
        E820Type::RESERVED,
        E820Type::UNUSABLE,
    ];
    // A sweep over the borders, counting for each rank how many regions are open.
    let mut borders: Vec<(u64, usize, bool)> = Vec::with_capacity(regions.len() * 2);
    for region in regions.iter().filter(|region| region.start < region.end) {
        borders.push((region.start.raw(), region.kind.rank(), true));
        borders.push((region.end.raw(), region.kind.rank(), false));
    }
    borders.sort_unstable_by_key(|border| border.0);

    let mut open = [0usize; RANKS];
    let mut out: Vec<Region<S>> = Vec::new();
    for (i, &(at, rank, opens)) in borders.iter().enumerate() {
        // Borders at one address may close before they open, so the count may pass through "-1".
        open[rank] = if opens { open[rank].wrapping_add(1) } else { open[rank].wrapping_sub(1) };
        let Some(&(next, ..)) = borders.get(i + 1) else { break };
        let Some(top) = (0..RANKS).rev().find(|rank| open[*rank] != 0) else { continue };
        if next == at {
            continue;
        }
        match out.last_mut() {
            Some(last) if last.end.raw() == at && last.kind == KIND[top] => last.end = Addr::new(next),
            _ => out.push(Region { start: Addr::new(at), end: Addr::new(next), kind: KIND[top] }),
        }
    }
    out.retain_mut(|region| region.kind != E820Type::RAM || shrink_to_pages(region));
    out
}

/// Cuts a region to whole pages; false if nothing is left.
fn shrink_to_pages<S: Space>(region: &mut Region<S>) -> bool {
    let Some(start) = region.start.align_up(PageSize::Size4K) else { return false };
    region.start = start;
    region.end = region.end.align_down(PageSize::Size4K);
    region.start < region.end
}

#[cfg(test)]
mod tests {
    use super::*;
    use addr::{Gpa, GuestPhys};
    use proptest::prelude::*;

    fn region(start: u64, end: u64, kind: u32) -> Region<GuestPhys> {
        Region { start: Gpa::new(start), end: Gpa::new(end), kind: E820Type(kind) }
    }

    #[test]
    fn the_safer_claim_wins_an_overlap() {
        let map = normalise(&[region(0, 0x10000, 1), region(0x4000, 0x5000, 2), region(0x4800, 0x6000, 5)]);
        assert_eq!(
            map,
            [
                region(0, 0x4000, 1),
                region(0x4000, 0x4800, 2),
                region(0x4800, 0x6000, 5),
                region(0x6000, 0x10000, 1)
            ]
        );
    }

    #[test]
    fn ram_shrinks_to_whole_pages_but_joins_first() {
        assert_eq!(
            normalise(&[region(0x800, 0x1800, 1), region(0x1800, 0x2fff, 1)]),
            [region(0x1000, 0x2000, 1)]
        );
        assert_eq!(normalise(&[region(0x800, 0x1800, 1)]), []);
    }

    #[test]
    fn unknown_and_inverted_regions_are_never_ram() {
        assert_eq!(
            normalise(&[region(0, 0x3000, 1), region(0x1000, 0x2000, 77), region(9, 3, 1)]),
            [region(0, 0x1000, 1), region(0x1000, 0x2000, 2), region(0x2000, 0x3000, 1)]
        );
    }

    proptest! {
        #[test]
        fn a_normal_map_agrees_with_a_bitmap(
            list in prop::collection::vec((0u64..64, 0u64..64, 0u32..9), 0..12)
        ) {
            let regions: Vec<_> =
                list.iter().map(|&(a, b, k)| region(a << 12, b << 12, k)).collect();
            let map = normalise(&regions);
            prop_assert!(map.windows(2).all(|w| w[0].end <= w[1].start));
            for page in 0..64 {
                let at = page << 12;
                let inside = |r: &&Region<GuestPhys>| r.start.raw() <= at && at < r.end.raw();
                let want = regions.iter().filter(inside).map(|r| r.kind.rank()).max();
                prop_assert_eq!(map.iter().find(inside).map(|r| r.kind.rank()), want);
            }
        }
    }
}
