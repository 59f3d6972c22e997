//! A minimal bare-metal hypervisor that tests the SVM it runs on: as an L1 under Testudo, or bare on an emulator.
//!
//! UNSAFETY: this is a kernel and a hypervisor; all of it is about memory, descriptors and VMRUN. Addresses are
//! physical, mapped to themselves; each block says who owns what it touches.

#![no_std]
#![no_main]
#![cfg(target_os = "none")]
// `attempt!` takes assembly operands: registers and values chosen together with the code, no hidden expressions.
#![allow(clippy::macro_metavars_in_unsafe)]

mod apic;
mod arena;
mod bench;
mod con;
mod cpu;
mod hostile;
mod l2;
mod npt;
mod runner;
mod tests;
mod trap;
mod vmcb;

use core::arch::global_asm;

global_asm!(include_str!("boot.s"));

/// The command line, copied out of the loader's memory.
#[derive(Debug)]
struct CommandLine {
    bytes: [u8; 1024],
    length: usize,
}

impl CommandLine {
    /// Read it by `hvm_start_info` (Xen: public/arch-x86/hvm/start_info.h).
    fn read(info: u64) -> CommandLine {
        let mut line = CommandLine { bytes: [0; 1024], length: 0 };
        let at = if arena::peek(info) as u32 == 0x336e_c578 { arena::peek(info + 24) } else { 0 };
        while at != 0 && line.length < line.bytes.len() {
            // SAFETY: the loader put a string there; mapped to itself.
            let byte = unsafe { ((at + line.length as u64) as *const u8).read_volatile() };
            if byte == 0 {
                break;
            }
            line.bytes[line.length] = byte;
            line.length += 1;
        }
        line
    }

    /// The value of word `name` ("" for a word without one).
    fn get(&self, name: &str) -> Option<&str> {
        let text = core::str::from_utf8(&self.bytes[..self.length]).unwrap_or_default();
        text.split_ascii_whitespace()
            .map(|w| w.split_once('=').unwrap_or((w, "")))
            .find(|(n, _)| *n == name)
            .map(|w| w.1)
    }

    fn number(&self, name: &str, default: u64) -> u64 {
        self.get(name).and_then(|v| v.parse().ok()).unwrap_or(default)
    }
}

#[unsafe(no_mangle)]
extern "C" fn rust_main(info: u64) -> ! {
    let line = CommandLine::read(info);
    con::init();
    trap::init(0);
    apic::init();
    let name = cpu::hypervisor();
    say!(
        "svm-l1: hypervisor={} maxphys={} svm_features={:#x} asids={}",
        core::str::from_utf8(&name).unwrap_or("?").trim_end_matches('\0'),
        cpu::maxphys(),
        cpu::svm_features(),
        cpu::cpuid(0x8000_000a, 0)[1],
    );
    if cpu::cpuid(0x8000_0001, 0)[2] & 4 == 0 {
        say!("svm-l1: no SVM here");
        say!("0 passed, 1 failed, 0 lax, 0 skipped");
        exit(false);
    }
    let good = if line.get("bench").is_some() {
        bench::run(line.number("rounds", 500))
    } else if line.get("hostile").is_some() {
        hostile::run(line.number("seed", 1), line.number("rounds", 2000), line.get("wild").is_some())
    } else {
        let mut runner = runner::Runner::new(
            line.get("only").unwrap_or_default(),
            cpu::bare_tcg() || cpu::tcg_brand() || line.get("tcg").is_some(),
        );
        tests::run(&mut runner);
        runner.finish()
    };
    // What a hypervisor below keeps for our guests it need not keep any longer.
    cpu::wrmsr(cpu::EFER, cpu::rdmsr(cpu::EFER) & !cpu::SVME);
    exit(good)
}

#[unsafe(no_mangle)]
extern "C" fn rust_ap_main() -> ! {
    trap::init(1);
    hostile::second_cpu()
}

/// End the machine: by Xen's shutdown hypercall where there is one (0 = poweroff, 3 = crash), else by port F4h.
pub fn exit(good: bool) -> ! {
    if xen_leaves() {
        let reason: u32 = if good { 0 } else { 3 };
        // SAFETY: HYPERVISOR_sched_op (29), SCHEDOP_shutdown (2), pointer to a struct of one word. Does not return.
        unsafe {
            core::arch::asm!("vmmcall", inout("rax") 29u64 => _, in("rdi") 2u64, in("rsi") &raw const reason,
                options(nostack));
        }
    }
    cpu::outb(0xf4, u8::from(!good));
    loop {
        cpu::cli();
        core::hint::spin_loop();
    }
}

/// Whether Xen's CPUID leaves are present, at any of their bases.
fn xen_leaves() -> bool {
    (0..0x100).any(|n| {
        let [_, b, c, d] = cpu::cpuid(0x4000_0000 + n * 0x100, 0);
        [b, c, d] == [0x566e_6558, 0x6558_4d4d, 0x4d4d_566e]
    })
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("svm-l1: {info}");
    exit(false)
}
