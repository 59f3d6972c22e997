use super::*;
use proptest::prelude::*;

/// A segment of a test image: type, physical address, bytes in the file, bytes in memory.
pub(crate) type TestSegment<'a> = (u32, u64, &'a [u8], u64);

/// An x86-64 ELF image of these segments, one behind the other in the file.
pub(crate) fn elf64(segments: &[TestSegment<'_>]) -> Vec<u8> {
    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    out.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [0xffff_ffff_8100_0000u64, 64, 0] {
        out.extend(word.to_le_bytes());
    }
    out.extend([0, 0, 0, 0, 64, 0, 56, 0, segments.len() as u8, 0, 64, 0, 0, 0, 0, 0]);
    let mut offset = 64 + 56 * segments.len() as u64;
    for (kind, paddr, bytes, memory) in segments {
        out.extend(kind.to_le_bytes());
        out.extend(5u32.to_le_bytes());
        for word in [offset, *paddr | 0xffff_ffff_8000_0000, *paddr, bytes.len() as u64, *memory, 4] {
            out.extend(word.to_le_bytes());
        }
        offset += bytes.len() as u64;
    }
    segments.iter().for_each(|segment| out.extend(segment.2));
    out
}

/// The same for i386.
fn elf32(segments: &[TestSegment<'_>]) -> Vec<u8> {
    let mut out = b"\x7fELF\x01\x01\x01".to_vec();
    out.resize(16, 0);
    out.extend([2, 0, 3, 0, 1, 0, 0, 0]);
    for word in [0x20_0000u32, 52, 0, 0] {
        out.extend(word.to_le_bytes());
    }
    out.extend([52, 0, 32, 0, segments.len() as u8, 0, 40, 0, 0, 0, 0, 0]);
    let mut offset = 52 + 32 * segments.len() as u32;
    for (kind, paddr, bytes, memory) in segments {
        let paddr = *paddr as u32;
        for word in [*kind, offset, paddr, paddr, bytes.len() as u32, *memory as u32, 5, 4] {
            out.extend(word.to_le_bytes());
        }
        offset += bytes.len() as u32;
    }
    segments.iter().for_each(|segment| out.extend(segment.2));
    out
}

/// A note as it stands in a PT_NOTE segment.
pub(crate) fn note(name: &[u8], kind: u32, body: &[u32]) -> Vec<u8> {
    let mut out = Vec::new();
    for word in [name.len() as u32, body.len() as u32 * 4, kind] {
        out.extend(word.to_le_bytes());
    }
    out.extend(name);
    out.resize(out.len().next_multiple_of(4), 0);
    body.iter().for_each(|word| out.extend(word.to_le_bytes()));
    out
}

#[test]
fn a_linux_like_kernel() {
    let notes = [
        note(b"GNU\0", 3, &[1, 2, 3, 4, 5]),
        note(b"Xen\0", 6, &[u32::from_le_bytes(*b"linu"), u32::from(b'x')]),
        note(b"Xen\0", 18, &[0x0100_0440, 0]),
        note(b"Xen\0", 19, &[0x40_0000, 0x0100_0000, 0x3fff_ffff]),
        note(b"Xen-like\0", 18, &[1]),
    ]
    .concat();
    let image = elf64(&[
        (PT_LOAD, 0x0200_0000, b"data", 0x1000),
        (PT_LOAD, 0x0100_0000, b"text", 0x80_0000),
        (PT_LOAD, 0x0300_0000, b"", 0),
        (PT_NOTE, 0x0180_0000, &notes, notes.len() as u64),
        (6, 0, b"", 0),
    ]);
    let plan = plan(&image).unwrap();
    assert!(plan.is_64 && plan.machine.is_x86());
    assert_eq!(plan.pvh_entry, Some(0x0100_0440));
    assert_eq!(plan.pvh_reloc, Some(PvhReloc { align: 0x40_0000, min: 0x0100_0000, max: 0x3fff_ffff }));
    let loaded: Vec<_> =
        plan.segments.iter().map(|s| (s.paddr.raw(), &image[s.file.clone()], s.memory_bytes)).collect();
    assert_eq!(loaded, [(0x0100_0000, &b"text"[..], 0x80_0000), (0x0200_0000, b"data", 0x1000)]);
    assert_eq!(plan.extent(), (Gpa::new(0x0100_0000), Gpa::new(0x0200_1000)));
}

#[test]
fn a_32_bit_multiboot_kernel() {
    let plan = plan(&elf32(&[(PT_LOAD, 0x20_0000, b"text", 0x1000)])).unwrap();
    assert!(!plan.is_64);
    assert_eq!((plan.machine, plan.entry, plan.pvh_entry), (Machine::I386, 0x20_0000, None));
    assert_eq!(plan.segments[0].paddr, Gpa::new(0x20_0000));
}

#[test]
fn the_relocation_notes_words_are_optional() {
    let with = |body: &[u32]| {
        let notes = note(b"Xen\0", 19, body);
        plan(&elf64(&[(PT_LOAD, 0, b"x", 1), (PT_NOTE, 0, &notes, 0)])).map(|plan| plan.pvh_reloc)
    };
    assert_eq!(with(&[]), Ok(Some(PvhReloc { align: 0x20_0000, min: 0, max: u32::MAX })));
    assert_eq!(with(&[0x1000]), Ok(Some(PvhReloc { align: 0x1000, min: 0, max: u32::MAX })));
    assert_eq!(with(&[3]), Err(ElfError::BadNote));
    assert_eq!(with(&[4, 9, 8]), Err(ElfError::BadNote));
}

#[test]
fn what_cannot_be_loaded_is_refused() {
    let plan_of = |segments: &[TestSegment<'_>]| plan(&elf64(segments)).unwrap_err();
    assert_eq!(plan(b"MZ"), Err(ElfError::BadHeader));
    assert_eq!(plan(&elf64(&[])), Err(ElfError::Empty));
    assert_eq!(plan_of(&[(PT_NOTE, 0, b"", 0)]), ElfError::Empty);
    assert_eq!(plan_of(&[(PT_LOAD, 0, b"four", 3)]), ElfError::BadSegment(0));
    assert_eq!(plan_of(&[(PT_LOAD, u64::MAX, b"", 2)]), ElfError::BadSegment(0));
    assert_eq!(plan_of(&[(PT_LOAD, 0x1000, b"", 0x1001), (PT_LOAD, 0x2000, b"", 1)]), ElfError::Overlap);
    assert_eq!(plan_of(&[(PT_LOAD, 0, &b"x"[..], 1); 65]), ElfError::TooManySegments);
    let short = note(b"Xen\0", 18, &[]);
    assert_eq!(plan_of(&[(PT_LOAD, 0, b"x", 1), (PT_NOTE, 0, &short, 0)]), ElfError::BadNote);
    let mut image = elf64(&[(PT_LOAD, 0, b"text", 4)]);
    image.pop();
    assert_eq!(plan(&image), Err(ElfError::SegmentOutsideFile(0)));
    let mut big_endian = elf64(&[(PT_LOAD, 0, b"text", 4)]);
    big_endian[5] = 2;
    assert_eq!(plan(&big_endian), Err(ElfError::BadHeader));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = plan(&bytes);
    }

    #[test]
    fn a_mutated_image_never_gives_an_unchecked_range(
        is_64 in any::<bool>(),
        edits in prop::collection::vec((0usize..400, any::<u8>()), 0..6),
    ) {
        let notes = note(b"Xen\0", 18, &[1]);
        let segments: &[TestSegment<'_>] =
            &[(PT_LOAD, 0x1000, b"text", 0x800), (PT_LOAD, 0x2000, b"data", 9), (PT_NOTE, 0, &notes, 0)];
        let mut image = if is_64 { elf64(segments) } else { elf32(segments) };
        for (at, byte) in edits {
            let at = at % image.len();
            image[at] = byte;
        }
        if let Ok(plan) = plan(&image) {
            for segment in &plan.segments {
                prop_assert!(image.get(segment.file.clone()).is_some());
                prop_assert!(segment.file.len() as u64 <= segment.memory_bytes);
                prop_assert!(segment.paddr.checked_add(segment.memory_bytes).is_some());
            }
            let apart = |w: &[Segment]| w[0].paddr.raw() + w[0].memory_bytes <= w[1].paddr.raw();
            prop_assert!(plan.segments.windows(2).all(apart));
        }
    }
}
