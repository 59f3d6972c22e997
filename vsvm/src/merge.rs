//! Composing vmcb02 from vmcb01's policy and the checked vmcb12.
//!
//! Everything here is an allow-list: a bit reaches vmcb02 because a line below names it. Physical addresses
//! (maps, nested root) come from [`L0Policy`] only; AVIC, SEV, LBR virtualization and virtual VMLOAD are
//! never on, so the addresses that belong to them stay 0. Fields are written where they differ, and
//! exactly the clean groups of written fields are marked dirty.

use crate::caps::Features;
use crate::layout::{
    Clean, Control, Intercept, Intercepts, SaveArea, Vmcb, int_ctl, int_state, misc_ctl, reg,
};
use crate::msr::RATIO_ONE;
use crate::vmcb12::{Checked12, Dirty, Save12, keep};
use addr::Hpa;

/// What L0 intercepts in every vmcb02, whatever L1 wants. Without these an L2 would own the processor
/// (INTR … HLT), reach the machine (ports, MSRs, INVD, SKINIT), act on host-physical addresses (VMLOAD,
/// VMSAVE: CVE-2021-3656), on host ASIDs (INVLPGA), or change what L0 must switch (XSETBV). #AC and #DB can be
/// raised without end while they are delivered, with interrupts held off, so they come to L0 and are injected
/// again. CR4 writes: a reserved bit must be a #GP and not an INVALID exit in mid-run.
pub const REQUIRED: Intercepts = Intercepts::of(&[
    Intercept::cr_write(4),
    Intercept::exception(1),
    Intercept::exception(17),
    Intercept::exception(18),
    Intercept::INTR,
    Intercept::NMI,
    Intercept::SMI,
    Intercept::INIT,
    Intercept::CPUID,
    Intercept::INVD,
    Intercept::HLT,
    Intercept::INVLPGA,
    Intercept::IOIO,
    Intercept::MSR,
    Intercept::FERR_FREEZE,
    Intercept::SHUTDOWN,
    Intercept::VMRUN,
    Intercept::VMMCALL,
    Intercept::VMLOAD,
    Intercept::VMSAVE,
    Intercept::SKINIT,
    Intercept::XSETBV,
    Intercept::RDPRU,
]);

/// L0's side of vmcb02. Cheap to build for each entry.
#[derive(Clone, Copy, Debug)]
pub struct L0Policy {
    /// What the processor has.
    pub hardware: Features,
    /// Intercepts that L0 wants beyond [`REQUIRED`]. Leave out CR0 writes if possible: see
    /// [`crate::route::cr0_write_code`].
    pub intercepts: Intercepts,
    /// Root of the stage-2 tables for L2: the composed s2_02, or s2_01 if 12 has no nested paging.
    pub n_cr3: Hpa,
    /// The merged MSR permission map.
    pub msrpm: Hpa,
    /// The merged I/O permission map.
    pub iopm: Hpa,
    /// ASID of L2 on this processor: [`crate::asid`].
    pub asid: u32,
    /// TLB_CONTROL of this entry: [`crate::asid`].
    pub tlb_control: u8,
    /// QEMU TCG checks every CR read against the CR0 intercept: ask for that one if 12 wants any.
    pub cr0_read_trap: bool,
    /// L1's TSC_RATIO, [`RATIO_ONE`] if L1 has none.
    pub tsc_ratio12: u64,
    /// L0's own PAUSE filter, used if `intercepts` has PAUSE: count, threshold.
    pub pause: (u16, u16),
}

/// Writes vmcb02, in place, for an entry to L2. `dirty` is what [`crate::vmcb12::Cached12::load`]
/// returned; vmcb02 must be the one that this vmcb12 used last, or one whose clean bits are all 0 with
/// `dirty` all ones (which is what load returns for a fresh copy).
pub fn merge(vmcb01: &Vmcb, c12: &Checked12, dirty: Dirty, l0: &L0Policy, vmcb02: &mut Vmcb) {
    let mut touched = Clean::empty();
    merge_control(vmcb01, c12, l0, &mut vmcb02.control, &mut touched);
    merge_save(&c12.save, dirty, &mut vmcb02.save, &mut touched);
    vmcb02.save.rip = rip02(c12, l0.hardware);
    // With nested paging L2 has a PAT of its own, else L1's is in force.
    let g_pat = if c12.np() { c12.save.g_pat } else { vmcb01.save.g_pat };
    keep(&mut vmcb02.save.g_pat, g_pat, Clean::NP, &mut touched);
    vmcb02.control.mark_dirty(touched);
}

fn merge_control(vmcb01: &Vmcb, c12: &Checked12, l0: &L0Policy, out: &mut Control, touched: &mut Clean) {
    let c = &c12.control;
    keep(&mut out.intercepts, intercepts02(c12, l0), Clean::I, touched);
    let (count, threshold) = pause02(c12, l0);
    keep(&mut out.pause_filter_count, count, Clean::I, touched);
    keep(&mut out.pause_filter_threshold, threshold, Clean::I, touched);
    let tsc = tsc_offset02(vmcb01.control.tsc_offset, l0.tsc_ratio12, c.tsc_offset);
    keep(&mut out.tsc_offset, tsc, Clean::I, touched);
    keep(&mut out.msrpm_base_pa, l0.msrpm.raw(), Clean::PERM, touched);
    keep(&mut out.iopm_base_pa, l0.iopm.raw(), Clean::PERM, touched);
    keep(&mut out.asid, l0.asid, Clean::ASID, touched);
    keep(&mut out.int_ctl, int_ctl02(c12, vmcb01.control.int_ctl, l0.hardware), Clean::TPR, touched);
    keep(&mut out.n_cr3, l0.n_cr3.raw(), Clean::NP, touched);
    keep(&mut out.misc_ctl, misc_ctl::NP_ENABLE, Clean::NP, touched);
    // Read by the processor at each entry: no clean group.
    out.misc_ctl2 = 0;
    out.tlb_control = l0.tlb_control;
    out.int_state = if c.interrupt_shadow { int_state::INTERRUPT_SHADOW } else { 0 };
    out.event_inj = c.event_inj.0;
    // What a soft injection pushes as return address. An L1 without nRIP means the RIP itself.
    out.nrip = if c.nrip != 0 { c.nrip } else { c12.save.rip };
}

/// RIP of vmcb02. A processor without nRIP pushes RIP for a soft event, so it must start behind the
/// instruction then; [`crate::reflect`] takes that back if the event is not delivered.
fn rip02(c12: &Checked12, hardware: Features) -> u64 {
    let c = &c12.control;
    let moved = c.event_inj.pushes_next_rip() && c.nrip != 0 && !hardware.contains(Features::NRIPS);
    if moved { c.nrip } else { c12.save.rip }
}

fn merge_save(s: &Save12, dirty: Dirty, out: &mut SaveArea, touched: &mut Clean) {
    if dirty.contains(Clean::SEG) {
        keep(&mut out.es, s.es, Clean::SEG, touched);
        keep(&mut out.cs, s.cs, Clean::SEG, touched);
        keep(&mut out.ss, s.ss, Clean::SEG, touched);
        keep(&mut out.ds, s.ds, Clean::SEG, touched);
    }
    keep(&mut out.cpl, cpl02(s), Clean::SEG, touched);
    if dirty.contains(Clean::DT) {
        keep(&mut out.gdtr, s.gdtr, Clean::DT, touched);
        keep(&mut out.idtr, s.idtr, Clean::DT, touched);
    }
    if dirty.contains(Clean::CRX) {
        keep(&mut out.efer, s.efer, Clean::CRX, touched);
        keep(&mut out.cr4, s.cr4, Clean::CRX, touched);
        keep(&mut out.cr3, s.cr3, Clean::CRX, touched);
        keep(&mut out.cr0, s.cr0, Clean::CRX, touched);
    }
    if dirty.contains(Clean::DRX) {
        keep(&mut out.dr7, s.dr7, Clean::DRX, touched);
        keep(&mut out.dr6, s.dr6, Clean::DRX, touched);
    }
    if dirty.contains(Clean::CR2) {
        keep(&mut out.cr2, s.cr2, Clean::CR2, touched);
    }
    if dirty.contains(Clean::CET) {
        keep(&mut out.s_cet, s.s_cet, Clean::CET, touched);
        keep(&mut out.ssp, s.ssp, Clean::CET, touched);
        keep(&mut out.isst_addr, s.isst_addr, Clean::CET, touched);
    }
    (out.rsp, out.rax) = (s.rsp, s.rax);
    out.rflags = s.rflags & reg::RFLAGS_WRITABLE | reg::RFLAGS_FIXED;
}

/// CPL as VMRUN loads it: 0 in real mode, 3 in virtual-8086 mode, else what the VMCB says.
fn cpl02(s: &Save12) -> u8 {
    match (s.cr0 & reg::CR0_PE != 0, s.rflags & reg::RFLAGS_VM != 0) {
        (false, _) => 0,
        (true, true) => 3,
        (true, false) => s.cpl,
    }
}

/// L0's intercepts or L1's, never fewer than [`REQUIRED`].
#[inline]
pub fn intercepts02(c12: &Checked12, l0: &L0Policy) -> Intercepts {
    let theirs = c12.control.intercepts;
    let mut all = REQUIRED | l0.intercepts | theirs;
    // Lent only where L2 has a GIF of its own. Else STGI and CLGI would act on L1's GIF, which L0 keeps.
    if !lends_vgif(c12, l0.hardware) {
        all.set(Intercept::STGI);
        all.set(Intercept::CLGI);
    }
    if l0.cr0_read_trap && theirs.any_cr_read() {
        all.set(Intercept::cr_read(0));
    }
    all
}

/// Whether the processor keeps L2's virtual GIF. If L1 turned virtual GIF on and the processor has
/// none, L0 emulates STGI and CLGI on the copy: [`crate::events::set_vgif`].
#[inline]
pub fn lends_vgif(c12: &Checked12, hardware: Features) -> bool {
    c12.vgif() && hardware.contains(Features::VGIF)
}

/// int_ctl of vmcb02. V_INTR_MASKING is always on: with 0 an L2 that clears IF would keep interrupts from
/// L0. If 12 has it off, L2's CR8 is L1's own, so V_TPR is vmcb01's.
#[inline]
pub fn int_ctl02(c12: &Checked12, int_ctl01: u64, hardware: Features) -> u64 {
    use int_ctl::*;
    let theirs = c12.control.int_ctl;
    let tpr = if c12.intr_masking() { theirs } else { int_ctl01 } & V_TPR;
    let mut own = theirs & (V_IRQ | V_INTR_PRIO | V_IGN_TPR | V_INTR_VECTOR);
    if lends_vgif(c12, hardware) {
        own |= theirs & (V_GIF | V_GIF_ENABLE);
    } else if theirs & (V_GIF | V_GIF_ENABLE) == V_GIF_ENABLE {
        // Virtual GIF kept by L0 and clear: the virtual interrupt stays pending in 12.
        own &= !V_IRQ;
    }
    V_INTR_MASKING | tpr | own
}

/// L1's filter, or L0's own where only L0 intercepts PAUSE, or the more eager of both. Zero, which means
/// "exit on each PAUSE", where the filter is not in use.
fn pause02(c12: &Checked12, l0: &L0Policy) -> (u16, u16) {
    let theirs = (c12.control.pause_filter_count, c12.control.pause_filter_threshold);
    let wants = (c12.control.intercepts.has(Intercept::PAUSE), l0.intercepts.has(Intercept::PAUSE));
    match wants {
        (true, true) => (theirs.0.min(l0.pause.0), theirs.1.min(l0.pause.1)),
        (true, false) => theirs,
        (false, true) => l0.pause,
        (false, false) => (0, 0),
    }
}

/// TSC offset of L2 against the hardware's (scaled) TSC: L1's own offset seen through L1's ratio, plus L1's
/// offset for L2. The first is signed.
#[inline]
pub fn tsc_offset02(offset01: u64, ratio12: u64, offset12: u64) -> u64 {
    let scaled = if ratio12 == RATIO_ONE {
        offset01
    } else {
        ((i128::from(offset01 as i64) * i128::from(ratio12)) >> 32) as u64
    };
    scaled.wrapping_add(offset12)
}

/// TSC_RATIO while L2 runs: the product, cut to the 40 bits of the MSR by saturation.
#[inline]
pub fn tsc_ratio02(ratio01: u64, ratio12: u64) -> u64 {
    let product = (u128::from(ratio01) * u128::from(ratio12)) >> 32;
    product.min((1 << 40) - 1) as u64
}
