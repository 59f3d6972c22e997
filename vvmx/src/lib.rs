//! Nested VMX as a pure state machine: check, merge, route, sync, reflect.
//!
//! Plain data in, plain data out: no hardware, no globals, no allocation, no locks. Whoever owns the
//! hardware (the x86 back end) decodes operands, reaches L1's memory, executes VMREAD and VMWRITE on the
//! processor's own VMCSs, and drives the machine:
//!
//! ```text
//! L1 executes a VMX     insn::check → operand::linear → state::Nested::{vmxon, vmclear, vmptrld, vmread, …}
//! instruction           → Nested::conclude (flags)
//! VMLAUNCH, VMRESUME    run::enter ──VMfail──→ conclude
//!                                  ──failed entry──→ reflect::record_failure, load_host
//!                                  → bitmap::MergedMap → merge::merge → run vmcs02
//! L2 exits              route::route → L0: handle it as L2's, run vmcs02 again
//!                                    → L1: run::leave = reflect::{sync, record, load_host} → run vmcs01
//! an event for L1       events::next
//! ```
//!
//! Words: vmcs01 runs L1, vmcs12 is what L1 wrote for L2, vmcs02 is what really runs L2.
//!
//! The rules that every module keeps: what L1 can write is read once per entry, the copy is checked, the copy
//! is used ([`vmcs12::Checked12`] is the proof); all checks come before anything changes; vmcs02 is composed
//! from allow-lists; whatever exit nobody claims is L1's.
#![no_std]
#![forbid(unsafe_code)]

pub mod bitmap;
pub mod bits;
pub mod caps;
pub mod check;
pub mod code;
pub mod ept;
pub mod events;
pub mod field;
pub mod insn;
pub mod merge;
pub mod msr_list;
pub mod operand;
pub mod reflect;
pub mod route;
pub mod run;
pub mod shadowing;
pub mod state;
pub mod timer;
pub mod vmcs12;
pub mod vpid;

#[cfg(test)]
mod tests;
