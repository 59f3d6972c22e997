//! Register accesses: the x2APIC's #GP rules bit by bit, the page's sizes and alignments, IPIs.

use super::*;

/// SDM vol. 3, "Local APIC Register Address Map Supported by x2APIC", and the register layouts it names
/// (for LVTs: writable, or read-only status). Number, readable, bits that may be set if writable.
const X2APIC_MAP: &[(u8, bool, Option<u64>)] = &[
    (0x02, true, None),
    (0x03, true, None),
    (0x08, true, Some(0xff)),
    (0x0a, true, None),
    (0x0b, false, Some(0)),
    (0x0d, true, None),
    (0x0f, true, Some(0x3ff)),
    (0x28, true, Some(0)),
    (0x30, true, Some(0xffff_ffff_000c_dfff)),
    (0x32, true, Some(0x7_10ff)),
    (0x33, true, Some(0x1_17ff)),
    (0x34, true, Some(0x1_17ff)),
    (0x35, true, Some(0x1_f7ff)),
    (0x36, true, Some(0x1_f7ff)),
    (0x37, true, Some(0x1_17ff)),
    (0x38, true, Some(0xffff_ffff)),
    (0x39, true, None),
    (0x3e, true, Some(0xb)),
    (0x3f, false, Some(0xff)),
];

fn x2apic_rule(reg: u8) -> (bool, Option<u64>) {
    if (0x10..=0x27).contains(&reg) {
        return (true, None);
    }
    X2APIC_MAP.iter().find(|row| row.0 == reg).map_or((false, None), |row| (row.1, row.2))
}

#[test]
fn x2apic_faults_bit_by_bit() {
    for reg in 0..=0xff {
        let (readable, writable) = x2apic_rule(reg);
        let (mut apic, _) = x2apic(5);
        assert_eq!(rdmsr(&mut apic, Reg(reg)).is_ok(), readable, "read {reg:#x}");
        assert_eq!(wrmsr(&mut apic, Reg(reg), 0).is_ok(), writable.is_some(), "write {reg:#x}");
        for bit in 0..64 {
            let (mut apic, _) = x2apic(5);
            let allowed = writable.is_some_and(|bits| bits & 1 << bit != 0);
            let done = wrmsr(&mut apic, Reg(reg), 1 << bit);
            assert_eq!(done.is_ok(), allowed, "write bit {bit} of {reg:#x}");
        }
    }
}

#[test]
fn a_faulting_write_changes_nothing() {
    let (mut apic, _) = x2apic(5);
    assert_eq!(wrmsr(&mut apic, Reg::LVT_TIMER, 0x8_0030), Err(Gp));
    assert_eq!(rdmsr(&mut apic, Reg::LVT_TIMER), Ok(0x1_0000));
    assert_eq!(wrmsr(&mut apic, Reg::SVR, 0x1000), Err(Gp));
    assert_eq!(rdmsr(&mut apic, Reg::SVR), Ok(0x1ff));
    apic.accept(0x40);
    assert!(apic.ack(0x40));
    assert_eq!(wrmsr(&mut apic, Reg::EOI, 1), Err(Gp));
    assert!(apic.is_in_service(0x40));
}

#[test]
fn x2apic_msrs_exist_only_in_x2apic_mode() {
    let (mut apic, _) = xapic(1);
    assert_eq!(rdmsr(&mut apic, Reg::ID), Err(Gp));
    assert_eq!(wrmsr(&mut apic, Reg::EOI, 0), Err(Gp));
    assert_eq!(apic.write_base(0xfee0_0000), Ok(Effect::BaseChanged));
    assert_eq!(rdmsr(&mut apic, Reg::ID), Err(Gp));
    assert_eq!(apic.rdmsr(0x7ff, &T0), Err(Gp));
    assert!(!owns_msr(0x7ff) && owns_msr(0x800) && owns_msr(0x1b) && owns_msr(0x6e0) && !owns_msr(0x900));
}

#[test]
fn without_tsc_deadline_neither_msr_nor_mode_exist() {
    let mut apic = Vlapic::new(Config { tsc_deadline: false, ..config(0) });
    assert_eq!(apic.rdmsr(MSR_TSC_DEADLINE, &T0), Err(Gp));
    assert_eq!(apic.wrmsr(MSR_TSC_DEADLINE, 1, &T0), Err(Gp));
    _ = write(&mut apic, Reg::LVT_TIMER, 0x7_0030);
    assert_eq!(read(&mut apic, Reg::LVT_TIMER), 0x3_0030);
    assert!(apic.write_base(0xfee0_0c00).is_ok());
    assert_eq!(wrmsr(&mut apic, Reg::LVT_TIMER, 0x4_0030), Err(Gp));
}

#[test]
fn identity_in_both_modes() {
    let (mut apic, _) = xapic(0x123);
    assert_eq!(read(&mut apic, Reg::ID), 0x2300_0000);
    assert_eq!(read(&mut apic, Reg::VERSION), 0x5_0010);
    _ = write(&mut apic, Reg::ID, 0xff00_0000);
    assert_eq!(read(&mut apic, Reg::ID), 0x2300_0000, "the id is fixed");
    _ = write(&mut apic, Reg::LDR, 0xabcd_ef01);
    assert_eq!(read(&mut apic, Reg::LDR), 0xab00_0000);
    assert_eq!(read(&mut apic, Reg::DFR), 0xffff_ffff);
    _ = write(&mut apic, Reg::DFR, 0);
    assert_eq!(read(&mut apic, Reg::DFR), 0x0fff_ffff);
    let (mut apic, _) = x2apic(0x123);
    assert_eq!(rdmsr(&mut apic, Reg::ID), Ok(0x123));
    assert_eq!(rdmsr(&mut apic, Reg::LDR), Ok(0x12_0008));
}

#[test]
fn only_whole_aligned_registers_are_written() {
    let (mut apic, _) = xapic(0);
    for (offset, size) in [(0x80, 1), (0x80, 2), (0x80, 8), (0x81, 4), (0x84, 4), (0x7e, 4), (0x80, 0)] {
        assert_eq!(apic.mmio_write(offset, size, 0x3030_3030_3030, &T0), Effect::None);
        assert_eq!(apic.tpr(), 0, "{offset:#x} {size}");
    }
    _ = apic.mmio_write(0x80, 4, 0xffff_ffff_0000_0030, &T0);
    assert_eq!(apic.tpr(), 0x30);
    _ = apic.mmio_write(0x1080, 4, 0x40, &T0); // only the offset within the page counts
    assert_eq!(apic.tpr(), 0x40);
}

#[test]
fn reads_of_any_size_stay_within_the_register() {
    let (mut apic, _) = xapic(0);
    for (offset, size, value) in [
        (0x30, 4, 0x5_0010),
        (0x30, 1, 0x10),
        (0x32, 1, 0x05),
        (0x31, 2, 0x0500),
        (0x30, 8, 0x5_0010),
        (0x32, 4, 0x5),
        (0x34, 4, 0),
        (0x38, 8, 0),
        (0x3c, 8, 0), // across the border
        (0x30, 0, 0x10),
        (0x2f, 255, 0),
    ] {
        assert_eq!(apic.mmio_read(offset, size, &T0), value, "{offset:#x} {size}");
    }
}

#[test]
fn the_page_is_not_there_in_other_modes() {
    let (mut apic, _) = x2apic(0);
    assert_eq!(apic.mmio_read(0x30, 4, &T0), 0xffff_ffff);
    assert_eq!(apic.mmio_read(0x30, 8, &T0), u64::MAX);
    assert_eq!(apic.mmio_write(0x80, 4, 0x30, &T0), Effect::None);
    assert_eq!(apic.tpr(), 0);
}

#[test]
fn registers_that_are_not_there_are_errors_of_the_page() {
    for reg in 0..=0xffu8 {
        let (mut apic, _) = xapic(0);
        read(&mut apic, Reg(reg));
        _ = write(&mut apic, Reg::ESR, 0);
        let there = matches!(reg, 2 | 3 | 0x8..=0x28 | 0x30..=0x39 | 0x3e);
        assert_eq!(read(&mut apic, Reg::ESR), if there { 0 } else { 1 << 7 }, "read {reg:#x}");
        let (mut apic, _) = xapic(0);
        _ = write(&mut apic, Reg(reg), 0x1_0010);
        _ = write(&mut apic, Reg::ESR, 0);
        // 0x30: vector 16 to APIC 0 is a message, not an error.
        assert_eq!(read(&mut apic, Reg::ESR), if there { 0 } else { 1 << 7 }, "write {reg:#x}");
    }
}

#[test]
fn the_lvt_keeps_its_writable_bits() {
    for (reg, kept) in
        [(0x32, 0x7_00ff), (0x33, 0x1_07ff), (0x34, 0x1_07ff), (0x35, 0x1_a7ff), (0x37, 0x1_07ff)]
    {
        let (mut apic, _) = xapic(0);
        assert_eq!(read(&mut apic, Reg(reg)), 0x1_0000, "after reset");
        _ = write(&mut apic, Reg(reg), u32::MAX);
        assert_eq!(read(&mut apic, Reg(reg)), kept);
    }
}

fn ipi(effect: Effect) -> Ipi {
    match effect {
        Effect::Ipi(ipi) => ipi,
        other => panic!("{other:?}"),
    }
}

#[test]
fn icr_in_both_formats() {
    let (mut apic, _) = xapic(0);
    assert_eq!(write(&mut apic, Reg::ICR_HIGH, 0x0712_3456), Effect::None);
    let sent = ipi(write(&mut apic, Reg::ICR_LOW, 0x48e1));
    assert_eq!(sent.dest, Destination { value: 7, logical: true, wide: false });
    assert_eq!((sent.mode, sent.vector, sent.shorthand), (DeliveryMode::Fixed, 0xe1, Shorthand::None));
    assert_eq!(read(&mut apic, Reg::ICR_HIGH), 0x0700_0000);
    assert_eq!(read(&mut apic, Reg::ICR_LOW), 0x48e1);
    _ = write(&mut apic, Reg::ICR_LOW, 0xffff_f0e1);
    assert_eq!(read(&mut apic, Reg::ICR_LOW), 0x000c_c0e1);

    let (mut apic, _) = x2apic(0);
    let sent = ipi(wrmsr(&mut apic, Reg::ICR_LOW, 0x0001_0002_0000_10e2).unwrap());
    assert_eq!(sent.dest, Destination { value: 0x1_0002, logical: false, wide: true });
    assert_eq!(rdmsr(&mut apic, Reg::ICR_LOW), Ok(0x0001_0002_0000_00e2), "never busy");
}

#[test]
fn messages_without_effect_send_nothing() {
    for (low, why) in [
        (0x8500, "INIT level de-assert"),
        (0xc200 & !0x4000 | 0x8000, "SMI"),
        (0x4200, "SMI"),
        (0x4330, "remote read"),
        (0x4730, "ExtINT"),
        (0x4_4500, "INIT to self"),
        (0x4_4400, "NMI to self"),
        (0x8_4610, "start-up to all and self"),
        (0x8_4130, "lowest priority to all and self"),
        (0x8030, "level de-assert"),
    ] {
        let (mut apic, _) = xapic(0);
        assert_eq!(write(&mut apic, Reg::ICR_LOW, low), Effect::None, "{why}");
        _ = write(&mut apic, Reg::ESR, 0);
        assert_eq!(read(&mut apic, Reg::ESR), 0, "{why}");
    }
    for (low, mode) in [
        (0x4500, DeliveryMode::Init),
        (0xc500, DeliveryMode::Init), // level assert
        (0xc_4500, DeliveryMode::Init),
        (0x4608, DeliveryMode::Startup),
        (0x4400, DeliveryMode::Nmi),
        (0x0030, DeliveryMode::Fixed), // the level bit means nothing for edges
        (0x4130, DeliveryMode::LowestPriority),
        (0xc_4130, DeliveryMode::LowestPriority),
        (0x8_4030, DeliveryMode::Fixed),
    ] {
        let (mut apic, _) = xapic(0);
        assert_eq!(ipi(write(&mut apic, Reg::ICR_LOW, low)).mode, mode);
    }
}

#[test]
fn self_ipis_arrive_at_once() {
    let (mut apic, _) = xapic(0);
    assert_eq!(write(&mut apic, Reg::ICR_LOW, 0x4_4033), Effect::None);
    assert!(apic.is_requested(0x33));
    let (mut apic, _) = x2apic(0);
    assert_eq!(wrmsr(&mut apic, Reg::SELF_IPI, 0x44), Ok(Effect::None));
    assert!(apic.is_requested(0x44));
    assert_eq!(wrmsr(&mut apic, Reg::SELF_IPI, 0x0f), Ok(Effect::None));
    assert_eq!(wrmsr(&mut apic, Reg::ESR, 0), Ok(Effect::None));
    assert_eq!(rdmsr(&mut apic, Reg::ESR), Ok(1 << 5));
}

#[test]
fn msis_decode() {
    let msi = Ipi::from_msi(0xfee0_3000, 0x0041).unwrap();
    assert_eq!(msi.dest, Destination { value: 3, logical: false, wide: false });
    assert_eq!((msi.mode, msi.vector, msi.level), (DeliveryMode::Fixed, 0x41, false));
    let msi = Ipi::from_msi(0xfeef_f00c, 0xc141).unwrap();
    assert!(msi.dest.logical && msi.dest.is_broadcast() && msi.level);
    assert_eq!(msi.mode, DeliveryMode::LowestPriority);
    assert_eq!(Ipi::from_msi(0xfee0_0000, 0x8041), None, "level de-assert");
    assert_eq!(Ipi::from_msi(0xfed0_0000, 0x41), None);
    assert_eq!(Ipi::from_msi(0xfee0_0000, 0x741), None, "ExtINT");
}
