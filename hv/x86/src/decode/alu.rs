//! Integer operations and the flags that they leave.
//!
//! APM vol. 3, general-purpose instruction reference. Flags that the manual leaves undefined are as
//! processors leave them: AF is 0 after logic operations.

use iced_x86::Mnemonic;

use super::gprs::Width;

const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

/// A two-operand operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the manual's mnemonics")]
pub enum Alu {
    Adc,
    Add,
    And,
    Cmp,
    Or,
    Sbb,
    Sub,
    Test,
    Xor,
}

/// A one-operand operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the manual's mnemonics")]
pub enum Unary {
    Dec,
    Inc,
    Neg,
    Not,
}

/// An operation on one bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the manual's mnemonics")]
pub enum BitOp {
    Bt,
    Btc,
    Btr,
    Bts,
}

const fn flag(condition: bool, flag: u64) -> u64 {
    if condition { flag } else { 0 }
}

/// SF, ZF, PF of a result that fits `width`.
const fn result_flags(width: Width, result: u64) -> u64 {
    flag(result & width.sign() != 0, SF)
        | flag(result == 0, ZF)
        | flag((result as u8).count_ones().is_multiple_of(2), PF)
}

const fn set(rflags: &mut u64, changed: u64, flags: u64) {
    *rflags = (*rflags & !changed) | (flags & changed);
}

const fn add(width: Width, a: u64, b: u64, carry: bool, rflags: &mut u64) -> u64 {
    let sum = a as u128 + b as u128 + carry as u128;
    let result = sum as u64 & width.mask();
    let flags = result_flags(width, result)
        | flag(sum >> width.bits() != 0, CF)
        | flag((a ^ b ^ result) & 0x10 != 0, AF)
        | flag((a ^ result) & (b ^ result) & width.sign() != 0, OF);
    set(rflags, ARITHMETIC, flags);
    result
}

const fn sub(width: Width, a: u64, b: u64, borrow: bool, rflags: &mut u64) -> u64 {
    let result = a.wrapping_sub(b).wrapping_sub(borrow as u64) & width.mask();
    let flags = result_flags(width, result)
        | flag((a as u128) < b as u128 + borrow as u128, CF)
        | flag((a ^ b ^ result) & 0x10 != 0, AF)
        | flag((a ^ b) & (a ^ result) & width.sign() != 0, OF);
    set(rflags, ARITHMETIC, flags);
    result
}

const fn logic(width: Width, result: u64, rflags: &mut u64) -> u64 {
    set(rflags, ARITHMETIC, result_flags(width, result));
    result
}

impl Alu {
    pub(super) const fn from_mnemonic(mnemonic: Mnemonic) -> Option<Self> {
        Some(match mnemonic {
            Mnemonic::Adc => Self::Adc,
            Mnemonic::Add => Self::Add,
            Mnemonic::And => Self::And,
            Mnemonic::Cmp => Self::Cmp,
            Mnemonic::Or => Self::Or,
            Mnemonic::Sbb => Self::Sbb,
            Mnemonic::Sub => Self::Sub,
            Mnemonic::Test => Self::Test,
            Mnemonic::Xor => Self::Xor,
            _ => return None,
        })
    }

    /// Whether the result goes to the first operand; CMP and TEST only set flags.
    pub const fn writes(self) -> bool {
        !matches!(self, Self::Cmp | Self::Test)
    }

    /// The result of `a op b` in `width` bits; changes the arithmetic flags of `rflags`.
    pub const fn apply(self, width: Width, a: u64, b: u64, rflags: &mut u64) -> u64 {
        let (a, b) = (a & width.mask(), b & width.mask());
        let carry = *rflags & CF != 0;
        match self {
            Self::Add => add(width, a, b, false, rflags),
            Self::Adc => add(width, a, b, carry, rflags),
            Self::Sub | Self::Cmp => sub(width, a, b, false, rflags),
            Self::Sbb => sub(width, a, b, carry, rflags),
            Self::And | Self::Test => logic(width, a & b, rflags),
            Self::Or => logic(width, a | b, rflags),
            Self::Xor => logic(width, a ^ b, rflags),
        }
    }
}

impl Unary {
    pub(super) const fn from_mnemonic(mnemonic: Mnemonic) -> Option<Self> {
        Some(match mnemonic {
            Mnemonic::Dec => Self::Dec,
            Mnemonic::Inc => Self::Inc,
            Mnemonic::Neg => Self::Neg,
            Mnemonic::Not => Self::Not,
            _ => return None,
        })
    }

    /// The result of `op a` in `width` bits; INC and DEC keep CF, NOT keeps all flags.
    pub const fn apply(self, width: Width, a: u64, rflags: &mut u64) -> u64 {
        let a = a & width.mask();
        let carry = *rflags & CF;
        match self {
            Self::Not => !a & width.mask(),
            Self::Neg => sub(width, 0, a, false, rflags),
            Self::Inc => {
                let result = add(width, a, 1, false, rflags);
                set(rflags, CF, carry);
                result
            }
            Self::Dec => {
                let result = sub(width, a, 1, false, rflags);
                set(rflags, CF, carry);
                result
            }
        }
    }
}

impl BitOp {
    pub(super) const fn from_mnemonic(mnemonic: Mnemonic) -> Option<Self> {
        Some(match mnemonic {
            Mnemonic::Bt => Self::Bt,
            Mnemonic::Btc => Self::Btc,
            Mnemonic::Btr => Self::Btr,
            Mnemonic::Bts => Self::Bts,
            _ => return None,
        })
    }

    /// Whether the bit is written; BT only tests.
    pub const fn writes(self) -> bool {
        !matches!(self, Self::Bt)
    }

    /// The result on bit `offset` (modulo the width) of `a`; changes CF only.
    pub const fn apply(self, width: Width, a: u64, offset: u64, rflags: &mut u64) -> u64 {
        let bit = 1 << (offset & (width.bits() as u64 - 1));
        set(rflags, CF, flag(a & bit != 0, CF));
        match self {
            Self::Bt => a,
            Self::Btc => a ^ bit,
            Self::Btr => a & !bit,
            Self::Bts => a | bit,
        }
    }
}
