//! I/O and MSR permission maps, to the bit. (APM vol. 2, "IOIO Intercepts", "MSR Intercepts".)

use crate::l2::{L2, reg};
use crate::runner::Runner;
use crate::vmcb::*;
use crate::{arena, check_eq, check_exit, code, cpu};

fn set_bit(map: u64, bit: u64) {
    let word = map + bit / 64 * 8;
    arena::poke(word, arena::peek(word) | 1 << (bit % 64));
}

/// name, code, port (RDX), bits set in the map, INFO1 if it shall exit.
type Io = (&'static str, u64, u64, &'static [u64], Option<u64>);

const IN: u64 = 1;
const STR: u64 = 1 << 2;
const REP: u64 = 1 << 3;
const SZ8: u64 = 1 << 4;
const SZ16: u64 = 1 << 5;
const SZ32: u64 = 1 << 6;
const A64: u64 = 1 << 9;

#[rustfmt::skip]
fn io_table() -> [Io; 15] {
    [
        ("out8",            code!("out dx, al"),  0x1234, &[0x1234],         Some(SZ8)),
        ("out8_immediate",  code!("out 0x80, al"),  0x80, &[0x80],           Some(SZ8)),
        ("out16",           code!("out dx, ax"),  0x1234, &[0x1234],         Some(SZ16)),
        ("out32",           code!("out dx, eax"), 0x1234, &[0x1234],         Some(SZ32)),
        ("in8",             code!("in al, dx"),   0x1234, &[0x1234],         Some(SZ8 | IN)),
        ("in32_last_byte",  code!("in eax, dx"),  0x1234, &[0x1237],         Some(SZ32 | IN)),
        ("in16_last_byte",  code!("in ax, dx"),   0x12ff, &[0x1300],         Some(SZ16 | IN)),
        ("in8_neighbours",  code!("in al, dx"),   0x1234, &[0x1233, 0x1235], None),
        ("in32_neighbours", code!("in eax, dx"),  0x1234, &[0x1233, 0x1238], None),
        ("out8_port_0",     code!("out dx, al"),  0,      &[0],              Some(SZ8)),
        ("out8_port_ffff",  code!("out dx, al"),  0xffff, &[0xffff],         Some(SZ8)),
        ("in32_past_end",   code!("in eax, dx"),  0xfffd, &[0x1_0000],       Some(SZ32 | IN)),
        ("in16_past_end",   code!("in ax, dx"),   0xffff, &[0x1_0000],       Some(SZ16 | IN)),
        ("outsb",           code!("outsb"),       0x1234, &[0x1234],         Some(SZ8 | STR | A64)),
        ("rep_insw",        code!("rep insw"),    0x1234, &[0x1235],         Some(SZ16 | IN | STR | REP | A64)),
    ]
}

pub fn run(r: &mut Runner<'_>) {
    for (name, at, port, bits, exits) in io_table() {
        let lax = (name == "outsb" || name == "rep_insw").then_some("no address size in info1");
        r.case("ioio", name, lax, || {
            let mut l2 = L2::new(at);
            l2.intercept(exit::IOIO);
            for bit in bits {
                set_bit(l2.iopm, *bit);
            }
            let buffer = arena::page();
            l2.regs[reg::RDX] = port;
            l2.regs[reg::RCX] = 1;
            (l2.regs[reg::RSI], l2.regs[reg::RDI]) = (buffer, buffer);
            let code = l2.run();
            let Some(info1) = exits else {
                check_exit!(l2, code, exit::VMMCALL);
                return Ok(());
            };
            check_exit!(l2, code, exit::IOIO);
            // Segment (bits 12:10) is defined for strings and only with decode assists.
            check_eq!("info1", l2.vmcb.get(INFO1) & !0x1c00, info1 | port << 16);
            let next = l2.vmcb.get(INFO2);
            check_eq!("rip", l2.vmcb.get(RIP), at);
            check_eq!("next rip", next, at + length(name));
            Ok(())
        });
    }
    msrs(r);
}

fn length(name: &str) -> u64 {
    match name {
        "out16" | "in16_last_byte" | "in16_past_end" | "out8_immediate" => 2,
        "rep_insw" => 3,
        _ => 1,
    }
}

/// MSR, bit of its read permission in the map.
const MSRS: &[(&str, u32, u64)] = &[
    ("msr_10", 0x10, 0x10 * 2),
    ("msr_1fff", 0x1fff, 0x1fff * 2),
    ("msr_c0000080", 0xc000_0080, 0x4000 + 0x80 * 2),
    ("msr_c0000100", 0xc000_0100, 0x4000 + 0x100 * 2),
    ("msr_c0010117", 0xc001_0117, 0x8000 + 0x117 * 2),
];

fn msrs(r: &mut Runner<'_>) {
    for &(name, msr, bit) in MSRS {
        for (write, suffix) in [(false, "read"), (true, "write")] {
            let at = if write { code!("wrmsr") } else { code!("rdmsr") };
            let full = crate::runner::Text::new(format_args!("{name}_{suffix}"));
            r.case("msr", full.as_str(), None, || {
                let mut l2 = L2::new(at);
                l2.intercept(exit::MSR);
                l2.regs[reg::RCX] = msr.into();
                set_bit(l2.msrpm, bit + u64::from(write));
                check_exit!(l2, l2.run(), exit::MSR);
                check_eq!("info1", l2.vmcb.get(INFO1), u64::from(write));
                check_eq!("rip", l2.vmcb.get(RIP), at);
                if cpu::svm_features() & 1 << 3 != 0 {
                    check_eq!("nRIP", l2.vmcb.get(NRIP), at + 2);
                }
                Ok(())
            });
        }
    }
    r.case("msr", "other_bit_passes", None, || {
        let mut l2 = L2::new(code!("rdmsr"));
        l2.intercept(exit::MSR);
        l2.regs[reg::RCX] = 0xc000_0100;
        for bit in [0x4000 + 0xff * 2, 0x4000 + 0x100 * 2 + 1, 0x4000 + 0x101 * 2] {
            set_bit(l2.msrpm, bit);
        }
        check_exit!(l2, l2.run(), exit::VMMCALL);
        Ok(())
    });
    for (name, msr) in
        [("outside_2000", 0x2000u64), ("outside_c0002000", 0xc000_2000), ("outside_xen", 0x4000_0000)]
    {
        r.case("msr", name, None, || {
            let mut l2 = L2::new(code!("rdmsr"));
            l2.intercept(exit::MSR);
            l2.regs[reg::RCX] = msr;
            check_exit!(l2, l2.run(), exit::MSR);
            Ok(())
        });
    }
    r.case("msr", "free_without_class_bit", None, || {
        let mut l2 = L2::new(code!("rdmsr"));
        l2.regs[reg::RCX] = 0xc000_0100;
        set_bit(l2.msrpm, 0x4000 + 0x100 * 2);
        check_exit!(l2, l2.run(), exit::VMMCALL);
        Ok(())
    });
    r.case("msr", "efer_reads_what_l2_wrote", None, || {
        // SCE (bit 0) set by L2 is seen in its VMCB and not in the host's EFER.
        let mut l2 = L2::new(code!("rdmsr", "or eax, 1", "wrmsr"));
        l2.regs[reg::RCX] = cpu::EFER.into();
        let host = cpu::rdmsr(cpu::EFER);
        check_exit!(l2, l2.run(), exit::VMMCALL);
        check_eq!("L2's EFER", l2.vmcb.get(EFER), host | 1);
        check_eq!("host's EFER", cpu::rdmsr(cpu::EFER), host);
        Ok(())
    });
}
