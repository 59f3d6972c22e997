//! What a guest may see and do, as data and pure functions: CPUID, MSRs, mitigations, its page tables.
//!
//! Nothing here touches hardware. What the hardware is comes in as plain values (a closure that answers
//! CPUID, [`mitigation::CpuFacts`]); what to do comes out as plain values. Everything is an allow-list:
//! a feature bit, an MSR or a page-table bit that is not known here is hidden, faults, or is reserved.

pub mod cpuid;
pub mod mitigation;
pub mod msr;
pub mod paging;
