//! Results and flags against the processor that runs the test.

// UNSAFETY: the reference is the host's own ALU, reachable only through inline assembly; test code only.
#![allow(unsafe_code)]
#![cfg(target_arch = "x86_64")]

use core::arch::asm;

use super::*;

const ARITHMETIC: u64 = 0x8d5;
const AF: u64 = 1 << 4;

/// Runs `op a, b` on the host with the given carry; result and arithmetic flags.
macro_rules! native {
    ($op:literal, $class:ident, $modifier:literal, $type:ty, $a:expr, $b:expr, $carry:expr) => {{
        let (mut a, b) = ($a as $type, $b as $type);
        let flags: u64;
        // SAFETY: changes only its operands, flags, and the stack below rsp, which it leaves balanced;
        // the options let the compiler assume nothing about flags or stack.
        unsafe {
            asm!(
                "bt {carry}, 0",
                concat!($op, " {a", $modifier, "}, {b", $modifier, "}"),
                "pushfq",
                "pop {flags}",
                carry = in(reg) u64::from($carry),
                a = inout($class) a,
                b = in($class) b,
                flags = out(reg) flags,
            );
        }
        (a as u64, flags & ARITHMETIC)
    }};
}

macro_rules! native_unary {
    ($op:literal, $class:ident, $modifier:literal, $type:ty, $a:expr, $carry:expr) => {{
        let mut a = $a as $type;
        let flags: u64;
        // SAFETY: as above.
        unsafe {
            asm!(
                "push {start}",
                "popfq",
                concat!($op, " {a", $modifier, "}"),
                "pushfq",
                "pop {flags}",
                start = in(reg) 0x202 | u64::from($carry),
                a = inout($class) a,
                flags = out(reg) flags,
            );
        }
        (a as u64, flags & ARITHMETIC)
    }};
}

macro_rules! each_width {
    ($name:ident, $op:literal) => {
        fn $name(width: Width, a: u64, b: u64, carry: bool) -> (u64, u64) {
            match width {
                Width::Byte => native!($op, reg_byte, "", u8, a, b, carry),
                Width::Word => native!($op, reg, ":x", u16, a, b, carry),
                Width::Dword => native!($op, reg, ":e", u32, a, b, carry),
                Width::Qword => native!($op, reg, ":r", u64, a, b, carry),
            }
        }
    };
    (unary $name:ident, $op:literal) => {
        fn $name(width: Width, a: u64, carry: bool) -> (u64, u64) {
            match width {
                Width::Byte => native_unary!($op, reg_byte, "", u8, a, carry),
                Width::Word => native_unary!($op, reg, ":x", u16, a, carry),
                Width::Dword => native_unary!($op, reg, ":e", u32, a, carry),
                Width::Qword => native_unary!($op, reg, ":r", u64, a, carry),
            }
        }
    };
}

each_width!(adc, "adc");
each_width!(add, "add");
each_width!(and, "and");
each_width!(cmp, "cmp");
each_width!(or, "or");
each_width!(sbb, "sbb");
each_width!(sub, "sub");
each_width!(test, "test");
each_width!(xor, "xor");
each_width!(unary dec, "dec");
each_width!(unary inc, "inc");
each_width!(unary neg, "neg");
each_width!(unary not, "not");

type Native = fn(Width, u64, u64, bool) -> (u64, u64);
type NativeUnary = fn(Width, u64, bool) -> (u64, u64);

const OPS: [(Alu, Native); 9] = [
    (Alu::Adc, adc),
    (Alu::Add, add),
    (Alu::And, and),
    (Alu::Cmp, cmp),
    (Alu::Or, or),
    (Alu::Sbb, sbb),
    (Alu::Sub, sub),
    (Alu::Test, test),
    (Alu::Xor, xor),
];
const UNARY: [(Unary, NativeUnary); 4] =
    [(Unary::Dec, dec), (Unary::Inc, inc), (Unary::Neg, neg), (Unary::Not, not)];
const WIDTHS: [Width; 4] = [Width::Byte, Width::Word, Width::Dword, Width::Qword];

/// Compares all operations on one pair of numbers.
fn compare(a: u64, b: u64, carry: bool) {
    for width in WIDTHS {
        for (op, native) in OPS {
            let mut rflags = u64::from(carry);
            let result = op.apply(width, a, b, &mut rflags);
            let (expected, flags) = native(width, a, b, carry);
            // AF after logic is undefined: processors differ.
            let defined = match op {
                Alu::And | Alu::Or | Alu::Test | Alu::Xor => ARITHMETIC & !AF,
                _ => ARITHMETIC,
            };
            assert_eq!(rflags & defined, flags & defined, "flags of {op:?} {width:?} {a:#x} {b:#x} {carry}");
            if op.writes() {
                assert_eq!(result, expected, "{op:?} {width:?} {a:#x} {b:#x} {carry}");
            }
        }
        for (op, native) in UNARY {
            let mut rflags = u64::from(carry);
            let result = op.apply(width, a, &mut rflags);
            assert_eq!((result, rflags), native(width, a, carry), "{op:?} {width:?} {a:#x} {carry}");
        }
    }
}

#[test]
fn at_the_borders() {
    let mut values = std::vec![0, 1, 0xf, 0x10];
    for width in WIDTHS {
        values.extend([width.mask(), width.mask() - 1, width.sign(), width.sign() - 1, width.sign() + 1]);
    }
    for &a in &values {
        for &b in &values {
            compare(a, b, false);
            compare(a, b, true);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn anywhere(a in any::<u64>(), b in any::<u64>(), carry in any::<bool>()) {
        compare(a, b, carry);
    }
}
