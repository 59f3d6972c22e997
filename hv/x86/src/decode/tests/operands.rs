//! Operands: short forms against the decoder, and addresses.

use super::*;

const CR: fn(&[u8], CodeSize) -> Result<MovCr, DecodeError> = mov_cr;

#[test]
fn mov_to_and_from_control_registers() {
    for (bytes, size, cr, gpr, write, len) in [
        (&[0x0f, 0x20, 0xc0][..], CodeSize::Bits64, 0, 0, false, 3),
        (&[0x0f, 0x22, 0xd8], CodeSize::Bits64, 3, 0, true, 3),
        (&[0x0f, 0x22, 0xe1], CodeSize::Bits16, 4, 1, true, 3),
        (&[0x44, 0x0f, 0x22, 0xc7], CodeSize::Bits64, 8, 7, true, 4),
        (&[0x45, 0x0f, 0x20, 0xc7], CodeSize::Bits64, 8, 15, false, 4),
        (&[0xf0, 0x0f, 0x20, 0xc3], CodeSize::Bits32, 8, 3, false, 4), // LOCK: CR8
        (&[0x66, 0x0f, 0x22, 0xda], CodeSize::Bits32, 3, 2, true, 4),
        (&[0x66, 0x41, 0x0f, 0x22, 0xda], CodeSize::Bits64, 3, 10, true, 5),
    ] {
        assert_eq!(CR(bytes, size), Ok(MovCr { len, cr, gpr: Gpr::new(gpr), write }), "{bytes:x?}");
    }
    // REX is INC or DEC outside of 64-bit mode.
    assert!(matches!(CR(&[0x44, 0x0f, 0x22, 0xc7], CodeSize::Bits32), Err(DecodeError::Unexpected(_))));
    assert!(matches!(CR(&[0x0f, 0x21, 0xc0], CodeSize::Bits32), Err(DecodeError::Unexpected(_))));
    assert!(matches!(CR(&[0x89, 0xc0], CodeSize::Bits32), Err(DecodeError::Unexpected(_))));
    assert!(matches!(CR(&[0x0f, 0x22], CodeSize::Bits32), Err(DecodeError::Truncated(_))));
}

#[test]
fn short_forms_agree_with_the_decoder() {
    let mut seen = 0;
    for rex in core::iter::once(None).chain((0x40..=0x4f).map(Some)) {
        for (opcode, modrm) in (0x20..=0x23).flat_map(|opcode| (0..=0xff).map(move |modrm| (opcode, modrm))) {
            let mut bytes = std::vec::Vec::from_iter(rex);
            bytes.extend([0x0f, opcode, modrm]);
            // A redundant prefix sends the same instruction through the decoder.
            let mut long = std::vec![0x3e];
            long.extend(&bytes);
            let size = CodeSize::Bits64;
            if opcode & 1 == 0 {
                let (short, Ok(slow)) = (mov_cr(&bytes, size).unwrap(), mov_cr(&long, size)) else {
                    continue;
                };
                assert_eq!(MovCr { len: short.len + 1, ..short }, slow, "{bytes:x?}");
            } else {
                let (short, Ok(slow)) = (mov_dr(&bytes, size).unwrap(), mov_dr(&long, size)) else {
                    continue;
                };
                assert_eq!(MovDr { len: short.len + 1, ..short }, slow, "{bytes:x?}");
            }
            seen += 1;
        }
    }
    assert!(seen > 5000, "{seen}");
}

#[test]
fn all_ways_to_control_registers() {
    let size = CodeSize::Bits64;
    assert_eq!(cr_access(&[0x0f, 0x06], size), Ok(CrAccess::Clts { len: 2 }));
    assert!(matches!(
        cr_access(&[0x0f, 0x22, 0xc0], size),
        Ok(CrAccess::Mov(MovCr { cr: 0, write: true, .. }))
    ));
    let mut gprs = Gprs::default();
    gprs.regs[3] = 0x1_ffff_000b;
    let Ok(CrAccess::Lmsw { len: 3, source: Some(source) }) = cr_access(&[0x0f, 0x01, 0xf3], size) else {
        panic!()
    };
    assert_eq!(source.read(&gprs) & 0xffff, 0xb);
    let Ok(CrAccess::Smsw { len: 4, dest: Some(dest) }) = cr_access(&[0x48, 0x0f, 0x01, 0xe3], size) else {
        panic!()
    };
    dest.write(&mut gprs, 0x8005_0033);
    assert_eq!(gprs.regs[3], 0x8005_0033);
    assert_eq!(cr_access(&[0x0f, 0x01, 0x30], size), Ok(CrAccess::Lmsw { len: 3, source: None }));
    assert!(matches!(cr_access(&[0x0f, 0xa2], size), Err(DecodeError::Unexpected(_))));
}

fn base(segment: Segment) -> u64 {
    match segment {
        Segment::Ds => 0x1000_0000,
        Segment::Ss => 0x2000_0000,
        Segment::Es => 0x3000_0000,
        Segment::Cs => 0x4000_0000,
        Segment::Fs => 0xffff_ffff_0000_0000,
        Segment::Gs => 0x6000_0000,
    }
}

#[test]
fn linear_addresses_of_memory_operands() {
    let mut gprs = Gprs::default();
    for (index, reg) in gprs.regs.iter_mut().enumerate() {
        *reg = 0x1_0001 * (index as u64 + 1);
    }
    gprs.regs[3] = 0xffff_ffff_ffff_f000; // rbx
    use CodeSize::{Bits16, Bits32, Bits64};
    for (bytes, size, linear) in [
        (&[0x0f, 0x01, 0x3b][..], Bits64, 0xffff_ffff_ffff_f000), // [rbx]: no DS base
        (&[0x67, 0x0f, 0x01, 0x3b], Bits64, 0xffff_f000),         // [ebx]
        (&[0x0f, 0x01, 0x3d, 0xf0, 0xff, 0xff, 0xff], Bits64, 0x7000_0000 + 7 - 16), // [rip-16]
        (&[0x65, 0x0f, 0x01, 0x3b], Bits64, 0x5fff_f000),         // gs:[rbx] wraps
        (&[0x64, 0x0f, 0x01, 0x3c, 0x25, 0x10, 0, 0, 0], Bits64, 0xffff_ffff_0000_0010),
        (&[0x43, 0x0f, 0x01, 0x7c, 0x48, 0x80], Bits64, 0x9_0009 + 2 * 0xa_000a - 0x80), // [r8+r9*2-128]
        (&[0x0f, 0x01, 0x3b], Bits32, 0x0fff_f000),                                      // ds:[ebx] wraps
        (&[0x0f, 0x01, 0x7d, 0x04], Bits32, 0x2000_0000 + 0x6_0006 + 4),                 // ss:[ebp+4]
        (&[0x26, 0x0f, 0x01, 0x38], Bits32, 0x3000_0000 + 0x1_0001),
        (&[0x0f, 0x01, 0x38], Bits16, 0x1000_0000 + 0xf007), // [bx+si] in 16 bits
        (&[0x0f, 0x01, 0x3e, 0x34, 0x12], Bits16, 0x1000_1234),
    ] {
        let got = memory_operand(Insn::Invlpg, bytes, size, 0x7000_0000, &gprs, base);
        let operand = got.unwrap_or_else(|error| panic!("{bytes:x?}: {error:?}"));
        assert_eq!((operand.linear, operand.len), (linear, bytes.len() as u8), "{bytes:x?} {size:?}");
    }
    let lmsw = memory_operand(Insn::Lmsw, &[0x0f, 0x01, 0xf0], Bits64, 0, &gprs, base);
    assert!(matches!(lmsw, Err(DecodeError::Unexpected(_))), "a register operand has no address");
}
