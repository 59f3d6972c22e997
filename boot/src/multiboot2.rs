//! The boot information that a multiboot2 loader such as GRUB leaves in memory.
#![allow(clippy::todo)]

use crate::Region;
use crate::acpi::Rsdp;
use addr::{HostPhys, Hpa};
use alloc::string::String;
use alloc::vec::Vec;

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
    /// Where the image was loaded, if the loader relocated it.
    pub load_base: Option<Hpa>,
}

impl BootInfo {
    /// Parses the information block; `info` starts at its first byte and may be longer than it.
    pub fn parse(_info: &[u8]) -> Result<Self, BootError> {
        todo!()
    }

    /// The memory map: sorted, without overlaps, RAM in whole pages. Kernel, modules and this very block
    /// are still inside RAM: the caller reserves them.
    pub fn memory_map(&self) -> Vec<Region<HostPhys>> {
        todo!()
    }
}
