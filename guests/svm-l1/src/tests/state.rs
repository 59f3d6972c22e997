//! What VMRUN, #VMEXIT, VMLOAD and VMSAVE move, and what they leave alone.

use core::arch::asm;

use crate::l2::{L2, reg};
use crate::runner::Runner;
use crate::vmcb::*;
use crate::{arena, check, check_eq, check_exit, code, cpu};

pub fn run(r: &mut Runner<'_>) {
    r.case("state", "registers", None, || {
        let mut l2 = L2::new(code!("inc rbx", "inc r15", "push rbx", "stc"));
        l2.regs[reg::RBX] = 0x1111;
        l2.regs[13] = 0x2222;
        l2.vmcb.set(RAX, 0x3333);
        let rsp = l2.vmcb.get(RSP);
        check_exit!(l2, l2.run(), exit::VMMCALL);
        check_eq!("rbx, r15, rax", (l2.regs[0], l2.regs[13], l2.vmcb.get(RAX)), (0x1112, 0x2223, 0x3333));
        check_eq!("rsp", l2.vmcb.get(RSP), rsp - 8);
        check_eq!("stack", arena::peek(rsp - 8), 0x1112);
        check_eq!("carry", l2.vmcb.get(RFLAGS) & 1, 1);
        Ok(())
    });
    r.case("state", "cr2", None, || {
        let mut l2 = L2::new(code!("mov rbx, cr2", "mov rcx, 0x5678", "mov cr2, rcx"));
        l2.vmcb.set(CR2, 0x1234);
        cpu::set_cr2(0x9999);
        check_exit!(l2, l2.run(), exit::VMMCALL);
        check_eq!("read by L2", l2.regs[reg::RBX], 0x1234);
        check_eq!("saved", l2.vmcb.get(CR2), 0x5678);
        Ok(())
    });
    r.case("state", "dr6_dr7", None, || {
        let mut l2 = L2::new(code!("mov rbx, dr7", "mov rcx, dr6", "mov rdx, 0x500", "mov dr7, rdx"));
        l2.vmcb.set(DR7, 0x700);
        l2.vmcb.set(DR6, 0xffff_4ff0);
        check_exit!(l2, l2.run(), exit::VMMCALL);
        check_eq!("L2's DR7, DR6", (l2.regs[reg::RBX], l2.regs[reg::RCX]), (0x700, 0xffff_4ff0));
        check_eq!("saved DR7", l2.vmcb.get(DR7), 0x500);
        check_eq!("L1's DR7", cpu::dr7(), 0x400);
        Ok(())
    });
    r.case("state", "host_comes_back", None, host_comes_back);
    r.case("state", "rflags_of_host", None, || {
        let mut l2 = L2::new(code!("stc", "std", "nop"));
        cpu::sti();
        l2.run_gif0();
        let flags: u64;
        // SAFETY: reads the flags by way of our stack.
        unsafe { asm!("pushfq", "pop {}", "cld", out(reg) flags) };
        cpu::cli();
        cpu::stgi();
        check_eq!("IF and DF", flags & 0x600, 0x200);
        Ok(())
    });
    tsc(r);
    r.case("state", "tsc_offset_by_msr", Some("MSR 10h reads as 0"), tsc_msr);
    r.case("state", "vmload_vmsave", None, vmload_vmsave);
    r.case("state", "vmrun_leaves_vmload_state_alone", None, || {
        let mut l2 = L2::new(code!("nop"));
        l2.vmcb.set(LSTAR, 0x1234_5000);
        l2.vmcb.set(Field(FS.0 + 8, 8), 0x7777_0000);
        cpu::wrmsr(0xc000_0082, 0x4321_0000);
        check_exit!(l2, l2.run(), exit::VMMCALL);
        check_eq!("LSTAR", cpu::rdmsr(0xc000_0082), 0x4321_0000);
        check_eq!("FS base", cpu::rdmsr(0xc000_0100), 0);
        check_eq!("VMCB's LSTAR", l2.vmcb.get(LSTAR), 0x1234_5000);
        Ok(())
    });
    r.case("state", "unchanged_fields_may_be_clean", None, clean_bits);
    r.case("state", "lbr_virtualization_bit_ignored", None, || {
        if cpu::svm_features() & 2 != 0 {
            return Err(crate::runner::Bad::Skipped("LBR virtualization is there"));
        }
        let mut l2 = L2::new(code!("nop"));
        l2.vmcb.set(MISC_CTL2, 1);
        check_exit!(l2, l2.run(), exit::VMMCALL);
        Ok(())
    });
    r.case("state", "vmcb_changed_by_guest_while_running", None, || {
        // The guest takes its own CPUID intercept away, and writes another RIP: neither may count before the next VMRUN.
        let at = code!("and dword ptr [rdi + 0x0c], 0x7ffbffff", "mov qword ptr [rdi + 0x578], 0", "cpuid");
        let mut l2 = L2::new(at);
        l2.regs[reg::RDI] = l2.vmcb.0;
        l2.intercept(exit::CPUID);
        check_exit!(l2, l2.run(), exit::CPUID);
        check!(l2.vmcb.get(RIP) > at && l2.vmcb.get(RIP) < at + 32, "rip {:#x}", l2.vmcb.get(RIP));
        Ok(())
    });
    r.case("state", "segments_are_saved", None, || {
        let mut l2 = L2::new(code!("mov eax, 0x18", "mov ds, eax", "xor eax, eax", "mov es, eax"));
        check_exit!(l2, l2.run(), exit::VMMCALL);
        check_eq!("DS selector", l2.vmcb.get(DS) & 0xffff, 0x18);
        check_eq!("ES selector", l2.vmcb.get(ES) & 0xffff, 0);
        Ok(())
    });
    r.case("state", "many_guests", None, || {
        let at = code!("inc rbx");
        let mut guests = [const { None }; 8];
        for g in &mut guests {
            *g = Some(L2::new(at));
        }
        for _ in 0..20 {
            for (n, g) in guests.iter_mut().flatten().enumerate() {
                g.vmcb.set(RIP, at);
                g.vmcb.set(ASID, n as u64 % 3 + 1);
                check_exit!(g, g.run(), exit::VMMCALL);
            }
        }
        check!(guests.iter().flatten().all(|g| g.regs[reg::RBX] == 20), "a guest lost a round");
        Ok(())
    });
}

fn host_comes_back() -> crate::runner::Outcome {
    fn table(load: impl Fn(*mut u8)) -> [u8; 10] {
        let mut t = [0; 10];
        load(t.as_mut_ptr());
        t
    }
    let gdtr = || {
        table(|p| {
            // SAFETY: SGDT writes ten bytes.
            unsafe { asm!("sgdt [{}]", in(reg) p) }
        })
    };
    let idtr = || {
        table(|p| {
            // SAFETY: SIDT writes ten bytes.
            unsafe { asm!("sidt [{}]", in(reg) p) }
        })
    };
    let segments = || {
        let (cs, ss, ds, es): (u16, u16, u16, u16);
        // SAFETY: reads selectors.
        unsafe {
            asm!("mov {0:e}, cs", "mov {1:e}, ss", "mov {2:e}, ds", "mov {3:e}, es", out(reg) cs, out(reg) ss, out(reg) ds, out(reg) es)
        };
        (cs, ss, ds, es)
    };
    let all = || (cpu::cr0(), cpu::cr3(), cpu::cr4(), cpu::rdmsr(cpu::EFER), gdtr(), idtr(), segments());
    let before = all();
    let mut l2 = L2::new(code!(
        "xor eax, eax",
        "mov ds, eax",
        "mov es, eax",
        "mov cr8, rax",
        "lgdt [rdi]",
        "lidt [rdi]"
    ));
    l2.regs[reg::RDI] = arena::page();
    l2.vmcb.or(CR0, 1 << 18);
    l2.vmcb.or(CR4, 1 << 7);
    check_exit!(l2, l2.run(), exit::VMMCALL);
    check!(all() == before, "host state has changed");
    check_eq!("L2's GDT limit", l2.vmcb.get(GDTR) >> 32, 0);
    Ok(())
}

fn tsc(r: &mut Runner<'_>) {
    for (name, offset) in
        [("tsc_offset_0", 0u64), ("tsc_offset_up", 1 << 40), ("tsc_offset_down", (1u64 << 40).wrapping_neg())]
    {
        r.case("state", name, None, || {
            let mut l2 = L2::new(code!("rdtsc", "shl rdx, 32", "or rax, rdx", "mov rbx, rax"));
            l2.vmcb.set(TSC_OFFSET, offset);
            let before = cpu::rdtsc();
            check_exit!(l2, l2.run(), exit::VMMCALL);
            let after = cpu::rdtsc();
            let seen = l2.regs[reg::RBX].wrapping_sub(offset);
            check!((before..=after).contains(&seen), "{seen:#x} is not in {before:#x}..{after:#x}");
            Ok(())
        });
    }
}

/// RDMSR of the counter adds the offset as RDTSC does.
fn tsc_msr() -> crate::runner::Outcome {
    let mut l2 = L2::new(code!("mov ecx, 0x10", "rdmsr"));
    l2.vmcb.set(TSC_OFFSET, 1 << 40);
    let before = cpu::rdtsc();
    check_exit!(l2, l2.run(), exit::VMMCALL);
    let after = cpu::rdtsc();
    let seen = (l2.regs[reg::RDX] << 32 | l2.vmcb.get(RAX) & 0xffff_ffff).wrapping_sub(1 << 40);
    check!((before..=after).contains(&seen), "{seen:#x} is not in {before:#x}..{after:#x}");
    Ok(())
}

const SAVED: [(&str, Field); 10] = [
    ("FS", FS),
    ("GS", GS),
    ("LDTR", LDTR),
    ("TR", TR),
    ("STAR", STAR),
    ("LSTAR", LSTAR),
    ("KERNEL_GS", KERNEL_GS),
    ("SYSENTER_CS", SYSENTER_CS),
    ("SYSENTER_ESP", SYSENTER_ESP),
    ("SYSENTER_EIP", SYSENTER_EIP),
];

fn vmload_vmsave() -> crate::runner::Outcome {
    let (host, from, to) = (Vmcb(arena::page()), Vmcb(arena::page()), Vmcb(arena::page()));
    from.segment(FS, 0x10, 0xc93, u32::MAX, 0x1234_5678_9000);
    from.segment(GS, 0x10, 0xc93, u32::MAX, 0x2345_6789_a000);
    from.segment(LDTR, 0x18, 0x82, 0xfff, 0x3456_7000);
    from.segment(TR, 0x30, 0x8b, 0x67, 0x4567_8000);
    for (n, field) in
        [STAR, LSTAR, CSTAR, KERNEL_GS, SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP].into_iter().enumerate()
    {
        from.set(field, 0x1000 + n as u64);
    }
    from.set(SFMASK, 0x700);
    // SAFETY: the host's own state is saved first and loaded again last; nothing in between uses FS, GS or the TSS.
    unsafe {
        asm!("vmsave rax", in("rax") host.0);
        asm!("vmload rax", in("rax") from.0);
        asm!("vmsave rax", in("rax") to.0);
        asm!("vmload rax", in("rax") host.0);
    }
    for (name, field) in SAVED {
        check_eq!(name, to.get(field), from.get(field));
        if field.0 < 0x4a0 {
            check_eq!(name, to.get(Field(field.0 + 8, 8)), from.get(Field(field.0 + 8, 8)));
        }
    }
    Ok(())
}

/// All clean bits set over a VMCB that has not changed since its last run, then one bit cleared per change.
fn clean_bits() -> crate::runner::Outcome {
    let at = code!("mov rbx, cr2", "rdtsc");
    let mut l2 = L2::new(at);
    l2.vmcb.set(CR2, 0x10);
    check_exit!(l2, l2.run(), exit::VMMCALL);
    // RIP, RAX, RSP, RFLAGS are never cached.
    for (round, cr2) in [0x10u64, 0x20, 0x30].into_iter().enumerate() {
        l2.vmcb.set(CLEAN, 0xfff & !(1 << 9));
        l2.vmcb.set(CR2, cr2);
        l2.vmcb.set(RIP, at);
        if round == 2 {
            l2.intercept(0x6e);
            l2.vmcb.clear(CLEAN, 1);
        }
        check_exit!(l2, l2.run(), if round == 2 { 0x6e } else { exit::VMMCALL });
        check_eq!("CR2", l2.regs[reg::RBX], cr2);
    }
    // Another VMCB: its clean bits say nothing, as it never ran here.
    let mut other = L2::new(code!("mov rbx, cr2"));
    other.vmcb.set(CR2, 0x40);
    other.vmcb.set(CLEAN, 0);
    check_exit!(other, other.run(), exit::VMMCALL);
    check_eq!("CR2 of the other", other.regs[reg::RBX], 0x40);
    Ok(())
}
