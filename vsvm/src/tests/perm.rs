//! Permission maps against the manual's own description, bit by bit.

use super::*;
use crate::perm::*;
use proptest::prelude::*;
use std::cell::Cell;
use std::vec;
use std::vec::Vec;

/// A map by its bytes.
struct Bytes {
    msr: Vec<u8>,
    io: Vec<u8>,
}
impl Perm12 for Bytes {
    fn msr_byte(&self, offset: usize) -> u8 {
        self.msr[offset]
    }
    fn io_byte(&self, offset: usize) -> u8 {
        self.io[offset]
    }
}
fn empty() -> Bytes {
    Bytes { msr: vec![0; 0x2000], io: vec![0; 0x3000] }
}

#[test]
fn msr_ranges_as_in_the_manual() {
    // APM vol. 2, "MSR Intercepts": byte offset of each range, two bits per MSR.
    for (msr, byte, bit) in [
        (0x0000_0000, 0x0000, 0),
        (0x0000_0010, 0x0004, 0),
        (0x0000_0277, 0x009d, 6),
        (0x0000_1fff, 0x07ff, 6),
        (0xc000_0000, 0x0800, 0),
        (0xc000_0080, 0x0820, 0),
        (0xc000_1fff, 0x0fff, 6),
        (0xc001_0000, 0x1000, 0),
        (0xc001_0117, 0x1045, 6),
        (0xc001_1fff, 0x17ff, 6),
    ] {
        assert_eq!(msr_bit(msr), Some(byte * 8 + bit), "{msr:#x}");
    }
    for msr in [0x2000, 0x4000_0000, 0xbfff_ffff, 0xc000_2000, 0xc000_ffff, 0xc001_2000, u32::MAX] {
        assert_eq!(msr_bit(msr), None, "{msr:#x}");
        assert!(msr_intercepted(&empty(), msr, false) && msr_intercepted(&empty(), msr, true));
    }
}

#[test]
fn no_two_msrs_share_a_bit() {
    let mut seen = vec![false; 0x2000 * 8];
    for base in [0, 0xc000_0000u32, 0xc001_0000] {
        for msr in base..base + 0x2000 {
            let bit = usize::from(msr_bit(msr).unwrap());
            assert!(!seen[bit] && bit % 2 == 0 && bit < 0x1800 * 8);
            seen[bit] = true;
        }
    }
}

#[test]
fn read_and_write_have_bits_of_their_own() {
    let mut maps = empty();
    maps.msr[0x820] = 0b10;
    assert!(!msr_intercepted(&maps, 0xc000_0080, false));
    assert!(msr_intercepted(&maps, 0xc000_0080, true));
    assert!(!msr_intercepted(&maps, 0xc000_0081, true));
}

#[test]
fn every_byte_of_a_port_access_counts_at_every_port() {
    for trap in [0usize, 7, 8, 0x3f8, 0xfff, 0x7fff, 0xfffe, 0xffff, 0x1_0000, 0x1_0002] {
        let mut maps = empty();
        maps.io[trap / 8] |= 1 << (trap % 8);
        for size in [1u8, 2, 4] {
            for port in 0..=0xffffu16 {
                let hits = (usize::from(port)..usize::from(port) + usize::from(size)).contains(&trap);
                if io_intercepted(&maps, IoAccess { port, size }) != hits {
                    panic!("port {port:#x} size {size} trap {trap:#x}");
                }
            }
        }
    }
}

#[test]
fn port_access_from_exit_information() {
    let access = |info| IoAccess::from_info(info);
    assert_eq!(access(0x03f8_0011), IoAccess { port: 0x3f8, size: 1 });
    assert_eq!(access(0x0070_0020), IoAccess { port: 0x70, size: 2 });
    assert_eq!(access(0xffff_0045), IoAccess { port: 0xffff, size: 4 });
    // No size at all: the strictest reading.
    assert_eq!(access(0x0080_0000).size, 4);
}

#[test]
fn maps_without_memory_intercept() {
    let maps = Maps12::<HeapPage> { msrpm: [Some(HeapPage::default()), None], iopm: [None, None, None] };
    assert!(!msr_intercepted(&maps, 0x10, false));
    assert!(msr_intercepted(&maps, 0xc001_0000, false));
    assert!(io_intercepted(&maps, IoAccess { port: 0x80, size: 1 }));
    assert_eq!(map_word(&maps.msrpm, 511), 0);
    assert_eq!(map_word(&maps.msrpm, 512), !0);
    assert_eq!(map_word(&maps.msrpm, 5000), !0);
}

#[test]
fn only_open_words_are_read_and_stamps_save_even_that() {
    let mut ours = [!0u64; MSRPM_WORDS];
    (ours[3], ours[700]) = (!0b11, 0);
    let open = OpenWords::of(&ours);
    let l0 = |generation| L0Map { bits: &ours, open: &open, generation };
    let (reads, base) = (Cell::new(0), Some(Gpa::new(0x1000)));
    let read = |index| {
        reads.set(reads.get() + 1);
        assert!(index == 3 || index == 700);
        0b01
    };
    let (mut map, mut out) = (MergedMap::new(), [0u64; MSRPM_WORDS]);
    assert!(map.refresh(l0(1), base, None, read, &mut out));
    assert_eq!((out[3], out[700], out[0], reads.get()), (!0b10, 0b01, !0, 2));
    // L1 may have edited its map without notice.
    assert!(map.refresh(l0(1), base, None, read, &mut out));
    assert_eq!(reads.get(), 4);
    assert!(map.refresh(l0(1), base, Some(7), read, &mut out));
    assert!(!map.refresh(l0(1), base, Some(7), read, &mut out));
    assert_eq!(reads.get(), 6);
    for (generation, base, source) in
        [(1, base, Some(8)), (2, base, Some(8)), (2, Some(Gpa::new(0x2000)), Some(8)), (2, None, Some(8))]
    {
        assert!(map.refresh(l0(generation), base, source, read, &mut out));
    }
    // L1 intercepts nothing of the class: L0's map alone, and nothing to read.
    assert_eq!((out[3], out[700], reads.get()), (!0b11, 0, 12));
    assert!(!map.refresh(l0(2), None, Some(8), read, &mut out));
    map.invalidate();
    assert!(map.refresh(l0(2), None, Some(8), read, &mut out));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever both maps say, the merged map is their OR, from many open words as from few, and stays it
    /// when L0's map closes a word.
    #[test]
    fn merged_is_ours_or_theirs(seed: u64, holes in 0u64..200) {
        let mut r = Noise(seed);
        let mut ours = [!0u64; IOPM_WORDS];
        for _ in 0..holes {
            ours[r.below(IOPM_WORDS as u64) as usize] &= r.next();
        }
        let theirs: Vec<u64> = (0..IOPM_WORDS).map(|_| r.next()).collect();
        let (mut map, mut out) = (MergedMap::new(), [0u64; IOPM_WORDS]);
        for generation in 1..4 {
            let open = OpenWords::of(&ours);
            let l0 = L0Map { bits: &ours, open: &open, generation };
            map.refresh(l0, Some(Gpa::ZERO), None, |i| theirs[i], &mut out);
            for i in 0..IOPM_WORDS {
                prop_assert_eq!(out[i], ours[i] | theirs[i] & !ours[i], "word {}", i);
                prop_assert_eq!(out[i] & ours[i], ours[i]);
            }
            ours[r.below(IOPM_WORDS as u64) as usize] = !0;
            ours[r.below(IOPM_WORDS as u64) as usize] = 0;
        }
    }
}
