//! What a real machine needs and an emulator hides: quiet PCI devices, clocks that are compared, MTRRs that
//! are checked, a watchdog, a screen, and the speculation controls of each CPU.
//!
//! Each module keeps its decisions in pure functions over a small trait or plain values, tested on the
//! host; the part that touches the machine is thin.

pub mod mitigation;
pub mod mtrr;
pub mod pci;
pub mod tsc_warp;
pub mod video;
pub mod watchdog;
