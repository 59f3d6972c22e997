//! Tests of the decoder, by subject.

mod alu;
mod insn;
mod mmio;
mod operands;

use proptest::prelude::*;

use super::*;

const SIZES: [CodeSize; 3] = [CodeSize::Bits16, CodeSize::Bits32, CodeSize::Bits64];

#[test]
fn code_sizes_from_the_segment() {
    assert_eq!(CodeSize::of(false, false, false), CodeSize::Bits16);
    assert_eq!(CodeSize::of(false, true, true), CodeSize::Bits32); // L counts in long mode only
    assert_eq!(CodeSize::of(true, false, true), CodeSize::Bits32);
    assert_eq!(CodeSize::of(true, false, false), CodeSize::Bits16);
    assert_eq!(CodeSize::of(true, true, false), CodeSize::Bits64);
}

#[test]
fn the_instruction_pointer_wraps_at_its_width() {
    assert_eq!(CodeSize::Bits64.advance(0xffff_ffff, 2), 0x1_0000_0001);
    assert_eq!(CodeSize::Bits64.advance(u64::MAX, 2), 1);
    assert_eq!(CodeSize::Bits32.advance(0xffff_ffff, 2), 1);
}

#[test]
fn bytes_are_cut_and_shown() {
    assert_eq!(std::format!("{}", InsnBytes::new(&[0x0f, 0xa2])), "0f a2");
    assert_eq!(InsnBytes::new(&[7; 20]).as_slice(), &[7; 15]);
    assert_eq!(std::format!("{:?}", InsnBytes::new(&[])), "");
}

#[test]
fn register_operands_follow_the_merge_rules() {
    use iced_x86::Register as R;
    for (register, old, value, new, read) in [
        (R::AL, 0x1122_3344_5566_7788, 0xffee, 0x1122_3344_5566_77ee_u64, 0x88),
        (R::AH, 0x1122_3344_5566_7788, 0xffee, 0x1122_3344_5566_ee88, 0x77),
        (R::AX, 0x1122_3344_5566_7788, 0xa_bbcc, 0x1122_3344_5566_bbcc, 0x7788),
        (R::EAX, 0x1122_3344_5566_7788, u64::MAX, 0xffff_ffff, 0x5566_7788),
        (R::RAX, 0x1122_3344_5566_7788, u64::MAX, u64::MAX, 0x1122_3344_5566_7788),
    ] {
        let mut gprs = Gprs::default();
        gprs.regs[Gprs::RAX] = old;
        let operand = RegOperand::from_iced(register).unwrap();
        assert_eq!(operand.read(&gprs), read);
        operand.write(&mut gprs, value);
        assert_eq!(gprs.regs[Gprs::RAX], new);
    }
    for (register, index) in [
        (R::SPL, Gprs::RSP),
        (R::BPL, Gprs::RBP),
        (R::SIL, Gprs::RSI),
        (R::DIL, Gprs::RDI),
        (R::CH, Gprs::RCX),
        (R::BH, Gprs::RBX),
        (R::DX, Gprs::RDX),
        (R::R8L, 8),
        (R::R15D, 15),
    ] {
        let mut gprs = Gprs::default();
        RegOperand::from_iced(register).unwrap().write(&mut gprs, 1);
        assert_ne!(gprs.regs[index], 0, "{register:?}");
    }
    for other in [R::None, R::CR0, R::XMM1, R::ES, R::RIP, R::MM3, R::K1] {
        assert_eq!(RegOperand::from_iced(other), None);
    }
}

#[test]
fn edx_eax() {
    let mut gprs = Gprs { regs: [u64::MAX; 16] };
    gprs.set_edx_eax(0x1122_3344_5566_7788);
    assert_eq!((gprs.regs[Gprs::RAX], gprs.regs[Gprs::RDX]), (0x5566_7788, 0x1122_3344));
    gprs.regs[Gprs::RAX] |= 0xffff << 32;
    assert_eq!(gprs.edx_eax(), 0x1122_3344_5566_7788);
}

#[test]
fn warming_up_is_harmless_at_any_time() {
    warm_up();
    warm_up();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    #[test]
    fn any_bytes_are_harmless(
        bytes in prop::collection::vec(any::<u8>(), 0..18),
        size in 0usize..3,
        regs in any::<[u64; 16]>(),
        loaded in any::<u64>(),
        flags in any::<u64>(),
    ) {
        let size = SIZES[size];
        let mut gprs = Gprs { regs };
        for insn in insn::ALL {
            if let Ok(len) = length(*insn, &bytes, size) {
                prop_assert!(len >= 1 && usize::from(len) <= bytes.len().min(MAX_LEN));
            }
            _ = memory_operand(*insn, &bytes, size, loaded, &gprs, |_| u64::MAX);
        }
        _ = mov_dr(&bytes, size);
        _ = cr_access(&bytes, size);
        if let Ok(op) = decode_mmio(&bytes, size) {
            let mut rflags = flags;
            let stored = op.complete(&mut gprs, &mut rflags, loaded);
            prop_assert_eq!(stored.is_some(), op.writes());
            prop_assert_eq!(stored.unwrap_or(0) & !op.width.mask(), 0);
            prop_assert_eq!((flags ^ rflags) & !0x8d5, 0, "only arithmetic flags change");
        }
    }
}
