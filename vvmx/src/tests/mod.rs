//! Tests that need a whole vmcs12, and the doubles they share.

extern crate std;

mod bitmap;
mod caps;
mod check;
mod ept;
mod events;
mod field;
mod insn;
mod laws;
mod msr_list;
mod reflect;
mod regressions;
mod route;
mod shadowing;
mod vpid;

use crate::bitmap::Maps12;
use crate::bits::{basic, ept_cap, exit, reg::*};
use crate::bits::{entry, pin, primary, secondary};
use crate::caps::{Caps, Cpu, Ctl, VmxMsrs};
use crate::field::{COUNT, Field, Vmcs};
use crate::merge::{L0Policy, L1State, Merged, merge};
use crate::reflect::Outside;
use crate::route::Exit;
use crate::run::{Accepted, Entry, NoEntry};
use crate::state::{Nested, Vmcs02s};
use crate::timer::Tsc;
use crate::vmcs12::{REVISION, Vmcs12};
use addr::testing::HeapMemory;
use addr::{Gpa, GuestMemory, GuestPage, Hpa};
use std::vec::Vec;

/// A processor with everything.
pub(crate) fn new_cpu() -> VmxMsrs {
    VmxMsrs {
        basic: basic::TRUE_CONTROLS | basic::INS_OUTS_INFO | basic::ANY_ERROR_CODE | 0x1234,
        pin: Ctl::new(0x16, 0xff),
        primary: Ctl::new(0x0400_6172, !0),
        exit: Ctl::new(0x0003_6dfb, !0),
        entry: Ctl::new(0x0000_11fb, !(entry::SMM | entry::DEACTIVATE_DUAL_MONITOR)),
        misc: 0x7004_c1e7,
        cr0_fixed0: 0x8000_0021,
        cr0_fixed1: 0xffff_ffff,
        cr4_fixed0: 0x2000,
        cr4_fixed1: 0x0177_2fff,
        secondary: Ctl::new(0, !0),
        ept_vpid: !0,
        vmfunc: 1,
    }
}

/// A processor of VMX's first generation with EPT: no TRUE controls, few of the others.
pub(crate) fn old_cpu() -> VmxMsrs {
    VmxMsrs {
        basic: 0xe,
        pin: Ctl::new(0x16, pin::EXTERNAL_INTERRUPT | pin::NMI | pin::VIRTUAL_NMIS),
        primary: Ctl::new(0x0401_e172, 0xf7f9_fffe & !primary::TERTIARY),
        exit: Ctl::new(0x0003_6dff, exit::HOST_64 | exit::ACK_INTERRUPT),
        entry: Ctl::new(0x0000_11ff, entry::IA32E),
        misc: 0x4_01e0,
        secondary: Ctl::new(0, secondary::APIC_ACCESS | secondary::EPT | secondary::WBINVD),
        ept_vpid: ept_cap::WB | ept_cap::UC | ept_cap::LEVELS_4 | ept_cap::PAGES_2M,
        vmfunc: 0,
        ..new_cpu()
    }
}

pub(crate) fn cpu() -> Cpu {
    Cpu {
        maxphyaddr: 40,
        cr4: 0x0177_0fff & !CR4_LA57 | CR4_VMXE | CR4_CET | CR4_PKS,
        efer: EFER_LME | EFER_LMA | EFER_NXE | 1,
        debugctl: 3,
        perf_global: 0xf,
        pages_1g: true,
        absent: 0,
    }
}

pub(crate) fn caps() -> Caps {
    Caps::offer(&new_cpu(), cpu())
}

/// A vmcs12 of a 64-bit L2 with EPT that passes every check, and each of its controls at the least.
pub(crate) fn valid(caps: &Caps) -> Vmcs12 {
    let m = &caps.msrs;
    let mut v = Vmcs12::default();
    let rights = [
        (0, 0xc093),
        (1, 0xa09b),
        (2, 0xc093),
        (3, 0xc093),
        (4, 0xc093),
        (5, 0xc093),
        (6, 1 << 16),
        (7, 0x8b),
    ];
    for (i, value) in rights {
        v.set(Field::GUEST_ES_AR.step(i), value);
        v.set(Field::GUEST_ES_SELECTOR.step(i), 8 * u64::from(i));
        v.set(Field::GUEST_ES_LIMIT.step(i), if i == 7 { 0x67 } else { 0xffff_ffff });
    }
    for i in 0..7 {
        v.set(Field::HOST_ES_SELECTOR.step(i), 8 + 8 * u64::from(i));
    }
    let ept = m.secondary.has(secondary::EPT);
    let fields = [
        (Field::PIN_CONTROLS, m.pin.must() | pin::EXTERNAL_INTERRUPT | pin::NMI),
        (Field::PRIMARY_CONTROLS, m.primary.must() | primary::SECONDARY | primary::HLT),
        (Field::SECONDARY_CONTROLS, if ept { secondary::EPT } else { 0 }),
        (Field::EXIT_CONTROLS, m.exit.must() | exit::HOST_64),
        (Field::ENTRY_CONTROLS, m.entry.must() | entry::IA32E),
    ];
    for (field, value) in fields {
        v.set(field, value.into());
    }
    let cr0 = CR0_PE | CR0_PG | CR0_NE | CR0_WP;
    for (field, value) in [
        (Field::EPT_POINTER, if ept { 0x8_001e } else { 0 }),
        (Field::VMCS_LINK_POINTER, !0),
        (Field::GUEST_CR0, cr0),
        (Field::GUEST_CR3, 0x3000),
        (Field::GUEST_CR4, CR4_PAE | CR4_VMXE),
        (Field::CR4_MASK, CR4_VMXE),
        (Field::GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF),
        (Field::GUEST_RIP, 0xffff_8000_0000_1000),
        (Field::GUEST_RSP, 0xffff_8000_0000_2000),
        (Field::GUEST_DR7, DR7_RESET),
        (Field::GUEST_PAT, 0x0007_0406_0007_0406),
        (Field::GUEST_EFER, EFER_LMA | EFER_LME),
        (Field::GUEST_GDTR_LIMIT, 0xffff),
        (Field::GUEST_IDTR_LIMIT, 0xffff),
        (Field::HOST_CR0, cr0),
        (Field::HOST_CR3, 0x4000),
        (Field::HOST_CR4, CR4_PAE | CR4_VMXE),
        (Field::HOST_RIP, 0xffff_8000_0000_3000),
        (Field::HOST_RSP, 0xffff_8000_0000_4000),
        (Field::HOST_PAT, 0x0007_0406_0007_0406),
        (Field::HOST_EFER, EFER_LMA | EFER_LME),
    ] {
        if caps.exists(field) {
            v.set(field, value);
        }
    }
    v
}

/// The processor's vmcs02s: they count accesses and insist that the field exists.
#[derive(Clone, Debug)]
pub(crate) struct Hw {
    pub caps: Caps,
    pub values: [[u64; COUNT]; 4],
    pub writes: Vec<(Field, u64)>,
    pub reads: usize,
    pub current: usize,
}

impl Hw {
    pub fn new(hw: &VmxMsrs) -> Self {
        let caps = Caps { msrs: *hw, cpu: cpu() };
        Self { caps, values: [[0; COUNT]; 4], writes: Vec::new(), reads: 0, current: 0 }
    }
    pub fn get(&self, field: Field) -> u64 {
        self.values[self.current][field.index()]
    }
    pub fn set(&mut self, field: Field, value: u64) {
        self.values[self.current][field.index()] = value;
    }
}

impl Vmcs for Hw {
    fn read(&mut self, field: Field) -> u64 {
        assert!(self.caps.exists(field), "VMREAD of {field:?}, which the processor does not have");
        self.reads += 1;
        self.get(field)
    }
    fn write(&mut self, field: Field, value: u64) {
        assert!(self.caps.exists(field), "VMWRITE of {field:?}, which the processor does not have");
        assert_eq!(value & !field.width().mask(), 0, "{field:?}");
        self.writes.push((field, value));
        self.set(field, value);
    }
}

impl Vmcs02s for Hw {
    fn read(&mut self, slot: usize, field: Field) -> u64 {
        self.values[slot][field.index()]
    }
}

/// L0's side, with all it could lend.
pub(crate) fn policy(hw: &VmxMsrs) -> L0Policy {
    let has = |bits| hw.secondary.has(bits);
    L0Policy {
        hw: *hw,
        pin: 0,
        primary: 0,
        secondary: 0,
        exit: hw.exit.must() | exit::SAVE_DEBUG | exit::HOST_64,
        exceptions: 1 << 18 | 1 << 17 | 1 << 1,
        cr0_mask: CR0_CD | CR0_NW,
        cr4_mask: CR4_VMXE,
        cr0_set: CR0_NE,
        cr4_set: CR4_VMXE,
        eptp: 0xaaaa_a01e,
        vpid: has(secondary::VPID).then_some(42),
        msr_bitmap: Some(Hpa::new(0xbbbb_b000)),
        io_bitmaps: Some((Hpa::new(0xcccc_c000), Hpa::new(0xcccc_d000))),
        virtual_apic: hw.primary.has(primary::TPR_SHADOW).then_some(Hpa::new(0xdddd_d000)),
        apic_access: has(secondary::APIC_ACCESS).then_some(Hpa::new(0xdddd_e000)),
        posted: hw.pin.has(pin::POSTED_INTERRUPTS).then_some((Hpa::new(0xdddd_f000), 0xf2)),
        xss_bitmap: 0,
        ple: (128, 4096),
        tsc01: Tsc { offset: 1000, ..Tsc::default() },
    }
}

/// Maps whose bytes are all the same.
pub(crate) struct Flat(pub u8);
impl Maps12 for Flat {
    fn msr(&self, _: usize) -> u8 {
        self.0
    }
    fn io(&self, _: usize) -> u8 {
        self.0
    }
    fn vmread(&self, _: usize) -> u8 {
        self.0
    }
    fn vmwrite(&self, _: usize) -> u8 {
        self.0
    }
}

/// A vCPU with VMX on, RAM, and a VMCS region at each of pages 1 to 9 (VMXON's is page 1).
pub(crate) struct Rig {
    pub mem: HeapMemory,
    pub caps: Caps,
    pub hw: Hw,
    pub nested: Nested,
    pub l0: L0Policy,
    pub l1: L1State,
}

impl Rig {
    pub fn on(hw: VmxMsrs) -> Self {
        let mem = HeapMemory::with_pages(0x200);
        (1..10).for_each(|n| mem.put_u64(Gpa::new(n * 0x1000), REVISION.into()));
        let caps = Caps::offer(&hw, cpu());
        let l1 = L1State { efer: EFER_LMA | EFER_LME | EFER_NXE, pat: 7, dr7: 0x400, ..L1State::default() };
        let mut rig = Self { mem, caps, hw: Hw::new(&hw), nested: Nested::new(), l0: policy(&hw), l1 };
        rig.nested.vmxon(0x1000, &rig.mem, &rig.caps).unwrap();
        rig
    }
    /// With a valid vmcs12 current, in page 2.
    pub fn new() -> Self {
        let mut rig = Self::on(new_cpu());
        rig.load(0x2000);
        rig.write_all(&valid(&rig.caps));
        rig
    }
    pub fn load(&mut self, at: u64) {
        self.nested.vmptrld(at, &self.mem, &mut self.hw, &self.caps).unwrap();
    }
    pub fn clear(&mut self, at: u64) {
        self.nested.vmclear(at, &self.mem, &mut self.hw, &self.caps).unwrap();
    }
    pub fn write(&mut self, field: Field, value: u64) {
        self.nested.vmwrite(field.encoding().into(), value, &self.caps).unwrap();
    }
    pub fn read(&mut self, field: Field) -> u64 {
        self.nested.vmread(field.encoding().into(), &mut self.hw, &self.caps).unwrap()
    }
    /// Every field that L1 has.
    pub fn fields(&self) -> Vec<Field> {
        Field::all().filter(|f| self.caps.exists(*f)).collect()
    }
    pub fn write_all(&mut self, v: &Vmcs12) {
        for field in self.fields() {
            self.write(field, v.get(field));
        }
    }
    pub fn enter(&mut self, entry: Entry) -> Result<Accepted, NoEntry> {
        self.nested.enter(entry, false, true, &self.mem, &mut self.hw, &self.caps)
    }
    pub fn merge(&mut self, accepted: &Accepted) -> Merged {
        self.hw.current = accepted.slot;
        let (l0, l1, hw) = (self.l0, self.l1, &mut self.hw);
        let mut merged = None;
        self.nested.merge(accepted, |c12, mirror| {
            merged = Some(merge(c12, &l0, &l1, None, accepted.pdptes, mirror, hw));
        });
        merged.expect("a checked vmcs12")
    }
    /// VMLAUNCH or VMRESUME, whichever is due, up to the first instruction of L2.
    pub fn run(&mut self) {
        let launched = self.nested.current().unwrap().launched();
        let entry = if launched { Entry::Resume } else { Entry::Launch };
        let accepted = self.enter(entry).expect("a valid vmcs12");
        let _ = self.merge(&accepted);
        self.nested.accept(&accepted);
        self.nested.has_run();
        let info = self.hw.get(Field::ENTRY_INTR_INFO);
        self.hw.set(Field::ENTRY_INTR_INFO, info & 0x7fff_ffff);
    }
    pub fn leave(&mut self, exit: &Exit) {
        let out = Outside::default();
        let left = self.nested.leave(exit, self.l1.efer, &self.caps, &out, &mut self.hw, |_, _| ());
        assert!(left.is_some());
    }
}

/// A small deterministic generator.
pub(crate) struct Noise(pub u64);
impl Noise {
    pub fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A word of memory.
pub(crate) fn word(mem: &HeapMemory, at: u64) -> u32 {
    let gpa = Gpa::new(at);
    mem.pin(gpa.frame()).unwrap().read_u32(gpa.page_offset())
}
