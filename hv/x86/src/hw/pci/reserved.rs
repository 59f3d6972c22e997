//! Registers that must be in no domain's map.
// UNSAFETY: reads the APIC base register.
#![allow(unsafe_code)]

use crate::cpu::{instr, msr};
use addr::{HostPhys, Hpa, Range};
use alloc::vec::Vec;
use boot::acpi::{Acpi, PhysRead, Signature};
use core::fmt;

/// Whose registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The local APICs, and where MSIs are written to.
    LocalApic,
    /// An I/O APIC.
    IoApic,
    /// The event timer.
    Hpet,
    /// PCI configuration space.
    Ecam,
    /// An IOMMU.
    Iommu,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            What::LocalApic => "local APIC",
            What::IoApic => "I/O APIC",
            What::Hpet => "HPET",
            What::Ecam => "PCI configuration",
            What::Iommu => "IOMMU",
        })
    }
}

/// A range of registers, whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Whose.
    pub what: What,
    /// Where.
    pub range: Range<HostPhys>,
}

/// Interrupt messages go here, whatever the device (APM vol. 2, "Local APIC"; PCI Local Bus Specification,
/// 6.8).
const MESSAGES: u64 = 0xfee0_0000;

/// The ranges that `acpi` names. IOMMU tables are read by `memory`.
pub fn reserved(acpi: Option<&Acpi>, memory: &impl PhysRead) -> Vec<Reserved> {
    // SAFETY: every x86-64 CPU has this MSR.
    let base = unsafe { instr::rdmsr(msr::IA32_APIC_BASE) } & 0x000f_ffff_ffff_f000;
    ranges(base, acpi, memory)
}

/// As [`reserved`], given the local APIC's address.
pub(super) fn ranges(lapic: u64, acpi: Option<&Acpi>, memory: &impl PhysRead) -> Vec<Reserved> {
    let mut all = Vec::new();
    let mut add = |what, at: u64, bytes: u64| {
        let start = at & !(addr::PAGE_SIZE - 1);
        let end = at.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(addr::PAGE_SIZE));
        // A zero base means that there is none.
        let range = end.filter(|_| at != 0).and_then(|end| Range::new(Hpa::new(start), end - start));
        let new = range.map(|range| Reserved { what, range }).filter(|new| !all.contains(new));
        all.extend(new);
    };
    add(What::LocalApic, MESSAGES, 1 << 20);
    if lapic & !0xf_ffff != MESSAGES {
        add(What::LocalApic, lapic, addr::PAGE_SIZE);
    }
    let Some(acpi) = acpi else { return all };
    for chip in acpi.madt.iter().flat_map(|madt| &madt.io_apics) {
        add(What::IoApic, chip.at.raw(), addr::PAGE_SIZE);
    }
    if let Some(hpet) = &acpi.hpet {
        add(What::Hpet, hpet.at.raw(), 1024);
    }
    for window in &acpi.mcfg {
        let first = window.base.raw().saturating_add(u64::from(window.first_bus) << 20);
        let buses = u64::from(window.last_bus.saturating_sub(window.first_bus)) + 1;
        add(What::Ecam, if window.base.raw() == 0 { 0 } else { first }, buses << 20);
    }
    for table in &acpi.tables {
        let units: fn(&[u8]) -> Vec<(u64, u64)> = match table.signature {
            DMAR => intel_units,
            IVRS => amd_units,
            _ => continue,
        };
        let bytes = memory.read(table.at, table.bytes).unwrap_or_default();
        for (base, bytes) in units(&bytes) {
            add(What::Iommu, base, bytes);
        }
    }
    all
}

const DMAR: Signature = Signature(*b"DMAR");
const IVRS: Signature = Signature(*b"IVRS");
/// Bytes before the first entry, in both tables.
const ENTRIES: usize = 48;

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Splits entries whose length is the word at 2 (both tables); one that is impossible ends the list.
fn entries(table: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = table.get(ENTRIES..).unwrap_or_default();
    core::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 2)?);
        let (entry, behind) = rest.split_at_checked(length).filter(|_| length >= 4)?;
        rest = behind;
        Some(entry)
    })
}

/// Register bases and lengths of the remapping units (Intel Virtualization Technology for Directed I/O, 8.3:
/// DRHD structures, type 0).
fn intel_units(table: &[u8]) -> Vec<(u64, u64)> {
    let unit = |e: &[u8]| {
        let pages = 1u64 << (e.get(5)? & 15);
        Some((u64_at(e, 8)?, pages * addr::PAGE_SIZE))
    };
    entries(table).filter(|e| u16_at(e, 0) == Some(0)).filter_map(unit).collect()
}

/// Register bases and lengths of the IOMMUs (AMD I/O Virtualization Technology Specification, 5.2: IVHD
/// blocks of types 10h, 11h and 40h). The registers take 16 KiB, 512 KiB with performance counters, and are
/// aligned to what they take.
fn amd_units(table: &[u8]) -> Vec<(u64, u64)> {
    const SMALL: u64 = 16 << 10;
    const LARGE: u64 = 512 << 10;
    let unit = |e: &[u8]| {
        let base = u64_at(e, 8)?;
        Some((base, if base & (LARGE - 1) == 0 { LARGE } else { SMALL }))
    };
    entries(table).filter(|e| matches!(e[0], 0x10 | 0x11 | 0x40)).filter_map(unit).collect()
}
