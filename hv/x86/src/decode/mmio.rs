//! Accesses to emulated memory: the instructions that guests use on device pages.
//!
//! The fault gives the address, so an operation is only: what goes where, how wide, which flags. String
//! instructions and everything with a second memory operand are refused.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::alu::{Alu, BitOp, Unary};
use super::gprs::{Gprs, RegOperand, Width};
use super::{CodeSize, DecodeError, decode_one};

/// How a loaded value fills a wider register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extend {
    /// With zeros.
    Zero,
    /// With copies of the sign.
    Sign,
}

/// The operand that isn't in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// A register.
    Reg(RegOperand),
    /// A constant, sign-extended.
    Imm(u64),
}

impl Source {
    const fn value(self, gprs: &Gprs) -> u64 {
        match self {
            Self::Reg(reg) => reg.read(gprs),
            Self::Imm(value) => value,
        }
    }
}

/// What an access does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MmioKind {
    /// `dest = memory`, extended.
    Load {
        /// Register written.
        dest: RegOperand,
        /// How.
        extend: Extend,
    },
    /// `memory = source`.
    Store(Source),
    /// `memory = memory op source` with flags; CMP and TEST don't write.
    Alu(Alu, Source),
    /// `dest = dest op memory` with flags; CMP doesn't write.
    AluReg(Alu, RegOperand),
    /// `memory = op memory`.
    Unary(Unary),
    /// The register and the memory swap.
    Exchange(RegOperand),
    /// CF = the bit that the source selects; then BTS, BTR, BTC change it.
    Bit(BitOp, Source),
}

/// A decoded access to emulated memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MmioOp {
    /// Length of the instruction.
    pub len: u8,
    /// Width of the memory operand.
    pub width: Width,
    /// What is done.
    pub kind: MmioKind,
}

impl MmioOp {
    /// Whether the memory must be read first.
    pub const fn reads(&self) -> bool {
        !matches!(self.kind, MmioKind::Store(_))
    }

    /// Whether the memory is written.
    pub const fn writes(&self) -> bool {
        match self.kind {
            MmioKind::Store(_) | MmioKind::Unary(_) | MmioKind::Exchange(_) => true,
            MmioKind::Alu(op, _) => op.writes(),
            MmioKind::Bit(op, _) => op.writes(),
            MmioKind::Load { .. } | MmioKind::AluReg(..) => false,
        }
    }

    /// Does the operation on the registers, given what was `loaded` (ignored if it doesn't read).
    /// Returns what to store, if it writes; at most `width` bits are set.
    pub fn complete(&self, gprs: &mut Gprs, rflags: &mut u64, loaded: u64) -> Option<u64> {
        let mask = self.width.mask();
        let loaded = loaded & mask;
        let stored = match self.kind {
            MmioKind::Load { dest, extend } => {
                let value = match extend {
                    Extend::Zero => loaded,
                    Extend::Sign => self.width.sign_extend(loaded),
                };
                dest.write(gprs, value);
                return None;
            }
            MmioKind::Store(source) => source.value(gprs),
            MmioKind::Alu(op, source) => op.apply(self.width, loaded, source.value(gprs), rflags),
            MmioKind::AluReg(op, dest) => {
                let result = op.apply(self.width, dest.read(gprs), loaded, rflags);
                if op.writes() {
                    dest.write(gprs, result);
                }
                return None;
            }
            MmioKind::Unary(op) => op.apply(self.width, loaded, rflags),
            MmioKind::Exchange(reg) => {
                let old = reg.read(gprs);
                reg.write(gprs, loaded);
                old
            }
            MmioKind::Bit(op, source) => op.apply(self.width, loaded, source.value(gprs), rflags),
        };
        self.writes().then_some(stored & mask)
    }
}

/// Decodes an access to emulated memory.
///
/// # Errors
/// If the instruction isn't one of those supported (its bytes are for the log), or bytes are missing.
pub fn decode_mmio(bytes: &[u8], size: CodeSize) -> Result<MmioOp, DecodeError> {
    let (decoded, fetched) = decode_one(bytes, size, 0)?;
    understand(&decoded).ok_or(DecodeError::Unexpected(fetched))
}

fn understand(decoded: &Instruction) -> Option<MmioOp> {
    let width = Width::from_bytes(decoded.memory_size().size())?;
    let kind = match (decoded.op_count(), decoded.op_kind(0)) {
        (1, OpKind::Memory) => MmioKind::Unary(Unary::from_mnemonic(decoded.mnemonic())?),
        (2, OpKind::Memory) => to_memory(decoded, source(decoded, 1, width)?)?,
        (2, OpKind::Register) if decoded.op_kind(1) == OpKind::Memory => {
            from_memory(decoded, RegOperand::from_iced(decoded.op_register(0))?, width)?
        }
        _ => return None,
    };
    Some(MmioOp { len: decoded.len() as u8, width, kind })
}

fn source(decoded: &Instruction, operand: u32, width: Width) -> Option<Source> {
    if decoded.op_kind(operand) != OpKind::Register {
        return decoded.try_immediate(operand).ok().map(Source::Imm);
    }
    let reg = RegOperand::from_iced(decoded.op_register(operand))?;
    (reg.width() == width).then_some(Source::Reg(reg))
}

fn to_memory(decoded: &Instruction, source: Source) -> Option<MmioKind> {
    let mnemonic = decoded.mnemonic();
    match (mnemonic, source) {
        (Mnemonic::Mov, _) => return Some(MmioKind::Store(source)),
        (Mnemonic::Xchg, Source::Reg(reg)) => return Some(MmioKind::Exchange(reg)),
        _ => {}
    }
    if let Some(op) = Alu::from_mnemonic(mnemonic) {
        return Some(MmioKind::Alu(op, source));
    }
    // The fault's address is that of the word which holds the bit, so the offset counts within it.
    BitOp::from_mnemonic(mnemonic).map(|op| MmioKind::Bit(op, source))
}

fn from_memory(decoded: &Instruction, dest: RegOperand, width: Width) -> Option<MmioKind> {
    let same = dest.width() == width;
    match decoded.mnemonic() {
        Mnemonic::Mov if same => Some(MmioKind::Load { dest, extend: Extend::Zero }),
        Mnemonic::Movzx => Some(MmioKind::Load { dest, extend: Extend::Zero }),
        Mnemonic::Movsx | Mnemonic::Movsxd => Some(MmioKind::Load { dest, extend: Extend::Sign }),
        Mnemonic::Xchg if same => Some(MmioKind::Exchange(dest)),
        mnemonic if same => Alu::from_mnemonic(mnemonic).map(|op| MmioKind::AluReg(op, dest)),
        _ => None,
    }
}
