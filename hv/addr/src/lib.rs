//! Addresses, frames and page sizes as types, and the traits by which guest memory is reached.
//!
//! A leaf: it depends on nothing, so every crate can speak of an address without knowing who translates
//! it. Which space an address lives in is part of its type ([`Hpa`], [`Gpa`], [`Ngpa`], [`Gva`]), so that
//! an L2 address cannot be handed to something that expects an L1 address.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "testing")]
extern crate std;

mod guest;
mod space;
#[cfg(feature = "testing")]
pub mod testing;

pub use guest::{FaultReason, GuestFault, GuestMemory, GuestPage, page_chunks};
pub use space::{
    Addr, Frame, Gpa, GuestPhys, GuestVirt, Gva, HostPhys, Hpa, NestedPhys, Ngpa, PAGE_SHIFT, PAGE_SIZE,
    PageSize, Range, Space,
};
