use super::config::{Config, Segment, plan};
use super::quiet::{Bar, Class, bars, capabilities, enumerate};
use super::reserved::ranges;
use super::usb::Registers;
use super::*;
use alloc::boxed::Box;
use alloc::string::ToString;
use boot::acpi::{Hpet, IoApic, Madt, McfgSegment, PhysRead, Signature, TableRef};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

/// A configuration space in memory. Status bits are cleared by writing 1, as in real ones.
#[derive(Default)]
struct Space {
    functions: BTreeMap<u16, [u32; 64]>,
    /// What happened, in order.
    log: Rc<RefCell<Vec<&'static str>>>,
    /// Legacy support of an EHCI: the firmware lets go after so many reads.
    firmware: Option<(u8, u32)>,
    reads: u64,
}

impl Config for Space {
    fn read(&mut self, at: Address, offset: u8) -> u32 {
        self.reads += 1;
        let Some(function) = self.functions.get_mut(&at.bdf()) else { return u32::MAX };
        if let Some((register, left)) = &mut self.firmware
            && *register == offset
            && function[usize::from(offset) / 4] & 1 << 24 != 0
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                function[usize::from(offset) / 4] &= !(1 << 16);
            }
        }
        function[usize::from(offset) / 4]
    }

    fn write(&mut self, at: Address, offset: u8, value: u32) {
        let register = &mut self.functions.get_mut(&at.bdf()).unwrap()[usize::from(offset) / 4];
        if offset == 4 {
            *register = value & 0xffff | *register & 0xffff_0000 & !value;
            if value & 4 == 0 {
                self.log.borrow_mut().push("no bus master");
            }
        } else {
            *register = value;
        }
    }
}

const ACTIVE: u32 = 0x0010_0007 | 0xf900_0000; // io, memory, master; capabilities and errors in status

/// A function of `class` that firmware has used: bus master, MSI at 50h, MSI-X at 60h.
fn device(class: u32) -> [u32; 64] {
    let mut f = [0; 64];
    f[0] = 0x1234_8086;
    f[1] = ACTIVE;
    f[2] = class << 8 | 1;
    f[0x34 / 4] = 0x50;
    f[0x50 / 4] = 0x0081_6005;
    f[0x60 / 4] = 0xc007_0011;
    f
}

impl Space {
    fn with(functions: &[(Address, [u32; 64])]) -> Self {
        let functions = functions.iter().map(|(at, f)| (at.bdf(), *f)).collect();
        Self { functions, ..Self::default() }
    }

    fn silence(&mut self, console: &Console) -> Summary {
        self.silence_with(console, |_, _| panic!("no registers expected"))
    }

    fn silence_with(
        &mut self,
        console: &Console,
        mut map: impl FnMut(u64, u64) -> Box<dyn Registers>,
    ) -> Summary {
        let mut summary = Summary::default();
        quiet::silence(self, 0..=255, console, &mut map, &mut summary);
        summary
    }

    fn at(&self, at: Address) -> &[u32; 64] {
        &self.functions[&at.bdf()]
    }
}

const NIC: u32 = 0x02_00_00;
const VGA: u32 = 0x03_00_00;
const PORT: Address = Address::new(3, 4, 0);

#[test]
fn a_device_is_stopped_and_its_errors_stay_on_record() {
    let mut space = Space::with(&[(PORT, device(NIC))]);
    let summary = space.silence(&Console::default());
    let f = space.at(PORT);
    assert_eq!(f[1], 0xf910_0403);
    assert_eq!(f[0x50 / 4], 0x0080_6005, "MSI");
    assert_eq!(f[0x60 / 4], 0x4007_0011, "MSI-X: off, its mask as it was");
    assert_eq!(summary.to_string(), "PCI: 1 functions, 0 kept; stopped 1 bus masters, 2 MSI");
    // Once more: nothing left to do.
    let again = space.silence(&Console::default());
    assert_eq!((again.masters, again.msi), (0, 0));
}

#[test]
fn bridges_iommus_and_the_console_are_left_alone() {
    let console =
        Console { framebuffer: Some(Hpa::new(0xe012_0000)), vga_text: false, uarts: [None, Some(0xd008)] };
    let at = |device| Address::new(0, device, 0);
    let mut pci_bridge = device(0x06_04_00);
    pci_bridge[3] = 1 << 16;
    let mut screen = device(VGA);
    screen[0x10 / 4] = 0xe000_000c; // 64 bits
    let mut serial = device(0x07_00_02);
    serial[0x14 / 4] = 0xd001;
    let kept = [
        (at(0), device(0x06_00_00)),
        (at(1), pci_bridge),
        (at(2), device(0x08_06_00)),
        (at(3), screen),
        (at(4), serial),
    ];
    let mut other_screen = device(0x03_80_00);
    other_screen[0x10 / 4] = 0xd000_0008;
    let mut above = device(VGA);
    above[0x10 / 4] = 0xe020_0000;
    let mut other_serial = device(0x07_00_02);
    other_serial[0x10 / 4] = 0xc001;
    let stopped = [(at(8), other_screen), (at(9), above), (at(10), other_serial)];
    let mut space = Space::with(&[kept.as_slice(), &stopped].concat());
    let summary = space.silence(&console);
    for (at, before) in &kept {
        assert_eq!(space.at(*at), before, "{at:?}");
    }
    for (at, _) in &stopped {
        assert_eq!(space.at(*at)[1] & 0x404, 0x400, "{at:?}");
    }
    assert_eq!((summary.functions, summary.kept, summary.masters), (8, 5, 3));
}

#[test]
fn the_vga_text_console_is_the_display_that_decodes() {
    let mut off = device(VGA);
    off[1] &= !3;
    let on = device(VGA);
    let (a, b) = (Address::new(0, 2, 0), Address::new(1, 0, 0));
    let mut space = Space::with(&[(a, off), (b, on)]);
    space.silence(&Console { vga_text: true, ..Console::default() });
    assert_eq!((space.at(a)[1] & 4, space.at(b)[1] & 4), (0, 4));
    // With the console on a serial line, no display is special.
    space.silence(&Console::default());
    assert_eq!(space.at(b)[1] & 4, 0);
}

#[test]
fn functions_are_found_and_ghosts_are_not() {
    let mut many = device(NIC);
    many[3] = 1 << 23;
    // A device of one function may answer for all eight.
    let mut all: Vec<_> = (0..8).map(|f| (Address::new(0, 1, f), device(NIC))).collect();
    all.push((Address::new(0, 2, 0), many));
    all.push((Address::new(0, 2, 5), device(NIC)));
    // Function 0 is not there, so none is.
    all.push((Address::new(0, 3, 1), device(NIC)));
    all.push((Address::new(255, 31, 0), device(NIC)));
    let mut zero = device(NIC);
    zero[0] = 0;
    all.push((Address::new(0, 4, 0), zero));
    let mut space = Space::with(&all);
    let mut found = Vec::new();
    enumerate(&mut space, 0..=255, |_, function| found.push(function.at));
    let expected = [(0, 1, 0), (0, 2, 0), (0, 2, 5), (255, 31, 0)].map(|(b, d, f)| Address::new(b, d, f));
    assert_eq!(found, expected);
    found.clear();
    enumerate(&mut space, 1..=254, |_, function| found.push(function.at));
    assert!(found.is_empty());
    assert_eq!(std::format!("{:?}", Address::new(0xab, 0x1f, 6)), "ab:1f.6");
}

#[test]
fn capability_lists_end() {
    let mut f = device(NIC);
    f[0x60 / 4] = 0x0000_6011; // itself
    let mut space = Space::with(&[(PORT, f)]);
    assert_eq!(capabilities(&mut space, PORT).len(), 48);
    f[0x60 / 4] = 0x0000_1011; // into the header
    f[0x34 / 4] = 0x53; // reserved low bits
    let mut space = Space::with(&[(PORT, f)]);
    assert_eq!(capabilities(&mut space, PORT), [(0x50, 5), (0x60, 0x11)]);
    f[1] = 0x7; // no list
    let mut space = Space::with(&[(PORT, f)]);
    assert!(capabilities(&mut space, PORT).is_empty());
}

#[test]
fn base_addresses_have_their_width() {
    let mut f = device(NIC);
    f[4] = 0xfebf_000c;
    f[5] = 0x12;
    f[6] = 0xc001;
    f[7] = 0;
    f[8] = 0xfeb0_0000;
    f[9] = 0xffff_0004; // a wide one with no upper half
    let mut space = Space::with(&[(PORT, f)]);
    assert_eq!(
        bars(&mut space, PORT),
        [
            (0, Bar::Memory(0x12_febf_0000)),
            (2, Bar::Io(0xc000)),
            (4, Bar::Memory(0xfeb0_0000)),
            (5, Bar::Memory(0xffff_0000)),
        ]
    );
}

/// A controller's registers: the firmware lets go of the legacy capability at `legacy` after `patience` ms.
struct Controller {
    words: Rc<RefCell<BTreeMap<u64, u32>>>,
    legacy: u64,
    patience: u32,
    /// Status register, and its bit that says halted.
    halted: (u64, u32),
    log: Rc<RefCell<Vec<&'static str>>>,
}

impl Registers for Controller {
    fn read(&mut self, offset: u64) -> u32 {
        self.words.borrow().get(&offset).copied().unwrap_or(0)
    }
    fn write(&mut self, offset: u64, value: u32) {
        self.words.borrow_mut().insert(offset, value);
        let command = self.halted.0 - 4;
        if offset == command && value & 1 == 0 {
            self.log.borrow_mut().push("halt");
            *self.words.borrow_mut().entry(self.halted.0).or_default() |= self.halted.1;
        }
    }
    fn pause(&mut self) {
        self.patience = self.patience.saturating_sub(1);
        let mut words = self.words.borrow_mut();
        if let Some(word) = words.get_mut(&self.legacy)
            && self.patience == 0
            && *word & 1 << 24 != 0
        {
            *word &= !(1 << 16);
            self.log.borrow_mut().push("given");
        }
    }
}

const XHCI_LEGACY: u64 = 0x508;

/// Silences an xHCI whose firmware needs `patience` ms. What it said, did, and its registers.
fn xhci(patience: u32, legacy: u32) -> (Summary, Vec<&'static str>, BTreeMap<u64, u32>) {
    let mut f = device(Class::XHCI.0);
    f[4] = 0xfe80_0004;
    let mut space = Space::with(&[(PORT, f)]);
    let log = space.log.clone();
    let words = Rc::new(RefCell::new(BTreeMap::from([
        (0, 0x0110_0020),
        (0x10, 0x140 << 16), // extended capabilities at 500h
        (0x20, 0x5),         // running, interrupts on
        (0x24, 0),
        (0x500, 2 << 8 | 2), // a protocol; the next is two double words on
        (XHCI_LEGACY, legacy),
        (XHCI_LEGACY + 4, 0x1234_ffff),
    ])));
    let (shared, events) = (words.clone(), log.clone());
    let summary = space.silence_with(&Console::default(), move |at, bytes| {
        assert_eq!((at, bytes), (0xfe80_0000, 0x4_0000));
        let (words, log) = (shared.clone(), events.clone());
        Box::new(Controller { words, legacy: XHCI_LEGACY, patience, halted: (0x24, 1), log })
    });
    let log = log.borrow().clone();
    (summary, log, words.borrow().clone())
}

#[test]
fn an_xhci_is_given_halted_and_only_then_stopped() {
    let (summary, log, words) = xhci(30, 0x0001_0001);
    assert_eq!((summary.usb_taken, summary.usb_forced, summary.masters), (1, 0, 1));
    assert_eq!(log, ["given", "halt", "no bus master"]);
    assert_eq!(words[&XHCI_LEGACY], 0x0100_0001);
    // No system-management interrupt is enabled, all their events are cleared, reserved bits stay.
    assert_eq!(words[&(XHCI_LEGACY + 4)], 0xf234_1fee);
    assert_eq!(words[&0x20], 4);
    assert!(summary.to_string().ends_with("; took 1 USB controllers from firmware"));
}

#[test]
fn a_firmware_that_does_not_answer_is_overruled() {
    let (summary, log, words) = xhci(u32::MAX, 0x0001_0001);
    assert_eq!((summary.usb_taken, summary.usb_forced), (0, 1));
    assert_eq!(log, ["halt", "no bus master"]);
    assert_eq!(words[&XHCI_LEGACY], 0x0100_0001);
    assert!(summary.to_string().ends_with("(1 by force)"));
}

#[test]
fn a_free_xhci_is_only_stopped() {
    let (summary, log, _) = xhci(1, 0x0000_0001);
    assert_eq!((summary.usb_taken, summary.usb_forced), (0, 0));
    assert_eq!(log, ["halt", "no bus master"]);
}

#[test]
fn an_xhci_without_address_or_decoding_is_not_touched() {
    for (command, address) in [(ACTIVE, 0), (ACTIVE & !2, 0xfe80_0004)] {
        let mut f = device(Class::XHCI.0);
        (f[1], f[4]) = (command, address);
        let mut space = Space::with(&[(PORT, f)]);
        // It panics if registers are mapped.
        assert_eq!(space.silence(&Console::default()).masters, 1);
    }
}

fn ehci(firmware: u32) -> (Summary, [u32; 64], u32) {
    let mut f = device(Class::EHCI.0);
    f[4] = 0xfe90_0000;
    f[0x68 / 4] = 0x0001_0001;
    f[0x6c / 4] = 0xe000_2011;
    let mut space = Space::with(&[(PORT, f)]);
    space.firmware = Some((0x68, firmware));
    let log = space.log.clone();
    let words = Rc::new(RefCell::new(BTreeMap::from([(0, 0x0100_0020), (8, 0x6800), (0x20, 0x8_0031)])));
    let shared = words.clone();
    let summary = space.silence_with(&Console::default(), move |at, _| {
        assert_eq!(at, 0xfe90_0000);
        let (words, log) = (shared.clone(), log.clone());
        Box::new(Controller { words, legacy: 0, patience: 0, halted: (0x24, 1 << 12), log })
    });
    let command = words.borrow()[&0x20];
    (summary, *space.at(PORT), command)
}

#[test]
fn an_ehci_is_taken_through_configuration_space() {
    let (summary, f, command) = ehci(10);
    assert_eq!((summary.usb_taken, summary.usb_forced), (1, 0));
    assert_eq!((f[0x68 / 4], f[0x6c / 4], command), (0x0100_0001, 0, 0x8_0000));
    let (summary, f, command) = ehci(u32::MAX);
    assert_eq!((summary.usb_taken, summary.usb_forced), (0, 1));
    assert_eq!((f[0x68 / 4], f[0x6c / 4], command), (0x0100_0001, 0, 0x8_0000));
}

#[test]
fn xhci_capability_lists_end() {
    let mut f = device(Class::XHCI.0);
    f[4] = 0xfe80_0004;
    let mut space = Space::with(&[(PORT, f)]);
    struct Loop(u32);
    impl Registers for Loop {
        fn read(&mut self, offset: u64) -> u32 {
            self.0 += 1;
            assert!(self.0 < 1000, "reads without end");
            // Never the legacy capability, always another one behind.
            if offset == 0 { 0x20 } else { 1 << 16 | 1 << 8 | 3 }
        }
        fn write(&mut self, _: u64, _: u32) {}
        fn pause(&mut self) {}
    }
    space.silence_with(&Console::default(), |_, _| Box::new(Loop(0)));
}

fn window(segment: u16, base: u64, first_bus: u8, last_bus: u8) -> McfgSegment {
    McfgSegment { base: Hpa::new(base), segment, first_bus, last_bus }
}

#[test]
fn ports_reach_segment_zero_and_memory_the_others() {
    let zero = window(0, 0xe000_0000, 0, 255);
    let one = window(1, 0x10_0000_0000, 0x20, 0x3f);
    let bad = [window(2, 0, 0, 255), window(3, (1 << 52) - 4096, 0, 255), window(4, u64::MAX, 0, 0)];
    let all = [[zero, one].as_slice(), &bad].concat();
    let ports = Segment::Ports(0..=255);
    assert_eq!(plan(&all, true), [ports.clone(), Segment::Memory(one)]);
    assert_eq!(plan(&all, false), [Segment::Memory(zero), Segment::Memory(one)]);
    assert_eq!(plan(&[], true), [ports]);
    assert!(plan(&[], false).is_empty());
    assert_eq!(Segment::Memory(one).buses(), 0x20..=0x3f);
}

fn table(name: &[u8; 4], entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![0; 48];
    bytes[..4].copy_from_slice(name);
    entries.iter().for_each(|entry| bytes.extend(entry));
    bytes
}

/// An entry of `length` bytes whose unit has its registers at `base`.
fn unit(head: [u8; 6], length: usize, base: u64) -> Vec<u8> {
    let mut entry = vec![0; length];
    entry[..6].copy_from_slice(&head);
    entry[8..16].copy_from_slice(&base.to_le_bytes());
    entry
}

/// ACPI of these raw tables, one per 64 KiB, and the memory they lie in.
fn acpi(tables: Vec<Vec<u8>>) -> (Acpi, impl PhysRead) {
    let refs = tables.iter().enumerate().map(|(n, bytes)| TableRef {
        signature: Signature(bytes[..4].try_into().unwrap()),
        at: Hpa::new((n as u64) << 16),
        bytes: bytes.len(),
        revision: 1,
    });
    let acpi = Acpi { tables: refs.collect(), ..Acpi::default() };
    (acpi, move |at: Hpa, _: usize| tables.get((at.raw() >> 16) as usize).cloned())
}

#[test]
fn registers_of_the_platform_are_in_no_domains_map() {
    let (mut acpi, memory) = acpi(vec![
        table(
            b"DMAR",
            &[
                unit([0, 0, 16, 0, 0, 0], 16, 0xfed9_0000),
                unit([1, 0, 24, 0, 0, 0], 24, 0xdead_0000), // reserved memory, not a unit
                unit([0, 0, 16, 0, 0, 1], 16, 0xfed9_2000),
            ],
        ),
        table(
            b"IVRS",
            &[
                unit([0x10, 0, 24, 0, 0, 0], 24, 0xfd28_4000),
                unit([0x11, 0, 40, 0, 0, 0], 40, 0xfd28_4000), // the same, told again
                unit([0x20, 0, 32, 0, 0, 0], 32, 0xdead_0000), // a memory definition
                unit([0x40, 0, 40, 0, 0, 0], 40, 0xfd30_0000),
            ],
        ),
    ]);
    acpi.mcfg = vec![window(0, 0xe000_0000, 0, 255), window(1, 0x1000_0000, 0x10, 0x11)];
    acpi.hpet = Some(Hpet { at: Hpa::new(0xfed0_0000), id: 0, number: 0, min_tick: 0 });
    acpi.madt = Some(Madt {
        lapic: Hpa::new(0xfee0_0000),
        pcat_compat: true,
        cpus: vec![],
        io_apics: vec![IoApic { id: 0, at: Hpa::new(0xfec0_0000), gsi_base: 0 }],
        overrides: vec![],
        nmi_sources: vec![],
        local_nmis: vec![],
    });
    let found: Vec<_> = ranges(0xfee0_0000, Some(&acpi), &memory)
        .iter()
        .map(|r| (r.what, r.range.start().raw(), r.range.bytes()))
        .collect();
    assert_eq!(
        found,
        [
            (What::LocalApic, 0xfee0_0000, 1 << 20),
            (What::IoApic, 0xfec0_0000, 4096),
            (What::Hpet, 0xfed0_0000, 4096),
            (What::Ecam, 0xe000_0000, 256 << 20),
            (What::Ecam, 0x1100_0000, 2 << 20),
            (What::Iommu, 0xfed9_0000, 4096),
            (What::Iommu, 0xfed9_2000, 8192),
            (What::Iommu, 0xfd28_4000, 16 << 10),
            (What::Iommu, 0xfd30_0000, 512 << 10),
        ]
    );
    // A local APIC that was moved is reserved too; without ACPI only that is known.
    let moved = ranges(0xfed4_5000, None, &memory);
    assert_eq!(moved.iter().map(|r| r.range.start().raw()).collect::<Vec<_>>(), [0xfee0_0000, 0xfed4_5000]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_configuration_space_is_survived(
        words in proptest::collection::vec(any::<u32>(), 64),
        layout in 0u8..3,
        class in prop_oneof![Just(Class::XHCI.0), Just(Class::EHCI.0), Just(VGA), 0u32..1 << 24],
        registers in proptest::collection::vec(any::<u32>(), 16),
        screen in any::<u64>(),
        uart in any::<u16>(),
    ) {
        struct Noise(Vec<u32>);
        impl Registers for Noise {
            fn read(&mut self, offset: u64) -> u32 {
                self.0[offset as usize / 4 % self.0.len()]
            }
            fn write(&mut self, _: u64, _: u32) {}
            fn pause(&mut self) {}
        }
        let mut f: [u32; 64] = words.try_into().unwrap();
        f[0] = 0x1000_1000;
        f[2] = class << 8;
        f[3] = u32::from(layout) << 16;
        let mut space = Space::with(&[(PORT, f)]);
        let console = Console { framebuffer: Some(Hpa::new(screen)), vga_text: true, uarts: [Some(uart), None] };
        let summary = space.silence_with(&console, |_, _| Box::new(Noise(registers.clone())));
        prop_assert_eq!(summary.functions, 1);
        prop_assert!(space.reads < 40_000);
        prop_assert!(summary.kept == 1 || space.at(PORT)[1] & 4 == 0);
    }

    #[test]
    fn any_iommu_table_is_survived(
        name in prop_oneof![Just(*b"DMAR"), Just(*b"IVRS")],
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let (acpi, memory) = acpi(vec![table(&name, &[bytes])]);
        for reserved in ranges(0xfee0_0000, Some(&acpi), &memory) {
            prop_assert!(reserved.range.bytes() > 0 && reserved.range.bytes() % 4096 == 0);
        }
    }
}
