//! One function per privileged instruction.
//!
//! The `x86` crate's wrappers are not used: some drop unknown bits (its `cr4`), some read flags in a
//! second asm block.
// UNSAFETY: a leaf that wraps instructions.
#![allow(unsafe_code)]

use core::arch::asm;

/// `CPUID`: EAX, EBX, ECX, EDX.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let r = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// The time-stamp counter, not ordered against other instructions.
#[inline(always)]
pub fn rdtsc() -> u64 {
    // SAFETY: CR4.TSD is clear in Testudo, and RDTSC touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The time-stamp counter, after all earlier instructions have completed.
pub fn rdtsc_ordered() -> u64 {
    // SAFETY: LFENCE and RDTSC touch no memory.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

/// Reads a model-specific register.
///
/// # Safety
/// The MSR must exist on this CPU, else #GP.
#[inline(always)]
pub unsafe fn rdmsr(msr: u32) -> u64 {
    let (lo, hi): (u32, u32);
    // SAFETY: the caller vouches for the MSR.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") lo, out("edx") hi, options(nomem, nostack, preserves_flags))
    };
    u64::from(hi) << 32 | u64::from(lo)
}

/// Writes a model-specific register.
///
/// # Safety
/// The MSR must exist, the value must be legal, and its effect must be one Testudo is ready for.
#[inline(always)]
pub unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: the caller vouches for MSR and value. Not `nomem`: a write may change how memory behaves.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags))
    };
}

macro_rules! control_register {
    ($read:ident, $write:ident, $name:literal) => {
        #[doc = concat!("Reads ", $name, ", all 64 bits.")]
        #[inline(always)]
        pub fn $read() -> u64 {
            let value;
            // SAFETY: reading a control register at CPL 0 has no side effect.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }
        #[doc = concat!("Writes ", $name, ".")]
        ///
        /// # Safety
        /// The value must be legal on this CPU, and memory must stay mapped as running code needs it.
        #[inline(always)]
        pub unsafe fn $write(value: u64) {
            // SAFETY: the caller vouches for the value.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
        }
    };
}
control_register!(read_cr0, write_cr0, "cr0");
control_register!(read_cr2, write_cr2, "cr2");
control_register!(read_cr3, write_cr3, "cr3");
control_register!(read_cr4, write_cr4, "cr4");
control_register!(read_dr6, write_dr6, "dr6");
control_register!(read_dr7, write_dr7, "dr7");

macro_rules! address_register {
    ($($read:ident $write:ident $name:literal;)*) => {$(
        control_register!($read, $write, $name);
    )*};
}
address_register! {
    read_dr0 write_dr0 "dr0";
    read_dr1 write_dr1 "dr1";
    read_dr2 write_dr2 "dr2";
    read_dr3 write_dr3 "dr3";
}

/// Drops the TLB entries of one page of Testudo's own map.
pub fn invlpg(address: u64) {
    // SAFETY: dropping a translation is always allowed.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

/// Sets an extended control register.
///
/// # Safety
/// CR4.OSXSAVE must be set and the value legal.
pub unsafe fn xsetbv(register: u32, value: u64) {
    // SAFETY: the caller vouches.
    unsafe {
        asm!("xsetbv", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nomem, nostack, preserves_flags))
    };
}

/// Lets maskable interrupts in.
pub fn sti() {
    // SAFETY: handlers are installed before the first call, and take no lock.
    unsafe { asm!("sti", options(nomem, nostack)) };
}

/// Keeps maskable interrupts out.
pub fn cli() {
    // SAFETY: masking interrupts touches no memory.
    unsafe { asm!("cli", options(nomem, nostack)) };
}

/// Waits for an interrupt; interrupts are let in by the very instruction before, so none is missed.
pub fn sti_hlt() {
    // SAFETY: as `sti`.
    unsafe { asm!("sti", "hlt", options(nomem, nostack)) };
}

/// Stops this CPU for good.
pub fn halt_forever() -> ! {
    loop {
        // SAFETY: with interrupts masked only NMI and SMI wake it, and it sleeps again.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// RFLAGS.
pub fn rflags() -> u64 {
    let value;
    // SAFETY: pushes and pops one word of the stack.
    unsafe { asm!("pushfq", "pop {}", out(reg) value, options(preserves_flags)) };
    value
}

/// The stack pointer.
#[inline(always)]
pub fn rsp() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

macro_rules! port_io {
    ($($input:ident $output:ident $ty:ty, $reg:tt, $in:literal, $out:literal;)*) => {$(
        /// Reads an I/O port.
        ///
        /// # Safety
        /// The port's side effect must be wanted.
        pub unsafe fn $input(port: u16) -> $ty {
            let value;
            // SAFETY: the caller vouches.
            unsafe { asm!($in, in("dx") port, out($reg) value, options(nostack, preserves_flags)) };
            value
        }
        /// Writes an I/O port.
        ///
        /// # Safety
        /// The port's side effect must be wanted.
        pub unsafe fn $output(port: u16, value: $ty) {
            // SAFETY: the caller vouches.
            unsafe { asm!($out, in("dx") port, in($reg) value, options(nostack, preserves_flags)) };
        }
    )*};
}
port_io! {
    inb outb u8, "al", "in al, dx", "out dx, al";
    inw outw u16, "ax", "in ax, dx", "out dx, ax";
    inl outl u32, "eax", "in eax, dx", "out dx, eax";
}

/// Runs `f` with maskable interrupts off, then restores what was.
pub fn without_interrupts<R>(f: impl FnOnce() -> R) -> R {
    let were_on = rflags() & (1 << 9) != 0;
    cli();
    let result = f();
    if were_on {
        sti();
    }
    result
}
