//! Grants between two domains through the hypercall.

use crate::domain::{Domain, DomainConfig};
use crate::hypercall::{CallResult, Width};
use crate::platform::{DomainMemory, MapError};
use crate::testing::*;
use addr::testing::HeapPage;
use addr::{Frame, Gpa, GuestMemory, GuestPage};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::SeqCst;
use proptest::prelude::*;
use xen_abi::call::Call;
use xen_abi::grant::entry::*;
use xen_abi::grant::{Copy, *};
use xen_abi::{DomId, Errno};

type Dom = Arc<Domain<Fake>>;
const HOST: u32 = map_flags::HOST_MAP;
const RO: u32 = HOST | map_flags::READONLY;
const SELF: u16 = DomId::SELF.0;

fn call(d: &Dom, op: GrantOp, at: u64, count: u64) -> i64 {
    let mut args = [u64::from(op.0), at, count, 0, 0, 0];
    for _ in 0..1000 {
        match d.call_width(0, Call::GRANT_TABLE_OP, &args, Width::Bits64) {
            CallResult::Return(value) => return value,
            CallResult::Continue(next) => args = next,
            other => panic!("{other:?}"),
        }
    }
    panic!("it never ends")
}

/// A domain with one frame of grant table.
fn with_table(machine: &Arc<crate::Machine<Fake>>) -> Dom {
    let d = domain(machine, 1);
    let setup = SetupTable { dom: SELF, pad: 0, nr_frames: 1, status: -1, pad2: [0; 3], frame_list: 0x9000 };
    d.put(ARG, setup);
    assert_eq!(call(&d, GrantOp::SETUP_TABLE, ARG, 1), 0);
    assert_eq!(d.get::<SetupTable>(ARG).status, 0);
    d
}
fn two() -> (Dom, Dom) {
    let machine = machine(2);
    (with_table(&machine), with_table(&machine))
}
fn table(d: &Dom) -> HeapPage {
    d.grants.lock().frame(0).unwrap()
}
fn entry(d: &Dom, gref: u32) -> u32 {
    table(d).read_u32(gref as usize * 8)
}
/// Grants `frame` to `to`.
fn grant(d: &Dom, gref: u32, to: DomId, frame: u32, flags: u32) {
    table(d).write_u32(gref as usize * 8 + 4, frame);
    table(d).write_u32(gref as usize * 8, flags | u32::from(to.0) << DOMID_SHIFT);
}
/// What a guest does to end a grant; `false`: it is in use.
fn end(d: &Dom, gref: u32) -> bool {
    let seen = entry(d, gref);
    seen & (READING | WRITING) == 0 && table(d).compare_exchange_u32(gref as usize * 8, seen, 0).is_ok()
}

fn element(dom: DomId, gref: u32, gfn: u64, flags: u32) -> MapGrantRef {
    MapGrantRef { host_addr: gfn << 12, flags, gref, dom: dom.0, status: 99, handle: 99, dev_bus_addr: 0 }
}
fn map(d: &Dom, element: MapGrantRef) -> Result<u32, GrantStatus> {
    d.put(ARG, element);
    assert_eq!(call(d, GrantOp::MAP_GRANT_REF, ARG, 1), 0);
    let done: MapGrantRef = d.get(ARG);
    if done.status == 0 { Ok(done.handle) } else { Err(GrantStatus(done.status)) }
}
fn unmap(d: &Dom, handle: u32, gfn: u64) -> GrantStatus {
    d.put(ARG, UnmapGrantRef { host_addr: gfn << 12, dev_bus_addr: 0, handle, status: 99, pad: 0 });
    assert_eq!(call(d, GrantOp::UNMAP_GRANT_REF, ARG, 1), 0);
    GrantStatus(d.get::<UnmapGrantRef>(ARG).status)
}
fn copy(d: &Dom, source: (u64, u16, u16), dest: (u64, u16, u16), len: u16, flags: u16) -> GrantStatus {
    let end = |(what, domid, offset)| CopyEnd { what, domid, offset, pad: 0 };
    d.put(ARG, Copy { source: end(source), dest: end(dest), len, flags, status: 99, pad: 0 });
    assert_eq!(call(d, GrantOp::COPY, ARG, 1), 0);
    GrantStatus(d.get::<Copy>(ARG).status)
}

#[test]
fn a_page_is_shared_as_long_as_it_is_mapped() {
    let (a, b) = two();
    grant(&a, 8, b.id(), 5, PERMIT_ACCESS);
    let handle = map(&b, element(a.id(), 8, 0x100, HOST)).unwrap();
    assert_eq!(entry(&a, 8) & (READING | WRITING), READING | WRITING);
    b.put(0x10_0010, 0x1234u32);
    assert_eq!(a.get::<u32>(0x5010), 0x1234);
    assert!(!end(&a, 8), "in use");
    assert_eq!(unmap(&b, handle, 0x100), GrantStatus::OKAY);
    assert!(b.memory.is_hole(0x100));
    assert_eq!(entry(&a, 8) & (READING | WRITING), 0);
    assert!(end(&a, 8));
    assert_eq!(map(&b, element(a.id(), 8, 0x100, HOST)), Err(GrantStatus::GENERAL_ERROR), "revoked");
    assert_eq!(unmap(&b, handle, 0x100), GrantStatus::BAD_HANDLE, "the handle is gone");
}

#[test]
fn a_read_only_mapping_cannot_be_written_and_does_not_say_so() {
    let (a, b) = two();
    grant(&a, 9, b.id(), 5, PERMIT_ACCESS | READONLY);
    assert_eq!(map(&b, element(a.id(), 9, 0x100, HOST)), Err(GrantStatus::GENERAL_ERROR), "for reading only");
    assert_eq!(entry(&a, 9) & (READING | WRITING), 0, "a refusal leaves nothing behind");
    let handle = map(&b, element(a.id(), 9, 0x100, RO)).unwrap();
    assert_eq!(entry(&a, 9) & (READING | WRITING), READING);
    assert!(b.memory.write(Gpa::new(0x10_0000), &[1]).is_err());
    a.put(0x5000, 7u8);
    assert_eq!(b.get::<u8>(0x10_0000), 7);
    assert!(b.memory.pin(Frame::new(0x100)).is_err(), "nothing of ours may outlive the mapping");
    assert_eq!(unmap(&b, handle, 0x100), GrantStatus::OKAY);
}

#[test]
fn several_mappings_of_a_grant_are_counted_by_kind() {
    let (a, b) = two();
    grant(&a, 8, b.id(), 5, PERMIT_ACCESS);
    let bits = || entry(&a, 8) & (READING | WRITING);
    let ro = map(&b, element(a.id(), 8, 0x100, RO)).unwrap();
    assert_eq!(bits(), READING);
    let rw = map(&b, element(a.id(), 8, 0x101, HOST)).unwrap();
    let rw2 = map(&b, element(a.id(), 8, 0x102, HOST)).unwrap();
    assert!(ro != rw && rw != rw2 && ro != rw2);
    assert_eq!(bits(), READING | WRITING);
    assert_eq!(unmap(&b, rw, 0x101), GrantStatus::OKAY);
    assert_eq!(bits(), READING | WRITING);
    assert_eq!(unmap(&b, rw2, 0x102), GrantStatus::OKAY);
    assert_eq!(bits(), READING);
    // What the entry says while it is in use counts only for another kind of use.
    grant(&a, 8, DomId(77), 6, PERMIT_ACCESS | READING);
    let ro2 = map(&b, element(a.id(), 8, 0x103, RO)).unwrap();
    a.put(0x5000, 9u8);
    assert_eq!(b.get::<u8>(0x10_3000), 9, "the page of old");
    assert_eq!(unmap(&b, ro, 0x100), GrantStatus::OKAY);
    assert_eq!(unmap(&b, ro2, 0x103), GrantStatus::OKAY);
    assert_eq!(bits(), 0);
}

#[test]
fn each_reason_to_refuse_a_map_has_its_status() {
    let (a, b) = two();
    grant(&a, 8, b.id(), 5, PERMIT_ACCESS);
    let good = element(a.id(), 8, 0x100, HOST);
    let other = domain(b.machine(), 1);
    type S = GrantStatus;
    for (what, element, status) in [
        ("no kind", MapGrantRef { flags: 0, ..good }, S::BAD_GNTREF),
        ("no kind but read-only", MapGrantRef { flags: 4, ..good }, S::BAD_GNTREF),
        ("for devices", MapGrantRef { flags: 1, ..good }, S::GENERAL_ERROR),
        ("for both", MapGrantRef { flags: 3, ..good }, S::GENERAL_ERROR),
        ("for user space", MapGrantRef { flags: 2 | 8, ..good }, S::GENERAL_ERROR),
        ("by page-table entry", MapGrantRef { flags: 2 | 16, ..good }, S::GENERAL_ERROR),
        ("an unknown flag", MapGrantRef { flags: 2 | 1 << 20, ..good }, S::GENERAL_ERROR),
        ("no such domain", MapGrantRef { dom: 4000, ..good }, S::BAD_DOMAIN),
        ("by `self`", MapGrantRef { dom: SELF, ..good }, S::BAD_DOMAIN),
        ("beyond the table", MapGrantRef { gref: 512, ..good }, S::BAD_GNTREF),
        ("far beyond", MapGrantRef { gref: u32::MAX, ..good }, S::BAD_GNTREF),
        ("a domain without table", MapGrantRef { dom: other.id().0, ..good }, S::BAD_GNTREF),
        ("an empty entry", MapGrantRef { gref: 9, ..good }, S::GENERAL_ERROR),
        ("no such address", MapGrantRef { host_addr: u64::MAX, ..good }, S::GENERAL_ERROR),
    ] {
        assert_eq!(map(&b, element), Err(status), "{what}");
        assert_eq!(entry(&a, 8) & (READING | WRITING), 0, "{what}");
    }
    for (what, flags, to, status) in [
        ("for another domain", PERMIT_ACCESS, DomId(77), S::GENERAL_ERROR),
        ("for a transfer", 2, b.id(), S::GENERAL_ERROR),
        ("transitive", 3, b.id(), S::GENERAL_ERROR),
        ("a part of a page", PERMIT_ACCESS | SUB_PAGE, b.id(), S::GENERAL_ERROR),
        ("uncached", PERMIT_ACCESS | 1 << 6, b.id(), S::GENERAL_ERROR),
    ] {
        grant(&a, 10, to, 5, flags);
        assert_eq!(map(&b, element(a.id(), 10, 0x100, HOST)), Err(status), "{what}");
        assert_eq!(entry(&a, 10) & (READING | WRITING), 0, "{what}");
    }
    grant(&a, 11, b.id(), RAM_PAGES as u32 + 1, PERMIT_ACCESS);
    assert_eq!(map(&b, element(a.id(), 11, 0x100, HOST)), Err(S::BAD_PAGE));
    assert_eq!(entry(&a, 11) & (READING | WRITING), 0);
    // The same by two domains at once: the first counts.
    assert!(map(&b, good).is_ok());
    grant(&a, 8, other.id(), 5, PERMIT_ACCESS);
    assert_eq!(map(&other, good), Err(S::GENERAL_ERROR));
    // Over another grant.
    grant(&a, 12, b.id(), 6, PERMIT_ACCESS);
    assert_eq!(map(&b, element(a.id(), 12, 0x100, HOST)), Err(S::GENERAL_ERROR));
}

#[test]
fn each_reason_to_refuse_an_unmap_has_its_status_and_changes_nothing() {
    let (a, b) = two();
    grant(&a, 8, b.id(), 5, PERMIT_ACCESS);
    let handle = map(&b, element(a.id(), 8, 0x100, HOST)).unwrap();
    let good = UnmapGrantRef { host_addr: 0x10_0000, dev_bus_addr: 0, handle, status: 99, pad: 0 };
    for (what, element, status) in [
        ("no such handle", UnmapGrantRef { handle: handle + 1, ..good }, GrantStatus::BAD_HANDLE),
        ("no handle at all", UnmapGrantRef { handle: u32::MAX, ..good }, GrantStatus::BAD_HANDLE),
        ("elsewhere", UnmapGrantRef { host_addr: 0x10_1000, ..good }, GrantStatus::GENERAL_ERROR),
        ("a wrong bus address", UnmapGrantRef { dev_bus_addr: 0x5000, ..good }, GrantStatus::GENERAL_ERROR),
        ("nothing asked for", UnmapGrantRef { host_addr: 0, ..good }, GrantStatus::OKAY),
    ] {
        b.put(ARG, element);
        assert_eq!(call(&b, GrantOp::UNMAP_GRANT_REF, ARG, 1), 0);
        assert_eq!(b.get::<UnmapGrantRef>(ARG).status, status.0, "{what}");
        assert_eq!(entry(&a, 8) & (READING | WRITING), READING | WRITING, "{what}");
    }
    assert_eq!(unmap(&a, handle, 0x100), GrantStatus::BAD_HANDLE, "the granter has no such mapping");
    assert_eq!(unmap(&b, handle, 0x100), GrantStatus::OKAY);
}

#[test]
fn a_mapping_is_not_ordinary_memory_and_what_it_replaces_is_given_back() {
    let (a, b) = two();
    grant(&a, 8, b.id(), 5, PERMIT_ACCESS);
    let pages = b.memory.pages();
    let handle = map(&b, element(a.id(), 8, 20, HOST)).unwrap();
    assert_eq!(b.memory.pages(), pages - 1);
    assert_eq!(b.memory.unmap(Frame::new(20)), Err(MapError::NotAllowed));
    assert_eq!(b.memory.map_page(Frame::new(20), &HeapPage::default()), Err(MapError::NotAllowed));
    assert_eq!(b.memory.populate(Frame::new(20), 0), Err(MapError::NotAllowed));
    // Nor can it be granted on.
    grant(&b, 8, a.id(), 20, PERMIT_ACCESS);
    assert_eq!(map(&a, element(b.id(), 8, 0x100, HOST)), Err(GrantStatus::BAD_PAGE));
    // The granter may let go of the page; it lives on as long as it is mapped.
    a.memory.unmap(Frame::new(5)).unwrap();
    b.put(20 << 12, 5u8);
    assert_eq!(b.get::<u8>(20 << 12), 5);
    assert_eq!(unmap(&b, handle, 20), GrantStatus::OKAY);
    assert!(b.memory.is_hole(20));
}

#[test]
fn handles_are_limited_charged_and_used_again() {
    let machine = machine(1);
    let a = with_table(&machine);
    let config = DomainConfig { max_maptrack_frames: 1, ..DomainConfig::new("few", 1, 128) };
    let b = domain_with(&machine, config);
    grant(&a, 8, b.id(), 5, PERMIT_ACCESS);
    let at = |n: u64| element(a.id(), 8, 0x100 + n, HOST);
    b.memory.may_charge.store(0, SeqCst);
    assert_eq!(map(&b, at(0)), Err(GrantStatus::NO_SPACE));
    b.memory.may_charge.store(u64::MAX, SeqCst);
    let handles: Vec<u32> = (0..256).map(|n| map(&b, at(n)).unwrap()).collect();
    assert!((0..256).all(|n| handles.contains(&n)));
    assert_eq!(map(&b, at(256)), Err(GrantStatus::NO_SPACE));
    assert_eq!(unmap(&b, handles[7], 0x107), GrantStatus::OKAY);
    assert_eq!(map(&b, at(7)), Ok(handles[7]));
}

#[test]
fn a_batch_goes_on_after_a_failure_and_is_preempted_unseen() {
    let (a, b) = two();
    grant(&a, 8, b.id(), 5, PERMIT_ACCESS);
    let mut all: Vec<MapGrantRef> = (0..200).map(|n| element(a.id(), 8, 0x100 + n, HOST)).collect();
    all[100].gref = 9999;
    for (i, element) in all.iter().enumerate() {
        b.put(0x4000 + i as u64 * 32, *element);
    }
    assert_eq!(call(&b, GrantOp::MAP_GRANT_REF, 0x4000, 200), 0);
    for i in 0..200u64 {
        let done: MapGrantRef = b.get(0x4000 + i * 32);
        let expected = if i == 100 { GrantStatus::BAD_GNTREF } else { GrantStatus::OKAY };
        assert_eq!(done.status, expected.0, "{i}");
    }
    assert_eq!(call(&b, GrantOp::MAP_GRANT_REF, 0x4000, 0), 0, "no elements");
    // Bad arrays and operations fail as a whole.
    assert_eq!(call(&b, GrantOp::MAP_GRANT_REF, 0x4000, 1 << 31), Errno::EINVAL.result());
    assert_eq!(call(&b, GrantOp(1 << 12), 0x4000, 1), Errno::EINVAL.result());
    for op in [0, 1, 5, 11] {
        assert_eq!(call(&b, GrantOp(op), 0xdead_0000_0000, 1), Errno::EFAULT.result(), "{op}");
    }
    for op in [3, 4, 7, 9, 12, 13, 0xfff] {
        assert_eq!(call(&b, GrantOp(op), ARG, 1), Errno::ENOSYS.result(), "{op}");
    }
}

#[test]
fn a_handle_that_the_guest_cannot_be_told_is_given_back() {
    let (a, b) = two();
    grant(&a, 8, b.id(), 5, PERMIT_ACCESS);
    // The element itself lies in what is mapped read-only.
    grant(&a, 9, b.id(), 6, PERMIT_ACCESS | READONLY);
    map(&b, element(a.id(), 9, 0x100, RO)).unwrap();
    a.put(0x6000, element(a.id(), 8, 0x101, HOST));
    assert_eq!(call(&b, GrantOp::MAP_GRANT_REF, 0x10_0000, 1), Errno::EFAULT.result());
    assert_eq!(entry(&a, 8) & (READING | WRITING), 0);
    assert!(b.memory.is_hole(0x101));
}

#[test]
fn copies_go_between_grants_and_own_frames() {
    let (a, b) = two();
    grant(&a, 8, b.id(), 5, PERMIT_ACCESS | READONLY);
    grant(&a, 9, b.id(), 6, PERMIT_ACCESS);
    let ga = |gref: u64, offset| (gref, a.id().0, offset);
    let own = |frame: u64, offset| (frame, SELF, offset);
    a.put(0x5000, *b"0123456789abcdef");
    assert_eq!(copy(&b, ga(8, 2), own(7, 1), 9, COPY_SOURCE_GREF), GrantStatus::OKAY);
    assert_eq!(&b.get::<[u8; 9]>(0x7001), b"23456789a");
    assert_eq!(copy(&b, ga(8, 0), ga(9, 4080), 16, COPY_SOURCE_GREF | COPY_DEST_GREF), GrantStatus::OKAY);
    assert_eq!(&a.get::<[u8; 16]>(0x6ff0), b"0123456789abcdef");
    assert_eq!(copy(&b, own(7, 0), own(8, 0), 4096, 0), GrantStatus::OKAY);
    assert_eq!(&b.get::<[u8; 9]>(0x8001), b"23456789a");
    assert_eq!(copy(&b, own(7, 4095), ga(9, 0), 0, COPY_DEST_GREF), GrantStatus::OKAY);
    assert_eq!((entry(&a, 8) | entry(&a, 9)) & (READING | WRITING), 0, "nothing stays in use");
    type S = GrantStatus;
    let both = COPY_SOURCE_GREF | COPY_DEST_GREF;
    for (what, source, dest, len, flags, status) in [
        ("beyond the source", own(7, 4000), own(8, 0), 97, 0, S::BAD_COPY_ARG),
        ("beyond the destination", own(7, 0), own(8, 65535), 1, 0, S::BAD_COPY_ARG),
        ("more than a page", own(7, 0), own(8, 0), 4097, 0, S::BAD_COPY_ARG),
        ("another's frame", (7, a.id().0, 0), own(8, 0), 1, 0, S::PERMISSION_DENIED),
        ("one's own frame by number", (7, b.id().0, 0), own(8, 0), 1, 0, S::PERMISSION_DENIED),
        ("no such domain", (8, 4000, 0), own(8, 0), 1, COPY_SOURCE_GREF, S::BAD_DOMAIN),
        ("no such frame", own(1000, 0), own(8, 0), 1, 0, S::BAD_PAGE),
        ("no possible frame", own(u64::MAX, 0), own(8, 0), 1, 0, S::BAD_PAGE),
        ("no such grant", ga(512, 0), own(8, 0), 1, COPY_SOURCE_GREF, S::BAD_GNTREF),
        ("an empty entry", ga(10, 0), own(8, 0), 1, COPY_SOURCE_GREF, S::GENERAL_ERROR),
        ("onto a read-only one", own(7, 0), ga(8, 0), 1, COPY_DEST_GREF, S::GENERAL_ERROR),
        ("a bad length comes after a bad grant", ga(512, 0), ga(9, 0), 5000, both, S::BAD_GNTREF),
    ] {
        assert_eq!(copy(&b, source, dest, len, flags), status, "{what}");
        assert_eq!((entry(&a, 8) | entry(&a, 9)) & (READING | WRITING), 0, "{what}");
    }
}

#[test]
fn a_32_bit_guest_copies_in_its_own_layout() {
    let (a, b) = two();
    grant(&a, 8, b.id(), 5, PERMIT_ACCESS);
    a.put(0x5000, 0x1122_3344u32);
    let source = CopyEnd32 { what: 8, domid: a.id().0, offset: 0 };
    let dest = CopyEnd32 { what: 7, domid: SELF, offset: 4 };
    b.put(ARG, Copy32 { source, dest, len: 4, flags: COPY_SOURCE_GREF, status: 99, pad: 0 });
    let args = [u64::from(GrantOp::COPY.0), ARG, 1];
    assert_eq!(b.call_width(0, Call::GRANT_TABLE_OP, &args, Width::Bits32), CallResult::Return(0));
    assert_eq!(b.get::<Copy32>(ARG).status, 0);
    assert_eq!(b.get::<u32>(0x7004), 0x1122_3344);
}

#[test]
fn entries_are_swapped_unless_in_use() {
    let (a, b) = two();
    grant(&a, 8, b.id(), 5, PERMIT_ACCESS);
    grant(&a, 9, DomId(77), 6, PERMIT_ACCESS | READONLY);
    let swap = |ref_a, ref_b| {
        a.put(ARG, SwapGrantRef { ref_a, ref_b, status: 99, pad: 0 });
        assert_eq!(call(&a, GrantOp::SWAP_GRANT_REF, ARG, 1), 0);
        GrantStatus(a.get::<SwapGrantRef>(ARG).status)
    };
    assert_eq!(swap(8, 9), GrantStatus::OKAY);
    assert_eq!(entry(&a, 9), PERMIT_ACCESS | u32::from(b.id().0) << DOMID_SHIFT);
    map(&b, element(a.id(), 9, 0x100, HOST)).unwrap();
    assert_eq!(swap(8, 9), GrantStatus::EAGAIN);
    assert_eq!(swap(9, 8), GrantStatus::EAGAIN);
    assert_eq!(swap(9, 9), GrantStatus::OKAY, "nothing to do");
    assert_eq!(swap(8, 512), GrantStatus::BAD_GNTREF);
    assert_eq!(swap(u32::MAX, 8), GrantStatus::BAD_GNTREF);
}

#[test]
fn the_table_is_told_of_and_its_version_is_1() {
    let (a, b) = two();
    let setup = SetupTable { dom: SELF, pad: 0, nr_frames: 1, status: 99, pad2: [0; 3], frame_list: 0x9000 };
    for (what, setup, status) in [
        ("more than there may be", SetupTable { nr_frames: 65, ..setup }, GrantStatus::GENERAL_ERROR),
        ("no such domain", SetupTable { dom: 4000, ..setup }, GrantStatus::BAD_DOMAIN),
        ("another's", SetupTable { dom: b.id().0, ..setup }, GrantStatus::PERMISSION_DENIED),
        ("a list nowhere", SetupTable { frame_list: 0xdead_0000_0000, ..setup }, GrantStatus::BAD_VIRT_ADDR),
    ] {
        a.put(ARG, setup);
        assert_eq!(call(&a, GrantOp::SETUP_TABLE, ARG, 1), 0);
        assert_eq!(a.get::<SetupTable>(ARG).status, status.0, "{what}");
    }
    assert_eq!(call(&a, GrantOp::SETUP_TABLE, ARG, 2), Errno::EINVAL.result());
    let query = QuerySize { dom: SELF, pad: 0, nr_frames: 0, max_nr_frames: 0, status: 99, pad2: 0 };
    for (dom, status) in [(4000, GrantStatus::BAD_DOMAIN), (b.id().0, GrantStatus::PERMISSION_DENIED)] {
        a.put(ARG, QuerySize { dom, ..query });
        assert_eq!(call(&a, GrantOp::QUERY_SIZE, ARG, 1), 0);
        assert_eq!(a.get::<QuerySize>(ARG).status, status.0);
    }
    for (dom, result) in [(SELF, 0), (4000, Errno::ESRCH.result()), (b.id().0, Errno::EPERM.result())] {
        a.put(ARG, GetVersion { dom, pad: 0, version: 0 });
        assert_eq!(call(&a, GrantOp::GET_VERSION, ARG, 1), result);
    }
}

#[test]
fn a_mapper_that_dies_gives_everything_back() {
    let (a, b) = two();
    grant(&a, 8, b.id(), 5, PERMIT_ACCESS);
    grant(&b, 8, a.id(), 5, PERMIT_ACCESS);
    grant(&b, 9, b.id(), 6, PERMIT_ACCESS);
    for n in 0..3 {
        map(&b, element(a.id(), 8, 0x100 + n, HOST)).unwrap();
    }
    map(&b, element(b.id(), 9, 0x110, RO)).unwrap();
    b.machine().destroy(&b).unwrap();
    assert_eq!(entry(&a, 8) & (READING | WRITING), 0);
    assert!(end(&a, 8));
    assert_eq!(Arc::strong_count(&b), 1, "not even its own mapping holds it");
    assert_eq!(map(&a, element(b.id(), 8, 0x100, HOST)), Err(GrantStatus::BAD_DOMAIN));
}

#[test]
fn a_granter_that_dies_stays_until_its_pages_are_unmapped() {
    let (a, b) = two();
    let id = a.id();
    grant(&a, 8, b.id(), 5, PERMIT_ACCESS);
    let handle = map(&b, element(id, 8, 0x100, HOST)).unwrap();
    a.machine().destroy(&a).unwrap();
    let weak = Arc::downgrade(&a);
    drop(a);
    assert!(weak.upgrade().is_some(), "its page is mapped");
    b.put(0x10_0000, 5u8);
    assert_eq!(map(&b, element(id, 8, 0x101, HOST)), Err(GrantStatus::BAD_DOMAIN));
    assert_eq!(unmap(&b, handle, 0x100), GrantStatus::OKAY);
    assert!(weak.upgrade().is_none(), "nothing holds it any more");
}

/// A grant's page changes under us: an entry that does not hold still is refused after a bounded number of looks.
#[test]
fn an_entry_that_does_not_hold_still_is_refused() {
    use std::sync::atomic::AtomicBool;
    let (a, b) = two();
    let stop = AtomicBool::new(false);
    let page = table(&a);
    let to = u32::from(b.id().0) << DOMID_SHIFT;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0u32;
            while !stop.load(SeqCst) {
                n = n.wrapping_add(1);
                // Granted, not granted, to somebody else; the bits of use are left as they are.
                let flags =
                    [PERMIT_ACCESS | to, to, PERMIT_ACCESS, PERMIT_ACCESS | READONLY | to][n as usize % 4];
                let seen = page.read_u32(64);
                let _ = page.compare_exchange_u32(64, seen, flags | seen & (READING | WRITING));
            }
        });
        for _ in 0..2000 {
            match map(&b, element(a.id(), 8, 0x100, HOST)) {
                Ok(handle) => assert_eq!(unmap(&b, handle, 0x100), GrantStatus::OKAY),
                Err(status) => assert_eq!(status, GrantStatus::GENERAL_ERROR),
            }
        }
        stop.store(true, SeqCst);
    });
    assert_eq!(entry(&a, 8) & (READING | WRITING), 0);
}

#[derive(Clone, Debug)]
enum Op {
    Grant(usize, u32, bool),
    End(usize, u32),
    Map(usize, u32, u64, bool),
    Unmap(usize, usize),
    Copy(usize, u32, bool),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let who = || 0usize..2;
    let gref = || 8u32..11;
    let one = prop_oneof![
        3 => (who(), gref(), any::<bool>()).prop_map(|(who, gref, ro)| Op::Grant(who, gref, ro)),
        2 => (who(), gref()).prop_map(|(who, gref)| Op::End(who, gref)),
        4 => (who(), gref(), 0x100u64..0x104, any::<bool>()).prop_map(|(w, r, at, ro)| Op::Map(w, r, at, ro)),
        3 => (who(), 0usize..4).prop_map(|(who, n)| Op::Unmap(who, n)),
        2 => (who(), gref(), any::<bool>()).prop_map(|(who, gref, write)| Op::Copy(who, gref, write)),
    ];
    proptest::collection::vec(one, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Two domains grant to, map from and copy from each other at random: the entries say at each moment exactly what
    /// is mapped, and the outcome is what a list of mappings says.
    #[test]
    fn the_tables_agree_with_a_list_of_mappings(ops in ops()) {
        let (a, b) = two();
        let doms = [a, b];
        // (granter, gref, at, read-only, handle) by mapper; and what is granted: read-only or not.
        let mut mapped: [Vec<(u32, u64, bool, u32)>; 2] = Default::default();
        let mut granted: [[Option<bool>; 11]; 2] = [[None; 11]; 2];
        for op in ops {
            match op {
                Op::Grant(who, gref, ro) => {
                    let idle = !mapped[1 - who].iter().any(|m| m.0 == gref);
                    if idle {
                        let flags = PERMIT_ACCESS | if ro { READONLY } else { 0 };
                        grant(&doms[who], gref, doms[1 - who].id(), gref, flags);
                        granted[who][gref as usize] = Some(ro);
                    }
                }
                Op::End(who, gref) => {
                    let idle = !mapped[1 - who].iter().any(|m| m.0 == gref);
                    prop_assert_eq!(end(&doms[who], gref), idle);
                    if idle {
                        granted[who][gref as usize] = None;
                    }
                }
                Op::Map(who, gref, at, ro) => {
                    let free = !mapped[who].iter().any(|m| m.1 == at);
                    let flags = if ro { RO } else { HOST };
                    let got = map(&doms[who], element(doms[1 - who].id(), gref, at, flags));
                    let allowed = granted[1 - who][gref as usize].is_some_and(|only_ro| ro || !only_ro);
                    if free && allowed {
                        mapped[who].push((gref, at, ro, got.unwrap()));
                    } else {
                        prop_assert_eq!(got, Err(GrantStatus::GENERAL_ERROR));
                    }
                }
                Op::Unmap(who, n) => {
                    if n < mapped[who].len() {
                        let (_, at, _, handle) = mapped[who].swap_remove(n);
                        prop_assert_eq!(unmap(&doms[who], handle, at), GrantStatus::OKAY);
                    }
                }
                Op::Copy(who, gref, write) => {
                    let far = (u64::from(gref), doms[1 - who].id().0, 0);
                    let got = if write {
                        copy(&doms[who], (7, SELF, 0), far, 8, COPY_DEST_GREF)
                    } else {
                        copy(&doms[who], far, (7, SELF, 0), 8, COPY_SOURCE_GREF)
                    };
                    let allowed = granted[1 - who][gref as usize].is_some_and(|only_ro| !write || !only_ro);
                    prop_assert_eq!(got == GrantStatus::OKAY, allowed);
                }
            }
            for who in 0..2 {
                for gref in 8..11 {
                    let uses = || mapped[1 - who].iter().filter(|m| m.0 == gref);
                    let mut bits = if uses().next().is_some() { READING } else { 0 };
                    if uses().any(|m| !m.2) {
                        bits |= WRITING;
                    }
                    prop_assert_eq!(entry(&doms[who], gref) & (READING | WRITING), bits);
                }
            }
        }
    }
}
