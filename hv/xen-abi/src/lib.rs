//! The Xen public ABI as data: numbers, layouts, nothing else.
#![no_std]
#![forbid(unsafe_code)]
