//! x86-64 support.
#![no_std]
