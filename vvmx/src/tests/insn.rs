//! Instructions: exceptions in the manual's order, every error number, and what is left behind.

use super::*;
use crate::code::InsnError;
use crate::insn::{Context, Failure, Fault, Insn, Verdict, check};
use crate::operand::{Access, InsnInfo, Place, SegmentView, linear};
use crate::state::{Invept, Invvpid, ShadowAccess, shadow_access};
use crate::vmcs12::{SHADOW_INDICATOR, layout};

const ALL: [Insn; 13] = [
    Insn::Vmxon,
    Insn::Vmxoff,
    Insn::Vmclear,
    Insn::Vmptrld,
    Insn::Vmptrst,
    Insn::Vmread,
    Insn::Vmwrite,
    Insn::Vmlaunch,
    Insn::Vmresume,
    Insn::Vmcall,
    Insn::Vmfunc,
    Insn::Invept,
    Insn::Invvpid,
];

fn ready() -> Context {
    Context {
        cr0: CR0_PE | CR0_PG | CR0_NE,
        cr4: CR4_PAE | CR4_VMXE,
        efer: EFER_LMA | EFER_LME,
        rflags: 2,
        cs_l: true,
        cpl: 0,
        mov_ss: false,
    }
}

#[test]
fn undefined_comes_before_privilege() {
    let broken = [
        (Context { cr0: 0, cpl: 3, ..ready() }, true),
        (Context { rflags: RFLAGS_VM, cpl: 3, ..ready() }, true),
        (Context { cs_l: false, cpl: 3, ..ready() }, true),
        (Context { cr4: 0, cpl: 3, ..ready() }, false),
    ];
    for (l1, on) in broken {
        for insn in ALL {
            assert_eq!(check(insn, &l1, on, &caps()), Err(Fault::InvalidOpcode), "{insn:?} {l1:?}");
        }
    }
    // 32-bit protected mode will do.
    let legacy = Context { efer: 0, cs_l: false, ..ready() };
    assert_eq!(check(Insn::Vmclear, &legacy, true, &caps()), Ok(()));
    assert_eq!(check(Insn::Vmfunc, &ready(), true, &caps()), Err(Fault::InvalidOpcode));
}

#[test]
fn outside_vmx_operation_only_vmxon_exists() {
    for insn in ALL {
        let want = if insn == Insn::Vmxon { Ok(()) } else { Err(Fault::InvalidOpcode) };
        assert_eq!(check(insn, &ready(), false, &caps()), want, "{insn:?}");
    }
}

#[test]
fn vmxon_wants_the_fixed_bits() {
    for bad in [Context { cr0: CR0_PE | CR0_PG, ..ready() }, Context { cr4: CR4_VMXE | 1 << 40, ..ready() }] {
        assert_eq!(check(Insn::Vmxon, &bad, false, &caps()), Err(Fault::GeneralProtection));
    }
}

#[test]
fn invept_and_invvpid_exist_where_they_are_offered() {
    let mut none = caps();
    none.msrs.secondary = Ctl::new(0, 0);
    assert_eq!(check(Insn::Invept, &ready(), true, &none), Err(Fault::InvalidOpcode));
    assert_eq!(check(Insn::Invvpid, &ready(), true, &none), Err(Fault::InvalidOpcode));
    assert_eq!(check(Insn::Invept, &ready(), true, &caps()), Ok(()));
}

#[test]
fn flags_say_what_happened() {
    let all = 0x8d5 | 2;
    assert_eq!(Verdict::Success.rflags(all), 2);
    assert_eq!(Verdict::FailInvalid.rflags(all | RFLAGS_IF), RFLAGS_IF | 3);
    assert_eq!(Verdict::FailValid.rflags(all), 0x42);
}

fn valid_error<T: core::fmt::Debug>(result: Result<T, Failure>) -> InsnError {
    match result {
        Err(Failure::Valid(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn vmxon_checks_its_region() {
    let mut rig = Rig::on(new_cpu());
    let again = rig.nested.vmxon(0x1000, &rig.mem, &rig.caps);
    assert_eq!(valid_error(again), InsnError::VmxonInRoot);
    // Without a current VMCS there is no place for the number.
    assert_eq!(rig.nested.conclude(&again), Verdict::FailInvalid);
    rig.load(0x2000);
    assert_eq!(rig.nested.conclude(&again), Verdict::FailValid);
    assert_eq!(rig.read(Field::VM_INSTRUCTION_ERROR), 15);

    let mut off = Nested::<4>::new();
    rig.mem.put_u64(Gpa::new(0x9000), u64::from(REVISION | SHADOW_INDICATOR));
    for bad in [0x1001, 1 << 40, 0x10_0000, 0x9000, 0x7f_ffff_f000] {
        assert_eq!(off.vmxon(bad, &rig.mem, &rig.caps), Err(Failure::Invalid), "{bad:#x}");
        assert!(!off.on());
    }
}

#[test]
fn pointers_are_checked_with_their_own_numbers() {
    let mut rig = Rig::on(new_cpu());
    rig.mem.put_u64(Gpa::new(0x8000), 0x1234);
    let ptrld = |rig: &mut Rig, at| valid_error(rig.nested.vmptrld(at, &rig.mem, &mut rig.hw, &rig.caps));
    assert_eq!(ptrld(&mut rig, 0x2008), InsnError::VmptrldBadAddress);
    assert_eq!(ptrld(&mut rig, 1 << 40), InsnError::VmptrldBadAddress);
    assert_eq!(ptrld(&mut rig, 0x1000), InsnError::VmptrldVmxonPointer);
    assert_eq!(ptrld(&mut rig, 0x8000), InsnError::VmptrldRevision);
    assert_eq!(ptrld(&mut rig, 0x7f_ffff_f000), InsnError::VmptrldRevision, "no memory there");
    assert_eq!(rig.nested.vmptrst(), u64::MAX, "nothing became current");
    let clear = |rig: &mut Rig, at| valid_error(rig.nested.vmclear(at, &rig.mem, &mut rig.hw, &rig.caps));
    assert_eq!(clear(&mut rig, 0x2008), InsnError::VmclearBadAddress);
    assert_eq!(clear(&mut rig, 1 << 40), InsnError::VmclearBadAddress);
    assert_eq!(clear(&mut rig, 0x1000), InsnError::VmclearVmxonPointer);
    rig.clear(0x7f_ffff_f000);
    rig.load(0x3000);
    assert_eq!(rig.nested.vmptrst(), 0x3000);
    rig.clear(0x3000);
    assert_eq!(rig.nested.vmptrst(), u64::MAX);
}

#[test]
fn a_shadow_vmcs_loads_only_where_shadowing_is_offered_and_never_runs() {
    let mut rig = Rig::on(new_cpu());
    rig.mem.put_u64(Gpa::new(0x5000), u64::from(REVISION | SHADOW_INDICATOR));
    rig.load(0x5000);
    rig.write_all(&valid(&rig.caps));
    assert_eq!(rig.enter(Entry::Launch), Err(NoEntry::Fail(Failure::Invalid, None)));
    rig.clear(0x5000);
    rig.caps.msrs.secondary = Ctl::new(0, secondary::EPT);
    let load = rig.nested.vmptrld(0x5000, &rig.mem, &mut rig.hw, &rig.caps);
    assert_eq!(valid_error(load), InsnError::VmptrldRevision);
}

#[test]
fn fields_are_read_and_written_by_width_and_half() {
    let mut rig = Rig::new();
    assert_eq!(
        rig.nested.vmread(0x681f, &mut rig.hw, &rig.caps),
        Err(Failure::Valid(InsnError::UnsupportedField))
    );
    for bad in [1 << 32 | 0x681e, 0x7_0000, 0x2034, 0x4001] {
        assert_eq!(
            valid_error(rig.nested.vmwrite(bad, 0, &rig.caps)),
            InsnError::UnsupportedField,
            "{bad:#x}"
        );
    }
    rig.write(Field::TSC_OFFSET, 0x1111_2222_3333_4444);
    assert_eq!(rig.nested.vmread(0x2011, &mut rig.hw, &rig.caps), Ok(0x1111_2222));
    rig.nested.vmwrite(0x2011, 0xffff_ffff_5555_6666, &rig.caps).unwrap();
    assert_eq!(rig.read(Field::TSC_OFFSET), 0x5555_6666_3333_4444);
    rig.write(Field::VPID, 0x1_0005);
    assert_eq!(rig.read(Field::VPID), 5);
    rig.write(Field::GUEST_CS_AR, 0xffff_ffff);
    assert_eq!(rig.read(Field::GUEST_CS_AR), 0x1_f0ff, "reserved access rights are dropped");
    rig.write(Field::EXIT_REASON, 77);
    assert_eq!(rig.read(Field::EXIT_REASON), 77);
    rig.caps.msrs.misc &= !(1 << 29);
    let read_only = rig.nested.vmwrite(0x4402, 1, &rig.caps);
    assert_eq!(valid_error(read_only), InsnError::ReadOnlyField);
    let unsupported = rig.nested.vmwrite(0x4410, 1, &rig.caps);
    assert_eq!(valid_error(unsupported), InsnError::UnsupportedField);

    rig.clear(0x2000);
    assert_eq!(rig.nested.vmread(0x681e, &mut rig.hw, &rig.caps), Err(Failure::Invalid));
    assert_eq!(
        rig.nested.vmwrite(0x7_0000, 0, &rig.caps),
        Err(Failure::Invalid),
        "before the field is looked at"
    );
}

#[test]
fn the_region_holds_everything_across_vmclear_and_eviction() {
    let mut rig = Rig::new();
    let v = valid(&rig.caps);
    rig.run();
    rig.leave(&Exit::default());
    // Six more VMCSs than there are copies.
    for n in 3..9 {
        rig.load(n * 0x1000);
        rig.write(Field::GUEST_RIP, n);
    }
    assert_eq!(word(&rig.mem, 0x2000 + layout::LAUNCH as u64), 1);
    rig.load(0x2000);
    assert!(rig.nested.current().unwrap().launched());
    for field in rig.fields().into_iter().filter(|f| f.class() == crate::field::Class::Host) {
        assert_eq!(rig.read(field), v.get(field), "{field:?}");
    }
    assert_eq!(rig.read(Field::GUEST_ES_LIMIT), 0xffff_ffff);
    for n in 3..9 {
        rig.load(n * 0x1000);
        assert_eq!(rig.read(Field::GUEST_RIP), n);
    }
    rig.clear(0x2000);
    assert_eq!(word(&rig.mem, 0x2000 + layout::LAUNCH as u64), 0);
}

#[test]
fn vmptrld_of_a_vmcs_that_is_active_reads_nothing() {
    let mut rig = Rig::new();
    rig.load(0x3000);
    rig.mem.put_u64(Gpa::new(0x2000), 0xdead);
    rig.mem.put_u64(Gpa::new(0x2000 + layout::offset(Field::GUEST_RIP) as u64), 0xbad);
    rig.load(0x2000);
    assert_eq!(rig.read(Field::GUEST_RIP), valid(&rig.caps).get(Field::GUEST_RIP));
}

#[test]
fn vmxoff_leaves_nothing_current_and_writes_back() {
    let mut rig = Rig::new();
    rig.write(Field::GUEST_RIP, 0x77);
    rig.nested.vmxoff(&rig.mem, &mut rig.hw, &rig.caps);
    assert!(!rig.nested.on() && rig.nested.current_gpa().is_none());
    assert_eq!(word(&rig.mem, 0x2000 + layout::offset(Field::GUEST_RIP) as u64), 0x77);
}

#[test]
fn launch_state_and_mov_ss_and_their_order() {
    let mut rig = Rig::new();
    let enter = |rig: &mut Rig, entry, mov_ss| {
        rig.nested.enter(entry, mov_ss, true, &rig.mem, &mut rig.hw, &rig.caps)
    };
    let fails = |error| Err(NoEntry::Fail(Failure::Valid(error), None));
    assert_eq!(enter(&mut rig, Entry::Resume, false), fails(InsnError::VmresumeNotLaunched));
    assert_eq!(enter(&mut rig, Entry::Resume, true), fails(InsnError::BlockedByMovSs), "26 beats 5");
    rig.run();
    rig.leave(&Exit::default());
    assert_eq!(enter(&mut rig, Entry::Launch, false), fails(InsnError::VmlaunchNotClear));
    assert!(enter(&mut rig, Entry::Resume, false).is_ok());
    rig.load(0x3000);
    rig.clear(0x3000);
    assert_eq!(enter(&mut rig, Entry::Launch, true), Err(NoEntry::Fail(Failure::Invalid, None)));
}

#[test]
fn a_refused_launch_leaves_the_vmcs_clear() {
    let mut rig = Rig::new();
    rig.write(Field::HOST_CR3, 1 << 50);
    assert!(rig.enter(Entry::Launch).is_err());
    assert!(!rig.nested.current().unwrap().launched());
    assert!(rig.hw.writes.is_empty(), "nothing reached vmcs02");
}

#[test]
fn invept_and_invvpid_check_their_operands() {
    let rig = Rig::new();
    let bad = Err(Failure::Valid(InsnError::BadInvalidationOperand));
    let invept = |kind, low, high| rig.nested.invept(kind, low, high, &rig.caps);
    assert_eq!(invept(1, 0x8_005e, 0), Ok(Invept::Single(Gpa::new(0x8_0000))));
    assert_eq!(invept(2, !0, !0), Ok(Invept::All));
    for (kind, low, high) in [
        (0, 0x8_001e, 0),
        (3, 0, 0),
        (1 << 32 | 1, 0x8_001e, 0),
        (1, 0x8_001e, 1),
        (1, 0x8_001d, 0),
        (1, 1 << 40 | 0x1e, 0),
    ] {
        assert_eq!(invept(kind, low, high).map(|_| ()), bad, "{kind} {low:#x} {high:#x}");
    }
    let invvpid = |kind, low, high| rig.nested.invvpid(kind, low, high, &rig.caps);
    assert_eq!(
        invvpid(0, 5, 0xffff_8000_0000_0000),
        Ok(Invvpid::Address { vpid: 5, address: 0xffff_8000_0000_0000 })
    );
    assert_eq!(invvpid(1, 5, !0), Ok(Invvpid::Single(5)));
    assert_eq!(invvpid(2, 0, 0), Ok(Invvpid::All));
    assert_eq!(invvpid(3, 5, 0), Ok(Invvpid::RetainingGlobals(5)));
    for (kind, low, high) in
        [(0, 0, 0), (1, 0, 0), (3, 0, 0), (0, 5, 1 << 47), (1, 0x1_0005, 0), (2, 1 << 63, 0), (4, 5, 0)]
    {
        assert_eq!(invvpid(kind, low, high).map(|_| ()), bad, "{kind} {low:#x} {high:#x}");
    }
}

#[test]
fn operands_are_decoded_and_judged_by_segment() {
    // [rax + rcx*8 + disp] in GS, 64-bit addresses
    let info = InsnInfo(3 | 2 << 7 | 5 << 15 | 1 << 18 | 7 << 28);
    let Place::Memory(memory) = info.place(true) else { panic!() };
    assert_eq!((memory.segment, memory.base, memory.index, info.register2()), (5, Some(0), Some((1, 3)), 7));
    let regs = |r: u8| if r == 0 { 0x1000u64 } else { 2 };
    let flat = SegmentView { base: 0x7_0000, limit: 0xffff_ffff, rights: 0xc093 };
    let canonical = |a: u64| caps().is_canonical(a);
    let go = |displacement, long, segment: SegmentView, write, m| {
        linear(m, Access { displacement, bytes: 8, write }, long, &segment, regs, canonical)
    };
    assert_eq!(go(0x20, true, flat, false, &memory).unwrap().raw(), 0x7_1030);
    assert_eq!(go(0x7fff_ffff_ffff, true, flat, false, &memory), Err(Fault::GeneralProtection));
    // A register operand; only VMREAD and VMWRITE have one.
    let register = InsnInfo(1 << 10 | 3 << 3 | 1 << 27 | 1 << 22 | 1 << 7);
    assert_eq!(register.place(true), Place::Register(3));
    assert!(matches!(register.place(false), Place::Memory(m) if m.base.is_none() && m.index.is_none()));
    // Legacy: limits, types, wrapping at the address size, #SS for the stack.
    let Place::Memory(legacy) = InsnInfo(1 << 7 | 2 << 15 | 1 << 22 | 1 << 27).place(false) else { panic!() };
    let small = SegmentView { limit: 0xfff, base: 0x100, ..flat };
    assert_eq!(go(0xff8, false, small, true, &legacy).unwrap().raw(), 0x10f8);
    assert_eq!(go(0xff9, false, small, true, &legacy), Err(Fault::Stack));
    assert_eq!(
        go(0, false, SegmentView { rights: 0xc091, ..small }, true, &legacy),
        Err(Fault::Stack),
        "read-only"
    );
    assert_eq!(
        go(0, false, SegmentView { rights: 1 << 16 | 0xc093, ..small }, false, &legacy),
        Err(Fault::Stack)
    );
    let down = SegmentView { rights: 0x97, ..small };
    assert_eq!(go(0x1000, false, down, true, &legacy).unwrap().raw(), 0x1100);
    assert_eq!(go(0xfff, false, down, true, &legacy), Err(Fault::Stack));
    assert_eq!(go(0xfff9, false, down, true, &legacy), Err(Fault::Stack), "16-bit expand-down ends at FFFFh");
    let code = SegmentView { rights: 0xc09b, ..flat };
    assert!(go(0, false, code, false, &legacy).is_ok() && go(0, false, code, true, &legacy).is_err());
}

#[test]
fn an_l2_reaches_its_shadow_vmcs_where_l1_lets_it() {
    let mut rig = Rig::new();
    rig.mem.put_u64(Gpa::new(0x6000), u64::from(REVISION | SHADOW_INDICATOR));
    rig.write(Field::SECONDARY_CONTROLS, (secondary::EPT | secondary::VMCS_SHADOWING).into());
    rig.write(Field::VMCS_LINK_POINTER, 0x6000);
    rig.run();
    let c12 = rig.nested.running().unwrap();
    let go = |encoding, byte| shadow_access(c12, encoding, &rig.caps, |_| byte);
    let rip =
        ShadowAccess::At { offset: layout::offset(Field::GUEST_RIP), high: false, field: Field::GUEST_RIP };
    assert_eq!(go(0x681e, 0), rip);
    assert_eq!(go(0x681e, 0x40), ShadowAccess::Reflect, "its bit is set");
    assert_eq!(go(0x1_681e, 0), ShadowAccess::Reflect, "outside the bitmap");
    assert_eq!(go(0x2034, 0), ShadowAccess::Reflect, "no such field: L1 decides what its guest hears");
}
