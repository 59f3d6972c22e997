//! The PVH boot protocol (`public/arch-x86/hvm/start_info.h`, `public/elfnote.h`).

use crate::macros::layout;

/// [`StartInfo::magic`].
pub const START_MAGIC: u32 = 0x336e_c578;
/// [`StartInfo::flags`]: privileged.
pub const SIF_PRIVILEGED: u32 = 1;
/// [`StartInfo::flags`]: the first domain.
pub const SIF_INITDOMAIN: u32 = 2;
/// Type of the ELF note (owner `Xen`) that holds the 32-bit entry address.
pub const ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// Type of the ELF note that says where else the kernel may be loaded.
pub const ELFNOTE_PHYS32_RELOC: u32 = 19;

layout! {
    /// What ebx points at when the guest starts.
    StartInfo: 56 {
        /// [`START_MAGIC`].
        magic @ 0: u32,
        /// 1: with a memory map.
        version @ 4: u32,
        /// `SIF_*`.
        flags @ 8: u32,
        /// Modules.
        nr_modules @ 12: u32,
        /// Address of the [`Module`]s.
        modlist_paddr @ 16: u64,
        /// Address of the command line.
        cmdline_paddr @ 24: u64,
        /// Address of the RSDP.
        rsdp_paddr @ 32: u64,
        /// Address of the [`MemmapEntry`]s.
        memmap_paddr @ 40: u64,
        /// How many.
        memmap_entries @ 48: u32,
        /// Must be zero.
        reserved @ 52: u32,
    }
    /// A module; the first is the initrd.
    Module: 32 {
        /// Address.
        paddr @ 0: u64,
        /// Bytes.
        size @ 8: u64,
        /// Address of its command line.
        cmdline_paddr @ 16: u64,
        /// Must be zero.
        reserved @ 24: u64,
    }
    /// A record of the memory map.
    MemmapEntry: 24 {
        /// Address.
        addr @ 0: u64,
        /// Bytes.
        size @ 8: u64,
        /// As in e820.
        kind @ 16: u32,
        /// Must be zero.
        reserved @ 20: u32,
    }
}
