//! Priorities, acknowledgement, end of interrupt.

use super::*;

#[test]
fn ppr_is_the_higher_class_of_task_and_service() {
    // APM vol. 2, "Processor Priority Register": tpr, in service, ppr.
    for (tpr, isr, ppr) in [
        (0x00, None, 0x00),
        (0x35, None, 0x35),
        (0x35, Some(0x31), 0x35), // same class: TPR with its subclass
        (0x35, Some(0x3f), 0x35),
        (0x35, Some(0x41), 0x40), // service: subclass 0
        (0x45, Some(0x31), 0x45),
        (0x00, Some(0xff), 0xf0),
    ] {
        let (mut apic, _) = xapic(0);
        if let Some(vector) = isr {
            apic.accept(vector);
            assert!(apic.ack(vector));
        }
        apic.set_tpr(tpr);
        assert_eq!(apic.ppr(), ppr, "tpr {tpr:#x} isr {isr:?}");
        assert_eq!(read(&mut apic, Reg::PPR), u32::from(ppr));
    }
}

#[test]
fn task_priority_holds_its_own_class_and_below() {
    for (tpr, vector, expected) in [
        (0x00, 0x10, Injectable::Now(0x10)),
        (0x00, 0xff, Injectable::Now(0xff)),
        (0x40, 0x41, Injectable::BelowTpr { vector: 0x41, class: 4 }),
        (0x4f, 0x50, Injectable::Now(0x50)),
        (0x50, 0x4f, Injectable::BelowTpr { vector: 0x4f, class: 4 }),
        (0xf0, 0xff, Injectable::BelowTpr { vector: 0xff, class: 15 }),
    ] {
        let (mut apic, _) = xapic(0);
        apic.accept(vector);
        apic.set_tpr(tpr);
        assert_eq!(apic.next_injectable(), expected);
    }
}

#[test]
fn the_threshold_is_exact() {
    let (mut apic, _) = xapic(0);
    apic.accept(0x73);
    for class in 0..16 {
        apic.set_cr8(class);
        match apic.next_injectable() {
            Injectable::Now(0x73) => assert!(class < 7),
            Injectable::BelowTpr { vector: 0x73, class: 7 } => assert!(class >= 7),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn service_blocks_its_class_whatever_the_task_priority() {
    let (mut apic, _) = xapic(0);
    apic.accept(0x61);
    assert!(apic.ack(0x61));
    apic.accept(0x6f);
    assert_eq!(apic.next_injectable(), Injectable::Nothing);
    apic.set_tpr(0xf0);
    assert_eq!(apic.next_injectable(), Injectable::Nothing);
    apic.accept(0x70);
    assert_eq!(apic.next_injectable(), Injectable::BelowTpr { vector: 0x70, class: 7 });
    apic.set_tpr(0);
    assert_eq!(apic.highest_pending(), Some(0x70));
    assert!(apic.ack(0x70));
    assert_eq!(write(&mut apic, Reg::EOI, 0), Effect::None);
    assert!(!apic.is_in_service(0x70) && apic.is_in_service(0x61));
    assert_eq!(write(&mut apic, Reg::EOI, 0), Effect::None);
    assert_eq!(apic.highest_pending(), Some(0x6f));
}

#[test]
fn only_level_triggered_ends_are_told() {
    let (mut apic, shared) = xapic(0);
    assert!(shared.post_level(0x51));
    assert!(!shared.post(0x52));
    assert!(apic.sync(&shared).is_none());
    assert_eq!(read(&mut apic, Reg(0x1a)), 1 << 17); // TMR
    assert!(apic.ack(0x52) && apic.ack(0x51));
    assert_eq!(write(&mut apic, Reg::EOI, 0), Effect::None);
    assert_eq!(write(&mut apic, Reg::EOI, 0), Effect::Eoi(0x51));
    assert_eq!(write(&mut apic, Reg::EOI, 0), Effect::None);
    // The same vector as an edge forgets that it was a level.
    assert!(shared.post(0x51));
    assert!(apic.sync(&shared).is_none());
    assert!(apic.ack(0x51));
    assert_eq!(write(&mut apic, Reg::EOI, 0), Effect::None);
}

#[test]
fn acknowledging_what_was_not_requested_changes_nothing() {
    let (mut apic, _) = xapic(0);
    assert!(!apic.ack(0x40));
    assert!(!apic.is_in_service(0x40));
    assert_eq!(apic.eoi(), None);
}

#[test]
fn cr8_is_the_upper_half_of_tpr() {
    let (mut apic, _) = xapic(0);
    _ = write(&mut apic, Reg::TPR, 0xabc);
    assert_eq!((apic.tpr(), apic.cr8()), (0xbc, 0xb));
    apic.set_cr8(0x5);
    assert_eq!(read(&mut apic, Reg::TPR), 0x50);
    apic.set_cr8(0x1f);
    assert_eq!(apic.tpr(), 0xf0);
    apic.set_tpr(0x35);
    apic.observe_v_tpr(3);
    assert_eq!(apic.tpr(), 0x35, "the guest didn't touch CR8");
    apic.observe_v_tpr(4);
    assert_eq!(apic.tpr(), 0x40);
}

#[test]
fn requests_show_in_their_registers() {
    let (mut apic, _) = xapic(0);
    for vector in [0x10, 0x3f, 0x40, 0xff] {
        apic.accept(vector);
    }
    let irr: [u32; 8] = core::array::from_fn(|i| read(&mut apic, Reg(0x20 + i as u8)));
    assert_eq!(irr, [1 << 16, 1 << 31, 1, 0, 0, 0, 0, 1 << 31]);
    assert!(apic.ack(0xff));
    assert_eq!(read(&mut apic, Reg(0x17)), 1 << 31);
    assert_eq!(read(&mut apic, Reg(0x27)), 0);
}

#[test]
fn software_disable_rejects_new_and_keeps_old() {
    let (mut apic, shared) = xapic(0);
    apic.accept(0x55);
    _ = write(&mut apic, Reg::LVT_LINT0, 0x700);
    assert!(apic.accepts_extint());
    assert_eq!(write(&mut apic, Reg::SVR, 0xff), Effect::TimerChanged);
    assert!(!apic.accepts_extint());
    for reg in 0x32..=0x37 {
        assert_ne!(read(&mut apic, Reg(reg)) & 1 << 16, 0);
    }
    // Masks can't be cleared while disabled.
    _ = write(&mut apic, Reg::LVT_LINT0, 0x700);
    assert_eq!(read(&mut apic, Reg::LVT_LINT0), 0x1_0700);
    assert!(apic.sync(&shared).is_none());
    assert!(!shared.post(0x60), "an upcall is ignored while disabled");
    apic.accept(0x61);
    assert!(apic.sync(&shared).is_none());
    assert!(!apic.is_requested(0x60) && !apic.is_requested(0x61));
    assert_eq!(apic.highest_pending(), Some(0x55), "what was pending is held");
    assert!(shared.post_nmi(), "NMIs get through");
    assert!(apic.sync(&shared).is_none());
    assert!(apic.take_nmi() && !apic.take_nmi());
    // Enabling leaves the masks as they are.
    assert_eq!(write(&mut apic, Reg::SVR, 0x1ff), Effect::None);
    assert_eq!(read(&mut apic, Reg::LVT_LINT0), 0x1_0700);
}

#[test]
fn lvt_entries_deliver_by_their_type() {
    let (mut apic, _) = xapic(0);
    _ = write(&mut apic, Reg::LVT_PERF, 0x400); // NMI
    assert!(apic.fire(Lvt::Perf) && apic.take_nmi());
    _ = write(&mut apic, Reg::LVT_PERF, 0x1_0400);
    assert!(!apic.fire(Lvt::Perf) && !apic.nmi_pending());
    _ = write(&mut apic, Reg::LVT_THERMAL, 0x77);
    assert!(apic.fire(Lvt::Thermal) && apic.is_requested(0x77));
    _ = write(&mut apic, Reg::LVT_LINT1, 0x200); // SMI: not here
    assert!(!apic.fire(Lvt::Lint1));
}

#[test]
fn errors_accumulate_until_esr_is_written() {
    let (mut apic, _) = xapic(0);
    _ = write(&mut apic, Reg::LVT_ERROR, 0xfe);
    assert_eq!(write(&mut apic, Reg::ICR_LOW, 0x4_000f), Effect::None); // self, vector 15
    assert!(apic.is_requested(0xfe));
    assert_eq!(read(&mut apic, Reg::ESR), 0);
    _ = write(&mut apic, Reg::ESR, 0);
    assert_eq!(read(&mut apic, Reg::ESR), 1 << 5);
    _ = write(&mut apic, Reg::ESR, 0);
    assert_eq!(read(&mut apic, Reg::ESR), 0);
    // A vector that is itself illegal ends in the register, not in a recursion.
    _ = write(&mut apic, Reg::LVT_ERROR, 0x05);
    _ = write(&mut apic, Reg::ICR_LOW, 0x0003);
    _ = write(&mut apic, Reg::ESR, 0);
    assert_eq!(read(&mut apic, Reg::ESR), 1 << 5 | 1 << 6);
}
