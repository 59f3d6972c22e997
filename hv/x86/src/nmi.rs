//! Non-maskable interrupts: from another CPU's panic (stop), from the watchdog, or from hardware.

use crate::cpu::{instr, percpu};
use crate::trap::Frame;
use core::sync::atomic::{AtomicBool, Ordering};

static STOPPING: AtomicBool = AtomicBool::new(false);

/// From now on every NMI stops the CPU that gets it.
pub fn stop_others() {
    STOPPING.store(true, Ordering::SeqCst);
    crate::smp::nmi_others();
}

/// Handles an NMI.
pub fn handle(frame: &Frame) {
    if STOPPING.load(Ordering::SeqCst) {
        // Where it was is for the report of the CPU that stops it.
        percpu::this().stopped.store(core::ptr::from_ref(frame) as u64, Ordering::Release);
        instr::halt_forever();
    }
    if crate::hw::watchdog::is_ours(frame) {
        return;
    }
    log::error!("NMI from hardware at {:#x}: ignored", frame.rip);
}
