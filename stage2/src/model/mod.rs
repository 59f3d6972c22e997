//! Memory and TLBs for tests, as hostile as the architecture allows.
//!
//! - [`ModelTables`]: a [`TableMemory`](crate::TableMemory) that records writes, runs out where told to,
//!   and panics when a page is used before it is taken or after it is given back.
//! - [`Tlb`]: TLBs and paging-structure caches of several CPUs that keep everything, per (CPU, tag), until
//!   it is architecturally invalidated, and use any of it at any time.

mod tables;
mod tlb;

pub use tables::{ModelTables, Write};
pub use tlb::{Reach, Tag, Tlb};
