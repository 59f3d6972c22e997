//! Intel extended page tables. SDM vol. 3, "The Extended Page Table Mechanism (EPT)".

use crate::format::{Entry, Format, Mapping, MemType, Perms};
use addr::{Hpa, PageSize};

const R: u64 = 1 << 0;
const W: u64 = 1 << 1;
const X: u64 = 1 << 2;
const WRITE_BACK: u64 = 6 << 3;
const MEMTYPE: u64 = 7 << 3;
const PS: u64 = 1 << 7;
const A: u64 = 1 << 8;
const D: u64 = 1 << 9;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The format of four-level extended page tables (48 bits of guest-physical address). Rights with execute
/// and no read need IA32_VMX_EPT_VPID_CAP\[0\]: without it L1 is not to be offered any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ept {
    max_page: PageSize,
}

impl Ept {
    /// `max_page` is 1 GiB where IA32_VMX_EPT_VPID_CAP\[17\] says so, else 2 MiB.
    pub const fn four_level(max_page: PageSize) -> Self {
        Self { max_page }
    }
}

/// Bits 2:0 are what [`Perms`] has: R, W, X.
fn perms(entry: u64) -> Perms {
    Perms::from_bits(entry as u8)
}

impl Format for Ept {
    fn levels(&self) -> u8 {
        4
    }
    fn max_page(&self) -> PageSize {
        self.max_page
    }
    fn expressible(perms: Perms) -> bool {
        !perms.is_empty() && (perms.contains(Perms::R) || !perms.contains(Perms::W))
    }
    fn leaf(m: &Mapping) -> u64 {
        (m.hpa.raw() & ADDRESS)
            | u64::from(m.perms.bits())
            | A
            // D would be set by the first write; without W there is none.
            | if m.perms.contains(Perms::W) { D } else { 0 }
            | if m.size == PageSize::Size4K { 0 } else { PS }
            | if m.memtype == MemType::WriteBack { WRITE_BACK } else { 0 }
    }
    fn table(next: Hpa, perms: Perms) -> u64 {
        (next.raw() & ADDRESS) | u64::from(perms.bits()) | A
    }
    fn decode(entry: u64, level: u8) -> Entry {
        if entry & (R | W | X) == 0 {
            return Entry::Empty;
        }
        let leaf = level == 1 || (level <= 3 && entry & PS != 0);
        match PageSize::of_level(level).filter(|_| leaf) {
            None => Entry::Table { next: Hpa::new(entry & ADDRESS), perms: perms(entry) },
            Some(size) => Entry::Leaf(Mapping {
                hpa: Hpa::new(entry & ADDRESS).align_down(size),
                size,
                perms: perms(entry),
                memtype: if entry & MEMTYPE == 0 { MemType::Uncached } else { MemType::WriteBack },
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_have_the_manuals_bits() {
        let page = |hpa, size, perms, memtype| Mapping { hpa: Hpa::new(hpa), size, perms, memtype };
        let wb = MemType::WriteBack;
        let cases = [
            (page(0x1000, PageSize::Size4K, Perms::RWX, wb), 0x1337),
            (page(0x1000, PageSize::Size4K, Perms::X, wb), 0x1134),
            (page(0x20_0000, PageSize::Size2M, Perms::RX, wb), 0x20_01b5),
            (page(0x4000_0000, PageSize::Size1G, Perms::RW, MemType::Uncached), 0x4000_0383),
        ];
        for (mapping, bits) in cases {
            assert_eq!(Ept::leaf(&mapping), bits, "{mapping:?}");
            assert_eq!(Ept::decode(bits, mapping.size.level()), Entry::Leaf(mapping));
        }
        assert_eq!(Ept::decode(0x1130, 1), Entry::Empty);
        let link = Ept::table(Hpa::new(0x5000), Perms::RX);
        assert_eq!(link, 0x5105);
        assert_eq!(Ept::decode(link, 2), Entry::Table { next: Hpa::new(0x5000), perms: Perms::RX });
    }

    #[test]
    fn write_without_read_is_no_right() {
        assert!(!Ept::expressible(Perms::W) && !Ept::expressible(Perms::NONE));
        assert!(!Ept::expressible(Perms::W | Perms::X) && Ept::expressible(Perms::X));
    }
}
