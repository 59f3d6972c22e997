//! Accesses to device pages: what is understood, and what they do.

use super::*;

const CF: u64 = 1;
const ZF: u64 = 1 << 6;

/// Decodes in 64-bit mode and runs; rax..rdx start as given; gives what was stored.
fn run(bytes: &[u8], gprs: &mut Gprs, rflags: &mut u64, loaded: u64) -> Option<u64> {
    let op = decode_mmio(bytes, CodeSize::Bits64).unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(usize::from(op.len), bytes.len(), "{bytes:x?}");
    op.complete(gprs, rflags, loaded)
}

const RAX: u64 = 0x1122_3344_5566_7788;
const RCX: u64 = 0x99aa_bbcc_ddee_ff81;

fn registers() -> Gprs {
    let mut gprs = Gprs::default();
    gprs.regs[..2].copy_from_slice(&[RAX, RCX]);
    gprs
}

#[test]
fn stores() {
    for (bytes, width, stored) in [
        (&[0x88, 0x0b][..], Width::Byte, 0x81),     // mov [rbx], cl
        (&[0x88, 0x2b], Width::Byte, 0xff),         // mov [rbx], ch
        (&[0x66, 0x89, 0x0b], Width::Word, 0xff81), // mov [rbx], cx
        (&[0x89, 0x0b], Width::Dword, 0xddee_ff81), // mov [rbx], ecx
        (&[0x48, 0x89, 0x0b], Width::Qword, RCX),   // mov [rbx], rcx
        (&[0x44, 0x89, 0x0b], Width::Dword, 0),     // mov [rbx], r9d
        (&[0xc6, 0x03, 0xfe], Width::Byte, 0xfe),
        (&[0xc7, 0x03, 0xff, 0xff, 0xff, 0xff], Width::Dword, 0xffff_ffff),
        (&[0x48, 0xc7, 0x03, 0xff, 0xff, 0xff, 0xff], Width::Qword, u64::MAX), // sign-extended
        (&[0xa3, 0, 0, 0xe0, 0xfe, 0, 0, 0, 0], Width::Dword, 0x5566_7788),    // mov [moffs], eax
        (&[0x89, 0x8b, 0x80, 0, 0, 0], Width::Dword, 0xddee_ff81),
        (&[0x89, 0x04, 0x25, 0, 0xd3, 0x5f, 0xff], Width::Dword, 0x5566_7788), // as Linux writes its APIC
    ] {
        let op = decode_mmio(bytes, CodeSize::Bits64).unwrap();
        assert!(op.writes() && !op.reads());
        assert_eq!(op.width, width, "{bytes:x?}");
        let (mut gprs, mut rflags) = (registers(), 2);
        assert_eq!(run(bytes, &mut gprs, &mut rflags, 0xdead), Some(stored), "{bytes:x?}");
        assert_eq!((gprs, rflags), (registers(), 2));
    }
}

#[test]
fn loads() {
    let loaded = 0xfedc_ba98_8765_4381;
    for (bytes, rax) in [
        (&[0x8a, 0x03][..], 0x1122_3344_5566_7781),   // mov al, [rbx]
        (&[0x8a, 0x23], 0x1122_3344_5566_8188),       // mov ah, [rbx]
        (&[0x66, 0x8b, 0x03], 0x1122_3344_5566_4381), // mov ax, [rbx]
        (&[0x8b, 0x03], 0x8765_4381),                 // mov eax, [rbx]
        (&[0x48, 0x8b, 0x03], loaded),
        (&[0x0f, 0xb6, 0x03], 0x81),   // movzx eax, byte
        (&[0x0f, 0xb7, 0x03], 0x4381), // movzx eax, word
        (&[0x48, 0x0f, 0xb6, 0x03], 0x81),
        (&[0x66, 0x0f, 0xb6, 0x03], 0x1122_3344_5566_0081),
        (&[0x0f, 0xbe, 0x03], 0xffff_ff81),           // movsx eax, byte
        (&[0x48, 0x0f, 0xbf, 0x03], 0x4381),          // movsx rax, word
        (&[0x48, 0x63, 0x03], 0xffff_ffff_8765_4381), // movsxd
        (&[0xa1, 0, 0, 0xe0, 0xfe, 0, 0, 0, 0], 0x8765_4381),
    ] {
        let (mut gprs, mut rflags) = (registers(), 2);
        let op = decode_mmio(bytes, CodeSize::Bits64).unwrap();
        assert!(op.reads() && !op.writes());
        assert_eq!(run(bytes, &mut gprs, &mut rflags, loaded), None);
        assert_eq!((gprs.regs[0], gprs.regs[1], rflags), (rax, RCX, 2), "{bytes:x?}");
    }
}

#[test]
fn read_modify_writes() {
    for (bytes, loaded, stored, flags) in [
        (&[0x81, 0x0b, 0x00, 0x01, 0, 0][..], 0xff, Some(0x1ff), 1 << 2), // or dword [rbx], 0x100
        (&[0x83, 0x23, 0xf0], 0x1ff, Some(0x1f0), 1 << 2),                // and dword [rbx], -16
        (&[0x83, 0x33, 0xff], 0xffff_ffff, Some(0), ZF | 1 << 2),         // xor
        (&[0xf0, 0x01, 0x0b], 0x2211_007f, Some(0), ZF | 1 << 2 | 1 << 4 | CF), // lock add [rbx], ecx
        (&[0x29, 0x0b], 0xddee_ff81, Some(0), ZF | 1 << 2),               // sub [rbx], ecx
        (&[0xf7, 0x03, 0x80, 0, 0, 0], 0x7f, None, ZF | 1 << 2),          // test dword [rbx], 0x80
        (&[0x39, 0x0b], 0xddee_ff81, None, ZF | 1 << 2),                  // cmp [rbx], ecx
        (&[0x80, 0x3b, 0x81], 0x81, None, ZF | 1 << 2),                   // cmp byte [rbx], 0x81
        (&[0xf7, 0x13], 0, Some(0xffff_ffff), 0),                         // not
        (&[0xf6, 0x1b], 1, Some(0xff), 1 << 7 | CF | 1 << 4 | 1 << 2),    // neg byte
        (&[0xff, 0x03], 0xffff_ffff, Some(0), ZF | 1 << 2 | 1 << 4),      // inc
        (&[0xff, 0x0b], 1, Some(0), ZF | 1 << 2),                         // dec
    ] {
        let (mut gprs, mut rflags) = (registers(), 0);
        assert_eq!(run(bytes, &mut gprs, &mut rflags, loaded), stored, "{bytes:x?}");
        assert_eq!((gprs, rflags), (registers(), flags), "{bytes:x?}");
    }
}

#[test]
fn operations_on_registers_from_memory() {
    for (bytes, loaded, rax, flags) in [
        (&[0x0b, 0x03][..], 0x8000_0000, 0xd566_7788, 1 << 7 | 1 << 2), // or eax, [rbx]
        (&[0x23, 0x03], 0, 0, ZF | 1 << 2),                             // and eax, [rbx]
        (&[0x3b, 0x03], 0x5566_7788, RAX, ZF | 1 << 2),                 // cmp eax, [rbx]
        (&[0x3a, 0x03], 0x89, RAX, CF | 1 << 7 | 1 << 4 | 1 << 2),      // cmp al, [rbx]
        (&[0x2b, 0x03], 0x5566_7789, 0xffff_ffff, CF | 1 << 7 | 1 << 4 | 1 << 2), // sub eax, [rbx]
    ] {
        let (mut gprs, mut rflags) = (registers(), 0);
        assert_eq!(run(bytes, &mut gprs, &mut rflags, loaded), None);
        assert_eq!((gprs.regs[0], rflags), (rax, flags), "{bytes:x?}");
    }
}

#[test]
fn exchange_and_bits() {
    let (mut gprs, mut rflags) = (registers(), 2);
    assert_eq!(run(&[0x87, 0x03], &mut gprs, &mut rflags, 0x1_8000_0001), Some(0x5566_7788));
    assert_eq!((gprs.regs[0], rflags), (0x8000_0001, 2), "the upper half is cleared");
    for (bytes, loaded, stored, carry) in [
        (&[0x0f, 0xba, 0x23, 0x04][..], 0x10, None, CF), // bt dword [rbx], 4
        (&[0x0f, 0xba, 0x2b, 0x24], 0, Some(0x10), 0),   // bts, 36 mod 32
        (&[0xf0, 0x0f, 0xba, 0x33, 0x04], 0x30, Some(0x20), CF), // lock btr
        (&[0x0f, 0xbb, 0x0b], 0, Some(2), 0),            // btc [rbx], ecx: bit 1 of its word
    ] {
        let (mut gprs, mut rflags) = (registers(), ZF);
        assert_eq!(run(bytes, &mut gprs, &mut rflags, loaded), stored, "{bytes:x?}");
        assert_eq!(rflags, ZF | carry, "{bytes:x?}");
    }
}

#[test]
fn other_modes() {
    for (bytes, size, width) in [
        (&[0x66, 0xa3, 0x80, 0x00][..], CodeSize::Bits16, Width::Dword),
        (&[0xa3, 0x80, 0x00], CodeSize::Bits16, Width::Word),
        (&[0xa3, 0x80, 0x00, 0xe0, 0xfe], CodeSize::Bits32, Width::Dword),
        (&[0xc7, 0x05, 0xb0, 0, 0xe0, 0xfe, 0, 0, 0, 0], CodeSize::Bits32, Width::Dword),
    ] {
        let op = decode_mmio(bytes, size).unwrap();
        assert_eq!((op.width, op.len), (width, bytes.len() as u8), "{bytes:x?}");
    }
}

#[test]
fn what_is_not_understood_is_refused_with_its_bytes() {
    for bytes in [
        &[0xab][..],         // stosd
        &[0xa5],             // movsd
        &[0xad],             // lodsd
        &[0xff, 0x33],       // push [rbx]
        &[0x8f, 0x03],       // pop [rbx]
        &[0xff, 0x13],       // call [rbx]
        &[0x0f, 0xb1, 0x0b], // cmpxchg
        &[0x0f, 0xc1, 0x0b], // xadd
        &[0x0f, 0xc7, 0x0b], // cmpxchg8b
        &[0xd1, 0x23],       // shl
        &[0x0f, 0x10, 0x03], // movups
        &[0xdd, 0x03],       // fld
        &[0x89, 0xc8],       // mov eax, ecx: no memory
        &[0x8d, 0x03],       // lea
        &[0x8e, 0x03],       // mov es, [rbx]
        &[0x8c, 0x03],       // mov [rbx], es
        &[0x0f, 0xaf, 0x03], // imul
        &[0x6b, 0x03, 0x02], // imul with an immediate
        &[0x0f, 0x44, 0x03], // cmove
        &[0xf0, 0x89, 0x0b], // lock mov: invalid
    ] {
        let refused = decode_mmio(bytes, CodeSize::Bits64);
        assert_eq!(refused, Err(DecodeError::Unexpected(InsnBytes::new(bytes))), "{bytes:x?}");
    }
    assert!(matches!(decode_mmio(&[0xc7, 0x03, 0], CodeSize::Bits64), Err(DecodeError::Truncated(_))));
}
