//! Hypercall numbers (`public/xen.h`, `__HYPERVISOR_*`).

use crate::macros::{layout, numbers};

numbers! {
    /// A hypercall number, as found in the number register.
    Call: u32 {
        /// Set the trap table (PV).
        SET_TRAP_TABLE = 0;
        /// Platform operations of the hardware domain.
        PLATFORM_OP = 7;
        /// Memory reservations and the physical map.
        MEMORY_OP = 12;
        /// Several calls in one.
        MULTICALL = 13;
        /// The one-shot timer of the vCPU.
        SET_TIMER_OP = 15;
        /// Version and features.
        XEN_VERSION = 17;
        /// The hypervisor's console.
        CONSOLE_IO = 18;
        /// Grant tables.
        GRANT_TABLE_OP = 20;
        /// Assists.
        VM_ASSIST = 21;
        /// Operations on a vCPU of the caller's domain.
        VCPU_OP = 24;
        /// Extended MMU operations (PV).
        MMUEXT_OP = 26;
        /// Security module.
        XSM_OP = 27;
        /// Scheduling.
        SCHED_OP = 29;
        /// Event channels.
        EVENT_CHANNEL_OP = 32;
        /// Physical devices.
        PHYSDEV_OP = 33;
        /// HVM operations.
        HVM_OP = 34;
        /// System control of the toolstack.
        SYSCTL = 35;
        /// Domain control of the toolstack.
        DOMCTL = 36;
        /// Argo.
        ARGO_OP = 39;
        /// Performance counters.
        XENPMU_OP = 40;
        /// Device models.
        DM_OP = 41;
        /// The hypervisor's file system.
        HYPFS_OP = 42;
    }
}

/// Slots in a hypercall page: one of 32 bytes for each number.
pub const HYPERCALL_PAGE_SLOTS: usize = 128;
/// The slot of the PV-only `iret`, which must fault when called (`ud2`).
pub const HYPERCALL_PAGE_IRET: usize = 23;

layout! {
    /// One call of a multicall.
    MulticallEntry: 64 {
        /// Hypercall number.
        op @ 0: u64,
        /// Where the result goes.
        result @ 8: i64,
        /// Arguments.
        args @ 16: [u64; 6],
    }
    /// One call of a multicall, 32-bit.
    MulticallEntry32: 32 {
        /// Hypercall number.
        op @ 0: u32,
        /// Where the result goes.
        result @ 4: i32,
        /// Arguments.
        args @ 8: [u32; 6],
    }
}

/// `vm_assist`: enable.
pub const VMASST_CMD_ENABLE: u64 = 0;
/// `vm_assist`: disable.
pub const VMASST_CMD_DISABLE: u64 = 1;
/// `vm_assist`: mark a runstate area while it is being written.
pub const VMASST_TYPE_RUNSTATE_UPDATE_FLAG: u64 = 5;

/// `console_io`: write `count` bytes.
pub const CONSOLEIO_WRITE: u64 = 0;
/// `console_io`: read up to `count` bytes.
pub const CONSOLEIO_READ: u64 = 1;
