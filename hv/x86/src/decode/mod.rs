//! Instruction decoding for exits that don't tell all: lengths, operands, accesses to device pages.
//!
//! Bytes come in as a plain slice, copied once from the guest; results are small values of our own, so
//! nothing outside of this module knows the decoder. Short forms are recognised by their bytes.
//!
//! - [`length`] and [`fast_len`]: where an announced instruction ends.
//! - [`mov_cr`], [`mov_dr`], [`cr_access`], [`memory_operand`]: operands.
//! - [`decode_mmio`] and [`MmioOp::complete`]: loads, stores and read-modify-writes.
#![cfg_attr(not(test), forbid(unsafe_code))]

mod alu;
mod gprs;
mod insn;
mod mmio;
mod operands;

use core::fmt;

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

pub use alu::{Alu, BitOp, Unary};
pub use gprs::{Gpr, Gprs, RegOperand, Width};
pub use insn::{Insn, fast_len, length};
pub use mmio::{Extend, MmioKind, MmioOp, Source, decode_mmio};
pub use operands::{
    CrAccess, MemoryOperand, MovCr, MovDr, Segment, StringOperand, cr_access, memory_operand, mov_cr, mov_dr,
    string_operand,
};

/// The longest instruction that there is, in bytes.
pub const MAX_LEN: usize = 15;

/// The size that code has by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CodeSize {
    /// Real mode, virtual-8086 mode, and 16-bit code segments.
    Bits16,
    /// 32-bit code segments.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

impl CodeSize {
    /// The size, from EFER.LMA and the L and D bits of CS (both clear in real and virtual-8086 mode).
    pub const fn of(long_mode: bool, cs_l: bool, cs_d: bool) -> Self {
        match (long_mode && cs_l, cs_d) {
            (true, _) => Self::Bits64,
            (false, true) => Self::Bits32,
            (false, false) => Self::Bits16,
        }
    }

    /// The instruction pointer after an instruction of `len` bytes at `rip`.
    pub const fn advance(self, rip: u64, len: u8) -> u64 {
        let next = rip.wrapping_add(len as u64);
        match self {
            Self::Bits64 => next,
            Self::Bits32 | Self::Bits16 => next & 0xffff_ffff,
        }
    }

    const fn bits(self) -> u32 {
        match self {
            Self::Bits16 => 16,
            Self::Bits32 => 32,
            Self::Bits64 => 64,
        }
    }
}

/// Instruction bytes, kept for a log line. Shown as hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct InsnBytes {
    bytes: [u8; MAX_LEN],
    len: u8,
}

impl InsnBytes {
    /// The first 15 of `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        let mut kept = Self::default();
        for (to, from) in kept.bytes.iter_mut().zip(bytes) {
            *to = *from;
            kept.len += 1;
        }
        kept
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&self.bytes)
    }
}

impl fmt::Display for InsnBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.as_slice().iter().enumerate() {
            write!(f, "{}{byte:02x}", if index == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

impl fmt::Debug for InsnBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why there is no result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// The instruction goes on beyond the bytes given.
    Truncated(InsnBytes),
    /// It is no instruction, or none of those wanted here.
    Unexpected(InsnBytes),
}

/// Decodes the instruction at the start of `bytes`, which lie at `rip`.
fn decode_one(bytes: &[u8], size: CodeSize, rip: u64) -> Result<(Instruction, InsnBytes), DecodeError> {
    let fetched = InsnBytes::new(bytes);
    let mut decoder = Decoder::with_ip(size.bits(), fetched.as_slice(), rip, DecoderOptions::AMD);
    let decoded = decoder.decode();
    match decoder.last_error() {
        DecoderError::None => Ok((decoded, fetched)),
        // Fifteen bytes that want more are too long an instruction, not too short a fetch.
        DecoderError::NoMoreBytes if usize::from(fetched.len) < MAX_LEN => {
            Err(DecodeError::Truncated(fetched))
        }
        _ => Err(DecodeError::Unexpected(fetched)),
    }
}

/// Makes the decoder build its tables, all of which it does at first use and with allocations: to be called
/// once at boot, after the heap is there, so that no exit does it.
pub fn warm_up() {
    _ = decode_one(&[0x90], CodeSize::Bits64, 0);
}

#[cfg(test)]
mod tests;
