//! The allocator against a model that keeps a set of frames, and the cases worth a name.

use super::*;
use addr::{Frame, HostPhys, Hpa, Range};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::thread;
use std::vec::Vec;

const D1: Owner = Owner(1);
const D2: Owner = Owner(2);

/// Leaks its tables, as the boot code does.
fn allocator(frames: usize) -> FrameAllocator<'static> {
    let table: Vec<FrameEntry> = (0..frames).map(|_| FrameEntry::absent()).collect();
    let accounts: Vec<Account> = (0..4).map(|_| Account::default()).collect();
    let frames = FrameAllocator::new(table.leak(), accounts.leak());
    for id in 0..4 {
        assert!(frames.set_limits(Owner(id), Limits::NONE));
    }
    frames
}

fn range(first: u64, end: u64) -> Range<HostPhys> {
    Range::new(Hpa::new(first << 12), (end - first) << 12).unwrap()
}

fn with_ram(frames: u64) -> FrameAllocator<'static> {
    let a = allocator(frames as usize);
    assert_eq!(a.add_range(range(0, frames)), frames);
    a
}

fn ram(a: &FrameAllocator, order: u8) -> Result<Frame<HostPhys>, AllocError> {
    a.alloc(order, D1, Kind::DomainRam, Zone::Any)
}

#[test]
fn ranges_are_rounded_inwards_and_reservations_outwards() {
    let a = allocator(64);
    assert_eq!(a.add_range(Range::new(Hpa::new(0x1001), 0x3ffe).unwrap()), 2);
    assert_eq!(a.stats().free, 2);
    a.reserve(Range::new(Hpa::new(0x2fff), 2).unwrap(), Reason::Image).unwrap();
    assert_eq!(a.stats().free, 0);
    assert_eq!(a.state(Frame::new(2)), FrameState::Reserved(Reason::Image));
    assert_eq!(a.state(Frame::new(3)), FrameState::Reserved(Reason::Image));
    assert_eq!(a.add_range(range(60, 100)), 4, "clipped at the table's end");
    assert_eq!(a.state(Frame::new(1 << 60)), FrameState::Absent);
}

#[test]
fn overlapping_ranges_and_reservations_in_any_order() {
    let a = allocator(1024);
    a.reserve(range(100, 200), Reason::Firmware).unwrap();
    assert_eq!(a.add_range(range(0, 512)), 412);
    assert_eq!(a.add_range(range(256, 1024)), 512);
    a.reserve(range(150, 300), Reason::Module).unwrap();
    assert_eq!(a.state(Frame::new(150)), FrameState::Reserved(Reason::Firmware), "the first reason stays");
    assert_eq!(a.state(Frame::new(299)), FrameState::Reserved(Reason::Module));
    let stats = a.stats();
    assert_eq!((stats.total, stats.reserved, stats.free), (824, 200, 824));
    assert_eq!(a.unreserve(range(100, 300)), Ok(200));
    assert_eq!(a.unreserve(range(100, 101)), Err(FrameBug::NotReserved(Frame::new(100))));
    let stats = a.stats();
    assert_eq!((stats.total, stats.reserved, stats.free), (1024, 0, 1024));
    assert_eq!(stats.blocks[10], 1, "all of it is one block again");
}

#[test]
fn what_is_in_use_cannot_be_reserved() {
    let a = with_ram(16);
    let frame = ram(&a, 0).unwrap();
    assert_eq!(a.reserve(range(0, 16), Reason::Bad), Err(FrameBug::InUse(frame)));
    assert_eq!(a.stats().free, 15);
}

#[test]
fn splits_and_coalesces_to_the_same_blocks() {
    let a = with_ram(1 << 11);
    let before = a.stats();
    let frames: Vec<_> = (0..1 << 11).map(|_| ram(&a, 0).unwrap()).collect();
    assert_eq!(ram(&a, 0), Err(AllocError::NoMemory));
    assert_eq!(a.usage(D1).ram, 1 << 11);
    // Odd ones first: nothing can merge until their buddies come.
    for frame in frames.iter().filter(|f| f.number() % 2 == 1) {
        a.free(*frame, 0, D1).unwrap();
    }
    assert_eq!(a.stats().blocks[0], 1 << 10);
    for frame in frames.iter().filter(|f| f.number() % 2 == 0) {
        a.free(*frame, 0, D1).unwrap();
    }
    assert_eq!(a.stats(), before);
    assert_eq!(a.usage(D1), Usage::default());
}

#[test]
fn exhaustion_leaves_the_account_alone() {
    let a = with_ram(8);
    assert_eq!(ram(&a, 4), Err(AllocError::NoMemory));
    assert_eq!(ram(&a, MAX_ORDER), Err(AllocError::NoMemory));
    assert_eq!(ram(&a, MAX_ORDER + 1), Err(AllocError::Order));
    assert_eq!(a.usage(D1).total(), 0);
    ram(&a, 3).unwrap();
    assert_eq!(ram(&a, 0), Err(AllocError::NoMemory));
}

#[test]
fn quota_is_exact_and_by_kind() {
    let a = with_ram(64);
    a.set_limits(D1, Limits { ram: 9, tables: 1, other: 0 });
    ram(&a, 3).unwrap();
    assert_eq!(ram(&a, 1), Err(AllocError::Quota));
    let last = ram(&a, 0).unwrap();
    assert_eq!(ram(&a, 0), Err(AllocError::Quota));
    a.alloc(0, D1, Kind::Table, Zone::Any).unwrap();
    assert_eq!(a.alloc(0, D1, Kind::Table, Zone::Any), Err(AllocError::Quota));
    assert_eq!(a.alloc(0, D1, Kind::Shared, Zone::Any), Err(AllocError::Quota));
    a.free(last, 0, D1).unwrap();
    ram(&a, 0).unwrap();
    assert_eq!(a.alloc(0, Owner(4), Kind::DomainRam, Zone::Any), Err(AllocError::Quota), "no such owner");
    assert!(!a.set_limits(Owner(4), Limits::NONE));
    assert_eq!(a.usage(D1), Usage { hypervisor: 0, ram: 9, tables: 1, shared: 0 });
}

#[test]
fn a_new_owner_may_have_nothing() {
    let accounts: Vec<Account> = (0..2).map(|_| Account::default()).collect();
    let table: Vec<FrameEntry> = (0..4).map(|_| FrameEntry::absent()).collect();
    let a = FrameAllocator::new(&table, &accounts);
    a.add_range(range(0, 4));
    assert_eq!(a.alloc(0, Owner(1), Kind::DomainRam, Zone::Any), Err(AllocError::Quota));
    assert!(a.alloc(0, Owner::HYPERVISOR, Kind::Hypervisor, Zone::Any).is_ok());
}

#[test]
fn zones_are_kept_apart_and_low_memory_is_kept_for_last() {
    const G4: u64 = 1 << 20;
    let a = allocator((G4 + 4096) as usize);
    a.add_range(range(0, 8192));
    a.add_range(range(G4 - 4096, G4 + 4096));
    let stats = a.stats();
    assert_eq!(stats.free_by_zone, [4096, 8192, 4096]);
    assert_eq!(stats.blocks[12], 4, "nothing merges across 16 MiB or 4 GiB");
    for _ in 0..4096 {
        assert!(ram(&a, 0).unwrap().number() >= G4, "above 4 GiB while there is some");
    }
    assert!(ram(&a, 0).unwrap().number() < G4);
    let low = a.alloc(2, D1, Kind::DomainRam, Zone::Below16M).unwrap();
    assert!(low.number() < 4096);
    for _ in 0..2 * 4096 - 1 {
        let frame = a.alloc(0, D1, Kind::DomainRam, Zone::Below4G).unwrap();
        assert!((4096..G4).contains(&frame.number()));
    }
    assert!(a.alloc(0, D1, Kind::DomainRam, Zone::Below4G).unwrap().number() < 4096);
    assert_eq!(a.alloc(12, D1, Kind::DomainRam, Zone::Below16M), Err(AllocError::NoMemory));
}

#[test]
fn a_gigabyte_block_lives_and_merges() {
    let a = allocator(1 << 19);
    a.add_range(range(0, 1 << 19));
    let big = ram(&a, MAX_ORDER).unwrap();
    assert_eq!(big.number(), 1 << 18, "the first gigabyte holds the low zone");
    assert_eq!(a.release(Frame::new((1 << 18) + 77), D1), Ok(Released::Freed));
    assert_eq!(a.free(big, MAX_ORDER, D1), Err(FrameBug::NotOwned(Frame::new((1 << 18) + 77))));
    assert_eq!(a.usage(D1).ram, (1 << 18) - 1, "a failed free changes nothing");
    for at in (1 << 18..1 << 19).filter(|at| *at != (1 << 18) + 77) {
        a.release(Frame::new(at), D1).unwrap();
    }
    assert_eq!(a.stats().blocks[usize::from(MAX_ORDER)], 1);
}

#[test]
fn our_own_mistakes_are_found() {
    let a = with_ram(32);
    let frame = ram(&a, 1).unwrap();
    let (first, second) = (frame, frame.wrapping_add(1));
    assert_eq!(a.free(first, 1, D2), Err(FrameBug::WrongOwner(first)));
    assert_eq!(a.release(first, D2), Err(FrameBug::WrongOwner(first)));
    assert_eq!(a.put_ref(first), Err(FrameBug::NotPinned(first)));
    assert_eq!(a.free(second, 1, D1), Err(FrameBug::Range(second)), "not aligned");
    assert_eq!(a.free(Frame::new(1 << 40), 0, D1), Err(FrameBug::Range(Frame::new(1 << 40))));
    assert_eq!(a.put_ref(Frame::new(u64::MAX)), Err(FrameBug::Range(Frame::new(u64::MAX))));
    assert!(a.get_ref(second, D1));
    assert_eq!(a.free(first, 1, D1), Err(FrameBug::Pinned(second)));
    assert_eq!(a.put_ref(second), Ok(Released::StillHeld));
    assert_eq!(a.free(first, 1, D1), Ok(()));
    assert_eq!(a.free(first, 1, D1), Err(FrameBug::NotOwned(first)), "double free");
    assert_eq!(a.release(first, D1), Err(FrameBug::NotOwned(first)));
    assert_eq!(a.put_ref(first), Err(FrameBug::NotOwned(first)));
    assert_eq!(a.stats().free, 32);
}

#[test]
fn a_pinned_frame_outlives_its_release() {
    let a = with_ram(4);
    let frame = ram(&a, 0).unwrap();
    assert!(!a.dup_ref(frame), "only who has a pin may take another");
    assert!(!a.get_ref(frame, D2));
    assert!(a.get_ref(frame, D1));
    assert!(a.dup_ref(frame));
    assert_eq!(a.release(frame, D1), Ok(Released::StillHeld));
    assert_eq!(a.release(frame, D1), Err(FrameBug::WrongOwner(frame)), "released twice");
    assert!(!a.get_ref(frame, D1), "no new pins once released");
    assert!(a.dup_ref(frame));
    assert_eq!(a.owner(frame), Some(D1));
    assert_eq!(a.usage(D1).ram, 1, "the owner pays until the last pin is gone");
    assert_eq!(a.put_ref(frame), Ok(Released::StillHeld));
    assert_eq!(a.put_ref(frame), Ok(Released::StillHeld));
    assert_eq!(a.put_ref(frame), Ok(Released::Freed));
    assert_eq!((a.owner(frame), a.usage(D1).ram, a.stats().free), (None, 0, 4));
}

#[test]
fn a_block_with_pins_is_freed_around_them() {
    let a = with_ram(16);
    let block = ram(&a, 4).unwrap();
    let pinned = block.wrapping_add(5);
    assert!(a.get_ref(pinned, D1));
    assert_eq!(a.release_block(block, 4, D1), Ok(Released::StillHeld));
    assert_eq!(a.stats().free, 15);
    assert_eq!(a.put_ref(pinned), Ok(Released::Freed));
    assert_eq!(a.stats().blocks[4], 1);
    let block = ram(&a, 4).unwrap();
    assert_eq!(a.release_block(block, 4, D1), Ok(Released::Freed));
}

#[test]
fn no_pin_on_what_no_guest_may_reach() {
    let a = with_ram(4);
    for kind in Kind::ALL {
        let frame = a.alloc(0, D1, kind, Zone::Any).unwrap();
        assert_eq!(a.get_ref(frame, D1), kind.guest_visible(), "{kind:?}");
    }
    a.reserve(range(3, 4), Reason::Bad).unwrap_err();
    assert!(!a.get_ref(Frame::new(4), D1));
}

#[test]
fn what_a_dead_domain_left_is_found_in_steps() {
    let a = with_ram(256);
    let mine: Vec<_> = (0..5).map(|_| ram(&a, 2).unwrap()).collect();
    a.alloc(0, D2, Kind::DomainRam, Zone::Any).unwrap();
    let mut at = Frame::new(0);
    while at.number() < a.frames() {
        match a.next_owned(D1, at, 16) {
            Some(frame) => {
                a.release(frame, D1).unwrap();
                at = frame;
            }
            None => at = at.wrapping_add(16),
        }
    }
    assert_eq!(a.usage(D1).total(), 0, "{mine:?}");
    assert_eq!(a.usage(D2).total(), 1);
    assert_eq!(a.next_owned(D1, Frame::new(u64::MAX), u64::MAX), None);
}

/// The model: what each frame is, and nothing about blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Held {
    owner: Owner,
    held: bool,
    pins: u32,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Alloc(u8, u16),
    Free(u64, u8, u16),
    Get(u64, u16),
    Dup(u64),
    Put(u64),
    Release(u64, u16),
    ReleaseBlock(u64, u8, u16),
}

const SPACE: u64 = 96;

fn op() -> impl Strategy<Value = Op> {
    let frame = || 0..SPACE + 2;
    let owner = || 1..3u16;
    prop_oneof![
        3 => (0..6u8, owner()).prop_map(|(o, d)| Op::Alloc(o, d)),
        1 => (frame(), 0..4u8, owner()).prop_map(|(f, o, d)| Op::Free(f, o, d)),
        2 => (frame(), owner()).prop_map(|(f, d)| Op::Get(f, d)),
        1 => frame().prop_map(Op::Dup),
        2 => frame().prop_map(Op::Put),
        2 => (frame(), owner()).prop_map(|(f, d)| Op::Release(f, d)),
        1 => (frame(), 0..4u8, owner()).prop_map(|(f, o, d)| Op::ReleaseBlock(f, o, d)),
    ]
}

#[derive(Default)]
struct Model(BTreeMap<u64, Held>);

impl Model {
    fn fits(&self, order: u8) -> bool {
        let size = 1u64 << order;
        (0..SPACE / size).any(|n| (n * size..(n + 1) * size).all(|f| !self.0.contains_key(&f)))
    }
    fn drop_if_unused(&mut self, frame: u64) -> bool {
        let unused = self.0.get(&frame).is_some_and(|h| !h.held && h.pins == 0);
        if unused {
            self.0.remove(&frame);
        }
        unused
    }
    fn release(&mut self, frame: u64, owner: Owner) -> Option<bool> {
        let held = self.0.get_mut(&frame).filter(|h| h.owner == owner && h.held)?;
        held.held = false;
        Some(self.drop_if_unused(frame))
    }
    fn run(&mut self, a: &FrameAllocator, op: Op) {
        match op {
            Op::Alloc(order, d) => {
                let got = a.alloc(order, Owner(d), Kind::DomainRam, Zone::Any);
                assert_eq!(got.is_ok(), self.fits(order), "{got:?}");
                let Ok(first) = got else { return };
                assert_eq!(first.number() % (1 << order), 0);
                for frame in first.number()..first.number() + (1 << order) {
                    assert!(frame < SPACE);
                    let clash = self.0.insert(frame, Held { owner: Owner(d), held: true, pins: 0 });
                    assert_eq!(clash, None);
                }
            }
            Op::Free(frame, order, d) => {
                let free = Held { owner: Owner(d), held: true, pins: 0 };
                let block = frame..frame + (1 << order);
                let legal = frame % (1 << order) == 0 && block.clone().all(|f| self.0.get(&f) == Some(&free));
                assert_eq!(a.free(Frame::new(frame), order, Owner(d)).is_ok(), legal);
                if legal {
                    block.for_each(|f| assert!(self.0.remove(&f).is_some()));
                }
            }
            Op::Get(frame, d) => {
                let held = self.0.get_mut(&frame).filter(|h| h.owner == Owner(d) && h.held);
                assert_eq!(a.get_ref(Frame::new(frame), Owner(d)), held.is_some());
                held.into_iter().for_each(|h| h.pins += 1);
            }
            Op::Dup(frame) => {
                let held = self.0.get_mut(&frame).filter(|h| h.pins > 0);
                assert_eq!(a.dup_ref(Frame::new(frame)), held.is_some());
                held.into_iter().for_each(|h| h.pins += 1);
            }
            Op::Put(frame) => {
                let held = self.0.get_mut(&frame).filter(|h| h.pins > 0);
                let legal = held.is_some();
                held.into_iter().for_each(|h| h.pins -= 1);
                let freed = self.drop_if_unused(frame);
                assert_eq!(a.put_ref(Frame::new(frame)).ok(), legal.then(|| released(freed)));
            }
            Op::Release(frame, d) => {
                let expected = self.release(frame, Owner(d)).map(released);
                assert_eq!(a.release(Frame::new(frame), Owner(d)).ok(), expected);
            }
            Op::ReleaseBlock(frame, order, d) => {
                let inside = frame % (1 << order) == 0 && frame + (1 << order) <= SPACE;
                let mut expected = inside.then_some(Released::Freed);
                for f in frame..frame + (1 << order) {
                    if expected.is_none() {
                        break;
                    }
                    match self.release(f, Owner(d)) {
                        None => expected = None,
                        Some(false) => expected = Some(Released::StillHeld),
                        Some(true) => {}
                    }
                }
                assert_eq!(a.release_block(Frame::new(frame), order, Owner(d)).ok(), expected);
            }
        }
    }
    fn check(&self, a: &FrameAllocator) {
        for frame in 0..SPACE {
            let expected = self.0.get(&frame).map_or(FrameState::Free, |h| FrameState::Owned {
                owner: h.owner,
                kind: Kind::DomainRam,
                held: h.held,
                pins: h.pins,
            });
            assert_eq!(a.state(Frame::new(frame)), expected);
        }
        assert_eq!(a.stats().free, SPACE - self.0.len() as u64);
        for owner in [D1, D2] {
            let owned = self.0.values().filter(|h| h.owner == owner).count();
            assert_eq!(u64::from(a.usage(owner).ram), owned as u64);
        }
    }
}

fn released(freed: bool) -> Released {
    if freed { Released::Freed } else { Released::StillHeld }
}

proptest! {
    #[test]
    fn behaves_as_the_model(ops in proptest::collection::vec(op(), 1..200)) {
        let a = with_ram(SPACE);
        let mut model = Model::default();
        for op in ops {
            model.run(&a, op);
            model.check(&a);
        }
        // All goes back, and merges to what there was.
        for (frame, held) in model.0 {
            if held.held { a.release(Frame::new(frame), held.owner).unwrap(); }
            for _ in 0..held.pins { a.put_ref(Frame::new(frame)).unwrap(); }
        }
        let stats = a.stats();
        prop_assert_eq!((stats.blocks[5], stats.blocks[6], stats.free), (1, 1, SPACE));
    }
}

/// Two CPUs fight for the same frames: one frame is never given twice, and nothing is lost.
#[test]
fn two_threads_allocate_pin_and_free() {
    let a = with_ram(256);
    let worker = |owner: Owner| {
        let mut mine = Vec::new();
        for round in 0u32..20_000 {
            let order = (round % 4) as u8;
            match a.alloc(order, owner, Kind::DomainRam, Zone::Any) {
                Ok(frame) => {
                    assert!(a.get_ref(frame, owner));
                    mine.push((frame, order));
                }
                Err(_) => mine.drain(..).for_each(|(frame, order)| {
                    (0..1 << order).for_each(|n| assert_eq!(a.owner(frame.wrapping_add(n)), Some(owner)));
                    assert_eq!(a.release_block(frame, order, owner), Ok(Released::StillHeld));
                    assert_eq!(a.put_ref(frame), Ok(Released::Freed));
                }),
            }
        }
        for (frame, order) in mine {
            a.put_ref(frame).unwrap();
            a.free(frame, order, owner).unwrap();
        }
    };
    thread::scope(|s| {
        s.spawn(|| worker(D1));
        s.spawn(|| worker(D2));
    });
    let stats = a.stats();
    assert_eq!((stats.free, stats.blocks[8]), (256, 1));
    assert_eq!((a.usage(D1).total(), a.usage(D2).total()), (0, 0));
}

/// One CPU pins by number what another releases: a pin that was granted is never undercut.
#[test]
fn a_pin_races_with_the_release() {
    let a = with_ram(1);
    for _ in 0..2_000 {
        let frame = ram(&a, 0).unwrap();
        thread::scope(|s| {
            let pinner = s.spawn(|| {
                let pinned = a.get_ref(frame, D1);
                if pinned {
                    assert_eq!(a.owner(frame), Some(D1));
                    a.put_ref(frame).unwrap();
                }
            });
            a.release(frame, D1).unwrap();
            pinner.join().unwrap();
        });
        assert_eq!(a.stats().free, 1);
    }
}
