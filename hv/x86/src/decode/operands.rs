//! Instructions whose operands the exit doesn't give: control and debug registers, LMSW, INVLPG.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::gprs::{Gpr, Gprs, RegOperand};
use super::insn::{self, Insn};
use super::{CodeSize, DecodeError, decode_one};

/// MOV to or from a control register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MovCr {
    /// Length of the instruction.
    pub len: u8,
    /// The control register's number, 0 to 15; a LOCK prefix has turned 0 into 8.
    pub cr: u8,
    /// The general-purpose register; 32 bits of it outside 64-bit mode.
    pub gpr: Gpr,
    /// To the control register rather than from it.
    pub write: bool,
}

/// MOV to or from a debug register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MovDr {
    /// Length of the instruction.
    pub len: u8,
    /// The debug register's number, 0 to 15.
    pub dr: u8,
    /// The general-purpose register; 32 bits of it outside 64-bit mode.
    pub gpr: Gpr,
    /// To the debug register rather than from it.
    pub write: bool,
}

/// Any instruction that reads or writes CR0 or another control register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CrAccess {
    /// MOV.
    Mov(MovCr),
    /// CLTS.
    Clts {
        /// Length of the instruction.
        len: u8,
    },
    /// LMSW.
    Lmsw {
        /// Length of the instruction.
        len: u8,
        /// The 16-bit source; `None` if it is in memory: see [`memory_operand`].
        source: Option<RegOperand>,
    },
    /// SMSW.
    Smsw {
        /// Length of the instruction.
        len: u8,
        /// The destination; `None` if it is in memory (16 bits): see [`memory_operand`].
        dest: Option<RegOperand>,
    },
}

/// The ModRM byte of an unprefixed `0F opcode`, or of one with a REX prefix; with its length.
fn short_modrm(bytes: &[u8], size: CodeSize, opcodes: [u8; 2]) -> Option<(u8, u8, u8, u8)> {
    let (rex, rest) = match bytes {
        [rex @ 0x40..=0x4f, rest @ ..] if size == CodeSize::Bits64 => (*rex, rest),
        _ => (0, bytes),
    };
    match rest {
        [0x0f, opcode, modrm, ..] if opcodes.contains(opcode) => {
            let register = (modrm >> 3) & 7 | (rex & 4) << 1;
            let gpr = modrm & 7 | (rex & 1) << 3;
            Some((*opcode, register, gpr, if rex == 0 { 3 } else { 4 }))
        }
        _ => None,
    }
}

/// Decodes MOV to or from a control register.
///
/// # Errors
/// If it isn't one, or bytes are missing.
pub fn mov_cr(bytes: &[u8], size: CodeSize) -> Result<MovCr, DecodeError> {
    if let Some((opcode, cr, gpr, len)) = short_modrm(bytes, size, [0x20, 0x22]) {
        return Ok(MovCr { len, cr, gpr: Gpr::new(gpr), write: opcode == 0x22 });
    }
    let (decoded, fetched) = decode_one(bytes, size, 0)?;
    slow_mov_cr(&decoded).ok_or(DecodeError::Unexpected(fetched))
}

fn slow_mov_cr(decoded: &Instruction) -> Option<MovCr> {
    let (cr, gpr, write) = slow_mov(decoded, Register::is_cr)?;
    Some(MovCr { len: decoded.len() as u8, cr, gpr, write })
}

/// Decodes MOV to or from a debug register.
///
/// # Errors
/// If it isn't one, or bytes are missing.
pub fn mov_dr(bytes: &[u8], size: CodeSize) -> Result<MovDr, DecodeError> {
    if let Some((opcode, dr, gpr, len)) = short_modrm(bytes, size, [0x21, 0x23]) {
        return Ok(MovDr { len, dr, gpr: Gpr::new(gpr), write: opcode == 0x23 });
    }
    let (decoded, fetched) = decode_one(bytes, size, 0)?;
    match slow_mov(&decoded, Register::is_dr) {
        Some((dr, gpr, write)) => Ok(MovDr { len: decoded.len() as u8, dr, gpr, write }),
        None => Err(DecodeError::Unexpected(fetched)),
    }
}

fn slow_mov(decoded: &Instruction, special: fn(Register) -> bool) -> Option<(u8, Gpr, bool)> {
    let registers = decoded.mnemonic() == Mnemonic::Mov
        && decoded.op_kind(0) == OpKind::Register
        && decoded.op_kind(1) == OpKind::Register;
    if !registers {
        return None;
    }
    let (to, from) = (decoded.op_register(0), decoded.op_register(1));
    let (register, gpr, write) = if special(to) {
        (to, from, true)
    } else if special(from) {
        (from, to, false)
    } else {
        return None;
    };
    Some((register.number() as u8, Gpr::new(gpr.number() as u8), write))
}

/// Decodes whichever instruction accesses a control register.
///
/// # Errors
/// If it is none of them, or bytes are missing.
pub fn cr_access(bytes: &[u8], size: CodeSize) -> Result<CrAccess, DecodeError> {
    if let Ok(mov) = mov_cr(bytes, size) {
        return Ok(CrAccess::Mov(mov));
    }
    let (decoded, fetched) = decode_one(bytes, size, 0)?;
    let len = decoded.len() as u8;
    let register = match decoded.op_kind(0) {
        OpKind::Register => RegOperand::from_iced(decoded.op_register(0)),
        _ => None,
    };
    match decoded.mnemonic() {
        Mnemonic::Clts => Ok(CrAccess::Clts { len }),
        Mnemonic::Lmsw => Ok(CrAccess::Lmsw { len, source: register }),
        Mnemonic::Smsw => Ok(CrAccess::Smsw { len, dest: register }),
        _ => Err(DecodeError::Unexpected(fetched)),
    }
}

/// A segment register, as memory operands name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Segment {
    /// ES.
    Es,
    /// CS.
    Cs,
    /// SS.
    Ss,
    /// DS.
    Ds,
    /// FS.
    Fs,
    /// GS.
    Gs,
}

/// The memory operand of an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryOperand {
    /// Length of the instruction.
    pub len: u8,
    /// Its segment, overrides applied.
    pub segment: Segment,
    /// Its linear address: segment base and effective address, of 64 or 32 bits. Limits are not checked.
    pub linear: u64,
}

/// Finds the memory operand of `insn` (INVLPG, LMSW, SIDT …) in `bytes`.
///
/// `base` gives segment bases; in 64-bit mode it is asked for FS and GS only.
///
/// # Errors
/// If it is another instruction, has no memory operand, or bytes are missing.
pub fn memory_operand(
    insn: Insn,
    bytes: &[u8],
    size: CodeSize,
    rip: u64,
    gprs: &Gprs,
    base: impl Fn(Segment) -> u64,
) -> Result<MemoryOperand, DecodeError> {
    let (decoded, fetched) = decode_one(bytes, size, rip)?;
    let unexpected = DecodeError::Unexpected(fetched);
    if !insn::is(insn, &decoded) {
        return Err(unexpected);
    }
    let operand =
        (0..decoded.op_count()).find(|&op| decoded.op_kind(op) == OpKind::Memory).ok_or(unexpected)?;
    let segment = match decoded.memory_segment() {
        Register::ES => Segment::Es,
        Register::CS => Segment::Cs,
        Register::SS => Segment::Ss,
        Register::FS => Segment::Fs,
        Register::GS => Segment::Gs,
        _ => Segment::Ds,
    };
    let offset = decoded
        .virtual_address(operand, 0, |register, _, _| {
            if register.is_segment_register() {
                Some(0)
            } else {
                RegOperand::from_iced(register).map(|operand| operand.read(gprs))
            }
        })
        .ok_or(unexpected)?;
    let linear = match (size, segment) {
        (CodeSize::Bits64, Segment::Fs | Segment::Gs) => base(segment).wrapping_add(offset),
        (CodeSize::Bits64, _) => offset,
        _ => base(segment).wrapping_add(offset) & 0xffff_ffff,
    };
    Ok(MemoryOperand { len: decoded.len() as u8, segment, linear })
}

/// The memory side of INS or OUTS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StringOperand {
    /// How many bits of the index register and of the counter count.
    pub address_size: CodeSize,
    /// The segment, overrides applied: always ES for INS.
    pub segment: Segment,
}

/// Finds the memory side of the INS or OUTS in `bytes`.
///
/// # Errors
/// If it is neither, or bytes are missing.
pub fn string_operand(bytes: &[u8], size: CodeSize) -> Result<StringOperand, DecodeError> {
    let (decoded, fetched) = decode_one(bytes, size, 0)?;
    let kinds = (decoded.op_count() == 2).then(|| [decoded.op_kind(0), decoded.op_kind(1)]);
    let address_size = match kinds {
        Some([OpKind::MemoryESDI, _] | [_, OpKind::MemorySegSI]) => CodeSize::Bits16,
        Some([OpKind::MemoryESEDI, _] | [_, OpKind::MemorySegESI]) => CodeSize::Bits32,
        Some([OpKind::MemoryESRDI, _] | [_, OpKind::MemorySegRSI]) => CodeSize::Bits64,
        _ => return Err(DecodeError::Unexpected(fetched)),
    };
    if !insn::is(Insn::Io, &decoded) {
        return Err(DecodeError::Unexpected(fetched));
    }
    let segment = match decoded.memory_segment() {
        _ if decoded.op_kind(0) != OpKind::Register => Segment::Es,
        Register::ES => Segment::Es,
        Register::CS => Segment::Cs,
        Register::SS => Segment::Ss,
        Register::FS => Segment::Fs,
        Register::GS => Segment::Gs,
        _ => Segment::Ds,
    };
    Ok(StringOperand { address_size, segment })
}
