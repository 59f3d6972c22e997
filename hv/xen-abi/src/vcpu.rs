//! `vcpu_op` (`public/vcpu.h`, `public/hvm/hvm_vcpu.h`).

use crate::macros::{layout, numbers};
use core::mem::size_of;
use zerocopy::IntoBytes;

numbers! {
    /// Sub-operation of `vcpu_op`.
    VcpuOp: u32 {
        /// Give it registers.
        INITIALISE = 0;
        /// Start it.
        UP = 1;
        /// Stop it.
        DOWN = 2;
        /// Whether it is up.
        IS_UP = 3;
        /// Its run state.
        GET_RUNSTATE_INFO = 4;
        /// Keep its run state at an address.
        REGISTER_RUNSTATE_MEMORY_AREA = 5;
        /// Start the periodic timer.
        SET_PERIODIC_TIMER = 6;
        /// Stop the periodic timer.
        STOP_PERIODIC_TIMER = 7;
        /// Start the one-shot timer.
        SET_SINGLESHOT_TIMER = 8;
        /// Stop the one-shot timer.
        STOP_SINGLESHOT_TIMER = 9;
        /// Place its vcpu_info.
        REGISTER_VCPU_INFO = 10;
        /// Send it an NMI.
        SEND_NMI = 11;
        /// The physical CPU below it.
        GET_PHYSID = 12;
        /// Keep its clock at an address.
        REGISTER_VCPU_TIME_MEMORY_AREA = 13;
    }
}

numbers! {
    /// What a vCPU is doing.
    RunState: u32 {
        /// On a pCPU.
        RUNNING = 0;
        /// Waiting for a pCPU.
        RUNNABLE = 1;
        /// Waiting for an event.
        BLOCKED = 2;
        /// Down, or its domain is paused.
        OFFLINE = 3;
    }
}

layout! {
    /// A run state, as read or kept in guest memory.
    RunstateInfo: 48 {
        /// A [`RunState`].
        state @ 0: u32,
        /// Nothing.
        pad @ 4: u32,
        /// System time of the last change, ns; bit 63 while being written.
        state_entry_time @ 8: u64,
        /// ns spent in each state.
        time @ 16: [u64; 4],
    }
    /// A run state, 32-bit: the same values without the padding, in halves for its alignment of 4.
    RunstateInfo32: 44 {
        /// A [`RunState`].
        state @ 0: u32,
        /// System time of the last change, low and high half.
        state_entry_time @ 4: [u32; 2],
        /// ns spent in each state, low and high half.
        time @ 12: [[u32; 2]; 4],
    }
    /// Argument of `SET_PERIODIC_TIMER`.
    SetPeriodicTimer: 8 {
        /// ns.
        period_ns @ 0: u64,
    }
    /// Argument of `SET_SINGLESHOT_TIMER`, 64-bit.
    SetSingleshotTimer: 16 {
        /// Absolute system time, ns.
        timeout_abs_ns @ 0: u64,
        /// [`SINGLESHOT_FUTURE`].
        flags @ 8: u32,
        /// Nothing.
        pad @ 12: u32,
    }
    /// Argument of `REGISTER_VCPU_INFO`.
    RegisterVcpuInfo: 16 {
        /// Guest frame.
        mfn @ 0: u64,
        /// Offset in it.
        offset @ 8: u32,
        /// Nothing.
        rsvd @ 12: u32,
    }
    /// The registers of a vCPU that starts in a 32-bit mode.
    HvmX86_32: 120 {
        /// eax, ecx, edx, ebx, esp, ebp, esi, edi.
        gprs @ 0: [u32; 8],
        /// eip.
        eip @ 32: u32,
        /// eflags.
        eflags @ 36: u32,
        /// cr0.
        cr0 @ 40: u32,
        /// cr3.
        cr3 @ 44: u32,
        /// cr4.
        cr4 @ 48: u32,
        /// Must be zero.
        pad1 @ 52: u32,
        /// EFER.
        efer @ 56: u64,
        /// Bases of cs, ds, ss, es, tr.
        bases @ 64: [u32; 5],
        /// Limits, in the same order.
        limits @ 84: [u32; 5],
        /// Attributes, in the same order: type, S, DPL, P in bits 7:0; AVL, L, D, G in bits 11:8.
        attrs @ 104: [u16; 5],
        /// Must be zero.
        pad2 @ 114: [u16; 3],
    }
    /// The registers of a vCPU that starts in 64-bit mode.
    HvmX86_64: 112 {
        /// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi.
        gprs @ 0: [u64; 8],
        /// rip.
        rip @ 64: u64,
        /// rflags.
        rflags @ 72: u64,
        /// cr0.
        cr0 @ 80: u64,
        /// cr3.
        cr3 @ 88: u64,
        /// cr4.
        cr4 @ 96: u64,
        /// EFER.
        efer @ 104: u64,
    }
    /// Argument of `INITIALISE` for HVM.
    HvmContext: 128 {
        /// [`HVM_MODE_32`] or [`HVM_MODE_64`].
        mode @ 0: u32,
        /// Must be zero.
        pad @ 4: u32,
        /// [`HvmX86_32`] or the first bytes hold [`HvmX86_64`].
        regs @ 8: [u8; 120],
    }
}

/// Bytes that a 32-bit caller passes for [`SetSingleshotTimer`].
pub const SET_SINGLESHOT_TIMER_32: usize = 12;
/// [`SetSingleshotTimer::flags`]: a deadline in the past is an error (-ETIME; accepted and ignored here).
pub const SINGLESHOT_FUTURE: u32 = 1;
/// Shortest period that the periodic timer takes, ns.
pub const MIN_PERIOD_NS: u64 = 1_000_000;
/// [`RunstateInfo::state_entry_time`]: the area is being written.
pub const RUNSTATE_UPDATE: u64 = 1 << 63;
/// [`HvmContext::mode`] for [`HvmX86_32`].
pub const HVM_MODE_32: u32 = 0;
/// [`HvmContext::mode`] for [`HvmX86_64`].
pub const HVM_MODE_64: u32 = 1;

impl HvmContext {
    /// A context for a 32-bit mode.
    pub fn of_32(regs: &HvmX86_32) -> Self {
        let mut context = Self { mode: HVM_MODE_32, pad: 0, regs: [0; 120] };
        context.regs.copy_from_slice(regs.as_bytes());
        context
    }

    /// A context for 64-bit mode.
    pub fn of_64(regs: &HvmX86_64) -> Self {
        let mut context = Self { mode: HVM_MODE_64, pad: 0, regs: [0; 120] };
        context.regs[..size_of::<HvmX86_64>()].copy_from_slice(regs.as_bytes());
        context
    }

    /// The registers of [`HVM_MODE_32`].
    pub const fn regs_32(&self) -> HvmX86_32 {
        zerocopy::transmute!(self.regs)
    }

    /// The registers of [`HVM_MODE_64`]: what follows them is not looked at.
    pub fn regs_64(&self) -> HvmX86_64 {
        let mut regs: HvmX86_64 = zerocopy::FromZeros::new_zeroed();
        let bytes = regs.as_mut_bytes();
        bytes.copy_from_slice(&self.regs[..size_of::<HvmX86_64>()]);
        regs
    }
}
