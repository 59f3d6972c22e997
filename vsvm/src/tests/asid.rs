//! ASIDs against a hostile TLB: it keeps every translation, per processor and ASID, until it is told to
//! flush it, and a stale one that could still be used fails the test.

use super::*;
use crate::asid::*;
use crate::layout::tlb_control;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

/// Whose translation: L1's own (0) or an asid12's, and as of which of its flushes.
type Entry = (u32, u64);

/// Everything the processors remember.
#[derive(Default)]
struct Tlb(HashMap<(u32, u32), HashSet<Entry>>);

impl Tlb {
    fn enter(&mut self, pcpu: u32, grant: Grant, entry: Entry) {
        assert_ne!(grant.asid, 0, "the host's own ASID");
        match grant.tlb_control {
            tlb_control::ALL => self.0.retain(|(p, _), _| *p != pcpu),
            tlb_control::THIS_ASID => drop(self.0.remove(&(pcpu, grant.asid))),
            // Global entries stay: no model of them, so nothing goes.
            _ => {}
        }
        let seen = self.0.entry((pcpu, grant.asid)).or_default();
        for old in seen.iter() {
            assert_eq!(*old, entry, "a stale translation on processor {pcpu}, ASID {}", grant.asid);
        }
        seen.insert(entry);
    }
}

fn c12(asid: u32, tlb: u8, root: Option<u64>) -> Cached12 {
    let page = valid_page();
    page.write_u64(at::ASID, u64::from(asid) | u64::from(tlb) << 32);
    if let Some(root) = root {
        with_np(&page);
        page.write_u64(at::N_CR3, root);
    }
    let mut c12 = Cached12::new(Gpa::ZERO);
    c12.load(&page, &test_caps(), L1_CR0, false).unwrap();
    c12
}

#[derive(Clone, Debug)]
enum Op {
    /// VMRUN with this asid12, TLB_CONTROL and root, then back to L1; `give_up` stops before the entry.
    Run {
        asid: u32,
        tlb: u8,
        root: u64,
        give_up: bool,
    },
    Invlpga(u32),
    Move(u32),
    /// Another vCPU or the p2m demands a flush.
    Force,
    Revoke(u32),
}

fn ops() -> impl Strategy<Value = std::vec::Vec<Op>> {
    let tlbs = prop::sample::select(std::vec![0u8, 0, 0, 1, 3, 9]);
    let run = (1u32..12, tlbs, 0u64..2, prop::bool::weighted(0.1));
    let op = prop_oneof![
        8 => run.prop_map(|(asid, tlb, root, give_up)| Op::Run { asid, tlb, root, give_up }),
        1 => (0u32..12).prop_map(Op::Invlpga),
        1 => (0u32..3).prop_map(Op::Move),
        1 => Just(Op::Force),
        1 => (0u32..3).prop_map(Op::Revoke),
    ];
    proptest::collection::vec(op, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_stale_translation_is_ever_met(ops in ops(), count in 2u32..20, by_asid: bool) {
        let mut pools = [(); 3].map(|()| AsidPool::new(count));
        let (mut tlb, mut map, mut own) = (Tlb::default(), AsidMap::<8>::new(), Tag::new());
        let (mut pcpu, mut forced) = (0u32, 0u64);
        // How often each asid12 (0: L1) was flushed, and its last root.
        let mut flushes = HashMap::<u32, u64>::new();
        let mut roots = HashMap::<u32, u64>::new();
        for op in ops {
            match op {
                Op::Run { asid, tlb: control, root, give_up } => {
                    let copy = c12(asid, control, Some(root << 12));
                    let selected = map.select(copy.checked().unwrap(), true);
                    let all = !matches!(control, 0 | 3);
                    prop_assert_eq!(selected.flush_01, all);
                    if selected.flush_01 {
                        own.owe(Flush::All);
                        (0..12).for_each(|a| *flushes.entry(a).or_default() += 1);
                    }
                    let moved = roots.insert(asid, root) != Some(root);
                    if control == 3 || moved {
                        *flushes.entry(asid).or_default() += 1;
                    }
                    prop_assert!(selected.resync || control == 0 && !moved);
                    let pool = &mut pools[pcpu as usize];
                    let tag = map.tag(selected.index);
                    let grant = tag.prepare(pool, pcpu, forced, by_asid);
                    prop_assert!(by_asid || matches!(grant.tlb_control, tlb_control::NONE | tlb_control::ALL));
                    prop_assert!(grant.asid < count.max(2));
                    if !give_up {
                        tlb.enter(pcpu, grant, (asid, flushes.get(&asid).copied().unwrap_or(0)));
                        tag.entered();
                        pool.entered();
                    }
                    let grant = own.prepare(pool, pcpu, forced, by_asid);
                    tlb.enter(pcpu, grant, (0, flushes.get(&0).copied().unwrap_or(0)));
                    own.entered();
                    pool.entered();
                }
                Op::Invlpga(asid) => {
                    match map.invlpga(asid, &pools[pcpu as usize], pcpu) {
                        Some(hw) => drop(tlb.0.remove(&(pcpu, hw))),
                        None if asid != 0 => *flushes.entry(asid).or_default() += 1,
                        None => {}
                    }
                }
                Op::Move(to) => pcpu = to,
                Op::Force => {
                    forced += 1;
                    (0..12).for_each(|a| *flushes.entry(a).or_default() += 1);
                }
                Op::Revoke(which) => pools[which as usize].revoke(),
            }
        }
    }
}

#[test]
fn a_switch_between_known_asids_flushes_nothing() {
    let (mut pool, mut map, mut own) = (AsidPool::new(16), AsidMap::<8>::new(), Tag::new());
    let mut seen = std::vec::Vec::new();
    for round in 0..10 {
        for asid in [1, 2] {
            let copy = c12(asid, 0, None);
            let s = map.select(copy.checked().unwrap(), true);
            assert!(!s.resync && !s.flush_01);
            let grant = map.tag(s.index).prepare(&mut pool, 0, 0, false);
            map.tag(s.index).entered();
            pool.entered();
            let back = own.prepare(&mut pool, 0, 0, false);
            assert_ne!(back.asid, grant.asid);
            if round > 0 {
                assert_eq!((grant.tlb_control, back.tlb_control), (0, 0));
            }
            seen.push(grant.asid);
        }
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 2);
}

#[test]
fn a_non_global_flush_stays_one_where_the_processor_has_it() {
    let (mut pool, mut map) = (AsidPool::new(16), AsidMap::<8>::new());
    let mut enter = |control, by_asid| {
        let copy = c12(1, control, Some(0x7000));
        let s = map.select(copy.checked().unwrap(), true);
        let grant = map.tag(s.index).prepare(&mut pool, 0, 0, by_asid);
        map.tag(s.index).entered();
        pool.entered();
        (grant, s.resync)
    };
    let (first, resync) = enter(0, true);
    assert_eq!((first.tlb_control, resync), (tlb_control::ALL, true));
    assert_eq!(enter(0, true), (Grant { tlb_control: 0, ..first }, false));
    assert_eq!(enter(7, true), (Grant { tlb_control: 7, ..first }, true));
    assert_eq!(enter(3, true), (Grant { tlb_control: 3, ..first }, true));
    // Without flush-by-ASID a new one does it.
    let (grant, _) = enter(7, false);
    assert!(grant.asid != first.asid && grant.tlb_control == 0);
}

#[test]
fn flush_by_asid_that_is_not_offered_flushes_everything() {
    let mut map = AsidMap::<8>::new();
    for (control, offered, all) in [(3, true, false), (3, false, true), (7, false, true), (2, true, true)] {
        let copy = c12(1, control, None);
        assert_eq!(map.select(copy.checked().unwrap(), offered).flush_01, all, "{control}");
    }
}

#[test]
fn invlpga_reaches_the_tag_of_that_asid_only() {
    let (mut pool, mut map) = (AsidPool::new(16), AsidMap::<8>::new());
    let copy = c12(5, 0, Some(0x7000));
    let s = map.select(copy.checked().unwrap(), true);
    let grant = map.tag(s.index).prepare(&mut pool, 0, 0, true);
    assert_eq!(map.invlpga(5, &pool, 0), Some(grant.asid));
    assert_eq!(map.invlpga(6, &pool, 0), None);
    assert_eq!(map.invlpga(0, &pool, 0), None);
    assert_eq!(map.invlpga(5, &pool, 1), None);
    // L1's nested tables are compared at the next entry.
    assert!(map.select(copy.checked().unwrap(), true).resync);
    assert!(!map.select(copy.checked().unwrap(), true).resync);
}

#[test]
fn invlpga_on_another_processor_is_not_lost_on_the_way_back() {
    let (mut here, there, mut map) = (AsidPool::new(16), AsidPool::new(16), AsidMap::<8>::new());
    let copy = c12(5, 0, None);
    let s = map.select(copy.checked().unwrap(), true);
    let before = map.tag(s.index).prepare(&mut here, 0, 0, true);
    map.tag(s.index).entered();
    here.entered();
    // The vCPU moves, executes INVLPGA before any VMRUN there, and moves back.
    assert_eq!(map.invlpga(5, &there, 1), None);
    let s = map.select(copy.checked().unwrap(), true);
    let after = map.tag(s.index).prepare(&mut here, 0, 0, true);
    assert_eq!(after, Grant { tlb_control: tlb_control::THIS_ASID, ..before });
}
