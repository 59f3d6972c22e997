//! Nested SVM as a pure state machine: check, merge, route, sync, reflect.
//!
//! Plain data in, plain data out: no hardware, no globals, no allocation, no locks. Whoever owns the
//! hardware (the x86 back end) pins the page of the VMCB that L1 wrote (vmcb12) and drives the machine:
//!
//! ```text
//! L1 executes VMRUN   insn::check → state::Nested::pick → vmcb12::Cached12::load ──Err→ reflect::refuse
//!                     → asid::AsidMap::select → perm::MergedMap::refresh → merge::merge → run vmcb02
//! L2 exits            route::route → L0: handle it as L2's, run vmcb02 again
//!                                  → L1: reflect::reflect → reflect::L1Resume::apply → run vmcb01
//! an event for L1     events::next
//! ```
//!
//! Words: vmcb01 runs L1, vmcb12 is what L1 wrote for L2, vmcb02 is what really runs L2.
//!
//! The rules that every module keeps: an L1-writable word is read once per entry, the copy is checked, the
//! copy is used ([`vmcb12::Checked12`] is the proof); vmcb02 is composed from allow-lists, never copied and
//! patched; whatever exit nobody claims is L1's.
#![no_std]
#![forbid(unsafe_code)]

pub mod asid;
pub mod caps;
pub mod check;
pub mod events;
pub mod insn;
pub mod layout;
pub mod merge;
pub mod msr;
pub mod perm;
pub mod reflect;
pub mod route;
pub mod state;
pub mod vmcb12;

#[cfg(test)]
mod tests;
