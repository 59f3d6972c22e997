//! The formats of page tables that an L1 may use for its nested paging, as tables of masks.
//! AMD64 APM vol. 2, "Legacy-Mode Page Translation", "Long-Mode Page Translation"; SDM vol. 3, "EPT Translation
//! Mechanism", "EPT Misconfigurations".

use super::Access;
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
    /// Intel's EPT, four levels.
    Ept,
}

/// Accessed and dirty flags of EPT.
const EPT_A: u64 = 1 << 8;
const EPT_D: u64 = 1 << 9;
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
    /// Bits that must be zero in every entry: follows from the above. Zero in 32-bit entries.
    always_zero: u64,
    /// EPT only: entries may allow execution alone.
    execute_only: bool,
    /// Walks set accessed and dirty flags. For EPT it is EPTP that says so.
    marks: bool,
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
    /// P and a reserved bit are set; EPT: misconfigured.
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
        let high = if maxphyaddr < 52 { bits(51, maxphyaddr.into()) } else { 0 };
        let always_zero = match shape {
            Shape::TwoLevel => 0,
            Shape::Pae => high | bits(62, 52) | if nx { 0 } else { NX },
            _ => high | if nx { 0 } else { NX },
        };
        let pages_1g = pages_1g && lma;
        Self { shape, pse, nx, smep, pages_1g, maxphyaddr, always_zero, execute_only: false, marks: true }
    }

    /// The regime of an EPT pointer that passed the checks of VM entry. `maxphyaddr` is what L1's CPUID says,
    /// `pages_1g` and `execute_only` what its IA32_VMX_EPT_VPID_CAP says (bits 17 and 0).
    pub const fn from_eptp(eptp: u64, maxphyaddr: u8, pages_1g: bool, execute_only: bool) -> Self {
        let maxphyaddr = if maxphyaddr < 32 {
            32
        } else if maxphyaddr > 52 {
            52
        } else {
            maxphyaddr
        };
        Self {
            shape: Shape::Ept,
            pse: false,
            nx: false,
            smep: false,
            pages_1g,
            maxphyaddr,
            always_zero: if maxphyaddr < 52 { bits(51, maxphyaddr as u32) } else { 0 },
            execute_only,
            marks: eptp & 1 << 6 != 0,
        }
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
            Shape::FourLevel | Shape::Ept => 4,
            Shape::FiveLevel => 5,
        }
    }
    /// Bits of an L2-physical address.
    pub const fn input_bits(&self) -> u32 {
        match self.shape {
            Shape::TwoLevel | Shape::Pae => 32,
            Shape::FourLevel | Shape::Ept => 48,
            Shape::FiveLevel => 57,
        }
    }
    /// Whether faults report instruction fetches: with no-execute or SMEP.
    pub(super) const fn reports_fetch(&self) -> bool {
        self.nx || self.smep
    }

    /// Whether it is Intel's.
    pub(super) const fn is_ept(&self) -> bool {
        matches!(self.shape, Shape::Ept)
    }
    /// The rights that `access` needs of L1's tables. EPT lets fetches from pages that can't be read.
    pub(super) const fn needs(&self, access: Access) -> Perms {
        match (self.shape, access.fetch) {
            (Shape::Ept, true) => Perms::X,
            _ => access.needs(),
        }
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
            (Shape::Ept, _) if !self.marks => raw,
            (Shape::Ept, _) => raw | EPT_A | if dirty { EPT_D } else { 0 },
            _ => raw | A | if dirty { D } else { 0 },
        }
    }

    /// Whether a present entry maps a page, and the bits that must be zero in it besides
    /// `always_zero`.
    #[inline]
    const fn rules(&self, raw: u64, level: u8) -> (bool, u64) {
        let large = raw & PS != 0;
        match (level, self.shape) {
            (1, _) => (true, 0),
            (2, Shape::TwoLevel) => match self.pse && large {
                // Bits 20:13 of a 4 MiB page are its address bits 39:32.
                true if self.maxphyaddr < 40 => (true, 1 << 21 | bits(20, self.maxphyaddr as u32 - 19)),
                true => (true, 1 << 21),
                false => (false, 0),
            },
            (2, _) => (large, if large { bits(20, 13) } else { 0 }),
            (3, Shape::Pae) => (false, NX | bits(8, 5) | bits(2, 1)),
            (3, _) if large && self.pages_1g => (true, bits(29, 13)),
            // PS is reserved where 1 GiB pages are not offered.
            (3, _) => (false, PS),
            _ => (false, bits(8, 7)),
        }
    }

    /// The address in an entry that maps a page. `odd` is bit 21 of the input address: it picks the half
    /// of a 4 MiB page.
    #[inline]
    pub(crate) const fn page_address(&self, raw: u64, level: u8, odd: bool) -> Gpa {
        Gpa::new(match level {
            1 => raw & FRAME,
            2 if matches!(self.shape, Shape::TwoLevel) => {
                (raw & bits(31, 22)) | (raw & bits(20, 13)) << 19 | (odd as u64) << 21
            }
            2 => raw & bits(51, 21),
            _ => raw & bits(51, 30),
        })
    }

    /// What the entry `raw` of a table of level `level` says. `odd` as bit 21 of the input address: it
    /// picks the half of a 4 MiB page.
    #[inline(always)]
    pub fn decode(&self, raw: u64, level: u8, odd: bool) -> Entry12 {
        if self.is_ept() {
            return self.decode_ept(raw, level);
        }
        if raw & P == 0 {
            return Entry12::Empty;
        }
        let (leaf, zero) = self.rules(raw, level);
        if raw & (zero | self.always_zero) != 0 {
            return Entry12::Reserved;
        }
        // PAE's pointers have no rights and no accessed bit of their own.
        let pointer = level == 3 && matches!(self.shape, Shape::Pae);
        let flags = if pointer { raw | W | U | A } else { raw };
        let perms = Perms::R | Perms::W.when(flags & W != 0) | Perms::X.when(raw & NX == 0);
        let (user, accessed) = (flags & U != 0, flags & A != 0);
        if !leaf {
            return Entry12::Table(Next12 { frame: Gpa::new(raw & FRAME).frame(), perms, user, accessed });
        }
        let size = match level {
            1 => PageSize::Size4K,
            2 => PageSize::Size2M,
            _ => PageSize::Size1G,
        };
        let gpa = self.page_address(raw, level, odd);
        Entry12::Leaf(Leaf12 { gpa, size, perms, user, accessed, dirty: raw & D != 0 })
    }

    /// An EPT entry. "EPT Misconfigurations": write without read, execute alone where that is not offered, a
    /// reserved bit, a memory type that does not exist. Without accessed and dirty flags everything counts as
    /// marked: there is nothing to see.
    fn decode_ept(&self, raw: u64, level: u8) -> Entry12 {
        let perms = Perms::from_bits(raw as u8);
        if perms.is_empty() {
            return Entry12::Empty;
        }
        let leaf = level == 1 || raw & PS != 0 && (level == 2 || level == 3 && self.pages_1g);
        let zero = match (level, leaf) {
            (1, _) => 0,
            (2, true) => bits(20, 12),
            (_, true) => bits(29, 12),
            // A pointer has neither memory type nor, where no page can be, bit 7.
            (_, false) => bits(7, 3),
        };
        let unreadable = !perms.contains(Perms::R) && (perms.contains(Perms::W) || !self.execute_only);
        let no_type = leaf && matches!(raw >> 3 & 7, 2 | 3 | 7);
        if raw & (zero | self.always_zero) != 0 || unreadable || no_type {
            return Entry12::Reserved;
        }
        let accessed = !self.marks || raw & EPT_A != 0;
        if !leaf {
            let frame = Gpa::new(raw & FRAME).frame();
            return Entry12::Table(Next12 { frame, perms, user: true, accessed });
        }
        let size = match level {
            1 => PageSize::Size4K,
            2 => PageSize::Size2M,
            _ => PageSize::Size1G,
        };
        let dirty = !self.marks || raw & EPT_D != 0;
        let gpa = self.page_address(raw, level, false);
        Entry12::Leaf(Leaf12 { gpa, size, perms, user: true, accessed, dirty })
    }
}
