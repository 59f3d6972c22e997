//! Owners of exits.

use super::*;
use crate::check::Seen;
use crate::code::{REASONS, Reason};
use crate::route::{L0Wants, Route, cr_exits, exception_exits, route};
use crate::vmcs12::{Cached12, Checked12};

/// A checked vmcs12 with edits.
fn checked(edits: &[(Field, u64)]) -> Cached12 {
    let caps = caps();
    let mut c12 = Cached12::empty(Gpa::new(0x2000));
    c12.data = Checked12 { fields: valid(&caps) };
    edits.iter().for_each(|(f, v)| c12.edit(*f, *v));
    c12.check(&caps, &Seen::default(), true).expect("valid");
    c12
}

fn owner(c12: &Cached12, exit: Exit) -> Route {
    route(&exit, c12.checked().unwrap(), &L0Wants::default(), &Flat(0))
}
fn plain(reason: Reason) -> Exit {
    Exit { reason: reason.0.into(), ..Exit::default() }
}

#[test]
fn every_reason_has_an_owner_and_unknown_ones_are_l1s() {
    let c12 = checked(&[]);
    for number in 0..=u16::MAX {
        let got = owner(&c12, plain(Reason(number)));
        if !REASONS.contains(&Reason(number)) {
            assert_eq!(got, Route::L1, "{number}");
        }
    }
    for number in [33, 34, 41, 48, 10, 999] {
        let failed = Exit { reason: 1 << 31 | number, ..Exit::default() };
        assert_eq!(owner(&c12, failed), Route::L0, "the processor refused our vmcs02: never L1's doing");
    }
}

#[test]
fn some_exits_are_always_l1s() {
    let c12 = checked(&[]);
    for reason in [
        Reason::TRIPLE_FAULT,
        Reason::INIT,
        Reason::SIPI,
        Reason::TASK_SWITCH,
        Reason::CPUID,
        Reason::GETSEC,
        Reason::INVD,
        Reason::VMCALL,
        Reason::VMCLEAR,
        Reason::VMLAUNCH,
        Reason::VMPTRLD,
        Reason::VMPTRST,
        Reason::VMREAD,
        Reason::VMRESUME,
        Reason::VMWRITE,
        Reason::VMXOFF,
        Reason::VMXON,
        Reason::INVEPT,
        Reason::INVVPID,
        Reason::XSETBV,
        Reason::RSM,
        Reason::VIRTUALIZED_EOI,
        Reason::APIC_WRITE,
    ] {
        assert_eq!(owner(&c12, plain(reason)), Route::L1, "{reason:?}");
    }
}

#[test]
fn controls_decide_about_the_others() {
    let p = |bit: u32| (Field::PRIMARY_CONTROLS, u64::from(0x0400_6172 | primary::SECONDARY | bit));
    let s = |bit: u32| (Field::SECONDARY_CONTROLS, u64::from(secondary::EPT | bit));
    let vnmi = (Field::PIN_CONTROLS, 0x16 | 1 | 1 << 3 | 1 << 5);
    let cases = [
        (Reason::HLT, p(primary::HLT)),
        (Reason::INVLPG, p(primary::INVLPG)),
        (Reason::RDPMC, p(primary::RDPMC)),
        (Reason::RDTSC, p(primary::RDTSC)),
        (Reason::RDTSCP, p(primary::RDTSC)),
        (Reason::TPAUSE, p(primary::RDTSC)),
        (Reason::MWAIT, p(primary::MWAIT)),
        (Reason::MONITOR, p(primary::MONITOR)),
        (Reason::MONITOR_TRAP, p(primary::MONITOR_TRAP)),
        (Reason::PAUSE, p(primary::PAUSE)),
        (Reason::PAUSE, s(secondary::PAUSE_LOOP)),
        (Reason::INTERRUPT_WINDOW, p(primary::INTERRUPT_WINDOW)),
        (Reason::NMI_WINDOW, p(primary::NMI_WINDOW)),
        (Reason::TPR_BELOW_THRESHOLD, p(primary::TPR_SHADOW)),
        (Reason::DR_ACCESS, p(primary::MOV_DR)),
        (Reason::IO, p(primary::UNCONDITIONAL_IO)),
        (Reason::GDTR_IDTR, s(secondary::DESCRIPTOR_TABLE)),
        (Reason::LDTR_TR, s(secondary::DESCRIPTOR_TABLE)),
        (Reason::WBINVD, s(secondary::WBINVD)),
        (Reason::RDRAND, s(secondary::RDRAND)),
        (Reason::RDSEED, s(secondary::RDSEED)),
        (Reason::APIC_ACCESS, s(secondary::APIC_ACCESS)),
    ];
    for (reason, control) in cases {
        let off = checked(&[p(0)]);
        assert_eq!(owner(&off, plain(reason)), Route::L0, "{reason:?} not asked for");
        let on = checked(&[p(0), vnmi, control]);
        assert_eq!(owner(&on, plain(reason)), Route::L1, "{reason:?}");
    }
    // INVPCID needs both controls.
    let both = checked(&[p(primary::INVLPG), s(secondary::INVPCID)]);
    assert_eq!(owner(&both, plain(Reason::INVPCID)), Route::L1);
    assert_eq!(owner(&checked(&[p(0), s(secondary::INVPCID)]), plain(Reason::INVPCID)), Route::L0);
    assert_eq!(owner(&checked(&[p(primary::INVLPG)]), plain(Reason::INVPCID)), Route::L0);
    // Secondary controls that are not activated do nothing.
    let inactive = checked(&[
        (Field::PRIMARY_CONTROLS, 0x0400_6172),
        (Field::SECONDARY_CONTROLS, u64::from(secondary::WBINVD)),
    ]);
    assert_eq!(owner(&inactive, plain(Reason::WBINVD)), Route::L0);
    // VMREAD under shadowing is looked at first.
    let shadowing = checked(&[s(secondary::VMCS_SHADOWING)]);
    assert_eq!(owner(&shadowing, plain(Reason::VMREAD)), Route::Both);
}

#[test]
fn what_l0_looks_at_first() {
    let c12 = checked(&[]);
    for reason in [
        Reason::EXTERNAL_INTERRUPT,
        Reason::EPT_VIOLATION,
        Reason::EPT_MISCONFIGURATION,
        Reason::PREEMPTION_TIMER,
        Reason::VMFUNC,
    ] {
        assert_eq!(owner(&c12, plain(reason)), Route::Both, "{reason:?}");
    }
    let shadow_paging = checked(&[(Field::SECONDARY_CONTROLS, 0)]);
    assert_eq!(owner(&shadow_paging, plain(Reason::EPT_VIOLATION)), Route::L0);
    for reason in [Reason::PML_FULL, Reason::BUS_LOCK, Reason::NOTIFY, Reason::MACHINE_CHECK_ENTRY] {
        assert_eq!(owner(&c12, plain(reason)), Route::L0, "{reason:?}");
    }
    let nmi = Exit { intr_info: 1 << 31 | 0x202, ..plain(Reason::EXCEPTION_NMI) };
    assert_eq!(owner(&c12, nmi), Route::Both);
    let mc = Exit { intr_info: 1 << 31 | 0x312, ..plain(Reason::EXCEPTION_NMI) };
    assert_eq!(owner(&c12, mc), Route::Both);
}

#[test]
fn exceptions_go_by_the_bitmap_and_page_faults_by_the_error_code() {
    let exception = |vector: u32, error| Exit {
        intr_info: 1 << 31 | 0x300 | vector,
        intr_error: error,
        ..plain(Reason::EXCEPTION_NMI)
    };
    let ud = checked(&[(Field::EXCEPTION_BITMAP, 1 << 6)]);
    assert_eq!(owner(&ud, exception(6, 0)), Route::L1);
    assert_eq!(owner(&ud, exception(13, 0)), Route::L0);
    let wants = L0Wants { exceptions: 1 << 6, page_fault: true };
    assert_eq!(route(&exception(6, 0), ud.checked().unwrap(), &wants, &Flat(0)), Route::L0);

    // bit, mask, match: does a write fault (error 2) exit?
    for (bit, mask, matching, exits) in [
        (1, 0, 0, true),
        (0, 0, 0, false),
        (1, 2, 2, true),
        (1, 2, 0, false),
        (0, 2, 0, true),
        (0, 2, 2, false),
    ] {
        let c12 = checked(&[
            (Field::EXCEPTION_BITMAP, bit << 14),
            (Field::PFEC_MASK, mask),
            (Field::PFEC_MATCH, matching),
        ]);
        assert_eq!(exception_exits(c12.fields(), 14, 2), exits, "{bit} {mask} {matching}");
        assert_eq!(owner(&c12, exception(14, 2)) == Route::L1, exits);
        assert_eq!(route(&exception(14, 2), c12.checked().unwrap(), &wants, &Flat(0)), Route::L0);
    }
}

#[test]
fn control_register_accesses_compare_with_the_shadow() {
    let c12 = checked(&[
        (Field::CR0_MASK, CR0_PE | CR0_TS | CR0_PG),
        (Field::CR0_SHADOW, CR0_PG | CR0_TS),
        (Field::CR4_MASK, CR4_VMXE | CR4_PAE),
        (Field::CR4_SHADOW, CR4_PAE),
        (
            Field::PRIMARY_CONTROLS,
            (0x0400_6172 | primary::SECONDARY | primary::CR3_LOAD | primary::CR8_STORE).into(),
        ),
        (Field::CR3_TARGET_COUNT, 1),
        (Field::CR3_TARGET_0, 0x7000),
        (Field::CR3_TARGET_1, 0x8000),
    ]);
    let v = c12.fields();
    let to = |cr, value| cr_exits(v, cr, value);
    let from = |cr: u64| cr_exits(v, 1 << 4 | cr, 0);
    assert!(!to(0, CR0_PG | CR0_TS | CR0_WP), "only bits outside the mask change");
    assert!(to(0, CR0_PG) && to(0, CR0_PG | CR0_TS | CR0_PE));
    assert!(!to(4, CR4_PAE | 1) && to(4, CR4_PAE | CR4_VMXE) && to(4, 0));
    assert!(!to(3, 0x7000) && to(3, 0x8000) && to(3, 0x9000), "one target only");
    assert!(!from(3) && from(8) && !to(8, 0));
    assert!(cr_exits(v, 2 << 4, 0), "CLTS with TS in mask and shadow");
    let lmsw = |source: u64| cr_exits(v, 3 << 4 | source << 16, 0);
    assert!(lmsw(CR0_PE | CR0_TS), "sets PE");
    assert!(!lmsw(CR0_TS) && lmsw(0), "TS stays, TS goes");
    let set = checked(&[(Field::CR0_MASK, CR0_PE), (Field::CR0_SHADOW, CR0_PE)]);
    assert!(!cr_exits(set.fields(), 3 << 4, 0), "LMSW can't clear PE");
    assert!(!cr_exits(set.fields(), 2 << 4, 0));
}

#[test]
fn maps_are_asked_where_controls_say_so() {
    let p =
        |bits: u32| checked(&[(Field::PRIMARY_CONTROLS, u64::from(0x0400_6172 | primary::SECONDARY | bits))]);
    let go =
        |c12: &Cached12, exit, byte| route(&exit, c12.checked().unwrap(), &L0Wants::default(), &Flat(byte));
    let rdmsr = Exit { operand: 0xc000_0080, ..plain(Reason::RDMSR) };
    assert_eq!(go(&p(0), rdmsr, 0), Route::L1, "no bitmap: all exit");
    assert_eq!(go(&p(primary::MSR_BITMAPS), rdmsr, 0), Route::L0);
    assert_eq!(go(&p(primary::MSR_BITMAPS), rdmsr, 0xff), Route::L1);
    assert_eq!(
        go(&p(primary::MSR_BITMAPS), Exit { operand: 0x4000_0000, ..rdmsr }, 0),
        Route::L1,
        "in no range"
    );
    let io = Exit { qualification: 0x60 << 16, ..plain(Reason::IO) };
    assert_eq!(
        go(&p(primary::IO_BITMAPS | primary::UNCONDITIONAL_IO), io, 0),
        Route::L0,
        "bitmaps beat the other"
    );
    assert_eq!(go(&p(primary::IO_BITMAPS), io, 1), Route::L1);
    assert_eq!(go(&p(0), io, 0xff), Route::L0);
    let xsaves = |xss| Exit { operand: xss, ..plain(Reason::XSAVES) };
    let c12 = checked(&[(Field::XSS_EXITING_BITMAP, 0x100)]);
    assert_eq!((go(&c12, xsaves(0x100), 0), go(&c12, xsaves(0x200), 0)), (Route::L1, Route::L0));
}
