//! The virtual local APIC: pure state and rules, no hardware and no clock of its own.
//!
//! - [`VlapicShared`] is what other CPUs touch: requests on their way in, and the address senders match.
//! - [`Vlapic`] is what the vCPU's own pCPU owns: registers, priorities, timer.
//! - [`resolve`] turns a message into receivers; [`Effect`] is what a write asks of the outside.
//!
//! An upcall by vector (Xen's `HVMOP_set_evtchn_upcall_vector`) is [`VlapicShared::post`].
#![forbid(unsafe_code)]

mod access;
mod base;
mod dest;
mod icr;
mod lapic;
mod lvt;
mod reg;
mod shared;
mod timer;
mod vectors;

pub use access::{Effect, Gp};
pub use dest::{Addressing, Destination, Mode, resolve, x2apic_logical_id};
pub use icr::{DeliveryMode, Ipi, Shorthand};
pub use lapic::{Config, Injectable, Vlapic};
pub use lvt::Lvt;
pub use reg::{MSR_APIC_BASE, MSR_TSC_DEADLINE, MSR_X2APIC_FIRST, MSR_X2APIC_LAST, Reg, owns_msr};
pub use shared::{Startup, VlapicShared};
pub use timer::{Deadline, MIN_PERIOD_NS, TIMER_HZ, TimeSource};
pub use vectors::VectorSet;

#[cfg(test)]
mod tests;
