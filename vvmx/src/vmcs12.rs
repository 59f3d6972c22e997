//! The VMCS that L1 wrote for L2: its place in L1's memory and the copy that everything else works on.
//!
//! While a VMCS is active on a vCPU its contents are L0's (SDM vol. 3, "Software Use of the VMCS": software
//! must not touch the region), so the copy is the truth and L1's page is written only when the VMCS is
//! cleared or pushed out. Whatever L1 wrote into the page meanwhile is read once and cut to what a
//! sequence of VMWRITEs could have made.

use crate::bits::{primary, reg::RFLAGS_VM, secondary};
use crate::caps::Caps;
use crate::field::{COUNT, Field, FieldSet};
use addr::{Gpa, GuestPage};

/// The VMCS revision identifier that L1 sees. Changes with the layout.
pub const REVISION: u32 = 0x7e57_0001;

/// Byte offsets in the region. The first two are the architecture's.
pub mod layout {
    use crate::field::Field;
    /// Revision identifier, u32; bit 31 says that it is a shadow VMCS.
    pub const REVISION: usize = 0;
    /// VMX-abort indicator, u32.
    pub const ABORT: usize = 4;
    /// Launch state, u32: 0 clear, 1 launched.
    pub const LAUNCH: usize = 8;
    /// The fields, 8 bytes each.
    pub const FIELDS: usize = 64;

    /// Where `field` is kept.
    pub const fn offset(field: Field) -> usize {
        FIELDS + field.index() * 8
    }
}

/// Bit 31 of the revision identifier: a shadow VMCS.
pub const SHADOW_INDICATOR: u32 = 1 << 31;

/// The bits of an access-rights field that exist. VMWRITE may drop the others, and ours does.
const ACCESS_RIGHTS: u64 = 0x1_f0ff;

/// The values of all fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vmcs12([u64; COUNT]);

impl Default for Vmcs12 {
    fn default() -> Self {
        Self([0; COUNT])
    }
}

/// `value` as `field` can hold it.
#[inline]
pub fn fit(field: Field, value: u64) -> u64 {
    let value = value & field.width().mask();
    match field.encoding() {
        0x4814..=0x4822 => value & ACCESS_RIGHTS,
        _ => value,
    }
}

impl Vmcs12 {
    /// A field's value; 0 for one that L1 doesn't have.
    #[inline]
    pub fn get(&self, field: Field) -> u64 {
        self.0[field.index()]
    }
    /// The low 32 bits of a field.
    #[inline]
    pub fn get32(&self, field: Field) -> u32 {
        self.get(field) as u32
    }
    /// Sets a field, cut to its width. Returns whether that changed it.
    #[inline]
    pub fn set(&mut self, field: Field, value: u64) -> bool {
        let value = fit(field, value);
        let slot = &mut self.0[field.index()];
        let changed = *slot != value;
        *slot = value;
        changed
    }

    /// Pin-based controls.
    #[inline]
    pub fn pin(&self, bits: u32) -> bool {
        self.get32(Field::PIN_CONTROLS) & bits == bits
    }
    /// Primary controls.
    #[inline]
    pub fn primary(&self, bits: u32) -> bool {
        self.get32(Field::PRIMARY_CONTROLS) & bits == bits
    }
    /// Secondary controls: none is in force unless the primary ones activate them.
    #[inline]
    pub fn secondary_word(&self) -> u32 {
        let on = self.primary(primary::SECONDARY);
        if on { self.get32(Field::SECONDARY_CONTROLS) } else { 0 }
    }
    /// Whether all of `bits` are in force.
    #[inline]
    pub fn secondary(&self, bits: u32) -> bool {
        self.secondary_word() & bits == bits
    }
    /// Exit controls.
    #[inline]
    pub fn exit(&self, bits: u32) -> bool {
        self.get32(Field::EXIT_CONTROLS) & bits == bits
    }
    /// Entry controls.
    #[inline]
    pub fn entry(&self, bits: u32) -> bool {
        self.get32(Field::ENTRY_CONTROLS) & bits == bits
    }
    /// Whether L1 uses EPT for L2.
    #[inline]
    pub fn ept(&self) -> bool {
        self.secondary(secondary::EPT)
    }
    /// L1's VPID for L2; `None` where L1 uses none.
    #[inline]
    pub fn vpid(&self) -> Option<u16> {
        self.secondary(secondary::VPID).then(|| self.get(Field::VPID) as u16)
    }
}

/// A vmcs12 that passed every check of VM entry. Holding a reference proves that it is these very values
/// that were checked.
#[derive(Clone, Debug, Default)]
pub struct Checked12 {
    pub(crate) fields: Vmcs12,
}

impl core::ops::Deref for Checked12 {
    type Target = Vmcs12;
    #[inline]
    fn deref(&self) -> &Vmcs12 {
        &self.fields
    }
}

/// A vmcs12 that is active on this vCPU.
#[derive(Clone, Debug)]
pub struct Cached12 {
    gpa: Gpa,
    pub(crate) data: Checked12,
    /// VMLAUNCH succeeded since the last VMCLEAR.
    pub(crate) launched: bool,
    /// The region is a shadow VMCS: no VM entry with it.
    pub(crate) shadow: bool,
    /// Passed the checks, and L2 has not been left since.
    pub(crate) valid: bool,
    /// Fields that vmcs02 has not yet got.
    pub(crate) unmerged: FieldSet,
    /// Fields whose rules have not passed since they changed.
    pub(crate) unchecked: FieldSet,
    /// What L1's rules depend on beside the fields, at the last check.
    pub(crate) checked_for: Option<(Caps, bool)>,
    /// Fields of [`crate::field::Flow::Rare`] are newer in vmcs02 than here.
    pub(crate) rare_in_02: bool,
}

/// Why a region is no VMCS that VMPTRLD accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongRevision;

impl Cached12 {
    /// Reads the region of a VMCS that becomes active, each word once.
    ///
    /// # Errors
    /// If its revision identifier is not ours, or it is a shadow VMCS and L1 is not offered any.
    pub fn load(gpa: Gpa, page: &impl GuestPage, caps: &Caps) -> Result<Self, WrongRevision> {
        let revision = page.read_u32(layout::REVISION);
        let shadow = revision & SHADOW_INDICATOR != 0;
        let shadows_exist = caps.msrs.secondary.has(secondary::VMCS_SHADOWING);
        if revision & !SHADOW_INDICATOR != REVISION || shadow && !shadows_exist {
            return Err(WrongRevision);
        }
        let mut new = Self::empty(gpa);
        (new.shadow, new.launched) = (shadow, page.read_u32(layout::LAUNCH) == 1);
        for field in Field::all().filter(|f| caps.exists(*f)) {
            new.data.fields.set(field, page.read_u64(layout::offset(field)));
        }
        Ok(new)
    }

    pub(crate) fn empty(gpa: Gpa) -> Self {
        Self {
            gpa,
            data: Checked12::default(),
            launched: false,
            shadow: false,
            valid: false,
            unmerged: FieldSet::ALL,
            unchecked: FieldSet::ALL,
            checked_for: None,
            rare_in_02: false,
        }
    }

    /// Writes the copy back to its region. Everything in vmcs02 that is newer must have been fetched before:
    /// [`crate::reflect::sync_rare`].
    pub fn store(&self, page: &impl GuestPage, caps: &Caps) {
        for field in Field::all().filter(|f| caps.exists(*f)) {
            page.write_u64(layout::offset(field), self.data.get(field));
        }
        page.write_u32(layout::LAUNCH, self.launched.into());
    }

    /// Address of its region.
    pub fn gpa(&self) -> Gpa {
        self.gpa
    }
    /// The values, checked or not.
    pub fn fields(&self) -> &Vmcs12 {
        &self.data.fields
    }
    /// The values, from a check that passed until L2 is left; else `None`.
    #[inline]
    pub fn checked(&self) -> Option<&Checked12> {
        self.valid.then_some(&self.data)
    }
    /// Whether VMLAUNCH succeeded since the last VMCLEAR.
    pub fn launched(&self) -> bool {
        self.launched
    }
    /// Whether vmcs02 holds newer values of L2's rarely read state.
    pub fn rare_in_02(&self) -> bool {
        self.rare_in_02
    }
    /// L1 wrote a field: what was merged and checked of it no longer holds.
    #[inline]
    pub(crate) fn edit(&mut self, field: Field, value: u64) {
        let old = self.data.fields.get(field);
        if self.data.fields.set(field, value) {
            self.unmerged.insert(field);
            // Of RFLAGS only VM matters to rules that do not run at each entry.
            if field != Field::GUEST_RFLAGS || (old ^ value) & RFLAGS_VM != 0 {
                self.unchecked.insert(field);
            }
        }
    }
    /// L2 or an exit wrote a field: vmcs02 has it, or will not be given it.
    #[inline]
    pub(crate) fn learn(&mut self, field: Field, value: u64) {
        self.data.fields.set(field, value);
    }
}
