//! `sched_op` (`public/sched.h`).

use crate::macros::{layout, numbers};

numbers! {
    /// Sub-operation of `sched_op`.
    SchedOp: u32 {
        /// Let others run.
        YIELD = 0;
        /// Sleep until an event.
        BLOCK = 1;
        /// Stop the domain.
        SHUTDOWN = 2;
        /// Sleep until one of some ports is pending.
        POLL = 3;
        /// Stop another domain.
        REMOTE_SHUTDOWN = 4;
        /// Say why the domain will stop.
        SHUTDOWN_CODE = 5;
        /// Watchdog timers.
        WATCHDOG = 6;
        /// Pin the vCPU to a pCPU for a while.
        PIN_OVERRIDE = 7;
    }
}

numbers! {
    /// Why a domain stops.
    ShutdownReason: u32 {
        /// It is done.
        POWEROFF = 0;
        /// It wants to start again.
        REBOOT = 1;
        /// It sleeps.
        SUSPEND = 2;
        /// It failed.
        CRASH = 3;
        /// Its watchdog ran out.
        WATCHDOG = 4;
        /// It wants to be started afresh in place.
        SOFT_RESET = 5;
    }
}

impl ShutdownReason {
    /// For log lines.
    pub const fn text(self) -> &'static str {
        match self {
            Self::POWEROFF => "poweroff",
            Self::REBOOT => "reboot",
            Self::SUSPEND => "suspend",
            Self::CRASH => "crash",
            Self::WATCHDOG => "watchdog",
            Self::SOFT_RESET => "soft reset",
            _ => "unknown reason",
        }
    }
}

/// Most ports one poll may name.
pub const POLL_MAX_PORTS: u32 = 128;

layout! {
    /// Argument of `POLL`.
    Poll: 24 {
        /// Address of the ports, u32 each.
        ports @ 0: u64,
        /// How many.
        nr_ports @ 8: u32,
        /// Nothing.
        pad @ 12: u32,
        /// Absolute system time in ns; 0 for none.
        timeout @ 16: u64,
    }
    /// Argument of `POLL`, 32-bit. The timeout is not aligned to 8 there, so it is in halves.
    Poll32: 16 {
        /// Address of the ports, u32 each.
        ports @ 0: u32,
        /// How many.
        nr_ports @ 4: u32,
        /// Absolute system time in ns, low and high half.
        timeout @ 8: [u32; 2],
    }
    /// Argument of `REMOTE_SHUTDOWN`.
    RemoteShutdown: 8 {
        /// Whom.
        domid @ 0: u16,
        /// Nothing.
        pad @ 2: u16,
        /// A [`ShutdownReason`].
        reason @ 4: u32,
    }
    /// Argument of `WATCHDOG`.
    Watchdog: 8 {
        /// Which timer: 0 makes a new one.
        id @ 0: u32,
        /// Seconds; 0 stops it.
        timeout @ 4: u32,
    }
}
