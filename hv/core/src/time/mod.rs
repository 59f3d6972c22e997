//! Time as guests see it, and the timers that wake them.

mod pvclock;
mod queue;

pub use pvclock::{Clock, TscScale, write_time, write_wallclock};
pub use queue::{Expired, Timed, TimerLink, TimerQueue};

/// The timers that a vCPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerKind {
    /// `VCPUOP_set_singleshot_timer` and `set_timer_op`: raises `VIRQ_TIMER`.
    Singleshot,
    /// `VCPUOP_set_periodic_timer`: raises `VIRQ_TIMER` and starts again.
    Periodic,
    /// The deadline of a poll.
    Poll,
    /// The architecture's (the timer of the interrupt controller): sets [`crate::vcpu::Pending::TIMER`].
    Arch,
}

impl TimerKind {
    /// How many kinds there are.
    pub const COUNT: usize = 4;

    /// As an index.
    pub const fn index(self) -> usize {
        self as usize
    }
}
