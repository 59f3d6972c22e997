//! The architecture-neutral hypervisor: domains, vCPUs, scheduling, event channels, hypercalls.
#![no_std]
#![forbid(unsafe_code)]
