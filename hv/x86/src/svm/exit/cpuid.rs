//! CPUID.

use super::Tier1;
use crate::decode::{Gprs, Insn};
use crate::guest::stats;
use crate::svm::run::Run;

/// Answers from the domain's table.
#[inline]
pub fn handle(run: &mut Run<'_>) -> Tier1 {
    let Ok(len) = run.length(Insn::Cpuid) else { return Tier1::Again };
    let leaf = run.state.cur().save.rax as u32;
    let subleaf = run.state.gprs.regs[Gprs::RCX] as u32;
    let state = run.state.cpuid_state();
    let found = run.vcpu.domain().arch.cpuid.find(leaf, subleaf, &state);
    let [eax, ebx, ecx, edx] =
        found.unwrap_or_else(|| stats::cpuid(run.vcpu.domain(), leaf, subleaf).unwrap_or_default());
    run.state.cur_mut().save.rax = eax.into();
    run.state.gprs.regs[Gprs::RBX] = ebx.into();
    run.state.gprs.regs[Gprs::RCX] = ecx.into();
    run.state.gprs.regs[Gprs::RDX] = edx.into();
    run.state.advance(len);
    Tier1::Again
}
