//! An L1 fills a VMCS region with anything, writes fields, enters, and edits its memory behind every read: nothing
//! panics, a refused entry writes nothing, an accepted one keeps everything L0 requires, every exit has an owner.
#![no_main]
use addr::testing::{HeapMemory, HeapPage};
use addr::{Frame, Gpa, GuestFault, GuestMemory, GuestPage, GuestPhys, Hpa};
use std::cell::Cell;
use vvmx::bitmap::Maps12;
use vvmx::caps::{Caps, Cpu, Ctl, VmxMsrs};
use vvmx::field::{COUNT, Field, Vmcs};
use vvmx::merge::{L0Policy, L1State, Mirror, PIN_REQUIRED, PRIMARY_REQUIRED, is_back_ends, merge};
use vvmx::reflect::Outside;
use vvmx::route::{Exit, L0Wants, route};
use vvmx::run::Entry;
use vvmx::state::{Nested, Vmcs02s};
use vvmx::timer::Tsc;
use vvmx::vmcs12::REVISION;

/// Gives out the input piece by piece, then zeros.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn word(&mut self) -> u64 {
        let mut word = [0; 8];
        let n = self.0.len().min(8);
        word[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        u64::from_le_bytes(word)
    }
}

/// L1's memory: each time a page is looked up, another vCPU of L1's has written to it.
struct Hostile {
    memory: HeapMemory,
    state: Cell<u64>,
}

impl Hostile {
    fn scribble(&self, page: &HeapPage) {
        let n = self.state.get().wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        self.state.set(n);
        // Mostly leave the revision alone, so that regions load.
        let offset = if n >> 60 == 0 { 0 } else { 8 + (n >> 20) as usize % 2040 };
        page.write_u64(offset, n.rotate_left(17));
    }
}

impl GuestMemory for Hostile {
    type Page = HeapPage;
    fn pin(&self, frame: Frame<GuestPhys>) -> Result<HeapPage, GuestFault> {
        let page = self.memory.pin(frame)?;
        self.scribble(&page);
        Ok(page)
    }
    fn read(&self, gpa: Gpa, out: &mut [u8]) -> Result<(), GuestFault> {
        self.memory.read(gpa, out)
    }
    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), GuestFault> {
        self.memory.write(gpa, data)
    }
}

struct Hw {
    values: [[u64; COUNT]; 4],
    current: usize,
    writes: usize,
}

impl Vmcs for Hw {
    fn read(&mut self, field: Field) -> u64 {
        self.values[self.current][field.index()]
    }
    fn write(&mut self, field: Field, value: u64) {
        assert!(!is_back_ends(field), "{field:?}");
        assert_eq!(value & !field.width().mask(), 0, "{field:?}");
        self.values[self.current][field.index()] = value;
        self.writes += 1;
    }
}

impl Vmcs02s for Hw {
    fn read(&mut self, slot: usize, field: Field) -> u64 {
        self.values[slot][field.index()]
    }
}

/// Bitmaps whose bytes are all the same.
struct Maps(u8);
impl Maps12 for Maps {
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

fn processor() -> VmxMsrs {
    VmxMsrs {
        basic: 7 << 54,
        pin: Ctl::new(0x16, 0xff),
        primary: Ctl::new(0x0400_6172, !0),
        exit: Ctl::new(0x0003_6dfb, !0),
        entry: Ctl::new(0x0000_11fb, !0xc00),
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

fn policy() -> L0Policy {
    L0Policy {
        hw: processor(),
        pin: 0,
        primary: 0,
        secondary: 0,
        exit: 0x0003_6fff,
        exceptions: 1 << 18,
        cr0_mask: 0x6000_0000,
        cr4_mask: 0x2000,
        cr0_set: 0x20,
        cr4_set: 0x2000,
        eptp: 0xaaaa_a01e,
        vpid: Some(42),
        msr_bitmap: Some(Hpa::new(0xbbbb_b000)),
        io_bitmaps: Some((Hpa::new(0xcccc_c000), Hpa::new(0xcccc_d000))),
        virtual_apic: Some(Hpa::new(0xdddd_d000)),
        apic_access: Some(Hpa::new(0xdddd_e000)),
        posted: Some((Hpa::new(0xdddd_f000), 0xf2)),
        xss_bitmap: 0,
        ple: (0, 0),
        tsc01: Tsc::default(),
    }
}

/// A VMCS that passes the checks, so that the input need not find one by itself.
fn acceptable() -> Vec<(Field, u64)> {
    let mut fields = vec![
        (Field::PIN_CONTROLS, 0x1f),
        (Field::PRIMARY_CONTROLS, 0x8400_61f2),
        (Field::SECONDARY_CONTROLS, 2),
        (Field::EXIT_CONTROLS, 0x3_6ffb),
        (Field::ENTRY_CONTROLS, 0x13fb),
        (Field::EPT_POINTER, 0x8_001e),
        (Field::VMCS_LINK_POINTER, !0),
        (Field::GUEST_CR0, 0x8001_0021),
        (Field::GUEST_CR4, 0x2020),
        (Field::GUEST_RFLAGS, 0x202),
        (Field::HOST_CR0, 0x8001_0021),
        (Field::HOST_CR4, 0x2020),
        (Field::HOST_CS_SELECTOR, 8),
        (Field::HOST_TR_SELECTOR, 0x40),
        (Field::GUEST_CS_AR, 0xa09b),
        (Field::GUEST_SS_AR, 0xc093),
        (Field::GUEST_TR_AR, 0x8b),
        (Field::GUEST_LDTR_AR, 0x1_0000),
        (Field::GUEST_ES_AR, 0x1_0000),
        (Field::GUEST_DS_AR, 0x1_0000),
        (Field::GUEST_FS_AR, 0x1_0000),
        (Field::GUEST_GS_AR, 0x1_0000),
        (Field::GUEST_TR_LIMIT, 0x67),
    ];
    fields.extend([Field::GUEST_CS_LIMIT, Field::GUEST_SS_LIMIT].map(|f| (f, 0xffff_ffff)));
    fields
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let cpu = Cpu {
        maxphyaddr: 40,
        cr4: 0x0177_2fff,
        efer: 0xd01,
        debugctl: 3,
        perf_global: 15,
        pages_1g: input.word() & 1 != 0,
        // The controls of instructions, which alone can be absent.
        absent: input.word() as u32 & 0x0411_1808,
    };
    let caps = Caps::offer(&processor(), cpu);
    let mem = Hostile { memory: HeapMemory::with_pages(16), state: Cell::new(input.word()) };
    (1..8).for_each(|n| mem.memory.put_u64(Gpa::new(n * 0x1000), REVISION.into()));
    let mut hw = Hw { values: [[0; COUNT]; 4], current: 0, writes: 0 };
    let (mut nested, l0, l1) = (Nested::<2>::new(), policy(), L1State::default());
    if nested.vmxon(0x1000, &mem, &caps).is_err() || nested.vmptrld(0x2000, &mem, &mut hw, &caps).is_err() {
        return;
    }
    for field in Field::all() {
        let _ = nested.vmwrite(field.encoding().into(), 0, &caps);
    }
    for (field, value) in acceptable() {
        let _ = nested.vmwrite(field.encoding().into(), value, &caps);
    }
    let start = nested.enter(Entry::Launch, false, true, &mem, &mut hw, &caps);
    assert!(start.is_ok(), "the VMCS that inputs start from is refused: {start:?}");
    for _ in 0..6 {
        for _ in 0..input.word() % 12 {
            let place = input.word();
            // Encodings that exist are found by number, others come as they are.
            let named = Field::all().nth(place as usize % COUNT).map_or(0, |f| u64::from(f.encoding()));
            let encoding = if place >> 63 == 0 { named } else { place & 0xffff };
            let result = nested.vmwrite(encoding, input.word(), &caps).map(|_| ());
            let _ = nested.conclude(&result);
        }
        match input.word() % 8 {
            0 => _ = nested.vmclear(input.word() % 10 * 0x1000, &mem, &mut hw, &caps),
            1 => _ = nested.vmptrld(input.word() % 10 * 0x1000, &mem, &mut hw, &caps),
            2 => _ = nested.vmread(input.word() & 0xffff, &mut hw, &caps),
            _ => {}
        }
        let launched = nested.current().is_some_and(|c| c.launched());
        let entry = if launched { Entry::Resume } else { Entry::Launch };
        let before = hw.writes;
        let Ok(accepted) = nested.enter(entry, false, true, &mem, &mut hw, &caps) else {
            assert_eq!(before, hw.writes, "a refused entry wrote to vmcs02");
            continue;
        };
        hw.current = accepted.slot;
        assert!(nested.merge(&accepted, |c12, mirror: &mut Mirror| {
            let _ = merge(c12, &l0, &l1, None, accepted.pdptes, mirror, &mut hw);
        }));
        let get = |field: Field| hw.values[accepted.slot][field.index()];
        assert_eq!(get(Field::PIN_CONTROLS) as u32 & PIN_REQUIRED, PIN_REQUIRED);
        assert_eq!(get(Field::PRIMARY_CONTROLS) as u32 & PRIMARY_REQUIRED, PRIMARY_REQUIRED);
        assert_eq!((get(Field::EPT_POINTER), get(Field::VPID)), (l0.eptp, 42));
        assert!(get(Field::SECONDARY_CONTROLS) & 2 != 0, "L2 runs without L0's EPT");
        nested.accept(&accepted);
        nested.has_run();
        let exit = Exit {
            reason: input.word() as u32,
            qualification: input.word(),
            intr_info: input.word() as u32,
            idt_info: input.word() as u32,
            operand: input.word(),
            ..Exit::default()
        };
        let Some(c12) = nested.running() else { panic!("an accepted entry is checked") };
        let _ = route(&exit, c12, &L0Wants::default(), &Maps(exit.operand as u8));
        let out = Outside::default();
        assert!(nested.leave(&exit, 0xd00, &caps, &out, &mut hw, |_, _| ()).is_some());
    }
    nested.vmxoff(&mem, &mut hw, &caps);
});
