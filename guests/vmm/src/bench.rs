//! `vmm bench`: ticks and exits per operation, each in a fresh VM without in-kernel interrupt controllers, so that HLT and
//! interrupts pass through this program.

use std::os::fd::AsRawFd;

use kvm_bindings::{kvm_interrupt, kvm_regs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use crate::exits::{self, Counters, Counts};
use crate::loader;
use crate::machine::{self, failed};
use crate::memory::Ram;
use crate::{args, bench_code, mark};

/// All operations, in the order of the tables in the documentation.
const OPS: [&str; 10] =
    ["cpuid", "vmmcall", "rdmsr", "pio", "mmio", "hlt", "pio_irq", "npf_present", "npf_absent", USER];
/// The one that is executed in this program.
const USER: &str = "user_cpuid";
/// A loop around nothing: what is not the operation's.
const EMPTY: &str = "empty";

const CODE: u64 = 0x4_0000;
const HANDLER: u64 = 0x5_0000;
const IDT: u64 = 0x6_0000;
const STACK: u64 = 0x8_0000;
const RESULTS: u64 = 0x20_0000;
/// Pages that the fault operations touch, one per round.
const PAGES: u64 = 0x100_0000;
/// An address without RAM.
const UNMAPPED: u64 = 0xd000_0000;
const VECTOR: u8 = 0x40;
/// `_IOW (KVMIO, 0x86, struct kvm_interrupt)`.
const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;

/// Run the operations asked for; the result is the exit status: 1 if one failed.
///
/// # Errors
/// No KVM, nobody who counts, or a name that is none of [`OPS`].
pub fn run(options: &args::Bench) -> Result<i32, String> {
    if let Some(bad) = options.ops.iter().find(|o| !OPS.contains(&o.as_str())) {
        return Err(format!("{bad}: no such operation; there are {}", OPS.join(" ")));
    }
    let kvm = machine::open()?;
    let wanted = |op: &str| options.ops.is_empty() || options.ops.iter().any(|w| w == op);
    let mut status = 0;
    let mut tell = |op: &str, line: Result<String, String>| match line {
        Ok(line) => println!("{line}"),
        Err(why) => {
            println!("bench: {op} failed {why}");
            status = 1;
        }
    };
    for (n, op) in (0..).zip(OPS).filter(|(_, op)| wanted(op)) {
        mark::phase(mark::BENCH + n);
        tell(op, ticks(&kvm, op, options.rounds).map(|ticks| report(op, ticks)));
    }
    // Counting may slow things down: it has runs of its own.
    if let Some(source) = options.exits {
        let counters = Counters::open(source)?;
        let frame = exits::least(&count(&kvm, EMPTY, &counters)?);
        let user_frame = exits::least(&counters.batches(|| Ok(()))?);
        for op in OPS.into_iter().filter(|op| wanted(op)) {
            let frame = if op == USER { &user_frame } else { &frame };
            tell(op, count(&kvm, op, &counters).map(|batches| exits::report(op, &batches, frame)));
        }
    }
    Ok(status)
}

fn ticks(kvm: &Kvm, op: &str, rounds: usize) -> Result<Vec<u64>, String> {
    if op == USER { Ok(user_cpuid(rounds)) } else { Guest::new(kvm, op, rounds)?.run(rounds) }
}

/// What each batch of `op` costs L0.
fn count(kvm: &Kvm, op: &str, counters: &Counters) -> Result<Vec<Counts>, String> {
    if op == USER {
        return counters.batches(|| {
            user_cpuid(exits::BATCH);
            Ok(())
        });
    }
    let mut guest = Guest::new(kvm, op, exits::BATCH * exits::BATCHES)?;
    counters.batches(|| guest.run(exits::BATCH).map(|_| ()))
}

fn report(op: &str, mut ticks: Vec<u64>) -> String {
    ticks.sort_unstable();
    let at = |percent: usize| ticks[((ticks.len() - 1) * percent).div_ceil(100)];
    format!("bench: {op} min={} median={} p99={} rounds={}", at(0), at(50), at(99), ticks.len())
}

/// CPUID in this program: what any exit from L1's user space to L0 costs.
fn user_cpuid(rounds: usize) -> Vec<u64> {
    use std::arch::x86_64::{__cpuid, _rdtsc};
    (0..rounds)
        .map(|_| {
            // SAFETY: every x86-64 CPU has RDTSC, and Linux leaves it open to programs.
            let start = unsafe { _rdtsc() };
            std::hint::black_box(__cpuid(0));
            // SAFETY: as above.
            unsafe { _rdtsc() }.wrapping_sub(start)
        })
        .collect()
}

/// A guest that executes one operation again and again.
struct Guest {
    op: String,
    ram: Ram,
    // Kept alive: the vCPU runs in it.
    _vm: VmFd,
    vcpu: VcpuFd,
    /// What the next round touches, and how far it moves with each.
    address: u64,
    step: u64,
    /// Rounds that there are pages for.
    left: usize,
}

impl Guest {
    /// With memory for `rounds`.
    fn new(kvm: &Kvm, op: &str, rounds: usize) -> Result<Guest, String> {
        let span = rounds as u64 * 4096;
        let ram = Ram::new(PAGES + span, false)?;
        ram.write(CODE, bench_code::code(op).ok_or("no code")?)?;
        ram.write(HANDLER, bench_code::handler())?;
        ram.write(IDT + u64::from(VECTOR) * 16, &gate(HANDLER))?;
        let gdt: Vec<u8> = machine::GDT_ENTRIES.iter().flat_map(|e| e.to_le_bytes()).collect();
        ram.write(loader::GDT, &gdt)?;
        loader::write_identity_tables(&ram)?;
        // The guest's own stores of results must not fault while it is timed, in any operation.
        for page in (0..rounds as u64 * 8 + 4096).step_by(4096) {
            ram.write(RESULTS + page, &[0])?;
        }
        let (address, step) = match op {
            "npf_present" | "npf_absent" => (PAGES, 4096),
            _ => (UNMAPPED, 0),
        };
        if op == "npf_present" {
            for page in (0..span).step_by(4096) {
                ram.write(PAGES + page, &[1])?;
            }
        }
        let vm = kvm.create_vm().map_err(failed("create VM"))?;
        vm.set_tss_address(0xfffb_d000).map_err(failed("TSS address"))?;
        ram.register(&vm)?;
        let vcpu = vm.create_vcpu(0).map_err(failed("create vCPU"))?;
        vcpu.set_cpuid2(&machine::cpuid(kvm, 0, 1)?).map_err(failed("set CPUID"))?;
        let mut sregs = vcpu.get_sregs().map_err(failed("read registers"))?;
        machine::long_mode(&mut sregs);
        (sregs.idt.base, sregs.idt.limit) = (IDT, 0xfff);
        vcpu.set_sregs(&sregs).map_err(failed("set system registers"))?;
        Ok(Guest { op: op.into(), ram, _vm: vm, vcpu, address, step, left: rounds })
    }

    /// The ticks of each of `rounds` more.
    fn run(&mut self, rounds: usize) -> Result<Vec<u64>, String> {
        self.left = self.left.checked_sub(rounds).ok_or("more rounds than memory")?;
        let regs = kvm_regs {
            rip: CODE,
            rsp: STACK,
            rflags: 2,
            r12: RESULTS,
            r13: rounds as u64,
            r14: self.address,
            r15: self.step,
            ..Default::default()
        };
        self.vcpu.set_regs(&regs).map_err(failed("set registers"))?;
        drive(&mut self.vcpu)?;
        self.address += self.step * rounds as u64;
        let interrupts = self.vcpu.get_regs().map_err(failed("read registers"))?.r10;
        if self.op == "pio_irq" && interrupts != rounds as u64 {
            return Err(format!("{interrupts} interrupts in {rounds} rounds"));
        }
        let words = self.ram.read(RESULTS, rounds * 8)?;
        Ok(words
            .chunks_exact(8)
            .map(|w| u64::from_le_bytes([w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]]))
            .collect())
    }
}

/// A 64-bit interrupt gate to `offset` in the code segment.
fn gate(offset: u64) -> [u8; 16] {
    let low = offset & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (offset >> 16 & 0xffff) << 48;
    (u128::from(low) | u128::from(offset >> 32) << 64).to_le_bytes()
}

/// Enter until the guest writes to port F4h.
fn drive(vcpu: &mut VcpuFd) -> Result<(), String> {
    loop {
        let mut inject = false;
        match vcpu.run().map_err(failed("KVM_RUN"))? {
            VcpuExit::IoOut(0xf4, _) => return Ok(()),
            VcpuExit::IoOut(0xf2, _) => inject = true,
            VcpuExit::IoOut(0xf1, _) | VcpuExit::MmioWrite(..) | VcpuExit::Hlt | VcpuExit::Intr => {}
            other => return Err(format!("unexpected exit {other:?}")),
        }
        if inject {
            let irq = kvm_interrupt { irq: VECTOR.into() };
            // SAFETY: the ioctl reads one structure of this type.
            if unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_INTERRUPT, &raw const irq) } != 0 {
                return Err(format!("KVM_INTERRUPT: {}", std::io::Error::last_os_error()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_takes_the_right_ranks() {
        assert_eq!(report("x", (1..=500).rev().collect()), "bench: x min=1 median=251 p99=496 rounds=500");
        assert_eq!(report("x", vec![7]), "bench: x min=7 median=7 p99=7 rounds=1");
    }

    #[test]
    fn every_operation_has_code_or_runs_here() {
        for op in OPS {
            assert!(op == USER || bench_code::code(op).is_some_and(|c| c.len() > 20), "{op}");
        }
    }

    #[test]
    fn gate_splits_the_offset() {
        let g = gate(0x1234_5678_9abc_def0);
        assert_eq!(g, [0xf0, 0xde, 0x10, 0, 0, 0x8e, 0xbc, 0x9a, 0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0]);
    }
}
