//! Guests: their memory, their start, and what the neutral core needs of this architecture.

pub mod arch;
pub mod builder;
pub mod context;
pub mod hypercall_page;
pub mod map;
pub mod memory;
pub mod page;
pub mod ports;
pub mod stats;
pub mod tlb;
