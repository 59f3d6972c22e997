//! Nested page faults to the bit, accessed and dirty bits, and what a flush must make visible. (APM vol. 2, "Nested
//! Paging", "TLB Control", "Nested Page Faults, Fault Ordering".)

use crate::arena::{peek, poke};
use crate::l2::{L2, reg};
use crate::npt::{A, ALL, D, NX, Npt, P, PS, U, W, WINDOW};
use crate::runner::{Bad, Outcome, Runner};
use crate::vmcb::*;
use crate::{arena, check_eq, check_exit, code, cpu};

const FINAL: u64 = 1 << 32;
const WALK: u64 = 1 << 33;
const RSV: u64 = 8;
const ID: u64 = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
    Fetch,
}
use Access::{Fetch, Read, Write};

/// A guest that accesses `gpa` once; the memory behind holds VMMCALL, so a fetch ends like the others.
fn accessing(npt: &Npt, gpa: u64, access: Access) -> L2 {
    let at = match access {
        Read => code!("mov rbx, [rdi]"),
        Write => code!("mov byte ptr [rdi + 8], 1"),
        Fetch => code!("jmp rdi"),
    };
    let mut l2 = L2::new(at);
    npt.attach(&mut l2);
    l2.regs[reg::RDI] = gpa;
    l2
}

/// Code of VMMCALL and a mark in the upper bytes.
fn contents(n: u64) -> u64 {
    0xd9_010f | n << 32
}

/// name, flags of the leaf, access, INFO1 of the fault if there is one, TCG's excuse.
type Case = (&'static str, u64, Access, Option<u64>, Option<&'static str>);

const RSV_LAX: Option<&str> = Some("P bit of reserved-bit faults");

#[rustfmt::skip]
const LEAVES: &[Case] = &[
    ("rw_read",      P | W | U,      Read,  None,                     None),
    ("rw_write",     P | W | U,      Write, None,                     None),
    ("rw_fetch",     P | W | U,      Fetch, None,                     None),
    ("ro_read",      P | U,          Read,  None,                     None),
    ("ro_write",     P | U,          Write, Some(FINAL | 7),          None),
    ("ro_fetch",     P | U,          Fetch, None,                     None),
    ("nx_read",      P | W | U | NX, Read,  None,                     None),
    ("nx_write",     P | W | U | NX, Write, None,                     None),
    ("nx_fetch",     P | W | U | NX, Fetch, Some(FINAL | ID | 5),     None),
    ("ronx_write",   P | U | NX,     Write, Some(FINAL | 7),          None),
    ("absent_read",  0,              Read,  Some(FINAL | 4),          None),
    ("absent_write", 0,              Write, Some(FINAL | 6),          None),
    ("absent_fetch", 0,              Fetch, Some(FINAL | ID | 4),     None),
    ("absent_wu",    W | U,          Read,  Some(FINAL | 4),          None),
    ("super_read",   P | W,          Read,  Some(FINAL | 5),          None),
    ("super_write",  P | W,          Write, Some(FINAL | 7),          None),
    ("super_fetch",  P | W,          Fetch, Some(FINAL | ID | 5),     None),
];

fn verdict(l2: &mut L2, gpa: u64, access: Access, fault: Option<u64>) -> Outcome {
    let exit = l2.run();
    let Some(info1) = fault else {
        check_exit!(l2, exit, exit::VMMCALL);
        return Ok(());
    };
    check_exit!(l2, exit, exit::NPF);
    check_eq!("info1", l2.vmcb.get(INFO1), info1);
    check_eq!("info2", l2.vmcb.get(INFO2), gpa + if access == Write { 8 } else { 0 });
    if access == Fetch {
        check_eq!("rip", l2.vmcb.get(RIP), gpa);
    }
    Ok(())
}

fn leaves(r: &mut Runner<'_>) {
    for &(name, flags, access, fault, lax) in LEAVES {
        r.case("npt4k", name, lax, || {
            let npt = Npt::new();
            poke(npt.memory, contents(0));
            npt.set_flags(0, flags);
            verdict(&mut accessing(&npt, WINDOW, access), WINDOW, access, fault)
        });
        r.case("npt2m", name, lax, || {
            let npt = Npt::new();
            poke(npt.memory, contents(0));
            // The arena starts at a large page's boundary; the window's second large page maps all of its start.
            poke(npt.pd + 8, arena::START | PS | flags);
            let gpa = WINDOW + (2 << 20) + (npt.memory - arena::START);
            verdict(&mut accessing(&npt, gpa, access), gpa, access, fault)
        });
        r.case("npt1g", name, lax, || {
            if cpu::cpuid(0x8000_0001, 0)[3] & 1 << 26 == 0 {
                return Err(Bad::Skipped("no 1 GiB pages"));
            }
            let npt = Npt::new();
            poke(npt.memory, contents(0));
            poke(npt.pdpt + 8, PS | flags);
            let gpa = (1 << 30) + npt.memory;
            verdict(&mut accessing(&npt, gpa, access), gpa, access, fault)
        });
        // The same permissions taken away one level up.
        r.case("npt_upper", name, lax, || {
            let npt = Npt::new();
            poke(npt.memory, contents(0));
            poke(npt.pd, npt.pt | flags);
            verdict(&mut accessing(&npt, WINDOW, access), WINDOW, access, fault)
        });
    }
    r.case("npt", "reserved_4k", RSV_LAX, || {
        let npt = Npt::new();
        if cpu::maxphys() >= 52 {
            return Err(Bad::Skipped("all address bits exist"));
        }
        poke(npt.pt, npt.memory | ALL | 1 << 51);
        verdict(&mut accessing(&npt, WINDOW, Read), WINDOW, Read, Some(FINAL | RSV | 5))
    });
    r.case("npt", "reserved_2m", RSV_LAX, || {
        let npt = Npt::new();
        poke(npt.pd + 8, arena::START | PS | ALL | 1 << 13);
        let gpa = WINDOW + (2 << 20);
        verdict(&mut accessing(&npt, gpa, Read), gpa, Read, Some(FINAL | RSV | 5))
    });
    r.case("npt", "reserved_ps_in_pml4", RSV_LAX, || {
        let npt = Npt::new();
        poke(npt.root + 8, npt.pdpt | PS | ALL);
        // Beyond the guest's own 4 GiB of tables; let its window's page tables point there.
        let gpa = 1 << 39;
        let mut l2 = accessing(&npt, WINDOW, Read);
        let (pml4, pdpt) = (arena::page(), arena::page());
        let own = peek(cpu::cr3() & !0xfff) & 0x000f_ffff_ffff_f000;
        poke(pml4, pdpt | 7);
        for gib in 0..4 {
            poke(pdpt + gib * 8, peek(own + gib * 8));
        }
        let pd = arena::page();
        poke(pdpt + 16, pd | 7);
        poke(pd, gpa | PS | 7);
        l2.vmcb.set(CR3, pml4);
        verdict(&mut l2, gpa, Read, Some(FINAL | RSV | 5))
    });
}

/// Faults on the guest's own page tables: such accesses count as user writes.
fn guest_walk(r: &mut Runner<'_>) {
    let cases: [(&str, u64, u64); 3] =
        [("absent", 0, WALK | 6), ("read_only", P | U, WALK | 7), ("supervisor", P | W, WALK | 7)];
    for (name, flags, info1) in cases {
        r.case("npt_walk", name, None, || {
            let npt = Npt::new();
            // Page 1 of the window holds a copy of our PML4, without the accessed bit, so that the walk must write.
            poke(npt.memory + 4096, peek(cpu::cr3() & !0xfff) & !A);
            npt.set_flags(1, flags);
            let mut l2 = accessing(&npt, WINDOW, Read);
            l2.vmcb.set(CR3, WINDOW + 4096);
            check_exit!(l2, l2.run(), exit::NPF);
            check_eq!("info1 without ID", l2.vmcb.get(INFO1) & !ID, info1);
            check_eq!("info2", l2.vmcb.get(INFO2) & !0xfff, WINDOW + 4096);
            Ok(())
        });
    }
    r.case("npt_walk", "works_through_window", None, || {
        let npt = Npt::new();
        poke(npt.memory, contents(3));
        poke(npt.memory + 4096, peek(cpu::cr3() & !0xfff) & !A);
        let mut l2 = accessing(&npt, WINDOW, Read);
        l2.vmcb.set(CR3, WINDOW + 4096);
        check_exit!(l2, l2.run(), exit::VMMCALL);
        check_eq!("read", l2.regs[reg::RBX], contents(3));
        check_eq!("accessed bit in the guest's table", peek(npt.memory + 4096) & A, A);
        Ok(())
    });
}

fn accessed_dirty(r: &mut Runner<'_>) {
    for (name, access, bits) in [("read", Read, A), ("write", Write, A | D), ("fetch", Fetch, A)] {
        r.case("npt_ad", name, None, || {
            let npt = Npt::new();
            poke(npt.memory, contents(0));
            npt.set_flags(0, P | W | U);
            poke(npt.pd, npt.pt | P | W | U);
            let mut l2 = accessing(&npt, WINDOW, access);
            check_exit!(l2, l2.run(), exit::VMMCALL);
            check_eq!("leaf", npt.entry(0) & (A | D), bits);
            check_eq!("table above", peek(npt.pd) & A, A);
            check_eq!("neighbour", npt.entry(1) & P, P);
            Ok(())
        });
    }
    r.case("npt_ad", "not_on_faults", None, || {
        let npt = Npt::new();
        npt.set_flags(0, P | U);
        let mut l2 = accessing(&npt, WINDOW, Write);
        check_exit!(l2, l2.run(), exit::NPF);
        check_eq!("dirty bit", npt.entry(0) & D, 0);
        Ok(())
    });
    r.case("npt_ad", "dirty_again_after_clearing", None, || {
        let npt = Npt::new();
        let mut l2 = accessing(&npt, WINDOW, Write);
        check_exit!(l2, l2.run(), exit::VMMCALL);
        npt.set_flags(0, P | W | U);
        let mut again = accessing(&npt, WINDOW, Write);
        again.vmcb.set(TLB_CONTROL, 1);
        check_exit!(again, again.run(), exit::VMMCALL);
        check_eq!("leaf", npt.entry(0) & (A | D), A | D);
        Ok(())
    });
}

/// How L1 tells that it has edited its tables.
type Flush = fn(&mut L2);

fn flush_ways() -> [(&'static str, Option<u32>, Flush); 4] {
    [
        ("flush_all", None, |l2| l2.vmcb.set(TLB_CONTROL, 1)),
        ("flush_this_asid", Some(6), |l2| l2.vmcb.set(TLB_CONTROL, 3)),
        ("new_asid", None, |l2| l2.vmcb.set(ASID, 2)),
        ("invlpga", None, |l2| {
            let asid = l2.vmcb.get(ASID) as u32;
            // SAFETY: drops a translation of the guest's.
            unsafe { core::arch::asm!("invlpga rax, ecx", in("rax") WINDOW, in("ecx") asid) };
        }),
    ]
}

fn rewind(l2: &mut L2, to: u64) {
    l2.vmcb.set(RIP, to);
    l2.regs[reg::RBX] = 0;
}

fn flushes(r: &mut Runner<'_>) {
    let read = code!("mov rbx, [rdi]");
    let write = code!("mov byte ptr [rdi + 8], 1");
    for (name, needs, flush) in flush_ways() {
        r.case("npt_flush_remap", name, None, || {
            if needs.is_some_and(|bit| cpu::svm_features() & 1 << bit == 0) {
                return Err(Bad::Skipped("no such encoding here"));
            }
            let npt = Npt::new();
            poke(npt.memory, 1);
            poke(npt.memory + 4096, 2);
            let mut l2 = accessing(&npt, WINDOW, Read);
            l2.vmcb.set(TLB_CONTROL, 1);
            check_exit!(l2, l2.run(), exit::VMMCALL);
            check_eq!("before", l2.regs[reg::RBX], 1);
            poke(npt.pt, (npt.memory + 4096) | ALL);
            rewind(&mut l2, read);
            l2.vmcb.set(TLB_CONTROL, 0);
            flush(&mut l2);
            check_exit!(l2, l2.run(), exit::VMMCALL);
            check_eq!("after", l2.regs[reg::RBX], 2);
            Ok(())
        });
        r.case("npt_flush_protect", name, None, || {
            if needs.is_some_and(|bit| cpu::svm_features() & 1 << bit == 0) {
                return Err(Bad::Skipped("no such encoding here"));
            }
            let npt = Npt::new();
            let mut l2 = accessing(&npt, WINDOW, Write);
            l2.vmcb.set(TLB_CONTROL, 1);
            check_exit!(l2, l2.run(), exit::VMMCALL);
            npt.set_flags(0, P | U | A | D);
            rewind(&mut l2, write);
            l2.vmcb.set(TLB_CONTROL, 0);
            flush(&mut l2);
            check_exit!(l2, l2.run(), exit::NPF);
            check_eq!("info1", l2.vmcb.get(INFO1), FINAL | 7);
            npt.set_flags(0, 0);
            rewind(&mut l2, write);
            flush(&mut l2);
            // The ASID of "new_asid" is used up: a flush of all stands in for the next new one.
            l2.vmcb.or(TLB_CONTROL, 1);
            check_exit!(l2, l2.run(), exit::NPF);
            check_eq!("info1 when absent", l2.vmcb.get(INFO1), FINAL | 6);
            Ok(())
        });
    }
    r.case("npt_flush", "none_needed_to_add", None, || {
        let npt = Npt::new();
        npt.set_flags(0, 0);
        let mut l2 = accessing(&npt, WINDOW, Write);
        check_exit!(l2, l2.run(), exit::NPF);
        l2.vmcb.set(TLB_CONTROL, 0);
        npt.set_flags(0, P | U);
        check_exit!(l2, l2.run(), exit::NPF);
        check_eq!("info1", l2.vmcb.get(INFO1), FINAL | 7);
        npt.set_flags(0, P | U | W);
        check_exit!(l2, l2.run(), exit::VMMCALL);
        Ok(())
    });
    r.case("npt_flush", "roots_with_own_asids", None, || {
        let (one, two) = (Npt::new(), Npt::new());
        poke(one.memory, 1);
        poke(two.memory, 2);
        let (mut a, mut b) = (accessing(&one, WINDOW, Read), accessing(&two, WINDOW, Read));
        b.vmcb.set(ASID, 2);
        for _ in 0..5 {
            rewind(&mut a, read);
            rewind(&mut b, read);
            check_exit!(a, a.run(), exit::VMMCALL);
            check_exit!(b, b.run(), exit::VMMCALL);
            a.vmcb.set(TLB_CONTROL, 0);
            b.vmcb.set(TLB_CONTROL, 0);
            check_eq!("reads", (a.regs[reg::RBX], b.regs[reg::RBX]), (1, 2));
        }
        Ok(())
    });
    r.case("npt_flush", "edit_of_a_middle_table", None, || {
        let npt = Npt::new();
        poke(npt.memory, 1);
        poke(npt.memory + 4096, 2);
        let mut l2 = accessing(&npt, WINDOW, Read);
        check_exit!(l2, l2.run(), exit::VMMCALL);
        let other = arena::page();
        poke(other, (npt.memory + 4096) | ALL);
        poke(npt.pd, other | ALL);
        rewind(&mut l2, read);
        l2.vmcb.set(TLB_CONTROL, 1);
        check_exit!(l2, l2.run(), exit::VMMCALL);
        check_eq!("after", l2.regs[reg::RBX], 2);
        // Tables that were in use become data, and data become tables.
        poke(npt.pt, 77);
        poke(other, (npt.memory) | ALL);
        rewind(&mut l2, read);
        l2.vmcb.set(TLB_CONTROL, 1);
        check_exit!(l2, l2.run(), exit::VMMCALL);
        check_eq!("at last", (l2.regs[reg::RBX], peek(npt.pt)), (1, 77));
        Ok(())
    });
    r.case("npt_flush", "table_page_as_l2_memory", None, || {
        // L2 edits the table that maps it: its window's page 1 is the level-1 table itself.
        let npt = Npt::new();
        poke(npt.memory, 1);
        poke(npt.memory + 0x2000, 3);
        poke(npt.pt + 8, npt.pt | ALL);
        let mut l2 = L2::new(code!("mov rbx, [rdi]", "mov [rdi + 0x1000], rsi"));
        npt.attach(&mut l2);
        l2.regs[reg::RDI] = WINDOW;
        l2.regs[reg::RSI] = (npt.memory + 0x2000) | ALL;
        check_exit!(l2, l2.run(), exit::VMMCALL);
        check_eq!("entry", npt.entry(0) & !0xfff, npt.memory + 0x2000);
        let mut again = accessing(&npt, WINDOW, Read);
        again.vmcb.set(TLB_CONTROL, 1);
        check_exit!(again, again.run(), exit::VMMCALL);
        check_eq!("after", again.regs[reg::RBX], 3);
        Ok(())
    });
}

/// More roots than a hypervisor below may want to keep, each for an L2 that never comes back; SVM is turned off in
/// between, which ends all claims of those before.
fn many(r: &mut Runner<'_>) {
    r.case("npt", "many_short_lived_roots", None, || {
        let npt = Npt::new();
        poke(npt.memory, contents(1));
        let mut l2 = accessing(&npt, WINDOW, Read);
        for n in 0..600 {
            // A root of its own above the same tables.
            let root = arena::page();
            poke(root, npt.pdpt | ALL);
            l2.vmcb.set(NCR3, root);
            l2.vmcb.set(RIP, code!("mov rbx, [rdi]"));
            l2.regs[reg::RBX] = 0;
            check_exit!(l2, l2.run(), exit::VMMCALL);
            check_eq!("read", l2.regs[reg::RBX], contents(1));
            if n % 50 == 0 {
                cpu::wrmsr(cpu::EFER, cpu::rdmsr(cpu::EFER) & !cpu::SVME);
                cpu::wrmsr(cpu::EFER, cpu::rdmsr(cpu::EFER) | cpu::SVME);
            }
        }
        Ok(())
    });
}

pub fn run(r: &mut Runner<'_>) {
    many(r);
    leaves(r);
    guest_walk(r);
    accessed_dirty(r);
    flushes(r);
}
