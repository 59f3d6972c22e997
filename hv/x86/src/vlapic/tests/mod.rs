//! Tests of the virtual APIC, by subject.

mod access;
mod base;
mod dest;
#[cfg(loom)]
mod interleaving;
mod model;
mod priority;
mod shared;
mod timer;
mod timer_model;

use super::*;

/// A clock that stands still; the TSC runs at three times the nanoseconds.
#[derive(Clone, Copy)]
struct At(u64);

impl TimeSource for At {
    fn now_ns(&self) -> u64 {
        self.0
    }

    fn guest_tsc(&self) -> u64 {
        self.0 * 3
    }
}

const T0: At = At(1_000_000);

fn config(id: u32) -> Config {
    Config { id, bsp: id == 0, x2apic: true, tsc_deadline: true, phys_bits: 40 }
}

/// An enabled APIC in xAPIC mode, known to senders.
fn xapic(id: u32) -> (Vlapic, VlapicShared) {
    let (mut apic, shared) = (Vlapic::new(config(id)), VlapicShared::new(id));
    _ = write(&mut apic, Reg::SVR, 0x1ff);
    assert!(apic.sync(&shared).is_none());
    (apic, shared)
}

/// The same in x2APIC mode.
fn x2apic(id: u32) -> (Vlapic, VlapicShared) {
    let (mut apic, shared) = xapic(id);
    assert_eq!(apic.write_base(0xfee0_0c00), Ok(Effect::BaseChanged));
    assert!(apic.sync(&shared).is_none());
    (apic, shared)
}

/// An xAPIC register write at [`T0`].
fn write(apic: &mut Vlapic, reg: Reg, value: u32) -> Effect {
    apic.mmio_write(u16::from(reg.0) * 16, 4, u64::from(value), &T0)
}

/// An xAPIC register read at [`T0`].
fn read(apic: &mut Vlapic, reg: Reg) -> u32 {
    apic.mmio_read(u16::from(reg.0) * 16, 4, &T0) as u32
}

/// An x2APIC register write at [`T0`].
fn wrmsr(apic: &mut Vlapic, reg: Reg, value: u64) -> Result<Effect, Gp> {
    apic.wrmsr(MSR_X2APIC_FIRST + u32::from(reg.0), value, &T0)
}

/// An x2APIC register read at [`T0`].
fn rdmsr(apic: &mut Vlapic, reg: Reg) -> Result<u64, Gp> {
    apic.rdmsr(MSR_X2APIC_FIRST + u32::from(reg.0), &T0)
}
