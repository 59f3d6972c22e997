//! Phase marks: a CPUID leaf of our own. It returns nothing of use; a trace of the hypervisor's exits shows it.

/// First leaf of the block ("ONM" + number; outside every range that a vendor or hypervisor defines).
const BASE: u32 = 0x4f4e_4d00;

/// The program started.
pub const START: u32 = 1;
/// The guest's memory and registers are set up.
pub const BUILT: u32 = 2;
/// Just before the first entry.
pub const RUN: u32 = 3;
/// The guest has ended.
pub const ENDED: u32 = 4;
/// Before the n-th operation of `bench`.
pub const BENCH: u32 = 0x20;

/// Mark phase `n`.
pub fn phase(n: u32) {
    std::hint::black_box(std::arch::x86_64::__cpuid(BASE + (n & 0xff)));
}
