//! The computed timer against one that is ticked, nanosecond by nanosecond.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Start(u32),
    Divide(u32),
    Mode { periodic: bool, masked: bool },
    Wait(u16),
    Serve,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (0u32..30_000).prop_map(Op::Start),
        1 => (0u32..4).prop_map(|code| Op::Divide([0xb, 0x0, 0x1, 0x3][code as usize])),
        1 => any::<(bool, bool)>().prop_map(|(periodic, masked)| Op::Mode { periodic, masked }),
        6 => (0u16..20_000).prop_map(Op::Wait),
        3 => Just(Op::Serve),
    ]
}

#[derive(Default)]
struct Ticked {
    now: u64,
    left: u64, // ns to the next expiry; 0: stopped
    initial: u32,
    divisor: u64,
    periodic: bool,
    masked: bool,
    fired: bool,
}

impl Ticked {
    fn span(&self) -> u64 {
        let span = u64::from(self.initial) * self.divisor;
        if self.periodic { span.max(MIN_PERIOD_NS) } else { span }
    }

    fn tick(&mut self) {
        self.now += 1;
        if self.left == 0 {
            return;
        }
        self.left -= 1;
        if self.left == 0 {
            self.fired |= !self.masked;
            if self.periodic {
                self.left = self.span();
            }
        }
    }

    fn current(&self) -> u32 {
        self.left.div_ceil(self.divisor).min(u64::from(self.initial)) as u32
    }
}

fn step(op: &Op, apic: &mut Vlapic, model: &mut Ticked) {
    let time = At(model.now);
    let mut write = |reg: Reg, value: u32| {
        _ = apic.mmio_write(u16::from(reg.0) * 16, 4, u64::from(value), &time);
    };
    match *op {
        Op::Start(count) => {
            write(Reg::TIMER_INITIAL, count);
            model.initial = count;
            model.left = if count == 0 { 0 } else { model.span() };
        }
        Op::Divide(code) => {
            write(Reg::TIMER_DIVIDE, code);
            let count = u64::from(model.current());
            model.divisor = [2, 4, 8, 16][(code & 3) as usize];
            if code == 0xb {
                model.divisor = 1;
            }
            model.left = count * model.divisor;
        }
        Op::Mode { periodic, masked } => {
            write(Reg::LVT_TIMER, 0xd1 | u32::from(masked) << 16 | u32::from(periodic) << 17);
            (model.periodic, model.masked) = (periodic, masked);
        }
        Op::Wait(ns) => (0..ns).for_each(|_| model.tick()),
        Op::Serve => {
            apic.expire(&time);
            assert_eq!(apic.ack(0xd1), core::mem::take(&mut model.fired));
            assert_eq!(apic.eoi(), None);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn computed_is_as_ticked(ops in prop::collection::vec(op(), 1..60)) {
        let (mut apic, _) = xapic(0);
        let mut model = Ticked { divisor: 2, now: 1_000_000, ..Ticked::default() };
        step(&Op::Mode { periodic: false, masked: false }, &mut apic, &mut model);
        for op in &ops {
            step(op, &mut apic, &mut model);
            let count = apic.mmio_read(0x390, 4, &At(model.now)) as u32;
            prop_assert_eq!(count, model.current());
        }
        step(&Op::Serve, &mut apic, &mut model);
    }
}
