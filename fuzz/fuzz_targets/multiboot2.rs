//! Whatever a boot loader hands over, the memory map is sorted and has no overlap.
#![no_main]
use boot::multiboot2::BootInfo;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(info) = BootInfo::parse(bytes) {
        let map = info.memory_map();
        for pair in map.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{map:?}");
        }
    }
});
