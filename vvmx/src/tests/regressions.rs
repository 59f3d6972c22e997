//! Published flaws of other hypervisors' nested VMX, one test each. Those that belong to one rule are tested
//! where that rule is: CVE-2018-12904 and CVE-2013-4551 (privilege) in `insn`, CVE-2019-3887 in `bitmap`.

use super::*;
use crate::code::{Reason, activity};
use crate::insn::Failure;
use crate::route::{L0Wants, Route, route};
use crate::state::{ShadowAccess, shadow_access};

fn owner(rig: &Rig, exit: Exit) -> Route {
    route(&exit, rig.nested.running().unwrap(), &L0Wants::default(), &Flat(0))
}
fn plain(reason: Reason) -> Exit {
    Exit { reason: reason.0.into(), ..Exit::default() }
}

/// CVE-2014-3645, CVE-2014-3646: an INVEPT or INVVPID by L2 was an unhandled exit that killed L1.
#[test]
fn invept_by_l2_is_l1s() {
    let mut rig = Rig::new();
    rig.run();
    for reason in [Reason::INVEPT, Reason::INVVPID, Reason::RDTSCP] {
        let want = if reason == Reason::RDTSCP { Route::L0 } else { Route::L1 };
        assert_eq!(owner(&rig, plain(reason)), want, "{reason:?}");
    }
}

/// CVE-2016-9588: #BP and #OF of L2 were taken for L0's own.
#[test]
fn software_exceptions_of_l2_follow_l1s_bitmap() {
    let mut rig = Rig::new();
    rig.write(Field::EXCEPTION_BITMAP, 1 << 3 | 1 << 4);
    rig.run();
    for vector in [3, 4] {
        let exit = Exit { intr_info: 1 << 31 | 6 << 8 | vector, ..plain(Reason::EXCEPTION_NMI) };
        assert_eq!(owner(&rig, exit), Route::L1);
    }
}

/// CVE-2017-2596: each VMXON in VMX operation leaked a page. Here it changes nothing.
#[test]
fn vmxon_twice_changes_nothing() {
    let mut rig = Rig::new();
    assert!(rig.nested.vmxon(0x3000, &rig.mem, &rig.caps).is_err());
    assert_eq!(rig.nested.current_gpa(), Some(Gpa::new(0x2000)));
    assert!(rig.nested.vmptrld(0x1000, &rig.mem, &mut rig.hw, &rig.caps).is_err(), "still VMXON's pointer");
}

/// CVE-2017-12154: with a TPR shadow in vmcs01 and none in vmcs12, L2 wrote the machine's own CR8.
#[test]
fn without_a_tpr_shadow_cr8_exits() {
    let both = primary::CR8_LOAD | primary::CR8_STORE;
    let mut rig = Rig::new();
    rig.l0.primary |= primary::TPR_SHADOW;
    rig.run();
    let primary02 = rig.hw.get(Field::PRIMARY_CONTROLS) as u32;
    assert_eq!(primary02 & (both | primary::TPR_SHADOW), both);
    // And where L1's page has no memory behind it.
    let mut rig = Rig::new();
    rig.write(Field::PRIMARY_CONTROLS, (0x0400_6172 | primary::SECONDARY | primary::TPR_SHADOW).into());
    rig.l0.virtual_apic = None;
    rig.run();
    assert_eq!(rig.hw.get(Field::PRIMARY_CONTROLS) as u32 & (both | primary::TPR_SHADOW), both);
}

/// CVE-2018-16882: the posted-interrupt descriptor was used after its page was unmapped. It is pinned or not
/// used.
#[test]
fn posted_interrupts_are_on_only_with_a_pinned_descriptor() {
    for lend in [true, false] {
        let mut rig = Rig::new();
        for (field, value) in [
            (Field::PIN_CONTROLS, 0x16 | 9 | pin::POSTED_INTERRUPTS),
            (Field::PRIMARY_CONTROLS, 0x0400_6172 | primary::SECONDARY | primary::TPR_SHADOW),
            (Field::SECONDARY_CONTROLS, secondary::EPT | secondary::INTERRUPT_DELIVERY),
            (Field::EXIT_CONTROLS, 0x3_6dfb | exit::HOST_64 | exit::ACK_INTERRUPT),
            (Field::POSTED_INTR_DESC_ADDR, 0x9_0000),
            (Field::POSTED_INTR_NV, 0x77),
        ] {
            rig.write(field, value.into());
        }
        if !lend {
            rig.l0.posted = None;
        }
        rig.run();
        assert_eq!(rig.hw.get(Field::PIN_CONTROLS) as u32 & pin::POSTED_INTERRUPTS != 0, lend);
        let want = if lend { (0xdddd_f000, 0xf2) } else { (0, 0) };
        assert_eq!((rig.hw.get(Field::POSTED_INTR_DESC_ADDR), rig.hw.get(Field::POSTED_INTR_NV)), want);
    }
}

/// CVE-2020-2732: the instruction emulator ignored L1's I/O bitmaps. Whoever emulates for L2 asks this.
#[test]
fn an_emulated_port_access_is_still_l1s() {
    let v = valid(&caps());
    let access = crate::bitmap::IoAccess { port: 0x80, size: 1 };
    assert!(!crate::bitmap::io_exits(&v, &Flat(0xff), access));
    let mut asks = v.clone();
    asks.set(Field::PRIMARY_CONTROLS, v.get(Field::PRIMARY_CONTROLS) | u64::from(primary::UNCONDITIONAL_IO));
    assert!(crate::bitmap::io_exits(&asks, &Flat(0), access));
}

/// CVE-2026-72287: a check that failed late left L1 with L2's CR3. No check comes after anything has changed.
#[test]
fn a_failed_entry_unwinds_nothing_as_nothing_was_done() {
    for (field, value) in [
        (Field::HOST_CR3, 1 << 50),
        (Field::GUEST_CR3, 1 << 50),
        (Field::VMCS_LINK_POINTER, 3),
        (Field::PIN_CONTROLS, 0),
    ] {
        let mut rig = Rig::new();
        rig.run();
        rig.leave(&Exit::default());
        rig.hw.writes.clear();
        rig.write(field, value);
        assert!(rig.enter(Entry::Resume).is_err());
        assert!(rig.hw.writes.is_empty() && rig.nested.active().is_none());
    }
}

/// An exit that is made up before L2 was really entered would lose what L1 asked to inject.
#[test]
fn an_accepted_entry_enters_before_it_exits() {
    let mut rig = Rig::new();
    rig.write(Field::ENTRY_INTR_INFO, 1 << 31 | 0x20);
    let accepted = rig.enter(Entry::Launch).unwrap();
    let _ = rig.merge(&accepted);
    rig.nested.accept(&accepted);
    let out = Outside::default();
    let left = rig.nested.leave(&Exit::default(), 0, &rig.caps, &out, &mut rig.hw, |_, _| ());
    assert!(left.is_none() && rig.nested.active().is_some_and(|a| a.run_pending));
    rig.nested.has_run();
    rig.leave(&Exit::default());
}

/// Xen 3643bb53: an L2 in shutdown or wait-for-SIPI stopped the machine. No activity state reaches the
/// processor.
#[test]
fn activity_states_stay_with_l0() {
    let mut rig = Rig::new();
    rig.write(Field::GUEST_ACTIVITY, activity::HLT);
    let accepted = rig.enter(Entry::Launch).unwrap();
    assert!(rig.merge(&accepted).halted);
    assert_eq!(rig.hw.get(Field::GUEST_ACTIVITY), activity::ACTIVE);
    // An event wakes it at once.
    let mut rig = Rig::new();
    rig.write(Field::GUEST_ACTIVITY, activity::HLT);
    rig.write(Field::ENTRY_INTR_INFO, 1 << 31 | 0x20);
    let accepted = rig.enter(Entry::Launch).unwrap();
    assert!(!rig.merge(&accepted).halted);
}

/// Xen 8b022d00: L2's CR4 mask lost L0's bits.
#[test]
fn cr4_bits_of_l0_stay_masked() {
    let mut rig = Rig::new();
    rig.l0.cr4_mask |= 1 << 20;
    rig.write(Field::CR4_MASK, 0);
    rig.run();
    assert_eq!(rig.hw.get(Field::CR4_MASK), CR4_VMXE | 1 << 20);
}

/// Xen 19fdb8e2: shadowing with a link pointer of all ones.
#[test]
fn shadowing_without_a_vmcs_fails_l2s_instruction() {
    let mut rig = Rig::new();
    rig.write(Field::SECONDARY_CONTROLS, (secondary::EPT | secondary::VMCS_SHADOWING).into());
    rig.run();
    assert_eq!(owner(&rig, plain(Reason::VMREAD)), Route::Both);
    let found = shadow_access(rig.nested.running().unwrap(), 0x681e, &rig.caps, |_| 0);
    assert_eq!(found, ShadowAccess::NoVmcs);
}

/// Xen 5dbbaa0f: bitmaps were mapped when L1 wrote their address, which killed an L1 that wrote another first.
#[test]
fn addresses_are_looked_at_on_entry_not_when_written() {
    let mut rig = Rig::new();
    for value in [u64::MAX, 0x7f_ffff_f000, 0x10] {
        rig.write(Field::IO_BITMAP_A, value);
        rig.write(Field::MSR_BITMAP, value);
    }
    assert!(rig.enter(Entry::Launch).is_ok(), "bitmaps that are not in use");
    rig.write(Field::PRIMARY_CONTROLS, (0x0400_6172 | primary::SECONDARY | primary::MSR_BITMAPS).into());
    assert!(matches!(rig.enter(Entry::Launch), Err(NoEntry::Fail(Failure::Valid(_), Some(_)))));
}

/// CVE-2021-29657's kind (SVM): a word checked and then read again. Entry uses the copy that it checked, whatever
/// becomes of the region meanwhile.
#[test]
fn a_region_edited_behind_the_copy_is_not_seen() {
    let mut rig = Rig::new();
    let accepted = rig.enter(Entry::Launch).unwrap();
    let at = crate::vmcs12::layout::offset(Field::GUEST_CR3) as u64;
    rig.mem.put_u64(Gpa::new(0x2000 + at), u64::MAX);
    let _ = rig.merge(&accepted);
    assert_eq!(rig.hw.get(Field::GUEST_CR3), 0x3000);
}

/// Xen 35cd5ba3: VMX could be used where nesting was off. Without VMXE in the domain's CR4 nothing exists.
#[test]
fn without_vmxe_there_is_no_vmx() {
    use crate::insn::{Context, Fault, Insn, check};
    let l1 = Context { cr0: CR0_PE, cr4: 0, efer: 0, rflags: 2, cs_l: false, cpl: 0, mov_ss: false };
    assert_eq!(check(Insn::Vmxon, &l1, false, &caps()), Err(Fault::InvalidOpcode));
}
