//! MCFG, HPET and SRAT: where configuration space, the event timer and the memory of each node are.

use super::entries;
use crate::bytes::{u8_at, u16_at, u32_at, u64_at};
use addr::Hpa;
use alloc::vec::Vec;

/// A window onto the configuration space of some buses (PCI Firmware Specification 3.3, 4.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct McfgSegment {
    /// Where bus 0 would be, whether or not the window starts with it; 1 MiB per bus.
    pub base: Hpa,
    /// PCI segment group.
    pub segment: u16,
    /// First bus.
    pub first_bus: u8,
    /// Last bus.
    pub last_bus: u8,
}

impl McfgSegment {
    /// All windows of a whole table; inverted ones are skipped. `None` if it lacks its fixed part.
    pub fn parse_all(table: &[u8]) -> Option<Vec<Self>> {
        let window = |e: &[u8]| {
            Some(Self {
                base: Hpa::new(u64_at(e, 0)?),
                segment: u16_at(e, 8)?,
                first_bus: u8_at(e, 10)?,
                last_bus: u8_at(e, 11)?,
            })
        };
        let windows = table.get(44..)?.chunks_exact(16).filter_map(window);
        Some(windows.filter(|window| window.first_bus <= window.last_bus).collect())
    }
}

/// The event timer block (IA-PC HPET Specification 1.0a, 3.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hpet {
    /// Its registers.
    pub at: Hpa,
    /// Hardware id: vendor in the upper half.
    pub id: u32,
    /// Number of the block, from 0.
    pub number: u8,
    /// Shortest period in ticks for which periodic mode loses no interrupt.
    pub min_tick: u16,
}

impl Hpet {
    /// Parses a whole table; `None` if it is cut short or the timer is not in memory space.
    pub fn parse(table: &[u8]) -> Option<Self> {
        (u8_at(table, 40)? == 0).then_some(())?;
        Some(Self {
            at: Hpa::new(u64_at(table, 44)?),
            id: u32_at(table, 36)?,
            number: u8_at(table, 52)?,
            min_tick: u16_at(table, 53)?,
        })
    }
}

/// A CPU's place (ACPI 6.5, 5.2.16.1 and 5.2.16.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuAffinity {
    /// Local APIC or x2APIC id.
    pub apic_id: u32,
    /// Proximity domain.
    pub node: u32,
}

/// A memory range's place (5.2.16.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryAffinity {
    /// First byte.
    pub start: Hpa,
    /// First byte behind the range.
    pub end: Hpa,
    /// Proximity domain.
    pub node: u32,
    /// More memory may be plugged in here.
    pub hotplug: bool,
}

/// The System Resource Affinity Table (5.2.16); only its enabled entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Srat {
    /// CPUs.
    pub cpus: Vec<CpuAffinity>,
    /// Memory.
    pub memory: Vec<MemoryAffinity>,
}

impl Srat {
    /// Parses a whole table; `None` if it lacks its fixed part.
    pub fn parse(table: &[u8]) -> Option<Self> {
        let mut srat = Self::default();
        for entry in entries(table.get(48..)?) {
            srat.take(entry);
        }
        Some(srat)
    }

    fn take(&mut self, e: &[u8]) -> Option<()> {
        let enabled = |at| Some(u32_at(e, at)? & 1 != 0);
        match e[0] {
            0 if enabled(4)? => {
                // The domain's low byte is at 2, the other three at 9.
                let node = u32::from(u8_at(e, 2)?) | u32_at(e, 8)? & 0xffff_ff00;
                self.cpus.push(CpuAffinity { apic_id: u8_at(e, 3)?.into(), node });
            }
            1 if enabled(28)? => self.memory.push(MemoryAffinity {
                start: Hpa::new(u64_at(e, 8)?),
                end: Hpa::new(u64_at(e, 8)?.checked_add(u64_at(e, 16)?)?),
                node: u32_at(e, 2)?,
                hotplug: u32_at(e, 28)? & 2 != 0,
            }),
            2 if enabled(12)? => {
                self.cpus.push(CpuAffinity { apic_id: u32_at(e, 8)?, node: u32_at(e, 4)? });
            }
            _ => {}
        }
        Some(())
    }
}
