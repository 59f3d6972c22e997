//! memory_op.

use super::*;

fn memory_op(d: &Dom, op: MemoryOp, arg: u64) -> i64 {
    d.call(Call::MEMORY_OP, &[op.0.into(), arg])
}
pub(super) fn map(d: &Dom, space: MapSpace, idx: u64, gpfn: u64) -> i64 {
    let arg = AddToPhysmap { domid: SELF, size: 0, space: space.0, idx, gpfn };
    d.call_with(Call::MEMORY_OP, MemoryOp::ADD_TO_PHYSMAP.0, arg)
}
/// A reservation call on `frames`; continues until it returns.
fn reservation(d: &Dom, op: MemoryOp, frames: &[u64], order: u32, width: Width) -> (i64, u32) {
    for (i, frame) in frames.iter().enumerate() {
        match width {
            Width::Bits64 => d.put(0x8000 + 8 * i as u64, *frame),
            Width::Bits32 => d.put(0x8000 + 4 * i as u64, *frame as u32),
        }
    }
    let nr = frames.len() as u64;
    match width {
        Width::Bits64 => d.put(
            ARG,
            Reservation {
                extent_start: 0x8000,
                nr_extents: nr,
                extent_order: order,
                mem_flags: 0,
                domid: SELF,
                pad: [0; 3],
            },
        ),
        Width::Bits32 => d.put(
            ARG,
            Reservation32 {
                extent_start: 0x8000,
                nr_extents: nr as u32,
                extent_order: order,
                mem_flags: 0,
                domid: SELF,
                pad: 0,
            },
        ),
    }
    let mut args = [u64::from(op.0), ARG, 0, 0, 0, 0];
    for rounds in 0..100 {
        match d.call_width(0, Call::MEMORY_OP, &args, width) {
            CallResult::Return(value) => return (value, rounds),
            CallResult::Continue(next) => args = next,
            other => panic!("{other:?}"),
        }
    }
    panic!("it never ends");
}

#[test]
fn shared_info_is_mapped_where_asked_and_moves() {
    let d = guest(1);
    d.shared_info().write_u32(LAYOUT_64.evtchn_pending, 0xabcd);
    assert_eq!(map(&d, MapSpace::SHARED_INFO, 0, 7), 0);
    assert_eq!(d.get::<u32>(0x7000 + LAYOUT_64.evtchn_pending as u64), 0xabcd);
    assert_eq!(map(&d, MapSpace::SHARED_INFO, 0, 0x5_0000), 0);
    assert!(d.memory.is_hole(7), "the old place is a hole");
    assert_eq!(d.get::<u32>(0x5000_0000 + LAYOUT_64.evtchn_pending as u64), 0xabcd);
    assert_eq!(map(&d, MapSpace::SHARED_INFO, 0, 0x5_0000), 0, "again at the same place");
    assert_eq!(d.get::<u32>(0x5000_0000 + LAYOUT_64.evtchn_pending as u64), 0xabcd);
    assert_eq!(map(&d, MapSpace::SHARED_INFO, 1, 9), Errno::EINVAL.result());
    assert_eq!(map(&d, MapSpace::SHARED_INFO, 0, u64::MAX), Errno::EINVAL.result());
    assert_eq!(map(&d, MapSpace(99), 0, 9), Errno::ENOSYS.result());
    assert_eq!(map(&d, MapSpace::DEV_MMIO, 0, 9), Errno::EOPNOTSUPP.result());
}

#[test]
fn a_32_bit_caller_maps_shared_info_too() {
    let d = guest(1);
    d.put(ARG, AddToPhysmap32 { domid: SELF, size: 0, space: 0, idx: 0, gpfn: 9 });
    // What lies above bit 31 of a register is nothing.
    let args = [u64::from(MemoryOp::ADD_TO_PHYSMAP.0) | 1 << 40, ARG | 1 << 32];
    assert_eq!(d.call_width(0, Call::MEMORY_OP, &args, Width::Bits32), CallResult::Return(0));
    d.shared_info().write_u8(1, 0x77);
    assert_eq!(d.get::<u8>(0x9001), 0x77);
}

#[test]
fn ballooning_gives_and_takes_as_far_as_it_can() {
    for width in [Width::Bits64, Width::Bits32] {
        let d = guest(1);
        assert_eq!(reservation(&d, MemoryOp::DECREASE_RESERVATION, &[50, 51, 52], 0, width), (3, 0));
        assert!(d.memory.is_hole(51) && d.memory.pages() == RAM_PAGES - 3);
        // It stops at the first that is a hole already.
        assert_eq!(reservation(&d, MemoryOp::DECREASE_RESERVATION, &[53, 51, 54], 0, width), (1, 0));
        assert_eq!(reservation(&d, MemoryOp::POPULATE_PHYSMAP, &[50, 51], 0, width), (2, 0));
        assert_eq!(reservation(&d, MemoryOp::POPULATE_PHYSMAP, &[52, 50], 0, width), (1, 0));
        // Up to the domain's limit of 128 pages, of which it has 63.
        let many: Vec<_> = (0..200).map(|i| 0x1000 + i).collect();
        assert_eq!(reservation(&d, MemoryOp::POPULATE_PHYSMAP, &many, 0, width), (65, 0));
        assert_eq!(d.memory.pages(), 128);
        // Extents: aligned or not, all or nothing, up to 2 MiB.
        assert_eq!(reservation(&d, MemoryOp::DECREASE_RESERVATION, &[0x1000, 0x1010], 4, width).0, 2);
        assert_eq!(reservation(&d, MemoryOp::POPULATE_PHYSMAP, &[0x2001], 4, width).0, 1);
        assert_eq!(reservation(&d, MemoryOp::POPULATE_PHYSMAP, &[0x1ff9], 4, width).0, 0);
        assert!(d.memory.is_hole(0x1ff9));
        assert_eq!(reservation(&d, MemoryOp::POPULATE_PHYSMAP, &[0], 10, width).0, 0);
        assert_eq!(reservation(&d, MemoryOp::POPULATE_PHYSMAP, &[0], u32::MAX, width).0, 0);
    }
}

#[test]
fn a_long_reservation_call_is_preempted_and_comes_to_its_end() {
    let config = DomainConfig::new("big", 1, 1 << 13);
    let d = domain_with(&machine(1), config);
    let frames: Vec<_> = (0..2000).map(|i| 0x10_0000 + i).collect();
    let (done, rounds) = reservation(&d, MemoryOp::POPULATE_PHYSMAP, &frames, 0, Width::Bits64);
    assert_eq!(done, 2000);
    assert_eq!(rounds, 3);
}

#[test]
fn hostile_reservations_end() {
    let d = guest(1);
    let r = |start: u64, nr: u64, order: u32| Reservation {
        extent_start: start,
        nr_extents: nr,
        extent_order: order,
        mem_flags: 0,
        domid: SELF,
        pad: [0; 3],
    };
    let op = MemoryOp::DECREASE_RESERVATION;
    for (arg, answer) in [
        (r(0x8000, u64::MAX, 0), 0),
        (r(0x8000, 1 << 27, 0), 0),
        (r(u64::MAX - 3, 5, 0), Errno::EFAULT.result()),
        (r(0x8000, 0, 0), 0),
    ] {
        assert_eq!(d.call_with(Call::MEMORY_OP, op.0, arg), answer, "{arg:?}");
    }
    // Progress beyond the end, as a guest can forge it.
    d.put(ARG, r(0x8000, 4, 0));
    assert_eq!(d.call(Call::MEMORY_OP, &[1 | 9 << 6, ARG]), 9);
    // A frame number whose end overflows.
    d.put(0x8000, u64::MAX);
    d.put(ARG, r(0x8000, 1, 9));
    assert_eq!(d.call(Call::MEMORY_OP, &[6, ARG]), 0);
}

#[test]
fn sizes_and_the_memory_map_are_told() {
    let mut config = DomainConfig::new("mapped", 1, 128);
    config.memory_map = alloc::vec![
        MemoryRegion { start: 0, bytes: 0xa_0000, kind: E820Type::RAM },
        MemoryRegion { start: 0xfee0_0000, bytes: 0x1000, kind: E820Type::RESERVED },
    ];
    let d = domain_with(&machine(1), config);
    d.put(ARG, SELF);
    assert_eq!(memory_op(&d, MemoryOp::CURRENT_RESERVATION, ARG), RAM_PAGES as i64);
    assert_eq!(memory_op(&d, MemoryOp::MAXIMUM_RESERVATION, ARG), 128);
    assert_eq!(memory_op(&d, MemoryOp::MAXIMUM_GPFN, ARG), RAM_PAGES as i64 - 1);
    d.put(ARG, MemoryMap { nr_entries: 5, pad: 0, buffer: 0x9000 });
    assert_eq!(memory_op(&d, MemoryOp::MEMORY_MAP, ARG), 0);
    assert_eq!(d.get::<u32>(ARG), 2);
    assert_eq!(d.get::<u64>(0x9000 + 20), 0xfee0_0000);
    assert_eq!(d.get::<u32>(0x9000 + 36), 2);
    d.put(ARG, MemoryMap { nr_entries: 1, pad: 0, buffer: 0x9000 });
    assert_eq!(memory_op(&d, MemoryOp::MEMORY_MAP, ARG), Errno::EINVAL.result());
    d.put(ARG, MemoryMap { nr_entries: 0, pad: 0, buffer: 0 });
    assert_eq!(memory_op(&d, MemoryOp::MEMORY_MAP, ARG), 0);
    assert_eq!(d.get::<u32>(ARG), 2);
    assert_eq!(memory_op(&guest(1), MemoryOp::MEMORY_MAP, ARG), Errno::ENOSYS.result());
}

#[test]
fn remove_from_physmap_leaves_a_hole() {
    let d = guest(1);
    let remove = |gpfn| {
        let arg = RemoveFromPhysmap { domid: SELF, pad: [0; 3], gpfn };
        d.call_with(Call::MEMORY_OP, MemoryOp::REMOVE_FROM_PHYSMAP.0, arg)
    };
    assert_eq!(remove(40), 0);
    assert_eq!(remove(40), Errno::ENOENT.result());
    assert_eq!(remove(u64::MAX), Errno::EINVAL.result());
}

/// Runs `f` for two vCPUs at the same moment.
fn both(f: impl Fn(u32) -> i64 + Sync) -> [i64; 2] {
    let gate = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        let start = |vcpu| {
            let (f, gate) = (&f, &gate);
            scope.spawn(move || {
                gate.wait();
                f(vcpu)
            })
        };
        [start(0), start(1)].map(|one| one.join().unwrap())
    })
}

#[test]
fn of_two_vcpus_that_remove_a_frame_at_once_one_finds_a_hole() {
    let d = guest(2);
    for gpfn in 32..64 {
        for vcpu in 0..2u64 {
            d.put(ARG + vcpu * 0x100, RemoveFromPhysmap { domid: SELF, pad: [0; 3], gpfn });
        }
        let op = u64::from(MemoryOp::REMOVE_FROM_PHYSMAP.0);
        let got = both(|vcpu| d.call_on(vcpu, Call::MEMORY_OP, &[op, ARG + u64::from(vcpu) * 0x100]));
        assert_eq!(got.iter().sum::<i64>(), Errno::ENOENT.result(), "{gpfn}: {got:?}");
        assert!(got.contains(&0) && d.memory.is_hole(gpfn));
    }
}

#[test]
fn of_two_vcpus_that_move_shared_info_at_once_one_place_stays() {
    let d = guest(2);
    for round in 0..64u64 {
        let place = |vcpu: u64| 0x100 + 2 * round + vcpu;
        for vcpu in 0..2 {
            let arg = AddToPhysmap {
                domid: SELF,
                size: 0,
                space: MapSpace::SHARED_INFO.0,
                idx: 0,
                gpfn: place(vcpu),
            };
            d.put(ARG + vcpu * 0x100, arg);
        }
        let op = u64::from(MemoryOp::ADD_TO_PHYSMAP.0);
        let got = both(|vcpu| d.call_on(vcpu, Call::MEMORY_OP, &[op, ARG + u64::from(vcpu) * 0x100]));
        assert_eq!(got, [0, 0]);
        let holes = (0..2).filter(|vcpu| d.memory.is_hole(place(*vcpu))).count();
        assert_eq!(holes, 1, "round {round}");
    }
}

#[test]
fn what_the_guest_put_where_shared_info_was_stays() {
    let d = guest(1);
    assert_eq!(map(&d, MapSpace::SHARED_INFO, 0, 40), 0);
    let arg = RemoveFromPhysmap { domid: SELF, pad: [0; 3], gpfn: 40 };
    assert_eq!(d.call_with(Call::MEMORY_OP, MemoryOp::REMOVE_FROM_PHYSMAP.0, arg), 0);
    assert_eq!(reservation(&d, MemoryOp::POPULATE_PHYSMAP, &[40], 0, Width::Bits64), (1, 0));
    d.put(40 << 12, 0x5au8);
    assert_eq!(map(&d, MapSpace::SHARED_INFO, 0, 41), 0);
    assert!(!d.memory.is_hole(40));
    assert_eq!(d.get::<u8>(40 << 12), 0x5a);
}
