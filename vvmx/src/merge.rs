//! Composing vmcs02 from L0's policy, L1's state and the checked vmcs12.
//!
//! Everything here is an allow-list: a bit reaches vmcs02 because a line below names it. Physical addresses
//! come from [`L0Policy`] only, host state and MSR lists not at all: the back end writes them, once. Fields are
//! written where they differ from what vmcs02 is known to hold ([`Mirror`]), and what follows from L0's policy
//! and L1's controls is computed only when one of these has changed.

use crate::bits::{entry, exit, pin, primary, reg::*, secondary};
use crate::caps::{Ctl, VmxMsrs};
use crate::check::pae_paging;
use crate::code::{activity, intr};
use crate::field::{COUNT, Class, Field, FieldSet, Flow, Vmcs};
use crate::timer;
use crate::vmcs12::{Cached12, Vmcs12};
use addr::Hpa;

/// What a vmcs02 of the processor is known to hold, so that nothing is written twice. Whoever writes a control
/// or L2's state to vmcs02 does it through here.
#[derive(Clone, Debug)]
pub struct Mirror {
    values: [u64; COUNT],
    known: FieldSet,
    /// What the controls were composed from.
    from: Option<(L0Policy, u64, u64)>,
}

impl Default for Mirror {
    fn default() -> Self {
        Self::new()
    }
}

/// What an exit may have changed. Not the activity state: what would change it exits instead. The registers
/// that an exit saves only if told to are below.
const GUEST_STATE: FieldSet = FieldSet::flowing(Flow::Rare)
    .or(&FieldSet::flowing(Flow::Live))
    .or(&FieldSet::flowing(Flow::Mixed))
    .minus(&FieldSet::of(&[
        Field::GUEST_ACTIVITY,
        Field::GUEST_PERF_GLOBAL_CTRL,
        Field::VMCS_LINK_POINTER,
        Field::GUEST_DEBUGCTL,
        Field::GUEST_DR7,
        Field::GUEST_PAT,
        Field::GUEST_EFER,
    ]))
    .with(Field::ENTRY_CONTROLS);

/// Exit controls, and what an exit then saves.
const SAVED: [(u32, Field); 4] = [
    (exit::SAVE_DEBUG, Field::GUEST_DEBUGCTL),
    (exit::SAVE_DEBUG, Field::GUEST_DR7),
    (exit::SAVE_PAT, Field::GUEST_PAT),
    (exit::SAVE_EFER, Field::GUEST_EFER),
];

impl Mirror {
    /// Nothing is known: a vmcs02 after VMCLEAR of its region, or one that somebody else wrote to.
    pub const fn new() -> Self {
        Self { values: [0; COUNT], known: FieldSet::NONE, from: None }
    }
    /// L2 ran: the processor may have changed its state, and injects nothing a second time.
    pub fn ran(&mut self) {
        self.known = self.known.minus(&GUEST_STATE);
        let saves = self.from.map_or(u32::MAX, |(l0, ..)| l0.exit);
        for (_, field) in SAVED.into_iter().filter(|s| saves & s.0 != 0) {
            self.known.remove(field);
        }
        self.values[Field::ENTRY_INTR_INFO.index()] &= !u64::from(intr::VALID);
    }
    /// vmcs02 holds `value`.
    #[inline]
    pub fn learn(&mut self, field: Field, value: u64) {
        self.values[field.index()] = value;
        self.known.insert(field);
    }
    /// Writes `value` unless vmcs02 is known to hold it.
    #[inline]
    pub fn put(&mut self, vmcs: &mut impl Vmcs, field: Field, value: u64) {
        if !self.known.contains(field) || self.values[field.index()] != value {
            vmcs.write(field, value);
            self.learn(field, value);
        }
    }
    /// What vmcs02 holds, asking the processor only if it must.
    #[inline]
    pub fn get(&mut self, vmcs: &mut impl Vmcs, field: Field) -> u64 {
        if !self.known.contains(field) {
            let value = vmcs.read(field);
            self.learn(field, value);
        }
        self.values[field.index()]
    }
}

/// L0's side of vmcs02. Equal from entry to entry in the steady state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L0Policy {
    /// What the processor has.
    pub hw: VmxMsrs,
    /// Pin-based controls that L0 needs beyond [`PIN_REQUIRED`].
    pub pin: u32,
    /// Primary controls that L0 needs beyond [`PRIMARY_REQUIRED`].
    pub primary: u32,
    /// Secondary controls that L0 needs beyond EPT and VPID. What enables instructions is L1's choice.
    pub secondary: u32,
    /// Exit controls with which the back end runs every vmcs02. They must save the debug registers.
    pub exit: u32,
    /// Exceptions that L0 wants.
    pub exceptions: u32,
    /// CR0 bits that L2 must not change by itself.
    pub cr0_mask: u64,
    /// CR4 bits that L2 must not change by itself.
    pub cr4_mask: u64,
    /// Bits of CR0 that are 1 in the processor whatever L2 sees.
    pub cr0_set: u64,
    /// Bits of CR4 that are 1 in the processor whatever L2 sees.
    pub cr4_set: u64,
    /// EPTP of vmcs02: the composed s2_02, or s2_01 if 12 has no EPT.
    pub eptp: u64,
    /// Hardware VPID of L2; `None` where the processor has none: every entry flushes.
    pub vpid: Option<u16>,
    /// The merged MSR bitmap; without it every access exits.
    pub msr_bitmap: Option<Hpa>,
    /// The merged I/O bitmaps; without them every access exits.
    pub io_bitmaps: Option<(Hpa, Hpa)>,
    /// L1's virtual-APIC page, pinned; `None` if there is no memory.
    pub virtual_apic: Option<Hpa>,
    /// L1's APIC-access page, which s2_02 maps at that L2 address; `None` if there is no memory.
    pub apic_access: Option<Hpa>,
    /// L1's posted-interrupt descriptor, pinned, and the vector that L0 keeps for L1's.
    pub posted: Option<(Hpa, u8)>,
    /// XSS bits that L0 wants XSAVES and XRSTORS to exit for.
    pub xss_bitmap: u64,
    /// L0's own PAUSE-loop gap and window, used if `secondary` has PAUSE-loop exiting and 12 has not.
    pub ple: (u32, u32),
    /// L0's TSC offset and multiplier for L1.
    pub tsc01: timer::Tsc,
}

/// L1's registers that an L2 inherits where 12 does not load them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(missing_docs)] // The registers' names.
pub struct L1State {
    pub efer: u64,
    pub pat: u64,
    pub debugctl: u64,
    pub dr7: u64,
    pub perf_global: u64,
    pub pkrs: u64,
    pub s_cet: u64,
    pub ssp: u64,
    pub ssp_table: u64,
}

/// Pin-based controls of every vmcs02. Without them L2 would own the processor.
pub const PIN_REQUIRED: u32 = pin::EXTERNAL_INTERRUPT | pin::NMI | pin::VIRTUAL_NMIS;
/// Primary controls of every vmcs02.
pub const PRIMARY_REQUIRED: u32 = primary::HLT | primary::MWAIT | primary::MONITOR | primary::SECONDARY;
/// Secondary controls of every vmcs02.
pub const SECONDARY_REQUIRED: u32 = secondary::EPT;

/// Primary controls where L1's wish is added to L0's.
const PRIMARY_OR: u32 = primary::INTERRUPT_WINDOW
    | primary::HLT
    | primary::INVLPG
    | primary::MWAIT
    | primary::RDPMC
    | primary::RDTSC
    | primary::CR3_LOAD
    | primary::CR3_STORE
    | primary::CR8_LOAD
    | primary::CR8_STORE
    | primary::NMI_WINDOW
    | primary::MOV_DR
    | primary::MONITOR_TRAP
    | primary::MONITOR
    | primary::PAUSE;
/// Primary controls that the lines of [`primary02`] decide.
const PRIMARY_COMPOSED: u32 = primary::TSC_OFFSETTING
    | primary::TPR_SHADOW
    | primary::UNCONDITIONAL_IO
    | primary::IO_BITMAPS
    | primary::MSR_BITMAPS
    | primary::TERTIARY;
/// Secondary controls that are as L1 says: they give L2 an instruction, or a mode.
const SECONDARY_FROM_12: u32 = secondary::RDTSCP
    | secondary::UNRESTRICTED_GUEST
    | secondary::INVPCID
    | secondary::XSAVES
    | secondary::USER_WAIT
    | secondary::VM_FUNCTIONS;
/// Secondary controls where L1's wish is added to L0's.
const SECONDARY_OR: u32 = secondary::DESCRIPTOR_TABLE
    | secondary::WBINVD
    | secondary::PAUSE_LOOP
    | secondary::RDRAND
    | secondary::RDSEED;
/// Secondary controls that the lines of [`secondary02`] decide, or that are never on.
const SECONDARY_COMPOSED: u32 = APICV
    | secondary::APIC_ACCESS
    | secondary::TSC_SCALING
    | secondary::VPID
    | secondary::VMCS_SHADOWING
    | secondary::EPT_VE
    | secondary::MODE_BASED_EXECUTE
    | secondary::SPP
    | secondary::PASID
    | secondary::PT_GPA;
/// What works on the virtual-APIC page.
const APICV: u32 = secondary::X2APIC | secondary::APIC_REGISTERS | secondary::INTERRUPT_DELIVERY;

/// What the processor can't load by itself, or the back end has to keep an eye on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[must_use]
pub struct Merged {
    /// EFER of L2, for a processor without "load IA32_EFER".
    pub efer: Option<u64>,
    /// PAT of L2, for a processor without "load IA32_PAT".
    pub pat: Option<u64>,
    /// L2 is to be halted: do not enter it, block the vCPU until an event for L2 or L1 comes.
    pub halted: bool,
}

/// Fields that follow from the controls of 12 alone.
const CONTROL_INPUTS: FieldSet = FieldSet::flowing(Flow::Control).minus(&FieldSet::of(&[
    Field::ENTRY_INTR_INFO,
    Field::ENTRY_ERROR_CODE,
    Field::ENTRY_INSN_LENGTH,
    Field::TPR_THRESHOLD,
    Field::CR0_MASK,
    Field::CR0_SHADOW,
    Field::CR4_MASK,
    Field::CR4_SHADOW,
]));
/// L2's state that is copied as it is.
const COPIED: FieldSet = FieldSet::flowing(Flow::Rare).or(&FieldSet::flowing(Flow::Live));

/// Writes vmcs02, which is the processor's current VMCS, for an entry to L2. `c12` has passed its checks;
/// `timer` is the hardware's preemption timer for this entry, if there is to be one; `pdptes` are those that
/// the check read where L2 uses PAE paging without EPT of L1's.
pub fn merge(
    c12: &mut Cached12,
    l0: &L0Policy,
    l1: &L1State,
    timer: Option<u32>,
    pdptes: Option<[u64; 4]>,
    mirror: &mut Mirror,
    vmcs: &mut impl Vmcs,
) -> Merged {
    let from = Some((*l0, timer.is_some().into(), c12.gpa().raw()));
    if mirror.from != from || c12.unmerged.meets(&CONTROL_INPUTS) {
        controls(c12.fields(), l0, timer.is_some(), mirror, vmcs);
        mirror.from = from;
    }
    for field in c12.unmerged.and(&COPIED).iter() {
        mirror.put(vmcs, field, c12.fields().get(field));
    }
    let v = c12.fields();
    let merged = mixed(v, l0, l1, pdptes, mirror, vmcs);
    event(v, l0, timer, mirror, vmcs);
    c12.unmerged = FieldSet::NONE;
    merged
}

/// `wanted`, with the bits that the processor insists on. Nothing it can't do is ever wanted, but a bit that it
/// does not know would fail the entry.
fn adjust(wanted: u32, ctl: Ctl) -> u64 {
    u64::from((wanted | ctl.must()) & ctl.may())
}

/// Pin-based controls.
pub fn pin02(v: &Vmcs12, l0: &L0Policy, timer: bool) -> u32 {
    let posted = v.pin(pin::POSTED_INTERRUPTS) && l0.posted.is_some() && lends_apic(v, l0);
    let own = PIN_REQUIRED | l0.pin & !(pin::PREEMPTION_TIMER | pin::POSTED_INTERRUPTS);
    own | if timer { pin::PREEMPTION_TIMER } else { 0 } | if posted { pin::POSTED_INTERRUPTS } else { 0 }
}

/// Whether L2 gets L1's virtual-APIC page.
fn lends_apic(v: &Vmcs12, l0: &L0Policy) -> bool {
    v.primary(primary::TPR_SHADOW) && l0.virtual_apic.is_some()
}

/// Primary controls. Without a TPR shadow L2's CR8 would be the machine's own (CVE-2017-12154).
pub fn primary02(v: &Vmcs12, l0: &L0Policy) -> u32 {
    let theirs = v.get32(Field::PRIMARY_CONTROLS) & PRIMARY_OR;
    let on = |condition, bits| if condition { bits } else { 0 };
    let tpr = if lends_apic(v, l0) { primary::TPR_SHADOW } else { primary::CR8_LOAD | primary::CR8_STORE };
    PRIMARY_REQUIRED
        | l0.primary & !PRIMARY_COMPOSED
        | theirs
        | tpr
        | on(l0.hw.primary.has(primary::TSC_OFFSETTING), primary::TSC_OFFSETTING)
        | if l0.io_bitmaps.is_some() { primary::IO_BITMAPS } else { primary::UNCONDITIONAL_IO }
        | on(l0.msr_bitmap.is_some(), primary::MSR_BITMAPS)
}

/// Secondary controls.
pub fn secondary02(v: &Vmcs12, l0: &L0Policy) -> u32 {
    let theirs = v.secondary_word();
    let on = |condition, bits| if condition { bits } else { 0 };
    // VMFUNC is to exit, not to be #UD: on, with no function enabled.
    SECONDARY_REQUIRED
        | l0.secondary & !(SECONDARY_COMPOSED | SECONDARY_FROM_12)
        | theirs & (SECONDARY_FROM_12 | SECONDARY_OR)
        | on(l0.vpid.is_some(), secondary::VPID)
        | on(lends_apic(v, l0), theirs & APICV)
        | on(l0.apic_access.is_some(), theirs & secondary::APIC_ACCESS)
        | on(tsc02(v, l0).multiplier != timer::ONE, secondary::TSC_SCALING)
}

/// L2's TSC against the machine's.
fn tsc02(v: &Vmcs12, l0: &L0Policy) -> timer::Tsc {
    let scales = v.secondary(secondary::TSC_SCALING);
    let tsc12 = v.primary(primary::TSC_OFFSETTING).then(|| timer::Tsc {
        multiplier: if scales { v.get(Field::TSC_MULTIPLIER) } else { timer::ONE },
        offset: v.get(Field::TSC_OFFSET),
    });
    timer::compose(l0.tsc01, tsc12)
}

fn controls(v: &Vmcs12, l0: &L0Policy, timer: bool, m: &mut Mirror, vmcs: &mut impl Vmcs) {
    let hw = &l0.hw;
    let second = secondary02(v, l0);
    let has = |bits| second & hw.secondary.may() & bits != 0;
    m.put(vmcs, Field::PIN_CONTROLS, adjust(pin02(v, l0, timer), hw.pin));
    m.put(vmcs, Field::PRIMARY_CONTROLS, adjust(primary02(v, l0), hw.primary));
    m.put(vmcs, Field::SECONDARY_CONTROLS, adjust(second, hw.secondary));
    exceptions(v, l0, m, vmcs);
    m.put(vmcs, Field::CR3_TARGET_COUNT, 0);
    m.put(vmcs, Field::EPT_POINTER, l0.eptp);
    if let Some(vpid) = l0.vpid {
        m.put(vmcs, Field::VPID, vpid.into());
    }
    if let Some((a, b)) = l0.io_bitmaps {
        m.put(vmcs, Field::IO_BITMAP_A, a.raw());
        m.put(vmcs, Field::IO_BITMAP_B, b.raw());
    }
    if let Some(map) = l0.msr_bitmap {
        m.put(vmcs, Field::MSR_BITMAP, map.raw());
    }
    let tsc = tsc02(v, l0);
    if hw.primary.has(primary::TSC_OFFSETTING) {
        m.put(vmcs, Field::TSC_OFFSET, tsc.offset);
    }
    if has(secondary::TSC_SCALING) {
        m.put(vmcs, Field::TSC_MULTIPLIER, tsc.multiplier);
    }
    if has(secondary::VM_FUNCTIONS) {
        m.put(vmcs, Field::VM_FUNCTION_CONTROLS, 0);
    }
    if has(secondary::XSAVES) {
        m.put(vmcs, Field::XSS_EXITING_BITMAP, l0.xss_bitmap | v.get(Field::XSS_EXITING_BITMAP));
    }
    if has(secondary::PAUSE_LOOP) {
        let theirs = v.secondary(secondary::PAUSE_LOOP);
        let (gap, window) = if theirs {
            (v.get(Field::PLE_GAP), v.get(Field::PLE_WINDOW))
        } else {
            (l0.ple.0.into(), l0.ple.1.into())
        };
        m.put(vmcs, Field::PLE_GAP, gap);
        m.put(vmcs, Field::PLE_WINDOW, window);
    }
    apic(v, l0, second, m, vmcs);
    m.put(vmcs, Field::VMCS_LINK_POINTER, u64::MAX);
}

/// #PF: where L0 does not want it, exits are exactly L1's; where it does, all of them come and the filter is
/// applied by [`crate::route`].
fn exceptions(v: &Vmcs12, l0: &L0Policy, m: &mut Mirror, vmcs: &mut impl Vmcs) {
    const PF: u32 = 1 << 14;
    let ours = l0.exceptions & PF != 0;
    let filter = |field| if ours { 0 } else { v.get(field) };
    m.put(vmcs, Field::EXCEPTION_BITMAP, u64::from(l0.exceptions | v.get32(Field::EXCEPTION_BITMAP)));
    m.put(vmcs, Field::PFEC_MASK, filter(Field::PFEC_MASK));
    m.put(vmcs, Field::PFEC_MATCH, filter(Field::PFEC_MATCH));
}

fn apic(v: &Vmcs12, l0: &L0Policy, second: u32, m: &mut Mirror, vmcs: &mut impl Vmcs) {
    if let Some(page) = l0.virtual_apic.filter(|_| lends_apic(v, l0)) {
        m.put(vmcs, Field::VIRTUAL_APIC_ADDRESS, page.raw());
    }
    if let Some(page) = l0.apic_access.filter(|_| second & secondary::APIC_ACCESS != 0) {
        m.put(vmcs, Field::APIC_ACCESS_ADDRESS, page.raw());
    }
    if second & secondary::INTERRUPT_DELIVERY != 0 {
        for i in 0..4 {
            let field = Field::EOI_EXIT_BITMAP_0.step(i);
            m.put(vmcs, field, v.get(field));
        }
    }
    if let Some((descriptor, vector)) =
        l0.posted.filter(|_| pin02(v, l0, false) & pin::POSTED_INTERRUPTS != 0)
    {
        m.put(vmcs, Field::POSTED_INTR_DESC_ADDR, descriptor.raw());
        m.put(vmcs, Field::POSTED_INTR_NV, vector.into());
    }
}

/// CR0 or CR4 as L2 reads it.
#[inline]
pub fn visible(value: u64, mask12: u64, shadow12: u64) -> u64 {
    value & !mask12 | shadow12 & mask12
}

/// EFER that L2 starts with. Without "load IA32_EFER" it is L1's, but for LMA and, with paging, LME, which
/// follow "IA-32e mode guest". SDM vol. 3, "Loading Guest Control Registers, Debug Registers, and MSRs".
pub fn efer02(v: &Vmcs12, l1_efer: u64) -> u64 {
    if v.entry(entry::LOAD_EFER) {
        return v.get(Field::GUEST_EFER);
    }
    let paging = v.get(Field::GUEST_CR0) & CR0_PG != 0;
    match (v.entry(entry::IA32E), paging) {
        (true, _) => l1_efer | EFER_LMA | EFER_LME,
        (false, true) => l1_efer & !(EFER_LMA | EFER_LME),
        (false, false) => l1_efer & !EFER_LMA,
    }
}

fn mixed(
    v: &Vmcs12,
    l0: &L0Policy,
    l1: &L1State,
    pdptes: Option<[u64; 4]>,
    m: &mut Mirror,
    vmcs: &mut impl Vmcs,
) -> Merged {
    let get = |field| v.get(field);
    let (mask0, mask4) = (get(Field::CR0_MASK), get(Field::CR4_MASK));
    m.put(vmcs, Field::GUEST_CR0, get(Field::GUEST_CR0) | l0.cr0_set);
    m.put(vmcs, Field::GUEST_CR4, get(Field::GUEST_CR4) | l0.cr4_set);
    m.put(vmcs, Field::CR0_MASK, mask0 | l0.cr0_mask | l0.cr0_set);
    m.put(vmcs, Field::CR4_MASK, mask4 | l0.cr4_mask | l0.cr4_set);
    m.put(vmcs, Field::CR0_SHADOW, visible(get(Field::GUEST_CR0), mask0, get(Field::CR0_SHADOW)));
    m.put(vmcs, Field::CR4_SHADOW, visible(get(Field::GUEST_CR4), mask4, get(Field::CR4_SHADOW)));
    m.put(vmcs, Field::GUEST_CR3, get(Field::GUEST_CR3));
    if pae_paging(v) {
        let from_memory = pdptes.filter(|_| !v.ept());
        for i in 0..4 {
            let field = Field::GUEST_PDPTE0.step(i);
            let value = from_memory.map_or(get(field), |all| all[usize::from(i)]);
            m.put(vmcs, field, value);
        }
    }
    let load = |bit, field, inherited| if v.entry(bit) { get(field) } else { inherited };
    m.put(vmcs, Field::GUEST_DEBUGCTL, load(entry::LOAD_DEBUG, Field::GUEST_DEBUGCTL, l1.debugctl));
    m.put(vmcs, Field::GUEST_DR7, load(entry::LOAD_DEBUG, Field::GUEST_DR7, l1.dr7));
    m.put(vmcs, Field::GUEST_INTERRUPTIBILITY, get(Field::GUEST_INTERRUPTIBILITY));
    // The processor is never halted with an L2 in it: L0 blocks the vCPU.
    m.put(vmcs, Field::GUEST_ACTIVITY, activity::ACTIVE);
    if secondary02(v, l0) & l0.hw.secondary.may() & secondary::INTERRUPT_DELIVERY != 0 {
        m.put(vmcs, Field::GUEST_INTR_STATUS, get(Field::GUEST_INTR_STATUS));
    }
    let mut merged = Merged {
        halted: get(Field::GUEST_ACTIVITY) == activity::HLT && !intr::valid(v.get32(Field::ENTRY_INTR_INFO)),
        ..Merged::default()
    };
    let efer = efer02(v, l1.efer);
    let pat = load(entry::LOAD_PAT, Field::GUEST_PAT, l1.pat);
    let loads = [
        (entry::LOAD_PERF_GLOBAL, Field::GUEST_PERF_GLOBAL_CTRL, l1.perf_global),
        (entry::LOAD_PKRS, Field::GUEST_PKRS, l1.pkrs),
        (entry::LOAD_CET, Field::GUEST_S_CET, l1.s_cet),
        (entry::LOAD_CET, Field::GUEST_SSP, l1.ssp),
        (entry::LOAD_CET, Field::GUEST_SSP_TABLE, l1.ssp_table),
    ];
    let mut on = entry::LOAD_DEBUG | v.get32(Field::ENTRY_CONTROLS) & entry::IA32E;
    for (bit, field, inherited) in loads.into_iter().filter(|l| l0.hw.entry.has(l.0)) {
        m.put(vmcs, field, load(bit, field, inherited));
        on |= bit;
    }
    let software = [
        (entry::LOAD_EFER, Field::GUEST_EFER, efer, &mut merged.efer),
        (entry::LOAD_PAT, Field::GUEST_PAT, pat, &mut merged.pat),
    ];
    for (bit, field, value, by_software) in software {
        if l0.hw.entry.has(bit) {
            m.put(vmcs, field, value);
            on |= bit;
        } else {
            *by_software = Some(value);
        }
    }
    m.put(vmcs, Field::ENTRY_CONTROLS, adjust(on, l0.hw.entry));
    merged
}

/// What is different at each entry.
fn event(v: &Vmcs12, l0: &L0Policy, timer: Option<u32>, m: &mut Mirror, vmcs: &mut impl Vmcs) {
    let event = v.get32(Field::ENTRY_INTR_INFO);
    m.put(vmcs, Field::ENTRY_INTR_INFO, event.into());
    if intr::valid(event) && event & intr::ERROR_CODE != 0 {
        m.put(vmcs, Field::ENTRY_ERROR_CODE, v.get(Field::ENTRY_ERROR_CODE));
    }
    if intr::valid(event) && intr::is_soft(event) {
        m.put(vmcs, Field::ENTRY_INSN_LENGTH, v.get(Field::ENTRY_INSN_LENGTH));
    }
    if lends_apic(v, l0) && !v.secondary(secondary::INTERRUPT_DELIVERY) {
        m.put(vmcs, Field::TPR_THRESHOLD, v.get(Field::TPR_THRESHOLD));
    }
    if let Some(value) = timer {
        m.put(vmcs, Field::PREEMPTION_TIMER, value.into());
    }
}

/// No merge writes one of these: they are the back end's, constant per processor.
pub fn is_back_ends(field: Field) -> bool {
    field.class() == Class::Host
        || matches!(
            field,
            Field::EXIT_CONTROLS
                | Field::VM_EXIT_MSR_STORE_ADDR
                | Field::VM_EXIT_MSR_STORE_COUNT
                | Field::VM_EXIT_MSR_LOAD_ADDR
                | Field::VM_EXIT_MSR_LOAD_COUNT
                | Field::VM_ENTRY_MSR_LOAD_ADDR
                | Field::VM_ENTRY_MSR_LOAD_COUNT
                | Field::PML_ADDRESS
                | Field::GUEST_PML_INDEX
        )
}
