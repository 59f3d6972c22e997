//! The Fixed ACPI Description Table (ACPI 6.5, 5.2.9).

use crate::bytes::{u8_at, u16_at, u32_at, u64_at};
use addr::Hpa;

/// What kind of address a register has (5.2.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceId(pub u8);

impl SpaceId {
    /// System memory.
    pub const MEMORY: Self = Self(0);
    /// I/O ports.
    pub const IO: Self = Self(1);
    /// PCI configuration space.
    pub const PCI_CONFIG: Self = Self(2);
}

/// Where a register is: a Generic Address Structure (5.2.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GenericAddress {
    /// Kind of address.
    pub space: SpaceId,
    /// Width in bits.
    pub bits: u8,
    /// First bit.
    pub bit_offset: u8,
    /// Access size: 0 undefined, 1 byte, 2 word, 3 dword, 4 qword.
    pub access: u8,
    /// The address.
    pub address: u64,
}

impl GenericAddress {
    /// The structure at `at`; `None` if it is cut off or says "not there" by an address of zero.
    pub(super) fn at(table: &[u8], at: usize) -> Option<Self> {
        let found = Self {
            space: SpaceId(u8_at(table, at)?),
            bits: u8_at(table, at + 1)?,
            bit_offset: u8_at(table, at + 2)?,
            access: u8_at(table, at + 3)?,
            address: u64_at(table, at + 4)?,
        };
        (found.address != 0).then_some(found)
    }

    /// An I/O port register of `bytes` bytes; `None` for port zero, which means "not there".
    fn port(port: u32, bytes: u8) -> Option<Self> {
        let bits = bytes.saturating_mul(8);
        (port != 0).then_some(Self {
            space: SpaceId::IO,
            bits,
            bit_offset: 0,
            access: 0,
            address: port.into(),
        })
    }
}

/// The table's flags ("Fixed ACPI Description Table Fixed Feature Flags").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FadtFlags(pub u32);

impl FadtFlags {
    /// WBINVD works.
    pub const WBINVD: Self = Self(1 << 0);
    /// The power button is not a fixed register but a device, or absent.
    pub const POWER_BUTTON: Self = Self(1 << 4);
    /// Likewise the sleep button.
    pub const SLEEP_BUTTON: Self = Self(1 << 5);
    /// The PM timer has 32 bits, not 24.
    pub const TIMER_32_BIT: Self = Self(1 << 8);
    /// The reset register is there.
    pub const RESET: Self = Self(1 << 10);
    /// No fixed hardware: PM1 registers, PM timer and SCI do not exist.
    pub const HARDWARE_REDUCED: Self = Self(1 << 20);

    /// Whether any flag of `other` is set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// The parts of the table that a hypervisor needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fadt {
    /// The differentiated system description table; zero if there is none.
    pub dsdt: Hpa,
    /// Interrupt of the SCI.
    pub sci: u16,
    /// SMI command port; zero if the machine is always in ACPI mode.
    pub smi_command: u32,
    /// What to write there to enter ACPI mode.
    pub acpi_enable: u8,
    /// PM1a event registers: status, then enable.
    pub pm1a_event: Option<GenericAddress>,
    /// PM1b event registers.
    pub pm1b_event: Option<GenericAddress>,
    /// PM1a control register.
    pub pm1a_control: Option<GenericAddress>,
    /// PM1b control register.
    pub pm1b_control: Option<GenericAddress>,
    /// The 3.579545 MHz timer.
    pub pm_timer: Option<GenericAddress>,
    /// IA-PC boot architecture flags: bit 0 legacy devices, 1 an 8042, 2 no VGA, 3 no MSI, 5 no CMOS RTC.
    pub boot_arch: u16,
    /// Feature flags.
    pub flags: FadtFlags,
    /// Register and value that reset the machine; absent unless the flags say so.
    pub reset: Option<(GenericAddress, u8)>,
    /// Sleep control register, of hardware-reduced machines.
    pub sleep_control: Option<GenericAddress>,
    /// Sleep status register.
    pub sleep_status: Option<GenericAddress>,
}

impl Fadt {
    /// Parses a whole table, header included, of any revision; `None` if it ends before its flags.
    pub fn parse(t: &[u8]) -> Option<Self> {
        let flags = FadtFlags(u32_at(t, 112)?);
        // Each register has a 32-bit port of the first revision and a newer address that wins if it is set.
        let register = |port: usize, length: usize, wide: usize| {
            GenericAddress::at(t, wide).or_else(|| GenericAddress::port(u32_at(t, port)?, u8_at(t, length)?))
        };
        let dsdt = u64_at(t, 140).filter(|at| *at != 0);
        Some(Self {
            dsdt: Hpa::new(dsdt.unwrap_or(u32_at(t, 40)?.into())),
            sci: u16_at(t, 46)?,
            smi_command: u32_at(t, 48)?,
            acpi_enable: u8_at(t, 52)?,
            pm1a_event: register(56, 88, 148),
            pm1b_event: register(60, 88, 160),
            pm1a_control: register(64, 89, 172),
            pm1b_control: register(68, 89, 184),
            pm_timer: register(76, 91, 208),
            boot_arch: u16_at(t, 109)?,
            flags,
            reset: GenericAddress::at(t, 116).zip(u8_at(t, 128)).filter(|_| flags.has(FadtFlags::RESET)),
            sleep_control: GenericAddress::at(t, 244),
            sleep_status: GenericAddress::at(t, 256),
        })
    }

    /// Whether the machine has no fixed ACPI hardware.
    pub const fn hardware_reduced(&self) -> bool {
        self.flags.has(FadtFlags::HARDWARE_REDUCED)
    }
}
