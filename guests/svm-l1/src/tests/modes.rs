//! L2 in each of the processor's modes, with and without nested paging. (APM vol. 2, "VMRUN Instruction", "Real Mode
//! Support under Nested Paging".)

use crate::arena::{peek, poke};
use crate::l2::L2;
use crate::npt::Npt;
use crate::runner::{Outcome, Runner};
use crate::vmcb::*;
use crate::{arena, check_eq, check_exit, code, cpu};

const PE: u64 = 0x11;
const PG: u64 = 1 << 31;
const PSE: u64 = 1 << 4;
const PAE: u64 = 1 << 5;

/// 16-bit code leaves the upper half of EAX alone; 32-bit code decrements where 64-bit code would see a prefix.
fn code16() -> u64 {
    code!(".code16", "mov ax, 0x1234", ".code64")
}
fn code32() -> u64 {
    code!(".code32", "mov eax, 0x100", "dec eax", "nop", ".code64")
}

struct Mode {
    name: &'static str,
    cr0: u64,
    cr4: u64,
    long: bool,
    /// Attributes of CS.
    cs: u16,
    /// Builds CR3.
    cr3: fn() -> u64,
    nested: bool,
    rax: u64,
}

fn none() -> u64 {
    0
}

/// The four directories of our own tables, by a PDPT as PAE without long mode wants it.
fn pae() -> u64 {
    let own = peek(cpu::cr3() & !0xfff) & !0xfff;
    let pdpt = arena::page();
    for i in 0..4 {
        poke(pdpt + i * 8, peek(own + i * 8) & !0xfff | 1);
    }
    pdpt
}

/// 4 MiB pages.
fn legacy() -> u64 {
    let directory = arena::page();
    for i in (0..1024u64).step_by(2) {
        poke(directory + i * 4, (i << 22 | 0x87) | ((i + 1) << 22 | 0x87) << 32);
    }
    directory
}

#[rustfmt::skip]
const MODES: &[Mode] = &[
    Mode { name: "real_npt",        cr0: 0x10,    cr4: 0,   long: false, cs: 0x09b, cr3: none,   nested: true,  rax: 0xaaaa_1234 },
    Mode { name: "protected16_npt", cr0: PE,      cr4: 0,   long: false, cs: 0x09b, cr3: none,   nested: true,  rax: 0xaaaa_1234 },
    Mode { name: "protected32_npt", cr0: PE,      cr4: 0,   long: false, cs: 0xc9b, cr3: none,   nested: true,  rax: 0xff },
    Mode { name: "legacy_npt",      cr0: PE | PG, cr4: PSE, long: false, cs: 0xc9b, cr3: legacy, nested: true,  rax: 0xff },
    Mode { name: "legacy",          cr0: PE | PG, cr4: PSE, long: false, cs: 0xc9b, cr3: legacy, nested: false, rax: 0xff },
    Mode { name: "pae_npt",         cr0: PE | PG, cr4: PAE, long: false, cs: 0xc9b, cr3: pae,    nested: true,  rax: 0xff },
    Mode { name: "pae",             cr0: PE | PG, cr4: PAE, long: false, cs: 0xc9b, cr3: pae,    nested: false, rax: 0xff },
    Mode { name: "compat_npt",      cr0: PE | PG, cr4: PAE, long: true,  cs: 0xc9b, cr3: cpu::cr3, nested: true,  rax: 0xff },
    Mode { name: "compat",          cr0: PE | PG, cr4: PAE, long: true,  cs: 0xc9b, cr3: cpu::cr3, nested: false, rax: 0xff },
];

fn run_mode(m: &Mode) -> Outcome {
    let bits16 = m.cs & 0x400 == 0;
    let at = if bits16 { code16() } else { code32() };
    let mut l2 = L2::new(if bits16 { 0 } else { at });
    let v = l2.vmcb;
    // 16-bit code is reached by its base, as a real-mode kernel above 64 KiB is.
    v.segment(CS, 8, m.cs, if bits16 { 0xffff } else { u32::MAX }, if bits16 { at } else { 0 });
    v.set(CR0, m.cr0);
    v.set(CR4, m.cr4);
    v.set(CR3, (m.cr3)());
    v.set(EFER, if m.long { cpu::rdmsr(cpu::EFER) } else { cpu::SVME });
    v.set(RAX, 0xaaaa_0000);
    if m.nested {
        Npt::new().attach(&mut l2);
    }
    let host = (cpu::cr0(), cpu::cr3(), cpu::cr4(), cpu::rdmsr(cpu::EFER));
    check_exit!(l2, l2.run(), exit::VMMCALL);
    check_eq!("rax", v.get(RAX), m.rax);
    check_eq!("CS attributes", v.get(CS) >> 16 & 0xffff, u64::from(m.cs));
    check_eq!("CR0", v.get(CR0), m.cr0);
    check_eq!("host", (cpu::cr0(), cpu::cr3(), cpu::cr4(), cpu::rdmsr(cpu::EFER)), host);
    Ok(())
}

pub fn run(r: &mut Runner<'_>) {
    for m in MODES {
        r.case("mode", m.name, None, || run_mode(m));
    }
    r.case("mode", "enters_long_mode_itself", None, || {
        // From protected mode without paging to 64-bit paging, in L2, under nested paging.
        let mut l2 = L2::new(code!(
            ".code32",
            "mov ecx, 0xc0000080",
            "rdmsr",
            "or eax, 0x100",
            "wrmsr",
            "mov eax, 0x20",
            "mov cr4, eax",
            "mov cr3, ebx",
            "mov eax, 0x80000011",
            "mov cr0, eax",
            ".code64",
        ));
        let v = l2.vmcb;
        v.segment(CS, 0x18, 0xc9b, u32::MAX, 0);
        v.set(CR0, PE);
        v.set(CR4, 0);
        v.set(CR3, 0);
        v.set(EFER, cpu::SVME);
        l2.regs[crate::l2::reg::RBX] = cpu::cr3();
        Npt::new().attach(&mut l2);
        check_exit!(l2, l2.run(), exit::VMMCALL);
        check_eq!("EFER", v.get(EFER), cpu::SVME | 0x500);
        check_eq!("CR0", v.get(CR0), PE | PG);
        check_eq!("CR3", v.get(CR3), cpu::cr3());
        Ok(())
    });
    r.case("mode", "user_mode", None, || {
        let mut l2 = L2::new(code!("nop"));
        let v = l2.vmcb;
        v.segment(CS, 0x2b, 0xafb, u32::MAX, 0);
        v.segment(SS, 0x23, 0xcf3, u32::MAX, 0);
        v.set(CPL, 3);
        check_exit!(l2, l2.run(), exit::VMMCALL);
        check_eq!("CPL", v.get(CPL), 3);
        Ok(())
    });
    r.case("mode", "user_mode_faults_on_privileged", None, || {
        let mut l2 = L2::new(code!("hlt"));
        let v = l2.vmcb;
        v.segment(CS, 0x2b, 0xafb, u32::MAX, 0);
        v.segment(SS, 0x23, 0xcf3, u32::MAX, 0);
        v.set(CPL, 3);
        // The fault has precedence over the intercept of the instruction.
        l2.intercept(exit::HLT).intercept(0x4d);
        check_exit!(l2, l2.run(), 0x4d);
        check_eq!("CPL", v.get(CPL), 3);
        Ok(())
    });
}
