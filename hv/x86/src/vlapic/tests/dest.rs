//! Destinations and arbitration.

use std::vec::Vec;

use super::*;

fn cpu(id: u32, mode: Mode, ldr: u8, model: u8) -> Addressing {
    Addressing { id, mode, ldr, model, accepting: true, priority: 0 }
}

fn narrow(value: u32, logical: bool) -> Destination {
    Destination { value, logical, wide: false }
}

fn wide(value: u32, logical: bool) -> Destination {
    Destination { value, logical, wide: true }
}

#[test]
fn matching() {
    use Mode::{Disabled, X2apic, Xapic};
    let (flat, cluster) = (0xf, 0x0);
    for (dest, to, matches) in [
        // Physical.
        (narrow(3, false), cpu(3, Xapic, 0, flat), true),
        (narrow(4, false), cpu(3, Xapic, 0, flat), false),
        (narrow(0xff, false), cpu(3, Xapic, 0, flat), true),
        (narrow(3, false), cpu(0x103, Xapic, 0, flat), true), // the xAPIC id is 8 bits
        (narrow(3, false), cpu(3, X2apic, 0, flat), true),
        (narrow(3, false), cpu(0x103, X2apic, 0, flat), false),
        (narrow(0xff, false), cpu(0x103, X2apic, 0, flat), true),
        (wide(0xff, false), cpu(0x103, X2apic, 0, flat), false), // no broadcast in this format
        (wide(0xff, false), cpu(0xff, X2apic, 0, flat), true),
        (wide(0x103, false), cpu(0x103, X2apic, 0, flat), true),
        (wide(u32::MAX, false), cpu(0x103, X2apic, 0, flat), true),
        (wide(u32::MAX, true), cpu(0x103, X2apic, 0, flat), true),
        (wide(0x103, false), cpu(3, Xapic, 0, flat), false),
        // A disabled one is never reached.
        (narrow(3, false), cpu(3, Disabled, 0, flat), false),
        (narrow(0xff, false), cpu(3, Disabled, 0, flat), false),
        (wide(u32::MAX, true), cpu(3, Disabled, 0, flat), false),
        // Logical flat.
        (narrow(0x06, true), cpu(0, Xapic, 0x02, flat), true),
        (narrow(0x06, true), cpu(0, Xapic, 0x08, flat), false),
        (narrow(0xff, true), cpu(0, Xapic, 0x00, flat), true),
        (narrow(0x00, true), cpu(0, Xapic, 0xff, flat), false),
        // Logical cluster: cluster 2, members 0 and 2.
        (narrow(0x25, true), cpu(0, Xapic, 0x24, cluster), true),
        (narrow(0x25, true), cpu(0, Xapic, 0x22, cluster), false),
        (narrow(0x25, true), cpu(0, Xapic, 0x34, cluster), false),
        (narrow(0xff, true), cpu(0, Xapic, 0x34, cluster), true),
        // Reserved models match nothing.
        (narrow(0x25, true), cpu(0, Xapic, 0x25, 0x7), false),
        // x2APIC: cluster in the upper half.
        (wide(0x0001_0004, true), cpu(0x12, X2apic, 0, flat), true),
        (wide(0x0001_0008, true), cpu(0x12, X2apic, 0, flat), false),
        (wide(0x0002_0004, true), cpu(0x12, X2apic, 0, flat), false),
        (wide(0x0001_ffff, true), cpu(0x1f, X2apic, 0, flat), true),
        (narrow(0x04, true), cpu(2, X2apic, 0, flat), true), // an MSI to cluster 0
        (narrow(0x04, true), cpu(0x12, X2apic, 0, flat), false),
        (wide(0x0001_0002, true), cpu(0, Xapic, 0xff, flat), false),
    ] {
        assert_eq!(dest.matches(&to), matches, "{dest:?} to {to:?}");
    }
}

#[test]
fn x2apic_logical_ids_don_t_overlap() {
    for id in 0..0x400 {
        let logical = x2apic_logical_id(id);
        assert_eq!(logical & 0xffff, 1 << (id % 16));
        assert_eq!(logical >> 16, id / 16);
    }
    assert_eq!(x2apic_logical_id(u32::MAX) >> 16, 0xffff, "no overflow");
}

fn receivers(ipi: Ipi, sender: Option<usize>, cpus: &[Addressing]) -> Vec<usize> {
    let mut all = Vec::new();
    resolve(&ipi, sender, cpus.iter().copied(), |index| all.push(index));
    all
}

fn message(mode: DeliveryMode, shorthand: Shorthand, dest: Destination, vector: u8) -> Ipi {
    Ipi { dest, shorthand, mode, vector, level: false }
}

#[test]
fn shorthands() {
    let mut cpus = [0, 2, 4, 6].map(|id| cpu(id, Mode::Xapic, 0, 0xf));
    cpus[3].mode = Mode::Disabled;
    let fixed = |shorthand| message(DeliveryMode::Fixed, shorthand, narrow(2, false), 0x40);
    assert_eq!(receivers(fixed(Shorthand::None), Some(0), &cpus), [1]);
    assert_eq!(receivers(fixed(Shorthand::Myself), Some(2), &cpus), [2]);
    assert_eq!(receivers(fixed(Shorthand::AllAndMyself), Some(2), &cpus), [0, 1, 2]);
    assert_eq!(receivers(fixed(Shorthand::Others), Some(2), &cpus), [0, 1]);
    let broadcast = message(DeliveryMode::Nmi, Shorthand::None, narrow(0xff, false), 0);
    assert_eq!(receivers(broadcast, None, &cpus), [0, 1, 2]);
}

#[test]
fn lowest_priority_takes_one_of_the_least() {
    let mut cpus = [1u8, 2, 4, 8].map(|ldr| cpu(0, Mode::Xapic, ldr, 0xf));
    for (cpu, priority) in cpus.iter_mut().zip([0x20, 0x15, 0x1f, 0x00]) {
        cpu.priority = priority;
    }
    let to =
        |vector, dest| message(DeliveryMode::LowestPriority, Shorthand::None, narrow(dest, true), vector);
    assert_eq!(receivers(to(0x40, 0x0f), None, &cpus), [3]);
    cpus[3].accepting = false;
    // 1 and 2 are of one class; the vector picks, and always the same.
    assert_eq!(receivers(to(0x40, 0x0f), None, &cpus), [1]);
    assert_eq!(receivers(to(0x40, 0x0f), None, &cpus), [1]);
    assert_eq!(receivers(to(0x41, 0x0f), None, &cpus), [2]);
    assert_eq!(receivers(to(0x41, 0x01), None, &cpus), [0]);
    assert_eq!(receivers(to(0x41, 0x08), None, &cpus), [], "nobody accepts");
    assert_eq!(receivers(to(0x41, 0x0f), None, &[]), []);
}

#[test]
fn from_one_apic_to_another() {
    let (mut sender, _) = x2apic(0);
    let targets: Vec<_> = (0..4).map(|i| x2apic(2 * i)).collect();
    let Ok(Effect::Ipi(ipi)) = wrmsr(&mut sender, Reg::ICR_LOW, 0x0000_0014_0000_08f0) else {
        panic!("not sent")
    };
    let addresses = targets.iter().map(|(_, shared)| shared.addressing());
    let mut kicked = Vec::new();
    resolve(&ipi, Some(0), addresses, |i| {
        if targets[i].1.deliver(&ipi) {
            kicked.push(i);
        }
    });
    assert_eq!(kicked, [1, 2], "logical ids 4 and 16");
    for (i, (mut apic, shared)) in targets.into_iter().enumerate() {
        assert!(apic.sync(&shared).is_none());
        assert_eq!(apic.highest_pending(), (i == 1 || i == 2).then_some(0xf0));
    }
}
