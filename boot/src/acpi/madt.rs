//! The Multiple APIC Description Table (ACPI 6.5, 5.2.12).

use super::entries;
use crate::bytes::{u8_at, u16_at, u32_at, u64_at};
use addr::Hpa;
use alloc::vec::Vec;

/// A logical processor (entry types 0 and 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// ACPI processor UID.
    pub uid: u32,
    /// Local APIC id; x2APIC id if above 254.
    pub apic_id: u32,
    /// Ready for use now.
    pub enabled: bool,
    /// Not enabled, but can be brought online later.
    pub online_capable: bool,
}

/// An I/O APIC (type 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Its id.
    pub id: u8,
    /// Its registers.
    pub at: Hpa,
    /// Global system interrupt of its first pin.
    pub gsi_base: u32,
}

/// Polarity and trigger of an interrupt line ("MPS INTI Flags").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntFlags(pub u16);

impl IntFlags {
    /// Whether the line is active low; `None` leaves it to the bus (ISA: high).
    pub const fn active_low(self) -> Option<bool> {
        match self.0 & 3 {
            1 => Some(false),
            3 => Some(true),
            _ => None,
        }
    }
    /// Whether the line is level-triggered; `None` leaves it to the bus (ISA: edge).
    pub const fn level(self) -> Option<bool> {
        match self.0 >> 2 & 3 {
            1 => Some(false),
            3 => Some(true),
            _ => None,
        }
    }
}

/// An ISA interrupt that is not identity-mapped (type 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    /// ISA interrupt, 0..=15.
    pub irq: u8,
    /// Its global system interrupt.
    pub gsi: u32,
    /// Polarity and trigger.
    pub flags: IntFlags,
}

/// Which processors an entry speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuIds {
    /// All of them.
    All,
    /// The one with this ACPI processor UID.
    Uid(u32),
}

/// A local APIC pin wired to NMI (types 4 and 10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalNmi {
    /// Whose local APIC.
    pub cpus: CpuIds,
    /// LINT0 or LINT1.
    pub lint: u8,
    /// Polarity and trigger.
    pub flags: IntFlags,
}

/// The table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Madt {
    /// The local APICs' registers, the 64-bit override (type 5) applied.
    pub lapic: Hpa,
    /// There is a pair of 8259s too.
    pub pcat_compat: bool,
    /// Processors, in the order of the table; the first is the boot processor. None twice.
    pub cpus: Vec<Cpu>,
    /// I/O APICs.
    pub io_apics: Vec<IoApic>,
    /// ISA interrupts that are not identity-mapped.
    pub overrides: Vec<Override>,
    /// Global system interrupts wired to NMI (type 3).
    pub nmi_sources: Vec<(u32, IntFlags)>,
    /// Local APIC pins wired to NMI.
    pub local_nmis: Vec<LocalNmi>,
}

impl Madt {
    /// Parses a whole table, header included; `None` if it lacks its fixed part. Entries that are cut short
    /// or of unknown type are skipped.
    pub fn parse(table: &[u8]) -> Option<Self> {
        let mut madt = Self {
            lapic: Hpa::new(u32_at(table, 36)?.into()),
            pcat_compat: u32_at(table, 40)? & 1 != 0,
            cpus: Vec::new(),
            io_apics: Vec::new(),
            overrides: Vec::new(),
            nmi_sources: Vec::new(),
            local_nmis: Vec::new(),
        };
        for entry in entries(&table[44..]) {
            madt.take(entry);
        }
        Some(madt)
    }

    fn take(&mut self, e: &[u8]) -> Option<()> {
        match e[0] {
            // An id of 255 is the broadcast address: firmware leaves it in unused entries.
            0 if u8_at(e, 3)? != 0xff => {
                self.add_cpu(u8_at(e, 2)?.into(), u8_at(e, 3)?.into(), u32_at(e, 4)?)
            }
            1 => self.io_apics.push(IoApic {
                id: u8_at(e, 2)?,
                at: Hpa::new(u32_at(e, 4)?.into()),
                gsi_base: u32_at(e, 8)?,
            }),
            2 => self.overrides.push(Override {
                irq: u8_at(e, 3)?,
                gsi: u32_at(e, 4)?,
                flags: IntFlags(u16_at(e, 8)?),
            }),
            3 => self.nmi_sources.push((u32_at(e, 4)?, IntFlags(u16_at(e, 2)?))),
            4 => self.local_nmis.push(LocalNmi {
                cpus: match u8_at(e, 2)? {
                    0xff => CpuIds::All,
                    uid => CpuIds::Uid(uid.into()),
                },
                lint: u8_at(e, 5)?,
                flags: IntFlags(u16_at(e, 3)?),
            }),
            5 => self.lapic = Hpa::new(u64_at(e, 4)?),
            9 => self.add_cpu(u32_at(e, 12)?, u32_at(e, 4)?, u32_at(e, 8)?),
            10 => self.local_nmis.push(LocalNmi {
                cpus: match u32_at(e, 4)? {
                    u32::MAX => CpuIds::All,
                    uid => CpuIds::Uid(uid),
                },
                lint: u8_at(e, 8)?,
                flags: IntFlags(u16_at(e, 2)?),
            }),
            _ => {}
        }
        Some(())
    }

    /// Some firmware lists a processor as local APIC and as x2APIC both: one of them counts, an enabled one
    /// if there is any.
    fn add_cpu(&mut self, uid: u32, apic_id: u32, flags: u32) {
        let enabled = flags & 1 != 0;
        let cpu = Cpu { uid, apic_id, enabled, online_capable: !enabled && flags & 2 != 0 };
        match self.cpus.iter().position(|known| known.apic_id == apic_id) {
            Some(known) if cpu.enabled && !self.cpus[known].enabled => self.cpus[known] = cpu,
            None if self.cpus.len() < super::MAX_CPUS => self.cpus.push(cpu),
            _ => {}
        }
    }
}
