//! Speculation controls on the hardware: what [`MitigationPlan`] says, applied to each CPU.
//!
//! What the world switch does at each exit and entry is not here but there; here is what is set once per
//! CPU, and the barrier between guests.
// UNSAFETY: model-specific registers, and calls that only fill the return stack.
#![allow(unsafe_code)]

use crate::cpu::{instr, msr, percpu};
use crate::policy::mitigation::{CpuFacts, GuestSpecCtrl, MitigationPlan, Options};
use crate::trap::probe;
use alloc::string::String;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use spin::Once;

/// Speculation control (APM vol. 2, "Speculation Control MSRs").
pub const SPEC_CTRL: u32 = 0x48;
/// Prediction command.
pub const PRED_CMD: u32 = 0x49;
/// Decode configuration.
const DE_CFG: u32 = 0xc001_1029;
/// DE_CFG: LFENCE waits for all earlier instructions. Without it RDTSC may run ahead of LFENCE (AMD,
/// "Software Techniques for Managing Speculation on AMD Processors", G-2).
const DE_CFG_LFENCE: u64 = 1 << 1;
/// Branch predictor configuration.
const BP_CFG: u32 = 0xc001_102e;
/// BP_CFG: a guest's training does not reach the host (AMD, "Technical Update regarding Speculative Return
/// Stack Overflow").
const BP_CFG_SPEC_REDUCE: u64 = 1 << 4;
/// EFER.AIBRSE.
const EFER_AIBRSE: u64 = 1 << 21;

static PLAN: Once<MitigationPlan> = Once::new();
/// The value for PRED_CMD, 0 = never.
static BARRIER: AtomicU64 = AtomicU64::new(0);
static ON_SWITCH: AtomicBool = AtomicBool::new(false);
static ON_REFLECT: AtomicBool = AtomicBool::new(false);
static FILL_AFTER: AtomicBool = AtomicBool::new(false);

/// One bit, or field, that a CPU should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setting {
    name: &'static str,
    msr: u32,
    mask: u64,
    value: u64,
}

/// What `plan` asks of each CPU. `lfence_serialises`: CPUID 8000_0021 EAX bit 2, nothing to set.
fn settings(
    plan: &MitigationPlan,
    amd: bool,
    lfence_serialises: bool,
) -> impl Iterator<Item = Setting> + use<> {
    let bit = |on: bool, name, msr, mask| on.then_some(Setting { name, msr, mask, value: mask });
    // The register exists if guests have it or we want something of it.
    let spec_ctrl = plan.guest_spec_ctrl != GuestSpecCtrl::None || plan.host_spec_ctrl != 0;
    let host = plan.host_spec_ctrl;
    [
        bit(amd && !lfence_serialises, "DE_CFG (serialising LFENCE)", DE_CFG, DE_CFG_LFENCE),
        bit(plan.auto_ibrs, "EFER.AIBRSE", msr::IA32_EFER, EFER_AIBRSE),
        spec_ctrl.then_some(Setting { name: "SPEC_CTRL", msr: SPEC_CTRL, mask: u64::MAX, value: host }),
        bit(plan.bp_spec_reduce, "BP_CFG.BpSpecReduce", BP_CFG, BP_CFG_SPEC_REDUCE),
    ]
    .into_iter()
    .flatten()
}

/// CPUID's facts about this CPU.
pub fn facts() -> CpuFacts {
    let max = instr::cpuid(0x8000_0000, 0)[0];
    // Threads per core, less one (CPUID 8000_001E EBX bits 15:8; APM vol. 3, appendix E), where the leaf
    // exists (8000_0001 ECX bit 22, topology extensions).
    let topology = max >= 0x8000_001e && instr::cpuid(0x8000_0001, 0)[2] & (1 << 22) != 0;
    let smt = topology && instr::cpuid(0x8000_001e, 0)[1] >> 8 & 0xff != 0;
    CpuFacts::from_cpuid(instr::cpuid, smt)
}

/// The plan for this machine and the words of `spec-ctrl=`; those that do nothing are warned about.
pub fn plan_for(words: &[String]) -> MitigationPlan {
    let value = words.join(",");
    let options = Options::parse(&value, |warning| log::warn!("{warning}"));
    MitigationPlan::new(&facts(), &options)
}

/// Takes `plan` as the machine's: the boot log's line, and what [`switch_barrier`] and [`reflect_barrier`]
/// do. Once, on the boot CPU, before [`apply_cpu`].
pub fn init(plan: MitigationPlan) -> &'static MitigationPlan {
    let plan = PLAN.call_once(|| plan);
    log::info!("{plan}");
    BARRIER.store(plan.barrier, Ordering::Relaxed);
    ON_SWITCH.store(plan.ibpb_on_switch && plan.barrier != 0, Ordering::Relaxed);
    ON_REFLECT.store(plan.ibpb_on_reflect && plan.barrier != 0, Ordering::Relaxed);
    FILL_AFTER.store(plan.rsb_after_ibpb, Ordering::Relaxed);
    plan
}

/// The machine's plan; the empty one before [`init`].
pub fn plan() -> MitigationPlan {
    PLAN.get().copied().unwrap_or_default()
}

/// Sets this CPU up as `plan` says, and warns of what the CPU refuses. On each CPU, once, with no guest's
/// SPEC_CTRL loaded.
pub fn apply_cpu(plan: &MitigationPlan) {
    let max = instr::cpuid(0x8000_0000, 0)[0];
    let lfence_serialises = max >= 0x8000_0021 && instr::cpuid(0x8000_0021, 0)[0] & (1 << 2) != 0;
    for setting in settings(plan, facts().amd, lfence_serialises) {
        if let Some(refusal) = apply(setting) {
            log::log!(refusal, "CPU {}: {} cannot be set", percpu::this().index, setting.name);
        }
    }
}

/// Sets one register; the level of the message if that fails.
fn apply(setting: Setting) -> Option<log::Level> {
    // An older CPU, or a hypervisor below, has no DE_CFG: LFENCE is as serialising as it gets.
    let level = if setting.msr == DE_CFG { log::Level::Debug } else { log::Level::Warn };
    let Some(old) = probe::rdmsr(setting.msr) else { return Some(level) };
    let new = old & !setting.mask | setting.value;
    // SAFETY: these bits restrict speculation and change nothing else; a refusal is caught.
    if new != old && !unsafe { probe::wrmsr(setting.msr, new) } {
        return Some(level);
    }
    // Some hypervisors drop a write in silence.
    (probe::rdmsr(setting.msr) != Some(new)).then_some(level)
}

/// The indirect branch prediction barrier, if the CPU has one and the plan does not forbid it.
#[inline]
pub fn ibpb() {
    let barrier = BARRIER.load(Ordering::Relaxed);
    if barrier == 0 {
        return;
    }
    // SAFETY: the plan gives a value only if CPUID announces PRED_CMD and the command; it has no effect but
    // on predictions.
    unsafe { instr::wrmsr(PRED_CMD, barrier) };
    if FILL_AFTER.load(Ordering::Relaxed) {
        fill_return_stack();
    }
}

/// The barrier when another vCPU comes on this CPU; nothing if the plan does not ask for it.
#[inline]
pub fn switch_barrier() {
    if ON_SWITCH.load(Ordering::Relaxed) {
        ibpb();
    }
}

/// The barrier when an exit of L2 is given to L1; nothing if the plan does not ask for it.
#[inline]
pub fn reflect_barrier() {
    if ON_REFLECT.load(Ordering::Relaxed) {
        ibpb();
    }
}

/// Leaves no entry of a guest's in the return stack: 32 calls, whose returns lead nowhere.
pub fn fill_return_stack() {
    // SAFETY: each call's return address is dropped again, so the stack is as before; the loops behind the
    // calls are reached by mispredicted returns only.
    unsafe {
        core::arch::asm!(
            ".rept 32",
            "call 2f",
            "3: pause",
            "lfence",
            "jmp 3b",
            "2:",
            ".endr",
            "add rsp, 32 * 8",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn names(plan: &MitigationPlan, amd: bool, serialising: bool) -> Vec<&'static str> {
        settings(plan, amd, serialising).map(|s| s.name).collect()
    }

    #[test]
    fn an_empty_plan_touches_no_speculation_register() {
        assert!(names(&MitigationPlan::default(), false, false).is_empty());
        assert!(names(&MitigationPlan::default(), true, true).is_empty());
        // But TSC reads must be ordered on every AMD CPU.
        assert_eq!(names(&MitigationPlan::default(), true, false), ["DE_CFG (serialising LFENCE)"]);
    }

    #[test]
    fn each_flag_sets_its_register() {
        let plan = MitigationPlan {
            auto_ibrs: true,
            host_spec_ctrl: 0x85,
            bp_spec_reduce: true,
            ..MitigationPlan::default()
        };
        let all: Vec<_> = settings(&plan, true, true).map(|s| (s.msr, s.mask, s.value)).collect();
        assert_eq!(
            all,
            [(0xc000_0080, 1 << 21, 1 << 21), (0x48, u64::MAX, 0x85), (0xc001_102e, 1 << 4, 1 << 4)]
        );
    }

    #[test]
    fn what_firmware_left_in_spec_ctrl_is_cleared_where_guests_have_it() {
        let plan = MitigationPlan { guest_spec_ctrl: GuestSpecCtrl::Swap, ..MitigationPlan::default() };
        let all: Vec<_> = settings(&plan, true, true).map(|s| (s.msr, s.mask, s.value)).collect();
        assert_eq!(all, [(0x48, u64::MAX, 0)]);
    }

    #[test]
    fn filling_the_return_stack_leaves_the_stack_alone() {
        let before = instr::rsp();
        fill_return_stack();
        assert_eq!(before, instr::rsp());
    }
}
