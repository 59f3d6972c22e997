//! L1's EPT: pointers, faults, the page-modification log, EPTP switching. The tables themselves are walked and
//! composed by `stage2`. SDM vol. 3, "Extended-Page-Table Pointer (EPTP)", "Exit Qualification for EPT
//! Violations".

use crate::bits::{ept_cap, eptp, secondary, vmfunc};
use crate::caps::Caps;
use crate::code::Reason;
use crate::field::Field;
use crate::route::Exit;
use crate::vmcs12::Cached12;
use addr::Gpa;
use stage2::walk12::{Paging12, Root12, Violation, qualification};

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

/// Where the walk of L1's tables starts, for `stage2`. vmcs02's own EPTP must have the accessed-and-dirty bit
/// that L1's has: with it, hardware reports its accesses to L2's page tables as writes.
pub fn root12(eptp12: u64, caps: &Caps) -> Root12 {
    let offers = |bit| caps.msrs.ept_vpid & bit != 0;
    let (big, execute_only) = (offers(ept_cap::PAGES_1G), offers(ept_cap::EXEC_ONLY));
    Root12::new(eptp12, Paging12::from_eptp(eptp12, caps.cpu.maxphyaddr, big, execute_only))
}

/// The exit that L1 gets for a fault of its own tables. The rights in its qualification are those that the
/// software walk found; of the hardware's exit on s2_02 only what it says of the access is kept.
pub fn reflected(hw: &Exit, found: &Violation) -> Exit {
    let reason = if found.misconfigured { Reason::EPT_MISCONFIGURATION } else { Reason::EPT_VIOLATION };
    let access = qualification::READ | qualification::WRITE | qualification::FETCH;
    let rights = 7 << qualification::RIGHTS;
    let of_hw = qualification::LINEAR | qualification::FINAL | NMI_UNBLOCKED;
    let q = match hw.basic() {
        _ if found.misconfigured => 0,
        Reason::EPT_VIOLATION => hw.qualification & (access | of_hw) | found.info1 & rights,
        _ => found.info1 & (access | rights),
    };
    Exit { reason: reason.0.into(), qualification: q, physical: found.ngpa.raw(), ..*hw }
}

/// Bit 12 of the qualification: NMI unblocking due to IRET.
const NMI_UNBLOCKED: u64 = 1 << 12;

/// What is to be done for L1's page-modification log before a write that sets a dirty flag in L1's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PmlEntry {
    /// L1 has no log.
    Off,
    /// Write the (4 KiB aligned) L2 address there, then make the access.
    At(Gpa),
    /// The log is full: reflect [`Reason::PML_FULL`] and do not make the access.
    Full,
}

/// Takes an entry of L1's page-modification log. SDM vol. 3, "Page-Modification Logging": the index counts
/// down and wraps; past the page it means full.
pub fn log_dirty(c12: &mut Cached12) -> PmlEntry {
    let v = c12.fields();
    if !v.secondary(secondary::PML) || v.get(Field::EPT_POINTER) & eptp::ACCESSED_DIRTY == 0 {
        return PmlEntry::Off;
    }
    let index = v.get(Field::GUEST_PML_INDEX) as u16;
    if index > 511 {
        return PmlEntry::Full;
    }
    let at = Gpa::new(v.get(Field::PML_ADDRESS)).wrapping_add(u64::from(index) * 8);
    c12.learn(Field::GUEST_PML_INDEX, index.wrapping_sub(1).into());
    PmlEntry::At(at)
}

/// L2 executed VMFUNC with these registers. `entry` reads entry `n` of L1's EPTP list, once. Gives the new EPTP,
/// which vmcs12 then has, too; `None`: reflect the exit. SDM vol. 3, "EPTP Switching".
pub fn vmfunc(
    c12: &mut Cached12,
    eax: u32,
    ecx: u32,
    caps: &Caps,
    entry: impl FnOnce(u16) -> Option<u64>,
) -> Option<u64> {
    let on = c12.fields().get(Field::VM_FUNCTION_CONTROLS) & vmfunc::EPTP_SWITCHING != 0;
    let enabled = on && c12.fields().secondary(secondary::VM_FUNCTIONS);
    if !enabled || eax != 0 || ecx >= 512 {
        return None;
    }
    let new = entry(ecx as u16).filter(|new| eptp_is_valid(*new, caps))?;
    c12.learn(Field::EPT_POINTER, new);
    Some(new)
}
