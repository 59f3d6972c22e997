//! RDMSR and WRMSR, by the policy table.

use super::Tier1;
use crate::cpu::instr;
use crate::decode::{Gprs, Insn};
use crate::guest::{arch, hypercall_page};
use crate::hw::mitigation;
use crate::policy::msr::{self, MsrClass, OnWrite, check};
use crate::svm::nested;
use crate::svm::run::{Next, Run};
use crate::vlapic::{MSR_APIC_BASE, MSR_TSC_DEADLINE, MSR_X2APIC_FIRST};
use vsvm::asid::Flush;
use vsvm::layout::{Clean, reg};

/// The access causes #GP(0).
struct Gp;

impl From<check::Gp> for Gp {
    fn from(_: check::Gp) -> Self {
        Gp
    }
}
impl From<crate::vlapic::Gp> for Gp {
    fn from(_: crate::vlapic::Gp) -> Self {
        Gp
    }
}

/// What a paravirtual guest does all the time: end an interrupt, set its timer, send an IPI.
#[inline]
pub fn fast(run: &mut Run<'_>) -> Tier1 {
    let number = run.state.gprs.regs[Gprs::RCX] as u32;
    match msr::classify(number) {
        MsrClass::Lapic(_) | MsrClass::TscDeadline => {}
        _ => return Tier1::Slow,
    }
    handle(run);
    if !run.in_l2() {
        let callback = arch::callback_vector(run.vcpu);
        run.state.prepare_injection(callback);
        return Tier1::Again;
    }
    Tier1::Done
}

/// Handles one RDMSR or WRMSR of the level that runs.
pub fn handle(run: &mut Run<'_>) -> Next {
    let write = run.state.cur().control.exit_info_1 & 1 != 0;
    let number = run.state.gprs.regs[Gprs::RCX] as u32;
    let Ok(len) = run.length(if write { Insn::Wrmsr } else { Insn::Rdmsr }) else { return Next::Resume };
    let result = if write {
        let value = run.edx_eax();
        wrmsr(run, number, value)
    } else {
        rdmsr(run, number).map(|value| run.set_edx_eax(value))
    };
    match result {
        Ok(()) => run.state.advance(len),
        Err(Gp) => run.state.inject_gp(),
    }
    if run.vcpu.may_run() { Next::Resume } else { Next::Stop }
}

fn rdmsr(run: &mut Run<'_>, number: u32) -> Result<u64, Gp> {
    let time = arch::guest_time(run.state);
    let state = &mut *run.state;
    Ok(match msr::classify(number) {
        MsrClass::Const { value, .. } => value,
        MsrClass::Software(slot) => state.msrs.soft.read(slot),
        MsrClass::Lapic(register) => state.lapic.rdmsr(MSR_X2APIC_FIRST + u32::from(register), &time)?,
        MsrClass::ApicBase => state.lapic.rdmsr(MSR_APIC_BASE, &time)?,
        MsrClass::TscDeadline => state.lapic.rdmsr(MSR_TSC_DEADLINE, &time)?,
        MsrClass::Efer => efer(run),
        MsrClass::Pat => state.cur().save.g_pat,
        MsrClass::Tsc => instr::rdtsc().wrapping_add(state.cur().control.tsc_offset),
        MsrClass::TscAdjust => state.msrs.tsc_adjust,
        MsrClass::TscAux => state.msrs.tsc_aux,
        // Last-branch recording is not offered: the register holds nothing.
        MsrClass::DebugCtl | MsrClass::Xss => 0,
        MsrClass::PatchLevel => arch::host().patch_level,
        MsrClass::XenHypercall => 0,
        MsrClass::Svm(_) => nested::rdmsr(run, number).ok_or(Gp)?,
        MsrClass::PassThrough | MsrClass::WriteIgnored | MsrClass::PredCmd => return Err(Gp),
        MsrClass::SpecCtrl if mitigation::plan().guest.spec_ctrl != 0 => *state.spec_ctrl(run.ctx.guards),
        MsrClass::SpecCtrl | MsrClass::VirtSpecCtrl | MsrClass::Fault => return fault(run, number, None),
    })
}

fn wrmsr(run: &mut Run<'_>, number: u32, value: u64) -> Result<(), Gp> {
    let time = arch::guest_time(run.state);
    let phys_bits = run.vcpu.domain().arch.phys_bits;
    let state = &mut *run.state;
    match msr::classify(number) {
        MsrClass::Const { write: OnWrite::Ignore, .. } | MsrClass::WriteIgnored => {}
        MsrClass::Const { .. } | MsrClass::PassThrough | MsrClass::PatchLevel => return Err(Gp),
        MsrClass::Software(slot) => state.msrs.soft.write(slot, value, phys_bits)?,
        MsrClass::Lapic(register) => {
            let effect = state.lapic.wrmsr(MSR_X2APIC_FIRST + u32::from(register), value, &time)?;
            run.apply_lapic(effect);
        }
        MsrClass::ApicBase => {
            let effect = state.lapic.wrmsr(MSR_APIC_BASE, value, &time)?;
            run.apply_lapic(effect);
        }
        MsrClass::TscDeadline => {
            let effect = state.lapic.wrmsr(MSR_TSC_DEADLINE, value, &time)?;
            run.apply_lapic(effect);
        }
        MsrClass::Efer => write_efer(run, value)?,
        MsrClass::Pat => {
            let value = check::pat(value)?;
            let separate = state.nested.as_ref().is_some_and(|nested| nested.has_own_pat());
            let vmcb = state.cur_mut();
            vmcb.save.g_pat = value;
            vmcb.control.mark_dirty(Clean::NP);
            if !separate {
                state.vmcb01.save.g_pat = value;
                state.vmcb01.control.mark_dirty(Clean::NP);
            }
        }
        MsrClass::Tsc => {
            let delta = value.wrapping_sub(instr::rdtsc().wrapping_add(state.vmcb01.control.tsc_offset));
            move_tsc(run, delta);
        }
        MsrClass::TscAdjust => {
            let delta = value.wrapping_sub(state.msrs.tsc_adjust);
            move_tsc(run, delta);
        }
        MsrClass::TscAux => {
            state.msrs.tsc_aux = check::tsc_aux(value)?;
            state.load_tsc_aux();
        }
        MsrClass::DebugCtl => {
            check::debugctl(value)?;
        }
        MsrClass::Xss => {
            check::xss(value, 0)?;
        }
        MsrClass::XenHypercall => {
            check::hypercall_page(value)?;
            hypercall_page::install(run, value)?;
        }
        MsrClass::Svm(_) => nested::wrmsr(run, number, value).ok_or(Gp)?,
        MsrClass::SpecCtrl if mitigation::plan().guest.spec_ctrl != 0 => {
            *state.spec_ctrl(run.ctx.guards) = check::spec_ctrl(value, mitigation::plan().guest.spec_ctrl)?;
        }
        MsrClass::PredCmd if mitigation::plan().guest.pred_cmd != 0 => {
            // The stronger barrier serves for either.
            if check::pred_cmd(value, mitigation::plan().guest.pred_cmd)? != 0 {
                mitigation::ibpb();
            }
        }
        MsrClass::SpecCtrl | MsrClass::PredCmd | MsrClass::VirtSpecCtrl | MsrClass::Fault => {
            fault(run, number, Some(value))?;
        }
    }
    Ok(())
}

impl From<hypercall_page::NotRam> for Gp {
    fn from(_: hypercall_page::NotRam) -> Self {
        Gp
    }
}

fn fault(run: &mut Run<'_>, number: u32, write: Option<u64>) -> Result<u64, Gp> {
    let name = run.vcpu.domain().name();
    match write {
        Some(value) => {
            log::debug!(target: crate::GUEST, "domain {name}: #GP for WRMSR {number:#x} = {value:#x}")
        }
        None => log::debug!(target: crate::GUEST, "domain {name}: #GP for RDMSR {number:#x}"),
    }
    Err(Gp)
}

/// EFER as the guest sees it.
pub fn efer(run: &Run<'_>) -> u64 {
    let value = run.state.cur().save.efer & !reg::EFER_SVME;
    let svme = if run.in_l2() { true } else { run.state.msrs.svme };
    value | if svme { reg::EFER_SVME } else { 0 }
}

fn write_efer(run: &mut Run<'_>, value: u64) -> Result<(), Gp> {
    let domain = run.vcpu.domain();
    let paging = run.state.cur().save.cr0 & reg::CR0_PG != 0;
    let allowed = domain.arch.efer_allowed;
    let allowed = run.state.nested.as_ref().map_or(allowed, |n| n.machine.msrs.efer_allowed(allowed));
    let new = check::efer(value, efer(run), paging, allowed)?;
    let in_l2 = run.in_l2();
    if !in_l2 {
        let on = new & reg::EFER_SVME != 0;
        if run.state.msrs.svme
            && !on
            && let Some(nested) = &mut run.state.nested
        {
            nested.forget_all(&domain.memory);
        }
        run.state.set_svme(on);
    } else if new & reg::EFER_SVME == 0 {
        // The manual leaves open what becomes of an L2 that turns off SVM beneath itself.
        domain.crash(format_args!("L2 cleared EFER.SVME, which L1 does not intercept"));
        return Ok(());
    }
    let old = run.state.cur().save.efer;
    let vmcb = run.state.cur_mut();
    vmcb.save.efer = new | reg::EFER_SVME;
    vmcb.control.mark_dirty(Clean::CRX);
    if (old ^ new) & reg::EFER_NXE != 0 {
        run.owe_flush(Flush::All);
    }
    Ok(())
}

/// The guest moves its TSC: only the offset changes, on this vCPU alone.
fn move_tsc(run: &mut Run<'_>, delta: u64) {
    let state = &mut *run.state;
    state.msrs.tsc_adjust = state.msrs.tsc_adjust.wrapping_add(delta);
    state.vmcb01.control.tsc_offset = state.vmcb01.control.tsc_offset.wrapping_add(delta);
    state.vmcb01.control.mark_dirty(Clean::I);
    run.vcpu.shared.tsc_offset.store(state.vmcb01.control.tsc_offset, core::sync::atomic::Ordering::Relaxed);
    run.vcpu.update_time();
    run.rearm_lapic_timer();
}
