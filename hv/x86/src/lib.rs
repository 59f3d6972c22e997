//! x86-64: boot, SVM, interrupts, the virtual platform, and the glue of nested virtualization.
//!
//! The home of Testudo's `unsafe` on x86: each module that needs it says why in an `UNSAFETY:` line, each
//! block in a `SAFETY:` one. What decides rather than touches hardware (`policy`, `vlapic`, `decode`) is
//! pure and runs on the host.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod apic;
pub mod console;
pub mod cpu;
pub mod decode;
pub mod guest;
pub mod hw;
pub mod keys;
pub mod mce;
pub mod mm;
pub mod nmi;
pub mod policy;
pub mod power;
pub mod report;
pub mod serial;
pub mod smp;
pub mod start;
pub mod svm;
pub mod time;
pub mod trace;
pub mod trap;
pub mod vlapic;
