use super::*;
use crate::elf::tests::{elf64, note};
use alloc::vec;
use proptest::prelude::*;
use std::io::Write;

const LIMIT: usize = 1 << 20;

/// A kernel of `filler` bytes that compress somewhat, with a PVH entry.
fn kernel(filler: usize) -> Vec<u8> {
    let mut seed = 1u32;
    let text: Vec<u8> = (0..filler)
        .map(|i| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if i % 3 == 0 { (seed >> 24) as u8 } else { (i / 64) as u8 }
        })
        .collect();
    let notes = note(b"Xen\0", 18, &[0x100_0000]);
    elf64(&[(1, 0x100_0000, &text, filler as u64), (4, 0, &notes, 0)])
}

fn compress(format: Format, data: &[u8]) -> Vec<u8> {
    match format {
        Format::Gzip => {
            let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
            out.extend(miniz_oxide::deflate::compress_to_vec(data, 6));
            out.extend(crc32fast::hash(data).to_le_bytes());
            out.extend((data.len() as u32).to_le_bytes());
            out
        }
        Format::Xz => {
            // As Linux's build does: with the x86 filter and CRC32.
            let mut options = lzma_rust2::XzOptions::with_preset(1);
            options.set_check_sum_type(lzma_rust2::CheckType::Crc32);
            options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
            let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
            writer.write_all(data).unwrap();
            writer.finish().unwrap()
        }
        Format::Zstd => ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest),
        Format::Lz4 => {
            let mut out = vec![0x02, 0x21, 0x4c, 0x18];
            for block in data.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                out.extend((block.len() as u32).to_le_bytes());
                out.extend(block);
            }
            out
        }
        other => Format::MAGIC.iter().find(|(_, format)| *format == other).unwrap().0.to_vec(),
    }
}

/// A bzImage around a payload, with the size appended unless it is gzip.
fn bzimage(format: Format, data: &[u8]) -> Vec<u8> {
    let mut payload = compress(format, data);
    if format != Format::Gzip {
        payload.extend((data.len() as u32).to_le_bytes());
    }
    let mut out = vec![0; 3 * 512 + 0x100];
    out[0x1f1] = 2;
    out[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    out[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
    out[0x248..0x24c].copy_from_slice(&0x100u32.to_le_bytes());
    out[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend(payload);
    out.extend([0xcc; 64]);
    out
}

const SUPPORTED: [Format; 4] = [Format::Gzip, Format::Xz, Format::Zstd, Format::Lz4];

#[test]
fn kernels_come_out_of_every_wrapping() {
    let elf = kernel(300_000);
    assert_eq!(detect(&elf), Kind::Elf);
    assert!(matches!(extract_elf(&elf, LIMIT), Ok(Cow::Borrowed(same)) if same == elf));
    for format in SUPPORTED {
        let image = bzimage(format, &elf);
        assert_eq!(detect(&image), Kind::BzImage);
        assert_eq!(payload(&image).unwrap().unpacked, Some(elf.len()), "{format:?}");
        assert!(extract_elf(&image, LIMIT).unwrap() == elf, "{format:?} in a bzImage");
        let file = compress(format, &elf);
        assert_eq!(detect(&file), Kind::Compressed(format));
        assert!(extract_elf(&file, LIMIT).unwrap() == elf, "{format:?} file");
    }
}

#[test]
fn the_caller_may_bring_the_buffer() {
    let elf = kernel(5000);
    for format in SUPPORTED {
        let image = bzimage(format, &elf);
        let payload = payload(&image).unwrap();
        let mut out = vec![0xaa; elf.len() + 9];
        assert_eq!(payload.unpack_into(&mut out), Ok(elf.len()), "{format:?}");
        assert!(out[..elf.len()] == elf && out[elf.len()..] == [0xaa; 9], "{format:?}");
        let small = &mut out[..elf.len() - 1];
        let limit = small.len();
        assert_eq!(payload.unpack_into(small), Err(ExtractError::TooLarge { limit }), "{format:?}");
        assert_eq!(payload.unpack_into(&mut []), Err(ExtractError::TooLarge { limit: 0 }), "{format:?}");
    }
}

#[test]
fn lz4_blocks_of_8_mib_join() {
    let elf = kernel((8 << 20) + 12345);
    assert!(extract_elf(&bzimage(Format::Lz4, &elf), 9 << 20).unwrap() == elf);
    let joined = [compress(Format::Lz4, &elf[..1000]), compress(Format::Lz4, &elf[1000..5000])].concat();
    assert!(*extract_elf(&joined, 1 << 20).unwrap() == elf[..5000]);
}

#[test]
fn zeros_that_swell_stop_at_the_limit() {
    let bomb = vec![0; 40 << 20];
    for format in SUPPORTED {
        let file = compress(format, &bomb);
        assert!(file.len() < 1 << 20);
        assert_eq!(extract_elf(&file, LIMIT), Err(ExtractError::TooLarge { limit: LIMIT }), "{format:?}");
    }
}

#[test]
fn gzip_headers_with_every_field() {
    let elf = kernel(1000);
    let plain = compress(Format::Gzip, &elf);
    let mut file = vec![0x1f, 0x8b, 8, 0x1e, 0, 0, 0, 0, 0, 3, 3, 0, 1, 2, 3];
    file.extend(b"vmlinux\0why not\0\x12\x34");
    file.extend(&plain[10..]);
    assert!(extract_elf(&file, LIMIT).unwrap() == elf);
}

#[test]
fn damage_is_noticed() {
    let elf = kernel(20_000);
    for format in [Format::Gzip, Format::Xz] {
        let image = bzimage(format, &elf);
        for at in (payload(&image).unwrap().bytes.as_ptr() as usize - image.as_ptr() as usize
            ..image.len() - 68)
            .step_by(1009)
        {
            let mut torn = image.clone();
            torn[at] ^= 0x10;
            assert!(extract_elf(&torn, LIMIT).is_err(), "{format:?} byte {at}");
        }
    }
    for format in SUPPORTED {
        let mut lies = bzimage(format, &elf);
        let size = lies.len() - 68;
        lies[size] ^= 1;
        assert_eq!(extract_elf(&lies, LIMIT), Err(ExtractError::Corrupt(format)), "{format:?}");
        lies[size + 3] = 0xff;
        assert_eq!(extract_elf(&lies, LIMIT), Err(ExtractError::TooLarge { limit: LIMIT }), "{format:?}");
    }
}

#[test]
fn refusals_say_why() {
    use alloc::string::ToString;
    let refusal = |image: &[u8]| extract_elf(image, LIMIT).unwrap_err().to_string();
    assert_eq!(
        refusal(b"#!/bin/sh\n"),
        "not a kernel: neither ELF nor bzImage; first bytes [23, 21, 2f, 62, 69, 6e, 2f, 73]"
    );
    assert!(refusal(b"").contains("not a kernel"));
    for (format, name) in [(Format::Lzo, "LZO"), (Format::Bzip2, "bzip2"), (Format::Lzma, "LZMA")] {
        assert!(refusal(&bzimage(format, b"")).contains(name), "{name}");
    }
    assert!(refusal(&compress(Format::Gzip, b"no kernel")).contains("no ELF kernel"));
    let mut old = bzimage(Format::Gzip, b"x");
    old[0x206] = 7;
    assert!(refusal(&old).contains("2.07"));
    let mut cut = bzimage(Format::Gzip, b"x");
    cut.truncate(cut.len() - 65);
    assert_eq!(extract_elf(&cut, LIMIT), Err(ExtractError::Truncated));
    assert_eq!(extract_elf(&kernel(100), 99), Err(ExtractError::TooLarge { limit: 99 }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_bytes_panic(
        format in prop::sample::select(&SUPPORTED[..]),
        bytes in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let _ = extract_elf(&bytes, 1 << 16);
        let magic = Format::MAGIC.iter().find(|(_, f)| *f == format).unwrap().0;
        let _ = extract_elf(&[magic, &bytes].concat(), 1 << 16);
    }

    #[test]
    fn no_mutation_panics(
        format in prop::sample::select(&SUPPORTED[..]),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let mut image = bzimage(format, &kernel(3000));
        for (at, byte) in edits {
            *at.get_mut(&mut image) = byte;
        }
        if let Some(cut) = cut {
            image.truncate(cut.index(image.len()));
        }
        let _ = extract_elf(&image, 1 << 16);
    }
}
