//! The nested state of one vCPU: VMX operation, the current VMCS, the VMCSs that are active, and which of the
//! few vmcs02 serves which.
//!
//! Instructions other than VM entry are here, as methods that take what [`crate::insn::check`] let pass.
//! Each returns what L1 will see of it; [`Nested::conclude`] turns that into flags. Nothing has happened
//! where one fails.
//!
//! L1 may have any number of VMCSs active; the copies of the last `N` stay, so that an L1 that alternates
//! between guests costs no copying. That is sound as an active VMCS belongs to the processor until VMCLEAR.

use crate::bitmap::MergedMap;
use crate::bits::{misc, secondary};
use crate::caps::Caps;
use crate::code::InsnError;
use crate::field::{Class, Field, Flow};
use crate::insn::{Failure, Verdict};
use crate::merge::Mirror;
use crate::reflect::sync_rare;
use crate::vmcs12::{Cached12, Checked12, REVISION, layout};
use addr::{Gpa, GuestMemory, GuestPage};

/// Reads vmcs02s, for state that was left in them. The back end makes the one asked for current, and vmcs01
/// again before the next entry.
pub trait Vmcs02s {
    /// Reads `field` of the vmcs02 number `slot`.
    fn read(&mut self, slot: usize, field: Field) -> u64;
}

/// What belongs to one vmcs02.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The vmcs12 that it serves.
    pub(crate) c12: Option<Cached12>,
    /// What the processor's vmcs02 is known to hold.
    pub mirror: Mirror,
    /// What the merged MSR bitmap was made from.
    pub msr_map: MergedMap,
    /// What the merged I/O bitmaps were made from.
    pub io_map: MergedMap,
    used: u64,
}

impl Slot {
    fn new() -> Self {
        Self {
            c12: None,
            mirror: Mirror::new(),
            msr_map: MergedMap::new(),
            io_map: MergedMap::new(),
            used: 0,
        }
    }
    /// The vmcs12 that it serves.
    pub fn c12(&self) -> Option<&Cached12> {
        self.c12.as_ref()
    }
}

/// L2 is running (or about to).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Active {
    /// Which vmcs02.
    pub slot: usize,
    /// VM entry was accepted, but L2 has not really been entered: no exit may be made up yet.
    pub run_pending: bool,
}

/// Translations that INVEPT drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invept {
    /// Those of this EP4TA (EPTP bits 51:12).
    Single(Gpa),
    /// All of this L1's.
    All,
}

/// Translations that INVVPID drops, by L1's VPIDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invvpid {
    /// One linear address of one VPID.
    Address {
        /// L1's VPID.
        vpid: u16,
        /// Linear address in L2.
        address: u64,
    },
    /// A VPID.
    Single(u16),
    /// All VPIDs but 0.
    All,
    /// A VPID without its global translations.
    RetainingGlobals(u16),
}

/// Nested VMX of one vCPU with `N` hot vmcs02. Owned by that vCPU alone.
#[derive(Clone, Debug)]
pub struct Nested<const N: usize = 4> {
    vmxon: Option<Gpa>,
    current: Option<usize>,
    slots: [Slot; N],
    clock: u64,
    active: Option<Active>,
}

impl<const N: usize> Default for Nested<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Nested<N> {
    const SOME: () = assert!(N > 0);

    /// A vCPU after reset: outside VMX operation.
    pub fn new() -> Self {
        let () = Self::SOME;
        Self {
            vmxon: None,
            current: None,
            slots: core::array::from_fn(|_| Slot::new()),
            clock: 0,
            active: None,
        }
    }

    /// Whether L1 is in VMX operation. Then INIT and A20M are blocked in L1.
    pub fn on(&self) -> bool {
        self.vmxon.is_some()
    }
    /// Address of the current VMCS.
    pub fn current_gpa(&self) -> Option<Gpa> {
        Some(self.current()?.gpa())
    }
    /// The current VMCS.
    pub fn current(&self) -> Option<&Cached12> {
        self.slots.get(self.current?)?.c12.as_ref()
    }
    /// The current VMCS, for what changes it on L1's behalf: [`crate::shadowing`], [`crate::ept::log_dirty`],
    /// [`crate::ept::vmfunc`].
    pub fn copy_mut(&mut self) -> Option<&mut Cached12> {
        self.current_mut().map(|(_, c12)| c12)
    }
    /// The current VMCS and the number of its vmcs02.
    pub(crate) fn current_mut(&mut self) -> Option<(usize, &mut Cached12)> {
        let slot = self.current?;
        Some((slot, self.slots.get_mut(slot)?.c12.as_mut()?))
    }
    /// The number of the vmcs02 that serves the current VMCS.
    pub fn current_slot(&self) -> Option<usize> {
        self.current
    }
    /// The slot `index`, modulo `N`.
    pub fn slot(&self, index: usize) -> &Slot {
        &self.slots[index % N]
    }
    /// The slot `index`, modulo `N`.
    pub fn slot_mut(&mut self, index: usize) -> &mut Slot {
        &mut self.slots[index % N]
    }
    /// The checked vmcs12 of the L2 that runs.
    pub fn running(&self) -> Option<&Checked12> {
        self.slot(self.active?.slot).c12.as_ref()?.checked()
    }

    /// RFLAGS for what came of an instruction; keeps the error number in the current VMCS.
    pub fn conclude<T>(&mut self, result: &Result<T, Failure>) -> Verdict {
        match (result, self.current_mut()) {
            (Ok(_), _) => Verdict::Success,
            (Err(Failure::Valid(error)), Some((_, c12))) => {
                c12.learn(Field::VM_INSTRUCTION_ERROR, *error as u64);
                Verdict::FailValid
            }
            _ => Verdict::FailInvalid,
        }
    }

    /// VMXON with the pointer `at`. Already in VMX operation, it fails with 15 whatever the operand.
    pub fn vmxon(&mut self, at: u64, mem: &impl GuestMemory, caps: &Caps) -> Result<(), Failure> {
        if self.on() {
            return Err(Failure::Valid(InsnError::VmxonInRoot));
        }
        if !caps.is_address(at, 4096) {
            return Err(Failure::Invalid);
        }
        // Where there is no memory the bus answers all ones, which is no revision.
        let gpa = Gpa::new(at);
        let revision = mem.pin(gpa.frame()).map_or(u32::MAX, |page| page.read_u32(layout::REVISION));
        if revision != REVISION {
            return Err(Failure::Invalid);
        }
        (self.vmxon, self.current) = (Some(gpa), None);
        Ok(())
    }

    /// VMXOFF. What is active goes back to memory: real hardware keeps it cached, and an L1 that reads its
    /// region then reads what it likes.
    pub fn vmxoff(&mut self, mem: &impl GuestMemory, hw: &mut impl Vmcs02s, caps: &Caps) {
        (self.vmxon, self.current) = (None, None);
        self.flush(mem, hw, caps);
    }

    /// VMCLEAR of the region `at`.
    pub fn vmclear(
        &mut self,
        at: u64,
        mem: &impl GuestMemory,
        hw: &mut impl Vmcs02s,
        caps: &Caps,
    ) -> Result<(), Failure> {
        if !caps.is_address(at, 4096) {
            return Err(Failure::Valid(InsnError::VmclearBadAddress));
        }
        let gpa = Gpa::new(at);
        if self.vmxon == Some(gpa) {
            return Err(Failure::Valid(InsnError::VmclearVmxonPointer));
        }
        if let Some(slot) = self.find(gpa) {
            if let Some(c12) = &mut self.slots[slot].c12 {
                c12.launched = false;
            }
            self.evict(slot, mem, hw, caps);
        } else if let Ok(page) = mem.pin(gpa.frame()) {
            page.write_u32(layout::LAUNCH, 0);
        }
        Ok(())
    }

    /// VMPTRLD of the region `at`.
    pub fn vmptrld(
        &mut self,
        at: u64,
        mem: &impl GuestMemory,
        hw: &mut impl Vmcs02s,
        caps: &Caps,
    ) -> Result<(), Failure> {
        if !caps.is_address(at, 4096) {
            return Err(Failure::Valid(InsnError::VmptrldBadAddress));
        }
        let gpa = Gpa::new(at);
        if self.vmxon == Some(gpa) {
            return Err(Failure::Valid(InsnError::VmptrldVmxonPointer));
        }
        let slot = match self.find(gpa) {
            Some(slot) => slot,
            None => {
                let wrong = Failure::Valid(InsnError::VmptrldRevision);
                let page = mem.pin(gpa.frame()).map_err(|_| wrong)?;
                let new = Cached12::load(gpa, &page, caps).map_err(|_| wrong)?;
                let slot = self.oldest();
                self.evict(slot, mem, hw, caps);
                self.slots[slot].c12 = Some(new);
                slot
            }
        };
        self.clock += 1;
        self.slots[slot].used = self.clock;
        self.current = Some(slot);
        Ok(())
    }

    /// VMPTRST: what it stores.
    pub fn vmptrst(&self) -> u64 {
        self.current_gpa().map_or(u64::MAX, Gpa::raw)
    }

    /// VMREAD of the field that the operand `encoding` names (all 64 bits of it in 64-bit mode, else
    /// zero-extended). To be asked before the destination is written, as its faults come later.
    pub fn vmread(&mut self, encoding: u64, hw: &mut impl Vmcs02s, caps: &Caps) -> Result<u64, Failure> {
        let (slot, c12) = self.current_mut().ok_or(Failure::Invalid)?;
        let (field, high) = field(encoding, caps)?;
        if field.flow() == Flow::Rare && c12.rare_in_02 && !c12.unmerged.contains(field) {
            sync_rare(c12, |field| hw.read(slot, field));
        }
        let value = c12.fields().get(field);
        Ok(if high { value >> 32 } else { value })
    }

    /// VMWRITE of `value` (zero-extended outside 64-bit mode). Returns the field, for the back end's copy of
    /// what L1 can reach without an exit.
    pub fn vmwrite(&mut self, encoding: u64, value: u64, caps: &Caps) -> Result<Field, Failure> {
        let (_, c12) = self.current_mut().ok_or(Failure::Invalid)?;
        let (field, high) = field(encoding, caps)?;
        if field.class() == Class::Exit && caps.msrs.misc & misc::VMWRITE_ANY == 0 {
            return Err(Failure::Valid(InsnError::ReadOnlyField));
        }
        let old = c12.fields().get(field);
        let value = if high { old & 0xffff_ffff | value << 32 } else { value };
        // An untouched copy may be older than vmcs02's, so "unchanged" can't be told from it.
        if c12.rare_in_02 && field.flow() == Flow::Rare {
            c12.unmerged.insert(field);
            c12.unchecked.insert(field);
        }
        c12.edit(field, value);
        Ok(field)
    }

    /// INVEPT with the descriptor `low`, `high`.
    pub fn invept(&self, kind: u64, low: u64, high: u64, caps: &Caps) -> Result<Invept, Failure> {
        let bad = Failure::Valid(InsnError::BadInvalidationOperand);
        match kind {
            1 if high == 0 && crate::ept::eptp_is_valid(low, caps) => {
                Ok(Invept::Single(crate::ept::ep4ta(low)))
            }
            2 => Ok(Invept::All),
            _ => Err(bad),
        }
    }

    /// INVVPID with the descriptor `low`, `high`.
    pub fn invvpid(&self, kind: u64, low: u64, high: u64, caps: &Caps) -> Result<Invvpid, Failure> {
        let vpid = low as u16;
        let named = vpid != 0;
        if low >> 16 == 0 {
            match kind {
                0 if named && caps.is_canonical(high) => return Ok(Invvpid::Address { vpid, address: high }),
                1 if named => return Ok(Invvpid::Single(vpid)),
                2 => return Ok(Invvpid::All),
                3 if named => return Ok(Invvpid::RetainingGlobals(vpid)),
                _ => {}
            }
        }
        Err(Failure::Valid(InsnError::BadInvalidationOperand))
    }

    /// L2, if it is running.
    #[inline]
    pub fn active(&self) -> Option<Active> {
        self.active
    }
    /// VM entry was accepted, vmcs02 merged.
    pub(crate) fn entered(&mut self, slot: usize) {
        self.active = Some(Active { slot, run_pending: true });
    }
    /// L2 was really entered and has exited.
    #[inline]
    pub fn has_run(&mut self) {
        if let Some(active) = &mut self.active {
            active.run_pending = false;
        }
    }
    /// L2 is left.
    pub(crate) fn left(&mut self) -> Option<Active> {
        self.active.take()
    }

    /// Reset of the vCPU. (INIT is blocked in VMX operation, so outside of it there is nothing to do.)
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    /// Writes all copies back and forgets them: VMXOFF, or before the domain is saved.
    pub fn flush(&mut self, mem: &impl GuestMemory, hw: &mut impl Vmcs02s, caps: &Caps) {
        (0..N).for_each(|slot| self.evict(slot, mem, hw, caps));
    }

    /// Writes a slot's copy back and forgets it.
    fn evict(&mut self, slot: usize, mem: &impl GuestMemory, hw: &mut impl Vmcs02s, caps: &Caps) {
        let Some(mut c12) = self.slots[slot].c12.take() else { return };
        sync_rare(&mut c12, |field| hw.read(slot, field));
        // Without memory the store is lost, as on the bare machine.
        if let Ok(page) = mem.pin(c12.gpa().frame()) {
            c12.store(&page, caps);
        }
        // Another L1 page may come to this slot: its maps may lie at the same address.
        self.slots[slot].msr_map.invalidate();
        self.slots[slot].io_map.invalidate();
        if self.current == Some(slot) {
            self.current = None;
        }
    }

    fn find(&self, gpa: Gpa) -> Option<usize> {
        self.slots.iter().position(|s| s.c12.as_ref().is_some_and(|c| c.gpa() == gpa))
    }

    /// A free slot, else the one unused for longest.
    fn oldest(&self) -> usize {
        let key = |i: &usize| (self.slots[*i].c12.is_some(), self.slots[*i].used);
        (0..N).min_by_key(key).unwrap_or(0)
    }
}

/// The field that an operand names, if this L1 has it.
fn field(encoding: u64, caps: &Caps) -> Result<(Field, bool), Failure> {
    let found = Field::decode(encoding).filter(|(field, _)| caps.exists(*field));
    found.ok_or(Failure::Valid(InsnError::UnsupportedField))
}

/// What L2's VMREAD or VMWRITE finds where L1 gave it a shadow VMCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShadowAccess {
    /// L1's bitmap asks for an exit, or L1 does not shadow: reflect.
    Reflect,
    /// VMfailInvalid: the link pointer is all ones.
    NoVmcs,
    /// Byte offset of the field in the shadow VMCS at the link pointer, and whether it is a high half.
    At {
        /// Byte offset in the region.
        offset: usize,
        /// Bits 63:32.
        high: bool,
        /// The field.
        field: Field,
    },
}

/// How L2's VMREAD (or VMWRITE) of `encoding` is to be handled. `bit` reads a byte of L1's VMREAD (or VMWRITE)
/// bitmap. SDM vol. 3, "Virtual-Machine Control Structure Shadowing" and the operation of VMREAD.
pub fn shadow_access(
    c12: &Checked12,
    encoding: u64,
    caps: &Caps,
    byte: impl FnOnce(usize) -> u8,
) -> ShadowAccess {
    let covered = c12.secondary(secondary::VMCS_SHADOWING) && encoding >> 15 == 0;
    if !covered || byte(encoding as usize / 8) >> (encoding % 8) & 1 != 0 {
        return ShadowAccess::Reflect;
    }
    if c12.get(Field::VMCS_LINK_POINTER) == u64::MAX {
        return ShadowAccess::NoVmcs;
    }
    match field(encoding, caps) {
        Ok((field, high)) => ShadowAccess::At { offset: layout::offset(field), high, field },
        Err(_) => ShadowAccess::Reflect,
    }
}
