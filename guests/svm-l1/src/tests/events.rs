//! Injection, virtual and physical interrupts, GIF. (APM vol. 2, "Event Injection", "Interrupt and Local APIC Support",
//! "Global Interrupt Flag, STGI and CLGI Instructions".)

use crate::arena::peek;
use crate::l2::{L2, reg};
use crate::npt::{Npt, WINDOW};
use crate::runner::{Bad, Outcome, Runner};
use crate::vmcb::*;
use crate::{apic, check, check_eq, check_exit, code, cpu, trap};

const VALID: u64 = 1 << 31;
const EV: u64 = 1 << 11;
const INTR: u64 = 0;
const NMI: u64 = 2 << 8;
const EXCEPTION: u64 = 3 << 8;
const SOFT: u64 = 4 << 8;
const IF: u64 = 1 << 9;
const TF: u64 = 1 << 8;

fn inject(event: u64, flags: u64) -> (L2, u64) {
    let mut l2 = L2::new(code!("nop"));
    l2.vmcb.or(RFLAGS, flags);
    l2.vmcb.set(EVENTINJ, event | VALID);
    let exit = l2.run();
    (l2, exit)
}

/// The guest has arrived in handler `vector`.
fn handled(l2: &L2, vector: u64) -> Outcome {
    check_exit!(l2, l2.vmcb.get(EXIT_CODE), exit::VMMCALL);
    check_eq!("handler", l2.vmcb.get(RAX), 0x1000 + vector);
    Ok(())
}

fn injection(r: &mut Runner<'_>) {
    let cases: [(&str, u64, u64, Option<u64>); 9] = [
        ("exception", EXCEPTION | 6, 0, None),
        ("exception_with_error", EXCEPTION | 13 | EV | 0x1234 << 32, 0, Some(0x1234)),
        ("page_fault", EXCEPTION | 14 | EV | 7 << 32, 0, Some(7)),
        ("debug", EXCEPTION | 1, 0, None),
        ("interrupt", INTR | 0x41, IF, None),
        ("interrupt_despite_if_0", INTR | 0x41, 0, None),
        ("interrupt_31", INTR | 31, 0, None),
        ("interrupt_255", INTR | 255, 0, None),
        ("nmi", NMI | 2, 0, None),
    ];
    for (name, event, flags, error) in cases {
        r.case("inject", name, None, || {
            let (l2, _) = inject(event, flags);
            handled(&l2, event & 0xff)?;
            check_eq!("valid bit of EVENTINJ", l2.vmcb.get(EVENTINJ) & VALID, 0);
            let stack = l2.vmcb.get(RSP);
            if let Some(error) = error {
                check_eq!("error code", peek(stack), error);
            }
            let frame = stack + if error.is_some() { 8 } else { 0 };
            check_eq!("cs", peek(frame + 8), 8);
            check_eq!("IF on the stack", peek(frame + 16) & IF, flags);
            check_eq!("IF in the handler", l2.vmcb.get(RFLAGS) & IF, 0);
            Ok(())
        });
    }
    r.case("inject", "software_interrupt", None, || {
        let at = code!("int 0x60");
        let mut l2 = L2::new(at);
        l2.vmcb.set(EVENTINJ, VALID | SOFT | 0x60);
        l2.vmcb.set(NRIP, at + 2);
        l2.run();
        handled(&l2, 0x60)?;
        // With nRIP the return address is that one; without, RIP itself.
        let should = if cpu::svm_features() & 1 << 3 != 0 { at + 2 } else { at };
        check_eq!("return address", peek(l2.vmcb.get(RSP)), should);
        Ok(())
    });
    r.case("inject", "fault_in_delivery", Some("error codes count gates as 16 bytes"), || {
        let mut l2 = L2::new(code!("nop"));
        l2.remove_gate(0x41);
        l2.vmcb.set(EVENTINJ, VALID | INTR | 0x41);
        l2.intercept(0x4b);
        check_exit!(l2, l2.run(), 0x4b);
        check_eq!("error code without EXT", l2.vmcb.get(INFO1) & !1, 0x41 * 8 + 2);
        check_eq!("EXITINTINFO", l2.vmcb.get(EXITINTINFO) & 0xffff_ffff, VALID | 0x41);
        Ok(())
    });
    r.case("inject", "nested_fault_in_delivery", None, || {
        let mut l2 = L2::new(code!("nop"));
        let npt = Npt::new();
        npt.attach(&mut l2);
        trap::write_idt(npt.memory, 0); // contents do not matter: the page is absent
        npt.set_flags(0, 0);
        l2.vmcb.segment(IDTR, 0, 0, 0xfff, WINDOW);
        l2.vmcb.set(EVENTINJ, VALID | EXCEPTION | 13 | EV | 0x18 << 32);
        check_exit!(l2, l2.run(), exit::NPF);
        check_eq!("info2", l2.vmcb.get(INFO2) & !0xfff, WINDOW);
        check_eq!("EXITINTINFO", l2.vmcb.get(EXITINTINFO), 0x18 << 32 | VALID | EV | EXCEPTION | 13);
        Ok(())
    });
    r.case("inject", "exitintinfo_clear_otherwise", None, || {
        let mut l2 = L2::new(code!("nop"));
        l2.vmcb.set(EXITINTINFO, VALID | 0x41);
        check_exit!(l2, l2.run(), exit::VMMCALL);
        check_eq!("EXITINTINFO", l2.vmcb.get(EXITINTINFO) & VALID, 0);
        Ok(())
    });
}

const PRIO: u64 = 5 << int_ctl::PRIO_SHIFT;

fn with_virq(at: u64, flags: u64, ctl: u64) -> L2 {
    let l2 = L2::new(at);
    l2.vmcb.or(RFLAGS, flags);
    l2.vmcb.set(INT_CTL, int_ctl::V_IRQ | int_ctl::MASKING | ctl);
    l2.vmcb.set(INT_VECTOR, 0x51);
    l2
}

fn virtual_interrupts(r: &mut Runner<'_>) {
    r.case("virq", "delivered", None, || {
        let mut l2 = with_virq(code!("nop", "nop"), IF, PRIO);
        l2.run();
        handled(&l2, 0x51)?;
        check_eq!("V_IRQ", l2.vmcb.get(INT_CTL) & int_ctl::V_IRQ, 0);
        Ok(())
    });
    r.case("virq", "held_by_if", None, || {
        let mut l2 = with_virq(code!("nop", "nop"), 0, PRIO);
        check_exit!(l2, l2.run(), exit::VMMCALL);
        check!(l2.vmcb.get(RAX) == 0, "delivered with IF 0");
        check_eq!("V_IRQ", l2.vmcb.get(INT_CTL) & int_ctl::V_IRQ, int_ctl::V_IRQ);
        Ok(())
    });
    r.case("virq", "delivered_after_sti", None, || {
        let mut l2 = with_virq(code!("sti", "nop", "mov ebx, 1"), 0, PRIO);
        l2.run();
        handled(&l2, 0x51)?;
        check_eq!("ran on", l2.regs[reg::RBX], 0);
        Ok(())
    });
    let equal = Some("equal priority counts as higher");
    for (name, tpr, lax, delivered) in [
        ("held_by_equal_tpr", 5, equal, false),
        ("held_by_higher_tpr", 6, None, false),
        ("above_tpr", 4, None, true),
    ] {
        r.case("virq", name, lax, || {
            let mut l2 = with_virq(code!("nop", "nop"), IF, PRIO | tpr);
            check_exit!(l2, l2.run(), exit::VMMCALL);
            check_eq!("delivered", l2.vmcb.get(RAX) == 0x1051, delivered);
            Ok(())
        });
    }
    r.case("virq", "tpr_ignored", None, || {
        let mut l2 = with_virq(code!("nop", "nop"), IF, PRIO | 15 | int_ctl::IGN_TPR);
        l2.run();
        handled(&l2, 0x51)
    });
    r.case("virq", "cr8_is_v_tpr", None, || {
        let mut l2 = with_virq(code!("mov cr8, rcx", "mov rbx, cr8"), 0, 0);
        l2.regs[reg::RCX] = 9;
        check_exit!(l2, l2.run(), exit::VMMCALL);
        check_eq!("V_TPR", l2.vmcb.get(INT_CTL) & 0xf, 9);
        check_eq!("CR8 in L2", l2.regs[reg::RBX], 9);
        let host: u64;
        // SAFETY: reads the task priority.
        unsafe { core::arch::asm!("mov {}, cr8", out(reg) host) };
        check_eq!("CR8 in L1", host, 0);
        Ok(())
    });
    r.case("virq", "held_by_shadow", Some("the shadow does not hold V_IRQ at VMRUN"), || {
        let at = code!("mov ebx, 1", "mov ecx, 1", "nop");
        let mut l2 = with_virq(at, IF, PRIO);
        l2.vmcb.set(INT_SHADOW, 1);
        l2.run();
        handled(&l2, 0x51)?;
        check_eq!("first and second instruction", (l2.regs[reg::RBX], l2.regs[reg::RCX]), (1, 0));
        Ok(())
    });
    r.case("virq", "shadow_is_saved", None, || {
        let mut l2 = L2::new(code!("sti"));
        check_exit!(l2, l2.run(), exit::VMMCALL);
        check_eq!("interrupt shadow", l2.vmcb.get(INT_SHADOW) & 1, 1);
        Ok(())
    });
    r.case("virq", "window", None, || {
        let at = code!("sti", "nop", "mov ebx, 1");
        let mut l2 = with_virq(at, 0, PRIO);
        l2.intercept(exit::VINTR);
        check_exit!(l2, l2.run(), exit::VINTR);
        check_eq!("rip", l2.vmcb.get(RIP), at + 2);
        check_eq!("V_IRQ", l2.vmcb.get(INT_CTL) & int_ctl::V_IRQ, int_ctl::V_IRQ);
        Ok(())
    });
    r.case("virq", "after_injection", None, || {
        // The injected event comes first; its handler starts with IF 0, so the virtual one stays pending.
        let mut l2 = with_virq(code!("nop"), IF, PRIO);
        l2.vmcb.set(EVENTINJ, VALID | INTR | 0x42);
        l2.run();
        handled(&l2, 0x42)?;
        check_eq!("V_IRQ", l2.vmcb.get(INT_CTL) & int_ctl::V_IRQ, int_ctl::V_IRQ);
        Ok(())
    });
}

const VECTOR: u8 = 0x50;

/// Make `VECTOR` pending while GIF is 0, with the host's IF as given; run; count what reached L1 and when.
fn with_pending(l2: &mut L2, host_if: bool) -> (u64, u32) {
    trap::take_count(VECTOR);
    cpu::clgi();
    apic::self_ipi(VECTOR);
    if host_if {
        cpu::sti();
    }
    let exit = l2.run_gif0();
    let early = trap::take_count(VECTOR);
    cpu::stgi();
    cpu::nop();
    cpu::sti();
    cpu::nop();
    cpu::cli();
    (exit, early)
}

fn physical(r: &mut Runner<'_>) {
    let spin = code!("2:", "inc rbx", "cmp rbx, 100000", "jb 2b");
    r.case("intr", "exits_before_first_instruction", None, || {
        let at = code!("inc rbx");
        let mut l2 = L2::new(at);
        l2.vmcb.set(INT_CTL, int_ctl::MASKING);
        l2.intercept(exit::INTR);
        let (code, early) = with_pending(&mut l2, true);
        check_exit!(l2, code, exit::INTR);
        check_eq!("guest's progress", (l2.regs[reg::RBX], l2.vmcb.get(RIP)), (0, at));
        check_eq!("interrupts in L1 with GIF 0", early, 0);
        check_eq!("interrupts in L1 after STGI", trap::take_count(VECTOR), 1);
        Ok(())
    });
    r.case("intr", "host_if_0_masks", None, || {
        let mut l2 = L2::new(spin);
        l2.vmcb.set(INT_CTL, int_ctl::MASKING);
        l2.vmcb.or(RFLAGS, IF);
        l2.intercept(exit::INTR);
        let (code, early) = with_pending(&mut l2, false);
        check_exit!(l2, code, exit::VMMCALL);
        check_eq!("guest's progress", l2.regs[reg::RBX], 100_000);
        check_eq!("interrupts", (early, trap::take_count(VECTOR)), (0, 1));
        Ok(())
    });
    r.case("intr", "guest_if_does_not_mask", None, || {
        let mut l2 = L2::new(spin);
        l2.vmcb.set(INT_CTL, int_ctl::MASKING);
        l2.intercept(exit::INTR);
        check_exit!(l2, with_pending(&mut l2, true).0, exit::INTR);
        trap::take_count(VECTOR);
        Ok(())
    });
    r.case("intr", "without_masking_guest_if_masks", None, || {
        let mut l2 = L2::new(spin);
        l2.intercept(exit::INTR);
        check_exit!(l2, with_pending(&mut l2, true).0, exit::VMMCALL);
        check_eq!("interrupts after STGI", trap::take_count(VECTOR), 1);
        Ok(())
    });
    r.case("intr", "without_masking_guest_if_opens", None, || {
        let mut l2 = L2::new(spin);
        l2.vmcb.or(RFLAGS, IF);
        l2.intercept(exit::INTR);
        check_exit!(l2, with_pending(&mut l2, false).0, exit::INTR);
        check_eq!("interrupts after STGI", trap::take_count(VECTOR), 1);
        Ok(())
    });
    r.case("intr", "straight_to_guest", None, || {
        // No intercept, no masking: the guest takes the interrupt by its own IDT.
        let mut l2 = L2::new(spin);
        l2.vmcb.or(RFLAGS, IF);
        let (_, early) = with_pending(&mut l2, false);
        // The guest has acknowledged it at the controller; only the EOI is missing.
        apic::eoi();
        handled(&l2, VECTOR.into())?;
        check_eq!("interrupts in L1", (early, trap::take_count(VECTOR)), (0, 0));
        Ok(())
    });
    r.case("intr", "straight_to_guest_behind_a_shadow", Some("the shadow does not hold interrupts"), || {
        // L1's IF gates it, not L2's, and the shadow holds it for one instruction.
        let mut l2 = L2::new(code!("mov ebx, 1", "mov ecx, 1", "2:", "inc rdx", "cmp rdx, 100000", "jb 2b"));
        l2.vmcb.set(INT_CTL, int_ctl::MASKING);
        l2.vmcb.set(INT_SHADOW, 1);
        let (_, early) = with_pending(&mut l2, true);
        apic::eoi();
        handled(&l2, VECTOR.into())?;
        check_eq!("first and second instruction", (l2.regs[reg::RBX], l2.regs[reg::RCX]), (1, 0));
        let flags = peek(l2.vmcb.get(RSP) + 16);
        check_eq!("TF in L2 and on its stack", (l2.vmcb.get(RFLAGS) & TF, flags & TF), (0, 0));
        check_eq!("DR6", l2.vmcb.get(DR6), 0xffff_0ff0);
        check_eq!("interrupts in L1", (early, trap::take_count(VECTOR)), (0, 0));
        Ok(())
    });
    r.case(
        "intr",
        "behind_a_shadow_that_ends_in_a_fault",
        Some("the shadow does not hold interrupts"),
        || {
            // The fault is delivered with L2's own flags; the interrupt comes before its handler's first instruction.
            let at = code!("ud2");
            let mut l2 = L2::new(at);
            l2.vmcb.set(INT_CTL, int_ctl::MASKING);
            l2.vmcb.set(INT_SHADOW, 1);
            with_pending(&mut l2, true);
            apic::eoi();
            handled(&l2, VECTOR.into())?;
            let inner = l2.vmcb.get(RSP);
            let outer = peek(inner + 24);
            check_eq!("flags of both frames", (peek(inner + 16) & TF, peek(outer + 16) & TF), (0, 0));
            check_eq!("RIP of #UD", peek(outer), at);
            trap::take_count(VECTOR);
            Ok(())
        },
    );
    r.case("nmi", "exits", None, || {
        let mut l2 = L2::new(spin);
        l2.intercept(exit::NMI);
        trap::take_count(2);
        cpu::clgi();
        apic::self_nmi();
        let code = l2.run_gif0();
        let early = trap::take_count(2);
        cpu::stgi();
        cpu::nop();
        check_exit!(l2, code, exit::NMI);
        check_eq!("NMIs in L1", (early, trap::take_count(2)), (0, 1));
        Ok(())
    });
}

fn gif(r: &mut Runner<'_>) {
    r.case("gif", "clgi_holds_interrupts", None, || {
        trap::take_count(VECTOR);
        cpu::clgi();
        cpu::sti();
        apic::self_ipi(VECTOR);
        cpu::nop();
        let early = trap::take_count(VECTOR);
        cpu::stgi();
        cpu::nop();
        cpu::cli();
        check_eq!("before and after STGI", (early, trap::take_count(VECTOR)), (0, 1));
        Ok(())
    });
    r.case("gif", "clgi_holds_nmi", None, || {
        trap::take_count(2);
        cpu::clgi();
        apic::self_nmi();
        cpu::nop();
        let early = trap::take_count(2);
        cpu::stgi();
        cpu::nop();
        check_eq!("before and after STGI", (early, trap::take_count(2)), (0, 1));
        Ok(())
    });
    r.case("gif", "exit_clears", None, || {
        let mut l2 = L2::new(code!("nop"));
        trap::take_count(VECTOR);
        cpu::sti();
        l2.run_gif0();
        apic::self_ipi(VECTOR);
        cpu::nop();
        let early = trap::take_count(VECTOR);
        cpu::stgi();
        cpu::nop();
        cpu::cli();
        check_eq!("before and after STGI", (early, trap::take_count(VECTOR)), (0, 1));
        Ok(())
    });
    for (name, at, before, after) in [
        ("vgif_guest_clgi", code!("clgi"), int_ctl::V_GIF, 0),
        ("vgif_guest_stgi", code!("stgi"), 0, int_ctl::V_GIF),
    ] {
        r.case("gif", name, None, || {
            if cpu::svm_features() & 1 << 16 == 0 {
                return Err(Bad::Skipped("no virtual GIF"));
            }
            let mut l2 = L2::new(at);
            l2.vmcb.set(INT_CTL, int_ctl::V_GIF_ENABLE | before);
            check_exit!(l2, l2.run(), exit::VMMCALL);
            check_eq!("V_GIF", l2.vmcb.get(INT_CTL) & int_ctl::V_GIF, after);
            Ok(())
        });
    }
    for (name, v_gif, delivered) in
        [("vgif_0_holds_virq", 0, false), ("vgif_1_passes_virq", int_ctl::V_GIF, true)]
    {
        r.case("gif", name, (!delivered).then_some("V_IRQ does not look at V_GIF"), || {
            if cpu::svm_features() & 1 << 16 == 0 {
                return Err(Bad::Skipped("no virtual GIF"));
            }
            let mut l2 = with_virq(code!("nop", "nop"), IF, PRIO | int_ctl::V_GIF_ENABLE | v_gif);
            check_exit!(l2, l2.run(), exit::VMMCALL);
            check_eq!("delivered", l2.vmcb.get(RAX) == 0x1051, delivered);
            Ok(())
        });
    }
}

pub fn run(r: &mut Runner<'_>) {
    injection(r);
    virtual_interrupts(r);
    physical(r);
    gif(r);
}
