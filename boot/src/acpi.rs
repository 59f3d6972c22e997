//! The firmware's static ACPI tables.
#![allow(clippy::todo)]
use addr::Hpa;
use alloc::vec::Vec;

/// How the parser reads physical memory.
pub trait PhysRead {
    /// Copies `bytes` bytes at `at`; `None` if they are not readable memory.
    fn read(&self, at: Hpa, bytes: usize) -> Option<Vec<u8>>;
}

impl<F: Fn(Hpa, usize) -> Option<Vec<u8>>> PhysRead for F {
    fn read(&self, at: Hpa, bytes: usize) -> Option<Vec<u8>> {
        self(at, bytes)
    }
}

/// The root pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rsdp {
    /// 0 for ACPI 1.0, 2 later.
    pub revision: u8,
    /// The root table of 32-bit pointers; zero if there is none.
    pub rsdt: Hpa,
    /// The root table of 64-bit pointers.
    pub xsdt: Option<Hpa>,
}

/// Why the tables cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiError {
    /// No root pointer where one was looked for, or a wrong signature.
    NoRsdp,
    /// A table whose bytes don't sum to zero.
    Checksum([u8; 4]),
    /// A table that cannot be read, or is shorter than its fixed part or longer than [`MAX_TABLE`].
    Length([u8; 4]),
}

/// Longest table that is read, in bytes.
pub const MAX_TABLE: usize = 4 << 20;
