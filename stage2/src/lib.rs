//! The stage-2 translation engine: builds, composes and invalidates the tables by which guests reach
//! memory.
//!
//! Words: `s2_01` translates L1's physical addresses, `s2_12` is what L1 wrote for L2, `s2_02` is what
//! really runs L2: `s2_12`, then `s2_01`, in one table.
//!
//! - [`Format`]: how entries look; [`Npt`] is AMD's, [`Ept`] is Intel's. Tables are reached through [`TableMemory`].
//! - [`Radix`]: an `s2_01`. Changes return a [`TlbDebt`], which owns what hardware may still be using.
//! - [`walk12`]: the software walk of an NPT or EPT that L1 wrote, as the hardware would walk it.
//! - [`shadow`]: the cache of `s2_02` roots of a domain, filled on faults, kept true by flushes and zaps.
//! - `model` (feature): a TLB that forgets nothing it need not forget, to prove the above against.
//!
//! The crate names no domain, no vCPU and no instruction, and takes no clock: it is plain data in, plain
//! data out, so that it runs on any host.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(any(test, feature = "model"))]
extern crate std;

mod debt;
mod ept;
mod format;
#[cfg(any(test, feature = "model"))]
pub mod model;
mod npt;
mod radix;
pub mod shadow;
mod sync;
mod table;
pub mod walk12;

pub use debt::{Flush, Paid, Roots, TlbDebt};
pub use ept::Ept;
pub use format::{Entry, Format, Mapping, MemType, Perms};
pub use npt::Npt;
pub use radix::{Failed, MapError, P2m, Radix, Translate2};
pub use table::{ENTRIES, TableMemory};
