use super::*;
use alloc::collections::BTreeMap;
use alloc::vec;
use proptest::prelude::*;

/// A root pointer of the given revision.
pub(crate) fn rsdp(revision: u8, rsdt: u32, xsdt: u64) -> Vec<u8> {
    let mut out = b"RSD PTR \0TESTED".to_vec();
    out.push(revision);
    out.extend(rsdt.to_le_bytes());
    out[8] = 0u8.wrapping_sub(sum(&out));
    if revision >= 2 {
        out.extend(36u32.to_le_bytes());
        out.extend(xsdt.to_le_bytes());
        out.extend([0; 4]);
        out[32] = 0u8.wrapping_sub(sum(&out));
    }
    out
}

fn sealed(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut out = signature.to_vec();
    out.extend((body.len() as u32 + 36).to_le_bytes());
    out.extend([1, 0]);
    out.extend([0x20; 26]);
    out.extend(body);
    out[9] = 0u8.wrapping_sub(sum(&out));
    out
}

/// A memory of some tables, as a machine has it.
fn machine(tables: &[(u64, Vec<u8>)]) -> impl Fn(Hpa, usize) -> Option<Vec<u8>> + use<> {
    let tables: BTreeMap<u64, Vec<u8>> = tables.iter().cloned().collect();
    move |at: Hpa, bytes: usize| {
        let (start, table) = tables.range(..=at.raw()).next_back()?;
        let from = (at.raw() - start) as usize;
        Some(table.get(from..from.checked_add(bytes)?)?.to_vec())
    }
}

fn xsdt(list: &[u64]) -> Vec<u8> {
    sealed(b"XSDT", &list.iter().flat_map(|at| at.to_le_bytes()).collect::<Vec<_>>())
}

/// A table with values at given offsets of the whole table.
fn with(signature: &[u8; 4], length: usize, fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut body = vec![0; length - 36];
    fields.iter().for_each(|(at, bytes)| body[at - 36..][..bytes.len()].copy_from_slice(bytes));
    sealed(signature, &body)
}

const MADT: &[u8] = &[
    0, 0, 0xe0, 0xfe, 1, 0, 0, 0, // LAPIC address, PC-AT compatible
    0, 8, 0, 0, 1, 0, 0, 0, // CPU uid 0, APIC id 0, enabled
    0, 8, 1, 2, 2, 0, 0, 0, // CPU uid 1, APIC id 2, online capable
    0, 8, 2, 0xff, 0, 0, 0, 0, // unused
    1, 12, 5, 0, 0, 0, 0xc0, 0xfe, 24, 0, 0, 0, // I/O APIC 5
    2, 10, 0, 0, 2, 0, 0, 0, 0, 0, // IRQ 0 is GSI 2
    2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0, // IRQ 9 level, high
    3, 8, 0x0f, 0, 7, 0, 0, 0, // GSI 7 is NMI
    4, 6, 0xff, 5, 0, 1, // LINT1 of all
    9, 16, 0, 0, 0x2c, 1, 0, 0, 1, 0, 0, 0, 0x96, 0, 0, 0, // x2APIC 300, uid 150
    9, 16, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, // APIC id 2 again, now enabled
    10, 12, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, // LINT0 of uid 150
    5, 12, 0, 0, 0, 0, 0, 0xfe, 1, 0, 0, 0, // LAPIC at 0x1_fe00_0000
    0x7f, 3, 0, // unknown
];

#[test]
fn root_pointers_of_both_versions() {
    let old = Rsdp::parse(&rsdp(0, 0x1234, 0)).unwrap();
    assert_eq!((old.rsdt, old.xsdt), (Hpa::new(0x1234), None));
    let new = Rsdp::parse(&rsdp(2, 0x1234, 0x1_0000_5678)).unwrap();
    assert_eq!(new.xsdt, Some(Hpa::new(0x1_0000_5678)));
    for at in 0..36 {
        let mut torn = rsdp(2, 0x1234, 0x5678);
        torn[at] ^= 0x40;
        assert!(Rsdp::parse(&torn).is_err(), "byte {at}");
    }
    assert_eq!(Rsdp::parse(b"RSD PTR "), Err(AcpiError::Length(Signature::RSDP)));
}

#[test]
fn a_bios_leaves_the_root_pointer_in_two_areas() {
    let pointer = rsdp(2, 1, 2);
    let mut rom = vec![0; 0x20000];
    rom[0x50..][..36].copy_from_slice(&pointer);
    let mut ebda = vec![0; 0x400];
    ebda[0x3dc..].copy_from_slice(&rsdp(2, 3, 4));
    let vector = |segment: u16| (0x40e, segment.to_le_bytes().to_vec());
    let found = |tables: &[(u64, Vec<u8>)]| Rsdp::search(&machine(tables)).map(|found| found.rsdt.raw());
    assert_eq!(found(&[vector(0), (0xe0000, rom.clone())]), Ok(1));
    // At 0x3dc the pointer is not at a multiple of 16; at 0x3d0 it is.
    assert_eq!(found(&[vector(0x9fc0), (0x9fc00, ebda.clone()), (0xe0000, rom.clone())]), Ok(1));
    ebda.rotate_left(12);
    assert_eq!(found(&[vector(0x9fc0), (0x9fc00, ebda), (0xe0000, rom)]), Ok(3));
    assert_eq!(found(&[vector(0)]), Err(AcpiError::NoRsdp));
}

#[test]
fn madt_of_every_entry_type() {
    let madt = Madt::parse(&sealed(b"APIC", MADT)).unwrap();
    assert_eq!(madt.lapic, Hpa::new(0x1_fe00_0000));
    assert!(madt.pcat_compat);
    let cpu = |uid, apic_id| Cpu { uid, apic_id, enabled: true, online_capable: false };
    assert_eq!(madt.cpus, [cpu(0, 0), cpu(1, 2), cpu(150, 300)]);
    assert_eq!(madt.io_apics, [IoApic { id: 5, at: Hpa::new(0xfec0_0000), gsi_base: 24 }]);
    assert_eq!(madt.overrides[0], Override { irq: 0, gsi: 2, flags: IntFlags(0) });
    let flags = madt.overrides[1].flags;
    assert_eq!((flags.active_low(), flags.level()), (Some(false), Some(true)));
    assert_eq!(madt.nmi_sources, [(7, IntFlags(15))]);
    assert_eq!(madt.local_nmis[0], LocalNmi { cpus: CpuIds::All, lint: 1, flags: IntFlags(5) });
    assert_eq!(madt.local_nmis[1], LocalNmi { cpus: CpuIds::Uid(150), lint: 0, flags: IntFlags(0) });
}

#[test]
fn an_entry_of_length_zero_ends_the_table() {
    let mut list = MADT[..16].to_vec();
    list.extend([0, 0, 1, 1, 1, 0, 0, 0]);
    assert_eq!(Madt::parse(&sealed(b"APIC", &list)).unwrap().cpus.len(), 1);
}

/// A DSDT that switches off by 5 in PM1a and 3 in PM1b.
fn dsdt() -> Vec<u8> {
    sealed(b"DSDT", b"\x10\x05_SB_\x08_S5_\x12\x08\x04\x0a\x05\x0a\x03\x00\x00")
}

#[test]
fn a_whole_machine() {
    let fadt = with(
        b"FACP",
        276,
        &[
            (40, &[0, 0x30, 0, 0]),
            (46, &[9]),
            (56, &[0, 6, 0, 0]),
            (64, &[4, 6, 0, 0]),
            (76, &[8, 6, 0, 0]),
            (88, &[4, 2, 0, 4]),
            (109, &[0x28]),
            (112, &[0, 5, 0, 0]),
            (116, &[1, 8, 0, 1, 0xf9, 0x0c]),
            (128, &[6]),
            (208, &[1, 32, 0, 3, 8, 0xb0]),
        ],
    );
    let mcfg = with(b"MCFG", 60, &[(44, &[0, 0, 0, 0xb0, 0, 0, 0, 0, 0, 0, 0, 0xff])]);
    let hpet = with(b"HPET", 56, &[(36, &[1, 0xa2, 0x86, 0x80]), (44, &[0, 0, 0xd0, 0xfe]), (53, &[128])]);
    let srat = with(
        b"SRAT",
        128,
        &[
            (48, &[0, 16, 1, 4, 1, 0, 0, 0, 0, 2, 0, 0]),
            (64, &[1, 40, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]),
            (92, &[3]),
            (104, &[2, 24, 0, 0, 9, 0, 0, 0, 0x2c, 1, 0, 0, 1]),
        ],
    );
    let mut torn = sealed(b"WXYZ", &[]);
    torn[20] ^= 1;
    let memory = machine(&[
        (0x1000, xsdt(&[0x2000, 0x4000, 0x5000, 0x6000, 0x7000, 0x8000, 0xdead_0000, 0])),
        (0x2000, fadt),
        (0x3000, dsdt()),
        (0x4000, sealed(b"APIC", MADT)),
        (0x5000, mcfg),
        (0x6000, hpet),
        (0x7000, srat),
        (0x8000, torn),
    ]);
    let acpi = Acpi::read(&memory, &Rsdp::parse(&rsdp(2, 0, 0x1000)).unwrap()).unwrap();
    assert_eq!(
        acpi.damaged,
        [AcpiError::Checksum(Signature(*b"WXYZ")), AcpiError::Length(Signature(*b"????"))]
    );
    let names: Vec<_> = acpi.tables.iter().map(|table| table.signature).collect();
    use Signature as S;
    assert_eq!(names, [S::FADT, S::MADT, S::MCFG, S::HPET, S::SRAT, S::DSDT]);
    let fadt = acpi.fadt.unwrap();
    let port = |address, bits, access| {
        Some(GenericAddress { space: SpaceId::IO, bits, bit_offset: 0, access, address })
    };
    assert_eq!((fadt.sci, fadt.boot_arch, fadt.hardware_reduced()), (9, 0x28, false));
    assert_eq!((fadt.pm1a_event, fadt.pm1a_control), (port(0x600, 32, 0), port(0x604, 16, 0)));
    assert_eq!((fadt.pm1b_event, fadt.pm1b_control), (None, None));
    // The newer address wins over port 0x608.
    assert_eq!(fadt.pm_timer, port(0xb008, 32, 3));
    assert_eq!(fadt.reset, port(0xcf9, 8, 1).map(|register| (register, 6)));
    assert_eq!(acpi.s5, Some(SleepType { a: 5, b: 3 }));
    assert_eq!(
        acpi.mcfg,
        [McfgSegment { base: Hpa::new(0xb000_0000), segment: 0, first_bus: 0, last_bus: 255 }]
    );
    assert_eq!(acpi.hpet.map(|hpet| (hpet.at, hpet.min_tick)), Some((Hpa::new(0xfed0_0000), 128)));
    let srat = acpi.srat.unwrap();
    assert_eq!(srat.cpus, [CpuAffinity { apic_id: 4, node: 0x201 }, CpuAffinity { apic_id: 300, node: 9 }]);
    assert_eq!(
        srat.memory,
        [MemoryAffinity { start: Hpa::new(1 << 24), end: Hpa::new(3 << 24), node: 2, hotplug: true }]
    );
}

#[test]
fn the_old_root_table_serves_where_the_new_is_damaged() {
    let mut torn = xsdt(&[0x4000]);
    torn[36] ^= 1;
    let rsdt = sealed(b"RSDT", &0x4000u32.to_le_bytes());
    let memory = machine(&[(0x1000, torn), (0x2000, rsdt), (0x4000, sealed(b"APIC", MADT))]);
    let read = |pointer: &[u8]| Acpi::read(&memory, &Rsdp::parse(pointer).unwrap());
    assert!(read(&rsdp(2, 0x2000, 0x1000)).unwrap().madt.is_some());
    assert!(read(&rsdp(0, 0x2000, 0)).unwrap().madt.is_some());
    assert_eq!(read(&rsdp(2, 0, 0x1000)), Err(AcpiError::Checksum(Signature::XSDT)));
    assert_eq!(read(&rsdp(0, 0x4000, 0)), Err(AcpiError::WrongTable(Signature::RSDT)));
}

#[test]
fn sleep_types_in_all_their_encodings() {
    for (aml, want) in [
        (&b"\x08_S5_\x12\x06\x04\x00\x00\x00\x00"[..], Some((0, 0))),
        (b"\x08\\_S5_\x12\x07\x04\x0a\x07\x01\x00\x00", Some((7, 1))),
        (b"\x08_S5_\x12\x40\x07\x02\x0b\x05\x00\x0a\x06", Some((5, 6))),
        (b"\x08_S5_\x12\x0c\x02\x0c\x05\x00\x00\x00\x01", Some((5, 1))),
        (b"\x08_S5_\x12\x06\x01\x0b\x05\x04", Some((5, 4))),
        // A mention that is not a name, then the name.
        (b"\x10_S5_\x12\x06\x04\x00\x08_S5_\x12\x06\x04\x01\x01", Some((1, 1))),
        (b"\x08_S5_\x12\x06\x00", None),
        (b"\x08_S5_\x12\x06\x04\x0a", None),
        (b"_S5_", None),
    ] {
        assert_eq!(SleepType::find(aml).map(|found| (found.a, found.b)), want, "{aml:x?}");
    }
}

#[test]
fn a_table_that_claims_too_much_is_not_read() {
    let mut huge = sealed(b"APIC", MADT);
    huge[4..8].copy_from_slice(&(MAX_TABLE as u32 + 1).to_le_bytes());
    let memory = machine(&[(0x1000, xsdt(&[0x4000])), (0x4000, huge)]);
    let acpi = Acpi::read(&memory, &Rsdp::parse(&rsdp(2, 0, 0x1000)).unwrap()).unwrap();
    assert_eq!(acpi.damaged, [AcpiError::Length(Signature::MADT)]);
}

proptest! {
    #[test]
    fn no_table_panics(which in 0usize..6, body in prop::collection::vec(any::<u8>(), 0..300)) {
        let name = [b"APIC", b"FACP", b"MCFG", b"HPET", b"SRAT", b"SSDT"][which];
        let memory = machine(&[(0x1000, xsdt(&[0x4000])), (0x4000, sealed(name, &body))]);
        let pointer = Rsdp { revision: 2, rsdt: Hpa::ZERO, xsdt: Some(Hpa::new(0x1000)) };
        prop_assert!(Acpi::read(&memory, &pointer).is_ok());
    }

    #[test]
    fn no_memory_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0u64..64) {
        let _ = Rsdp::parse(&bytes);
        let memory = machine(&[(0, bytes)]);
        let pointer = Rsdp { revision: 2, rsdt: Hpa::new(at), xsdt: Some(Hpa::new(at + 1)) };
        let _ = Acpi::read(&memory, &pointer);
        let _ = Rsdp::search(&memory);
    }
}
