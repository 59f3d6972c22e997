use super::*;
use alloc::string::ToString;
use alloc::vec;
use proptest::prelude::*;

/// Builds an information block out of (type, body) tags.
fn block(tags: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut out = vec![0; 8];
    for (kind, body) in tags.iter().chain([&(tag::END, vec![])]) {
        out.extend(kind.to_le_bytes());
        out.extend((body.len() as u32 + 8).to_le_bytes());
        out.extend(body);
        out.resize(out.len().next_multiple_of(8), 0xee);
    }
    let total = out.len() as u32;
    out[..4].copy_from_slice(&total.to_le_bytes());
    out
}

fn words(list: &[u32]) -> Vec<u8> {
    list.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn quads(list: &[u64]) -> Vec<u8> {
    list.iter().flat_map(|quad| quad.to_le_bytes()).collect()
}

fn memory(list: &[(u64, u64, u64)]) -> (u32, Vec<u8>) {
    let mut body = words(&[24, 0]);
    list.iter().for_each(|&(base, bytes, kind)| body.extend(quads(&[base, bytes, kind])));
    (tag::MEMORY_MAP, body)
}

fn efi(list: &[(u64, u64, u64, u64)]) -> (u32, Vec<u8>) {
    // Firmware uses descriptors of 48 bytes, longer than the structure.
    let mut body = words(&[48, 1]);
    list.iter()
        .for_each(|&(kind, base, pages, attr)| body.extend(quads(&[kind, base, 0, pages, attr, 0xdead])));
    (tag::EFI_MEMORY_MAP, body)
}

fn map(tags: &[(u32, Vec<u8>)]) -> Vec<(u64, u64, u32)> {
    let info = BootInfo::parse(&block(tags)).unwrap();
    info.memory_map().iter().map(|r| (r.start.raw(), r.end.raw(), r.kind.0)).collect()
}

const RAM: (u64, u64, u64) = (0x10_0000, 0x70_0000, 1);

#[test]
fn reads_what_grub_gives() {
    let mut module = words(&[0x20_0000, 0x20_1234]);
    module.extend(b"domain name=l1 -- console=hvc0\0");
    let mut screen = quads(&[0xfd00_0000]);
    screen.extend(words(&[4096, 1024, 768]));
    screen.extend([32, 1, 0, 0, 16, 8, 8, 8, 0, 8]);
    let info = BootInfo::parse(&block(&[
        (tag::COMMAND_LINE, b"console=com1 noreboot\0junk".to_vec()),
        (tag::LOADER_NAME, b"GRUB 2.06\0".to_vec()),
        (tag::MODULE, module),
        (tag::MODULE, words(&[0x30_0000, 0x30_0000])),
        memory(&[RAM]),
        (tag::FRAMEBUFFER, screen),
        (tag::EFI64, quads(&[0x7f00_1000])),
        (tag::EFI64_IMAGE_HANDLE, quads(&[0x7f00_2000])),
        (tag::LOAD_BASE, words(&[0x20_0000])),
        (99, b"unknown".to_vec()),
    ]))
    .unwrap();
    assert_eq!(info.command_line, "console=com1 noreboot");
    assert_eq!(info.loader, "GRUB 2.06");
    assert_eq!(info.modules.len(), 2);
    assert_eq!(info.modules[0].bytes(), 0x1234);
    assert_eq!(info.modules[0].cmdline, "domain name=l1 -- console=hvc0");
    assert_eq!(info.modules[1].cmdline, "");
    let screen = info.framebuffer.unwrap();
    assert_eq!(
        (screen.addr.raw(), screen.pitch, screen.width, screen.height),
        (0xfd00_0000, 4096, 1024, 768)
    );
    let field = |position| ColourField { position, size: 8 };
    assert_eq!(screen.kind, FramebufferKind::Rgb { red: field(16), green: field(8), blue: field(0) });
    assert_eq!(info.efi64_system_table, Some(Hpa::new(0x7f00_1000)));
    assert_eq!(info.efi64_image_handle, Some(0x7f00_2000));
    assert_eq!(info.load_base, Some(Hpa::new(0x20_0000)));
}

#[test]
fn text_screens_need_no_colours() {
    let mut screen = quads(&[0xb8000]);
    screen.extend(words(&[160, 80, 25]));
    screen.extend([16, 2, 0, 0]);
    let info = BootInfo::parse(&block(&[memory(&[RAM]), (tag::FRAMEBUFFER, screen)])).unwrap();
    assert_eq!(info.framebuffer.unwrap().kind, FramebufferKind::EgaText);
}

#[test]
fn the_efi_map_refines_the_loaders() {
    const WB: u64 = 0xf;
    assert_eq!(
        map(&[
            memory(&[(0, 0x10_0000, 1)]),
            efi(&[
                (7, 0, 1, WB),                // conventional
                (6, 0x1000, 1, WB),           // runtime data
                (10, 0x2000, 1, WB),          // ACPI NVS
                (11, 0x3000, 1, 1),           // MMIO
                (9, 0x4000, 1, WB),           // ACPI tables
                (8, 0x5000, 1, WB),           // bad
                (7, 0x6000, 1, 1),            // conventional, but uncacheable
                (4, 0x7000, 1, WB | 1 << 63), // boot services, but kept at run time
                (1, 0x20_0000, 2, WB),        // loader code where the other map says nothing
                (77, 0x20_1000, 1, WB),       // some future type
            ])
        ]),
        [
            (0, 0x1000, 1),
            (0x1000, 0x2000, 2),
            (0x2000, 0x3000, 4),
            (0x3000, 0x4000, 2),
            (0x4000, 0x5000, 3),
            (0x5000, 0x6000, 5),
            (0x6000, 0x8000, 2),
            (0x8000, 0x10_0000, 1),
            (0x20_0000, 0x20_1000, 1),
            (0x20_1000, 0x20_2000, 2),
        ]
    );
}

#[test]
fn ram_ends_where_physical_addresses_end() {
    assert_eq!(map(&[memory(&[(1 << 51, u64::MAX, 1)])]), [(1 << 51, 1 << 52, 1)]);
}

#[test]
fn the_newer_sound_root_pointer_is_taken() {
    let old = crate::acpi::tests::rsdp(0, 0x1000, 0);
    let new = crate::acpi::tests::rsdp(2, 0x1000, 0x2000);
    let mut torn = new.clone();
    torn[9] ^= 1;
    for (tags, xsdt) in [
        (vec![(tag::RSDP_OLD, old.clone()), (tag::RSDP_NEW, new.clone())], Some(Hpa::new(0x2000))),
        (vec![(tag::RSDP_NEW, new), (tag::RSDP_OLD, old.clone())], Some(Hpa::new(0x2000))),
        (vec![(tag::RSDP_OLD, old), (tag::RSDP_NEW, torn)], None),
    ] {
        let info = BootInfo::parse(&block(&[&tags[..], &[memory(&[RAM])]].concat())).unwrap();
        assert_eq!(info.rsdp.map(|rsdp| (rsdp.rsdt, rsdp.xsdt)), Some((Hpa::new(0x1000), xsdt)));
    }
}

#[test]
fn refusals_say_why() {
    let with = |tag| BootInfo::parse(&block(&[memory(&[RAM]), tag])).unwrap_err();
    assert_eq!(with((tag::EFI_BOOT_SERVICES, vec![])), BootError::BootServicesRunning);
    assert!(with((tag::EFI_BOOT_SERVICES, vec![])).to_string().contains("EFI boot services"));
    assert_eq!(with((tag::EFI32, words(&[1]))), BootError::Efi32);
    assert_eq!(with((tag::MODULE, words(&[2, 1]))), BootError::BadModule { index: 0 });
    assert!(matches!(with((tag::MODULE, words(&[2]))), BootError::BadTag { kind: tag::MODULE, .. }));
    assert!(matches!(with((tag::MEMORY_MAP, words(&[8, 0]))), BootError::BadTag { .. }));
    assert!(matches!(with((tag::MEMORY_MAP, words(&[0, 0]))), BootError::BadTag { .. }));
    assert_eq!(BootInfo::parse(&block(&[])).unwrap_err(), BootError::NoMemoryMap);
    assert_eq!(BootInfo::parse(&[]).unwrap_err(), BootError::Truncated);
    let whole = block(&[memory(&[RAM])]);
    assert_eq!(BootInfo::parse(&whole[..whole.len() - 1]).unwrap_err(), BootError::Truncated);
    let mut tag_of_no_size = whole.clone();
    tag_of_no_size[12..16].fill(0);
    assert!(matches!(BootInfo::parse(&tag_of_no_size), Err(BootError::BadTag { offset: 8, .. })));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = BootInfo::parse(&bytes);
    }

    #[test]
    fn no_tags_panic(
        tags in prop::collection::vec((0u32..23, prop::collection::vec(any::<u8>(), 0..80)), 0..6),
        cut in 0usize..9,
    ) {
        let mut bytes = block(&tags);
        bytes.truncate(bytes.len() - cut);
        let total = bytes.len() as u32;
        bytes[..4].copy_from_slice(&total.to_le_bytes());
        if let Ok(info) = BootInfo::parse(&bytes) {
            prop_assert!(info.memory_map().windows(2).all(|w| w[0].end <= w[1].start));
        }
    }
}
