//! Leaving L2: what L1 finds in its VMCS, and the state it goes on in.

use super::*;
use crate::bits::misc;
use crate::code::{Reason, blocking};
use crate::insn::Failure;
use crate::reflect::{HostState, load_host};
use std::collections::BTreeMap;

fn host(v: &Vmcs12, exit: Option<&Exit>) -> (HostState, BTreeMap<Field, u64>) {
    let mut fields = BTreeMap::new();
    let state = load_host(v, EFER_NXE | EFER_LME, exit, |f, value| {
        assert!(fields.insert(f, value).is_none(), "{f:?} twice");
    });
    (state, fields)
}

#[test]
fn l1_goes_on_in_its_host_state() {
    let mut v = valid(&caps());
    v.set(Field::HOST_FS_BASE, 0x1234);
    v.set(Field::HOST_DS_SELECTOR, 0);
    let (state, fields) = host(&v, None);
    let want = [
        (Field::GUEST_RIP, v.get(Field::HOST_RIP)),
        (Field::GUEST_RSP, v.get(Field::HOST_RSP)),
        (Field::GUEST_RFLAGS, 2),
        (Field::GUEST_DR7, 0x400),
        (Field::GUEST_DEBUGCTL, 0),
        (Field::GUEST_CS_AR, 0xa09b),
        (Field::GUEST_SS_AR, 0xc093),
        (Field::GUEST_DS_AR, 0x1_c093),
        (Field::GUEST_FS_BASE, 0x1234),
        (Field::GUEST_TR_AR, 0x8b),
        (Field::GUEST_TR_LIMIT, 0x67),
        (Field::GUEST_LDTR_AR, 0x1_0000),
        (Field::GUEST_IDTR_LIMIT, 0xffff),
        (Field::GUEST_ES_LIMIT, 0xffff_ffff),
        (Field::GUEST_ES_BASE, 0),
    ];
    want.iter().for_each(|(field, value)| assert_eq!(fields[field], *value, "{field:?}"));
    assert_eq!(state.efer, EFER_NXE | EFER_LME | EFER_LMA);
    assert_eq!(
        (state.pat, state.perf_global, state.cet, state.pkrs, state.pae),
        (None, None, None, None, false)
    );
    // CD, NW, ET are no part of what an exit loads.
    assert_eq!(state.cr0_from(CR0_CD | 0x10), state.cr0 & !(CR0_CD | CR0_NW) | CR0_CD | 0x10);

    v.set(
        Field::EXIT_CONTROLS,
        v.get(Field::EXIT_CONTROLS) & !u64::from(exit::HOST_64) | u64::from(exit::LOAD_PAT),
    );
    v.set(Field::HOST_CR4, CR4_PAE | CR4_PCIDE);
    let (state, fields) = host(&v, None);
    assert_eq!(
        (fields[&Field::GUEST_CS_AR], state.efer, state.cr4, state.pae),
        (0xc09b, EFER_NXE, CR4_PAE, true)
    );
    assert_eq!(state.pat, Some(v.get(Field::HOST_PAT)));
}

#[test]
fn nmis_are_blocked_by_an_nmi_exit_and_by_what_l2_left() {
    let nmi = Exit { intr_info: 1 << 31 | 0x202, ..Exit::default() };
    let other = Exit { reason: 10, ..Exit::default() };
    let mut v = valid(&caps());
    assert_eq!(host(&v, Some(&nmi)).0.nmi_blocked, Some(true));
    assert_eq!(host(&v, Some(&other)).0.nmi_blocked, Some(false));
    v.set(Field::GUEST_INTERRUPTIBILITY, blocking::NMI);
    assert_eq!(host(&v, Some(&other)).0.nmi_blocked, Some(true), "L2's blocking was L1's");
    v.set(Field::PIN_CONTROLS, v.get(Field::PIN_CONTROLS) | 1 << 5);
    assert_eq!(host(&v, Some(&other)).0.nmi_blocked, None, "virtual NMIs");
    assert_eq!(host(&v, None).0.nmi_blocked, None, "a failed entry changes nothing");
}

#[test]
fn the_exit_is_recorded_and_the_injection_done() {
    let mut rig = Rig::new();
    rig.write(Field::ENTRY_INTR_INFO, 1 << 31 | 0x30d | 1 << 11);
    rig.write(Field::EXIT_INTR_ERROR_CODE, 0x55);
    rig.run();
    let exit = Exit {
        reason: Reason::EPT_VIOLATION.0.into(),
        qualification: 0x181,
        idt_info: 1 << 31 | 0x30d | 1 << 11,
        idt_error: 0x18,
        insn_length: 3,
        linear: 0xffff_8000_1234_5678,
        physical: 0x9000,
        ..Exit::default()
    };
    rig.leave(&exit);
    for (field, value) in [
        (Field::EXIT_REASON, 48),
        (Field::EXIT_QUALIFICATION, 0x181),
        (Field::IDT_VECTORING_INFO, 0x8000_0b0d),
        (Field::IDT_VECTORING_ERROR_CODE, 0x18),
        (Field::EXIT_INSN_LENGTH, 3),
        (Field::GUEST_LINEAR_ADDRESS, 0xffff_8000_1234_5678),
        (Field::GUEST_PHYSICAL_ADDRESS, 0x9000),
        (Field::EXIT_INTR_ERROR_CODE, 0x55),
        (Field::ENTRY_INTR_INFO, 0xb0d),
    ] {
        assert_eq!(rig.read(field), value, "{field:?}");
    }
    assert!(rig.nested.active().is_none() && rig.nested.running().is_none());
}

#[test]
fn l2s_state_comes_back() {
    let mut rig = Rig::new();
    rig.l0.exit |= exit::SAVE_PAT;
    rig.write(Field::EXIT_CONTROLS, (0x3_6dfb | exit::HOST_64 | exit::SAVE_PAT | exit::SAVE_DEBUG).into());
    rig.run();
    let changed = [
        (Field::GUEST_RIP, 0x5000),
        (Field::GUEST_RSP, 0x6000),
        (Field::GUEST_RFLAGS, 0x46),
        (Field::GUEST_CR3, 0x7000),
        (Field::GUEST_ES_BASE, 0x8000),
        (Field::GUEST_GDTR_LIMIT, 0x7f),
        (Field::GUEST_PAT, 6),
        (Field::GUEST_DR7, 0x401),
        (Field::GUEST_INTERRUPTIBILITY, 1),
        (Field::GUEST_SYSENTER_EIP, 0x9000),
    ];
    changed.iter().for_each(|(field, value)| rig.hw.set(*field, *value));
    let efer = rig.read(Field::GUEST_EFER);
    rig.hw.set(Field::GUEST_EFER, 0x1);
    rig.leave(&Exit::default());
    changed.iter().for_each(|(field, value)| assert_eq!(rig.read(*field), *value, "{field:?}"));
    assert_eq!(rig.read(Field::GUEST_EFER), efer, "not saved unless L1 asks");
}

#[test]
fn control_registers_come_back_by_owner_of_their_bits() {
    let mut rig = Rig::new();
    // L1 owns TS (shows 0, holds 1) and VMXE; L0 owns CD and NW; the rest is L2's.
    rig.write(Field::CR0_MASK, CR0_TS);
    rig.write(Field::GUEST_CR0, CR0_PE | CR0_PG | CR0_NE | CR0_TS);
    rig.run();
    assert_eq!(rig.hw.get(Field::CR0_MASK), CR0_TS | CR0_CD | CR0_NW | CR0_NE);
    assert_eq!(rig.hw.get(Field::CR0_SHADOW) & CR0_TS, 0);
    // L2 sets WP by itself, and CD with L0's help: it reads 1 and is 0 in the processor.
    let now = rig.hw.get(Field::GUEST_CR0);
    rig.hw.set(Field::GUEST_CR0, now | CR0_WP);
    let slot = rig.nested.slot_mut(0);
    let shadow = rig.hw.get(Field::CR0_SHADOW) | CR0_CD;
    slot.mirror.put(&mut rig.hw, Field::CR0_SHADOW, shadow);
    rig.leave(&Exit::default());
    assert_eq!(rig.read(Field::GUEST_CR0), CR0_PE | CR0_PG | CR0_NE | CR0_TS | CR0_WP | CR0_CD);
}

#[test]
fn lma_is_saved_with_unrestricted_guest_only() {
    for saves in [true, false] {
        let mut rig = Rig::new();
        if !saves {
            rig.caps.msrs.misc &= !misc::EXIT_SAVES_LMA;
        }
        rig.run();
        let controls = rig.hw.get(Field::ENTRY_CONTROLS);
        rig.hw.set(Field::ENTRY_CONTROLS, controls & !u64::from(entry::IA32E));
        rig.leave(&Exit::default());
        assert_eq!(rig.read(Field::ENTRY_CONTROLS) & u64::from(entry::IA32E) == 0, saves);
    }
}

#[test]
fn rarely_read_state_stays_in_the_02_until_it_is_asked_for() {
    let mut rig = Rig::new();
    rig.run();
    rig.hw.set(Field::GUEST_ES_BASE, 0x8000);
    rig.hw.set(Field::GUEST_TR_BASE, 0x9000);
    rig.leave(&Exit::default());
    assert!(rig.nested.current().unwrap().rare_in_02());
    assert_eq!(rig.nested.current().unwrap().fields().get(Field::GUEST_ES_BASE), 0);
    // What L1 writes is newer than what L2 left, and its own write comes back.
    rig.write(Field::GUEST_ES_BASE, 0);
    assert_eq!(rig.read(Field::GUEST_ES_BASE), 0);
    assert_eq!(rig.read(Field::GUEST_TR_BASE), 0x9000);
    assert_eq!(rig.read(Field::GUEST_ES_BASE), 0);
    assert!(!rig.nested.current().unwrap().rare_in_02());
    rig.run();
    assert_eq!((rig.hw.get(Field::GUEST_ES_BASE), rig.hw.get(Field::GUEST_TR_BASE)), (0, 0x9000));
}

#[test]
fn a_failed_entry_tells_its_reason_and_no_more() {
    let mut rig = Rig::new();
    rig.write(Field::GUEST_CR3, 1 << 50);
    rig.write(Field::ENTRY_INTR_INFO, 1 << 31 | 0x20);
    rig.write(Field::EXIT_INSN_LENGTH, 9);
    let Err(NoEntry::Exit(why)) = rig.enter(Entry::Launch) else { panic!() };
    let mut put = Vec::new();
    let state =
        rig.nested.fail_entry(Reason::INVALID_GUEST_STATE, why.qualification(), 0, |f, v| put.push((f, v)));
    assert!(state.is_some() && put.contains(&(Field::GUEST_RIP, rig.read(Field::HOST_RIP))));
    for (field, value) in [
        (Field::EXIT_REASON, 0x8000_0021),
        (Field::EXIT_QUALIFICATION, 0),
        (Field::ENTRY_INTR_INFO, 0x8000_0020),
        (Field::EXIT_INSN_LENGTH, 9),
        (Field::GUEST_CR3, 1 << 50),
    ] {
        assert_eq!(rig.read(field), value, "{field:?}");
    }
    assert!(!rig.nested.current().unwrap().launched() && rig.hw.writes.is_empty());
    assert_eq!(
        rig.enter(Entry::Resume),
        Err(NoEntry::Fail(Failure::Valid(crate::code::InsnError::VmresumeNotLaunched), None))
    );
}

#[test]
fn an_exit_reads_what_its_reason_makes_meaningful() {
    let mut rig = Rig::new();
    for (field, value) in [
        (Field::EXIT_REASON, 48),
        (Field::EXIT_QUALIFICATION, 0x82),
        (Field::GUEST_PHYSICAL_ADDRESS, 0x7000),
        (Field::EXIT_INTR_INFO, 0xdead),
        (Field::IDT_VECTORING_INFO, 1 << 31 | 0x30e),
        (Field::IDT_VECTORING_ERROR_CODE, 2),
    ] {
        rig.hw.set(field, value);
    }
    let exit = Exit::read(&mut rig.hw);
    assert_eq!(
        (exit.basic(), exit.physical, exit.intr_info, exit.idt_error),
        (Reason::EPT_VIOLATION, 0x7000, 0, 2)
    );
}
