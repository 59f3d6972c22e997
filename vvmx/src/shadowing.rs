//! Hardware VMCS shadowing: the fields that L1 reads and writes without an exit, learnt from what it does.
//!
//! The processor's shadow VMCS stands for the current vmcs12 while L1 runs. Before L1 runs, [`ShadowSet::upload`]
//! puts there what changed; after, [`ShadowSet::download`] takes what L1 wrote. Each field costs two accesses a
//! round trip and saves exits of a thousand times that, so a field joins once L1 has exited for it often enough,
//! and the set has a limit. SDM vol. 3, "VMCS Shadowing Bitmap Addresses": bit N of a bitmap is encoding N.

use crate::caps::Caps;
use crate::field::{COUNT, Field, FieldSet, Vmcs};
use crate::merge::Mirror;
use crate::vmcs12::Cached12;

/// Fields with which every L1 starts, read and written: what KVM touches on its fast path.
const START: FieldSet = FieldSet::of(&[
    Field::GUEST_RIP,
    Field::GUEST_RSP,
    Field::GUEST_RFLAGS,
    Field::GUEST_CR0,
    Field::GUEST_CR3,
    Field::GUEST_CR4,
    Field::GUEST_INTERRUPTIBILITY,
    Field::GUEST_INTR_STATUS,
    Field::PRIMARY_CONTROLS,
    Field::EXCEPTION_BITMAP,
    Field::ENTRY_INTR_INFO,
    Field::ENTRY_ERROR_CODE,
    Field::ENTRY_INSN_LENGTH,
    Field::TPR_THRESHOLD,
    Field::CR0_MASK,
    Field::CR0_SHADOW,
    Field::CR4_SHADOW,
    Field::HOST_FS_SELECTOR,
    Field::HOST_GS_SELECTOR,
    Field::HOST_FS_BASE,
    Field::HOST_GS_BASE,
    Field::PREEMPTION_TIMER,
]);
/// Fields with which every L1 starts, read only.
const START_READ: FieldSet = FieldSet::of(&[
    Field::EXIT_REASON,
    Field::EXIT_QUALIFICATION,
    Field::EXIT_INTR_INFO,
    Field::EXIT_INTR_ERROR_CODE,
    Field::EXIT_INSN_LENGTH,
    Field::EXIT_INSN_INFO,
    Field::IDT_VECTORING_INFO,
    Field::IDT_VECTORING_ERROR_CODE,
    Field::GUEST_LINEAR_ADDRESS,
    Field::GUEST_PHYSICAL_ADDRESS,
    Field::GUEST_CS_AR,
    Field::GUEST_SS_AR,
]);
/// Fields that never join, as L0 must hear of each access: the error number, which VMfail sets; addresses that
/// L0 pins pages for; access rights, of which VMWRITE drops bits.
const NEVER_WRITE: FieldSet = FieldSet::of(&[
    Field::VMCS_LINK_POINTER,
    Field::IO_BITMAP_A,
    Field::IO_BITMAP_B,
    Field::MSR_BITMAP,
    Field::VIRTUAL_APIC_ADDRESS,
    Field::APIC_ACCESS_ADDRESS,
    Field::POSTED_INTR_DESC_ADDR,
    Field::PML_ADDRESS,
    Field::EPTP_LIST_ADDRESS,
    Field::VMREAD_BITMAP,
    Field::VMWRITE_BITMAP,
    Field::EPT_POINTER,
    Field::GUEST_ES_AR,
    Field::GUEST_CS_AR,
    Field::GUEST_SS_AR,
    Field::GUEST_DS_AR,
    Field::GUEST_FS_AR,
    Field::GUEST_GS_AR,
    Field::GUEST_LDTR_AR,
    Field::GUEST_TR_AR,
]);

/// Exits within one window after which a field joins.
const HOT: u8 = 16;
/// Most fields that one direction has.
const LIMIT: usize = 60;

/// The shadowed fields of one L1 vCPU.
#[derive(Clone, Debug)]
pub struct ShadowSet {
    read: FieldSet,
    write: FieldSet,
    heat: [[u8; COUNT]; 2],
    /// What both L1 and the processor can have.
    possible: FieldSet,
    writable: FieldSet,
}

impl ShadowSet {
    /// For an L1 with `caps` on a processor with `hw`, which has VMCS shadowing (and then VMWRITE to any
    /// field).
    pub fn new(caps: &Caps, hw: &Caps) -> Self {
        let mut possible = FieldSet::NONE;
        for field in Field::all().filter(|f| caps.exists(*f) && hw.exists(*f)) {
            possible.insert(field);
        }
        possible.remove(Field::VM_INSTRUCTION_ERROR);
        let rare = FieldSet::flowing(crate::field::Flow::Rare);
        // State that stays in vmcs02 is fetched when L1 asks; that takes an exit.
        possible = possible.minus(&rare);
        let writable = possible.minus(&NEVER_WRITE);
        let write = START.and(&writable);
        Self { read: START.or(&START_READ).and(&possible), write, heat: [[0; COUNT]; 2], possible, writable }
    }

    /// The fields that L1 reads without an exit.
    pub fn read(&self) -> &FieldSet {
        &self.read
    }
    /// The fields that L1 writes without an exit.
    pub fn write(&self) -> &FieldSet {
        &self.write
    }

    /// L1 exited for `field`. True if it has joined: the bitmaps are to be filled again, and the field is to be
    /// uploaded.
    pub fn missed(&mut self, field: Field, write: bool) -> bool {
        let heat = &mut self.heat[usize::from(write)][field.index()];
        *heat = heat.saturating_add(1);
        let (set, may) = match write {
            true => (&mut self.write, &self.writable),
            false => (&mut self.read, &self.possible),
        };
        let joins = *heat >= HOT && may.contains(field) && !set.contains(field) && set.len() < LIMIT;
        if joins {
            set.insert(field);
        }
        joins
    }

    /// A window (a millisecond or so) has passed.
    pub fn cool(&mut self) {
        self.heat.iter_mut().flatten().for_each(|heat| *heat = 0);
    }

    /// Writes the VMREAD or VMWRITE bitmap, 512 words. A set bit exits.
    pub fn fill(&self, write: bool, bitmap: &mut [u64]) {
        bitmap.iter_mut().for_each(|word| *word = u64::MAX);
        for field in if write { &self.write } else { &self.read }.iter() {
            let encoding = field.encoding() as usize;
            if let Some(word) = bitmap.get_mut(encoding / 64) {
                *word &= !(1 << (encoding % 64));
            }
        }
    }

    /// Before L1 runs: brings the shadow VMCS, which is the processor's current one, up to the copy. `mirror` is
    /// what the shadow VMCS is known to hold: a new one after it has served another vmcs12 elsewhere.
    pub fn upload(&self, c12: &Cached12, mirror: &mut Mirror, shadow: &mut impl Vmcs) {
        for field in self.read.or(&self.write).iter() {
            mirror.put(shadow, field, c12.fields().get(field));
        }
    }

    /// After L1 ran: takes what it wrote into the copy. To be done before the current VMCS is looked at in any
    /// way: VM entry, VMPTRLD, VMCLEAR, VMREAD of a field that exits.
    pub fn download(&self, c12: &mut Cached12, mirror: &mut Mirror, shadow: &mut impl Vmcs) {
        for field in self.write.iter() {
            let value = shadow.read(field);
            mirror.learn(field, value);
            c12.edit(field, value);
        }
    }
}
