//! Testudo's page tables: W^X, guard pages, device windows.
// UNSAFETY: writes page tables.
#![allow(unsafe_code)]

use crate::cpu::{instr, stack};
use crate::mm::{direct, frames};
use addr::{HostPhys, Hpa, PAGE_SIZE, PageSize, Range};
use core::sync::atomic::{AtomicBool, Ordering};
use hv_core::memory::Zone;
use hv_core::symbols::Symbols;
use spin::Mutex;

/// Where device registers appear: this plus their physical address.
pub const DEVICE_BASE: u64 = 0xffff_a000_0000_0000;
/// First stack block.
const STACK_BASE: u64 = 0xffff_c000_0000_0000;
/// Where the image's physical address 0 appears (`link.ld`).
const IMAGE_BASE: u64 = 0xffff_ffff_8000_0000;

/// Bits of an entry of a long-mode page table.
mod bit {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITABLE: u64 = 1 << 1;
    pub const WRITE_THROUGH: u64 = 1 << 3;
    pub const CACHE_DISABLE: u64 = 1 << 4;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const PAGE_SIZE: u64 = 1 << 7;
    pub const GLOBAL: u64 = 1 << 8;
    pub const NO_EXECUTE: u64 = 1 << 63;
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// What a mapping may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Read only.
    Data,
    /// Read and write.
    DataMut,
    /// Execute (and read).
    Code,
    /// Device registers: read, write, uncached (PAT entry 3 of the power-on PAT, UC).
    Device,
    /// Write-combining is not used; a framebuffer is a device as well.
    Framebuffer,
}

impl Use {
    const fn bits(self) -> u64 {
        let common = bit::PRESENT | bit::ACCESSED | bit::DIRTY | bit::GLOBAL;
        match self {
            Use::Data => common | bit::NO_EXECUTE,
            Use::DataMut => common | bit::WRITABLE | bit::NO_EXECUTE,
            Use::Code => common,
            Use::Device | Use::Framebuffer => {
                common | bit::WRITABLE | bit::NO_EXECUTE | bit::WRITE_THROUGH | bit::CACHE_DISABLE
            }
        }
    }
}

/// The map, shared by all CPUs.
#[derive(Debug)]
pub struct HostMap {
    root: Hpa,
    gigabyte_pages: bool,
}

static MAP: Mutex<Option<HostMap>> = Mutex::new(None);
static READY: AtomicBool = AtomicBool::new(false);

#[cfg(target_os = "none")]
mod image {
    use super::*;
    use hv_core::symbols;
    unsafe extern "C" {
        static __image_start: u8;
        static __text_start: u8;
        static __text_end: u8;
        static __rodata_start: u8;
        static __rodata_end: u8;
        static __data_start: u8;
        static __data_end: u8;
        static __symbols_start: u8;
    }

    // An empty table (`hv_core::symbols`): the build puts the full one into its place.
    core::arch::global_asm!(
        r#"
    .section .symbols, "a"
    .balign 8
    .ascii "TESTSYM1"
    .long 32, 0
    .quad 0, 0
    .text
    "#
    );

    /// The symbol table, the last of the image.
    pub fn symbols() -> &'static [u8] {
        let start = &raw const __symbols_start;
        // SAFETY: the linker keeps the header; the loader has loaded as much as the header says, since both
        // were written together. Nobody ever writes to it.
        unsafe {
            let header = core::slice::from_raw_parts(start, symbols::HEADER);
            core::slice::from_raw_parts(start, symbols::total(header).unwrap_or(symbols::HEADER))
        }
    }

    /// Where the image ends.
    fn end() -> u64 {
        let symbols = symbols();
        (symbols.as_ptr() as u64 + symbols.len() as u64).next_multiple_of(PAGE_SIZE)
    }

    /// Physical extent of the image, its entry code, bss and symbols included.
    pub fn extent() -> Range<HostPhys> {
        let start = (&raw const __image_start) as u64;
        let end = end().wrapping_sub(IMAGE_BASE);
        Range::new(Hpa::new(start), end - start).expect("the linker puts the end behind the start")
    }

    /// The image's segments by virtual address.
    pub fn segments() -> [(u64, u64, Use); 4] {
        [
            ((&raw const __text_start) as u64, (&raw const __text_end) as u64, Use::Code),
            ((&raw const __rodata_start) as u64, (&raw const __rodata_end) as u64, Use::Data),
            ((&raw const __data_start) as u64, (&raw const __data_end) as u64, Use::DataMut),
            ((&raw const __symbols_start) as u64, end(), Use::Data),
        ]
    }
}

#[cfg(not(target_os = "none"))]
mod image {
    use super::*;
    pub fn extent() -> Range<HostPhys> {
        Range::new(Hpa::ZERO, 0).expect("an empty range")
    }
    pub fn segments() -> [(u64, u64, Use); 4] {
        [(0, 0, Use::Data); 4]
    }
    pub fn symbols() -> &'static [u8] {
        &[]
    }
}

/// Physical extent of Testudo's image.
pub fn image_extent() -> Range<HostPhys> {
    image::extent()
}

/// The names of the image's functions. `None`: this image was not made by `cargo xtask build`.
pub fn symbols() -> Option<Symbols<'static>> {
    Symbols::new(image::symbols())
}

/// The text segment, for telling return addresses from other words in a backtrace.
pub fn is_text(address: u64) -> bool {
    let (start, end, _) = image::segments()[0];
    (start..end).contains(&address)
}

/// Builds the map and switches this CPU to it.
///
/// `cached` are the ranges that the direct map shows: RAM and the ACPI tables.
pub fn init(cached: &[Range<HostPhys>]) {
    let root = table_page();
    let gigabyte_pages = instr::cpuid(0x8000_0001, 0)[3] & (1 << 26) != 0;
    let mut map = HostMap { root, gigabyte_pages };
    let image = image::extent();
    for range in cached {
        // The image is left out, so that its text cannot be written through the back door.
        let (start, end) = (range.start().raw(), range.end().raw());
        let holes = [(start, end.min(image.start().raw())), (start.max(image.end().raw()), end)];
        for (from, to) in holes {
            if from < to {
                map.map(direct::BASE + from, Hpa::new(from), to - from, Use::DataMut);
            }
        }
    }
    for (start, end, rights) in image::segments() {
        map.map(start, Hpa::new(start.wrapping_sub(IMAGE_BASE)), end - start, rights);
    }
    *MAP.lock() = Some(map);
    enter();
    READY.store(true, Ordering::Relaxed);
}

/// Whether the map is in force: until then only memory below 4 GiB can be reached.
pub fn ready() -> bool {
    READY.load(Ordering::Relaxed)
}

/// Loads the map on this CPU.
pub fn enter() {
    let root = MAP.lock().as_ref().map(|m| m.root).expect("the boot CPU has built the map");
    // SAFETY: the map shows the running code, stack and data where they are linked.
    unsafe {
        instr::write_cr4(instr::read_cr4() | 1 << 7);
        instr::write_cr3(root.raw());
    }
}

/// Shows `len` bytes of device registers at `hpa`, uncached, and returns where. Mapped once, kept.
pub fn device(hpa: Hpa, len: u64) -> *mut u8 {
    window(hpa, len, Use::Device)
}

fn window(hpa: Hpa, len: u64, rights: Use) -> *mut u8 {
    let start = hpa.align_down(PageSize::Size4K).raw();
    let end = (hpa.raw() + len).next_multiple_of(PAGE_SIZE);
    let mut map = MAP.lock();
    let map = map.as_mut().expect("devices are mapped after the host map is built");
    for page in (start..end).step_by(PAGE_SIZE as usize) {
        if map.lookup(DEVICE_BASE + page).is_none() {
            map.map(DEVICE_BASE + page, Hpa::new(page), PAGE_SIZE, rights);
        }
    }
    (DEVICE_BASE + hpa.raw()) as *mut u8
}

/// Makes sure that `len` bytes at `hpa`, firmware tables in memory that the map does not call RAM, are in
/// the direct map.
pub fn ensure_cached(hpa: Hpa, len: u64) {
    let start = hpa.align_down(PageSize::Size4K).raw();
    let Some(end) = hpa.raw().checked_add(len).map(|e| e.next_multiple_of(PAGE_SIZE)) else { return };
    let mut map = MAP.lock();
    let Some(map) = map.as_mut() else { return };
    for page in (start..end).step_by(PAGE_SIZE as usize) {
        if map.lookup(direct::BASE + page).is_none() {
            map.map(direct::BASE + page, Hpa::new(page), PAGE_SIZE, Use::Data);
        }
    }
}

/// A new stack block for CPU `index`, its guard pages unmapped. Returns its base.
pub fn stack_block(index: u32) -> u64 {
    let base = STACK_BASE + u64::from(index) * stack::BLOCK_BYTES as u64;
    let mut map = MAP.lock();
    let map = map.as_mut().expect("stacks are made after the host map is built");
    for offset in (0..stack::BLOCK_BYTES).step_by(PAGE_SIZE as usize) {
        if !stack::GUARDS.contains(&offset) {
            let frame = frames::alloc_own(Zone::Any).expect("memory for a CPU's stack");
            map.map(base + offset as u64, frame.start(), PAGE_SIZE, Use::DataMut);
        }
    }
    base
}

fn table_page() -> Hpa {
    // The first ones are written through the early map, which ends at 4 GiB.
    frames::alloc_own(Zone::Below4G).expect("memory for Testudo's own page tables").start()
}

impl HostMap {
    fn map(&mut self, va: u64, pa: Hpa, len: u64, rights: Use) {
        let mut done = 0;
        while done < len {
            let (at, to, left) = (va + done, pa.raw() + done, len - done);
            let fits = |size: PageSize| (at | to) & (size.bytes() - 1) == 0 && left >= size.bytes();
            let size = if self.gigabyte_pages && fits(PageSize::Size1G) {
                PageSize::Size1G
            } else if fits(PageSize::Size2M) {
                PageSize::Size2M
            } else {
                PageSize::Size4K
            };
            self.map_one(at, to, size, rights);
            done += size.bytes();
        }
    }

    fn map_one(&mut self, va: u64, pa: u64, size: PageSize, rights: Use) {
        let mut table = self.root;
        for level in (size.level() + 1..=4).rev() {
            let index = (va >> (12 + 9 * u32::from(level - 1))) as usize & 511;
            // SAFETY: tables are pages of our own, linked from our root.
            let entry = unsafe { direct::read_entry(table, index) };
            table = if entry & bit::PRESENT == 0 {
                let next = table_page();
                // SAFETY: as above; the new table is empty.
                unsafe { direct::write_entry(table, index, next.raw() | bit::PRESENT | bit::WRITABLE) };
                next
            } else {
                assert!(entry & bit::PAGE_SIZE == 0, "{va:#x} is already mapped by a large page");
                Hpa::new(entry & bit::ADDRESS)
            };
        }
        let leaf = if size == PageSize::Size4K { 0 } else { bit::PAGE_SIZE };
        let index = (va >> size.shift()) as usize & 511;
        // SAFETY: as above; the caller decided on the rights. Entries only go from absent to present, so no
        // CPU can hold a stale one.
        unsafe { direct::write_entry(table, index, pa | leaf | rights.bits()) };
    }

    fn lookup(&self, va: u64) -> Option<u64> {
        let mut table = self.root;
        for level in (1..=4u32).rev() {
            let index = (va >> (12 + 9 * (level - 1))) as usize & 511;
            // SAFETY: as in `map_one`.
            let entry = unsafe { direct::read_entry(table, index) };
            if entry & bit::PRESENT == 0 {
                return None;
            }
            if level == 1 || entry & bit::PAGE_SIZE != 0 {
                return Some(entry);
            }
            table = Hpa::new(entry & bit::ADDRESS);
        }
        None
    }
}
