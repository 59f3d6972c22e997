//! EPT12: entries that the manual calls misconfigured, rights along the walk, exact qualifications, flags.

use super::*;

const R: u64 = 1;
const W: u64 = 2;
const X: u64 = 4;
const RWX: u64 = 7;
const WB: u64 = 6 << 3;
const A: u64 = 1 << 8;
const D: u64 = 1 << 9;
const BIG: u64 = 1 << 7;

fn ept(flags: bool, execute_only: bool) -> Paging12 {
    Paging12::from_eptp(if flags { 0x105e } else { 0x101e }, 40, true, execute_only)
}

/// A complete walk with these rights per level, top first.
fn tree(mem: &HeapMemory, paging: &Paging12, rights: [u64; 4]) {
    for (level, flags) in (1..=4u8).rev().zip(rights) {
        let next = if level == 1 { 0x9000 | WB } else { 0x1000 * u64::from(6 - level) };
        put(mem, paging, 0, level, next | flags);
    }
}

fn try_walk(mem: &HeapMemory, paging: Paging12, access: Access) -> Result<Mapped, Violation> {
    match walk(mem, &Root12::new(0x105e, paging), Ngpa::ZERO, access, Marks::Set) {
        Ok(mapped) => Ok(mapped),
        Err(WalkError::Violation(v)) => Err(v),
        Err(WalkError::Busy) => panic!("busy"),
    }
}

/// The qualification of a violation.
fn go(mem: &HeapMemory, paging: Paging12, access: Access) -> Result<Mapped, u64> {
    try_walk(mem, paging, access).map_err(|v| {
        assert!(!v.misconfigured);
        v.info1
    })
}

#[test]
fn rights_intersect_along_the_walk_and_show_in_the_qualification() {
    let mem = HeapMemory::with_pages(16);
    let cases = [
        // rights per level; read, write, fetch: the qualification, or 0 for success
        ([RWX, RWX, RWX, RWX], [0, 0, 0]),
        ([RWX, R | W, RWX, R | X], [0, 2 | 1 << 3, 4 | 1 << 3]),
        ([R, RWX, RWX, RWX], [0, 2 | 1 << 3, 4 | 1 << 3]),
        ([RWX, RWX, RWX, X], [1 | 4 << 3, 2 | 4 << 3, 0]),
        ([RWX, X, RWX, R], [1, 2, 4]),
        ([RWX, RWX, 0, RWX], [1, 2, 4]),
        ([RWX, R | W, RWX, RWX], [0, 0, 4 | 3 << 3]),
    ];
    for (rights, want) in cases {
        tree(&mem, &ept(false, true), rights);
        for (access, want) in [Access::READ, Access::WRITE, Access::FETCH].into_iter().zip(want) {
            let got = go(&mem, ept(false, true), access);
            assert_eq!(got.err().unwrap_or(0), want, "{rights:?} {access:?}");
        }
    }
}

#[test]
fn what_is_misconfigured() {
    let ok = RWX | WB;
    // level, entry, is it with execute-only offered, is it without
    let cases = [
        (1, 0x9000 | ok, false, false),
        (1, 0x9000 | W, true, true),
        (1, 0x9000 | W | X, true, true),
        (1, 0x9000 | X | WB, false, true),
        (1, 0x9000 | RWX | 2 << 3, true, true),
        (1, 0x9000 | RWX | 3 << 3, true, true),
        (1, 0x9000 | RWX | 7 << 3, true, true),
        (1, 0x9000 | RWX | 5 << 3, false, false),
        (1, 0x9000 | ok | BIG | 1 << 6 | 1 << 11 | 1 << 63 | 1 << 52, false, false),
        (1, 0x9000 | ok | 1 << 40, true, true),
        (2, 0x20_0000 | ok | BIG, false, false),
        (2, 0x20_1000 | ok | BIG, true, true),
        (2, 0x4000 | RWX | 1 << 3, true, true),
        (2, 0x4000 | RWX | 1 << 6, true, true),
        (3, 0x4000_0000 | ok | BIG, false, false),
        (3, 0x4020_0000 | ok | BIG, true, true),
        (3, 0x3000 | W, true, true),
        (4, 0x2000 | RWX | BIG, true, true),
        (4, 0x2000 | RWX | 1 << 51, true, true),
    ];
    for (level, entry, with, without) in cases {
        for (execute_only, want) in [(true, with), (false, without)] {
            let (mem, paging) = (HeapMemory::with_pages(16), ept(false, execute_only));
            tree(&mem, &paging, [RWX; 4]);
            put(&mem, &paging, 0, level, entry);
            // A misconfiguration beats the missing rights above it.
            let found = try_walk(&mem, paging, Access::FETCH);
            assert_eq!(found.is_err_and(|v| v.misconfigured), want, "{level} {entry:#x} {execute_only}");
        }
    }
    let small = Paging12::from_eptp(0x1e, 40, false, false);
    let mem = HeapMemory::with_pages(16);
    tree(&mem, &small, [RWX; 4]);
    put(&mem, &small, 0, 3, 0x4000_0000 | ok | BIG);
    assert!(try_walk(&mem, small, Access::READ).unwrap_err().misconfigured, "1 GiB pages are not offered");
    put(&mem, &small, 0, 3, 0x100_0000 | RWX);
    assert!(
        try_walk(&mem, small, Access::READ).unwrap_err().misconfigured,
        "a table where there is no memory"
    );
}

/// Xen bab2bd8e: EPT entries were walked with the flags of ordinary page tables.
#[test]
fn flags_are_set_only_where_the_pointer_asks_and_in_their_own_bits() {
    let mem = HeapMemory::with_pages(16);
    let entry = |table: u64| mem.read_u64(Gpa::new(table * 0x1000)).unwrap();
    tree(&mem, &ept(false, false), [RWX; 4]);
    let mapped = go(&mem, ept(false, false), Access::WRITE).unwrap();
    assert!(mapped.dirty, "nothing to be seen");
    assert_eq!((entry(1), entry(4)), (0x2000 | RWX, 0x9000 | WB | RWX));
    let on = ept(true, false);
    assert!(!go(&mem, on, Access::READ).unwrap().dirty);
    assert_eq!((entry(1), entry(3), entry(4)), (0x2000 | RWX | A, 0x4000 | RWX | A, 0x9000 | WB | RWX | A));
    assert!(go(&mem, on, Access::WRITE).unwrap().dirty);
    assert_eq!((entry(3), entry(4)), (0x4000 | RWX | A, 0x9000 | WB | RWX | A | D));
    // Hardware reports its own walks of L2's tables as reads and writes then.
    let walks = Access::from_qualification(3 | 1 << 7);
    assert_eq!(walks, Access { write: true, fetch: false, table_walk: true });
    put(&mem, &on, 0, 1, 0x9000 | WB | R);
    assert_eq!(go(&mem, on, walks).unwrap_err(), 3 | 1 << 3);
}

#[test]
fn what_hardware_reports_is_understood() {
    let access = Access::from_qualification;
    assert_eq!(access(1 | 0x180), Access::READ);
    assert_eq!(access(2 | 0x180 | 7 << 3), Access::WRITE);
    assert_eq!(access(4 | 0x180), Access::FETCH);
    assert_eq!(access(1 | 0x80), Access { table_walk: true, ..Access::READ });
    assert_eq!(access(1), Access::READ, "no linear address: not a walk for one");
    // 48 bits only.
    let (mem, paging) = (HeapMemory::with_pages(16), ept(false, false));
    tree(&mem, &paging, [RWX; 4]);
    let beyond = walk(&mem, &Root12::new(0x1000, paging), Ngpa::new(1 << 48), Access::READ, Marks::Set);
    let none = Violation { ngpa: Ngpa::new(1 << 48), info1: 1, misconfigured: false };
    assert_eq!(beyond, Err(WalkError::Violation(none)));
}
