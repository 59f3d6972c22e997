//! Guest code of `vmm bench`: per operation a loop of a few instructions that times itself.
//!
//! Registers at the start: R12 = where results go (u64 each), R13 = rounds, R14 = address that the operation touches,
//! R15 = how far it moves per round, R10 = 0 (counts interrupts). The loop ends by OUT to port F4h.

use std::arch::global_asm;

/// `$setup` runs outside the timed part; `$op` between the two RDTSCs. RDTSC clobbers EAX and EDX.
macro_rules! timed {
    ($name:ident, $setup:literal, $op:literal) => {
        global_asm!(
            ".pushsection .rodata.bench, \"a\"",
            concat!(".globl bench_", stringify!($name), "_start"),
            concat!(".globl bench_", stringify!($name), "_end"),
            concat!("bench_", stringify!($name), "_start:"),
            "2:",
            $setup,
            "rdtsc",
            "mov r8d, eax",
            $op,
            "rdtsc",
            "sub eax, r8d", // 32 bits suffice, and the upper half becomes zero
            "mov [r12], rax",
            "add r12, 8",
            "add r14, r15",
            "dec r13",
            "jnz 2b",
            "out 0xf4, al",
            concat!("bench_", stringify!($name), "_end:"),
            ".popsection",
        );
    };
}

timed!(empty, "", "");
timed!(cpuid, "", "xor eax, eax; cpuid");
timed!(vmmcall, "", "mov eax, -1; vmmcall");
timed!(rdmsr, "mov ecx, 0x1b", "rdmsr");
timed!(pio, "", "out 0xf1, al");
timed!(store, "", "mov dword ptr [r14], 1");
timed!(hlt, "cli", "hlt");
timed!(pio_irq, "sti", "out 0xf2, al");

global_asm!(
    ".pushsection .rodata.bench, \"a\"",
    ".globl bench_handler_start, bench_handler_end",
    "bench_handler_start:",
    "inc r10",
    "iretq",
    "bench_handler_end:",
    ".popsection",
);

/// The bytes between two labels of this file.
macro_rules! bytes {
    ($start:ident, $end:ident) => {{
        unsafe extern "C" {
            static $start: u8;
            static $end: u8;
        }
        let (start, end) = (&raw const $start, &raw const $end);
        // SAFETY: both labels are in the same read-only section, `end` after `start`.
        unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
    }};
}

/// The code of operation `name`.
pub fn code(name: &str) -> Option<&'static [u8]> {
    Some(match name {
        "empty" => bytes!(bench_empty_start, bench_empty_end),
        "cpuid" => bytes!(bench_cpuid_start, bench_cpuid_end),
        "vmmcall" => bytes!(bench_vmmcall_start, bench_vmmcall_end),
        "rdmsr" => bytes!(bench_rdmsr_start, bench_rdmsr_end),
        "pio" => bytes!(bench_pio_start, bench_pio_end),
        "mmio" | "npf_present" | "npf_absent" => bytes!(bench_store_start, bench_store_end),
        "hlt" => bytes!(bench_hlt_start, bench_hlt_end),
        "pio_irq" => bytes!(bench_pio_irq_start, bench_pio_irq_end),
        _ => return None,
    })
}

/// The handler of the injected interrupt.
pub fn handler() -> &'static [u8] {
    bytes!(bench_handler_start, bench_handler_end)
}
