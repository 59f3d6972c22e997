//! A guest of ours: VMCB, bitmaps, stack, registers.

use crate::vmcb::*;
use crate::{arena, cpu};

unsafe extern "C" {
    fn svm_enter(vmcb: u64, regs: *mut [u64; 14]);
    fn l2_stubs();
    static boot_gdt: [u64; 10];
}

/// Indices into [`L2::regs`].
#[allow(missing_docs)]
pub mod reg {
    pub const RBX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RSI: usize = 3;
    pub const RDI: usize = 4;
    pub const R8: usize = 6;
}

/// An L2.
#[derive(Debug)]
pub struct L2 {
    /// Its VMCB.
    pub vmcb: Vmcb,
    /// RBX, RCX, RDX, RSI, RDI, RBP, R8 to R15; RAX and RSP are in the VMCB.
    pub regs: [u64; 14],
    /// MSR permission map (two pages).
    pub msrpm: u64,
    /// I/O permission map (three pages).
    pub iopm: u64,
    /// Its IDT: vector n ends in VMMCALL with RAX = 1000h + n.
    pub idt: u64,
}

/// Code for an L2: the lines, then VMMCALL. Yields its address.
#[macro_export]
macro_rules! code {
    ($($line:expr),* $(,)?) => {{
        #[unsafe(naked)]
        extern "C" fn body() {
            core::arch::naked_asm!($($line,)* "vmmcall", "ud2")
        }
        body as extern "C" fn() as usize as u64
    }};
}

impl L2 {
    /// A guest in 64-bit mode on our own page tables, about to execute `rip`; intercepts VMRUN, VMMCALL and shutdown.
    pub fn new(rip: u64) -> L2 {
        let (vmcb, iopm, msrpm, idt) = (Vmcb(arena::page()), arena::pages(3), arena::pages(2), arena::page());
        crate::trap::write_idt(idt, l2_stubs as *const () as u64);
        let gdt = &raw const boot_gdt as u64;
        vmcb.set(MISC1, 1 << 31);
        vmcb.set(MISC2, 3);
        vmcb.set(IOPM, iopm);
        vmcb.set(MSRPM, msrpm);
        vmcb.set(ASID, 1);
        // Its pages, and so its tables, are those of the guest before it: what the CPU still knows of them under
        // this ASID must go. (APM vol. 2, "TLB Control".)
        vmcb.set(TLB_CONTROL, 1);
        vmcb.segment(CS, 8, 0xa9b, u32::MAX, 0);
        for data in [DS, ES, SS, FS, GS] {
            vmcb.segment(data, 0x10, 0xc93, u32::MAX, 0);
        }
        vmcb.segment(GDTR, 0, 0, 79, gdt);
        vmcb.segment(IDTR, 0, 0, 0xfff, idt);
        vmcb.segment(LDTR, 0, 0x82, 0, 0);
        vmcb.segment(TR, 0x30, 0x8b, 0x67, 0);
        for (field, value) in [
            (EFER, cpu::rdmsr(cpu::EFER)),
            (CR0, cpu::cr0()),
            (CR3, cpu::cr3()),
            (CR4, cpu::cr4()),
            (DR6, 0xffff_0ff0),
            (DR7, 0x400),
            (RFLAGS, 2),
            (RIP, rip),
            (RSP, arena::page() + 0x800),
            (G_PAT, 0x0007_0406_0007_0406),
        ] {
            vmcb.set(field, value);
        }
        L2 { vmcb, regs: [0; 14], msrpm, iopm, idt }
    }

    /// Run until the next exit, with interrupts held off before and after; the 64-bit exit code.
    pub fn run(&mut self) -> u64 {
        self.run_gif0();
        cpu::stgi();
        self.vmcb.get(EXIT_CODE)
    }

    /// The same, but leaves GIF at 0.
    pub fn run_gif0(&mut self) -> u64 {
        cpu::clgi();
        self.enter()
    }

    /// VMRUN and nothing else; the caller has seen to GIF.
    pub fn enter(&mut self) -> u64 {
        // SAFETY: the VMCB decides what runs; tests give the guest pages of the arena and code of ours.
        unsafe { svm_enter(self.vmcb.0, &raw mut self.regs) };
        self.vmcb.get(EXIT_CODE)
    }

    /// VMRUN that may fault; the fault, if there was one.
    pub fn try_enter(&mut self) -> Option<crate::trap::Fault> {
        // SAFETY: as for `enter`. A fault is caught at VMRUN, with the guest's registers loaded: the frame's stack
        // pointer is restored by `trap`, RBX and RBP by us, the others are declared lost.
        unsafe {
            core::arch::asm!(
                "push rbx",
                "push rbp",
                "lea r11, [rip + 77f]",
                "mov [rip + FIXUP_RIP], r11",
                "mov [rip + FIXUP_RSP], rsp",
                "call {enter}",
                "77:",
                "mov qword ptr [rip + FIXUP_RIP], 0",
                "pop rbp",
                "pop rbx",
                enter = sym svm_enter,
                in("rdi") self.vmcb.0,
                in("rsi") &raw mut self.regs,
                out("r12") _, out("r13") _, out("r14") _, out("r15") _,
                clobber_abi("C"),
            );
        }
        crate::trap::take_fault()
    }

    /// Set an intercept by its exit code (CR, DR, exceptions, MISC1, MISC2).
    pub fn intercept(&mut self, code: u64) -> &mut L2 {
        let (field, bit) = place(code);
        self.vmcb.or(field, 1 << bit);
        self
    }

    /// Make the guest's gate `vector` "not present".
    pub fn remove_gate(&self, vector: u64) {
        let gate = self.idt + vector * 16;
        arena::poke(gate, arena::peek(gate) & !(1 << 47));
    }
}

/// Where the intercept bit of exit code `code` lies.
pub fn place(code: u64) -> (Field, u64) {
    match code {
        0x00..0x20 => (CR_INTERCEPTS, code),
        0x20..0x40 => (DR_INTERCEPTS, code - 0x20),
        0x40..0x60 => (EXC_INTERCEPTS, code - 0x40),
        0x60..0x80 => (MISC1, code - 0x60),
        _ => (MISC2, (code - 0x80) & 31),
    }
}
