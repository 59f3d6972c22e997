//! MSR and I/O bitmaps.

use super::*;
use crate::bitmap::{IO_WORDS, IoAccess, L0Map, MSR_WORDS, MergedMap, io_exits, msr_bit, msr_exits};
use std::vec;

/// Maps from words.
struct Words<'a>(&'a [u64]);
impl Maps12 for Words<'_> {
    fn msr(&self, at: usize) -> u8 {
        (self.0[at / 8] >> (at % 8 * 8)) as u8
    }
    fn io(&self, at: usize) -> u8 {
        self.msr(at)
    }
    fn vmread(&self, at: usize) -> u8 {
        self.msr(at)
    }
    fn vmwrite(&self, at: usize) -> u8 {
        self.msr(at)
    }
}

fn using(bit: u32) -> Vmcs12 {
    let mut v = valid(&caps());
    v.set(Field::PRIMARY_CONTROLS, u64::from(v.get32(Field::PRIMARY_CONTROLS) | bit));
    v
}

#[test]
fn the_four_quarters_of_the_msr_bitmap() {
    assert_eq!(msr_bit(0x10, false), Some((2, 0)));
    assert_eq!(msr_bit(0xc000_0080, false), Some((0x400 + 16, 0)));
    assert_eq!(msr_bit(0x1fff, true), Some((0x800 + 0x3ff, 7)));
    assert_eq!(msr_bit(0xc000_1fff, true), Some((0xfff, 7)));
    for none in [0x2000, 0xbfff_ffff, 0xc000_2000, 0x4000_0000, !0] {
        assert_eq!(msr_bit(none, false), None);
        assert!(msr_exits(&using(primary::MSR_BITMAPS), &Flat(0), none, true));
    }
}

#[test]
fn io_looks_at_every_byte_and_wraps_to_an_exit() {
    let mut map = vec![0u64; IO_WORDS];
    map[0x8003 / 64] |= 1 << (0x8003 % 64);
    let v = using(primary::IO_BITMAPS);
    let exits = |port, size| io_exits(&v, &Words(&map), IoAccess { port, size });
    assert!(exits(0x8000, 4) && exits(0x8003, 1) && exits(0x8002, 2));
    assert!(!exits(0x8000, 2) && !exits(0x8004, 4) && !exits(0x7ffc, 4));
    assert!(!exits(0xffff, 1) && exits(0xffff, 2) && exits(0xfffd, 4));
    let q = |size: u64, port: u64| IoAccess::from_qualification(port << 16 | size);
    assert_eq!(q(3, 0x3f8), IoAccess { port: 0x3f8, size: 4 });
    assert_eq!((q(0, 1).size, q(1, 1).size, q(7, 1).size), (1, 2, 4));
}

/// L0's map: all ones but the words listed.
fn l0(open: &[u16], value: u64) -> Vec<u64> {
    let mut map = vec![u64::MAX; MSR_WORDS];
    open.iter().for_each(|i| map[usize::from(*i)] = value);
    map
}

#[test]
fn only_what_both_open_is_open() {
    let ours = l0(&[3, 400], !0xff);
    let map = L0Map { bits: &ours, open: &[3, 400], generation: 1 };
    let (mut merged, mut out) = (MergedMap::new(), vec![0u64; MSR_WORDS]);
    let read = |n| if n == 400 { 0x0f } else { 0 };
    assert!(merged.msr(map, Some(Gpa::ZERO), 0, None, read, &mut out));
    assert_eq!((out[3], out[400], out[4]), (!0xff, !0xff | 0x0f, !0));
    assert!(out.iter().enumerate().all(|(i, w)| i == 3 || i == 400 || *w == u64::MAX));
    // Without a stamp L1 may have edited: read again. With one, not.
    assert!(merged.msr(map, Some(Gpa::ZERO), 0, None, |_| u64::MAX, &mut out));
    assert_eq!(out[3], u64::MAX);
    assert!(merged.msr(map, Some(Gpa::ZERO), 0, Some(7), |_| 0, &mut out));
    assert!(!merged.msr(map, Some(Gpa::ZERO), 0, Some(7), |_| panic!(), &mut out));
    // L1 without a bitmap: everything exits.
    assert!(merged.msr(map, None, 0, None, |_| panic!(), &mut out));
    assert!(out.iter().all(|w| *w == u64::MAX));
    // L0 closes.
    let closed = l0(&[], 0);
    assert!(merged.msr(
        L0Map { bits: &closed, open: &[], generation: 2 },
        Some(Gpa::ZERO),
        0,
        None,
        |_| 0,
        &mut out
    ));
    assert!(out.iter().all(|w| *w == u64::MAX));
}

/// CVE-2019-3887: the machine's own x2APIC was open to an L2.
#[test]
fn x2apic_registers_are_open_only_where_the_processor_virtualizes_them() {
    // L0 lends L1 its x2APIC registers by its own virtualization: all open in vmcs01.
    let open: Vec<u16> = (0x20..0x24).chain(0x120..0x124).collect();
    let ours = l0(&open, 0);
    let map = L0Map { bits: &ours, open: &open, generation: 1 };
    let all = secondary::X2APIC | secondary::APIC_REGISTERS | secondary::INTERRUPT_DELIVERY;
    let (mut merged, mut out) = (MergedMap::new(), vec![0u64; MSR_WORDS]);
    let mut go = |lent| {
        merged.msr(map, Some(Gpa::ZERO), lent, None, |_| 0, &mut out);
        let open = |word: usize| !out[word];
        ((0x20..0x24).map(open).collect::<Vec<_>>(), (0x120..0x124).map(open).collect::<Vec<_>>())
    };
    let none = vec![0; 4];
    assert_eq!(go(all), (vec![!0; 4], vec![1 << 8 | 1 << 0xb | 1 << 0x3f, 0, 0, 0]));
    assert_eq!(go(0), (none.clone(), none.clone()), "lent no more");
    assert_eq!(go(secondary::X2APIC), (vec![1 << 8, 0, 0, 0], vec![1 << 8, 0, 0, 0]));
    assert_eq!(go(secondary::X2APIC | secondary::APIC_REGISTERS), (vec![!0; 4], vec![1 << 8, 0, 0, 0]));
    assert_eq!(go(secondary::APIC_REGISTERS | secondary::INTERRUPT_DELIVERY), (none.clone(), none));
}

#[test]
fn io_merges_likewise() {
    let ours = l0(&[1], 0);
    let map = L0Map { bits: &ours, open: &[1], generation: 1 };
    let (mut merged, mut out) = (MergedMap::new(), vec![0u64; MSR_WORDS]);
    assert!(merged.io(map, None, None, |_| panic!(), &mut out), "L1 wants none");
    assert_eq!((out[0], out[1]), (!0, 0));
    assert!(!merged.io(map, None, None, |_| panic!(), &mut out));
    assert!(merged.io(map, Some(Gpa::ZERO), None, |_| 5, &mut out));
    assert_eq!((out[0], out[1]), (!0, 5));
}
