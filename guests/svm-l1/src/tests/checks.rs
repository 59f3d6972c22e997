//! VMRUN's consistency checks: each illegal state ends in VMEXIT_INVALID, and the guest has not run. (APM vol. 2,
//! "Canonicalization and Consistency Checks".)

use crate::arena::{peek, poke};
use crate::l2::{L2, reg};
use crate::npt::Npt;
use crate::runner::Runner;
use crate::vmcb::*;
use crate::{arena, check, check_eq, check_exit, code, cpu};

/// How a case spoils a good VMCB.
type Spoil = fn(Vmcb);

/// TCG checks most of these; not those.
const LAX: Option<&str> = Some("not checked at VMRUN");

/// A valid event of type `kind` and vector `vector`.
const fn event(kind: u64, vector: u64) -> u64 {
    1 << 31 | kind << 8 | vector
}

#[rustfmt::skip]
const CASES: &[(&str, Option<&str>, Spoil)] = &[
    ("efer_svme_clear",       None, |v| v.clear(EFER, cpu::SVME)),
    ("efer_bit_9",            None, |v| v.or(EFER, 1 << 9)),
    ("efer_bit_63",           None, |v| v.or(EFER, 1 << 63)),
    ("cr0_nw_without_cd",     None, |v| { v.or(CR0, 1 << 29); v.clear(CR0, 1 << 30) }),
    ("cr0_upper_half",        None, |v| v.or(CR0, 1 << 32)),
    ("cr3_reserved",          None, |v| v.or(CR3, 1 << 62)),
    ("cr4_upper_half",        None, |v| v.or(CR4, 1 << 32)),
    ("cr4_reserved_15",       None, |v| v.or(CR4, 1 << 15)),
    ("dr6_upper_half",        None, |v| v.or(DR6, 1 << 32)),
    ("dr7_upper_half",        None, |v| v.or(DR7, 1 << 32)),
    ("lme_pg_without_pae",    None, |v| v.clear(CR4, 1 << 5)),
    ("lme_pg_without_pe",     None, |v| v.clear(CR0, 1)),
    ("cs_l_and_d",            None, |v| v.or(CS, 1 << (16 + 10))),
    ("vmrun_not_intercepted", None, |v| v.clear(MISC2, 1)),
    ("asid_0",                None, |v| v.set(ASID, 0)),
    ("msrpm_beyond_maxphys",  None, |v| { v.or(MISC1, 1 << 28); v.set(MSRPM, (1 << cpu::maxphys()) - 0x1000) }),
    ("iopm_beyond_maxphys",   None, |v| { v.or(MISC1, 1 << 27); v.set(IOPM, (1 << cpu::maxphys()) - 0x2000) }),
    ("event_type_1",          None, |v| v.set(EVENTINJ, event(1, 14))),
    ("event_type_5",          None, |v| v.set(EVENTINJ, event(5, 14))),
    ("event_type_7",          None, |v| v.set(EVENTINJ, event(7, 14))),
    ("event_exception_2",     None, |v| v.set(EVENTINJ, event(3, 2))),
    ("event_exception_32",    None, |v| v.set(EVENTINJ, event(3, 32))),
    ("event_exception_255",   None, |v| v.set(EVENTINJ, event(3, 255))),
];

#[rustfmt::skip]
const NESTED: &[(&str, Option<&str>, Spoil)] = &[
    ("ncr3_beyond_maxphys",   LAX,  |v| v.or(NCR3, 1 << cpu::maxphys())),
    ("g_pat_reserved_type",   LAX,  |v| v.set(G_PAT, 0x0007_0406_0007_0402)),
];

/// A guest that would leave a mark if it ran.
fn witness() -> (L2, u64) {
    let mark = arena::page();
    let mut l2 = L2::new(code!("mov qword ptr [rdi], 1"));
    l2.regs[reg::RDI] = mark;
    (l2, mark)
}

fn refused(mut l2: L2, mark: u64, spoil: Spoil) -> crate::runner::Outcome {
    spoil(l2.vmcb);
    let exit = l2.run();
    // A lax CPU may have gone anywhere from here: look at the mark first.
    check_eq!("guest's mark", peek(mark), 0);
    check_exit!(l2, exit, exit::INVALID);
    check_eq!("valid bit of EVENTINJ", l2.vmcb.get(EVENTINJ) & 1 << 31, 0);
    // The host must go on as if nothing had happened.
    let (mut good, mark) = witness();
    check_exit!(good, good.run(), exit::VMMCALL);
    check_eq!("mark of a good guest", peek(mark), 1);
    Ok(())
}

pub fn run(r: &mut Runner<'_>) {
    for (name, lax, spoil) in CASES {
        r.case("checks", name, *lax, || {
            let (l2, mark) = witness();
            refused(l2, mark, *spoil)
        });
    }
    for (name, lax, spoil) in NESTED {
        r.case("checks", name, *lax, || {
            let (mut l2, mark) = witness();
            Npt::new().attach(&mut l2);
            refused(l2, mark, *spoil)
        });
    }
    r.case("checks", "gif_is_0_after_invalid", None, || {
        let (mut l2, _) = witness();
        l2.vmcb.clear(EFER, cpu::SVME);
        cpu::sti();
        l2.run_gif0();
        crate::trap::take_count(0x50);
        crate::apic::self_ipi(0x50);
        cpu::nop();
        let early = crate::trap::take_count(0x50);
        cpu::stgi();
        cpu::nop();
        cpu::cli();
        check_eq!("interrupts with GIF 0", early, 0);
        check_eq!("interrupts after STGI", crate::trap::take_count(0x50), 1);
        Ok(())
    });
    ignored(r);
}

/// What looks wrong and is not: reserved encodings that hardware ignores.
fn ignored(r: &mut Runner<'_>) {
    const FINE: &[(&str, Spoil)] = &[
        ("tlb_control_reserved", |v| v.set(TLB_CONTROL, 2)),
        ("msrpm_low_bits", |v| v.or(MSRPM, 0xfff)),
        ("iopm_low_bits", |v| v.or(IOPM, 0xfff)),
        ("event_not_valid", |v| v.set(EVENTINJ, 5 << 8 | 2)),
        ("ncr3_without_nested_paging", |v| v.set(NCR3, u64::MAX)),
        ("g_pat_without_nested_paging", |v| v.set(G_PAT, u64::MAX)),
        ("segment_limits", |v| v.segment(DS, 0x10, 0xc93, 0, 0)),
    ];
    for (name, spoil) in FINE {
        r.case("checks_pass", name, None, || {
            let (mut l2, mark) = witness();
            spoil(l2.vmcb);
            check_exit!(l2, l2.run(), exit::VMMCALL);
            check!(peek(mark) == 1, "the guest left no mark");
            poke(mark, 0);
            Ok(())
        });
    }
}
