//! The architecture-neutral hypervisor: domains, vCPUs, scheduling, event channels, hypercalls.
//!
//! Everything the machine must supply enters through [`platform::Arch`] and [`platform::DomainMemory`],
//! so the whole crate runs and is tested on the host. It names no vendor and holds no `unsafe`.
//!
//! Start reading at [`Machine`], which owns the rest and says what a pCPU's loop looks like.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod console;
pub mod domain;
pub mod evtchn;
pub mod grant;
pub mod hypercall;
mod machine;
pub mod memory;
pub mod platform;
pub mod sched;
pub mod symbols;
pub mod sync;
#[cfg(test)]
mod testing;
pub mod time;
pub mod trace;
pub mod vcpu;

pub use machine::{Machine, Stopped, SystemInfo};
