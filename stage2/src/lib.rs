//! The stage-2 translation engine: builds, composes and invalidates EPT, NPT and VMSAv8 tables.
#![no_std]
#![forbid(unsafe_code)]
