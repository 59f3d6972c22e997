//! The copy of a vmcb12 that everything else works on.
//!
//! [`Cached12`] belongs to one vmcb12 address of one vCPU and lives across runs, so that unchanged groups
//! need not be read again. [`Cached12::load`] reads each word of the page at most once and checks the copy;
//! only then [`Cached12::checked`] gives a [`Checked12`], the sole thing that merge and route accept.
//!
//! The state that VMRUN does not load (FS, GS, TR, LDTR, KernelGSBase, STAR…, SYSENTER…: VMLOAD's) is not
//! here: one hardware copy of it serves vmcb01 and vmcb02.

use crate::caps::{Caps, Features};
use crate::check::{self, Refusal};
use crate::layout::{
    Clean, Control, Event, Intercepts, SaveArea, Segment, int_ctl, int_state, misc_ctl, reg,
};
use addr::{Gpa, GuestPage};
use core::mem::offset_of;

/// A set of clean groups, here those that *changed*.
pub type Dirty = Clean;

/// Byte offsets within a VMCB page, from the layout itself.
pub(crate) mod at {
    use super::*;
    macro_rules! offsets {
        ($base:literal $ty:ty: $($name:ident = $field:ident),* $(,)?) => {
            $(pub(crate) const $name: usize = $base + offset_of!($ty, $field);)*
        };
    }
    offsets!(0 Control: INTERCEPTS = intercepts, PAUSE = pause_filter_threshold, IOPM = iopm_base_pa,
        MSRPM = msrpm_base_pa, TSC_OFFSET = tsc_offset, ASID = asid, INT_CTL = int_ctl,
        INT_STATE = int_state, EXIT_CODE = exit_code, EXIT_INFO_1 = exit_info_1,
        EXIT_INFO_2 = exit_info_2, EXIT_INT_INFO = exit_int_info, MISC_CTL = misc_ctl,
        EVENT_INJ = event_inj, N_CR3 = n_cr3, CLEAN = vmcb_clean, NRIP = nrip, INSN = insn_len);
    offsets!(0x400 SaveArea: ES = es, CS = cs, SS = ss, DS = ds, GDTR = gdtr, IDTR = idtr, CPL = cpl,
        EFER = efer, CR4 = cr4, CR3 = cr3, CR0 = cr0, DR7 = dr7, DR6 = dr6, RFLAGS = rflags, RIP = rip,
        RSP = rsp, S_CET = s_cet, SSP = ssp, ISST_ADDR = isst_addr, RAX = rax, CR2 = cr2, G_PAT = g_pat);
    // `PAUSE` is read as one u32 and `ASID` as one u64 with TLB_CONTROL.
    const _: () = assert!(offset_of!(Control, pause_filter_count) == PAUSE + 2);
    const _: () = assert!(offset_of!(Control, tlb_control) == ASID + 4);
}

/// Control fields of vmcb12, reduced to the bits that exist for this L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control12 {
    /// L1's intercepts.
    pub intercepts: Intercepts,
    /// PAUSE filter threshold in cycles, 0 if not offered.
    pub pause_filter_threshold: u16,
    /// PAUSE filter count, 0 if not offered.
    pub pause_filter_count: u16,
    /// I/O permission map, page aligned.
    pub iopm: Gpa,
    /// MSR permission map, page aligned.
    pub msrpm: Gpa,
    /// TSC offset as L1 wants it.
    pub tsc_offset: u64,
    /// L1's ASID for L2.
    pub asid: u32,
    /// L1's wish for the TLB: see [`crate::layout::tlb_control`].
    pub tlb_control: u8,
    /// Virtual interrupt control.
    pub int_ctl: u64,
    /// L2 starts in an interrupt shadow.
    pub interrupt_shadow: bool,
    /// Nested paging and what hangs on it: see [`crate::layout::misc_ctl`].
    pub misc_ctl: u64,
    /// Event to inject on this entry.
    pub event_inj: Event,
    /// Root of L1's nested page tables. 0 unless nested paging is on.
    pub n_cr3: Gpa,
    /// nRIP, what a soft injection pushes; 0 if not offered.
    pub nrip: u64,
}

impl Default for Control12 {
    fn default() -> Self {
        Self {
            intercepts: Intercepts::NONE,
            pause_filter_threshold: 0,
            pause_filter_count: 0,
            iopm: Gpa::ZERO,
            msrpm: Gpa::ZERO,
            tsc_offset: 0,
            asid: 0,
            tlb_control: 0,
            int_ctl: 0,
            interrupt_shadow: false,
            misc_ctl: 0,
            event_inj: Event::NONE,
            n_cr3: Gpa::ZERO,
            nrip: 0,
        }
    }
}

/// The registers that VMRUN loads and #VMEXIT saves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The manual's register names say all there is.
pub struct Save12 {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub gdtr: Segment,
    pub idtr: Segment,
    pub cpl: u8,
    pub efer: u64,
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    pub rsp: u64,
    pub s_cet: u64,
    pub ssp: u64,
    pub isst_addr: u64,
    pub rax: u64,
    pub cr2: u64,
    pub g_pat: u64,
}

/// A vmcb12 that passed every check of VMRUN. Holding a reference proves that the values were copied once
/// and that it is these very values that were checked.
#[derive(Clone, Debug, Default)]
pub struct Checked12 {
    pub(crate) control: Control12,
    pub(crate) save: Save12,
}

impl Checked12 {
    /// Control fields.
    #[inline]
    pub fn control(&self) -> &Control12 {
        &self.control
    }
    /// L2's registers as of the last entry.
    #[inline]
    pub fn save(&self) -> &Save12 {
        &self.save
    }
    /// Whether L1 uses nested paging for L2.
    #[inline]
    pub fn np(&self) -> bool {
        self.control.misc_ctl & misc_ctl::NP_ENABLE != 0
    }
    /// Whether L2's IF and CR8 are virtual; if not they are L1's own.
    #[inline]
    pub fn intr_masking(&self) -> bool {
        self.control.int_ctl & int_ctl::V_INTR_MASKING != 0
    }
    /// Whether L2 has a virtual GIF.
    #[inline]
    pub fn vgif(&self) -> bool {
        self.control.int_ctl & int_ctl::V_GIF_ENABLE != 0
    }
}

/// One vmcb12 address of one vCPU: the copy, what of it vmcb02 doesn't have yet, and what L0 borrowed.
#[derive(Clone, Debug)]
pub struct Cached12 {
    gpa: Gpa,
    pub(crate) data: Checked12,
    /// `data` equals what the page held at the last entry, updated by the last exit.
    loaded: bool,
    /// `data` passed the checks, and no exit has changed it since.
    valid: bool,
    unmerged: Dirty,
    pub(crate) features: Features,
    /// int_ctl as L1 wrote it, reserved bits too.
    pub(crate) raw_int_ctl: u64,
    /// The virtual interrupt of 12, set aside while L0 uses vmcb02's to wait for an interrupt window.
    pub(crate) borrowed: Option<u64>,
    /// Instruction bytes were written at the last exit.
    pub(crate) wrote_insn: bool,
}

impl Default for Cached12 {
    fn default() -> Self {
        Self::new(Gpa::ZERO)
    }
}

impl Cached12 {
    /// An empty copy for the vmcb12 at `gpa`.
    pub fn new(gpa: Gpa) -> Self {
        Self {
            gpa,
            data: Checked12::default(),
            loaded: false,
            valid: false,
            unmerged: Dirty::all(),
            features: Features::empty(),
            raw_int_ctl: 0,
            borrowed: None,
            wrote_insn: false,
        }
    }

    /// Address of the vmcb12 that this is a copy of.
    pub fn gpa(&self) -> Gpa {
        self.gpa
    }

    /// The copy, from a successful [`Cached12::load`] until L2 is left; else `None`.
    #[inline]
    pub fn checked(&self) -> Option<&Checked12> {
        if self.valid { Some(&self.data) } else { None }
    }

    /// Whether L0 is using vmcb02's virtual interrupt, see [`crate::events::borrow_window`].
    #[inline]
    pub fn window_borrowed(&self) -> bool {
        self.borrowed.is_some()
    }

    /// Copies vmcb12 from its pinned `page`, each word at most once, and makes every check of VMRUN on the
    /// copy. Returns the groups in which vmcb02 differs from the copy, for [`crate::merge::merge`].
    ///
    /// `l1_cr0` is L1's CR0 at the VMRUN. `trust_clean` allows to skip the groups that L1 marked clean;
    /// it may be true only if this vCPU ran this very vmcb12 address through this `Cached12` before and
    /// nothing has replaced the memory at that address since. It is ignored where L1 is not offered
    /// clean bits, and after a refusal.
    ///
    /// # Errors
    /// The first check that fails: L1 gets VMEXIT_INVALID by [`crate::reflect::refuse`]. Nothing but this
    /// copy has changed then.
    pub fn load(
        &mut self,
        page: &impl GuestPage,
        caps: &Caps,
        l1_cr0: u64,
        trust_clean: bool,
    ) -> Result<Dirty, Refusal> {
        let trusted = trust_clean && self.loaded && caps.has(Features::VMCB_CLEAN);
        let clean =
            if trusted { Clean::from_bits_truncate(page.read_u32(at::CLEAN)) } else { Clean::empty() };
        let stale = if self.loaded { self.unmerged } else { Dirty::all() };
        (self.loaded, self.valid, self.unmerged) = (false, false, Dirty::all());
        (self.features, self.borrowed) = (caps.features, None);

        let dirty = stale | self.copy_control(page, caps, clean) | self.copy_save(page, caps, clean);
        check::check(&self.data, caps, l1_cr0)?;
        (self.loaded, self.valid, self.unmerged) = (true, true, dirty);
        Ok(dirty)
    }

    fn copy_control(&mut self, page: &impl GuestPage, caps: &Caps, clean: Clean) -> Dirty {
        let mut dirty = Dirty::empty();
        let c = &mut self.data.control;
        if !clean.contains(Clean::I) {
            let words: [u64; 3] = core::array::from_fn(|i| page.read_u64(at::INTERCEPTS + i * 8));
            let raw = Intercepts(core::array::from_fn(|i| (words[i / 2] >> (i % 2 * 32)) as u32));
            keep(&mut c.intercepts, raw & caps.intercepts(), Clean::I, &mut dirty);
            keep(&mut c.tsc_offset, page.read_u64(at::TSC_OFFSET), Clean::I, &mut dirty);
            let pause = page.read_u32(at::PAUSE);
            let count = if caps.has(Features::PAUSE_FILTER) { (pause >> 16) as u16 } else { 0 };
            let threshold = if caps.has(Features::PAUSE_THRESHOLD) { pause as u16 } else { 0 };
            keep(&mut c.pause_filter_count, count, Clean::I, &mut dirty);
            keep(&mut c.pause_filter_threshold, threshold, Clean::I, &mut dirty);
        }
        if !clean.contains(Clean::PERM) {
            // Bits 11:0 are ignored: APM vol. 2, "IOIO Intercepts" and "MSR Intercepts".
            keep(&mut c.iopm, Gpa::new(page.read_u64(at::IOPM) & !0xfff), Clean::PERM, &mut dirty);
            keep(&mut c.msrpm, Gpa::new(page.read_u64(at::MSRPM) & !0xfff), Clean::PERM, &mut dirty);
        }
        if !clean.contains(Clean::TPR) {
            self.raw_int_ctl = page.read_u64(at::INT_CTL);
            keep(&mut c.int_ctl, self.raw_int_ctl & int_ctl_bits(caps), Clean::TPR, &mut dirty);
        }
        // Outside the groups, or sharing a word with something that is: always read.
        let asid = page.read_u64(at::ASID);
        keep(&mut c.asid, asid as u32, Clean::ASID, &mut dirty);
        c.tlb_control = (asid >> 32) as u8;
        c.interrupt_shadow = page.read_u64(at::INT_STATE) & int_state::INTERRUPT_SHADOW != 0;
        c.event_inj = Event(page.read_u64(at::EVENT_INJ));
        c.nrip = if caps.has(Features::NRIPS) { page.read_u64(at::NRIP) } else { 0 };
        let misc = page.read_u64(at::MISC_CTL) & misc_ctl_bits(caps);
        let np = misc & misc_ctl::NP_ENABLE != 0;
        let np_changed = keep(&mut c.misc_ctl, if np { misc } else { 0 }, Clean::NP, &mut dirty);
        // A clean group that was not read while nested paging was off can't be trusted.
        if !np {
            keep(&mut c.n_cr3, Gpa::ZERO, Clean::NP, &mut dirty);
        } else if np_changed || !clean.contains(Clean::NP) {
            keep(&mut c.n_cr3, Gpa::new(page.read_u64(at::N_CR3)), Clean::NP, &mut dirty);
            keep(&mut self.data.save.g_pat, page.read_u64(at::G_PAT), Clean::NP, &mut dirty);
        }
        dirty
    }

    fn copy_save(&mut self, page: &impl GuestPage, caps: &Caps, clean: Clean) -> Dirty {
        let mut dirty = Dirty::empty();
        let s = &mut self.data.save;
        let word = |offset| page.read_u64(offset);
        if !clean.contains(Clean::SEG) {
            for (slot, offset) in
                [(&mut s.es, at::ES), (&mut s.cs, at::CS), (&mut s.ss, at::SS), (&mut s.ds, at::DS)]
            {
                let base = caps.canonical(word(offset + 8));
                keep(slot, unpack(word(offset), base), Clean::SEG, &mut dirty);
            }
            keep(&mut s.cpl, page.read_u8(at::CPL) & 3, Clean::SEG, &mut dirty);
        }
        if !clean.contains(Clean::DT) {
            for (slot, offset) in [(&mut s.gdtr, at::GDTR), (&mut s.idtr, at::IDTR)] {
                let whole = unpack(word(offset), caps.canonical(word(offset + 8)));
                keep(slot, Segment { selector: 0, attrib: 0, ..whole }, Clean::DT, &mut dirty);
            }
        }
        if !clean.contains(Clean::CRX) {
            let (cr0, efer) = (word(at::CR0), word(at::EFER));
            keep(&mut s.cr0, cr0, Clean::CRX, &mut dirty);
            keep(&mut s.cr4, word(at::CR4), Clean::CRX, &mut dirty);
            keep(&mut s.cr3, word(at::CR3), Clean::CRX, &mut dirty);
            keep(&mut s.efer, with_lma(efer, cr0), Clean::CRX, &mut dirty);
        }
        if !clean.contains(Clean::DRX) {
            keep(&mut s.dr7, word(at::DR7), Clean::DRX, &mut dirty);
            keep(&mut s.dr6, word(at::DR6), Clean::DRX, &mut dirty);
        }
        if !clean.contains(Clean::CR2) {
            keep(&mut s.cr2, word(at::CR2), Clean::CR2, &mut dirty);
        }
        if caps.cet() && !clean.contains(Clean::CET) {
            keep(&mut s.s_cet, word(at::S_CET), Clean::CET, &mut dirty);
            keep(&mut s.ssp, word(at::SSP), Clean::CET, &mut dirty);
            keep(&mut s.isst_addr, word(at::ISST_ADDR), Clean::CET, &mut dirty);
        }
        (s.rflags, s.rip) = (word(at::RFLAGS), word(at::RIP));
        (s.rsp, s.rax) = (word(at::RSP), word(at::RAX));
        dirty
    }

    /// L2 has been left: vmcb02 and the copy agree, but what L2 made of its registers is not checked.
    pub(crate) fn left(&mut self) {
        (self.valid, self.borrowed, self.unmerged) = (false, None, Dirty::empty());
    }

    /// The entry was refused.
    pub(crate) fn refused(&mut self) {
        (self.loaded, self.valid, self.unmerged) = (false, false, Dirty::all());
    }
}

/// Stores `value`; if that changes something, notes `group`. Returns whether it did.
#[inline]
pub(crate) fn keep<T: PartialEq>(slot: &mut T, value: T, group: Clean, dirty: &mut Clean) -> bool {
    let changed = *slot != value;
    if changed {
        *slot = value;
        *dirty |= group;
    }
    changed
}

/// A segment from its two words.
fn unpack(low: u64, base: u64) -> Segment {
    Segment { selector: low as u16, attrib: (low >> 16) as u16, limit: (low >> 32) as u32, base }
}

/// EFER with LMA as the processor computes it.
fn with_lma(efer: u64, cr0: u64) -> u64 {
    let active = efer & reg::EFER_LME != 0 && cr0 & reg::CR0_PG != 0;
    efer & !reg::EFER_LMA | if active { reg::EFER_LMA } else { 0 }
}

/// The int_ctl bits that exist for this L1. AVIC's never do (CVE-2021-3653).
fn int_ctl_bits(caps: &Caps) -> u64 {
    use int_ctl::*;
    let base = V_TPR | V_IRQ | V_INTR_PRIO | V_IGN_TPR | V_INTR_MASKING | V_INTR_VECTOR;
    let vgif = if caps.has(Features::VGIF) { V_GIF | V_GIF_ENABLE } else { 0 };
    base | vgif
}

/// The misc_ctl bits that exist for this L1. SEV's never do.
fn misc_ctl_bits(caps: &Caps) -> u64 {
    if caps.has(Features::NPT) { misc_ctl::NP_ENABLE } else { 0 }
}
