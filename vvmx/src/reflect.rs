//! Leaving L2: what vmcs02 and the exit tell goes into vmcs12, and L1 goes on in its host state.
//!
//! Sources: SDM vol. 3, "VM Exits": "Recording VM-Exit Information and Updating VM-Entry Control Fields",
//! "Saving Guest State", "Loading Host State"; "VM-Entry Failures During or After Loading Guest State".

use crate::bits::{entry, exit, misc, pin, reg::*, secondary};
use crate::caps::Caps;
use crate::check::pae_paging;
use crate::code::{Reason, activity, blocking, intr};
use crate::field::{Field, FieldSet, Flow, Vmcs};
use crate::merge::Mirror;
use crate::route::Exit;
use crate::vmcs12::{Cached12, Vmcs12};

/// State that L1 rarely reads.
const RARE: FieldSet = FieldSet::flowing(Flow::Rare);
/// State that L1 reads on each exit.
const LIVE: FieldSet = FieldSet::flowing(Flow::Live);

/// Fetches L2's rarely read state from vmcs02 into the copy, if that is where its newest values are. What L1
/// wrote meanwhile is newer still.
pub fn sync_rare(c12: &mut Cached12, mut read: impl FnMut(Field) -> u64) {
    if !core::mem::take(&mut c12.rare_in_02) {
        return;
    }
    for field in RARE.minus(&c12.unmerged).iter() {
        c12.learn(field, read(field));
    }
}

/// What the back end knows of L2 beside vmcs02.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Outside {
    /// L0 emulates HLT: L2 was halted.
    pub halted: bool,
    /// What is left of L1's preemption timer.
    pub timer: u32,
    /// L2's EFER, where vmcs02's exits do not save it.
    pub efer: Option<u64>,
    /// L2's PAT, likewise.
    pub pat: Option<u64>,
}

/// Writes L2's state into the copy, as an exit saves it. vmcs02 is the processor's current VMCS.
pub fn sync(c12: &mut Cached12, caps: &Caps, out: &Outside, mirror: &mut Mirror, vmcs: &mut impl Vmcs) {
    mirror.ran();
    for field in LIVE.iter() {
        let value = mirror.get(vmcs, field);
        c12.learn(field, value);
    }
    c12.rare_in_02 = true;
    let mut get = |field| mirror.get(vmcs, field);
    for (register, mask, shadow) in [
        (Field::GUEST_CR0, Field::CR0_MASK, Field::CR0_SHADOW),
        (Field::GUEST_CR4, Field::CR4_MASK, Field::CR4_SHADOW),
    ] {
        let seen = Seen02 { value: get(register), mask: get(mask), shadow: get(shadow) };
        let value = seen.value12(c12.fields().get(register), c12.fields().get(mask));
        c12.learn(register, value);
    }
    c12.learn(Field::GUEST_CR3, get(Field::GUEST_CR3));
    c12.learn(Field::GUEST_INTERRUPTIBILITY, get(Field::GUEST_INTERRUPTIBILITY));
    c12.learn(Field::GUEST_ACTIVITY, if out.halted { activity::HLT } else { activity::ACTIVE });
    let v = c12.fields();
    let (saves, offers) = (v.get32(Field::EXIT_CONTROLS), caps.msrs.entry);
    // Without L1's page L0 lent no delivery: the status is what L1 wrote.
    let lent = get(Field::SECONDARY_CONTROLS) as u32 & secondary::INTERRUPT_DELIVERY != 0;
    let delivers = lent && v.secondary(secondary::INTERRUPT_DELIVERY);
    let pdptes = v.ept() && pae_paging(v);
    // LMA is saved where the processor has unrestricted guest.
    if caps.msrs.misc & misc::EXIT_SAVES_LMA != 0 {
        let long = get(Field::ENTRY_CONTROLS) as u32 & entry::IA32E;
        let controls = v.get32(Field::ENTRY_CONTROLS) & !entry::IA32E | long;
        c12.learn(Field::ENTRY_CONTROLS, controls.into());
    }
    let saved = [
        (saves & exit::SAVE_DEBUG != 0, Field::GUEST_DEBUGCTL, None),
        (saves & exit::SAVE_DEBUG != 0, Field::GUEST_DR7, None),
        (saves & exit::SAVE_PAT != 0, Field::GUEST_PAT, out.pat),
        (saves & exit::SAVE_EFER != 0, Field::GUEST_EFER, out.efer),
        (saves & exit::SAVE_TIMER != 0, Field::PREEMPTION_TIMER, Some(out.timer.into())),
        (offers.has(entry::LOAD_PKRS), Field::GUEST_PKRS, None),
        (offers.has(entry::LOAD_CET), Field::GUEST_S_CET, None),
        (offers.has(entry::LOAD_CET), Field::GUEST_SSP, None),
        (offers.has(entry::LOAD_CET), Field::GUEST_SSP_TABLE, None),
        (delivers, Field::GUEST_INTR_STATUS, None),
        (pdptes, Field::GUEST_PDPTE0, None),
        (pdptes, Field::GUEST_PDPTE1, None),
        (pdptes, Field::GUEST_PDPTE2, None),
        (pdptes, Field::GUEST_PDPTE3, None),
    ];
    for (_, field, value) in saved.into_iter().filter(|s| s.0) {
        let value = value.unwrap_or_else(|| get(field));
        c12.learn(field, value);
    }
}

/// A control register in vmcs02.
struct Seen02 {
    value: u64,
    mask: u64,
    shadow: u64,
}

impl Seen02 {
    /// Its value for vmcs12: bits of L1's mask as L1 wrote them, as L2 can't change them; bits that only L0
    /// owns as L2 sees them; the others as they are.
    fn value12(&self, old12: u64, mask12: u64) -> u64 {
        let only_l0 = self.mask & !mask12;
        old12 & mask12 | self.shadow & only_l0 | self.value & !(mask12 | self.mask)
    }
}

/// Writes what the exit was into the copy. An event that was being delivered, L1's own injection included, is
/// in the IDT-vectoring fields; the injection's valid bit is cleared. L2 is left: the copy must be checked
/// again before another entry.
pub fn record(c12: &mut Cached12, e: &Exit) {
    let put = [
        (Field::EXIT_REASON, u64::from(e.reason)),
        (Field::EXIT_QUALIFICATION, e.qualification),
        (Field::EXIT_INTR_INFO, e.intr_info.into()),
        (Field::IDT_VECTORING_INFO, e.idt_info.into()),
        (Field::EXIT_INSN_LENGTH, e.insn_length.into()),
        (Field::EXIT_INSN_INFO, e.insn_info.into()),
        (Field::GUEST_LINEAR_ADDRESS, e.linear),
    ];
    for (field, value) in put {
        c12.learn(field, value);
    }
    if e.intr_info & intr::ERROR_CODE != 0 {
        c12.learn(Field::EXIT_INTR_ERROR_CODE, e.intr_error.into());
    }
    if e.idt_info & intr::ERROR_CODE != 0 {
        c12.learn(Field::IDT_VECTORING_ERROR_CODE, e.idt_error.into());
    }
    if matches!(e.basic(), Reason::EPT_VIOLATION | Reason::EPT_MISCONFIGURATION) {
        c12.learn(Field::GUEST_PHYSICAL_ADDRESS, e.physical);
    }
    let info = c12.fields().get32(Field::ENTRY_INTR_INFO);
    c12.learn(Field::ENTRY_INTR_INFO, u64::from(info & !intr::VALID));
    c12.valid = false;
}

/// Writes a failed entry into the copy: reason and qualification only; no state was saved, and the injection
/// stays as it was.
pub fn record_failure(c12: &mut Cached12, reason: Reason, qualification: u64) {
    c12.learn(Field::EXIT_REASON, u64::from(Reason::ENTRY_FAILURE | u32::from(reason.0)));
    c12.learn(Field::EXIT_QUALIFICATION, qualification);
    c12.valid = false;
}

/// L1's registers behind an exit that are not plain fields of vmcs01.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct HostState {
    /// CR0 as L1 wants it. The bits that an exit does not change (ET, CD, NW, …) are L1's from before the
    /// entry: [`HostState::cr0_from`].
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4, with PAE as a 64-bit host has it and PCIDE as a 32-bit host has it.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// PAT, if the exit loads it.
    pub pat: Option<u64>,
    /// IA32_PERF_GLOBAL_CTRL, if the exit loads it.
    pub perf_global: Option<u64>,
    /// IA32_PKRS, if the exit loads it.
    pub pkrs: Option<u64>,
    /// IA32_S_CET, SSP, IA32_INTERRUPT_SSP_TABLE_ADDR, if the exit loads them.
    pub cet: Option<[u64; 3]>,
    /// Whether L1's NMIs are blocked; `None`: as they were before the entry.
    pub nmi_blocked: Option<bool>,
    /// PAE paging: L0 must load the PDPTEs from CR3; if they are bad, the exit is a VMX abort
    /// ([`crate::code::Abort::HostPdpte`]), a shutdown of L1 (CVE-2026-46032's kin).
    pub pae: bool,
}

/// CR0 bits that an exit leaves alone: ET, CD, NW, and reserved ones. SDM vol. 3, "Loading Host Control
/// Registers, Debug Registers, MSRs".
const CR0_KEPT: u64 = 0x7ffa_ffd0 | !0 << 32;

impl HostState {
    /// CR0 behind the exit, from L1's before the entry.
    pub fn cr0_from(&self, before: u64) -> u64 {
        before & CR0_KEPT & 0xffff_ffff | self.cr0 & !CR0_KEPT
    }
}

/// Loads L1's host state: gives each plain field of vmcs01's guest area to `put01`, returns the rest. `efer`
/// is L1's from before the entry, `left` is L2's interruptibility if L2 really ran.
pub fn load_host(v: &Vmcs12, efer: u64, e: Option<&Exit>, mut put01: impl FnMut(Field, u64)) -> HostState {
    let long = v.exit(exit::HOST_64);
    let host = |field| v.get(field);
    put01(Field::GUEST_RIP, host(Field::HOST_RIP));
    put01(Field::GUEST_RSP, host(Field::HOST_RSP));
    put01(Field::GUEST_RFLAGS, RFLAGS_FIXED);
    put01(Field::GUEST_DR7, DR7_RESET);
    put01(Field::GUEST_DEBUGCTL, 0);
    put01(Field::GUEST_PENDING_DEBUG, 0);
    put01(Field::GUEST_SYSENTER_CS, host(Field::HOST_SYSENTER_CS));
    put01(Field::GUEST_SYSENTER_ESP, host(Field::HOST_SYSENTER_ESP));
    put01(Field::GUEST_SYSENTER_EIP, host(Field::HOST_SYSENTER_EIP));
    for i in 0..6 {
        let selector = host(Field::HOST_ES_SELECTOR.step(i));
        let rights = match (i, long) {
            (1, true) => 0xa09b,
            (1, false) => 0xc09b,
            // A null selector leaves an unusable register, but never SS of a 32-bit host.
            _ if selector == 0 => 1 << 16 | 0xc093,
            _ => 0xc093,
        };
        let base = match i {
            4 => host(Field::HOST_FS_BASE),
            5 => host(Field::HOST_GS_BASE),
            _ => 0,
        };
        put01(Field::GUEST_ES_SELECTOR.step(i), selector);
        put01(Field::GUEST_ES_LIMIT.step(i), 0xffff_ffff);
        put01(Field::GUEST_ES_AR.step(i), rights);
        put01(Field::GUEST_ES_BASE.step(i), base);
    }
    put01(Field::GUEST_TR_SELECTOR, host(Field::HOST_TR_SELECTOR));
    put01(Field::GUEST_TR_LIMIT, 0x67);
    put01(Field::GUEST_TR_AR, 0x8b);
    put01(Field::GUEST_TR_BASE, host(Field::HOST_TR_BASE));
    put01(Field::GUEST_LDTR_SELECTOR, 0);
    put01(Field::GUEST_LDTR_AR, 1 << 16);
    put01(Field::GUEST_GDTR_BASE, host(Field::HOST_GDTR_BASE));
    put01(Field::GUEST_GDTR_LIMIT, 0xffff);
    put01(Field::GUEST_IDTR_BASE, host(Field::HOST_IDTR_BASE));
    put01(Field::GUEST_IDTR_LIMIT, 0xffff);

    let cr4 = host(Field::HOST_CR4);
    let mode = if long { EFER_LMA | EFER_LME } else { 0 };
    let if_loaded = |bit, field| v.exit(bit).then(|| host(field));
    HostState {
        cr0: host(Field::HOST_CR0),
        cr3: host(Field::HOST_CR3),
        cr4: if long { cr4 | CR4_PAE } else { cr4 & !CR4_PCIDE },
        efer: if_loaded(exit::LOAD_EFER, Field::HOST_EFER).unwrap_or(efer) & !(EFER_LMA | EFER_LME) | mode,
        pat: if_loaded(exit::LOAD_PAT, Field::HOST_PAT),
        perf_global: if_loaded(exit::LOAD_PERF_GLOBAL, Field::HOST_PERF_GLOBAL_CTRL),
        pkrs: if_loaded(exit::LOAD_PKRS, Field::HOST_PKRS),
        cet: v
            .exit(exit::LOAD_CET)
            .then(|| [Field::HOST_S_CET, Field::HOST_SSP, Field::HOST_SSP_TABLE].map(host)),
        nmi_blocked: nmi_blocked(v, e),
        pae: !long && cr4 & CR4_PAE != 0,
    }
}

/// An NMI exit blocks NMIs. Without virtual NMIs L2's blocking was L1's own; with them L1's is what it was.
fn nmi_blocked(v: &Vmcs12, e: Option<&Exit>) -> Option<bool> {
    let e = e?;
    if e.basic() == Reason::EXCEPTION_NMI && intr::is_nmi(e.intr_info) {
        return Some(true);
    }
    let own = v.get(Field::GUEST_INTERRUPTIBILITY) & blocking::NMI != 0;
    (!v.pin(pin::VIRTUAL_NMIS)).then_some(own)
}
