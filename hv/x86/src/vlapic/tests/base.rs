//! `MSR_APIC_BASE`, reset and INIT.

use super::*;

const OFF: u64 = 0xfee0_0000;
const XAPIC: u64 = 0xfee0_0800;
const X2APIC: u64 = 0xfee0_0c00;

/// An APIC brought into the mode that `base` says.
fn in_mode(base: u64) -> Vlapic {
    let mut apic = Vlapic::new(config(0));
    if base != XAPIC {
        assert_eq!(apic.write_base(base), Ok(Effect::BaseChanged));
    }
    apic
}

#[test]
fn transitions_as_the_manual_draws_them() {
    // SDM vol. 3, "x2APIC State Transitions".
    for (from, to, allowed) in [
        (OFF, OFF, true),
        (OFF, XAPIC, true),
        (OFF, X2APIC, false),
        (XAPIC, OFF, true),
        (XAPIC, XAPIC, true),
        (XAPIC, X2APIC, true),
        (X2APIC, OFF, true),
        (X2APIC, XAPIC, false),
        (X2APIC, X2APIC, true),
    ] {
        let mut apic = in_mode(from);
        let expected = match allowed {
            false => Err(Gp),
            true if from == to => Ok(Effect::None),
            true => Ok(Effect::BaseChanged),
        };
        assert_eq!(apic.write_base(to), expected, "{from:#x} to {to:#x}");
        assert_eq!(apic.read_base(), if allowed { to } else { from } | 0x100);
        // EXTD without enable is invalid from everywhere.
        assert_eq!(in_mode(from).write_base(0xfee0_0400), Err(Gp));
    }
}

#[test]
fn reserved_bits_fault() {
    for bit in 0..64 {
        let fine = bit == 8 || bit == 10 || bit == 11 || (12..40).contains(&bit);
        let mut apic = Vlapic::new(config(0));
        assert_eq!(apic.write_base(XAPIC | 1 << bit).is_ok(), fine, "{bit}");
    }
    let mut apic = Vlapic::new(Config { x2apic: false, ..config(0) });
    assert_eq!(apic.write_base(X2APIC), Err(Gp), "not offered");
}

#[test]
fn the_bsp_bit_is_constant_and_the_page_moves() {
    let mut apic = Vlapic::new(config(0));
    assert_eq!(apic.wrmsr(MSR_APIC_BASE, 0xd000_0800, &T0), Ok(Effect::BaseChanged));
    assert_eq!(apic.rdmsr(MSR_APIC_BASE, &T0), Ok(0xd000_0900));
    assert_eq!(apic.base_address(), 0xd000_0000);
    let mut ap = Vlapic::new(config(1));
    assert_eq!(ap.write_base(XAPIC | 0x100), Ok(Effect::None));
    assert_eq!(ap.read_base(), XAPIC);
}

#[test]
fn disabling_forgets_the_registers() {
    let (mut apic, shared) = xapic(0);
    apic.set_tpr(0x20);
    apic.accept(0x30);
    assert!(shared.post(0x31));
    assert_eq!(apic.write_base(OFF), Ok(Effect::BaseChanged));
    assert!(apic.sync(&shared).is_none());
    assert!(!shared.post(0x40));
    assert!(apic.accepts_extint(), "as a processor without an APIC");
    assert_eq!(apic.next_injectable(), Injectable::Nothing);
    assert_eq!(apic.write_base(XAPIC), Ok(Effect::BaseChanged));
    assert_eq!(read(&mut apic, Reg::SVR), 0xff);
    assert_eq!(apic.tpr(), 0);
    assert!(!apic.is_requested(0x30) && !apic.is_requested(0x31));
}

#[test]
fn going_x2apic_keeps_state_but_the_destination() {
    let (mut apic, _) = xapic(3);
    apic.set_tpr(0x20);
    apic.accept(0x30);
    _ = write(&mut apic, Reg::ICR_HIGH, 0x0100_0000);
    _ = write(&mut apic, Reg::ICR_LOW, 0x4033);
    assert!(apic.write_base(X2APIC).is_ok());
    assert_eq!(rdmsr(&mut apic, Reg::ICR_LOW), Ok(0x4033));
    assert_eq!((apic.tpr(), apic.is_requested(0x30)), (0x20, true));
    assert_eq!(rdmsr(&mut apic, Reg::SVR), Ok(0x1ff));
}

#[test]
fn init_resets_all_but_identity_and_mode() {
    let (mut apic, shared) = x2apic(6);
    apic.accept(0x30);
    apic.accept(0x31);
    assert!(apic.ack(0x31));
    apic.set_tpr(0x20);
    assert!(wrmsr(&mut apic, Reg::LVT_TIMER, 0x40).is_ok());
    assert!(wrmsr(&mut apic, Reg::TIMER_INITIAL, 1000).is_ok());
    assert!(apic.next_deadline().is_some());
    assert!(shared.post(0x55));
    assert!(!shared.post_sipi(7));
    apic.init(&shared);
    assert_eq!(apic.mode(), Mode::X2apic);
    assert_eq!(rdmsr(&mut apic, Reg::ID), Ok(6));
    for (reg, value) in
        [(0x08, 0), (0x0a, 0), (0x0f, 0xff), (0x32, 0x1_0000), (0x38, 0), (0x39, 0), (0x21, 0)]
    {
        assert_eq!(rdmsr(&mut apic, Reg(reg)), Ok(value), "{reg:#x}");
    }
    assert_eq!(apic.next_deadline(), None);
    assert!(!shared.addressing().accepting);
    assert_eq!(apic.sync(&shared), Startup { init: false, sipi: Some(7) }, "start-up outlives INIT");
    assert!(!apic.is_requested(0x55), "what was posted before INIT is gone");
}
