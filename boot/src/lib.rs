//! Pure parsers of what a boot loader hands over, and builders of what a guest kernel is handed in turn.
//!
//! Everything here maps bytes to values or values to bytes: no hardware, no global state, no `unsafe`, and
//! no input, however malformed, that panics or loops without bound. The entry stubs that run before there
//! is a stack are not here.
//!
//! | module | reads | gives |
//! |---|---|---|
//! | [`multiboot2`] | GRUB's boot information | command line, modules, memory map, RSDP, framebuffer |
//! | [`cmdline`] | the hypervisor's command line | [`cmdline::Options`] and [`Problem`]s |
//! | [`modules`] | the modules' command lines | [`modules::DomainConfig`]s and [`Problem`]s |
//! | [`acpi`] | the firmware's static tables | CPUs, interrupt controllers, power registers |
//! | [`elf`] | a kernel image | a load plan and the PVH entry |
//! | [`bzimage`] | a Linux image, compressed or not | the ELF inside |
//! | [`pvh`] | values | the bytes of a PVH guest's start info, memory map and ACPI tables |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod acpi;
mod bytes;
pub mod bzimage;
pub mod cmdline;
pub mod elf;
mod memmap;
pub mod modules;
pub mod multiboot2;
mod problem;
pub mod pvh;
mod words;

pub use memmap::{E820Type, Region, normalise};
pub use problem::{Place, Problem, Severity};
