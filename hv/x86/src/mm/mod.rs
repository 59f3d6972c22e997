//! Testudo's own memory: the map of itself, the direct map of RAM, device windows, heap, frames.
//!
//! | virtual address | what | rights |
//! |---|---|---|
//! | `0xffff_8000_0000_0000` + pa | direct map: RAM and ACPI tables, without Testudo's image | RW, no execute |
//! | `0xffff_a000_0000_0000` + pa | device registers, uncached | RW, no execute |
//! | `0xffff_c000_0000_0000` | stack blocks, 64 KiB per CPU, with guard pages | RW, no execute |
//! | `0xffff_ffff_8000_0000` + pa | Testudo's image | text RX, rodata R, data RW |

pub mod direct;
pub mod frames;
pub mod heap;
pub mod host;
pub mod own;
