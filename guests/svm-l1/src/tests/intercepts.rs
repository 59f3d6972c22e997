//! Each intercept: set, it leads to its exit at the instruction; clear, the guest goes on to its VMMCALL. (APM vol. 2,
//! "Instruction Intercepts", appendix C "SVM Intercept Exit Codes".)

use crate::l2::{L2, reg};
use crate::runner::{Bad, Runner};
use crate::vmcb::*;
use crate::{arena, check, check_eq, check_exit, code, cpu};

/// One instruction.
struct Insn {
    name: &'static str,
    code: u64,
    exit: u64,
    /// Length in bytes, for nRIP.
    length: u64,
    /// Whether it can run without its intercept and leave the guest able to go on.
    free: bool,
    /// Needs this CPUID bit: leaf, register (0 eax … 3 edx), bit.
    needs: Option<(u32, usize, u32)>,
    lax: Option<&'static str>,
}

macro_rules! insns {
    ($($name:ident $text:literal $exit:literal $length:literal $free:literal $needs:expr, $lax:expr;)*) => {
        [$(Insn {
            name: stringify!($name), code: code!($text), exit: $exit, length: $length, free: $free, needs: $needs,
            lax: $lax,
        }),*]
    };
}

/// RBX, RCX, RDX, RSI of the guest are 0; RDI points to a page that holds good descriptor-table operands.
#[rustfmt::skip]
fn table() -> [Insn; 61] {
    const NO: Option<(u32, usize, u32)> = None;
    insns! {
        sidt     "sidt [rdi]"         0x66 3 true  NO, None;
        sgdt     "sgdt [rdi]"         0x67 3 true  NO, None;
        sldt     "sldt eax"           0x68 3 true  NO, None;
        str      "str eax"            0x69 3 true  NO, None;
        lidt     "lidt [rdi]"         0x6a 3 true  NO, None;
        lgdt     "lgdt [rdi]"         0x6b 3 true  NO, None;
        lldt     "lldt cx"            0x6c 3 true  NO, None;
        ltr      "ltr cx"             0x6d 3 false NO, None;
        rdtsc    "rdtsc"              0x6e 2 true  NO, None;
        rdpmc    "rdpmc"              0x6f 2 false NO, Some("RDPMC is not there");
        pushf    "pushfq"             0x70 1 true  NO, None;
        popf     "popfq"              0x71 1 false NO, None;
        cpuid    "cpuid"              0x72 2 true  NO, None;
        iret     "iretq"              0x74 2 false NO, None;
        int_n    "int 0x80"           0x75 2 false NO, None;
        invd     "invd"               0x76 2 true  NO, Some("INVD exits as WBINVD");
        pause    "pause"              0x77 2 true  NO, None;
        hlt      "hlt"                0x78 1 false NO, None;
        invlpg   "invlpg [rdi]"       0x79 3 true  NO, None;
        invlpga  "invlpga rax, ecx"   0x7a 3 true  NO, None;
        vmrun    "vmrun rax"          0x80 3 false NO, None;
        vmmcall  "vmmcall"            0x81 3 false NO, None;
        vmload   "vmload rax"         0x82 3 false NO, None;
        vmsave   "vmsave rax"         0x83 3 true  NO, Some("VMSAVE always exits");
        stgi     "stgi"               0x84 3 true  NO, None;
        clgi     "clgi"               0x85 3 true  NO, None;
        skinit   "skinit eax"         0x86 3 false Some((0x8000_0001, 2, 12)), None;
        rdtscp   "rdtscp"             0x87 3 true  Some((0x8000_0001, 3, 27)), Some("no such intercept");
        icebp    ".byte 0xf1"         0x88 1 false NO, Some("no such intercept");
        wbinvd   "wbinvd"             0x89 2 true  NO, None;
        monitor  "monitor"            0x8a 3 false Some((1, 2, 3)), None;
        mwait    "mwait"              0x8b 3 false Some((1, 2, 3)), None;
        xsetbv   "xsetbv"             0x8d 3 false Some((1, 2, 26)), Some("no such intercept");
        cr0_read "mov rax, cr0"       0x00 3 true  NO, None;
        cr3_read "mov rax, cr3"       0x03 3 true  NO, Some("only the CR0 intercept is looked at");
        cr4_read "mov rax, cr4"       0x04 3 true  NO, Some("only the CR0 intercept is looked at");
        cr8_read "mov rax, cr8"       0x08 4 true  NO, Some("only the CR0 intercept is looked at");
        cr2_read "mov rax, cr2"       0x02 3 true  NO, Some("only the CR0 intercept is looked at");
        cr0_write "mov cr0, r8"       0x10 4 true  NO, None;
        cr2_write "mov cr2, rbx"      0x12 3 true  NO, None;
        cr3_write "mov cr3, r9"       0x13 4 true  NO, None;
        cr4_write "mov cr4, r10"      0x14 4 true  NO, None;
        cr8_write "mov cr8, rbx"      0x18 4 true  NO, None;
        clts     "clts"               0x10 2 true  NO, None;
        lmsw     "lmsw r8w"           0x10 4 true  NO, None;
        smsw     "smsw eax"           0x00 3 true  NO, Some("SMSW does not look at the intercept");
        dr0_read "mov rax, dr0"       0x20 3 true  NO, None;
        dr3_read "mov rax, dr3"       0x23 3 true  NO, None;
        dr6_read "mov rax, dr6"       0x26 3 true  NO, None;
        dr7_read "mov rax, dr7"       0x27 3 true  NO, None;
        dr0_write "mov dr0, rbx"      0x30 3 true  NO, None;
        dr1_write "mov dr1, rbx"      0x31 3 true  NO, None;
        dr6_write "mov dr6, rbx"      0x36 3 true  NO, None;
        dr7_write "mov dr7, rbx"      0x37 3 true  NO, None;
        ud2      "ud2"                0x46 2 false NO, None;
        div_zero "div ecx"            0x40 2 false NO, None;
        gp       "mov rax, [r11]"     0x4d 3 false NO, Some("non-canonical addresses fault as #PF");
        nm       "fninit"             0x47 2 false NO, None;
        ss_fault "mov rax, [rbp]"     0x4c 4 false NO, Some("non-canonical addresses fault as #PF");
        np       "mov fs, edx"        0x4b 2 false NO, None;
        debug    "nop"                0x41 1 false NO, Some("VMRUN does not arm breakpoints");
    }
}

fn guest(i: &Insn) -> L2 {
    let mut l2 = L2::new(i.code);
    let page = arena::page();
    // Operand of LGDT, LIDT: the GDT, which serves as both for code that takes no interrupt.
    arena::poke(page, l2.vmcb.get(Field(GDTR.0 + 8, 8)) << 16 | 79);
    arena::poke(page + 8, 0);
    l2.regs[reg::RDI] = page;
    l2.regs[5] = 1 << 63; // RBP, not canonical
    l2.regs[reg::R8] = cpu::cr0();
    l2.regs[reg::R8 + 1] = cpu::cr3();
    l2.regs[reg::R8 + 2] = cpu::cr4();
    l2.regs[reg::R8 + 3] = 1 << 63; // R11, not canonical
    l2.vmcb.set(RAX, arena::page());
    match i.name {
        "nm" => l2.vmcb.or(CR0, 4),
        "np" => {
            // A GDT of its own with a data segment that is not present.
            arena::poke(page + 0x108, 0x00cf_1300_0000_ffff);
            l2.vmcb.segment(GDTR, 0, 0, 0xf, page + 0x100);
            l2.regs[reg::RDX] = 8;
        }
        "debug" => {
            // A code breakpoint on the instruction: a fault, so RIP stays.
            l2.vmcb.set(DR7, 0x402);
            // SAFETY: DR0 is not in the VMCB; nothing in the host enables it.
            unsafe { core::arch::asm!("mov dr0, {}", in(reg) i.code) };
        }
        _ => {}
    }
    l2
}

pub fn run(r: &mut Runner<'_>) {
    for i in &table() {
        r.case("intercept", i.name, i.lax, || {
            if let Some((leaf, register, bit)) = i.needs
                && cpu::cpuid(leaf, 0)[register] & 1 << bit == 0
            {
                return Err(Bad::Skipped("no such instruction here"));
            }
            if i.name == "xsetbv" {
                cpu::set_cr4(cpu::cr4() | 1 << 18);
            }
            let mut l2 = guest(i);
            l2.intercept(i.exit);
            let exit = l2.run();
            cpu::set_cr4(cpu::cr4() & !(1 << 18));
            check_exit!(l2, exit, i.exit);
            check_eq!("rip", l2.vmcb.get(RIP), i.code);
            check_eq!("EXITINTINFO", l2.vmcb.get(EXITINTINFO) >> 31 & 1, 0);
            if cpu::svm_features() & 1 << 3 != 0 && !(0x40..0x60).contains(&i.exit) {
                check_eq!("nRIP", l2.vmcb.get(NRIP), i.code + i.length);
            }
            Ok(())
        });
        if i.free {
            let name = crate::runner::Text::new(format_args!("{}_free", i.name));
            r.case("intercept", name.as_str(), i.lax, || {
                if let Some((leaf, register, bit)) = i.needs
                    && cpu::cpuid(leaf, 0)[register] & 1 << bit == 0
                {
                    return Err(Bad::Skipped("no such instruction here"));
                }
                let mut l2 = guest(i);
                check_exit!(l2, l2.run(), exit::VMMCALL);
                check_eq!("rip", l2.vmcb.get(RIP), i.code + i.length);
                Ok(())
            });
        }
    }
    exceptions(r);
    selective_cr0(r);
    decode_assists(r);
}

fn exceptions(r: &mut Runner<'_>) {
    r.case("exception", "page_fault_info", None, || {
        let at = code!("mov [rdi], eax");
        let mut l2 = L2::new(at);
        l2.regs[reg::RDI] = 0x1_2345_6788; // beyond our 4 GiB of tables
        cpu::set_cr2(0x1111);
        l2.intercept(0x4e);
        check_exit!(l2, l2.run(), 0x4e);
        check_eq!("error code", l2.vmcb.get(INFO1), 2);
        check_eq!("address", l2.vmcb.get(INFO2), 0x1_2345_6788);
        check_eq!("rip", l2.vmcb.get(RIP), at);
        // "Page fault intercept": CR2 is not changed.
        check_eq!("CR2", l2.vmcb.get(CR2), 0);
        Ok(())
    });
    r.case("exception", "page_fault_free", None, || {
        let mut l2 = L2::new(code!("mov [rdi], eax"));
        l2.regs[reg::RDI] = 0x1_2345_6788;
        check_exit!(l2, l2.run(), exit::VMMCALL);
        check_eq!("handler", l2.vmcb.get(RAX), 0x100e);
        check_eq!("CR2", l2.vmcb.get(CR2), 0x1_2345_6788);
        check_eq!("error code on the stack", arena::peek(l2.vmcb.get(RSP)), 2);
        Ok(())
    });
    r.case("exception", "selector_error_code", None, || {
        let mut l2 = L2::new(code!("mov fs, edx"));
        l2.regs[reg::RDX] = 0x1f8; // beyond the GDT
        l2.intercept(0x4d);
        check_exit!(l2, l2.run(), 0x4d);
        check_eq!("error code", l2.vmcb.get(INFO1), 0x1f8);
        Ok(())
    });
    r.case("exception", "breakpoint", Some("the intercept does not see INT3"), || {
        let at = code!("int3");
        let mut l2 = L2::new(at);
        l2.intercept(0x43);
        check_exit!(l2, l2.run(), 0x43);
        check_eq!("rip", l2.vmcb.get(RIP), at);
        Ok(())
    });
    r.case("exception", "breakpoint_free", None, || {
        let mut l2 = L2::new(code!("int3"));
        check_exit!(l2, l2.run(), exit::VMMCALL);
        check_eq!("handler", l2.vmcb.get(RAX), 0x1003);
        Ok(())
    });
    r.case("exception", "double_fault_free", None, || {
        // #GP whose gate is no gate: another #GP while delivering it is a double fault.
        let mut l2 = L2::new(code!("mov fs, edx"));
        l2.regs[reg::RDX] = 0x1f8;
        arena::poke(l2.idt + 13 * 16, 0);
        check_exit!(l2, l2.run(), exit::VMMCALL);
        check_eq!("handler", l2.vmcb.get(RAX), 0x1008);
        Ok(())
    });
    r.case("exception", "double_fault", Some("the intercept does not see double faults"), || {
        let mut l2 = L2::new(code!("mov fs, edx"));
        l2.regs[reg::RDX] = 0x1f8;
        arena::poke(l2.idt + 13 * 16, 0);
        l2.intercept(0x48);
        check_exit!(l2, l2.run(), 0x48);
        Ok(())
    });
    r.case("exception", "nested_reports_the_first", Some("error codes count gates as 16 bytes"), || {
        // #NP intercepted while #GP is being delivered: EXITINTINFO holds the #GP.
        let mut l2 = L2::new(code!("mov fs, edx"));
        l2.regs[reg::RDX] = 0x1f8;
        l2.remove_gate(13);
        l2.intercept(0x4b);
        check_exit!(l2, l2.run(), 0x4b);
        check_eq!("error code without EXT", l2.vmcb.get(INFO1) & !1, 13 * 8 + 2);
        check_eq!("EXITINTINFO", l2.vmcb.get(EXITINTINFO), 0x1f8 << 32 | 0x8000_0b0d);
        Ok(())
    });
    r.case("exception", "shutdown", None, || {
        let mut l2 = L2::new(code!("ud2"));
        l2.vmcb.segment(IDTR, 0, 0, 0, 0);
        check_exit!(l2, l2.run(), exit::SHUTDOWN);
        let (mut good, free) = (L2::new(code!("nop")), exit::VMMCALL);
        check_exit!(good, good.run(), free);
        Ok(())
    });
}

/// The selective intercept looks only at bits other than TS and MP; the plain one beats it. (APM vol. 2, "Intercepts of
/// Control Register Accesses".)
fn selective_cr0(r: &mut Runner<'_>) {
    let cases: [(&str, u64, bool, u64); 4] = [
        ("ts_and_mp_pass", 0xa, false, exit::VMMCALL),
        ("same_value_passes", 0, false, exit::VMMCALL),
        ("other_bit_exits", 1 << 16, false, exit::CR0_SEL),
        ("plain_wins", 1 << 16, true, 0x10),
    ];
    for (name, flip, plain, should) in cases {
        r.case("cr0_selective", name, None, || {
            let mut l2 = L2::new(code!("mov cr0, r8"));
            l2.regs[reg::R8] = cpu::cr0() ^ flip;
            l2.intercept(exit::CR0_SEL);
            if plain {
                l2.intercept(0x10);
            }
            check_exit!(l2, l2.run(), should);
            Ok(())
        });
    }
}

/// Only where CPUID says so. (APM vol. 2, "Decode Assists".)
fn decode_assists(r: &mut Runner<'_>) {
    let cases: [(&str, u64, u64, u64); 5] = [
        ("mov_to_cr", code!("mov cr4, r10"), 0x14, 1 << 63 | 10),
        ("mov_from_cr", code!("mov rcx, cr3"), 0x03, 1 << 63 | 1),
        ("mov_dr", code!("mov dr0, rbx"), 0x30, 3),
        ("int_n", code!("int 0x80"), 0x75, 0x80),
        ("invlpg", code!("invlpg [rdi + 0x10]"), 0x79, 0x5010),
    ];
    for (name, at, exit, info1) in cases {
        r.case("decode_assist", name, None, || {
            if cpu::svm_features() & 1 << 7 == 0 {
                return Err(Bad::Skipped("no decode assists"));
            }
            let mut l2 = L2::new(at);
            l2.regs[reg::RDI] = 0x5000;
            l2.intercept(exit);
            check_exit!(l2, l2.run(), exit);
            check_eq!("info1", l2.vmcb.get(INFO1), info1);
            Ok(())
        });
    }
    r.case("decode_assist", "npf_bytes", None, || {
        if cpu::svm_features() & 1 << 7 == 0 {
            return Err(Bad::Skipped("no decode assists"));
        }
        let mut l2 = L2::new(code!("mov [rdi], eax"));
        let npt = crate::npt::Npt::new();
        npt.attach(&mut l2);
        npt.set_flags(0, 0);
        l2.regs[reg::RDI] = crate::npt::WINDOW;
        check_exit!(l2, l2.run(), exit::NPF);
        check!(l2.vmcb.get(INSN_LEN) & 15 >= 2, "{} bytes", l2.vmcb.get(INSN_LEN));
        check_eq!("bytes", l2.vmcb.get(INSN_BYTES) & 0xffff, 0x0789);
        Ok(())
    });
}
