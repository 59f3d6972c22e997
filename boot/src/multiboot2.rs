//! The boot information that a multiboot2 loader such as GRUB leaves in memory.
//!
//! The layout is the Multiboot2 Specification 2.0, section 3.6 ("Boot information format"), except for the
//! framebuffer tag, whose colours GRUB puts at offset 32, not 31. The tags are read by hand: the `multiboot2`
//! crate wants a raw pointer (`BootInformation::load` is `unsafe`) and casts tags in place, while a dozen
//! fixed offsets into a bounds-checked slice need neither.
//!
//! A tag that contradicts its own size is an error, as the loader writes them all: the information as a
//! whole can't be trusted then. The RSDP copies are the exception, being the firmware's: an unsound one is
//! as good as none.

use crate::acpi::Rsdp;
use crate::bytes::{u8_at, u32_at, u64_at};
use crate::{E820Type, Region, normalise};
use addr::{HostPhys, Hpa};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// What `eax` holds at entry when a multiboot2 loader started us (Multiboot2 specification 2.0, 3.2).
pub const LOADER_MAGIC: u32 = 0x36d7_6289;

/// Why the boot information cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootError {
    /// The slice is shorter than the information says it is, or than its fixed header.
    Truncated,
    /// A tag runs past the end of the information, or has no room for its fixed fields.
    BadTag {
        /// The tag's type.
        kind: u32,
        /// Its offset in bytes.
        offset: usize,
    },
    /// Neither a memory map nor an EFI memory map.
    NoMemoryMap,
    /// A module's end lies before its start.
    BadModule {
        /// Position among the modules, from 0.
        index: usize,
    },
    /// The loader left EFI boot services running: firmware still owns the machine.
    BootServicesRunning,
    /// 32-bit EFI firmware.
    Efi32,
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("boot information: shorter than it says"),
            Self::BadTag { kind, offset } => {
                write!(f, "boot information: tag {kind} at offset {offset:#x} has a wrong size")
            }
            Self::NoMemoryMap => f.write_str("boot information: the boot loader gave no memory map"),
            Self::BadModule { index } => write!(f, "boot information: module {} ends before it starts", index + 1),
            Self::BootServicesRunning => f.write_str(
                "the boot loader left EFI boot services running; start by `multiboot2` of GRUB, which ends them",
            ),
            Self::Efi32 => f.write_str("32-bit EFI firmware is not supported"),
        }
    }
}

impl core::error::Error for BootError {}

/// A file that the loader put into memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// First byte.
    pub start: Hpa,
    /// First byte behind the file.
    pub end: Hpa,
    /// What the configuration says behind the file's name.
    pub cmdline: String,
}

impl Module {
    /// Length in bytes.
    pub const fn bytes(&self) -> u64 {
        self.end.raw() - self.start.raw()
    }
}

/// Where one colour lies in a pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColourField {
    /// Lowest bit.
    pub position: u8,
    /// Number of bits.
    pub size: u8,
}

/// How a framebuffer's bytes become colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramebufferKind {
    /// Pixels are indices into a palette.
    Indexed,
    /// Pixels hold colours directly.
    Rgb {
        /// Red.
        red: ColourField,
        /// Green.
        green: ColourField,
        /// Blue.
        blue: ColourField,
    },
    /// Not pixels but EGA text: character and attribute bytes; width and height count characters.
    EgaText,
    /// A type the specification doesn't name.
    Unknown(u8),
}

/// The screen the loader set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framebuffer {
    /// First byte.
    pub addr: Hpa,
    /// Bytes per line.
    pub pitch: u32,
    /// Pixels (characters for text) per line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// Bits per pixel (16 for text).
    pub bpp: u8,
    /// Meaning of the bytes.
    pub kind: FramebufferKind,
}

/// Everything of the boot information that the hypervisor uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootInfo {
    /// The hypervisor's command line, without the file's name.
    pub command_line: String,
    /// The loader's name and version.
    pub loader: String,
    /// The modules in the order of the configuration.
    pub modules: Vec<Module>,
    /// Copy of the ACPI root pointer, the newest that is sound.
    pub rsdp: Option<Rsdp>,
    /// The screen.
    pub framebuffer: Option<Framebuffer>,
    /// EFI system table of 64-bit firmware.
    pub efi64_system_table: Option<Hpa>,
    /// EFI image handle, a firmware pointer of no use once boot services have ended.
    pub efi64_image_handle: Option<u64>,
    /// Where the image was loaded, if the loader relocated it.
    pub load_base: Option<Hpa>,
    /// The loader's map and the EFI map, one after the other, as found.
    regions: Vec<Region<HostPhys>>,
}

/// Tag types (3.6).
mod tag {
    pub const END: u32 = 0;
    pub const COMMAND_LINE: u32 = 1;
    pub const LOADER_NAME: u32 = 2;
    pub const MODULE: u32 = 3;
    pub const MEMORY_MAP: u32 = 6;
    pub const FRAMEBUFFER: u32 = 8;
    pub const EFI32: u32 = 11;
    pub const EFI64: u32 = 12;
    pub const RSDP_OLD: u32 = 14;
    pub const RSDP_NEW: u32 = 15;
    pub const EFI_MEMORY_MAP: u32 = 17;
    pub const EFI_BOOT_SERVICES: u32 = 18;
    pub const EFI64_IMAGE_HANDLE: u32 = 20;
    pub const LOAD_BASE: u32 = 21;
}

/// Bytes of the fixed header, and of a tag's header.
const HEADER: usize = 8;
/// No x86 machine has physical addresses of more bits.
const PHYS_END: u64 = 1 << 52;

impl BootInfo {
    /// Parses the information block; `info` starts at its first byte and may be longer than it.
    pub fn parse(info: &[u8]) -> Result<Self, BootError> {
        let total = u32_at(info, 0).ok_or(BootError::Truncated)? as usize;
        let info = info.get(..total).filter(|info| info.len() >= HEADER).ok_or(BootError::Truncated)?;
        let mut found = Self {
            command_line: String::new(),
            loader: String::new(),
            modules: Vec::new(),
            rsdp: None,
            framebuffer: None,
            efi64_system_table: None,
            efi64_image_handle: None,
            load_base: None,
            regions: Vec::new(),
        };
        let mut offset = HEADER;
        while offset < info.len() {
            let (kind, size) =
                u32_at(info, offset).zip(u32_at(info, offset + 4)).ok_or(BootError::Truncated)?;
            if kind == tag::END {
                break;
            }
            let bad = BootError::BadTag { kind, offset };
            let size = size as usize;
            let body = info[offset..].get(..size).filter(|tag| tag.len() >= HEADER).ok_or(bad)?;
            found.take(kind, body)?.ok_or(bad)?;
            offset += size.next_multiple_of(8);
        }
        if found.regions.is_empty() { Err(BootError::NoMemoryMap) } else { Ok(found) }
    }

    /// The memory map: sorted, without overlaps, RAM in whole pages. Where the loader's map and an EFI map
    /// differ the safer kind holds. Kernel, modules and this very block are still inside RAM: the caller
    /// reserves them.
    pub fn memory_map(&self) -> Vec<Region<HostPhys>> {
        normalise(&self.regions)
    }

    /// Takes in one tag; `None` if it is too short for what it must hold.
    fn take(&mut self, kind: u32, tag: &[u8]) -> Result<Option<()>, BootError> {
        match kind {
            tag::COMMAND_LINE => self.command_line = string(tag, 8),
            tag::LOADER_NAME => self.loader = string(tag, 8),
            tag::MODULE => return self.take_module(tag),
            tag::MEMORY_MAP => return Ok(self.take_memory_map(tag)),
            tag::EFI_MEMORY_MAP => return Ok(self.take_efi_map(tag)),
            tag::FRAMEBUFFER => return Ok(framebuffer(tag).map(|found| self.framebuffer = Some(found))),
            tag::EFI32 => return Err(BootError::Efi32),
            tag::EFI_BOOT_SERVICES => return Err(BootError::BootServicesRunning),
            tag::EFI64 => return Ok(u64_at(tag, 8).map(|at| self.efi64_system_table = Some(Hpa::new(at)))),
            tag::EFI64_IMAGE_HANDLE => return Ok(u64_at(tag, 8).map(|at| self.efi64_image_handle = Some(at))),
            tag::LOAD_BASE => return Ok(u32_at(tag, 8).map(|at| self.load_base = Some(Hpa::new(at.into())))),
            // The newer copy knows the XSDT; the order of the two tags is the loader's choice.
            tag::RSDP_NEW => self.rsdp = Rsdp::parse(&tag[8..]).ok().or(self.rsdp),
            tag::RSDP_OLD => self.rsdp = self.rsdp.or(Rsdp::parse(&tag[8..]).ok()),
            _ => {}
        }
        Ok(Some(()))
    }

    fn take_module(&mut self, tag: &[u8]) -> Result<Option<()>, BootError> {
        let Some((start, end)) = u32_at(tag, 8).zip(u32_at(tag, 12)) else { return Ok(None) };
        if end < start {
            return Err(BootError::BadModule { index: self.modules.len() });
        }
        let (start, end) = (Hpa::new(start.into()), Hpa::new(end.into()));
        self.modules.push(Module { start, end, cmdline: string(tag, 16) });
        Ok(Some(()))
    }

    fn take_memory_map(&mut self, tag: &[u8]) -> Option<()> {
        for entry in entries(tag, 24)? {
            let (base, bytes, kind) = (u64_at(entry, 0)?, u64_at(entry, 8)?, u32_at(entry, 16)?);
            self.add(base, bytes, E820Type(kind));
        }
        Some(())
    }

    fn take_efi_map(&mut self, tag: &[u8]) -> Option<()> {
        for entry in entries(tag, 40)? {
            let (kind, base) = (u32_at(entry, 0)?, u64_at(entry, 8)?);
            let (pages, attributes) = (u64_at(entry, 24)?, u64_at(entry, 32)?);
            self.add(base, pages.saturating_mul(4096), efi_kind(kind, attributes));
        }
        Some(())
    }

    fn add(&mut self, base: u64, bytes: u64, kind: E820Type) {
        let mut region = Region::new(Hpa::new(base), bytes, kind);
        region.end = region.end.min(Hpa::new(PHYS_END));
        self.regions.push(region);
    }
}

/// The entries of a memory map tag: their size is at 8, they start at 16 and have at least `least` bytes.
fn entries(tag: &[u8], least: usize) -> Option<impl Iterator<Item = &[u8]>> {
    let size = u32_at(tag, 8)? as usize;
    Some(tag.get(16..).filter(|_| size >= least)?.chunks_exact(size))
}

/// What an EFI descriptor says of its memory (UEFI Specification 2.10, 7.2.3, EFI_MEMORY_DESCRIPTOR), after
/// ExitBootServices.
fn efi_kind(kind: u32, attributes: u64) -> E820Type {
    /// Can be mapped write-back; memory that cannot isn't RAM to us.
    const WRITE_BACK: u64 = 1 << 3;
    /// Meant for one purpose (a device's HBM, say).
    const SPECIFIC_PURPOSE: u64 = 1 << 18;
    /// Firmware will use it at run time, whatever its type.
    const RUNTIME: u64 = 1 << 63;
    match kind {
        // LoaderCode, LoaderData, BootServicesCode, BootServicesData, ConventionalMemory.
        1..=4 | 7 if attributes & (WRITE_BACK | SPECIFIC_PURPOSE | RUNTIME) == WRITE_BACK => E820Type::RAM,
        8 => E820Type::UNUSABLE,
        9 => E820Type::ACPI,
        10 => E820Type::NVS,
        14 => E820Type::PERSISTENT,
        // Runtime services, MMIO, PAL code, unaccepted memory and whatever comes next.
        _ => E820Type::RESERVED,
    }
}

fn framebuffer(tag: &[u8]) -> Option<Framebuffer> {
    let field = |at| Some(ColourField { position: u8_at(tag, at)?, size: u8_at(tag, at + 1)? });
    Some(Framebuffer {
        addr: Hpa::new(u64_at(tag, 8)?),
        pitch: u32_at(tag, 16)?,
        width: u32_at(tag, 20)?,
        height: u32_at(tag, 24)?,
        bpp: u8_at(tag, 28)?,
        kind: match u8_at(tag, 29)? {
            0 => FramebufferKind::Indexed,
            1 => FramebufferKind::Rgb { red: field(32)?, green: field(34)?, blue: field(36)? },
            2 => FramebufferKind::EgaText,
            other => FramebufferKind::Unknown(other),
        },
    })
}

/// The zero-terminated string at `at`; bytes that aren't UTF-8 are replaced.
fn string(tag: &[u8], at: usize) -> String {
    let bytes = tag.get(at..).unwrap_or_default();
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests;
