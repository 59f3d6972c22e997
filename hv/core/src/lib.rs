//! The architecture-neutral hypervisor: domains, vCPUs, scheduling, event channels, hypercalls.
//!
//! Everything the machine must supply enters through [`platform::Arch`] and [`platform::DomainMemory`],
//! so the whole crate runs and is tested on the host. It names no vendor and holds no `unsafe`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod console;
pub mod memory;
pub mod trace;
