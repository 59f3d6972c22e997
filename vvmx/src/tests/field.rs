//! The table against the rules of the manual, and the layout that must not move.

use super::*;
use crate::field::{Class, FieldSet, Flow, Needs, Width};
use crate::vmcs12::layout;
use std::collections::BTreeSet;
use std::string::String;

#[test]
fn encodings_are_unique_sorted_within_their_parts_and_agree_with_name_and_flow() {
    let mut seen = BTreeSet::new();
    for field in Field::all() {
        let encoding = field.encoding();
        assert!(seen.insert(encoding), "{field:?} twice");
        assert_eq!(
            encoding & 1,
            0,
            "{field:?}: only 64-bit fields have a second encoding, which is not listed"
        );
        assert_eq!(encoding & 0xffff_9000, 0, "{field:?}: reserved bits");
        assert_eq!(Field::decode(encoding.into()), Some((field, false)));
        let name = field.name();
        match field.class() {
            Class::Host => assert!(name.starts_with("HOST_") && matches!(field.flow(), Flow::Host)),
            Class::Guest => assert!(
                (name.starts_with("GUEST_") || matches!(name, "VMCS_LINK_POINTER" | "PREEMPTION_TIMER"))
                    && matches!(field.flow(), Flow::Rare | Flow::Live | Flow::Mixed | Flow::Unused),
                "{name}"
            ),
            Class::Control => assert!(matches!(field.flow(), Flow::Control | Flow::Unused), "{name}"),
            Class::Exit => assert_eq!(field.flow(), Flow::Info, "{name}"),
        }
        // What is not offered is used for nothing.
        assert!(field.needs() != Needs::NotOffered || field.flow() == Flow::Unused, "{name}");
    }
}

#[test]
fn widths_follow_bits_14_13_and_high_halves_exist_for_64_bit_fields_only() {
    for (field, width) in [
        (Field::VPID, Width::Bits16),
        (Field::TSC_OFFSET, Width::Bits64),
        (Field::GUEST_CS_AR, Width::Bits32),
        (Field::GUEST_RIP, Width::Natural),
    ] {
        assert_eq!(field.width(), width);
        let high = Field::decode(u64::from(field.encoding()) + 1);
        assert_eq!(high, (width == Width::Bits64).then_some((field, true)), "{field:?}");
    }
}

#[test]
fn operands_with_reserved_bits_name_nothing() {
    for bad in [
        0x1_681e,
        0x1000 | 0x681e,
        0x8000 | 0x681e,
        1 << 32 | 0x681e,
        1 << 63 | 0x681e,
        0x2446,
        0x6c1e,
        0x3ff,
    ] {
        assert_eq!(Field::decode(bad), None, "{bad:#x}");
    }
    for encoding in 0..0x2_0000u64 {
        if let Some((field, high)) = Field::decode(encoding) {
            assert_eq!(u64::from(field.encoding()) + u64::from(high), encoding);
        }
    }
}

#[test]
fn runs_of_segment_registers_are_in_order() {
    assert_eq!(Field::GUEST_ES_SELECTOR.step(7), Field::GUEST_TR_SELECTOR);
    assert_eq!(Field::GUEST_ES_LIMIT.step(7), Field::GUEST_TR_LIMIT);
    assert_eq!(Field::GUEST_ES_AR.step(7), Field::GUEST_TR_AR);
    assert_eq!(Field::GUEST_ES_BASE.step(7), Field::GUEST_TR_BASE);
    assert_eq!(Field::HOST_ES_SELECTOR.step(6), Field::HOST_TR_SELECTOR);
    assert_eq!(Field::HOST_FS_BASE.step(4), Field::HOST_IDTR_BASE);
    assert_eq!(Field::CR3_TARGET_0.step(3), Field::CR3_TARGET_3);
    assert_eq!(Field::GUEST_PDPTE0.step(3), Field::GUEST_PDPTE3);
    assert_eq!(Field::EOI_EXIT_BITMAP_0.step(3), Field::EOI_EXIT_BITMAP_3);
}

/// Whoever changes this changes [`REVISION`], too: VMCSs lie in L1's memory, also in that of a saved domain.
#[test]
fn the_layout_is_pinned() {
    let mut text = String::new();
    for field in Field::all() {
        text += &std::format!("{:x}@{};", field.encoding(), layout::offset(field));
    }
    // FNV-1a
    let digest = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    assert_eq!(
        (REVISION, COUNT, digest),
        (0x7e57_0001, LAYOUT.0, LAYOUT.1),
        "digest {digest:#x}, {COUNT} fields"
    );
    assert_eq!(layout::offset(Field::VPID), 64);
    assert!(layout::offset(Field::HOST_SSP_TABLE) + 8 <= 4096);
}
const LAYOUT: (usize, u64) = (181, 0xfa59_67d9_218d_a56d);

#[test]
fn sets_hold_what_was_put_in() {
    let fields = [Field::VPID, Field::GUEST_RIP, Field::HOST_SSP_TABLE, Field::TSC_OFFSET];
    let mut set = FieldSet::of(&fields);
    assert_eq!(set.len(), 4);
    assert!(fields.iter().all(|f| set.contains(*f)) && !set.contains(Field::GUEST_RSP));
    assert_eq!(
        set.iter().collect::<FieldVec>(),
        [Field::VPID, Field::TSC_OFFSET, Field::GUEST_RIP, Field::HOST_SSP_TABLE]
    );
    set.remove(Field::VPID);
    assert!(!set.contains(Field::VPID) && set.meets(&FieldSet::ALL));
    assert_eq!(FieldSet::ALL.len(), COUNT);
    assert_eq!(FieldSet::ALL.minus(&set).len(), COUNT - 3);
}
type FieldVec = Vec<Field>;
