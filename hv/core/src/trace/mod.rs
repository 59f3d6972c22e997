//! What happened, and how often: exit counters and the per-CPU trace ring.
//!
//! Both are written by one CPU with plain stores, without a lock and without a locked instruction, so
//! that they can stay on in the hot path; any CPU may read them while they are written. A reader sees
//! each number whole, but numbers of slightly different moments.

mod counters;
mod ring;

pub use counters::{ExitCounters, Level, Snapshot};
pub use ring::{Kind, MAGIC, NOBODY, Record, TraceRing, vcpu};
