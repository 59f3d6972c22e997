//! `event_channel_op` (`public/event_channel.h`) and the virtual interrupts (`public/xen.h`).

use crate::macros::{layout, numbers};

numbers! {
    /// Sub-operation of `event_channel_op`.
    EvtchnOp: u32 {
        /// Bind to another domain's unbound port.
        BIND_INTERDOMAIN = 0;
        /// Bind to a virtual interrupt.
        BIND_VIRQ = 1;
        /// Bind to a physical interrupt.
        BIND_PIRQ = 2;
        /// Close.
        CLOSE = 3;
        /// Send.
        SEND = 4;
        /// What a port is bound to.
        STATUS = 5;
        /// Make a port another domain can bind to.
        ALLOC_UNBOUND = 6;
        /// Bind for inter-processor interrupts.
        BIND_IPI = 7;
        /// Choose the vCPU to notify.
        BIND_VCPU = 8;
        /// Unmask and deliver.
        UNMASK = 9;
        /// Close everything.
        RESET = 10;
        /// FIFO: set up a vCPU.
        INIT_CONTROL = 11;
        /// FIFO: add a page of event words.
        EXPAND_ARRAY = 12;
        /// FIFO: set a port's priority.
        SET_PRIORITY = 13;
        /// [`EvtchnOp::RESET`] going on after it was preempted; the hypervisor's own.
        RESET_CONT = 14;
    }
}

numbers! {
    /// A virtual interrupt.
    Virq: u32 {
        /// The timers of the vCPU.
        TIMER = 0;
        /// Asks for a debug dump.
        DEBUG = 1;
        /// Input on the hypervisor's console.
        CONSOLE = 2;
        /// A domain's state changed.
        DOM_EXC = 3;
        /// The trace buffer fills.
        TBUF = 4;
        /// The debugger.
        DEBUGGER = 6;
        /// Profiling.
        XENOPROF = 7;
        /// The hypervisor's log has grown.
        CON_RING = 8;
        /// A pCPU came or went.
        PCPU_STATE = 9;
        /// Memory events.
        MEM_EVENT = 10;
        /// Argo.
        ARGO = 11;
        /// Out of memory.
        ENOMEM = 12;
        /// Performance counters.
        XENPMU = 13;
    }
}

/// Number of virtual interrupts.
pub const NR_VIRQS: u32 = 24;

impl Virq {
    /// Whether each vCPU has its own.
    pub const fn is_per_vcpu(self) -> bool {
        matches!(self, Virq::TIMER | Virq::DEBUG | Virq::XENOPROF | Virq::XENPMU)
    }
}

/// Ports of the 2-level ABI for a 64-bit guest.
pub const TWO_LEVEL_PORTS_64: u32 = 4096;
/// Ports of the 2-level ABI for a 32-bit guest.
pub const TWO_LEVEL_PORTS_32: u32 = 1024;

/// The FIFO ABI: an event word (u32) for each port in pages of the guest, and for each vCPU a control block with
/// the heads of its queues.
pub mod fifo {
    /// Event word: the event waits to be handled.
    pub const PENDING: u32 = 1 << 31;
    /// Event word: the guest does not want to hear of it.
    pub const MASKED: u32 = 1 << 30;
    /// Event word: it is on a queue.
    pub const LINKED: u32 = 1 << 29;
    /// Event word: the hypervisor is changing the link; unmasking waits.
    pub const BUSY: u32 = 1 << 28;
    /// Width of the link to the next port on the queue; 0 ends the queue.
    pub const LINK_BITS: u8 = 17;
    /// The link.
    pub const LINK: u32 = (1 << LINK_BITS) - 1;
    /// Ports, with the unused port 0.
    pub const PORTS: u32 = 1 << LINK_BITS;
    /// Event words in a page.
    pub const WORDS_PER_PAGE: u32 = 1024;
    /// Pages of event words at most.
    pub const MAX_PAGES: u32 = PORTS / WORDS_PER_PAGE;
    /// Queues of a vCPU; the priority, 0 first, is the queue's number.
    pub const PRIORITIES: u32 = 16;
    /// The priority of a port for which the guest chose none.
    pub const DEFAULT_PRIORITY: u32 = 7;
    /// Bytes of a control block.
    pub const CONTROL_SIZE: u32 = 72;
    /// Control block, u32: bit q is set when queue q has got a new head.
    pub const READY: usize = 0;
    /// Control block, u32 for each queue: its first port.
    pub const HEAD: usize = 8;
}

/// [`Status::status`] codes.
pub mod status {
    /// Closed.
    pub const CLOSED: u32 = 0;
    /// Waiting for another domain.
    pub const UNBOUND: u32 = 1;
    /// Bound to another domain's port.
    pub const INTERDOMAIN: u32 = 2;
    /// Bound to a physical interrupt.
    pub const PIRQ: u32 = 3;
    /// Bound to a virtual interrupt.
    pub const VIRQ: u32 = 4;
    /// Bound for inter-processor interrupts.
    pub const IPI: u32 = 5;
}

layout! {
    /// Argument of `ALLOC_UNBOUND`.
    AllocUnbound: 8 {
        /// In whose table.
        dom @ 0: u16,
        /// Who may bind.
        remote_dom @ 2: u16,
        /// The new port, out.
        port @ 4: u32,
    }
    /// Argument of `BIND_INTERDOMAIN`.
    BindInterdomain: 12 {
        /// Whose port.
        remote_dom @ 0: u16,
        /// Nothing.
        pad @ 2: u16,
        /// Which port.
        remote_port @ 4: u32,
        /// The new port, out.
        local_port @ 8: u32,
    }
    /// Argument of `BIND_VIRQ`.
    BindVirq: 12 {
        /// A [`Virq`].
        virq @ 0: u32,
        /// Of which vCPU.
        vcpu @ 4: u32,
        /// The new port, out.
        port @ 8: u32,
    }
    /// Argument of `BIND_IPI`.
    BindIpi: 8 {
        /// Whom to notify.
        vcpu @ 0: u32,
        /// The new port, out.
        port @ 4: u32,
    }
    /// Argument of `CLOSE`, `SEND` and `UNMASK`.
    PortArg: 4 {
        /// Which port.
        port @ 0: u32,
    }
    /// Argument of `STATUS`.
    Status: 24 {
        /// Whose port.
        dom @ 0: u16,
        /// Nothing.
        pad @ 2: u16,
        /// Which port.
        port @ 4: u32,
        /// One of [`status`], out.
        status @ 8: u32,
        /// Notified vCPU, out.
        vcpu @ 12: u32,
        /// Unbound: who may bind. Interdomain: domain, then port. Virq, pirq: its number. Out.
        detail @ 16: [u32; 2],
    }
    /// Argument of `BIND_VCPU`.
    BindVcpu: 8 {
        /// Which port.
        port @ 0: u32,
        /// Whom to notify.
        vcpu @ 4: u32,
    }
    /// Argument of `RESET`.
    Reset: 2 {
        /// Whose ports.
        dom @ 0: u16,
    }
    /// Argument of `INIT_CONTROL`.
    InitControl: 24 {
        /// The frame of the control block.
        control_gfn @ 0: u64,
        /// Where in it the control block is.
        offset @ 8: u32,
        /// Whose it is.
        vcpu @ 12: u32,
        /// [`fifo::LINK_BITS`], out.
        link_bits @ 16: u8,
        /// Nothing.
        pad @ 17: [u8; 7],
    }
    /// Argument of `EXPAND_ARRAY`.
    ExpandArray: 8 {
        /// The frame of the next page of event words.
        array_gfn @ 0: u64,
    }
    /// Argument of `SET_PRIORITY`.
    SetPriority: 8 {
        /// Which port.
        port @ 0: u32,
        /// 0 (first) to 15.
        priority @ 4: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_these_virqs_are_per_vcpu() {
        let per_vcpu = (0..NR_VIRQS).filter(|&n| Virq(n).is_per_vcpu());
        assert!(per_vcpu.eq([0, 1, 7, 13]));
        assert!(!Virq(u32::MAX).is_per_vcpu());
    }
}
