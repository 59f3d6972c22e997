//! What a PVH guest is handed: start info, memory map, ACPI tables, all as bytes to copy into its memory.
//!
//! Layouts: xen/include/public/arch-x86/hvm/start_info.h (version 1) and the ACPI Specification 6.5.

mod acpi;

pub use acpi::{AcpiOptions, MAX_ACPI_VCPUS, ResetPort, SleepPorts, apic_id, guest_acpi};

use crate::Region;
use addr::{Gpa, GuestPhys, PAGE_SIZE};
use alloc::string::String;
use alloc::vec::Vec;

/// `magic` of `hvm_start_info`: "xEn3" with the top bit of the E set.
pub const START_MAGIC: u32 = 0x336e_c578;
/// `flags`: the domain is privileged.
pub const SIF_PRIVILEGED: u32 = 1 << 0;
/// `flags`: the domain is the first one.
pub const SIF_INITDOMAIN: u32 = 1 << 1;

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartInfo {
    /// `SIF_*` flags; 0 for a domU.
    pub flags: u32,
    /// Modules; Linux takes the first as its ramdisk.
    pub modules: Vec<StartModule>,
    /// The kernel's command line.
    pub cmdline: String,
    /// The guest's ACPI root pointer, if it has one.
    pub rsdp: Option<Gpa>,
    /// The guest's memory map.
    pub memmap: Vec<Region<GuestPhys>>,
}

/// Bytes of `hvm_start_info` version 1.
const START_INFO: usize = 56;
/// Bytes of a module list entry.
const MODULE: usize = 32;
/// Bytes of a memory map entry.
const MEMMAP: usize = 24;

impl StartInfo {
    /// The bytes to put at `base` (a multiple of 8): `hvm_start_info`, then all that it points to. `ebx`
    /// holds `base` at entry, and the memory must be writable RAM, as Linux keeps a stack slot in it.
    /// Strings end at their first NUL.
    pub fn build(&self, base: Gpa) -> Vec<u8> {
        let modules_at = START_INFO;
        let memmap_at = modules_at + self.modules.len() * MODULE;
        let mut strings_at = memmap_at + self.memmap.len() * MEMMAP;
        let mut strings = Vec::new();
        let gpa = |offset: usize| base.wrapping_add(offset as u64).raw();
        let mut string = |text: &str| {
            if text.is_empty() {
                return 0;
            }
            let at = gpa(strings_at);
            let text = text.split('\0').next().unwrap_or_default();
            strings.extend(text.as_bytes());
            strings.push(0);
            strings_at += text.len() + 1;
            at
        };
        // A list without entries is at address zero.
        let list = |at, entries: usize| if entries == 0 { 0 } else { gpa(at) };

        let mut out = Vec::new();
        let mut put32 = |words: &[u32]| words.iter().for_each(|word| out.extend(word.to_le_bytes()));
        put32(&[START_MAGIC, 1, self.flags, self.modules.len() as u32]);
        put64(&mut out, &[list(modules_at, self.modules.len()), string(&self.cmdline)]);
        let rsdp = self.rsdp.map_or(0, Gpa::raw);
        put64(&mut out, &[rsdp, list(memmap_at, self.memmap.len()), self.memmap.len() as u64]);
        for module in &self.modules {
            put64(&mut out, &[module.addr.raw(), module.bytes, string(&module.cmdline), 0]);
        }
        for region in &self.memmap {
            put64(&mut out, &[region.start.raw(), region.bytes(), region.kind.0.into()]);
        }
        out.extend(strings);
        out
    }

    /// Bytes that [`StartInfo::build`] gives, rounded up to whole pages.
    pub fn pages_bytes(&self) -> u64 {
        (self.build(Gpa::ZERO).len() as u64).next_multiple_of(PAGE_SIZE)
    }
}

fn put64(out: &mut Vec<u8>, quads: &[u64]) {
    quads.iter().for_each(|quad| out.extend(quad.to_le_bytes()));
}

/// The map as the packed 20-byte e820 entries of XENMEM_memory_map: address, size, type.
pub fn e820(map: &[Region<GuestPhys>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(map.len() * 20);
    for region in map {
        put64(&mut out, &[region.start.raw(), region.bytes()]);
        out.extend(region.kind.0.to_le_bytes());
    }
    out
}

#[cfg(test)]
mod tests;

/// Whether a Linux kernel would come up with nothing to start: it gets neither a ramdisk nor the name of a root file
/// system. (One with a ramdisk built in is suspected wrongly.)
pub fn lacks_root(kernel: &[u8], config: &crate::modules::DomainConfig) -> bool {
    let is_linux = matches!(crate::bzimage::detect(kernel), crate::bzimage::Kind::BzImage);
    let named = config.cmdline.split_ascii_whitespace().any(|word| word.starts_with("root="));
    is_linux && config.ramdisk.is_none() && !named
}
