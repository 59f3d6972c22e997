//! What a PVH guest is handed: start info, memory map, ACPI tables.
#![allow(clippy::todo)]
use crate::Region;
use addr::{Gpa, GuestPhys};
use alloc::string::String;
use alloc::vec::Vec;

/// A module in guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartModule {
    /// Where it lies.
    pub addr: Gpa,
    /// Bytes.
    pub bytes: u64,
    /// Its string.
    pub cmdline: String,
}

/// What goes into `hvm_start_info`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartInfo {
    /// `SIF_*` flags; 0 for a domU.
    pub flags: u32,
    /// Modules; 0 is the ramdisk.
    pub modules: Vec<StartModule>,
    /// The kernel's command line.
    pub cmdline: String,
    /// The guest's root pointer, if it has ACPI.
    pub rsdp: Option<Gpa>,
    /// The guest's memory map.
    pub memmap: Vec<Region<GuestPhys>>,
}

impl StartInfo {
    /// The bytes to put at `base`: start info first, then all that it points to.
    pub fn build(&self, _base: Gpa) -> Vec<u8> {
        todo!()
    }
}

/// The map as the 20-byte e820 entries of XENMEM_memory_map.
pub fn e820(_map: &[Region<GuestPhys>]) -> Vec<u8> {
    todo!()
}

/// What the guest's tables may offer beyond CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcpiOptions {
    /// Sleep registers, as I/O ports.
    pub sleep: Option<SleepPorts>,
    /// Reset register.
    pub reset: Option<ResetPort>,
}

/// Sleep control and status registers of hardware-reduced ACPI, each one byte wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SleepPorts {
    /// Control port.
    pub control: u16,
    /// Status port.
    pub status: u16,
    /// SLP_TYP of S5, 0..=7.
    pub s5: u8,
}

/// Port and value that reset the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetPort {
    /// Port.
    pub port: u16,
    /// Value.
    pub value: u8,
}

/// The guest's ACPI tables as one blob for `base`, the root pointer first.
pub fn guest_acpi(_base: Gpa, _vcpus: u32, _options: &AcpiOptions) -> Vec<u8> {
    todo!()
}
