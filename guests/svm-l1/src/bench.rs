//! `bench`: what SVM's own instructions cost an L1 that does nothing else.

use crate::exits::Source;
use crate::l2::L2;
use crate::vmcb::*;
use crate::{arena, code, cpu, say};

const MOST: usize = 4096;

/// Room for `rounds` numbers: the stack is small.
fn room(rounds: usize) -> &'static mut [u64] {
    let pages = arena::pages((MOST * 8 / 4096) as u64);
    // SAFETY: fresh pages of the arena, which is not reset while `bench` runs; at most MOST words are used.
    unsafe { core::slice::from_raw_parts_mut(pages as *mut u64, rounds.min(MOST)) }
}

/// Sort in place: there is no allocator, and the numbers are few.
fn report(name: &str, ticks: &mut [u64]) {
    ticks.sort_unstable();
    let at = |percent: usize| ticks[((ticks.len() - 1) * percent).div_ceil(100)];
    say!("bench: {name} min={} median={} p99={} rounds={}", at(0), at(50), at(99), ticks.len());
}

fn instruction(name: &str, rounds: usize, run: impl Fn()) {
    let ticks = room(rounds);
    for t in ticks.iter_mut() {
        let start = cpu::rdtsc();
        run();
        *t = cpu::rdtsc() - start;
    }
    report(name, ticks);
}

/// The guest stamps the time as its first act, then exits: `vmrun` is the way in, `vmexit` the way back.
fn round_trips(name: [&str; 3], rounds: usize, clean: bool, exits: Option<Source>) -> bool {
    let at = code!("rdtsc");
    let mut l2 = L2::new(at);
    crate::npt::Npt::new().attach(&mut l2);
    l2.run();
    l2.vmcb.set(TLB_CONTROL, 0);
    l2.vmcb.set(RIP, at);
    let (there, back, both) = (room(rounds), room(rounds), room(rounds));
    cpu::clgi();
    for n in 0..rounds {
        l2.vmcb.set(RIP, at);
        l2.vmcb.set(CLEAN, if clean && n > 0 { 0xfff } else { 0 });
        let start = cpu::rdtsc();
        let exit = l2.enter();
        let end = cpu::rdtsc();
        if exit != exit::VMMCALL {
            cpu::stgi();
            say!("bench: {} failed exit={exit:#x}", name[0]);
            return false;
        }
        let middle = (l2.regs[crate::l2::reg::RDX] & 0xffff_ffff) << 32 | l2.vmcb.get(RAX) & 0xffff_ffff;
        (there[n], back[n], both[n]) = (middle - start, end - middle, end - start);
    }
    if let Some(source) = exits {
        source.report(name[2], || {
            l2.vmcb.set(RIP, at);
            l2.enter();
        });
    }
    cpu::stgi();
    report(name[0], there);
    report(name[1], back);
    report(name[2], both);
    true
}

/// Run them all; whether they could be run. `exits`: who counts the exits of VMRUN.
pub fn run(rounds: u64, exits: Option<Source>) -> bool {
    let rounds = rounds.clamp(1, MOST as u64) as usize;
    arena::reset();
    cpu::wrmsr(cpu::EFER, cpu::rdmsr(cpu::EFER) | cpu::SVME);
    cpu::wrmsr(cpu::VM_HSAVE_PA, arena::page());
    let page = arena::page();
    instruction("rdtsc", rounds, || {});
    instruction("cpuid", rounds, || {
        core::hint::black_box(cpu::cpuid(0, 0));
    });
    // SAFETY: saves the state of this CPU to a page of ours.
    instruction("vmsave", rounds, || unsafe { core::arch::asm!("vmsave rax", in("rax") page) });
    // SAFETY: loads what was just saved.
    instruction("vmload", rounds, || unsafe { core::arch::asm!("vmload rax", in("rax") page) });
    instruction("clgi", rounds, cpu::clgi);
    instruction("stgi", rounds, cpu::stgi);
    // SAFETY: drops a translation nobody uses.
    instruction("invlpga", rounds, || unsafe {
        core::arch::asm!("invlpga rax, ecx", in("rax") 0, in("ecx") 1)
    });
    round_trips(["vmrun", "vmexit", "vmrun_vmexit"], rounds, false, exits)
        && round_trips(["vmrun_clean", "vmexit_clean", "vmrun_vmexit_clean"], rounds, true, None)
}
