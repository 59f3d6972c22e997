//! ELF kernels: what to load where, and Xen's notes.
#![allow(clippy::todo)]
use addr::Gpa;
use alloc::vec::Vec;

/// Why an ELF image cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfError {
    /// Not ELF, or a header that doesn't parse.
    BadHeader,
    /// Big-endian.
    BigEndian,
    /// A segment's file range lies outside the image.
    SegmentOutsideFile(usize),
    /// A segment has more bytes in the file than in memory, or its addresses wrap.
    BadSegment(usize),
    /// Two segments share memory.
    Overlap,
    /// Nothing to load.
    Empty,
    /// A Xen note is malformed.
    BadNote,
}

/// `e_machine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine(pub u16);

/// One piece to load: copy the file range to `paddr`, zero up to `memory_bytes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Bytes of the image.
    pub file: core::ops::Range<usize>,
    /// Where they go.
    pub paddr: Gpa,
    /// Bytes in memory, at least the file's.
    pub memory_bytes: u64,
}

/// Xen's note 19: the kernel may be loaded elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PvhReloc {
    /// Alignment of the load address, a power of two.
    pub align: u32,
    /// Lowest load address.
    pub min: u32,
    /// Highest address used.
    pub max: u32,
}

/// How to load an ELF image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadPlan {
    /// Whether the file is ELF64.
    pub is_64: bool,
    /// What CPU it is for.
    pub machine: Machine,
    /// `e_entry`.
    pub entry: u64,
    /// What to load, in ascending order of address.
    pub segments: Vec<Segment>,
    /// 32-bit physical entry of a PVH kernel (note 18).
    pub pvh_entry: Option<u32>,
    /// Note 19.
    pub pvh_reloc: Option<PvhReloc>,
}

/// Reads an image.
pub fn plan(_image: &[u8]) -> Result<LoadPlan, ElfError> {
    todo!()
}
