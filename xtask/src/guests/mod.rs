//! What runs in the machine: Debian's kernels and our own small programs, packed into initial ramdisks.
pub mod cpio;
pub mod initrd;
pub mod kernels;
pub mod modules;
pub mod programs;
