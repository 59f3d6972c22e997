//! The Xen public ABI as data: numbers, layouts, nothing else.
//!
//! Numbers are newtypes with constants, because a guest may pass any value. Layouts are the 64-bit ones
//! unless a name ends in `32`; their sizes and offsets are checked when the crate is compiled.
//! Sources: the public headers of Xen 4.17 (named at each module) and their behaviour towards HVM guests.
#![no_std]
#![forbid(unsafe_code)]
// The derives of zerocopy make helper types, which need no Debug; ours all have it.
#![allow(missing_debug_implementations)]

#[cfg(test)]
extern crate std;

mod macros;

pub mod call;
pub mod domid;
pub mod errno;
pub mod evtchn;
pub mod grant;
pub mod hvm;
pub mod memory;
pub mod pvh;
pub mod ring;
pub mod sched;
pub mod shared;
pub mod vcpu;
pub mod version;

pub use domid::DomId;
pub use errno::Errno;
