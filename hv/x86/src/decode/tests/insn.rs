//! Lengths: the table of short forms against the decoder, and prefixes.

use super::*;

pub(super) const ALL: &[Insn] = &[
    Insn::Clgi,
    Insn::Clts,
    Insn::Cpuid,
    Insn::Hlt,
    Insn::Icebp,
    Insn::Int3,
    Insn::IntN,
    Insn::Into,
    Insn::Invd,
    Insn::Invlpg,
    Insn::Invlpga,
    Insn::Invpcid,
    Insn::Io,
    Insn::Iret,
    Insn::Lgdt,
    Insn::Lidt,
    Insn::Lldt,
    Insn::Lmsw,
    Insn::Ltr,
    Insn::Monitor,
    Insn::MovCr,
    Insn::MovDr,
    Insn::Mwait,
    Insn::Pause,
    Insn::Popf,
    Insn::Pushf,
    Insn::Rdmsr,
    Insn::Rdpmc,
    Insn::Rdpru,
    Insn::Rdtsc,
    Insn::Rdtscp,
    Insn::Rsm,
    Insn::Sgdt,
    Insn::Sidt,
    Insn::Skinit,
    Insn::Sldt,
    Insn::Smsw,
    Insn::Stgi,
    Insn::Str,
    Insn::Vmload,
    Insn::Vmmcall,
    Insn::Vmrun,
    Insn::Vmsave,
    Insn::Wbinvd,
    Insn::Wrmsr,
    Insn::Xsetbv,
];

/// An instruction, bytes of it, and whether they are recognised without the decoder.
const FORMS: &[(Insn, &[u8], bool)] = &[
    (Insn::Clgi, &[0x0f, 0x01, 0xdd], true),
    (Insn::Clts, &[0x0f, 0x06], true),
    (Insn::Cpuid, &[0x0f, 0xa2], true),
    (Insn::Cpuid, &[0x66, 0x0f, 0xa2], false),
    (Insn::Cpuid, &[0x2e, 0x3e, 0x0f, 0xa2], false),
    (Insn::Hlt, &[0xf4], true),
    (Insn::Icebp, &[0xf1], true),
    (Insn::Int3, &[0xcc], true),
    (Insn::IntN, &[0xcd, 0x80], true),
    (Insn::IntN, &[0x66, 0xcd, 0x80], false),
    (Insn::Invd, &[0x0f, 0x08], true),
    (Insn::Invlpg, &[0x0f, 0x01, 0x38], false),
    (Insn::Invlpga, &[0x0f, 0x01, 0xdf], true),
    (Insn::Invpcid, &[0x66, 0x0f, 0x38, 0x82, 0x00], false),
    (Insn::Io, &[0xe4, 0x60], true),
    (Insn::Io, &[0xe7, 0x80], true),
    (Insn::Io, &[0xec], true),
    (Insn::Io, &[0xef], true),
    (Insn::Io, &[0x66, 0xed], false),
    (Insn::Io, &[0x6c], true),
    (Insn::Io, &[0xf3, 0x6e], false),
    (Insn::Io, &[0xf3, 0x66, 0x6f], false),
    (Insn::Iret, &[0xcf], true),
    (Insn::Iret, &[0x66, 0xcf], false),
    (Insn::Lgdt, &[0x0f, 0x01, 0x10], false),
    (Insn::Lidt, &[0x0f, 0x01, 0x18], false),
    (Insn::Lldt, &[0x0f, 0x00, 0xd0], true),
    (Insn::Lldt, &[0x0f, 0x00, 0x10], false),
    (Insn::Lmsw, &[0x0f, 0x01, 0xf0], true),
    (Insn::Lmsw, &[0x0f, 0x01, 0x30], false),
    (Insn::Ltr, &[0x0f, 0x00, 0xd9], true),
    (Insn::Monitor, &[0x0f, 0x01, 0xc8], true),
    (Insn::Monitor, &[0x0f, 0x01, 0xfa], false),
    (Insn::MovCr, &[0x0f, 0x20, 0xc0], true),
    (Insn::MovCr, &[0x0f, 0x22, 0xd8], true),
    (Insn::MovCr, &[0x0f, 0x22, 0x18], true), // mod is ignored
    (Insn::MovCr, &[0xf0, 0x0f, 0x22, 0xc0], false),
    (Insn::MovDr, &[0x0f, 0x21, 0xf8], true),
    (Insn::MovDr, &[0x0f, 0x23, 0xf8], true),
    (Insn::Mwait, &[0x0f, 0x01, 0xc9], true),
    (Insn::Mwait, &[0x0f, 0x01, 0xfb], false),
    (Insn::Pause, &[0xf3, 0x90], true),
    (Insn::Pause, &[0x2e, 0xf3, 0x90], false),
    (Insn::Popf, &[0x9d], true),
    (Insn::Popf, &[0x66, 0x9d], false),
    (Insn::Pushf, &[0x9c], true),
    (Insn::Rdmsr, &[0x0f, 0x32], true),
    (Insn::Rdpmc, &[0x0f, 0x33], true),
    (Insn::Rdpru, &[0x0f, 0x01, 0xfd], true),
    (Insn::Rdtsc, &[0x0f, 0x31], true),
    (Insn::Rdtscp, &[0x0f, 0x01, 0xf9], true),
    (Insn::Rsm, &[0x0f, 0xaa], true),
    (Insn::Sgdt, &[0x0f, 0x01, 0x00], false),
    (Insn::Sidt, &[0x0f, 0x01, 0x08], false),
    (Insn::Skinit, &[0x0f, 0x01, 0xde], true),
    (Insn::Sldt, &[0x0f, 0x00, 0xc0], true),
    (Insn::Smsw, &[0x0f, 0x01, 0xe0], true),
    (Insn::Smsw, &[0x0f, 0x01, 0x20], false),
    (Insn::Stgi, &[0x0f, 0x01, 0xdc], true),
    (Insn::Str, &[0x0f, 0x00, 0xc8], true),
    (Insn::Vmload, &[0x0f, 0x01, 0xda], true),
    (Insn::Vmmcall, &[0x0f, 0x01, 0xd9], true),
    (Insn::Vmmcall, &[0xf3, 0x0f, 0x01, 0xd9], false),
    (Insn::Vmrun, &[0x0f, 0x01, 0xd8], true),
    (Insn::Vmsave, &[0x0f, 0x01, 0xdb], true),
    (Insn::Wbinvd, &[0x0f, 0x09], true),
    (Insn::Wbinvd, &[0xf3, 0x0f, 0x09], false),
    (Insn::Wrmsr, &[0x0f, 0x30], true),
    (Insn::Xsetbv, &[0x0f, 0x01, 0xd1], true),
];

/// Forms that only 64-bit mode has.
const FORMS_64: &[(Insn, &[u8])] = &[
    (Insn::Cpuid, &[0x48, 0x0f, 0xa2]),
    (Insn::Iret, &[0x48, 0xcf]),
    (Insn::MovCr, &[0x44, 0x0f, 0x22, 0xc0]),
    (Insn::MovDr, &[0x41, 0x0f, 0x23, 0xff]),
    (Insn::Vmrun, &[0x67, 0x0f, 0x01, 0xd8]),
    (Insn::Invlpg, &[0x0f, 0x01, 0x3d, 1, 2, 3, 4]),
    (Insn::Invlpg, &[0x41, 0x0f, 0x01, 0x7c, 0x24, 0x10]),
    (Insn::Lidt, &[0x65, 0x0f, 0x01, 0x1c, 0x25, 0, 0, 0, 0]),
];

fn padded(form: &[u8]) -> std::vec::Vec<u8> {
    let mut bytes = form.to_vec();
    bytes.resize(20, 0x90);
    bytes
}

#[test]
fn every_instruction_has_a_form_here() {
    for insn in ALL {
        assert!(*insn == Insn::Into || FORMS.iter().any(|form| form.0 == *insn), "{insn:?}");
    }
}

#[test]
fn short_forms_need_no_decoder_and_agree_with_it() {
    for (insn, form, short) in FORMS {
        let fast = fast_len(*insn, u64::from_le_bytes(padded(form)[..8].try_into().unwrap()), MAX_LEN);
        assert_eq!(fast, short.then_some(form.len() as u8), "{insn:?} {form:x?}");
        for size in SIZES {
            // Iced's answer is checked below for the slow ones; here for the fast ones.
            let (decoded, _) = decode_one(&padded(form), size, 0).unwrap();
            if *form != [0x0f, 0x22, 0x18] {
                assert!(crate::decode::insn::is(*insn, &decoded), "{insn:?} {form:x?} {size:?}");
            }
            assert_eq!(decoded.len(), form.len(), "{insn:?} {form:x?} {size:?}");
            assert_eq!(length(*insn, &padded(form), size), Ok(form.len() as u8));
            assert_eq!(length(*insn, form, size), Ok(form.len() as u8), "no bytes after it are needed");
        }
    }
    assert_eq!(length(Insn::Into, &[0xce], CodeSize::Bits32), Ok(1));
}

#[test]
fn forms_of_64_bit_mode() {
    for (insn, form) in FORMS_64 {
        assert_eq!(length(*insn, &padded(form), CodeSize::Bits64), Ok(form.len() as u8), "{insn:?}");
    }
}

#[test]
fn another_instruction_is_refused() {
    for (insn, form, _) in FORMS {
        for other in ALL.iter().filter(|other| *other != insn) {
            // Only the prefix tells PAUSE from NOP, and so on: a form belongs to one instruction.
            let got = length(*other, &padded(form), CodeSize::Bits32);
            assert!(matches!(got, Err(DecodeError::Unexpected(_))), "{form:x?} as {other:?}: {got:?}");
        }
    }
    let nop = length(Insn::Pause, &padded(&[0x90]), CodeSize::Bits64);
    assert_eq!(nop, Err(DecodeError::Unexpected(InsnBytes::new(&[0x90; 15]))));
}

#[test]
fn missing_bytes_are_told_apart_from_wrong_ones() {
    for (insn, form) in FORMS_64 {
        for len in 0..form.len() {
            let got = length(*insn, &form[..len], CodeSize::Bits64);
            assert_eq!(got, Err(DecodeError::Truncated(InsnBytes::new(&form[..len]))));
        }
    }
    let prefixes = [0x66; 15];
    let got = length(Insn::Cpuid, &prefixes, CodeSize::Bits64);
    assert_eq!(got, Err(DecodeError::Unexpected(InsnBytes::new(&prefixes))), "longer than any instruction");
}
