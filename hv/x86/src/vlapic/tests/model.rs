//! The interrupt rules against a model that is slow and plain.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Post(u8),
    PostLevel(u8),
    Sync,
    Take,
    Eoi,
    Tpr(u8),
    Enable(bool),
    SelfIpi(u8),
    Init,
}

fn op() -> impl Strategy<Value = Op> {
    // Few vectors, so that they meet; all classes, legal and not.
    let vector = prop_oneof![4 => (0u8..16).prop_map(|v| v * 17), 1 => any::<u8>()];
    prop_oneof![
        6 => vector.clone().prop_map(Op::Post),
        3 => vector.clone().prop_map(Op::PostLevel),
        6 => Just(Op::Sync),
        8 => Just(Op::Take),
        6 => Just(Op::Eoi),
        3 => any::<u8>().prop_map(Op::Tpr),
        1 => any::<bool>().prop_map(Op::Enable),
        3 => vector.prop_map(Op::SelfIpi),
        1 => Just(Op::Init),
    ]
}

#[derive(Default)]
struct Model {
    posted: BTreeMap<u8, bool>, // vector: level-triggered
    requested: BTreeSet<u8>,
    level: BTreeSet<u8>,
    in_service: BTreeSet<u8>,
    tpr: u8,
    enabled: bool,
    seen_enabled: bool,
}

impl Model {
    fn post(&mut self, vector: u8, level: bool) {
        if self.seen_enabled && vector >= 16 {
            self.posted.insert(vector, level);
        }
    }

    fn request(&mut self, vector: u8, level: bool) {
        self.requested.insert(vector);
        if level {
            self.level.insert(vector);
        } else {
            self.level.remove(&vector);
        }
    }

    fn sync(&mut self) {
        for (vector, level) in std::mem::take(&mut self.posted) {
            self.request(vector, level);
        }
        self.seen_enabled = self.enabled;
    }

    fn pending(&self) -> Option<u8> {
        let serving = self.in_service.last().map_or(0, |v| v / 16);
        let best = *self.requested.last()?;
        (best / 16 > serving && best / 16 > self.tpr / 16).then_some(best)
    }

    fn ppr(&self) -> u8 {
        let serving = self.in_service.last().map_or(0, |v| v / 16 * 16);
        if self.tpr / 16 >= serving / 16 { self.tpr } else { serving }
    }

    fn eoi(&mut self) -> Option<u8> {
        let ended = self.in_service.pop_last()?;
        self.level.contains(&ended).then_some(ended)
    }
}

fn step(op: &Op, apic: &mut Vlapic, shared: &VlapicShared, model: &mut Model) {
    match *op {
        Op::Post(vector) => {
            _ = shared.post(vector);
            model.post(vector, false);
        }
        Op::PostLevel(vector) => {
            _ = shared.post_level(vector);
            model.post(vector, true);
        }
        Op::Sync => {
            assert!(apic.sync(shared).is_none());
            model.sync();
        }
        Op::Take => {
            let vector = apic.highest_pending();
            assert_eq!(vector, model.pending());
            if let Some(vector) = vector {
                assert!(apic.ack(vector));
                model.requested.remove(&vector);
                model.in_service.insert(vector);
            }
        }
        Op::Eoi => {
            let expected = model.eoi().map_or(Effect::None, Effect::Eoi);
            assert_eq!(write(apic, Reg::EOI, 0), expected);
        }
        Op::Tpr(value) => {
            apic.set_tpr(value);
            model.tpr = value;
        }
        Op::Enable(enabled) => {
            _ = write(apic, Reg::SVR, if enabled { 0x1ff } else { 0xff });
            model.enabled = enabled;
        }
        Op::SelfIpi(vector) => {
            assert_eq!(write(apic, Reg::ICR_LOW, 0x4_4000 | u32::from(vector)), Effect::None);
            if model.enabled && vector >= 16 {
                model.request(vector, false);
            }
        }
        Op::Init => {
            apic.init(shared);
            *model = Model::default();
        }
    }
}

fn set(registers: &VectorSet) -> BTreeSet<u8> {
    (0..=255).filter(|&vector| registers.contains(vector)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn as_the_model(ops in prop::collection::vec(op(), 1..200)) {
        let (mut apic, shared) = xapic(0);
        let mut model = Model { enabled: true, seen_enabled: true, ..Model::default() };
        for op in &ops {
            step(op, &mut apic, &shared, &mut model);
            prop_assert_eq!(apic.ppr(), model.ppr());
            prop_assert_eq!(apic.highest_pending(), model.pending());
            if let Injectable::BelowTpr { vector, class } = apic.next_injectable() {
                // Just below the threshold it goes through, at it it doesn't.
                let mut other = apic.clone();
                other.set_cr8(class - 1);
                prop_assert_eq!(other.highest_pending(), Some(vector));
                other.set_cr8(class);
                prop_assert_eq!(other.highest_pending(), None);
            }
        }
        prop_assert_eq!(set(&apic.irr), model.requested);
        prop_assert_eq!(set(&apic.isr), model.in_service);
        for vector in model.level {
            prop_assert!(apic.tmr.contains(vector));
        }
    }

    #[test]
    fn any_access_is_harmless(
        accesses in prop::collection::vec((any::<u16>(), any::<u64>(), any::<bool>(), 0u64..1 << 40), 1..200),
        wide in any::<bool>(),
    ) {
        let (mut apic, shared) = if wide { x2apic(9) } else { xapic(9) };
        let mut now = 0;
        for (number, value, read, later) in accesses {
            now += later;
            let (time, offset) = (At(now), number & 0xfff);
            if read {
                apic.mmio_read(offset, number as u8, &time);
                _ = apic.rdmsr(0x800 + u32::from(number & 0xff), &time);
                _ = apic.rdmsr(MSR_TSC_DEADLINE, &time);
            } else {
                _ = apic.mmio_write(offset & !15, 4, value, &time);
                _ = apic.wrmsr(0x800 + u32::from(number & 0xff), value & 0x7_10ff, &time);
                _ = apic.wrmsr(MSR_TSC_DEADLINE, value, &time);
            }
            _ = apic.expire(&time);
            _ = apic.sync(&shared);
            if let Some(vector) = apic.highest_pending() {
                prop_assert!(vector >= 16);
                apic.ack(vector);
            }
            if let Some(Deadline::Ns(next)) = apic.next_deadline() {
                prop_assert!(next > now, "a deadline that was served lies ahead");
            }
        }
    }
}
