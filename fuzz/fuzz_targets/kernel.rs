//! A kernel image of any content is refused, or its plan stays inside the image.
#![no_main]

/// A bomb may not unpack to more.
const LIMIT: usize = 8 << 20;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(elf) = boot::bzimage::extract_elf(bytes, LIMIT) {
        assert!(elf.len() <= LIMIT.max(bytes.len()));
        let _ = boot::elf::plan(&elf);
    }
    let _ = boot::elf::plan(bytes);
});
