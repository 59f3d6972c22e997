//! Descriptor tables: one GDT, TSS per CPU; one IDT for all.
//!
//! Interrupt-stack-table entries are used for NMI, #MC and #DF alone. With GIF=0 the guest's TR is live,
//! but then NMI and #MC are held pending. #DF is not (APM vol. 2, "Global Interrupt Flag, STGI and CLGI
//! Instructions"): one with a guest's TR, which only a bug of ours can cause, has no stack that can be trusted.
//! `report` loads Testudo's own TR before anything else.
// UNSAFETY: loads descriptor tables.
#![allow(unsafe_code)]

use crate::cpu::stack;
use core::arch::asm;
use core::mem::size_of;

/// Testudo's code segment.
pub const CS: u16 = 0x08;
/// Testudo's data segment.
pub const DS: u16 = 0x10;
/// Testudo's task state segment.
pub const TR: u16 = 0x20;

/// IST index (1-based) of the NMI stack.
const IST_NMI: u8 = 1;
/// IST index of the machine-check stack.
const IST_MCE: u8 = 2;
/// IST index of the double-fault stack.
const IST_DF: u8 = 3;

/// The 64-bit task state segment (APM vol. 2, "64-Bit Task State Segment").
#[derive(Debug)]
#[repr(C, packed(4))]
pub struct Tss {
    reserved0: u32,
    rsp: [u64; 3],
    reserved1: u64,
    ist: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    io_map_base: u16,
}

/// A CPU's GDT and the TSS it points to.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct Tables {
    gdt: [u64; 6],
    tss: Tss,
}

/// An IDT gate (APM vol. 2, "Interrupt-Gate and Trap-Gate Descriptors, Long Mode").
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Gate {
    low: u64,
    high: u64,
}

#[repr(C, align(4096))]
#[derive(Debug)]
struct Idt([Gate; 256]);

static mut IDT: Idt = Idt([Gate { low: 0, high: 0 }; 256]);

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

impl Tables {
    /// Tables whose TSS names the interrupt stacks of the stack block at `block`.
    pub const fn new() -> Self {
        Tables {
            gdt: [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_9b00_0000_ffff, 0, 0],
            tss: Tss {
                reserved0: 0,
                rsp: [0; 3],
                reserved1: 0,
                ist: [0; 7],
                reserved2: 0,
                reserved3: 0,
                io_map_base: size_of::<Tss>() as u16,
            },
        }
    }

    /// Points the interrupt stacks into `block` and loads GDT, segments and TR on this CPU.
    ///
    /// # Safety
    /// `self` must never move or be dropped while this CPU runs; `block` must be its mapped stack block.
    pub unsafe fn load(&mut self, block: u64) {
        let mut ist = [0; 7];
        ist[IST_NMI as usize - 1] = block + stack::NMI_TOP as u64;
        ist[IST_MCE as usize - 1] = block + stack::MCE_TOP as u64;
        ist[IST_DF as usize - 1] = block + stack::DF_TOP as u64;
        self.tss.ist = ist;
        let base = (&raw const self.tss) as u64;
        let limit = size_of::<Tss>() as u64 - 1;
        self.gdt[4] = limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
        self.gdt[5] = base >> 32;
        let pointer =
            Pointer { limit: (size_of::<[u64; 6]>() - 1) as u16, base: (&raw const self.gdt) as u64 };
        // SAFETY: the caller keeps the tables in place; selectors below match `new`.
        unsafe {
            asm!(
                "lgdt [{pointer}]",
                "push {cs}",
                "lea {tmp}, [rip + 2f]",
                "push {tmp}",
                "retfq",
                "2:",
                "mov ds, {ds:e}",
                "mov es, {ds:e}",
                "mov ss, {ds:e}",
                "xor {tmp:e}, {tmp:e}",
                "mov fs, {tmp:e}",
                "mov gs, {tmp:e}",
                "lldt {tmp:x}",
                "ltr {tr:x}",
                pointer = in(reg) &pointer,
                cs = const CS as i32,
                ds = in(reg) u32::from(DS),
                tr = in(reg) u32::from(TR),
                tmp = out(reg) _,
            );
        }
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self::new()
    }
}

/// Fills the IDT. Once, on the boot CPU, before any CPU loads it.
pub fn build_idt() {
    for vector in 0..=255u8 {
        let entry = super::super::trap::stub(vector);
        let ist = match vector {
            2 => IST_NMI,
            18 => IST_MCE,
            8 => IST_DF,
            _ => 0,
        };
        let low = entry & 0xffff
            | u64::from(CS) << 16
            | u64::from(ist) << 32
            | 0x8e << 40
            | (entry >> 16 & 0xffff) << 48;
        // SAFETY: only the boot CPU runs now.
        unsafe {
            let idt = &raw mut IDT;
            (*idt).0[vector as usize] = Gate { low, high: entry >> 32 };
        }
    }
}

/// Loads the IDT on this CPU. `ist` off: every vector on the current stack, until a TSS is loaded.
pub fn load_idt() {
    let pointer = Pointer { limit: (size_of::<Idt>() - 1) as u16, base: (&raw const IDT) as u64 };
    // SAFETY: the IDT is a static, built before the first load.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(nostack, preserves_flags, readonly)) };
}
