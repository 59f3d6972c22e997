use super::*;
use crate::E820Type;
use crate::acpi::{Acpi, GenericAddress, Rsdp, SleepType, SpaceId};
use crate::bytes::{u32_at, u64_at};
use addr::Hpa;
use alloc::vec;
use proptest::prelude::*;

#[test]
fn start_info_as_the_header_lays_it_out() {
    let info = StartInfo {
        flags: SIF_PRIVILEGED,
        modules: vec![
            StartModule { addr: Gpa::new(0x800_0000), bytes: 0x1234, cmdline: "".into() },
            StartModule { addr: Gpa::new(0x900_0000), bytes: 0x10, cmdline: "for l2".into() },
        ],
        cmdline: "console=hvc0".into(),
        rsdp: Some(Gpa::new(0xfc00_0000)),
        memmap: vec![
            Region::new(Gpa::ZERO, 0x1000_0000, E820Type::RAM),
            Region::new(Gpa::new(0xfc00_0000), 0x1000, E820Type::ACPI),
        ],
    };
    let base = 0x7000u64;
    let blob = info.build(Gpa::new(base));
    let at = |gpa: u64| (gpa - base) as usize;
    let string = |gpa: u64| {
        let bytes = &blob[at(gpa)..];
        core::str::from_utf8(&bytes[..bytes.iter().position(|b| *b == 0).unwrap()]).unwrap()
    };
    let quad = |at: usize| u64_at(&blob, at).unwrap();
    let words: Vec<_> = (0..4).map(|i| u32_at(&blob, i * 4).unwrap()).collect();
    assert_eq!(words, [0x336e_c578, 1, 1, 2]);
    let modules = at(quad(16));
    assert_eq!(string(quad(24)), "console=hvc0");
    assert_eq!(quad(32), 0xfc00_0000);
    let map = at(quad(40));
    assert_eq!(u32_at(&blob, 48), Some(2));
    assert_eq!((quad(modules), quad(modules + 8), quad(modules + 16)), (0x800_0000, 0x1234, 0));
    assert_eq!((quad(modules + 32), quad(modules + 40)), (0x900_0000, 0x10));
    assert_eq!(string(quad(modules + 48)), "for l2");
    assert_eq!((quad(map), quad(map + 8), quad(map + 16)), (0, 0x1000_0000, 1));
    assert_eq!((quad(map + 24), quad(map + 32), quad(map + 40)), (0xfc00_0000, 0x1000, 3));
    assert_eq!(info.pages_bytes(), 0x1000);
}

#[test]
fn an_empty_start_info_points_nowhere() {
    let blob = StartInfo::default().build(Gpa::new(0x1000));
    assert_eq!(blob.len(), 56);
    assert!((16..48).step_by(8).all(|at| u64_at(&blob, at) == Some(0)));
}

#[test]
fn e820_entries_are_packed() {
    let bytes = e820(&[
        Region::new(Gpa::ZERO, 0xa0000, E820Type::RAM),
        Region::new(Gpa::new(0xa0000), 0x60000, E820Type::RESERVED),
    ]);
    assert_eq!(bytes.len(), 40);
    assert_eq!(
        (u64_at(&bytes, 20), u64_at(&bytes, 28), u32_at(&bytes, 36)),
        (Some(0xa0000), Some(0x60000), Some(2))
    );
}

/// What our own parser makes of the tables.
fn read_back(base: u64, vcpus: u32, options: &AcpiOptions) -> Acpi {
    let blob = guest_acpi(Gpa::new(base), vcpus, options);
    let memory = |at: Hpa, bytes: usize| {
        let from = usize::try_from(at.raw().checked_sub(base)?).ok()?;
        Some(blob.get(from..from.checked_add(bytes)?)?.to_vec())
    };
    let acpi = Acpi::read(&memory, &Rsdp::parse(&blob).unwrap()).unwrap();
    assert_eq!(acpi.damaged, []);
    acpi
}

#[test]
fn tables_of_a_small_guest() {
    let acpi = read_back(0xfc00_0000, 3, &AcpiOptions::default());
    let madt = acpi.madt.unwrap();
    assert_eq!(madt.lapic, Hpa::new(0xfee0_0000));
    assert!(!madt.pcat_compat && madt.io_apics.is_empty());
    let cpus: Vec<_> = madt.cpus.iter().map(|cpu| (cpu.uid, cpu.apic_id, cpu.enabled)).collect();
    assert_eq!(cpus, [(0, 0, true), (1, 2, true), (2, 4, true)]);
    let fadt = acpi.fadt.unwrap();
    assert!(fadt.hardware_reduced());
    assert_eq!((fadt.pm1a_event, fadt.pm1a_control, fadt.pm_timer), (None, None, None));
    assert_eq!((fadt.reset, fadt.sleep_control, acpi.s5), (None, None, None));
    assert_eq!(fadt.boot_arch, 0x24);
    assert_eq!(acpi.tables.len(), 3, "FADT, MADT, DSDT");
}

#[test]
fn many_vcpus_have_x2apic_ids_from_255_on() {
    let madt = read_back(0xfc00_0000, 300, &AcpiOptions::default()).madt.unwrap();
    assert_eq!(madt.cpus.len(), 300);
    assert!(madt.cpus.iter().enumerate().all(|(i, cpu)| cpu.uid == i as u32 && cpu.apic_id == 2 * cpu.uid));
    let blob = guest_acpi(Gpa::new(0xfc00_0000), 300, &AcpiOptions::default());
    let kinds: Vec<u8> = {
        let mut list = &blob[448 + 44..];
        core::iter::from_fn(|| {
            let kind = list[0];
            list = &list[usize::from(list[1])..];
            Some(kind)
        })
        .take(300)
        .collect()
    };
    assert!(kinds[..128].iter().all(|kind| *kind == 0) && kinds[128..].iter().all(|kind| *kind == 9));
}

#[test]
fn sleep_and_reset_registers_are_found_again() {
    let options = AcpiOptions {
        sleep: Some(SleepPorts { control: 0x600, status: 0x601, s5: 5 }),
        reset: Some(ResetPort { port: 0xcf9, value: 6 }),
    };
    // Above 4 GiB, too: then only the wide pointers hold.
    let acpi = read_back(0x1_fc00_0000, 1, &options);
    let fadt = acpi.fadt.unwrap();
    let port = |address| GenericAddress { space: SpaceId::IO, bits: 8, bit_offset: 0, access: 1, address };
    assert_eq!(fadt.reset, Some((port(0xcf9), 6)));
    assert_eq!((fadt.sleep_control, fadt.sleep_status), (Some(port(0x600)), Some(port(0x601))));
    assert_eq!(acpi.s5, Some(SleepType { a: 5, b: 0 }));
}

proptest! {
    #[test]
    fn no_base_or_count_panics(base in any::<u64>(), vcpus in prop_oneof![0u32..600, Just(u32::MAX)]) {
        let blob = guest_acpi(Gpa::new(base), vcpus, &AcpiOptions::default());
        prop_assert!(blob.len() < 80 << 10);
        let info = StartInfo { cmdline: "x\0y".into(), ..StartInfo::default() };
        prop_assert!(info.build(Gpa::new(base)).ends_with(b"x\0"));
    }
}
