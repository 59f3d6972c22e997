//! The consistency checks of VMRUN, on the copy of vmcb12.
//!
//! One line, one citation, one test each. Where not said otherwise the source is APM vol. 2,
//! "Canonicalization and Consistency Checks".

use crate::caps::Caps;
use crate::layout::{Event, EventKind, Intercept, attrib, reg::*};
use crate::vmcb12::Checked12;

/// The check that a vmcb12 failed. L1 gets VMEXIT_INVALID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // Each is explained where it is made, below.
pub enum Refusal {
    EferSvmeClear,
    EferReserved,
    Cr0NwWithoutCd,
    Cr0High,
    Cr3Reserved,
    Cr4Reserved,
    Dr6High,
    Dr7High,
    LongModeWithoutPae,
    LongModeWithoutPe,
    CodeSegmentLongAndDefault,
    VmrunNotIntercepted,
    AsidZero,
    MsrpmTooHigh,
    IopmTooHigh,
    EventTypeReserved,
    EventNotAnException,
    NestedCr3Reserved,
    GuestPatIllegal,
    HostPagingOff,
    CetWithoutWp,
    SCetReserved,
    SspMisaligned,
}

/// Bytes of an MSR permission map.
const MSRPM_BYTES: u64 = 2 * 4096;
/// Bytes of an I/O permission map.
const IOPM_BYTES: u64 = 3 * 4096;

/// The exception vectors that exist (APM vol. 2, "Exceptions and Interrupts", vector table), without
/// #CP, which CET brings, and without the two that only encrypted guests have.
const EXCEPTIONS: u32 = 0x4000_0000 | 0x000f_0000 | 0x7c00 | 0x01fb;
/// #CP.
const CONTROL_PROTECTION: u8 = 21;

/// Makes every check. `l1_cr0` is L1's own CR0.
pub(crate) fn check(c12: &Checked12, caps: &Caps, l1_cr0: u64) -> Result<(), Refusal> {
    check_control(c12, caps, l1_cr0)?;
    check_save(c12, caps)
}

macro_rules! refuse {
    ($($cond:expr => $why:ident),* $(,)?) => { $(if $cond { return Err(Refusal::$why); })* };
}

fn check_control(c12: &Checked12, caps: &Caps, l1_cr0: u64) -> Result<(), Refusal> {
    let c = &c12.control;
    refuse! {
        // "The VMRUN intercept bit is clear."
        !c.intercepts.has(Intercept::VMRUN) => VmrunNotIntercepted,
        // "ASID is equal to zero."
        c.asid == 0 => AsidZero,
        // "The MSR or IOIO intercept tables extend to a physical address that is greater than or equal to
        // the maximum supported physical address."
        beyond(c.msrpm.raw(), MSRPM_BYTES, caps) => MsrpmTooHigh,
        beyond(c.iopm.raw(), IOPM_BYTES, caps) => IopmTooHigh,
    }
    check_event(c.event_inj, caps)?;
    if c12.np() {
        refuse! {
            // "Nested Paging and VMRUN/#VMEXIT": host CR0.PG must be set.
            l1_cr0 & CR0_PG == 0 => HostPagingOff,
            // Same section: "Any MBZ bit of nCR3 is set."
            c.n_cr3.raw() >= caps.phys_end() => NestedCr3Reserved,
            // Same section: an unsupported type or a reserved bit in G_PAT.
            !pat_is_legal(c12.save.g_pat) => GuestPatIllegal,
        }
    }
    Ok(())
}

fn check_save(c12: &Checked12, caps: &Caps) -> Result<(), Refusal> {
    let s = &c12.save;
    let paged_long = s.efer & EFER_LME != 0 && s.cr0 & CR0_PG != 0;
    let pae = s.cr4 & CR4_PAE != 0;
    refuse! {
        // "EFER.SVME is zero."
        s.efer & EFER_SVME == 0 => EferSvmeClear,
        // "Any MBZ bit of EFER is set", and LMA or LME without long mode support.
        s.efer & !caps.efer_allowed & !lma_if_lme(caps) != 0 => EferReserved,
        // "CR0.CD is zero and CR0.NW is set."
        s.cr0 & (CR0_CD | CR0_NW) == CR0_NW => Cr0NwWithoutCd,
        // "CR0[63:32] are not zero."
        s.cr0 >> 32 != 0 => Cr0High,
        // "Any MBZ bit of CR3 is set."
        s.cr3 >= caps.phys_end() => Cr3Reserved,
        // "Any MBZ bit of CR4 is set."
        s.cr4 & !caps.cr4_allowed != 0 => Cr4Reserved,
        // "DR6[63:32] are not zero." "DR7[63:32] are not zero."
        s.dr6 >> 32 != 0 => Dr6High,
        s.dr7 >> 32 != 0 => Dr7High,
        // "EFER.LME and CR0.PG are both set and CR4.PAE is zero."
        paged_long && !pae => LongModeWithoutPae,
        // "EFER.LME and CR0.PG are both non-zero and CR0.PE is zero."
        paged_long && s.cr0 & CR0_PE == 0 => LongModeWithoutPe,
        // "EFER.LME, CR0.PG, CR4.PAE, CS.L, and CS.D are all non-zero."
        paged_long && pae && s.cs.attrib & attrib::L != 0 && s.cs.attrib & attrib::D != 0
            => CodeSegmentLongAndDefault,
    }
    if caps.cet() {
        refuse! {
            // "CR4.CET is set to 1 when CR0.WP is 0."
            s.cr4 & CR4_CET != 0 && s.cr0 & CR0_WP == 0 => CetWithoutWp,
            // APM vol. 2, "S_CET MSR": only SH_STK_EN and WR_SHSTK_EN exist.
            s.s_cet & !3 != 0 => SCetReserved,
            // APM vol. 2, "Shadow Stack Pointer": SSP is 4-byte aligned.
            s.ssp & 3 != 0 => SspMisaligned,
        }
    }
    Ok(())
}

/// LMA exists where LME does.
fn lma_if_lme(caps: &Caps) -> u64 {
    if caps.efer_allowed & EFER_LME != 0 { EFER_LMA } else { 0 }
}

/// Whether a table of `bytes` bytes at `base` reaches past L1's physical address space.
fn beyond(base: u64, bytes: u64, caps: &Caps) -> bool {
    base.checked_add(bytes - 1).is_none_or(|last| last >= caps.phys_end())
}

/// APM vol. 2, "Event Injection": a reserved type, or an exception vector that is no exception (2 is the
/// NMI). Software interrupts and interrupts may have any vector.
fn check_event(event: Event, caps: &Caps) -> Result<(), Refusal> {
    if !event.is_valid() {
        return Ok(());
    }
    let vector = event.vector();
    let defined = vector < 32 && EXCEPTIONS >> vector & 1 != 0;
    match event.kind() {
        EventKind::Reserved(_) => Err(Refusal::EventTypeReserved),
        EventKind::Exception if defined || caps.cet() && vector == CONTROL_PROTECTION => Ok(()),
        EventKind::Exception => Err(Refusal::EventNotAnException),
        EventKind::Intr | EventKind::Nmi | EventKind::Soft => Ok(()),
    }
}

/// APM vol. 2, "Page Attribute Table": types 0, 1, 4, 5, 6, 7 exist.
fn pat_is_legal(pat: u64) -> bool {
    const EACH: u64 = 0x0101_0101_0101_0101;
    // All entries at once: bits 7:3 are clear, and bit 1 comes only with bit 2.
    pat & (0xf8 * EACH) == 0 && pat >> 1 & !(pat >> 2) & EACH == 0
}

#[cfg(test)]
mod tests {
    use super::pat_is_legal;

    #[test]
    fn each_entry_of_the_pat_is_a_type_that_exists() {
        for (at, entry) in (0..8).flat_map(|at| (0..=255).map(move |entry| (at * 8, entry))) {
            for others in [0, 0x0706_0504_0100_0706] {
                let pat = others & !(0xff << at) | entry << at;
                assert_eq!(pat_is_legal(pat), matches!(entry, 0 | 1 | 4..=7), "{pat:#x}");
            }
        }
    }
}
