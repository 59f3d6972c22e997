//! The virtual local APIC: pure state and rules, no hardware and no clock of its own.
//!
//! - [`VlapicShared`] is what other CPUs touch: requests on their way in, and the address senders match.
//! - [`Vlapic`] is what the vCPU's own pCPU owns: registers, priorities, timer.
//! - [`resolve`] turns a message into receivers; [`Effect`] is what a write asks of the outside.
//!
//! An upcall by vector (Xen's `HVMOP_set_evtchn_upcall_vector`) is [`VlapicShared::post`].
//!
//! A vCPU's turn, in short: [`Vlapic::sync`], act on the [`Startup`] it returns, [`Vlapic::expire`] if the
//! deadline passed, [`Vlapic::take_nmi`], [`Vlapic::next_injectable`]; once the processor took the vector,
//! [`Vlapic::ack`]. After an exit, [`Vlapic::observe_v_tpr`]. Before sleeping, announce it,
//! then test [`VlapicShared::has_outstanding`].
//!
//! # Registers
//! APM vol. 2, "APIC Registers" and "x2APIC Register Address Space". The page has the register at 16 times
//! the number, the MSRs at 0x800 plus the number.
//!
//! | number  | register          | page | MSR | here                                                       |
//! |---------|-------------------|------|-----|------------------------------------------------------------|
//! | 02      | ID                | ro   | ro  | constant; writes to the page are dropped                   |
//! | 03      | version           | ro   | ro  | 0x50010: six LVT entries, no extended space, no directed EOI |
//! | 08      | TPR               | rw   | rw  | CR8 is its upper half                                      |
//! | 09      | APR               | ro   | #GP | SDM's formula                                              |
//! | 0A      | PPR               | ro   | ro  |                                                            |
//! | 0B      | EOI               | wo   | wo  | page reads 0; a nonzero WRMSR is #GP                       |
//! | 0C      | remote read       | ro   | #GP | 0: remote reads are never sent                             |
//! | 0D      | LDR               | rw   | ro  | x2APIC: follows from the id                                |
//! | 0E      | DFR               | rw   | #GP | flat and cluster; the reserved models match nothing        |
//! | 0F      | SVR               | rw   | rw  | vector, enable; focus bit kept, without meaning            |
//! | 10-17   | ISR               | ro   | ro  |                                                            |
//! | 18-1F   | TMR               | ro   | ro  | level: I/O APIC and MSI requests only                      |
//! | 20-27   | IRR               | ro   | ro  | what others posted shows after the next sync               |
//! | 28      | ESR               | rw   | rw  | bits 5, 6 and (page) 7; a write latches; a nonzero WRMSR is #GP |
//! | 2F      | LVT CMCI          | none | #GP | Intel's; not offered                                       |
//! | 30      | ICR               | rw   | rw  | never busy; SMI, ExtINT and remote read are dropped        |
//! | 31      | ICR, high         | rw   | #GP |                                                            |
//! | 32      | LVT timer         | rw   | rw  | one-shot, periodic, TSC-deadline if offered                |
//! | 33, 34  | LVT thermal, perf | rw   | rw  | delivered when [`Vlapic::fire`] is called                  |
//! | 35, 36  | LVT LINT0, LINT1  | rw   | rw  | as edges; level-triggered pins are not modelled            |
//! | 37      | LVT error         | rw   | rw  |                                                            |
//! | 38      | initial count     | rw   | rw  | ticks of 1 ns ([`TIMER_HZ`]), before the divider           |
//! | 39      | current count     | ro   | ro  | computed                                                   |
//! | 3E      | divide            | rw   | rw  |                                                            |
//! | 3F      | self IPI          | none | wo  |                                                            |
//! | 40-53   | AMD's extended    | none | #GP | not offered (version bit 31 clear)                         |
//!
//! *none*: reads 0, writes are dropped, ESR bit 7. Reserved bits: dropped by the page, #GP by the MSRs.
//!
//! Beyond that: writes of [`MSR_APIC_BASE`] leave the BSC bit alone; a disabled APIC forgets its registers;
//! periodic timers faster than [`MIN_PERIOD_NS`] are slowed to that; lowest-priority messages go by the
//! priority that receivers published when they last entered the guest.
#![forbid(unsafe_code)]

mod access;
mod base;
mod dest;
mod icr;
mod lapic;
mod lvt;
mod reg;
mod shared;
mod timer;
mod vectors;

pub use access::{Effect, Gp};
pub use dest::{Addressing, Destination, Mode, resolve, x2apic_logical_id};
pub use icr::{DeliveryMode, Ipi, Shorthand};
pub use lapic::{Config, Injectable, Vlapic};
pub use lvt::Lvt;
pub use reg::{MSR_APIC_BASE, MSR_TSC_DEADLINE, MSR_X2APIC_FIRST, MSR_X2APIC_LAST, Reg, owns_msr};
pub use shared::{Startup, VlapicShared};
pub use timer::{Deadline, MIN_PERIOD_NS, TIMER_HZ, TimeSource};
pub use vectors::VectorSet;

#[cfg(test)]
mod tests;
