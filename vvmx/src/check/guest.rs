//! SDM vol. 3, "Checks on the Guest State Area".

use super::{View, is_shadow, pae_paging, pat_is_legal, pdpte_is_valid, rules, s_cet_is_legal};
use crate::bits::{entry, misc, pin, reg::*, secondary};
use crate::code::{activity, blocking, intr};
use crate::field::Field;
use crate::vmcs12::{REVISION, SHADOW_INDICATOR};

rules! {
    /// A rule about guest state. Breaking one is an exit with reason 33 and bit 31 set.
    GuestRule;
    /// "Checks on Guest Control Registers, Debug Registers, and MSRs", "Descriptor-Table Registers",
    /// "PDPTEs", and the link pointer.
    fn registers(x) {
        /// "The CR0 field must not set any bit to a value not supported in VMX operation": PE and PG are free
        /// for an unrestricted guest.
        Cr0 => {
            let free = if unrestricted(x) { CR0_PE | CR0_PG } else { 0 };
            !x.caps.cr0_fits(x.get(Field::GUEST_CR0) | free)
        };
        /// "If bit 31 in the CR0 field (corresponding to PG) is 1, bit 0 in that field (PE) must also be 1."
        PagingWithoutProtection => x.get(Field::GUEST_CR0) & (CR0_PG | CR0_PE) == CR0_PG;
        /// "The CR4 field must not set any bit to a value not supported in VMX operation."
        Cr4 => !x.caps.cr4_fits(x.get(Field::GUEST_CR4));
        /// "If bit 23 in the CR4 field (corresponding to CET) is 1, bit 16 in the CR0 field (WP) must also be
        /// 1."
        CetWithoutWp => x.get(Field::GUEST_CR4) & CR4_CET != 0 && x.get(Field::GUEST_CR0) & CR0_WP == 0;
        /// "If the “load debug controls” VM-entry control is 1, bits reserved in the IA32_DEBUGCTL MSR must be
        /// 0 in the field for that register."
        Debugctl => x.v.entry(entry::LOAD_DEBUG)
            && x.get(Field::GUEST_DEBUGCTL) & !x.caps.cpu.debugctl != 0;
        /// "If the “IA-32e mode guest” VM-entry control is 1, bit 31 in the CR0 field (PG) and bit 5 in the CR4
        /// field (PAE) must each be 1."
        LongModeWithoutPaging => long(x) && (x.get(Field::GUEST_CR0) & CR0_PG == 0
            || x.get(Field::GUEST_CR4) & CR4_PAE == 0);
        /// "If the “IA-32e mode guest” VM-entry control is 0, bit 17 in the CR4 field (PCIDE) must be 0."
        PcideOutsideLongMode => !long(x) && x.get(Field::GUEST_CR4) & CR4_PCIDE != 0;
        /// "The CR3 field must be such that bits 63:52 and bits in the range 51:32 beyond the processor's
        /// physical-address width are 0."
        Cr3 => x.get(Field::GUEST_CR3) >= x.caps.phys_end();
        /// "If the “load debug controls” VM-entry control is 1, bits 63:32 in the DR7 field must be 0."
        Dr7 => x.v.entry(entry::LOAD_DEBUG) && x.get(Field::GUEST_DR7) >> 32 != 0;
        /// "The IA32_SYSENTER_ESP field and the IA32_SYSENTER_EIP field must each contain a canonical address."
        Sysenter => x.uncanonical(Field::GUEST_SYSENTER_ESP) || x.uncanonical(Field::GUEST_SYSENTER_EIP);
        /// "If the “load CET state” VM-entry control is 1, the IA32_S_CET field must not set any bits reserved"
        SCet => x.v.entry(entry::LOAD_CET) && !s_cet_is_legal(x.get(Field::GUEST_S_CET), x.caps);
        /// Likewise the IA32_INTERRUPT_SSP_TABLE_ADDR field is canonical.
        SspTable => x.v.entry(entry::LOAD_CET) && x.uncanonical(Field::GUEST_SSP_TABLE);
        /// "If the “load CET state” VM-entry control is 1, bits 1:0 must be 0" in SSP, and its high bits as RIP's.
        Ssp => x.v.entry(entry::LOAD_CET) && {
            let ssp = x.get(Field::GUEST_SSP);
            ssp & 3 != 0 || if code_64(x) { !x.caps.high_bits_equal(ssp) } else { ssp >> 32 != 0 }
        };
        /// "If the “load IA32_PERF_GLOBAL_CTRL” VM-entry control is 1, bits reserved in the
        /// IA32_PERF_GLOBAL_CTRL MSR must be 0 in the field for that register."
        PerfGlobal => x.v.entry(entry::LOAD_PERF_GLOBAL)
            && x.get(Field::GUEST_PERF_GLOBAL_CTRL) & !x.caps.cpu.perf_global != 0;
        /// "If the “load IA32_PAT” VM-entry control is 1, the value of the field for the IA32_PAT MSR must be
        /// one that could be written by WRMSR without fault at CPL 0."
        Pat => x.v.entry(entry::LOAD_PAT) && !pat_is_legal(x.get(Field::GUEST_PAT));
        /// "If the “load IA32_EFER” VM-entry control is 1": "Bits reserved in the IA32_EFER MSR must be 0."
        EferReserved => x.v.entry(entry::LOAD_EFER) && x.get(Field::GUEST_EFER) & !x.caps.cpu.efer != 0;
        /// Likewise: "Bit 10 (corresponding to IA32_EFER.LMA) must equal the value of the “IA-32e mode guest”
        /// VM-entry control. It must also be identical to bit 8 (LME) if bit 31 in the CR0 field (corresponding
        /// to CR0.PG) is 1."
        EferMode => x.v.entry(entry::LOAD_EFER) && {
            let efer = x.get(Field::GUEST_EFER);
            let (lma, lme) = (efer & EFER_LMA != 0, efer & EFER_LME != 0);
            lma != long(x) || x.get(Field::GUEST_CR0) & CR0_PG != 0 && lma != lme
        };
        /// "If the “load PKRS” VM-entry control is 1, bits 63:32 must be 0 in the IA32_PKRS field."
        Pkrs => x.v.entry(entry::LOAD_PKRS) && x.get(Field::GUEST_PKRS) >> 32 != 0;
        /// "GDTR, IDTR: base: the base-address fields must contain a canonical address."
        TableBase => x.uncanonical(Field::GUEST_GDTR_BASE) || x.uncanonical(Field::GUEST_IDTR_BASE);
        /// "GDTR, IDTR: limit: bits 31:16 of each limit field must be 0."
        TableLimit => (x.get(Field::GUEST_GDTR_LIMIT) | x.get(Field::GUEST_IDTR_LIMIT)) >> 16 != 0;
    }
    /// "Checks on Guest RIP, RFLAGS, and SSP", "Checks on Guest Non-Register State". SSP is above.
    fn each_entry(x) {
        /// "Bits 63:32 must be 0 if the “IA-32e mode guest” VM-entry control is 0 or if the L bit (bit 13) in
        /// the access-rights field for CS is 0"; else the bits above the linear-address width are identical.
        Rip => {
            let rip = x.get(Field::GUEST_RIP);
            if code_64(x) { !x.caps.high_bits_equal(rip) } else { rip >> 32 != 0 }
        };
        /// "Reserved bits 63:22, 15, 5, and 3 must be 0, and reserved bit 1 must be 1."
        RflagsReserved => x.get(Field::GUEST_RFLAGS) & (!0 << 22 | 1 << 15 | 1 << 5 | 1 << 3 | 1 << 1) != 2;
        /// "The VM flag (bit 17) must be 0 either if the “IA-32e mode guest” VM-entry control is 1 or if bit 0 in
        /// the CR0 field (PE) is 0."
        RflagsVm => vm86(x) && (long(x) || x.get(Field::GUEST_CR0) & CR0_PE == 0);
        /// "The IF flag (RFLAGS\[bit 9\]) must be 1 if the valid bit in the VM-entry interruption-information
        /// field is 1 and the interruption type is external interrupt."
        RflagsIf => injects(x, intr::kind::EXTERNAL) && x.get(Field::GUEST_RFLAGS) & RFLAGS_IF == 0;
        /// "The activity-state field must contain a value in the range 0–3, indicating an activity state
        /// supported by the implementation."
        ActivityUnsupported => match x.get(Field::GUEST_ACTIVITY) {
            activity::ACTIVE => false,
            activity::HLT => x.caps.msrs.misc & misc::HLT == 0,
            activity::SHUTDOWN => x.caps.msrs.misc & misc::SHUTDOWN == 0,
            activity::WAIT_FOR_SIPI => x.caps.msrs.misc & misc::WAIT_FOR_SIPI == 0,
            _ => true,
        };
        /// "The activity-state field must not indicate the HLT state if the DPL in the access-rights field for
        /// SS is not 0."
        HltOutsideRing0 => x.get(Field::GUEST_ACTIVITY) == activity::HLT && dpl(x.get32(Field::GUEST_SS_AR)) != 0;
        /// "The activity-state field must indicate the active state if the interruptibility-state field
        /// indicates blocking by either MOV-SS or by STI."
        InactiveWhileBlocked => x.get(Field::GUEST_ACTIVITY) != activity::ACTIVE
            && blocked(x, blocking::STI | blocking::MOV_SS);
        /// "If the valid bit in the VM-entry interruption-information field is 1, the interruption to be
        /// delivered must not be one that would normally be blocked while a logical processor is in the
        /// activity state": HLT lets interrupts, NMI, #DB, #MC and a pending MTF through; shutdown NMI and #MC;
        /// wait-for-SIPI none.
        EventBlockedByActivity => intr::valid(event(x)) && !wakes(x.get(Field::GUEST_ACTIVITY), event(x));
        /// "The reserved bits (bits 31:5) must be 0." Nor is an enclave interruption offered.
        BlockingReserved => x.get(Field::GUEST_INTERRUPTIBILITY) & !0xf != 0;
        /// "The field cannot indicate blocking by both STI and MOV SS."
        StiAndMovSs => {
            let both = blocking::STI | blocking::MOV_SS;
            x.get(Field::GUEST_INTERRUPTIBILITY) & both == both
        };
        /// "Bit 0 (blocking by STI) must be 0 if the IF flag (bit 9) is 0 in the RFLAGS field."
        StiWithoutIf => blocked(x, blocking::STI) && x.get(Field::GUEST_RFLAGS) & RFLAGS_IF == 0;
        /// "Bit 0 (blocking by STI) and bit 1 (blocking by MOV-SS) must both be 0 if the valid bit in the
        /// VM-entry interruption-information field is 1 and the interruption type is external interrupt."
        InterruptWhileBlocked =>
            injects(x, intr::kind::EXTERNAL) && blocked(x, blocking::STI | blocking::MOV_SS);
        /// "Bit 1 (blocking by MOV-SS) must be 0 if the valid bit … is 1 and the interruption type … is NMI."
        NmiWithMovSsBlocking => injects(x, intr::kind::NMI) && blocked(x, blocking::MOV_SS);
        /// "Bit 2 (blocking by SMI) must be 0 if the processor is not in SMM."
        SmiBlocking => blocked(x, blocking::SMI);
        /// "A processor may require bit 0 (blocking by STI) to be 0 if the valid bit … is 1 and the
        /// interruption type … is NMI." Ours does.
        NmiWithStiBlocking => injects(x, intr::kind::NMI) && blocked(x, blocking::STI);
        /// "If the “virtual NMIs” VM-execution control is 1, the valid bit … is 1, and the interruption type …
        /// is NMI, bit 3 (blocking by NMI) in the interruptibility-state field must be 0."
        NmiWhileBlocked => x.v.pin(pin::VIRTUAL_NMIS)
            && injects(x, intr::kind::NMI)
            && blocked(x, blocking::NMI);
        /// "Pending debug exceptions: Bits 11:4, bit 13, bit 15, and bits 63:17 must be 0." Bit 16 (RTM) is not
        /// offered, and bit 11 (bus lock) neither.
        PendingDebugReserved => x.get(Field::GUEST_PENDING_DEBUG) & !0x500f != 0;
        /// "If … the interruptibility-state field indicates blocking by STI … or MOV SS, or the activity-state
        /// field indicates HLT: bit 14 (BS) must be 1 if the TF flag in the RFLAGS field is 1 and the BTF flag
        /// in the IA32_DEBUGCTL field is 0", and 0 otherwise.
        PendingDebugStep => {
            let counts = blocked(x, blocking::STI | blocking::MOV_SS)
                || x.get(Field::GUEST_ACTIVITY) == activity::HLT;
            let steps = x.get(Field::GUEST_RFLAGS) & RFLAGS_TF != 0
                && x.get(Field::GUEST_DEBUGCTL) & DEBUGCTL_BTF == 0;
            counts && (x.get(Field::GUEST_PENDING_DEBUG) & 1 << 14 != 0) != steps
        };
        /// "Bits 11:0 must be 0. Bits beyond the processor's physical-address width must be 0."
        LinkAddress => linked(x) && x.misplaced(Field::VMCS_LINK_POINTER, 4096);
        /// "Bits 30:0 must contain the processor's VMCS revision identifier."
        LinkRevision => linked(x) && x.seen.link.is_none_or(|w| w & !SHADOW_INDICATOR != REVISION);
        /// "Bit 31 must contain the setting of the “VMCS shadowing” VM-execution control."
        LinkShadowIndicator => linked(x)
            && x.seen.link.is_some_and(|w| is_shadow(w) != x.v.secondary(secondary::VMCS_SHADOWING));
        /// "If the processor is not in SMM …, the field must not contain the current VMCS pointer."
        LinkCurrent => linked(x) && x.get(Field::VMCS_LINK_POINTER) == x.seen.current;
        /// "If … the guest is using PAE paging, the PDPTEs must be valid": from the fields with EPT, else from
        /// memory.
        Pdpte => pae_paging(x.v) && !match x.v.ept() {
            true => (0..4).all(|i| pdpte_is_valid(x.get(Field::GUEST_PDPTE0.step(i)), x.caps)),
            false => x.seen.pdptes.is_some_and(|all| all.iter().all(|p| pdpte_is_valid(*p, x.caps))),
        };
    }
    names {
        /// "TR: the TI flag (bit 2) must be 0." "LDTR: if usable, the TI flag must be 0."
        SystemSelectorTi;
        /// "SS: if the guest will not be virtual-8086 and the “unrestricted guest” VM-execution control is 0,
        /// the RPL (bits 1:0) must equal the RPL of the selector field for CS."
        SsRpl;
        /// Virtual-8086: "the address must be the selector field shifted left 4 bits."
        Vm86Base;
        /// Virtual-8086: "the field must be 0000FFFFH."
        Vm86Limit;
        /// Virtual-8086: "the field must be 000000F3H."
        Vm86Rights;
        /// "TR, FS, GS: the address must be canonical. LDTR: if usable, the address must be canonical."
        BaseCanonical;
        /// "CS: bits 63:32 of the address must be zero. SS, DS, ES: if usable, bits 63:32 must be zero."
        BaseHigh;
        /// "Bits 3:0 (Type)" of CS, SS, DS, ES, FS, GS.
        SegmentType;
        /// "Bit 4 (S): if the register is CS or usable, S must be 1."
        SegmentSystem;
        /// "Bits 6:5 (DPL)" of CS.
        CsDpl;
        /// "Bits 6:5 (DPL)" of SS.
        SsDpl;
        /// "Bits 6:5 (DPL)" of DS, ES, FS, GS.
        DataDpl;
        /// "Bit 7 (P): if the register is CS or usable, P must be 1."
        SegmentPresent;
        /// "Bit 14 (D/B): for CS, D/B must be 0 if the guest will be IA-32e mode and the L bit is 1."
        CsLongAndDefault;
        /// "Bit 15 (G)": 0 if any bit in the limit field in the range 11:0 is 0, 1 if any bit in 31:20 is 1.
        Granularity;
        /// "TR: Bits 3:0 (Type)": 11, or 3 outside IA-32e mode.
        TrType;
        /// "LDTR: Bits 3:0 (Type) must be 2."
        LdtrType;
        /// TR and a usable LDTR: S must be 0, P must be 1.
        SystemRights;
        /// "TR: Bit 16 (Unusable): the unusable bit must be 0."
        TrUnusable;
    }
}

fn long(x: &View<'_>) -> bool {
    x.v.entry(entry::IA32E)
}
fn unrestricted(x: &View<'_>) -> bool {
    x.v.secondary(secondary::UNRESTRICTED_GUEST)
}
fn vm86(x: &View<'_>) -> bool {
    x.get(Field::GUEST_RFLAGS) & RFLAGS_VM != 0
}
fn code_64(x: &View<'_>) -> bool {
    long(x) && x.get32(Field::GUEST_CS_AR) & L != 0
}
fn event(x: &View<'_>) -> u32 {
    x.get32(Field::ENTRY_INTR_INFO)
}
fn injects(x: &View<'_>, kind: u32) -> bool {
    intr::valid(event(x)) && intr::kind_of(event(x)) == kind
}
fn blocked(x: &View<'_>, bits: u64) -> bool {
    x.get(Field::GUEST_INTERRUPTIBILITY) & bits != 0
}
fn linked(x: &View<'_>) -> bool {
    x.get(Field::VMCS_LINK_POINTER) != u64::MAX
}

fn wakes(state: u64, event: u32) -> bool {
    let (kind, vector) = (intr::kind_of(event), intr::vector(event));
    match state {
        activity::ACTIVE => true,
        activity::HLT => match kind {
            intr::kind::EXTERNAL | intr::kind::NMI => true,
            intr::kind::HARDWARE => matches!(vector, 1 | 18),
            intr::kind::OTHER => vector == 0,
            _ => false,
        },
        activity::SHUTDOWN => kind == intr::kind::NMI || kind == intr::kind::HARDWARE && vector == 18,
        _ => false,
    }
}

const CS: u8 = 1;
const SS: u8 = 2;
const FS: u8 = 4;
const LDTR: u8 = 6;
const TR: u8 = 7;
const L: u32 = 1 << 13;
const DB: u32 = 1 << 14;
const UNUSABLE: u32 = 1 << 16;

fn dpl(rights: u32) -> u32 {
    rights >> 5 & 3
}

struct Segment {
    selector: u64,
    base: u64,
    limit: u32,
    rights: u32,
}

impl Segment {
    fn of(x: &View<'_>, i: u8) -> Self {
        Self {
            selector: x.get(Field::GUEST_ES_SELECTOR.step(i)),
            base: x.get(Field::GUEST_ES_BASE.step(i)),
            limit: x.get32(Field::GUEST_ES_LIMIT.step(i)),
            rights: x.get32(Field::GUEST_ES_AR.step(i)),
        }
    }
    fn usable(&self) -> bool {
        self.rights & UNUSABLE == 0
    }
    fn kind(&self) -> u32 {
        self.rights & 15
    }
    fn granularity_is_wrong(&self) -> bool {
        let g = self.rights & 1 << 15 != 0;
        g && self.limit & 0xfff != 0xfff || !g && self.limit >> 20 != 0
    }
}

macro_rules! refuse {
    ($($broken:expr => $rule:ident),* $(,)?) => { $(if $broken { return Err(GuestRule::$rule); })* };
}

/// "Checks on Guest Segment Registers".
pub(super) fn segments(x: &View<'_>) -> Result<(), GuestRule> {
    let [cs, ss, tr, ldtr] = [CS, SS, TR, LDTR].map(|i| Segment::of(x, i));
    refuse! {
        tr.selector & 4 != 0 || ldtr.usable() && ldtr.selector & 4 != 0 => SystemSelectorTi,
        !vm86(x) && !unrestricted(x) && (cs.selector ^ ss.selector) & 3 != 0 => SsRpl,
        !x.caps.is_canonical(tr.base) || ldtr.usable() && !x.caps.is_canonical(ldtr.base) => BaseCanonical,
    }
    for i in 0..LDTR {
        let s = Segment::of(x, i);
        refuse! { i >= FS && !x.caps.is_canonical(s.base) => BaseCanonical }
        if vm86(x) {
            refuse! {
                s.base != s.selector << 4 => Vm86Base,
                s.limit != 0xffff => Vm86Limit,
                s.rights != 0xf3 => Vm86Rights,
            }
            continue;
        }
        refuse! { i < FS && (i == CS || s.usable()) && s.base >> 32 != 0 => BaseHigh }
        if i == CS || s.usable() {
            segment(x, i, &s, &cs, &ss)?;
        }
    }
    refuse! {
        !(tr.kind() == 11 || tr.kind() == 3 && !long(x)) => TrType,
        tr.rights & 0x90 != 0x80 => SystemRights,
        tr.granularity_is_wrong() => Granularity,
        !tr.usable() => TrUnusable,
    }
    if ldtr.usable() {
        refuse! {
            ldtr.kind() != 2 => LdtrType,
            ldtr.rights & 0x90 != 0x80 => SystemRights,
            ldtr.granularity_is_wrong() => Granularity,
        }
    }
    // SS's DPL counts even where SS is unusable.
    let real = x.get(Field::GUEST_CR0) & CR0_PE == 0;
    refuse! {
        !vm86(x) && !unrestricted(x) && u64::from(dpl(ss.rights)) != ss.selector & 3 => SsDpl,
        !vm86(x) && (cs.kind() == 3 || real) && dpl(ss.rights) != 0 => SsDpl,
    }
    Ok(())
}

/// Access rights of CS or a usable data segment, outside virtual-8086 mode. (The reserved bits 11:8 and 31:17
/// can't be set in an access-rights field: VMWRITE drops them.)
fn segment(x: &View<'_>, i: u8, s: &Segment, cs: &Segment, ss: &Segment) -> Result<(), GuestRule> {
    let kind = s.kind();
    let kind_is_right = match i {
        CS => matches!(kind, 9 | 11 | 13 | 15) || kind == 3 && unrestricted(x),
        SS => matches!(kind, 3 | 7),
        // Accessed; and code must be readable.
        _ => kind & 1 != 0 && (kind & 8 == 0 || kind & 2 != 0),
    };
    refuse! {
        !kind_is_right => SegmentType,
        s.rights & 1 << 4 == 0 => SegmentSystem,
        s.rights & 1 << 7 == 0 => SegmentPresent,
    }
    let cs_dpl = dpl(cs.rights);
    match i {
        CS => {
            let right = match kind {
                3 => cs_dpl == 0,
                9 | 11 => cs_dpl == dpl(ss.rights),
                _ => cs_dpl <= dpl(ss.rights),
            };
            refuse! { !right => CsDpl, long(x) && s.rights & (L | DB) == L | DB => CsLongAndDefault }
        }
        SS => {}
        _ => refuse! {
            !unrestricted(x) && kind <= 11 && u64::from(dpl(s.rights)) < s.selector & 3 => DataDpl,
        },
    }
    refuse! { s.granularity_is_wrong() => Granularity }
    Ok(())
}
