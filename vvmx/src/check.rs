//! The consistency checks of VM entry, on the copy of vmcs12: tables of rules, one line and one test each.
//!
//! Controls and host state fail the instruction (VMfailValid 7 and 8) and change nothing; guest state fails
//! as an exit with the reason "VM-entry failure due to invalid guest state". All run before anything is
//! merged (CVE-2026-72287). Rules whose fields L1 has not touched since they passed are not run again; what
//! depends on memory or on the event being injected always is.

mod controls;
mod guest;
mod host;

pub use controls::ControlRule;
pub use guest::GuestRule;
pub use host::HostRule;

use crate::bits::{entry, primary, reg::*, secondary};
use crate::caps::Caps;
use crate::code::{InsnError, entry_failure};
use crate::field::{Field, FieldSet, Flow};
use crate::vmcs12::{Cached12, SHADOW_INDICATOR, Vmcs12, layout};
use addr::{Gpa, GuestMemory, GuestPage};

/// A table of rules: an enum of their names, and per group a function that finds the first one broken. The
/// expression says when a rule is broken; the words before it are the manual's. Rules that come in loops have only
/// their names in the table.
macro_rules! rules {
    ($(#[$meta:meta])* $name:ident; $(
        $(#[$about:meta])* fn $group:ident($v:ident) { $($(#[doc = $doc:literal])* $rule:ident => $broken:expr;)* }
    )* $(names { $($(#[doc = $more:literal])* $also:ident;)* })?) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($($(#[doc = $doc])* $rule,)*)* $($($(#[doc = $more])* $also,)*)? }
        impl $name {
            /// Every rule.
            pub const ALL: &'static [Self] = &[$($(Self::$rule,)*)* $($(Self::$also,)*)?];
            $($(#[$about])*
            pub(crate) fn $group($v: &crate::check::View<'_>) -> Result<(), Self> {
                $(if $broken { return Err(Self::$rule); })*
                Ok(())
            })*
        }
    };
}
use rules;

/// What the rules look at.
pub(crate) struct View<'a> {
    pub v: &'a Vmcs12,
    pub caps: &'a Caps,
    pub seen: &'a Seen,
    /// L1 is in IA-32e mode.
    pub long: bool,
}

impl View<'_> {
    pub fn get(&self, field: Field) -> u64 {
        self.v.get(field)
    }
    pub fn get32(&self, field: Field) -> u32 {
        self.v.get32(field)
    }
    /// Not one of L1's addresses, or not a multiple of `align`.
    pub fn misplaced(&self, field: Field, align: u64) -> bool {
        !self.caps.is_address(self.get(field), align)
    }
    /// Not canonical.
    pub fn uncanonical(&self, field: Field) -> bool {
        !self.caps.is_canonical(self.get(field))
    }
}

/// What entry reads of L1's memory beside the VMCS, read once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// VTPR, where TPR_THRESHOLD is compared with it.
    pub vtpr: Option<u8>,
    /// First word of what the link pointer names.
    pub link: Option<u32>,
    /// The PDPTEs that L2's CR3 names, where they are loaded from memory. `None`: there is no memory.
    pub pdptes: Option<[u64; 4]>,
    /// Address of the current VMCS.
    pub current: u64,
}

impl Seen {
    /// Reads what `c12` makes entry read.
    pub fn gather(c12: &Cached12, mem: &impl GuestMemory, caps: &Caps) -> Self {
        let v = c12.fields();
        let mut seen = Self { current: c12.gpa().raw(), ..Self::default() };
        if threshold_counts(v) && !v.secondary(secondary::APIC_ACCESS) {
            let at = Gpa::new(v.get(Field::VIRTUAL_APIC_ADDRESS));
            seen.vtpr = Some(mem.pin(at.frame()).map_or(u8::MAX, |page| page.read_u8(0x80)));
        }
        let link = v.get(Field::VMCS_LINK_POINTER);
        if link != u64::MAX && caps.is_address(link, 4096) {
            let page = mem.pin(Gpa::new(link).frame());
            seen.link = Some(page.map_or(u32::MAX, |page| page.read_u32(layout::REVISION)));
        }
        if pae_paging(v) && !v.ept() {
            seen.pdptes = read_pdptes(mem, v.get(Field::GUEST_CR3));
        }
        seen
    }
}

/// The four page-directory-pointer entries that `cr3` names, each read once.
pub fn read_pdptes(mem: &impl GuestMemory, cr3: u64) -> Option<[u64; 4]> {
    let at = Gpa::new(cr3 & 0xffff_ffe0);
    let page = mem.pin(at.frame()).ok()?;
    Some(core::array::from_fn(|i| page.read_u64(at.page_offset() + i * 8)))
}

/// Whether a page-directory-pointer entry can be loaded. SDM vol. 3, "PDPTE Registers".
pub fn pdpte_is_valid(pdpte: u64, caps: &Caps) -> bool {
    const RESERVED: u64 = 0x1e6;
    pdpte & 1 == 0 || pdpte & RESERVED == 0 && pdpte < caps.phys_end()
}

/// L2 will use PAE paging.
pub(crate) fn pae_paging(v: &Vmcs12) -> bool {
    let paging = v.get(Field::GUEST_CR0) & CR0_PG != 0 && v.get(Field::GUEST_CR4) & CR4_PAE != 0;
    paging && !v.entry(entry::IA32E)
}

/// TPR_THRESHOLD is in use.
pub(crate) fn threshold_counts(v: &Vmcs12) -> bool {
    v.primary(primary::TPR_SHADOW) && !v.secondary(secondary::INTERRUPT_DELIVERY)
}

/// SDM vol. 3, "IA32_PAT": types 0, 1, 4, 5, 6, 7 exist.
pub(crate) fn pat_is_legal(pat: u64) -> bool {
    pat.to_le_bytes().iter().all(|&entry| matches!(entry, 0 | 1 | 4..=7))
}

/// IA32_S_CET: bits 9:6 are reserved, SUPPRESS and TRACKER (11:10) exclude each other, and the rest is a
/// canonical address. SDM vol. 3, "Checks on Guest Control Registers, Debug Registers, and MSRs".
pub(crate) fn s_cet_is_legal(s_cet: u64, caps: &Caps) -> bool {
    s_cet & 0x3c0 == 0 && s_cet & 0xc00 != 0xc00 && caps.is_canonical(s_cet)
}

/// Why VM entry with this vmcs12 does not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// VMfailValid 7.
    Controls(ControlRule),
    /// VMfailValid 8.
    Host(HostRule),
    /// An exit with reason 33 and bit 31 set.
    Guest(GuestRule),
}

impl Refusal {
    /// The instruction error, for a failure that is no exit.
    pub fn error(self) -> Option<InsnError> {
        match self {
            Self::Controls(_) => Some(InsnError::BadControls),
            Self::Host(_) => Some(InsnError::BadHostState),
            Self::Guest(_) => None,
        }
    }
    /// The exit qualification, for a failure that is an exit.
    pub fn qualification(self) -> u64 {
        match self {
            Self::Guest(GuestRule::Pdpte) => entry_failure::PDPTE,
            Self::Guest(GuestRule::NmiWithStiBlocking) => entry_failure::NMI,
            Self::Guest(
                GuestRule::LinkAddress
                | GuestRule::LinkRevision
                | GuestRule::LinkShadowIndicator
                | GuestRule::LinkCurrent,
            ) => entry_failure::LINK,
            _ => entry_failure::PLAIN,
        }
    }
}

/// Fields of the event to inject and others that each entry sets: their rules always run.
const EACH_ENTRY: FieldSet = FieldSet::of(&[
    Field::ENTRY_INTR_INFO,
    Field::ENTRY_ERROR_CODE,
    Field::ENTRY_INSN_LENGTH,
    Field::TPR_THRESHOLD,
    Field::GUEST_INTERRUPTIBILITY,
    Field::GUEST_ACTIVITY,
    Field::GUEST_PENDING_DEBUG,
    Field::GUEST_RIP,
    Field::GUEST_RSP,
    Field::GUEST_RFLAGS,
]);

const CONTROLS: FieldSet = FieldSet::flowing(Flow::Control).minus(&EACH_ENTRY);
const HOST: FieldSet = FieldSet::flowing(Flow::Host).with(Field::EXIT_CONTROLS).with(Field::ENTRY_CONTROLS);
/// What gives L2 its mode.
const MODE: FieldSet = FieldSet::of(&[
    Field::ENTRY_CONTROLS,
    Field::PRIMARY_CONTROLS,
    Field::SECONDARY_CONTROLS,
    Field::GUEST_CR0,
    Field::GUEST_RFLAGS,
    Field::GUEST_CS_AR,
    Field::GUEST_SS_AR,
]);
/// These rules look at each field apart, or at fields that the copy always has: values that were left in vmcs02
/// need not be fetched, as those here passed when they were checked.
const REGISTERS: FieldSet = FieldSet::flowing(Flow::Mixed).or(&FieldSet::flowing(Flow::Rare)).or(&MODE);
/// These compare segment registers with each other.
const SEGMENTS: FieldSet = FieldSet::flowing(Flow::Rare).or(&MODE);

impl Cached12 {
    /// Whether a check would look at state that was left in vmcs02: fetch it first, by
    /// [`crate::reflect::sync_rare`].
    pub(crate) fn check_needs_rare(&self, caps: &Caps, long: bool) -> bool {
        self.rare_in_02 && (self.unchecked.meets(&SEGMENTS) || self.checked_for != Some((*caps, long)))
    }

    /// Makes every check of VM entry. `long` says whether L1 is in IA-32e mode.
    ///
    /// # Errors
    /// The first rule that is broken. Nothing else has changed then.
    pub fn check(&mut self, caps: &Caps, seen: &Seen, long: bool) -> Result<(), Refusal> {
        self.valid = false;
        let same = self.checked_for == Some((*caps, long));
        let due = |set: &FieldSet, unchecked: &FieldSet| !same || unchecked.meets(set);
        let view = View { v: self.fields(), caps, seen, long };
        if due(&CONTROLS, &self.unchecked) {
            ControlRule::settings(&view).map_err(Refusal::Controls)?;
        }
        ControlRule::event(&view).map_err(Refusal::Controls)?;
        if due(&HOST, &self.unchecked) {
            HostRule::state(&view).map_err(Refusal::Host)?;
        }
        if due(&REGISTERS, &self.unchecked) {
            GuestRule::registers(&view).map_err(Refusal::Guest)?;
        }
        if due(&SEGMENTS, &self.unchecked) {
            guest::segments(&view).map_err(Refusal::Guest)?;
        }
        GuestRule::each_entry(&view).map_err(Refusal::Guest)?;
        (self.unchecked, self.checked_for, self.valid) = (FieldSet::NONE, Some((*caps, long)), true);
        Ok(())
    }
}

/// Whether `link` names a shadow VMCS.
pub(crate) fn is_shadow(link: u32) -> bool {
    link & SHADOW_INDICATOR != 0
}
