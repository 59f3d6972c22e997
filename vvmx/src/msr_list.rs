//! The MSR lists of VM entry and exit: which entries are refused before their MSR is even looked at.
//! SDM vol. 3, "Loading MSRs" (of VM entries, and of VM exits), "Saving MSRs".
//!
//! L1's lists are never the processor's: L0 makes the accesses, each entry read once, as WRMSR and RDMSR in the
//! context that the list is for. What these would refuse, the list does.

use crate::caps::Caps;
use addr::{Gpa, GuestMemory};

/// A list failed at this entry, counted from 1: the qualification of a failed entry. On exit it is a VMX abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedAt(pub u32);

const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const X2APIC: core::ops::RangeInclusive<u32> = 0x800..=0x8ff;
/// IA32_BIOS_UPDT_TRIG, IA32_BIOS_SIGN_ID: no microcode from a list.
const MICROCODE: [u32; 2] = [0x79, 0x8b];
const SMM_MONITOR_CTL: u32 = 0x9b;
const SMBASE: u32 = 0x9e;

fn may_load(msr: u32) -> bool {
    !matches!(msr, FS_BASE | GS_BASE | SMM_MONITOR_CTL) && !X2APIC.contains(&msr) && !MICROCODE.contains(&msr)
}

fn may_store(msr: u32) -> bool {
    msr != SMBASE && !X2APIC.contains(&msr)
}

/// Loads the list at `list` of `count` entries. `wrmsr` gets index and value and says whether WRMSR at CPL 0 would
/// have succeeded. Entries before a bad one are loaded.
///
/// # Errors
/// The first entry that fails. More entries than IA32_VMX_MISC recommends fail there, so that no list is long.
pub fn load(
    mem: &impl GuestMemory,
    list: Gpa,
    count: u32,
    caps: &Caps,
    mut wrmsr: impl FnMut(u32, u64) -> bool,
) -> Result<(), FailedAt> {
    each(list, count, caps, |at| {
        let (Ok(head), Ok(value)) = (mem.read_u64(at), mem.read_u64(at.wrapping_add(8))) else {
            return false;
        };
        let msr = head as u32;
        head >> 32 == 0 && may_load(msr) && wrmsr(msr, value)
    })
}

/// Stores into the list, as [`load`]; `rdmsr` gives a value where RDMSR at CPL 0 would.
///
/// # Errors
/// As [`load`].
pub fn store(
    mem: &impl GuestMemory,
    list: Gpa,
    count: u32,
    caps: &Caps,
    mut rdmsr: impl FnMut(u32) -> Option<u64>,
) -> Result<(), FailedAt> {
    each(list, count, caps, |at| {
        let Ok(head) = mem.read_u64(at) else { return false };
        let value = rdmsr(head as u32).filter(|_| head >> 32 == 0 && may_store(head as u32));
        value.is_some_and(|value| mem.write(at.wrapping_add(8), &value.to_le_bytes()).is_ok())
    })
}

fn each(list: Gpa, count: u32, caps: &Caps, mut entry: impl FnMut(Gpa) -> bool) -> Result<(), FailedAt> {
    let limit = caps.msr_list_limit();
    for n in 0..count {
        if n >= limit || !entry(list.wrapping_add(u64::from(n) * 16)) {
            return Err(FailedAt(n + 1));
        }
    }
    Ok(())
}
