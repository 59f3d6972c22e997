//! What belongs to one physical CPU.
// UNSAFETY: finds the data through the pointer at the top of the stack block.
#![allow(unsafe_code)]

use crate::cpu::{desc, instr, stack};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use spin::Once;

/// Most CPUs Testudo drives.
pub const MAX_CPUS: usize = 256;

/// Bits of a CPU's pending word: set by interrupt handlers and other CPUs, tested by its run loop.
#[derive(Debug)]
pub struct Pending;

impl Pending {
    /// The local timer fired.
    pub const TIMER: u64 = 1 << 0;
    /// Another CPU wants attention.
    pub const KICK: u64 = 1 << 1;
    /// The serial line has input.
    pub const SERIAL: u64 = 1 << 2;
}

/// Per-CPU data. Lives as long as the machine runs.
#[derive(Debug)]
#[repr(C)]
pub struct PerCpu {
    /// Index, 0 for the boot CPU.
    pub index: u32,
    /// Local APIC id.
    pub apic_id: AtomicU32,
    /// The pending word.
    pub pending: AtomicU64,
    /// Physical address of the host save area page (VM_HSAVE_PA).
    pub host_save: AtomicU64,
    /// Physical address of the VMCB that holds the host's VMSAVE state.
    pub host_vmcb: AtomicU64,
    /// Deadline the local timer is set to, in TSC ticks; `u64::MAX` = off.
    pub timer_deadline: AtomicU64,
    /// 1 once the CPU runs its scheduler loop.
    pub online: AtomicU32,
    /// Address of the registers ([`crate::trap::Frame`]) with which another CPU's failure stopped this one; 0: runs.
    pub stopped: AtomicU64,
    /// Its trace, if there is one.
    pub trace: Once<&'static crate::trace::Ring>,
    /// The CPU's GDT and TSS.
    pub tables: desc::Tables,
}

impl PerCpu {
    /// Data of CPU `index`.
    pub const fn new(index: u32) -> Self {
        PerCpu {
            index,
            apic_id: AtomicU32::new(0),
            pending: AtomicU64::new(0),
            host_save: AtomicU64::new(0),
            host_vmcb: AtomicU64::new(0),
            timer_deadline: AtomicU64::new(u64::MAX),
            online: AtomicU32::new(0),
            stopped: AtomicU64::new(0),
            trace: Once::new(),
            tables: desc::Tables::new(),
        }
    }

    /// Sets bits of the pending word.
    pub fn pend(&self, bits: u64) {
        self.pending.fetch_or(bits, Ordering::SeqCst);
    }

    /// Takes all bits of the pending word.
    #[inline(always)]
    pub fn take_pending(&self) -> u64 {
        if self.pending.load(Ordering::Relaxed) == 0 { 0 } else { self.pending.swap(0, Ordering::SeqCst) }
    }
}

/// The CPU this code runs on. The reference must not be kept across a point where the code could go on
/// on another CPU; Testudo's own code never migrates.
#[inline(always)]
pub fn this() -> &'static PerCpu {
    let block = instr::rsp() & !(stack::BLOCK_BYTES as u64 - 1);
    // SAFETY: every stack that Testudo runs on lies in a block whose top word was set by `attach` to a
    // PerCpu that lives for ever.
    unsafe { &**((block + stack::POINTER as u64) as *const *const PerCpu) }
}

/// Writes the pointer at the top of the stack block at `block`.
///
/// # Safety
/// `block` must be a mapped, aligned stack block.
pub unsafe fn attach(block: u64, cpu: &'static PerCpu) {
    // SAFETY: the caller vouches for the block.
    unsafe { *((block + stack::POINTER as u64) as *mut *const PerCpu) = cpu };
}
