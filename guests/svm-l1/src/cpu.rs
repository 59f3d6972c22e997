//! Instructions, one wrapper each.

use core::arch::asm;

/// EFER.
pub const EFER: u32 = 0xc000_0080;
/// VM_CR.
pub const VM_CR: u32 = 0xc001_0114;
/// VM_HSAVE_PA.
pub const VM_HSAVE_PA: u32 = 0xc001_0117;
/// EFER.SVME.
pub const SVME: u64 = 1 << 12;

/// IN, byte.
pub fn inb(port: u16) -> u8 {
    let value: u8;
    // SAFETY: the ports used here belong to devices without effect on memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// OUT, byte.
pub fn outb(port: u16, value: u8) {
    // SAFETY: as for [`inb`].
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// RDMSR; the caller knows that the register exists.
pub fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading has no effect on memory.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// WRMSR; the caller knows that the value is legal.
pub fn wrmsr(msr: u32, value: u64) {
    // SAFETY: used for registers that do not change the meaning of our own memory.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack))
    };
}

/// CPUID: eax, ebx, ecx, edx.
pub fn cpuid(leaf: u32, sub: u32) -> [u32; 4] {
    let r = core::arch::x86_64::__cpuid_count(leaf, sub);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// RDTSC.
pub fn rdtsc() -> u64 {
    // SAFETY: every x86-64 CPU has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// One wrapper for each instruction without operands and without effect on our memory.
macro_rules! plain {
    ($($name:ident = $insn:literal;)*) => {$(
        #[doc = concat!("`", $insn, "`.")]
        pub fn $name() {
            // SAFETY: changes only interrupt gates or idles.
            unsafe { asm!($insn, options(nostack)) };
        }
    )*};
}
plain! {
    sti = "sti";
    cli = "cli";
    stgi = "stgi";
    clgi = "clgi";
    nop = "nop";
}

/// Read a control register.
macro_rules! read_cr {
    ($($name:ident = $register:literal;)*) => {$(
        #[doc = concat!("Read ", $register, ".")]
        pub fn $name() -> u64 {
            let value: u64;
            // SAFETY: reading has no effect.
            unsafe { asm!(concat!("mov {}, ", $register), out(reg) value, options(nomem, nostack)) };
            value
        }
    )*};
}
read_cr! {
    cr0 = "cr0";
    cr2 = "cr2";
    cr3 = "cr3";
    cr4 = "cr4";
    dr7 = "dr7";
}

/// Write CR4; the caller keeps paging as it is.
pub fn set_cr4(value: u64) {
    // SAFETY: see above.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack)) };
}

/// Write CR2.
pub fn set_cr2(value: u64) {
    // SAFETY: CR2 is only read after a page fault.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack)) };
}

/// Number of physical address bits.
pub fn maxphys() -> u32 {
    cpuid(0x8000_0008, 0)[0] & 0xff
}

/// SVM feature bits (CPUID 8000000Ah EDX).
pub fn svm_features() -> u32 {
    cpuid(0x8000_000a, 0)[3]
}

/// Signature of the hypervisor beneath, or zeroes.
pub fn hypervisor() -> [u8; 12] {
    let mut name = [0; 12];
    if cpuid(1, 0)[2] & 1 << 31 != 0 {
        let [_, b, c, d] = cpuid(0x4000_0000, 0);
        for (chunk, word) in name.chunks_exact_mut(4).zip([b, c, d]) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
    }
    name
}

/// Whether we run bare on the emulator's own SVM.
pub fn bare_tcg() -> bool {
    &hypervisor() == b"TCGTCGTCGTCG"
}

/// Whether the processor names itself as the emulator's, also under another hypervisor.
pub fn tcg_brand() -> bool {
    let [a, b, c, _] = cpuid(0x8000_0002, 0);
    [a, b, c] == [u32::from_le_bytes(*b"QEMU"), u32::from_le_bytes(*b" TCG"), u32::from_le_bytes(*b" CPU")]
}
