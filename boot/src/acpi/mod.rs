//! The firmware's static ACPI tables: which CPUs and interrupt controllers there are, and how to switch off.
//!
//! Offsets and flags are those of the ACPI Specification 6.5, chapter 5 ("ACPI Software Programming
//! Model"); the section stands at each table. There is no AML interpreter: of the definition blocks only
//! the `\_S5` package is looked for ([`SleepType::find`]), by its bytes.
//!
//! Firmware is not hostile, but it is careless: a damaged table is skipped and listed in
//! [`Acpi::damaged`], and everything has bounds.

mod aml;
mod fadt;
mod madt;
mod topology;

pub use aml::SleepType;
pub use fadt::{Fadt, FadtFlags, GenericAddress, SpaceId};
pub use madt::{Cpu, CpuIds, IntFlags, IoApic, LocalNmi, Madt, Override};
pub use topology::{CpuAffinity, Hpet, McfgSegment, MemoryAffinity, Srat};

use crate::bytes::{array_at, sum, u8_at, u32_at, u64_at};
use addr::Hpa;
use alloc::vec::Vec;
use core::fmt;

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

/// Longest table that is read, in bytes.
pub const MAX_TABLE: usize = 4 << 20;
/// Most tables that a root table may list.
pub const MAX_TABLES: usize = 256;
/// Most processors that are read from the MADT.
pub const MAX_CPUS: usize = 4096;
/// Bytes of the header that all tables share (5.2.6).
const HEADER: usize = 36;

/// A table's four-letter name.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature(pub [u8; 4]);

impl Signature {
    /// The root pointer (the first half of its `RSD PTR `).
    pub const RSDP: Self = Self(*b"RSD ");
    /// Root table of 32-bit pointers.
    pub const RSDT: Self = Self(*b"RSDT");
    /// Root table of 64-bit pointers.
    pub const XSDT: Self = Self(*b"XSDT");
    /// Multiple APIC description.
    pub const MADT: Self = Self(*b"APIC");
    /// Fixed description.
    pub const FADT: Self = Self(*b"FACP");
    /// Differentiated system description.
    pub const DSDT: Self = Self(*b"DSDT");
    /// Secondary system description.
    pub const SSDT: Self = Self(*b"SSDT");
    /// Memory-mapped configuration space.
    pub const MCFG: Self = Self(*b"MCFG");
    /// High precision event timer.
    pub const HPET: Self = Self(*b"HPET");
    /// System resource affinity.
    pub const SRAT: Self = Self(*b"SRAT");
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// Why a table cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiError {
    /// No root pointer, or one of a wrong signature.
    NoRsdp,
    /// The table's bytes don't sum to zero.
    Checksum(Signature),
    /// The table cannot be read, lacks its fixed part, or is longer than [`MAX_TABLE`].
    Length(Signature),
    /// There is another table where this one was expected.
    WrongTable(Signature),
}

impl fmt::Display for AcpiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRsdp => f.write_str("ACPI: no root pointer"),
            Self::Checksum(name) => write!(f, "ACPI: table {name:?} has a wrong checksum"),
            Self::Length(name) => write!(f, "ACPI: table {name:?} has an impossible length or address"),
            Self::WrongTable(name) => write!(f, "ACPI: another table where {name:?} should be"),
        }
    }
}

impl core::error::Error for AcpiError {}

/// The root pointer (5.2.5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rsdp {
    /// 0 for ACPI 1.0, 2 later.
    pub revision: u8,
    /// The root table of 32-bit pointers; zero if there is none.
    pub rsdt: Hpa,
    /// The root table of 64-bit pointers.
    pub xsdt: Option<Hpa>,
}

impl Rsdp {
    /// Bytes of the first version, which newer ones begin with.
    const V1: usize = 20;
    /// Bytes of the second version.
    const V2: usize = 36;

    /// Parses a root pointer at the start of `bytes`, checking all of its checksums.
    pub fn parse(bytes: &[u8]) -> Result<Self, AcpiError> {
        if !bytes.starts_with(b"RSD PTR ") {
            return Err(AcpiError::NoRsdp);
        }
        let length = AcpiError::Length(Signature::RSDP);
        let v1 = bytes.get(..Self::V1).ok_or(length)?;
        if sum(v1) != 0 {
            return Err(AcpiError::Checksum(Signature::RSDP));
        }
        let revision = v1[15];
        let rsdt = Hpa::new(u32_at(v1, 16).ok_or(length)?.into());
        if revision < 2 {
            return Ok(Self { revision, rsdt, xsdt: None });
        }
        let bytes_long = u32_at(bytes, 20).ok_or(length)? as usize;
        let v2 = bytes.get(..bytes_long).filter(|v2| v2.len() >= Self::V2).ok_or(length)?;
        if sum(v2) != 0 {
            return Err(AcpiError::Checksum(Signature::RSDP));
        }
        let xsdt = u64_at(v2, 24).filter(|at| *at != 0).map(Hpa::new);
        Ok(Self { revision, rsdt, xsdt })
    }

    /// Looks for the root pointer where a BIOS leaves it (5.2.5.1): the first KiB of the extended BIOS data
    /// area, then 0xe0000 to 0xfffff, at multiples of 16.
    pub fn search(memory: &impl PhysRead) -> Result<Self, AcpiError> {
        let ebda = memory.read(Hpa::new(0x40e), 2).and_then(|word| array_at(&word, 0));
        let ebda = ebda.map(|segment| u64::from(u16::from_le_bytes(segment)) << 4);
        // A segment below 0x400 would be the interrupt vectors: there is no such area.
        let areas = [(ebda.filter(|at| *at >= 0x400), 0x400), (Some(0xe0000), 0x20000)];
        for (start, bytes) in areas {
            let Some(area) = start.and_then(|at| memory.read(Hpa::new(at), bytes)) else { continue };
            if let Some(found) = (0..area.len()).step_by(16).find_map(|at| Self::parse(&area[at..]).ok()) {
                return Ok(found);
            }
        }
        Err(AcpiError::NoRsdp)
    }
}

/// Where a table lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRef {
    /// Its name.
    pub signature: Signature,
    /// Its first byte.
    pub at: Hpa,
    /// Its length in bytes, header included.
    pub bytes: usize,
    /// Its revision.
    pub revision: u8,
}

/// What the static tables say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acpi {
    /// All sound tables, the DSDT included, in the order of the root table.
    pub tables: Vec<TableRef>,
    /// CPUs and interrupt controllers.
    pub madt: Option<Madt>,
    /// Power management registers.
    pub fadt: Option<Fadt>,
    /// Windows onto PCI configuration space.
    pub mcfg: Vec<McfgSegment>,
    /// The event timer.
    pub hpet: Option<Hpet>,
    /// What is near to what.
    pub srat: Option<Srat>,
    /// What to write to switch the machine off.
    pub s5: Option<SleepType>,
    /// Tables that were skipped.
    pub damaged: Vec<AcpiError>,
}

impl Acpi {
    /// Reads every table that the root table (the XSDT if it is sound, else the RSDT) lists.
    ///
    /// # Errors
    /// Those of the root table; a damaged table below it is only noted in [`Acpi::damaged`].
    pub fn read(memory: &impl PhysRead, rsdp: &Rsdp) -> Result<Self, AcpiError> {
        let mut found = Self::default();
        for at in root_entries(memory, rsdp)?.into_iter().filter(|at| at.raw() != 0) {
            found.read_table(memory, at, None);
        }
        // The DSDT is not in the root table. Its \_S5 wins over one of an SSDT.
        if let Some(dsdt) = found.fadt.as_ref().map(|fadt| fadt.dsdt).filter(|at| at.raw() != 0) {
            let secondary = found.s5.take();
            found.read_table(memory, dsdt, Some(Signature::DSDT));
            found.s5 = found.s5.or(secondary);
        }
        Ok(found)
    }

    fn read_table(&mut self, memory: &impl PhysRead, at: Hpa, expected: Option<Signature>) {
        match table(memory, at, expected) {
            Ok((entry, bytes)) => {
                if self.take(entry.signature, &bytes).is_some() {
                    self.tables.push(entry);
                } else {
                    self.damaged.push(AcpiError::Length(entry.signature));
                }
            }
            Err(error) => self.damaged.push(error),
        }
    }

    /// Takes in one table; `None` if its fixed part is cut short. Of two tables of one name the first
    /// counts, but for the SSDTs.
    fn take(&mut self, signature: Signature, table: &[u8]) -> Option<()> {
        match signature {
            Signature::MADT if self.madt.is_none() => self.madt = Some(Madt::parse(table)?),
            Signature::FADT if self.fadt.is_none() => self.fadt = Some(Fadt::parse(table)?),
            Signature::HPET if self.hpet.is_none() => self.hpet = Some(Hpet::parse(table)?),
            Signature::SRAT if self.srat.is_none() => self.srat = Some(Srat::parse(table)?),
            Signature::MCFG if self.mcfg.is_empty() => self.mcfg = McfgSegment::parse_all(table)?,
            Signature::DSDT | Signature::SSDT if self.s5.is_none() => self.s5 = SleepType::find(table),
            _ => {}
        }
        Some(())
    }
}

/// The addresses in the root table.
fn root_entries(memory: &impl PhysRead, rsdp: &Rsdp) -> Result<Vec<Hpa>, AcpiError> {
    let wide = rsdp.xsdt.ok_or(AcpiError::Length(Signature::XSDT));
    let wide = wide.and_then(|at| table(memory, at, Some(Signature::XSDT)));
    match wide {
        Ok((_, bytes)) => {
            Ok((0..MAX_TABLES).map_while(|i| u64_at(&bytes, HEADER + i * 8)).map(Hpa::new).collect())
        }
        Err(error) if rsdp.rsdt.raw() == 0 => Err(error),
        Err(_) => {
            let (_, bytes) = table(memory, rsdp.rsdt, Some(Signature::RSDT))?;
            let entries = (0..MAX_TABLES).map_while(|i| u32_at(&bytes, HEADER + i * 4));
            Ok(entries.map(|at| Hpa::new(at.into())).collect())
        }
    }
}

/// Reads the table at `at` and checks its length, name and checksum.
fn table(
    memory: &impl PhysRead,
    at: Hpa,
    expected: Option<Signature>,
) -> Result<(TableRef, Vec<u8>), AcpiError> {
    let unreadable = AcpiError::Length(expected.unwrap_or(Signature(*b"????")));
    let header = memory.read(at, HEADER).ok_or(unreadable)?;
    let signature = Signature(array_at(&header, 0).ok_or(unreadable)?);
    let bytes = u32_at(&header, 4).ok_or(unreadable)? as usize;
    let revision = u8_at(&header, 8).ok_or(unreadable)?;
    if let Some(expected) = expected.filter(|expected| *expected != signature) {
        return Err(AcpiError::WrongTable(expected));
    }
    if !(HEADER..=MAX_TABLE).contains(&bytes) {
        return Err(AcpiError::Length(signature));
    }
    let whole = memory.read(at, bytes).filter(|whole| whole.len() == bytes);
    let whole = whole.ok_or(AcpiError::Length(signature))?;
    if sum(&whole) != 0 {
        return Err(AcpiError::Checksum(signature));
    }
    Ok((TableRef { signature, at, bytes, revision }, whole))
}

/// Splits a list of `type, length, …` entries; an entry that is too short or too long ends it.
fn entries(mut list: &[u8]) -> impl Iterator<Item = &[u8]> {
    core::iter::from_fn(move || {
        let length = usize::from(u8_at(list, 1)?);
        let (entry, rest) = list.split_at_checked(length).filter(|_| length >= 2)?;
        list = rest;
        Some(entry)
    })
}

#[cfg(test)]
pub(crate) mod tests;
