//! AMD nested page tables: ordinary long-mode page tables, walked as user accesses.
//! AMD64 APM vol. 2, "Nested Paging" and "Long-Mode Page Translation".

use crate::format::{Entry, Format, Mapping, MemType, Perms};
use addr::{Hpa, PageSize};

const P: u64 = 1 << 0;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const PWT: u64 = 1 << 3;
const PCD: u64 = 1 << 4;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const NX: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The format of AMD nested page tables. Needs `EFER.NXE` in the host and the reset value of the host's
/// PAT in its first four slots (0 = WB, 3 = UC).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Npt {
    levels: u8,
    max_page: PageSize,
}

impl Npt {
    /// Four levels (48 bits of guest-physical address); `max_page` is 1 GiB where CPUID 8000_0001h
    /// EDX\[26\] says so, else 2 MiB.
    pub const fn four_level(max_page: PageSize) -> Self {
        Self { levels: 4, max_page }
    }
    /// Five levels, for a host that runs with `CR4.LA57`.
    pub const fn five_level(max_page: PageSize) -> Self {
        Self { levels: 5, max_page }
    }
}

/// U is always set: the hardware walks nested tables as a user.
fn rights(perms: Perms) -> u64 {
    P | U | A | if perms.contains(Perms::W) { W } else { 0 } | if perms.contains(Perms::X) { 0 } else { NX }
}

fn perms(entry: u64) -> Perms {
    Perms::R | Perms::W.when(entry & W != 0) | Perms::X.when(entry & NX == 0)
}

impl Format for Npt {
    fn levels(&self) -> u8 {
        self.levels
    }
    fn max_page(&self) -> PageSize {
        self.max_page
    }
    fn expressible(perms: Perms) -> bool {
        perms.contains(Perms::R)
    }
    fn leaf(m: &Mapping) -> u64 {
        (m.hpa.raw() & ADDRESS)
            | rights(m.perms)
            // D would be set by the first write; without W there is none.
            | if m.perms.contains(Perms::W) { D } else { 0 }
            | if m.size == PageSize::Size4K { 0 } else { PS }
            | if m.memtype == MemType::Uncached { PWT | PCD } else { 0 }
    }
    fn table(next: Hpa, perms: Perms) -> u64 {
        (next.raw() & ADDRESS) | rights(perms)
    }
    fn decode(entry: u64, level: u8) -> Entry {
        if entry & P == 0 {
            return Entry::Empty;
        }
        let leaf = level == 1 || (level <= 3 && entry & PS != 0);
        match PageSize::of_level(level).filter(|_| leaf) {
            None => Entry::Table { next: Hpa::new(entry & ADDRESS), perms: perms(entry) },
            Some(size) => Entry::Leaf(Mapping {
                hpa: Hpa::new(entry & ADDRESS).align_down(size),
                size,
                perms: perms(entry),
                memtype: if entry & PCD != 0 { MemType::Uncached } else { MemType::WriteBack },
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(hpa: u64, size: PageSize, perms: Perms, memtype: MemType) -> Mapping {
        Mapping { hpa: Hpa::new(hpa), size, perms, memtype }
    }

    #[test]
    fn leaves_have_the_manuals_bits() {
        let wb = MemType::WriteBack;
        let cases = [
            (page(0x1000, PageSize::Size4K, Perms::RWX, wb), 0x1067),
            (page(0x1000, PageSize::Size4K, Perms::R, wb), 0x8000_0000_0000_1025),
            (page(0x20_0000, PageSize::Size2M, Perms::RX, wb), 0x20_00a5),
            (page(0x4000_0000, PageSize::Size1G, Perms::RW, MemType::Uncached), 0x8000_0000_4000_00ff),
        ];
        for (mapping, bits) in cases {
            assert_eq!(Npt::leaf(&mapping), bits, "{mapping:?}");
            assert_eq!(Npt::decode(bits, mapping.size.level()), Entry::Leaf(mapping));
        }
    }

    #[test]
    fn ps_makes_no_leaf_where_none_can_be() {
        assert!(matches!(Npt::decode(0x10a7, 4), Entry::Table { .. }));
        assert!(matches!(Npt::decode(0x10a7, 5), Entry::Table { .. }));
        assert_eq!(Npt::decode(0x1066, 1), Entry::Empty);
        let link = Npt::table(Hpa::new(0x5000), Perms::RX);
        assert_eq!(Npt::decode(link, 2), Entry::Table { next: Hpa::new(0x5000), perms: Perms::RX });
        // The PAT bit of a large page (12) is no part of its address.
        let Entry::Leaf(m) = Npt::decode(0x20_10e7, 2) else { panic!() };
        assert_eq!(m.hpa, Hpa::new(0x20_0000));
    }
}
