//! Hardware VMCS shadowing.

use super::*;
use crate::field::FieldSet;
use crate::merge::Mirror;
use crate::shadowing::ShadowSet;
use std::vec;

fn set() -> ShadowSet {
    ShadowSet::new(&caps(), &Caps { msrs: new_cpu(), cpu: cpu() })
}

#[test]
fn bitmaps_have_a_zero_for_each_field_of_the_set() {
    let set = set();
    for (write, fields) in [(false, set.read()), (true, set.write())] {
        let mut bitmap = vec![0u64; 512];
        set.fill(write, &mut bitmap);
        let open: Vec<u64> = (0..0x8000).filter(|n| bitmap[*n as usize / 64] >> (n % 64) & 1 == 0).collect();
        assert_eq!(open.len(), fields.len());
        for n in open {
            let (field, high) = Field::decode(n).expect("a field");
            assert!(fields.contains(field) && !high);
        }
    }
    assert!(set.read().contains(Field::EXIT_REASON) && !set.write().contains(Field::EXIT_REASON));
    assert!(!set.read().contains(Field::VM_INSTRUCTION_ERROR));
    assert!(set.read().contains(Field::GUEST_CS_AR) && !set.write().contains(Field::GUEST_CS_AR));
}

#[test]
fn a_field_joins_when_l1_asks_often_enough_within_a_window() {
    let mut set = set();
    assert!((0..15).all(|_| !set.missed(Field::TSC_OFFSET, true)));
    set.cool();
    assert!((0..15).all(|_| !set.missed(Field::TSC_OFFSET, true)));
    assert!(set.missed(Field::TSC_OFFSET, true));
    assert!(set.write().contains(Field::TSC_OFFSET) && !set.read().contains(Field::TSC_OFFSET));
    assert!(!set.missed(Field::TSC_OFFSET, true), "once");
}

#[test]
fn some_never_join_and_the_set_has_a_limit() {
    let mut set = set();
    for field in Field::all() {
        (0..100).for_each(|_| _ = set.missed(field, true));
        (0..100).for_each(|_| _ = set.missed(field, false));
    }
    let never = [
        Field::VM_INSTRUCTION_ERROR,
        Field::MSR_BITMAP,
        Field::EPT_POINTER,
        Field::GUEST_CS_AR,
        Field::VMCS_LINK_POINTER,
        Field::TERTIARY_CONTROLS,
        Field::GUEST_ES_BASE,
    ];
    assert!(!set.write().meets(&FieldSet::of(&never)));
    assert!(!set.read().contains(Field::VM_INSTRUCTION_ERROR) && !set.read().contains(Field::GUEST_ES_BASE));
    assert_eq!((set.read().len(), set.write().len()), (60, 60));
}

/// An L1 that emulates an instruction and resumes, as KVM does: no exit for a VMREAD or VMWRITE, and what goes
/// around is what L1 wrote.
#[test]
fn l1s_writes_reach_l2_and_exits_reach_l1() {
    let mut rig = Rig::new();
    let (set, mut mirror) = (set(), Mirror::new());
    let mut shadow = Hw::new(&new_cpu());
    rig.write(Field::EXIT_CONTROLS, (0x3_6dfb | exit::HOST_64 | exit::SAVE_DEBUG).into());
    rig.write(Field::ENTRY_CONTROLS, (0x11fb | entry::IA32E | entry::LOAD_DEBUG).into());
    rig.run();
    rig.leave(&Exit { reason: 10, insn_length: 2, ..Exit::default() });
    set.upload(rig.nested.current().unwrap(), &mut mirror, &mut shadow);
    assert_eq!((shadow.get(Field::EXIT_REASON), shadow.get(Field::EXIT_INSN_LENGTH)), (10, 2));
    let rip = shadow.get(Field::GUEST_RIP);
    shadow.set(Field::GUEST_RIP, rip + 2);
    set.download(rig.nested.copy_mut().unwrap(), &mut mirror, &mut shadow);
    rig.hw.writes.clear();
    rig.run();
    assert_eq!(rig.hw.writes, [(Field::GUEST_RIP, rip + 2)]);
    rig.leave(&Exit { reason: 10, insn_length: 2, ..Exit::default() });
    shadow.writes.clear();
    set.upload(rig.nested.current().unwrap(), &mut mirror, &mut shadow);
    assert!(shadow.writes.is_empty(), "{:?}", shadow.writes);
}
