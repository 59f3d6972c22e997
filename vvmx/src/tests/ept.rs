//! L1's EPT: the exit that L1 sees, the log, EPTP switching.

use super::*;
use crate::code::Reason;
use crate::ept::{PmlEntry, log_dirty, reflected, root12, vmfunc};
use stage2::walk12::{Access, Marks, WalkError, walk};

/// A fault of L1's own tables on an L2 address, as the walk finds it.
fn fault(mem: &HeapMemory, eptp: u64, access: Access) -> stage2::walk12::Violation {
    match walk(mem, &root12(eptp, &caps()), addr::Ngpa::new(0x1234), access, Marks::Set) {
        Err(WalkError::Violation(v)) => v,
        other => panic!("{other:?}"),
    }
}

fn tables(leaf: u64) -> HeapMemory {
    let mem = HeapMemory::with_pages(16);
    for (at, next) in [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000)] {
        mem.put_u64(Gpa::new(at), next | 7);
    }
    mem.put_u64(Gpa::new(0x4008), leaf);
    mem
}

#[test]
fn l1_sees_rights_of_its_own_tables_and_the_hardwares_word_about_the_access() {
    let mem = tables(0x9000 | 6 << 3 | 5);
    let found = fault(&mem, 0x101e, Access::WRITE);
    // s2_02 had nothing there yet: no rights in the hardware's qualification. A read-modify-write, and an IRET.
    let hw = Exit {
        reason: 48,
        qualification: 3 | 0x180 | 1 << 12 | 7 << 9,
        linear: 0x77,
        physical: 0x9999,
        insn_length: 3,
        ..Exit::default()
    };
    let got = reflected(&hw, &found);
    assert_eq!(got.qualification, 3 | 0x180 | 1 << 12 | 5 << 3);
    assert_eq!(
        (got.basic(), got.physical, got.linear, got.insn_length),
        (Reason::EPT_VIOLATION, 0x1234, 0x77, 3)
    );
    // No linear address where the walk was L0's own (a PDPTE load): bit 7 stays as the caller made it.
    let own = Exit { reason: Reason::CR_ACCESS.0.into(), qualification: 0x180, ..Exit::default() };
    assert_eq!(reflected(&own, &found).qualification, 2 | 5 << 3);
}

#[test]
fn a_misconfiguration_is_reason_49_whatever_hardware_said() {
    let mem = tables(0x9000 | 2);
    let found = fault(&mem, 0x101e, Access::READ);
    let hw = Exit { reason: 48, qualification: 0x181, ..Exit::default() };
    let got = reflected(&hw, &found);
    assert_eq!((got.basic(), got.qualification, got.physical), (Reason::EPT_MISCONFIGURATION, 0, 0x1234));
}

#[test]
fn what_l1_is_offered_decides_about_its_tables() {
    let exec_only = tables(0x9000 | 6 << 3 | 4);
    assert!(!fault(&exec_only, 0x101e, Access::READ).misconfigured);
    let mut old = caps();
    old.msrs.ept_vpid &= !(ept_cap::EXEC_ONLY | ept_cap::PAGES_1G);
    let root = root12(0x101e, &old);
    let found = walk(&exec_only, &root, addr::Ngpa::new(0x1234), Access::FETCH, Marks::Set);
    assert!(matches!(found, Err(WalkError::Violation(v)) if v.misconfigured));
    assert_ne!(root12(0x101e, &caps()), root12(0x105e, &caps()), "flags or not: roots of their own");
}

#[test]
fn the_log_counts_down_and_is_full_past_its_page() {
    let mut rig = Rig::new();
    let go = |rig: &mut Rig| log_dirty(rig.nested.copy_mut().unwrap());
    assert_eq!(go(&mut rig), PmlEntry::Off);
    rig.write(Field::SECONDARY_CONTROLS, (secondary::EPT | secondary::PML).into());
    rig.write(Field::PML_ADDRESS, 0x7000);
    rig.write(Field::GUEST_PML_INDEX, 1);
    assert_eq!(go(&mut rig), PmlEntry::Off, "without accessed and dirty flags nothing is dirty");
    rig.write(Field::EPT_POINTER, 0x105e);
    assert_eq!(go(&mut rig), PmlEntry::At(Gpa::new(0x7008)));
    assert_eq!(go(&mut rig), PmlEntry::At(Gpa::new(0x7000)));
    assert_eq!((go(&mut rig), rig.read(Field::GUEST_PML_INDEX)), (PmlEntry::Full, 0xffff));
    rig.write(Field::GUEST_PML_INDEX, 512);
    assert_eq!(go(&mut rig), PmlEntry::Full);
}

#[test]
fn eptp_switching_takes_valid_entries_only() {
    let mut rig = Rig::new();
    let caps = rig.caps;
    let go = |rig: &mut Rig, eax, ecx, entry| {
        vmfunc(rig.nested.copy_mut().unwrap(), eax, ecx, &caps, |n| {
            assert!(n < 512);
            entry
        })
    };
    assert_eq!(go(&mut rig, 0, 0, Some(0x101e)), None, "not enabled");
    rig.write(Field::SECONDARY_CONTROLS, (secondary::EPT | secondary::VM_FUNCTIONS).into());
    rig.write(Field::VM_FUNCTION_CONTROLS, 1);
    for (eax, ecx, entry) in [
        (1, 0, Some(0x101e)),
        (0, 512, Some(0x101e)),
        (0, u32::MAX, Some(0x101e)),
        (0, 0, None),
        (0, 0, Some(0x1010)),
        (0, 0, Some(1 << 50 | 0x1e)),
    ] {
        assert_eq!(go(&mut rig, eax, ecx, entry), None, "{eax} {ecx} {entry:x?}");
    }
    assert_eq!(rig.read(Field::EPT_POINTER), 0x8_001e);
    assert_eq!(go(&mut rig, 0, 511, Some(0x105e)), Some(0x105e));
    assert_eq!(rig.read(Field::EPT_POINTER), 0x105e);
}
