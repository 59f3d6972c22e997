//! ELF kernels: what to load where, and Xen's notes.
//!
//! The `elf` crate (no `unsafe`, checked reads) takes the file apart; here its headers become a
//! [`LoadPlan`] whose every range has been checked against the file and against one another, so that a
//! loader can copy without asking again.

use addr::Gpa;
use alloc::vec::Vec;
use core::fmt;
use elf::ElfBytes;
use elf::abi::{ELFCLASS64, ELFMAGIC, PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;
use elf::note::Note;

/// Why an ELF image cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfError {
    /// Not ELF, not little-endian, or a header that doesn't parse.
    BadHeader,
    /// More than [`MAX_SEGMENTS`] program headers.
    TooManySegments,
    /// The segment's file range lies outside the image; the number is its program header's.
    SegmentOutsideFile(usize),
    /// The segment has more bytes in the file than in memory, or its addresses wrap.
    BadSegment(usize),
    /// Two segments share memory.
    Overlap,
    /// Nothing to load.
    Empty,
    /// A Xen note that is too short or says something impossible.
    BadNote,
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadHeader => f.write_str("ELF: the header is damaged or of a big-endian machine"),
            Self::TooManySegments => write!(f, "ELF: more than {MAX_SEGMENTS} program headers"),
            Self::SegmentOutsideFile(n) => write!(f, "ELF: segment {n} lies outside the file"),
            Self::BadSegment(n) => write!(f, "ELF: segment {n} has an impossible size or address"),
            Self::Overlap => f.write_str("ELF: two segments overlap in memory"),
            Self::Empty => f.write_str("ELF: nothing to load"),
            Self::BadNote => f.write_str("ELF: a Xen note is damaged"),
        }
    }
}

impl core::error::Error for ElfError {}

/// Most program headers that are read.
pub const MAX_SEGMENTS: usize = 64;

/// `e_machine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine(pub u16);

impl Machine {
    /// 32-bit x86.
    pub const I386: Self = Self(3);
    /// 64-bit x86.
    pub const X86_64: Self = Self(62);
    /// 64-bit ARM.
    pub const AARCH64: Self = Self(183);

    /// Whether an x86 CPU runs it.
    pub const fn is_x86(self) -> bool {
        matches!(self, Self::I386 | Self::X86_64)
    }
}

/// One piece to load: copy the file range to `paddr`, zero up to `memory_bytes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Bytes of the image; always inside it.
    pub file: core::ops::Range<usize>,
    /// Where they go.
    pub paddr: Gpa,
    /// Bytes in memory, at least the file's and at least 1; `paddr + memory_bytes` does not wrap.
    pub memory_bytes: u64,
}

/// Xen's note 19 (XEN_ELFNOTE_PHYS32_RELOC): the kernel may be loaded elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PvhReloc {
    /// Alignment of the load address, a power of two.
    pub align: u32,
    /// Lowest load address.
    pub min: u32,
    /// Highest address that the loaded kernel may touch.
    pub max: u32,
}

/// How to load an ELF image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadPlan {
    /// Whether the file is ELF64.
    pub is_64: bool,
    /// What CPU it is for.
    pub machine: Machine,
    /// `e_entry`: for Linux a virtual address, of little use; for multiboot kernels where to start.
    pub entry: u64,
    /// What to load, in ascending order of address, without overlaps; never empty.
    pub segments: Vec<Segment>,
    /// 32-bit physical entry of a PVH kernel (note 18, XEN_ELFNOTE_PHYS32_ENTRY).
    pub pvh_entry: Option<u32>,
    /// Note 19.
    pub pvh_reloc: Option<PvhReloc>,
}

impl LoadPlan {
    /// First address loaded, and the first behind the last, gaps included.
    pub fn extent(&self) -> (Gpa, Gpa) {
        let start = self.segments.first().map_or(Gpa::ZERO, |first| first.paddr);
        let end = self.segments.last().map_or(Gpa::ZERO, |last| last.paddr.wrapping_add(last.memory_bytes));
        (start, end)
    }
}

/// Whether `bytes` begin like an ELF file.
pub fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(&ELFMAGIC)
}

/// Reads an image of either class.
pub fn plan(image: &[u8]) -> Result<LoadPlan, ElfError> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(image).map_err(|_| ElfError::BadHeader)?;
    let mut plan = LoadPlan {
        is_64: image.get(4) == Some(&ELFCLASS64),
        machine: Machine(file.ehdr.e_machine),
        entry: file.ehdr.e_entry,
        segments: Vec::new(),
        pvh_entry: None,
        pvh_reloc: None,
    };
    let headers = file.segments().ok_or(ElfError::Empty)?;
    if headers.len() > MAX_SEGMENTS {
        return Err(ElfError::TooManySegments);
    }
    for (n, header) in headers.iter().enumerate() {
        match header.p_type {
            PT_LOAD if header.p_memsz != 0 || header.p_filesz != 0 => {
                if header.p_filesz > header.p_memsz || header.p_paddr.checked_add(header.p_memsz).is_none() {
                    return Err(ElfError::BadSegment(n));
                }
                let range = file_range(image, header.p_offset, header.p_filesz);
                plan.segments.push(Segment {
                    file: range.ok_or(ElfError::SegmentOutsideFile(n))?,
                    paddr: Gpa::new(header.p_paddr),
                    memory_bytes: header.p_memsz,
                });
            }
            PT_NOTE => {
                let range = file_range(image, header.p_offset, header.p_filesz);
                let range = range.ok_or(ElfError::SegmentOutsideFile(n))?;
                // An alignment of 0 or 1 means none was wanted; notes are then aligned to 4 all the same.
                let align = if header.p_align == 8 { 8 } else { 4 };
                plan.take_notes(elf::note::NoteIterator::new(
                    LittleEndian,
                    file.ehdr.class,
                    align,
                    &image[range],
                ))?;
            }
            _ => {}
        }
    }
    plan.segments.sort_by_key(|segment| segment.paddr);
    let ends_before = |pair: &[Segment]| pair[0].paddr.raw() + pair[0].memory_bytes <= pair[1].paddr.raw();
    if plan.segments.is_empty() {
        Err(ElfError::Empty)
    } else if !plan.segments.windows(2).all(ends_before) {
        Err(ElfError::Overlap)
    } else {
        Ok(plan)
    }
}

fn file_range(image: &[u8], offset: u64, bytes: u64) -> Option<core::ops::Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(bytes).ok()?)?;
    image.get(start..end).map(|_| start..end)
}

/// xen/include/public/elfnote.h: XEN_ELFNOTE_PHYS32_ENTRY.
const PHYS32_ENTRY: u64 = 18;
/// XEN_ELFNOTE_PHYS32_RELOC.
const PHYS32_RELOC: u64 = 19;

impl LoadPlan {
    fn take_notes<'a>(&mut self, notes: impl Iterator<Item = Note<'a>>) -> Result<(), ElfError> {
        for note in notes {
            let Note::Unknown(note) = note else { continue };
            if note.name.strip_suffix(b"\0").unwrap_or(note.name) != b"Xen" {
                continue;
            }
            match note.n_type {
                // Four bytes by its definition; 64-bit Linux writes eight, the upper half zero.
                PHYS32_ENTRY => {
                    let entry = crate::bytes::u32_at(note.desc, 0).ok_or(ElfError::BadNote)?;
                    self.pvh_entry = Some(entry);
                }
                PHYS32_RELOC => {
                    // Each of the three words may be absent.
                    let word = |at, default| crate::bytes::u32_at(note.desc, at).unwrap_or(default);
                    let reloc =
                        PvhReloc { align: word(0, 0x20_0000), min: word(4, 0), max: word(8, u32::MAX) };
                    if !reloc.align.is_power_of_two() || reloc.min > reloc.max {
                        return Err(ElfError::BadNote);
                    }
                    self.pvh_reloc = Some(reloc);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
