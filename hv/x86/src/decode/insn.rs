//! The instructions whose exits we serve, and where they end.
//!
//! Hardware without next-RIP save (QEMU's TCG among them) reports the exit but not the instruction's
//! length. Nearly always it is the bare opcode, which a byte comparison tells; prefixes take the decoder.
//! A guest that changes its code meanwhile changes only where its own RIP goes on.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{CodeSize, DecodeError, decode_one};

/// An instruction, or family of them, that an exit announced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the manual's mnemonics")]
pub enum Insn {
    Clgi,
    Clts,
    Cpuid,
    Hlt,
    Icebp,
    /// INT3.
    Int3,
    /// INT imm8.
    IntN,
    Into,
    Invd,
    Invlpg,
    Invlpga,
    Invpcid,
    /// IN, OUT, INS, OUTS.
    Io,
    /// IRET of any width.
    Iret,
    Lgdt,
    Lidt,
    Lldt,
    Lmsw,
    Ltr,
    /// MONITOR or MONITORX.
    Monitor,
    /// MOV to or from a control register.
    MovCr,
    /// MOV to or from a debug register.
    MovDr,
    /// MWAIT or MWAITX.
    Mwait,
    Pause,
    Popf,
    Pushf,
    Rdmsr,
    Rdpmc,
    Rdpru,
    Rdtsc,
    Rdtscp,
    Rsm,
    Sgdt,
    Sidt,
    Skinit,
    Sldt,
    Smsw,
    Stgi,
    Str,
    Vmload,
    Vmmcall,
    Vmrun,
    Vmsave,
    /// WBINVD or WBNOINVD.
    Wbinvd,
    Wrmsr,
    Xsetbv,
}

/// An opcode as the lowest bytes of a word, and their number.
const fn bare<const N: usize>(bytes: [u8; N]) -> Option<(u32, u8)> {
    assert!(N < 4);
    let (mut word, mut at) = (0, 0);
    while at < N {
        word |= (bytes[at] as u32) << (8 * at);
        at += 1;
    }
    Some((word, N as u8))
}

/// The instruction's bytes, the first one lowest, and their number, if it stands without prefixes and has but one form.
///
/// APM vol. 3, appendix "Opcode and Operand Encodings".
#[inline]
const fn bare_opcode(insn: Insn) -> Option<(u32, u8)> {
    match insn {
        Insn::Clgi => const { bare([0x0f, 0x01, 0xdd]) },
        Insn::Clts => const { bare([0x0f, 0x06]) },
        Insn::Cpuid => const { bare([0x0f, 0xa2]) },
        Insn::Hlt => const { bare([0xf4]) },
        Insn::Icebp => const { bare([0xf1]) },
        Insn::Int3 => const { bare([0xcc]) },
        Insn::Into => const { bare([0xce]) },
        Insn::Invd => const { bare([0x0f, 0x08]) },
        Insn::Invlpga => const { bare([0x0f, 0x01, 0xdf]) },
        Insn::Iret => const { bare([0xcf]) },
        Insn::Monitor => const { bare([0x0f, 0x01, 0xc8]) },
        Insn::Mwait => const { bare([0x0f, 0x01, 0xc9]) },
        Insn::Pause => const { bare([0xf3, 0x90]) },
        Insn::Popf => const { bare([0x9d]) },
        Insn::Pushf => const { bare([0x9c]) },
        Insn::Rdmsr => const { bare([0x0f, 0x32]) },
        Insn::Rdpmc => const { bare([0x0f, 0x33]) },
        Insn::Rdpru => const { bare([0x0f, 0x01, 0xfd]) },
        Insn::Rdtsc => const { bare([0x0f, 0x31]) },
        Insn::Rdtscp => const { bare([0x0f, 0x01, 0xf9]) },
        Insn::Rsm => const { bare([0x0f, 0xaa]) },
        Insn::Skinit => const { bare([0x0f, 0x01, 0xde]) },
        Insn::Stgi => const { bare([0x0f, 0x01, 0xdc]) },
        Insn::Vmload => const { bare([0x0f, 0x01, 0xda]) },
        Insn::Vmmcall => const { bare([0x0f, 0x01, 0xd9]) },
        Insn::Vmrun => const { bare([0x0f, 0x01, 0xd8]) },
        Insn::Vmsave => const { bare([0x0f, 0x01, 0xdb]) },
        Insn::Wbinvd => const { bare([0x0f, 0x09]) },
        Insn::Wrmsr => const { bare([0x0f, 0x30]) },
        Insn::Xsetbv => const { bare([0x0f, 0x01, 0xd1]) },
        _ => None,
    }
}

/// The length of `insn` if `head`, of whose bytes (lowest first) `available` are there, starts with its shortest form:
/// no prefixes, no memory operand. `None` means only that [`length`] must look.
#[inline]
pub fn fast_len(insn: Insn, head: u64, available: usize) -> Option<u8> {
    if let Some((opcode, len)) = bare_opcode(insn) {
        let there = head & ((1 << (8 * len)) - 1) == opcode.into() && available >= len.into();
        return there.then_some(len);
    }
    let bytes = head.to_le_bytes();
    match (insn, &bytes[..available.min(8)]) {
        // IN and OUT with a port in DX, INS, OUTS; with an immediate port.
        (Insn::Io, [0xec..=0xef | 0x6c..=0x6f, ..]) => Some(1),
        (Insn::Io, [0xe4..=0xe7, _, ..]) => Some(2),
        (Insn::IntN, [0xcd, _, ..]) => Some(2),
        // The mod field doesn't count for MOV to and from control and debug registers.
        (Insn::MovCr, [0x0f, 0x20 | 0x22, _, ..]) => Some(3),
        (Insn::MovDr, [0x0f, 0x21 | 0x23, _, ..]) => Some(3),
        (Insn::Lmsw, [0x0f, 0x01, 0xf0..=0xf7, ..]) => Some(3),
        (Insn::Smsw, [0x0f, 0x01, 0xe0..=0xe7, ..]) => Some(3),
        (Insn::Sldt, [0x0f, 0x00, 0xc0..=0xc7, ..]) => Some(3),
        (Insn::Str, [0x0f, 0x00, 0xc8..=0xcf, ..]) => Some(3),
        (Insn::Lldt, [0x0f, 0x00, 0xd0..=0xd7, ..]) => Some(3),
        (Insn::Ltr, [0x0f, 0x00, 0xd8..=0xdf, ..]) => Some(3),
        _ => None,
    }
}

/// The length of `insn`, which `bytes` should start with, prefixes and operands included.
///
/// # Errors
/// If the bytes are too few, or are another instruction.
pub fn length(insn: Insn, bytes: &[u8], size: CodeSize) -> Result<u8, DecodeError> {
    let mut head = [0; 8];
    head.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    if let Some(len) = fast_len(insn, u64::from_le_bytes(head), bytes.len()) {
        return Ok(len);
    }
    let (decoded, fetched) = decode_one(bytes, size, 0)?;
    if is(insn, &decoded) { Ok(decoded.len() as u8) } else { Err(DecodeError::Unexpected(fetched)) }
}

/// Whether `decoded` is an `insn`.
pub(super) fn is(insn: Insn, decoded: &Instruction) -> bool {
    use Mnemonic as M;
    let mnemonic = decoded.mnemonic();
    match insn {
        Insn::Clgi => mnemonic == M::Clgi,
        Insn::Clts => mnemonic == M::Clts,
        Insn::Cpuid => mnemonic == M::Cpuid,
        Insn::Hlt => mnemonic == M::Hlt,
        Insn::Icebp => mnemonic == M::Int1,
        Insn::Int3 => mnemonic == M::Int3,
        Insn::IntN => mnemonic == M::Int,
        Insn::Into => mnemonic == M::Into,
        Insn::Invd => mnemonic == M::Invd,
        Insn::Invlpg => mnemonic == M::Invlpg,
        Insn::Invlpga => mnemonic == M::Invlpga,
        Insn::Invpcid => mnemonic == M::Invpcid,
        Insn::Io => {
            matches!(mnemonic, M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd)
        }
        Insn::Iret => matches!(mnemonic, M::Iret | M::Iretd | M::Iretq),
        Insn::Lgdt => mnemonic == M::Lgdt,
        Insn::Lidt => mnemonic == M::Lidt,
        Insn::Lldt => mnemonic == M::Lldt,
        Insn::Lmsw => mnemonic == M::Lmsw,
        Insn::Ltr => mnemonic == M::Ltr,
        Insn::Monitor => matches!(mnemonic, M::Monitor | M::Monitorx),
        Insn::MovCr => mnemonic == M::Mov && has_register(decoded, |register| register.is_cr()),
        Insn::MovDr => mnemonic == M::Mov && has_register(decoded, |register| register.is_dr()),
        Insn::Mwait => matches!(mnemonic, M::Mwait | M::Mwaitx),
        Insn::Pause => mnemonic == M::Pause,
        Insn::Popf => matches!(mnemonic, M::Popf | M::Popfd | M::Popfq),
        Insn::Pushf => matches!(mnemonic, M::Pushf | M::Pushfd | M::Pushfq),
        Insn::Rdmsr => mnemonic == M::Rdmsr,
        Insn::Rdpmc => mnemonic == M::Rdpmc,
        Insn::Rdpru => mnemonic == M::Rdpru,
        Insn::Rdtsc => mnemonic == M::Rdtsc,
        Insn::Rdtscp => mnemonic == M::Rdtscp,
        Insn::Rsm => mnemonic == M::Rsm,
        Insn::Sgdt => mnemonic == M::Sgdt,
        Insn::Sidt => mnemonic == M::Sidt,
        Insn::Skinit => mnemonic == M::Skinit,
        Insn::Sldt => mnemonic == M::Sldt,
        Insn::Smsw => mnemonic == M::Smsw,
        Insn::Stgi => mnemonic == M::Stgi,
        Insn::Str => mnemonic == M::Str,
        Insn::Vmload => mnemonic == M::Vmload,
        // Without SEV-ES, VMGEXIT is VMMCALL with a prefix (APM vol. 3, "VMGEXIT").
        Insn::Vmmcall => matches!(mnemonic, M::Vmmcall | M::Vmgexit),
        Insn::Vmrun => mnemonic == M::Vmrun,
        Insn::Vmsave => mnemonic == M::Vmsave,
        Insn::Wbinvd => matches!(mnemonic, M::Wbinvd | M::Wbnoinvd),
        Insn::Wrmsr => mnemonic == M::Wrmsr,
        Insn::Xsetbv => mnemonic == M::Xsetbv,
    }
}

fn has_register(decoded: &Instruction, wanted: impl Fn(iced_x86::Register) -> bool) -> bool {
    (0..decoded.op_count())
        .any(|op| decoded.op_kind(op) == OpKind::Register && wanted(decoded.op_register(op)))
}
