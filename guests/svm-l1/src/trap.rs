//! Interrupts and exceptions: recorded, and execution goes on where the test said.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::{apic, cpu, say};

global_asm!(include_str!("trap.s"));

unsafe extern "C" {
    fn trap_stubs();
    static mut boot_gdt: [u64; 10];
}

/// Where to go on after an expected fault; 0: none is expected. Written by [`attempt!`].
#[unsafe(no_mangle)]
pub static FIXUP_RIP: AtomicU64 = AtomicU64::new(0);
/// The stack pointer there.
#[unsafe(no_mangle)]
pub static FIXUP_RSP: AtomicU64 = AtomicU64::new(0);

static FAULT: AtomicU64 = AtomicU64::new(0);
static COUNTS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];
/// Second CPUs must not use the fixup of the first: any fault of theirs parks them.
static AP_DIED: AtomicBool = AtomicBool::new(false);

/// An exception that was caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Vector.
    pub vector: u8,
    /// Error code, 0 if it has none.
    pub error: u32,
}

/// #UD.
pub const UD: Option<Fault> = Some(Fault { vector: 6, error: 0 });
/// #GP(0).
pub const GP: Option<Fault> = Some(Fault { vector: 13, error: 0 });

/// The interrupted state, as `trap.s` pushes it.
#[repr(C)]
#[derive(Debug)]
pub struct Frame {
    regs: [u64; 15],
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

#[unsafe(no_mangle)]
extern "C" fn trap(frame: &mut Frame) {
    let vector = frame.vector as u8;
    COUNTS[vector as usize].fetch_add(1, Relaxed);
    if vector >= 32 {
        if vector != apic::SPURIOUS {
            apic::eoi();
        }
        return;
    }
    if vector == 2 {
        return;
    }
    if apic::id() != apic::boot_id() {
        AP_DIED.store(true, Relaxed);
        say!("second cpu: vector {vector} error {:#x} rip {:#x}", frame.error, frame.rip);
        loop {
            cpu::cli();
            core::hint::spin_loop();
        }
    }
    let target = FIXUP_RIP.swap(0, Relaxed);
    if target == 0 {
        say!(
            "svm-l1: unexpected vector {vector} error {:#x} rip {:#x} cr2 {:#x}",
            frame.error,
            frame.rip,
            cpu::cr2()
        );
        crate::exit(false);
    }
    FAULT.store(1 << 40 | u64::from(vector) << 32 | frame.error, Relaxed);
    (frame.rip, frame.rsp, frame.cs, frame.ss) = (target, FIXUP_RSP.load(Relaxed), 8, 0x10);
    frame.rflags &= !0x100;
}

/// The fault of the last [`attempt!`], if there was one.
pub fn take_fault() -> Option<Fault> {
    let word = FAULT.swap(0, Relaxed);
    (word != 0).then_some(Fault { vector: (word >> 32) as u8, error: word as u32 })
}

/// How often `vector` came since the last call.
pub fn take_count(vector: u8) -> u32 {
    COUNTS[vector as usize].swap(0, Relaxed)
}

/// Whether the second CPU has faulted.
pub fn ap_died() -> bool {
    AP_DIED.load(Relaxed)
}

/// Execute instructions that may fault; yields `Option<Fault>`. Operands follow as for `asm!`.
#[macro_export]
macro_rules! attempt {
    ($code:literal $(, $($operand:tt)*)?) => {{
        // SAFETY: a fault is caught by `trap`, which restores stack and registers; the instructions under test have no
        // other effect on our memory.
        unsafe {
            core::arch::asm!(
                "lea r11, [rip + 77f]",
                "mov [rip + FIXUP_RIP], r11",
                "mov [rip + FIXUP_RSP], rsp",
                $code,
                "77:",
                "mov qword ptr [rip + FIXUP_RIP], 0",
                out("r11") _,
                $($($operand)*)?
            );
        }
        $crate::trap::take_fault()
    }};
}

/// Run user code at `code` with RAX = `rax` at CPL 3 until it faults (it must end in UD2).
pub fn in_user_mode(code: u64, rax: u64) -> Option<Fault> {
    let stack = crate::arena::page() + 0xf00;
    // SAFETY: the code under test faults, and `trap` brings us back to label 77 on our stack; callee-saved registers
    // come back with the trap frame.
    unsafe {
        asm!(
            "lea r11, [rip + 77f]",
            "mov [rip + FIXUP_RIP], r11",
            "mov [rip + FIXUP_RSP], rsp",
            "push 0x23",
            "push {stack}",
            "push 2",
            "push 0x2b",
            "push {code}",
            "iretq",
            "77:",
            stack = in(reg) stack,
            code = in(reg) code,
            in("rax") rax,
            out("r11") _, out("rcx") _, out("rdx") _,
        );
    }
    take_fault()
}

/// Build a 64-bit IDT of 256 gates at `table` whose n-th handler is at `stubs` + 16 n.
pub fn write_idt(table: u64, stubs: u64) {
    for n in 0..256 {
        let handler = stubs + 16 * n;
        let low = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        // SAFETY: `table` is a page that the caller owns.
        unsafe {
            ((table + 16 * n) as *mut u64).write_volatile(low);
            ((table + 16 * n + 8) as *mut u64).write_volatile(handler >> 32);
        }
    }
}

#[repr(C, align(4096))]
struct Table([u8; 4096]);
static mut IDT: Table = Table([0; 4096]);
#[repr(C, align(16))]
struct Tss([u8; 2 * 0x80]);
static mut TSS: Tss = Tss([0; 256]);
static mut TRAP_STACKS: [[u8; 8192]; 2] = [[0; 8192]; 2];

/// IDT and TSS for CPU `n` (0 or 1).
pub fn init(n: usize) {
    let idt = &raw mut IDT as u64;
    if n == 0 {
        write_idt(idt, trap_stubs as *const () as u64);
    }
    let tss = &raw mut TSS as u64 + 0x80 * n as u64;
    let stack = &raw mut TRAP_STACKS as u64 + 8192 * (n as u64 + 1);
    let low = 0x67 | (tss & 0xff_ffff) << 16 | 0x8900 << 32 | (tss >> 24 & 0xff) << 56;
    let idtr: [u16; 5] = [0xfff, idt as u16, (idt >> 16) as u16, (idt >> 32) as u16, (idt >> 48) as u16];
    // SAFETY: each CPU writes its own TSS, descriptor and stack, before anything uses them.
    unsafe {
        ((tss + 4) as *mut u64).write_unaligned(stack);
        ((tss + 0x66) as *mut u16).write_volatile(0x68);
        (&raw mut boot_gdt).cast::<u64>().add(6 + 2 * n).write_volatile(low);
        (&raw mut boot_gdt).cast::<u64>().add(7 + 2 * n).write_volatile(tss >> 32);
        asm!("lidt [{}]", in(reg) idtr.as_ptr(), options(nostack));
        asm!("ltr ax", in("ax") 0x30 + 16 * n as u16, options(nostack));
    }
}
