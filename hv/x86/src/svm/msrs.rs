//! MSRs of a guest that are kept in software.

use crate::policy::msr::SoftMsrs;

/// Software MSRs of one vCPU; what else there is lives in the VMCB and in the local APIC.
#[derive(Clone, Debug, Default)]
pub struct Msrs {
    /// Plain storage.
    pub soft: SoftMsrs,
    /// TSC_AUX: in the processor while the vCPU runs.
    pub tsc_aux: u64,
    /// TSC_ADJUST.
    pub tsc_adjust: u64,
    /// EFER.SVME as L1 sees it; the hardware's is always set.
    pub svme: bool,
}
