//! Laws over random histories.

use super::reference;
use super::world::{CPUS, VCPUS, World, host};
use crate::radix::Translate2;
use crate::shadow::{FaultOutcome, MIN_QUOTA};
use crate::walk12::{Access, Paging12, Shape};
use addr::{Gpa, PageSize};
use proptest::prelude::*;
use std::vec::Vec;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const NX: u64 = 1 << 63;

/// Frames of L1's tables: roots, then the levels below, then data.
const ROOTS: core::ops::Range<u64> = 0..3;
const TABLES: core::ops::Range<u64> = 0..12;

pub(super) fn regime(shape: Shape) -> Paging12 {
    let (cr4, efer) = match shape {
        Shape::Ept => return Paging12::from_eptp(0x5e, 40, true, false),
        Shape::TwoLevel => (1 << 4, 0),
        Shape::Pae => (1 << 5, 1 << 11),
        Shape::FourLevel => (1 << 5, 3 << 10),
        Shape::FiveLevel => (1 << 5 | 1 << 12, 3 << 10),
    };
    Paging12::from_host(cr4, efer, 40, true)
}

/// An entry spelled as `shape` does: EPT has no P and no NX, and its A and D are elsewhere.
fn spelled(shape: Shape, entry: u64) -> u64 {
    let on = |bit, to| if entry & bit != 0 { to } else { 0 };
    match shape {
        Shape::Ept if entry & P == 0 => entry & !7,
        Shape::Ept => {
            let flags = P | W | U | A | D | NX;
            entry & !flags | P | entry & W | on(A, 0x100) | on(D, 0x200) | if entry & NX == 0 { 4 } else { 0 }
        }
        _ => entry,
    }
}

fn is_2(shape: Shape) -> bool {
    shape == Shape::TwoLevel
}

/// Two slots at each level.
fn ngpas(shape: Shape) -> Vec<u64> {
    let shifts: &[u32] = match shape {
        Shape::TwoLevel => &[22, 21, 12],
        Shape::Pae => &[30, 21, 12],
        _ => &[39, 30, 21, 12],
    };
    let pick = |n: usize| shifts.iter().enumerate().map(|(i, s)| ((n >> i) as u64 & 1) << s).sum();
    (0..1 << shifts.len()).map(pick).collect()
}

/// A byte offset of an entry that one of the addresses uses.
fn offsets(shape: Shape) -> &'static [u64] {
    if is_2(shape) { &[0, 4, 2048, 2052] } else { &[0, 8] }
}

/// An entry of L1's: mostly sensible, sometimes anything.
fn entries() -> impl Strategy<Value = u64> {
    let flags = prop_oneof![
        6 => Just(P | W | U | A | D),
        2 => Just(P | W | U),
        1 => Just(P | U | A),
        1 => Just(P | W | U | A | D | NX),
        1 => Just(P),
        1 => Just(0),
        1 => Just(P | W | A | D),
        1 => Just(P | W | U | A | D | 1 << 45),
    ];
    let frames =
        prop_oneof![4 => 3u64..12, 4 => 12u64..20, 1 => 512u64..515, 1 => Just(100u64), 1 => 0u64..3];
    let small = (frames, flags.clone()).prop_map(|(frame, flags)| frame << 12 | flags);
    let large = (prop::sample::select(std::vec![0u64, 512]), flags)
        .prop_map(|(frame, flags)| frame << 12 | flags | PS);
    prop_oneof![8 => small, 1 => large]
}

fn accesses() -> impl Strategy<Value = Access> {
    let walk = Access { table_walk: true, ..Access::WRITE };
    prop::sample::select(std::vec![Access::READ, Access::READ, Access::WRITE, Access::FETCH, walk])
}

#[derive(Clone, Debug)]
enum Step {
    L1Write { vcpu: usize, frame: u64, slot: usize, entry: u64 },
    L2 { vcpu: usize, ngpa: usize, access: Access, value: Option<u64> },
    Flush { vcpu: usize },
    FlushWith { vcpu: usize, other: usize, frame: u64, slot: usize, entry: u64, ngpa: usize },
    Enter { vcpu: usize, root: u64 },
    Migrate { vcpu: usize, cpu: usize },
    Unmap { frame: u64 },
    Remap { frame: u64 },
    Pay,
}

fn steps() -> impl Strategy<Value = Step> {
    let v = 0..VCPUS;
    let frame = || prop_oneof![5 => TABLES, 2 => 12u64..20, 1 => 512u64..514];
    prop_oneof![
        6 => (v.clone(), TABLES, 0usize..4, entries())
            .prop_map(|(vcpu, frame, slot, entry)| Step::L1Write { vcpu, frame, slot, entry }),
        14 => (v.clone(), 0usize..16, accesses(), prop::option::of(entries()))
            .prop_map(|(vcpu, ngpa, access, value)| Step::L2 { vcpu, ngpa, access, value }),
        4 => v.clone().prop_map(|vcpu| Step::Flush { vcpu }),
        2 => (v.clone(), v.clone(), TABLES, 0usize..4, entries(), 0usize..16).prop_map(
            |(vcpu, other, frame, slot, entry, ngpa)| Step::FlushWith { vcpu, other, frame, slot, entry, ngpa }
        ),
        2 => (v.clone(), ROOTS).prop_map(|(vcpu, root)| Step::Enter { vcpu, root }),
        1 => (v, 0..CPUS).prop_map(|(vcpu, cpu)| Step::Migrate { vcpu, cpu }),
        1 => frame().prop_map(|frame| Step::Unmap { frame }),
        2 => frame().prop_map(|frame| Step::Remap { frame }),
        1 => Just(Step::Pay),
    ]
}

impl Step {
    fn run(&self, w: &mut World, whim: usize) {
        let shape = w.paging.shape();
        let at = |frame: u64, slot: usize| {
            let offsets = offsets(shape);
            frame << 12 | offsets[slot % offsets.len()]
        };
        match *self {
            Self::L1Write { vcpu, frame, slot, entry } => {
                w.l1_write(vcpu, at(frame, slot), spelled(shape, entry), whim);
            }
            Self::L2 { vcpu, ngpa, access, value } => {
                let ngpa = w.ngpas[ngpa % w.ngpas.len()];
                let value = value.filter(|_| access.write).map(|v| spelled(shape, v));
                let _ = w.l2_access(vcpu, ngpa, access, value, whim);
            }
            Self::Flush { vcpu } => w.flush(vcpu, |_| {}),
            Self::FlushWith { vcpu, other, frame, slot, entry, ngpa } => w.flush(vcpu, |w| {
                let ngpa = w.ngpas[ngpa % w.ngpas.len()];
                let flush = |w: &mut World| {
                    if other != vcpu {
                        w.flush(other, |_| {});
                        let _ = w.l2_access(other, ngpa, Access::WRITE, None, whim);
                    }
                };
                if whim < 4 {
                    flush(w);
                }
                w.l1_write(other, at(frame, slot), spelled(shape, entry), whim);
                if whim >= 4 {
                    flush(w);
                }
            }),
            Self::Enter { vcpu, root } => {
                // PAE's top tables lie within a page.
                let low = if shape == Shape::Pae { root * 0x20 } else { 0 };
                w.enter(vcpu, root << 12 | low);
            }
            Self::Migrate { vcpu, cpu } => w.migrate(vcpu, cpu),
            Self::Unmap { frame } => w.unmap(frame),
            Self::Remap { frame } => {
                if !w.is_mapped(frame) {
                    w.map(frame, PageSize::Size4K);
                }
            }
            Self::Pay => w.pay_pending(),
        }
    }
}

/// A world with a tree under each root: each level's tables are frames 3 and 4, 5 and 6, and so on.
pub(super) fn planted(shape: Shape, choice: u64, quota: u32) -> World {
    let mut w = World::new(regime(shape), ngpas(shape), quota);
    let levels = u64::from(w.paging.levels());
    for level in 1..=levels {
        let depth = levels - level;
        let tables = if depth == 0 { ROOTS } else { 1 + 2 * depth..3 + 2 * depth };
        for table in tables {
            for (i, offset) in offsets(shape).iter().enumerate() {
                let pick = choice >> (4 * table + i as u64) & 1;
                let next = if level == 1 { 12 + 2 * (i as u64) + pick } else { 3 + 2 * depth + pick };
                let pointer = shape == Shape::Pae && depth == 0;
                let offset = offset + if pointer { table * 0x20 } else { 0 };
                let flags = if pointer { P } else { P | W | U };
                w.poke(table << 12 | offset, spelled(shape, next << 12 | flags));
            }
        }
    }
    (0..VCPUS).for_each(|v| {
        Step::Enter { vcpu: v, root: v as u64 % 2 }.run(&mut w, 0);
    });
    w
}

fn shapes() -> impl Strategy<Value = Shape> {
    prop_oneof![
        3 => Just(Shape::FourLevel), 2 => Just(Shape::Ept), 1 => Just(Shape::Pae), 1 => Just(Shape::TwoLevel)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    /// Whatever L1 and L2 do, and whatever hardware remembers: L2 reaches only what L1's tables, since
    /// the last flush, and L0's give it; nobody reaches a frame after its debt is paid; no freed table is
    /// walked; metadata stay whole; no page is lost. (The world panics where this is broken.)
    #[test]
    fn nothing_stale_is_reachable(
        shape in shapes(),
        choice in any::<u64>(),
        list in prop::collection::vec((steps(), 0usize..8), 1..80),
    ) {
        let mut w = planted(shape, choice, 0);
        for (step, whim) in list {
            step.run(&mut w, whim);
            w.cache.check(&host!(w));
        }
        w.tear_down();
    }

    /// Two stages composed equal two stages walked, for every address and access.
    #[test]
    fn composition_equals_both_walks(
        shape in shapes(),
        choice in any::<u64>(),
        writes in prop::collection::vec((TABLES, 0usize..4, entries()), 0..12),
        holes in prop::collection::vec(prop_oneof![12u64..20, 512u64..515], 0..3),
        order in any::<u64>(),
    ) {
        let mut w = planted(shape, choice, 0);
        let offsets = offsets(shape);
        for (frame, slot, entry) in writes {
            w.poke(frame << 12 | offsets[slot % offsets.len()], spelled(shape, entry));
        }
        for frame in holes {
            w.unmap(frame);
        }
        w.pay_pending();
        let all: Vec<u64> = w.ngpas.clone();
        for i in 0..all.len() * 3 {
            let n = i.wrapping_add(order as usize) % (all.len() * 3);
            let ngpa = all[n % all.len()] | 0x123;
            let access = [Access::READ, Access::WRITE, Access::FETCH][n / all.len()];
            // L2's stores leave accessed and dirty bits, which no outcome depends on.
            let found = w.l2_access(1, ngpa, access, None, 0);
            let ncr3 = w.vcpus[1].root.as_ref().unwrap().key().base().raw();
            let host = host!(w);
            let expected = match reference::walk(host.l1, &w.paging, ncr3, ngpa, access) {
                Err(_) => None,
                Ok(gpa) if host.p2m.translate(Gpa::new(gpa)).is_none() => {
                    prop_assert_eq!(found, Err(FaultOutcome::Mmio { gpa: Gpa::new(gpa) }));
                    continue;
                }
                Ok(gpa) => Some(gpa),
            };
            match (found, expected) {
                (Err(FaultOutcome::Violation(_)), None) => {}
                (Ok(gpa), Some(same)) => prop_assert_eq!(gpa, same),
                (found, expected) => prop_assert!(false, "{:x}: {:?}, not {:x?}", ngpa, found, expected),
            }
        }
        w.tear_down();
    }

    /// At the quota and with many roots, tables come and go: the same laws hold.
    #[test]
    fn reclaim_frees_nothing_in_use(
        choice in any::<u64>(),
        list in prop::collection::vec((0..VCPUS, 0u64..12, 0usize..16, accesses()), 60..120),
    ) {
        let mut w = planted(Shape::FourLevel, choice, MIN_QUOTA);
        for (vcpu, root, ngpa, access) in list {
            // Tables of lower levels serve as roots, too: more trees than the quota holds.
            w.enter(vcpu, root << 12);
            let ngpa = w.ngpas[ngpa];
            let _ = w.l2_access(vcpu, ngpa, access, None, 0);
            let _ = w.l2_access(vcpu, ngpa ^ 1 << 30, access, None, 0);
            prop_assert!(w.cache.stats().pages <= u64::from(MIN_QUOTA));
        }
        w.cache.check(&host!(w));
        w.tear_down();
    }
}

/// The histories above do reach things: a law that never gets there proves nothing.
#[test]
fn histories_are_not_idle() {
    let mut w = planted(Shape::FourLevel, 0x5a5a_1234_9876_fedc, 0);
    for i in 0..200usize {
        let ngpa = w.ngpas[i * 7 % 16];
        let _ = w.l2_access(i % VCPUS, ngpa, Access::WRITE, None, i);
        let entry = (12 + i as u64 % 8) << 12 | P | W | U;
        w.l1_write(i % VCPUS, ((7 + i as u64 % 2) << 12) + (i as u64 & 1) * 8, entry, i);
        if i % 5 == 0 {
            w.flush(i % VCPUS, |_| {});
        }
    }
    let stats = w.cache.stats();
    assert!(w.reached > 400, "{} reached", w.reached);
    assert!(stats.unsynced > 5 && stats.revised > 10 && stats.reread > 50, "{stats:?}");
    w.tear_down();
}
