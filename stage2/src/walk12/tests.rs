//! The walk against the manual's tables, and against an L1 that writes under it.

mod ept;

use super::*;
use addr::testing::{HeapMemory, HeapPage};
use core::cell::Cell;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const NX: u64 = 1 << 63;
const ALL: u64 = P | W | U;

const PAE: u64 = 1 << 5;
const PSE: u64 = 1 << 4;
const LA57: u64 = 1 << 12;
const SMEP: u64 = 1 << 20;
const LMA: u64 = 1 << 10;
const NXE: u64 = 1 << 11;

fn long(nxe: bool) -> Paging12 {
    Paging12::from_host(PAE, LMA | if nxe { NXE } else { 0 }, 40, true)
}

/// Tables at 0x1000 (top), 0x2000, ... each level one page further; the index is that of `ngpa`.
fn put(mem: &HeapMemory, paging: &Paging12, ngpa: u64, level: u8, entry: u64) {
    let table = 0x1000 * u64::from(paging.levels() - level + 1);
    let at = table + paging.entry_offset(Ngpa::new(ngpa), level) as u64;
    if paging.shape() == Shape::TwoLevel {
        mem.write(Gpa::new(at), &(entry as u32).to_le_bytes()).unwrap();
    } else {
        mem.put_u64(Gpa::new(at), entry);
    }
}

/// A complete walk down to a 4 KiB page at gpa 0x9000.
fn chain(mem: &HeapMemory, paging: &Paging12, ngpa: u64) {
    let levels = paging.levels();
    for level in 1..=levels {
        let next = if level == 1 { 0x9000 } else { 0x1000 * u64::from(levels - level + 2) };
        let flags = if paging.shape() == Shape::Pae && level == 3 { P } else { ALL };
        put(mem, paging, ngpa, level, next | flags);
    }
}

fn go(mem: &HeapMemory, paging: Paging12, ngpa: u64, access: Access) -> Result<Mapped, u64> {
    match walk(mem, &Root12::new(0x1000, paging), Ngpa::new(ngpa), access, Marks::Set) {
        Ok(mapped) => Ok(mapped),
        Err(WalkError::Violation(v)) => {
            assert_eq!(v.ngpa, Ngpa::new(ngpa));
            Err(v.info1)
        }
        Err(WalkError::Busy) => panic!("busy"),
    }
}

const FINAL: u64 = info1::FINAL | info1::U;

#[test]
fn each_shape_walks_its_own_tables() {
    for (paging, ngpa) in [
        (Paging12::from_host(0, 0, 40, true), 0xffc0_1123),
        (Paging12::from_host(PAE, NXE, 40, true), 0xffe0_1123),
        (long(true), 0xffff_c020_1123),
        (Paging12::from_host(PAE | LA57, LMA | NXE, 52, true), 0x1ff_ffff_c020_1123),
    ] {
        let mem = HeapMemory::with_pages(16);
        chain(&mem, &paging, ngpa);
        let mapped = go(&mem, paging, ngpa, Access::READ).unwrap();
        assert_eq!((mapped.gpa, mapped.size), (Gpa::new(0x9123), PageSize::Size4K), "{paging:?}");
        assert_eq!(mapped.perms, Perms::RWX);
        assert_eq!(mapped.visits().len(), usize::from(paging.levels()));
        assert!(mapped.visits().iter().zip(1..).all(|(v, n)| v.frame == Frame::new(n)));
        // One bit more than the shape has is no address of L2's.
        let beyond = ngpa | 1 << paging.input_bits();
        assert_eq!(go(&mem, paging, beyond, Access::READ).unwrap_err(), FINAL);
    }
}

#[test]
fn marks_are_set_as_by_hardware() {
    let (mem, paging) = (HeapMemory::with_pages(16), long(true));
    chain(&mem, &paging, 0);
    let entry = |table: u64| mem.read_u64(Gpa::new(table * 0x1000)).unwrap();
    walk(&mem, &Root12::new(0x1000, paging), Ngpa::ZERO, Access::WRITE, Marks::Leave).unwrap();
    assert_eq!(entry(4), 0x9000 | ALL);
    assert!(!go(&mem, paging, 0, Access::READ).unwrap().dirty);
    assert_eq!([entry(1), entry(4)], [0x2000 | ALL | A, 0x9000 | ALL | A]);
    assert!(go(&mem, paging, 0, Access::WRITE).unwrap().dirty);
    assert_eq!([entry(3), entry(4)], [0x4000 | ALL | A, 0x9000 | ALL | A | D], "D in the leaf only");

    // A fault marks nothing.
    chain(&mem, &paging, 0);
    put(&mem, &paging, 0, 1, 0x9000 | P | U);
    assert!(go(&mem, paging, 0, Access::WRITE).is_err());
    assert_eq!(entry(1), 0x2000 | ALL);

    // 4-byte entries; PAE's pointers have no such bits (they would be reserved).
    let legacy = Paging12::from_host(0, 0, 40, true);
    let mem = HeapMemory::with_pages(16);
    chain(&mem, &legacy, 0x1000);
    go(&mem, legacy, 0x1000, Access::WRITE).unwrap();
    assert_eq!(mem.read_u32(Gpa::new(0x2004)).unwrap(), (0x9000 | ALL | A | D) as u32);
    assert_eq!(mem.read_u32(Gpa::new(0x2000)).unwrap(), 0);
    let pae = Paging12::from_host(PAE, 0, 40, true);
    let mem = HeapMemory::with_pages(16);
    chain(&mem, &pae, 0);
    go(&mem, pae, 0, Access::WRITE).unwrap();
    assert_eq!(mem.read_u64(Gpa::new(0x1000)).unwrap(), 0x2000 | P);
}

#[test]
fn faults_report_what_the_walk_found() {
    let table = info1::TABLE | info1::U;
    let write_table = Access { write: true, table_walk: true, ..Access::READ };
    // level, entry, access, expected
    let cases = [
        (4, 0, Access::READ, FINAL),
        (1, W | U, Access::WRITE, FINAL | info1::W),
        (2, 0x4000 | P | U, Access::WRITE, FINAL | info1::W | info1::P),
        (1, 0x9000 | P | U, write_table, table | info1::W | info1::P),
        (3, 0x3000 | P | W, Access::READ, FINAL | info1::P),
        (3, 0x3000 | ALL | NX, Access::FETCH, FINAL | info1::P | info1::ID),
        (1, 0, Access::FETCH, FINAL | info1::ID),
        (1, 0x9000 | ALL | 1 << 40, Access::READ, FINAL | info1::P | info1::RSV),
        (4, 0x2000 | ALL | PS, Access::READ, FINAL | info1::P | info1::RSV),
        (4, 0x2000 | ALL | 1 << 8, Access::READ, FINAL | info1::P | info1::RSV),
        (3, 0x4000_2000 | ALL | PS, Access::READ, FINAL | info1::P | info1::RSV),
        (2, 0x20_2000 | ALL | PS, Access::WRITE, FINAL | info1::P | info1::RSV | info1::W),
        // A table outside memory reads as all ones.
        (2, 0x77_7000 | ALL, Access::READ, FINAL | info1::P | info1::RSV),
        // The first fault of a walk counts: not present above reserved below.
        (2, 1 << 40, Access::READ, FINAL),
    ];
    for (level, entry, access, expected) in cases {
        let (mem, paging) = (HeapMemory::with_pages(16), long(true));
        chain(&mem, &paging, 0);
        put(&mem, &paging, 0, level, entry);
        let found = go(&mem, paging, 0, access).unwrap_err();
        assert_eq!(found, expected, "level {level}, {entry:#x}, {access:?}: {found:#x}");
    }
}

#[test]
fn no_execute_is_reserved_without_nxe_and_fetches_go_unreported() {
    let mem = HeapMemory::with_pages(16);
    chain(&mem, &long(false), 0);
    put(&mem, &long(false), 0, 1, 0x9000 | ALL | NX);
    let rsv = FINAL | info1::P | info1::RSV;
    assert_eq!(go(&mem, long(false), 0, Access::READ).unwrap_err(), rsv);
    assert_eq!(go(&mem, long(false), 0, Access::FETCH).unwrap_err(), rsv);
    let smep = Paging12::from_host(PAE | SMEP, LMA, 40, true);
    assert_eq!(go(&mem, smep, 0, Access::FETCH).unwrap_err(), rsv | info1::ID);
    let mapped = go(&mem, long(true), 0, Access::READ).unwrap();
    assert_eq!(mapped.perms, Perms::RW);
}

#[test]
fn large_pages_and_their_limits() {
    let mem = HeapMemory::with_pages(16);
    let at = |paging: Paging12, level, entry, ngpa| {
        chain(&mem, &paging, ngpa);
        put(&mem, &paging, ngpa, level, entry);
        go(&mem, paging, ngpa, Access::READ).map(|m| (m.gpa.raw(), m.size))
    };
    let rsv = Err(FINAL | info1::P | info1::RSV);
    assert_eq!(at(long(true), 2, 0x60_0000 | ALL | PS, 0x1234), Ok((0x60_1234, PageSize::Size2M)));
    // Bit 12 of a large page is PAT.
    assert_eq!(at(long(true), 2, 0x60_1000 | ALL | PS, 0), Ok((0x60_0000, PageSize::Size2M)));
    assert_eq!(at(long(true), 3, 0x8000_0000 | ALL | PS, 0x12_3456), Ok((0x8012_3456, PageSize::Size1G)));
    let no_1g = Paging12::from_host(PAE, LMA, 40, false);
    assert_eq!(at(no_1g, 3, 0x8000_0000 | ALL | PS, 0), rsv);
    let pae = Paging12::from_host(PAE, NXE, 40, true);
    assert_eq!(at(pae, 2, 0x60_0000 | ALL | PS, 0), Ok((0x60_0000, PageSize::Size2M)));
    assert_eq!(at(pae, 2, 0x60_0000 | ALL | PS | 1 << 52, 0), rsv);
    for bad in [1 << 1, 1 << 5, 1 << 7, 1 << 8, NX, 1 << 40] {
        assert_eq!(at(pae, 3, 0x2000 | P | bad, 0), rsv, "{bad:#x}");
    }
    // 4 MiB: bits 39:32 of the address are in 20:13; without PSE, PS means nothing.
    let pse = Paging12::from_host(PSE, 0, 36, true);
    assert_eq!(at(pse, 2, 0x40_0000 | 5 << 13 | ALL | PS, 0x20_1000), Ok((0x5_0060_1000, PageSize::Size2M)));
    assert_eq!(at(pse, 2, 0x40_0000 | 5 << 13 | ALL | PS, 0x1000), Ok((0x5_0040_1000, PageSize::Size2M)));
    assert_eq!(at(pse, 2, 0x40_0000 | 1 << 21 | ALL | PS, 0), rsv);
    assert_eq!(at(pse, 2, 0x40_0000 | 1 << 17 | ALL | PS, 0), rsv, "above 36 bits");
    let legacy = Paging12::from_host(0, NXE, 36, true);
    assert_eq!(at(legacy, 2, 0x2000 | ALL | PS, 0x1000), Ok((0x9000, PageSize::Size4K)));
}

/// CVE-2024-50115: the directory pointers start at nCR3\[31:5\], and never leave the page.
#[test]
fn low_bits_of_ncr3_stay_in_the_page() {
    let pae = Paging12::from_host(PAE, 0, 40, true);
    let mem = HeapMemory::with_pages(16);
    chain(&mem, &pae, 0xc000_0000);
    mem.put_u64(Gpa::new(0x1018), 0);
    mem.put_u64(Gpa::new(0x1ff8), 0x2000 | P);
    let root = Root12::new(0x1fff, pae);
    assert_eq!(root.base(), Gpa::new(0x1fe0));
    let found = walk(&mem, &root, Ngpa::new(0xc000_0000), Access::READ, Marks::Set).unwrap();
    assert_eq!(found.visits()[0].offset, 0xff8);
    for (paging, base) in [(long(true), 0x1000), (Paging12::from_host(0, 0, 40, true), 0x1000)] {
        assert_eq!(Root12::new(0x1fff, paging).base(), Gpa::new(base));
    }
}

#[test]
fn tables_that_point_at_themselves_end() {
    let (mem, paging) = (HeapMemory::with_pages(16), long(true));
    mem.put_u64(Gpa::new(0x1000), 0x1000 | ALL);
    let mapped = go(&mem, paging, 0, Access::WRITE).unwrap();
    assert_eq!((mapped.gpa, mapped.visits().len()), (Gpa::new(0x1000), 4));
    // The entry was marked at the first level, so the others found it changed and the walk began again.
    assert_eq!(mem.read_u64(Gpa::new(0x1000)).unwrap(), 0x1000 | ALL | A | D);
}

/// An L1 that changes an entry each time before the walk marks it.
#[derive(Clone)]
struct Nervous(HeapMemory);

#[derive(Clone)]
struct NervousPage(HeapPage);

impl GuestMemory for Nervous {
    type Page = NervousPage;
    fn pin(&self, frame: Frame<GuestPhys>) -> Result<NervousPage, GuestFault> {
        self.0.pin(frame).map(NervousPage)
    }
    fn read(&self, _: Gpa, _: &mut [u8]) -> Result<(), GuestFault> {
        unreachable!("entries are read whole")
    }
    fn write(&self, _: Gpa, _: &[u8]) -> Result<(), GuestFault> {
        unreachable!("entries are never written blindly")
    }
}

std::thread_local!(static READS: Cell<u32> = const { Cell::new(0) });

impl GuestPage for NervousPage {
    fn read_u64(&self, offset: usize) -> u64 {
        READS.set(READS.get() + 1);
        let entry = self.0.read_u64(offset);
        self.0.write_u64(offset, entry ^ 1 << 52);
        entry
    }
    fn compare_exchange_u64(&self, offset: usize, old: u64, new: u64) -> Result<u64, u64> {
        self.0.compare_exchange_u64(offset, old, new)
    }
    fn read_u8(&self, _: usize) -> u8 {
        unreachable!()
    }
    fn read_u32(&self, _: usize) -> u32 {
        unreachable!()
    }
    fn write_u8(&self, _: usize, _: u8) {
        unreachable!()
    }
    fn write_u32(&self, _: usize, _: u32) {
        unreachable!()
    }
    fn write_u64(&self, _: usize, _: u64) {
        unreachable!()
    }
    fn swap_u8(&self, _: usize, _: u8) -> u8 {
        unreachable!()
    }
    fn fetch_or_u64(&self, _: usize, _: u64) -> u64 {
        unreachable!()
    }
    fn fetch_and_u64(&self, _: usize, _: u64) -> u64 {
        unreachable!()
    }
    fn fetch_or_u32(&self, _: usize, _: u32) -> u32 {
        unreachable!()
    }
    fn fetch_and_u32(&self, _: usize, _: u32) -> u32 {
        unreachable!()
    }
    fn compare_exchange_u32(&self, _: usize, _: u32, _: u32) -> Result<u32, u32> {
        unreachable!()
    }
}

#[test]
fn an_l1_that_keeps_writing_gets_a_bounded_walk() {
    let (mem, paging) = (HeapMemory::with_pages(16), long(true));
    chain(&mem, &paging, 0);
    READS.set(0);
    let root = Root12::new(0x1000, paging);
    let found = walk(&Nervous(mem), &root, Ngpa::ZERO, Access::READ, Marks::Set);
    assert_eq!(found, Err(WalkError::Busy));
    assert_eq!(READS.get(), 4 * ATTEMPTS as u32, "each entry once per attempt");
}
