//! L1's EPT pointers. SDM vol. 3, "Extended-Page-Table Pointer (EPTP)".

use crate::bits::{ept_cap, eptp};
use crate::caps::Caps;
use addr::Gpa;

/// Whether VM entry, INVEPT and EPTP switching accept `value`: a memory type and a walk length that are
/// offered, accessed and dirty flags only if offered, reserved bits and bits beyond L1's addresses 0.
pub fn eptp_is_valid(value: u64, caps: &Caps) -> bool {
    let offers = |bit| caps.msrs.ept_vpid & bit != 0;
    let memtype = match value & eptp::MEMTYPE {
        0 => offers(ept_cap::UC),
        6 => offers(ept_cap::WB),
        _ => false,
    };
    let levels = match value & eptp::LEVELS {
        0x18 => offers(ept_cap::LEVELS_4),
        0x20 => offers(ept_cap::LEVELS_5),
        _ => false,
    };
    let flags = value & eptp::ACCESSED_DIRTY == 0 || offers(ept_cap::ACCESSED_DIRTY);
    memtype && levels && flags && value & 0xf80 == 0 && value < caps.phys_end()
}

/// What tells L1's contexts apart, the "EP4TA" of INVEPT and of cached translations: bits 51:12.
pub fn ep4ta(value: u64) -> Gpa {
    Gpa::new(value & 0x000f_ffff_ffff_f000)
}
