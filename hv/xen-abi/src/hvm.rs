//! `hvm_op` (`public/hvm/hvm_op.h`) and the parameters (`public/hvm/params.h`).

use crate::macros::{layout, numbers};

numbers! {
    /// Sub-operation of `hvm_op`.
    HvmOp: u32 {
        /// Set a parameter.
        SET_PARAM = 0;
        /// Get a parameter.
        GET_PARAM = 1;
        /// Flush the TLBs of some vCPUs.
        FLUSH_TLBS = 5;
        /// A page table is about to go.
        PAGETABLE_DYING = 9;
        /// Guest time.
        GET_TIME = 10;
        /// The type of a page.
        GET_MEM_TYPE = 15;
        /// Choose the upcall vector of a vCPU.
        SET_EVTCHN_UPCALL_VECTOR = 23;
        /// Ask a monitor.
        GUEST_REQUEST_VM_EVENT = 24;
        /// Alternate p2m.
        ALTP2M = 25;
    }
}

numbers! {
    /// A parameter of an HVM domain.
    HvmParam: u32 {
        /// How event upcalls arrive.
        CALLBACK_IRQ = 0;
        /// Frame of the xenstore ring.
        STORE_PFN = 1;
        /// Port of the xenstore ring.
        STORE_EVTCHN = 2;
        /// Frame of the default I/O request page.
        IOREQ_PFN = 5;
        /// Frame of the buffered I/O request page.
        BUFIOREQ_PFN = 6;
        /// Viridian enlightenments.
        VIRIDIAN = 9;
        /// How timers catch up.
        TIMER_MODE = 10;
        /// Whether there is an HPET.
        HPET_ENABLED = 11;
        /// Identity page table for real mode.
        IDENT_PT = 12;
        /// ACPI sleep state.
        ACPI_S_STATE = 14;
        /// Frame for the virtual-8086 TSS.
        VM86_TSS = 15;
        /// Whether periodic timers are aligned.
        VPT_ALIGN = 16;
        /// Frame of the console ring.
        CONSOLE_PFN = 17;
        /// Port of the console ring.
        CONSOLE_EVTCHN = 18;
        /// Which ACPI port layout.
        ACPI_IOPORTS_LOCATION = 19;
        /// Ring of paging events.
        PAGING_RING_PFN = 27;
        /// Ring of the monitor.
        MONITOR_RING_PFN = 28;
        /// Ring of sharing events.
        SHARING_RING_PFN = 29;
        /// Shutdown reason for a triple fault.
        TRIPLE_FAULT_REASON = 31;
        /// Frames of the I/O request servers.
        IOREQ_SERVER_PFN = 32;
        /// How many of them.
        NR_IOREQ_SERVER_PAGES = 33;
        /// Address of the generation id.
        VM_GENERATION_ID_ADDR = 34;
        /// Alternate p2m.
        ALTP2M = 35;
        /// Width of the FPU instruction pointer.
        X87_FIP_WIDTH = 36;
        /// Address and size of the virtual-8086 TSS.
        VM86_TSS_SIZED = 37;
        /// Machine check capabilities.
        MCA_CAP = 38;
    }
}

/// Number of parameters.
pub const NR_PARAMS: usize = 39;

layout! {
    /// Argument of `SET_PARAM` and `GET_PARAM`.
    Param: 16 {
        /// Whose.
        domid @ 0: u16,
        /// Nothing.
        pad @ 2: u16,
        /// An [`HvmParam`].
        index @ 4: u32,
        /// In or out.
        value @ 8: u64,
    }
    /// Argument of `SET_EVTCHN_UPCALL_VECTOR`.
    UpcallVector: 8 {
        /// Which vCPU.
        vcpu @ 0: u32,
        /// Which vector, 16 or more.
        vector @ 4: u8,
        /// Nothing.
        pad @ 5: [u8; 3],
    }
    /// Argument of `PAGETABLE_DYING`.
    PagetableDying: 16 {
        /// Whose.
        domid @ 0: u16,
        /// Nothing.
        pad @ 2: [u16; 3],
        /// Its address.
        gpa @ 8: u64,
    }
}
