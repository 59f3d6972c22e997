//! The loop of a CPU: pick a vCPU, run it, put it back; sleep when there is none.

use crate::cpu::instr;
use crate::cpu::percpu::{self, Pending, PerCpu};
use crate::guest::arch::{self, machine};
use crate::hw::watchdog;
use crate::svm::run::{CpuContext, run};
use core::sync::atomic::{AtomicBool, Ordering};
use hv_core::platform::PcpuId;
use hv_core::sched::WhyPut;

/// How often a serial line without an interrupt is looked at, in ns.
const POLL_NS: u64 = 20_000_000;

/// Runs vCPUs for ever.
pub fn run_cpu() -> ! {
    let cpu = percpu::this();
    let pcpu = PcpuId(cpu.index);
    let mut ctx = CpuContext::new(arch::wait_until_ready().svm);
    loop {
        attend_cpu(cpu);
        match machine().pick(pcpu) {
            Some(picked) => {
                report_first();
                arm_timer(cpu, picked.slice_end);
                let why = {
                    let mut state = picked.vcpu.shared.state.lock();
                    match state.as_deref_mut() {
                        Some(state) => run(&picked.vcpu, state, &mut ctx, picked.slice_end, picked.migrated),
                        None => WhyPut::Offline,
                    }
                };
                machine().put(pcpu, &picked.vcpu, why);
            }
            None => idle(cpu),
        }
    }
}

/// Says once, before the first entry to any guest, how long it took to get there.
fn report_first() {
    static REPORTED: AtomicBool = AtomicBool::new(false);
    if !REPORTED.load(Ordering::Relaxed) && !REPORTED.swap(true, Ordering::Relaxed) {
        let ticks = crate::time::since_handover();
        log::info!("@boot handover_to_guest={ticks} ticks");
    }
}

/// Sleeps until an interrupt, unless one has left something to do.
fn idle(cpu: &PerCpu) {
    instr::cli();
    if cpu.pending.load(Ordering::SeqCst) == 0 && !machine().resched_wanted(PcpuId(cpu.index)) {
        instr::sti_hlt();
    } else {
        instr::sti();
    }
}

/// Does what interrupt handlers have left for this CPU. Interrupts are on, no lock is held.
pub fn attend_cpu(cpu: &'static PerCpu) {
    watchdog::beat();
    let bits = cpu.take_pending();
    if bits & Pending::TIMER != 0 {
        cpu.timer_deadline.store(u64::MAX, Ordering::Relaxed);
        machine().expire_timers(PcpuId(cpu.index));
        if let Some(next) = machine().next_deadline(PcpuId(cpu.index)) {
            arm_timer(cpu, next);
        }
        if cpu.index == 0 {
            crate::console::flush_idle();
        }
    }
    if cpu.index == 0 {
        if crate::serial::polled() {
            arm_timer(cpu, crate::time::now() + POLL_NS);
        }
        if bits & Pending::SERIAL != 0 || bits & Pending::TIMER != 0 && crate::serial::polled() {
            crate::console::poll_input();
        }
        if arch::take_tend() {
            super::domains::tend();
        }
    }
}

/// Makes sure that this CPU's timer fires at system time `deadline` at the latest.
pub fn arm_timer(cpu: &PerCpu, deadline: u64) {
    if deadline >= cpu.timer_deadline.load(Ordering::Relaxed) {
        return;
    }
    cpu.timer_deadline.store(deadline, Ordering::Relaxed);
    crate::apic::set_timer(Some(deadline.saturating_sub(crate::time::now())));
}
