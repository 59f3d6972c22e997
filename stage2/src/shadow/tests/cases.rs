//! Single cases: one per rule.

use super::laws::{planted, regime};
use super::world::{L1, World, host};
use crate::format::Mapping;
use crate::model::Tlb;
use crate::radix::Translate2;
use crate::shadow::{Env, FaultOutcome, Host, MIN_QUOTA, NoRoot, Scope, ShadowCache, TableWrite, Zap};
use crate::walk12::{Access, Root12, Shape, info1};
use crate::{MemType, Npt, Perms, Roots, TlbDebt};
use addr::{Frame, Gpa, Hpa, Ngpa, PageSize, Range};
use std::cell::RefCell;
use std::vec::Vec;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const NX: u64 = 1 << 63;
const RW: u64 = P | W | U | A | D;
const RO: u64 = P | U | A | D;

/// L1's tree: root 0 → table 3 → table 5 → table 7 → data 12 (slot 0) and 14 (slot 1).
fn simple() -> World {
    planted(Shape::FourLevel, 0, 0)
}
const LEAF: u64 = 7 << 12;
const DIRECTORY: u64 = 5 << 12;
const PAGE1: u64 = 0x1000;

fn is_violation(found: Result<u64, FaultOutcome>) -> bool {
    matches!(found, Err(FaultOutcome::Violation(v)) if v.info1 & info1::RSV == 0)
}

impl World {
    fn go(&mut self, vcpu: usize, ngpa: u64, access: Access) -> Result<u64, FaultOutcome> {
        self.l2_access(vcpu, ngpa, access, None, 0)
    }
    fn change(&mut self, gpa: u64, entry: u64) {
        assert!(self.l1_write(0, gpa, entry, 0));
        self.flush(0, |_| {});
    }
}

#[test]
fn a_domains_end_frees_roots_that_its_vcpus_had() {
    let mut w = simple();
    w.go(0, 0x123, Access::READ).unwrap();
    w.end_with_roots_held();
}

#[test]
fn the_first_write_is_seen_in_the_dirty_bit() {
    let mut w = simple();
    assert_eq!(w.go(0, 0x123, Access::READ), Ok(12 << 12 | 0x123));
    assert_eq!(w.peek(LEAF) & (A | D), A);
    assert_eq!(w.peek(DIRECTORY) & (A | D), A);
    let filled = w.cache.stats().filled;
    assert_eq!(w.go(0, 0, Access::WRITE), Ok(12 << 12));
    assert_eq!((w.peek(LEAF) & D, w.cache.stats().filled), (D, filled + 1));
    assert_eq!(w.go(0, 0, Access::WRITE), Ok(12 << 12));
    assert_eq!(w.cache.stats().filled, filled + 1, "the second needs no fault");
    // L1 clears the bits to watch them come back.
    w.change(LEAF, 12 << 12 | P | W | U | A);
    w.go(0, 0, Access::WRITE).unwrap();
    assert_eq!(w.peek(LEAF) & D, D);
    w.change(LEAF, 12 << 12 | P | W | U | D);
    w.go(0, 0, Access::READ).unwrap();
    assert_eq!(w.peek(LEAF) & A, A);
    w.tear_down();
}

#[test]
fn fewer_rights_hold_after_a_flush() {
    for (entry, denied) in [
        (12 << 12 | RO, Access::WRITE),
        (12 << 12 | RW | NX, Access::FETCH),
        (12 << 12 | RW & !U, Access::READ),
        (12 << 12 | RW & !P, Access::READ),
    ] {
        let mut w = simple();
        for access in [Access::WRITE, Access::FETCH] {
            w.go(0, 0, access).unwrap();
        }
        w.change(LEAF, entry);
        assert!(is_violation(w.go(0, 0, denied)), "{entry:#x}");
        // And for all below an entry higher up.
        let mut w = simple();
        for access in [Access::WRITE, Access::FETCH] {
            w.go(0, 0, access).unwrap();
        }
        w.change(DIRECTORY, 7 << 12 | entry & !(0xfff << 12) & !D);
        assert!(is_violation(w.go(0, 0, denied)), "{entry:#x} above");
        w.tear_down();
    }
}

#[test]
fn more_rights_need_no_flush() {
    let mut w = simple();
    w.change(LEAF, 12 << 12 | RO);
    assert!(is_violation(w.go(0, 0, Access::WRITE)));
    w.go(0, 0, Access::READ).unwrap();
    w.l1_write(1, LEAF, 12 << 12 | RW, 0);
    assert_eq!(w.go(0, 0, Access::WRITE), Ok(12 << 12));
    w.tear_down();
}

/// L1 takes a right in a lower entry, then gives it in a higher one: no page ever has both.
#[test]
fn rights_from_two_times_do_not_add_up() {
    let mut w = simple();
    w.change(LEAF, 12 << 12 | RW);
    w.change(DIRECTORY, 7 << 12 | P | U | A);
    w.go(0, 0, Access::READ).unwrap();
    w.l1_write(1, LEAF, 12 << 12 | RO, 0);
    w.l1_write(1, DIRECTORY, 7 << 12 | P | W | U | A, 0);
    // Another page below the same entry makes it writable.
    w.go(0, PAGE1, Access::WRITE).unwrap();
    assert!(is_violation(w.go(0, 0, Access::WRITE)));
    w.tear_down();
}

/// L2 has one of L1's tables among its own pages, writable, and two CPUs have cached that.
#[test]
fn l2s_own_writes_to_a_table_are_seen() {
    for writer in [0, 1, 2] {
        let mut w = planted(Shape::FourLevel, 0, 0);
        (0..3).for_each(|v| w.enter(v, 0));
        w.change(LEAF + 8, 7 << 12 | RW);
        (0..3).for_each(|v| {
            w.go(v, PAGE1, Access::WRITE).unwrap();
            w.go(v, 0, Access::READ).unwrap();
        });
        w.flush(1, |_| {});
        for vcpu in 0..3 {
            assert!(w.ways(vcpu, PAGE1).iter().all(|way| !way.perms.contains(Perms::W)));
        }
        for target in [13, 15] {
            w.l2_access(writer, PAGE1, Access::WRITE, Some(7 << 12 | RW), 0).unwrap();
            // The store hits slot 0, as its address does.
            w.l2_access(writer, PAGE1, Access::WRITE, Some(target << 12 | RW), 0).unwrap();
            w.flush(0, |_| {});
            assert_eq!(w.go(0, 0, Access::READ), Ok(target << 12));
        }
        w.tear_down();
    }
}

/// While one flush waits for its protection to reach all CPUs, another flush may not take the page for
/// protected.
#[test]
fn a_flush_does_not_trust_anothers_protection() {
    for whim in 0..4 {
        let mut w = simple();
        (0..3).for_each(|v| w.enter(v, 0));
        (0..3).for_each(|v| w.l2_access(v, 0, Access::WRITE, None, 0).map(|_| ()).unwrap());
        // Makes L1's writable translation known to the third CPU.
        w.l1_write(2, LEAF, 12 << 12 | RW, 0);
        w.flush(0, |w| {
            w.flush(1, |_| {});
            w.l1_write(2, LEAF, 13 << 12 | RW, whim);
        });
        w.flush(2, |_| {});
        assert_eq!(w.go(2, 0, Access::READ), Ok(13 << 12));
        w.tear_down();
    }
}

#[test]
fn a_page_written_at_each_flush_stays_writable() {
    let mut w = simple();
    w.go(0, 0, Access::READ).unwrap();
    w.flush(0, |_| {});
    for i in 0..20u64 {
        w.change(LEAF, (12 + i % 4) << 12 | RW);
        assert_eq!(w.go(0, 0, Access::READ), Ok((12 + i % 4) << 12));
    }
    let unsynced = w.cache.stats().unsynced;
    assert!(unsynced <= 4, "{unsynced} write faults");
    // And is protected again when it has been quiet.
    (0..8).for_each(|_| w.flush(0, |_| {}));
    assert!(w.protected.borrow().contains(&7));
    let reread = w.cache.stats().reread;
    w.flush(0, |_| {});
    assert_eq!(w.cache.stats().reread, reread, "nothing to read");
    w.tear_down();
}

#[test]
fn zaps_find_every_page_size() {
    // L2's 2 MiB page on L1's, of which L0 takes one page.
    let mut w = simple();
    w.change(DIRECTORY, 512 << 12 | RW | PS);
    w.ngpas.push(0x5000);
    w.flush(0, |_| {});
    assert_eq!(w.go(0, 0x5000, Access::READ), Ok(517 << 12));
    assert_eq!(w.cache.stats().leaves, 1);
    assert_eq!(w.go(0, 0, Access::READ), Ok(512 << 12));
    assert_eq!(w.cache.stats().leaves, 1);
    w.unmap(517);
    w.pay_pending();
    assert_eq!(w.go(0, 0x5000, Access::READ), Err(FaultOutcome::Mmio { gpa: Gpa::new(517 << 12) }));
    assert_eq!(w.go(0, 0, Access::READ), Ok(512 << 12));
    // Now in pieces: L1's one entry must still rule them all.
    w.change(DIRECTORY, 512 << 12 | RO | PS);
    assert!(is_violation(w.go(0, 0, Access::WRITE)));
    assert_eq!(w.go(0, 0, Access::READ), Ok(512 << 12));
    w.tear_down();
}

#[test]
fn only_the_leaves_concerned_are_zapped() {
    let mut w = simple();
    w.go(0, 0, Access::READ).unwrap();
    w.go(0, PAGE1, Access::READ).unwrap();
    w.go(1, 0, Access::READ).unwrap();
    assert_eq!(w.cache.stats().leaves, 3);
    let range = Range::new(Gpa::new(14 << 12), 0x1000).unwrap();
    let debt = w.cache.zap(&host!(w), range, Zap::All);
    let only = w.vcpus[0].root.as_ref().unwrap().hpa();
    assert!(debt.flush().s2_02.contains(only) && debt.flush().s2_02 != Roots::All);
    assert!(debt.flush().s2_01.is_none());
    assert_eq!(w.cache.stats().leaves, 2);
    w.pay(debt);
    // The whole of memory, the other way round.
    let all = Range::new(Gpa::ZERO, 1 << 40).unwrap();
    let debt = w.cache.zap(&host!(w), all, Zap::All);
    assert_eq!(w.cache.stats().leaves, 0);
    w.pay(debt);
    w.cache.check(&host!(w));
    w.tear_down();
}

#[test]
fn a_dirty_log_sees_the_next_write() {
    let mut w = simple();
    (0..3).for_each(|v| w.enter(v, 0));
    (0..3).for_each(|v| w.go(v, 0, Access::WRITE).map(|_| ()).unwrap());
    let range = Range::new(Gpa::new(12 << 12), 0x1000).unwrap();
    let mut debt = w.p2m.protect(&w.tables, range, Perms::RX).unwrap();
    debt.merge(w.cache.zap(&host!(w), range, Zap::Writes));
    w.pay(debt);
    assert_eq!(w.cache.stats().leaves, 1, "still readable");
    for vcpu in 0..3 {
        assert!(w.ways(vcpu, 0).iter().all(|way| !way.perms.contains(Perms::W)));
        assert!(w.go(vcpu, 0, Access::READ).is_ok());
        let denied = w.go(vcpu, 0x10, Access::WRITE);
        assert!(matches!(denied, Err(FaultOutcome::Denied { gpa, .. }) if gpa == Gpa::new(12 << 12 | 0x10)));
    }
    assert!(w.p2m.protect(&w.tables, range, Perms::RWX).unwrap().is_none());
    assert!(w.go(1, 0, Access::WRITE).is_ok());
    w.tear_down();
}

/// A p2m that does something else first, once: what another vCPU does while this one is in a fault.
struct Meanwhile<'a, Q: Translate2> {
    inner: &'a Q,
    deed: RefCell<Option<std::boxed::Box<dyn FnOnce() + 'a>>>,
}

impl<Q: Translate2> Translate2 for Meanwhile<'_, Q> {
    fn translate(&self, gpa: Gpa) -> Option<Mapping> {
        let found = self.inner.translate(gpa);
        if let Some(deed) = self.deed.borrow_mut().take() {
            deed();
        }
        found
    }
}

/// A fault has walked both stages when L1 changes an entry and flushes, or L0 takes the page: what the
/// fault found may not be installed.
#[test]
fn a_fault_does_not_install_what_a_flush_or_zap_overtook() {
    for zap in [false, true] {
        let mut w = simple();
        w.change(LEAF, 12 << 12 | RW);
        let root = w.vcpus[0].root.take().unwrap();
        let frame12 = Range::new(Gpa::new(12 << 12), 0x1000).unwrap();
        let debts = RefCell::new(TlbDebt::none());
        let (outcome, debt) = {
            let plain = host!(w);
            let deed = || {
                if zap {
                    debts.borrow_mut().merge(w.p2m.unmap(&w.tables, frame12).unwrap());
                    debts.borrow_mut().merge(w.cache.zap(&host!(w), frame12, Zap::All));
                } else {
                    use addr::{GuestMemory, GuestPage};
                    L1(&w.p2m, &w.tables, &w.ram).pin(Frame::new(7)).unwrap().write_u64(0, 13 << 12 | RW);
                    assert!(w.cache.resync_begin(&host!(w), Scope::ALL).is_none(), "not a table yet");
                }
            };
            let p2m = Meanwhile { inner: plain.p2m, deed: RefCell::new(Some(std::boxed::Box::new(deed))) };
            let host = Env { tables: plain.tables, l1: plain.l1, p2m: &p2m, guard: plain.guard };
            w.cache.handle_fault(&host, &root, Ngpa::ZERO, Access::READ)
        };
        w.pay(debts.into_inner());
        w.pay(debt);
        let mut fresh = Tlb::new(Npt::four_level(PageSize::Size1G), 1);
        let ways = fresh.reaches(&w.tables, 0, 0, root.hpa(), 0);
        if zap {
            assert_eq!((outcome, ways.len()), (FaultOutcome::Mmio { gpa: Gpa::new(12 << 12) }, 0));
        } else {
            let now = host!(w).p2m.translate(Gpa::new(13 << 12)).unwrap().hpa;
            assert_eq!((outcome, ways[0].hpa), (FaultOutcome::Fixed, now));
        }
        w.vcpus[0].root = Some(root);
        w.tear_down();
    }
}

/// A table that is its own child at every level, with more shadow tables than the quota, under three
/// roots that are all in use.
#[test]
fn cycles_and_a_full_quota_leave_roots_in_use_alone() {
    let shift = |i: u64| (i % 3) << 39 | (i % 7) << 30 | i << 21;
    let ngpas: Vec<u64> = (0..64).map(shift).collect();
    let mut w = World::new(regime(Shape::FourLevel), ngpas.clone(), MIN_QUOTA);
    for frame in [20, 21, 22] {
        (0..512).for_each(|slot| w.poke((frame << 12) + slot * 8, frame << 12 | P | W | U));
    }
    (0..3).for_each(|v| w.enter(v, (20 + v as u64) << 12));
    let roots: Vec<_> =
        w.vcpus.iter().map(|v| v.root.as_ref().map(|r| (r.hpa(), r.generation())).unwrap()).collect();
    for ngpa in ngpas {
        for vcpu in 0..3 {
            assert_eq!(w.go(vcpu, ngpa, Access::READ), Ok((20 + vcpu as u64) << 12));
        }
        w.cache.check(&host!(w));
    }
    let stats = w.cache.stats();
    assert!(stats.reclaimed > 64 && stats.roots == 3 && stats.sources == 3, "{stats:?}");
    let after: Vec<_> =
        w.vcpus.iter().map(|v| v.root.as_ref().map(|r| (r.hpa(), r.generation())).unwrap()).collect();
    assert_eq!(roots, after);
    w.tear_down();
}

#[test]
fn idle_roots_go_oldest_first_and_return_as_others() {
    let mut w = simple();
    let key = |n: u64| Root12::new(n << 12, w.paging);
    let acquire = |n| {
        let (root, debt) = w.cache.acquire_root(&host!(w), key(n));
        assert!(debt.is_none());
        root.unwrap()
    };
    let (a, b) = (acquire(30), acquire(30));
    assert_eq!((a.hpa(), a.generation()), (b.hpa(), b.generation()), "shared");
    w.cache.release_root(a);
    let before = b.generation();
    w.cache.release_root(b);
    let again = acquire(30);
    assert_eq!(again.generation(), before, "kept while there is room");
    w.cache.release_root(again);
    // As many others as there may be.
    for n in 0..300u64 {
        let key = Root12::new((100 + n) << 12, w.paging);
        let (root, debt) = w.cache.acquire_root(&host!(w), key);
        w.cache.release_root(root.unwrap());
        w.pay(debt);
    }
    let (again, debt) = w.cache.acquire_root(&host!(w), Root12::new(30 << 12, w.paging));
    w.pay(debt);
    let again = again.unwrap();
    assert!(again.generation() > before);
    w.cache.release_root(again);
    w.tear_down();
}

#[test]
fn an_l1_out_of_memory_or_levels_is_refused() {
    let mut w = simple();
    let five = Root12::new(0, regime(Shape::FiveLevel));
    assert_eq!(w.cache.acquire_root(&host!(w), five).0.unwrap_err(), NoRoot::Unsupported);
    w.tables.set_limit(w.tables.used());
    // Two roots in use with nothing below them to give.
    assert_eq!(w.go(0, 0, Access::READ), Err(FaultOutcome::OutOfMemory));
    let key = Root12::new(40 << 12, w.paging);
    let (none, debt) = w.cache.acquire_root(&host!(w), key);
    assert_eq!(none.unwrap_err(), NoRoot::OutOfMemory);
    w.pay(debt);
    w.cache.check(&host!(w));
    w.tables.set_limit(usize::MAX);
    assert!(w.go(0, 0, Access::READ).is_ok());
    w.tear_down();
}

/// Both halves of a page of 4-byte entries are watched, each for itself.
#[test]
fn the_second_half_of_a_32_bit_table_counts() {
    let mut w = planted(Shape::TwoLevel, 0, 0);
    // Root 0 → table 3, where slots 0 and 512 say the same.
    w.poke(3 << 12, 12 << 12 | RW);
    w.poke(3 << 12 | 2048, 12 << 12 | RW);
    assert_eq!(w.go(0, 0x20_0000, Access::READ), Ok(12 << 12));
    w.change(3 << 12 | 2048, 13 << 12 | RW);
    assert_eq!(w.go(0, 0x20_0000, Access::READ), Ok(13 << 12));
    assert_eq!(w.go(0, 0, Access::READ), Ok(12 << 12));
    w.tear_down();
}

#[test]
fn one_gigabyte_pages_compose() {
    const G: u64 = 1 << 30;
    let mut w = simple();
    // L1 has a 1 GiB page at 1 GiB (never touched, so no frames behind it).
    let range = Range::new(Gpa::new(G), G).unwrap();
    let wb = MemType::WriteBack;
    let debt = w.p2m.map(&w.tables, range, Hpa::new(8 * G), Perms::RX, wb, PageSize::Size1G).unwrap();
    assert!(debt.is_none());
    w.poke(3 << 12, G | RW | PS | NX);
    w.poke(3 << 12 | 8, G | RO | PS);
    let root = w.vcpus[0].root.take().unwrap();
    let mut at = |ngpa: u64| {
        let (outcome, debt) = w.cache.handle_fault(&host!(w), &root, Ngpa::new(ngpa), Access::READ);
        w.pay(debt);
        let mut fresh = Tlb::new(Npt::four_level(PageSize::Size1G), 1);
        let way = fresh.reaches(&w.tables, 0, 0, root.hpa(), ngpa).first().copied();
        (outcome, way.map(|w| (w.hpa.raw(), w.perms)))
    };
    assert_eq!(at(0x1234_5678), (FaultOutcome::Fixed, Some((8 * G + 0x1234_5678, Perms::R))));
    assert_eq!(at(G + 5), (FaultOutcome::Fixed, Some((8 * G + 5, Perms::RX))));
    assert_eq!(w.cache.stats().leaves, 2);
    // L0 splits its page: so do the shadows, where L2 goes.
    let hole = Range::new(Gpa::new(G + 0x7000), 0x1000).unwrap();
    let mut debt = w.p2m.unmap(&w.tables, hole).unwrap();
    debt.merge(w.cache.zap(&host!(w), hole, Zap::All));
    assert_eq!(w.cache.stats().leaves, 0);
    w.pay(debt);
    let mut at = |ngpa: u64| {
        let (outcome, debt) = w.cache.handle_fault(&host!(w), &root, Ngpa::new(ngpa), Access::READ);
        w.pay(debt);
        outcome
    };
    assert_eq!(at(0x7000), FaultOutcome::Mmio { gpa: Gpa::new(G + 0x7000) });
    assert_eq!([at(0x6000), at(0x20_0000), at(0x40_0000)], [FaultOutcome::Fixed; 3]);
    assert_eq!(w.cache.stats().leaves, 3);
    w.cache.check(&host!(w));
    w.vcpus[0].root = Some(root);
    w.tear_down();
}

#[test]
fn a_write_to_what_is_no_table_is_not_ours() {
    let mut w = simple();
    let write = |w: &World, n| w.cache.on_table_write(host!(w).guard(), Frame::new(n));
    assert_eq!(write(&w, 12), TableWrite::NotATable);
    w.go(0, 0, Access::READ).unwrap();
    assert_eq!(write(&w, 7), TableWrite::AlreadyUnsync, "nobody protected it yet");
    w.flush(0, |_| {});
    assert_eq!(write(&w, 7), TableWrite::Unsynced);
    assert_eq!(write(&w, 7), TableWrite::AlreadyUnsync);
    w.tear_down();
}

#[test]
fn a_flush_leaves_its_own_scope_only() {
    let mut w = simple();
    // Roots 0 and 1 share the tables below; root 2 has one of its own.
    w.poke(2 << 12, 4 << 12 | P | W | U);
    w.poke(4 << 12, 6 << 12 | P | W | U);
    w.poke(6 << 12, 8 << 12 | P | W | U);
    w.enter(2, 2 << 12);
    w.go(1, 0, Access::READ).unwrap();
    w.go(2, 0, Access::READ).unwrap();
    let reread = w.cache.stats().reread;
    w.flush(1, |_| {});
    // Tables 3, 5 and 7: the root's own has been sync since it was entered.
    assert_eq!(w.cache.stats().reread, reread + 3);
    assert!(!w.protected.borrow().contains(&8));
    w.tear_down();
}

/// Keeps the trait objects of the crate's seams honest: a cache is usable from several threads.
#[test]
fn the_cache_is_shared_between_cpus() {
    fn shared<T: Send + Sync>() {}
    shared::<ShadowCache<Npt>>();
    shared::<TlbDebt>();
}
