//! The CPU itself: instructions, control registers, descriptors, stacks, per-CPU data.

pub mod desc;
pub mod instr;
pub mod msr;
pub mod percpu;
pub mod stack;
