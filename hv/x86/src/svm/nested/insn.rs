//! The SVM instructions and MSRs, as L1 executes them.

use super::enter::vmrun;
use crate::decode::{self, CodeSize, Gprs, Insn};
use crate::guest::arch;
use crate::svm::exit::Tier1;
use crate::svm::run::{Next, Run};
use crate::svm::vcpu::VcpuState;
use crate::svm::{entry, exit, switch};
use addr::Gpa;
use vsvm::insn::{self, Context, Fault};
use vsvm::layout::{Event, ExitCode};

/// The instruction that an exit code announces.
fn named(code: ExitCode) -> Option<(insn::Insn, Insn)> {
    Some(match code {
        ExitCode::VMRUN => (insn::Insn::Vmrun, Insn::Vmrun),
        ExitCode::VMLOAD => (insn::Insn::Vmload, Insn::Vmload),
        ExitCode::VMSAVE => (insn::Insn::Vmsave, Insn::Vmsave),
        ExitCode::STGI => (insn::Insn::Stgi, Insn::Stgi),
        ExitCode::CLGI => (insn::Insn::Clgi, Insn::Clgi),
        ExitCode::INVLPGA => (insn::Insn::Invlpga, Insn::Invlpga),
        ExitCode::SKINIT => (insn::Insn::Skinit, Insn::Skinit),
        _ => return None,
    })
}

/// rAX, cut to the address size of the present mode.
fn operand(run: &Run<'_>) -> u64 {
    let vmcb = run.state.cur();
    match VcpuState::code_size(vmcb) {
        CodeSize::Bits64 => vmcb.save.rax,
        CodeSize::Bits32 => vmcb.save.rax & 0xffff_ffff,
        CodeSize::Bits16 => vmcb.save.rax & 0xffff,
    }
}

/// First tier: the instructions that every entry to L2 and exit from it needs.
#[inline]
pub fn fast_l1(run: &mut Run<'_>, code: ExitCode) -> Tier1 {
    let Some((pure, decoded)) = named(code) else { return Tier1::Slow };
    if run.state.nested.is_none() {
        return Tier1::Slow;
    }
    let rax = operand(run);
    if let Err(fault) = allowed(run, pure, rax) {
        raise(run, fault);
        return Tier1::Again;
    }
    let Ok(len) = run.length(decoded) else { return Tier1::Again };
    match pure {
        insn::Insn::Vmrun => return vmrun(run, Gpa::new(rax), len),
        insn::Insn::Vmload | insn::Insn::Vmsave => {
            let memory = &run.vcpu.domain().memory;
            match run.state.nested.as_deref_mut().and_then(|n| n.pages.get(memory, rax)) {
                Some(page) if pure == insn::Insn::Vmload => switch::forward_vmload(page),
                Some(page) => switch::forward_vmsave(page),
                None => {
                    run.state.inject_gp();
                    return Tier1::Again;
                }
            }
        }
        insn::Insn::Stgi | insn::Insn::Clgi => {
            run.state.set_gif(pure == insn::Insn::Stgi);
            run.state.advance(len);
            if run.state.init_held {
                return Tier1::Done;
            }
            let callback = arch::callback_vector(run.vcpu);
            run.state.prepare_injection(callback);
            return Tier1::Again;
        }
        _ => return Tier1::Slow,
    }
    run.state.advance(len);
    Tier1::Again
}

/// The SVM instruction that the running level has met a #GP(0) at: the code of its own exit.
///
/// It need not be the level's fault: with SVME clear it is #UD, and a processor may refuse an address that it keeps
/// for itself before it looks at intercepts (CPUID 8000_000A EDX bit 28 is clear then).
pub(super) fn refused(run: &Run<'_>) -> Option<ExitCode> {
    const SVM: [(ExitCode, Insn); 7] = [
        (ExitCode::VMRUN, Insn::Vmrun),
        (ExitCode::VMLOAD, Insn::Vmload),
        (ExitCode::VMSAVE, Insn::Vmsave),
        (ExitCode::STGI, Insn::Stgi),
        (ExitCode::CLGI, Insn::Clgi),
        (ExitCode::INVLPGA, Insn::Invlpga),
        (ExitCode::SKINIT, Insn::Skinit),
    ];
    let vmcb = run.state.cur();
    // With an error code, or on the way to a handler, it was not the instruction that was refused.
    if vmcb.control.exit_info_1 != 0 || vmcb.control.exit_int_info & Event::VALID != 0 {
        return None;
    }
    let size = VcpuState::code_size(vmcb);
    let fetched = run.fetch().ok()?;
    let met = |(_, insn): &&(ExitCode, Insn)| decode::length(*insn, fetched.bytes(), size).is_ok();
    SVM.iter().find(met).map(|(code, _)| *code)
}

/// A #GP of L1, first tier: an SVM instruction's is decided as its exit would be, all others are L1's.
#[cold]
pub fn fast_gp(run: &mut Run<'_>) -> Tier1 {
    match refused(run) {
        Some(code @ (ExitCode::INVLPGA | ExitCode::SKINIT)) => match named(code) {
            Some((pure, _)) => {
                let fault = allowed(run, pure, operand(run)).err();
                raise(run, fault.unwrap_or(Fault::GeneralProtection));
                Tier1::Again
            }
            None => Tier1::Slow,
        },
        Some(code) => fast_l1(run, code),
        None => Tier1::Slow,
    }
}

/// Whether L2 may execute the instruction of `code`, so that a #GP at it stands for its exit.
pub(super) fn l2_may(run: &Run<'_>, code: ExitCode) -> bool {
    let Some(nested) = run.vcpu.domain().arch.nested.as_ref() else { return false };
    let vmcb = run.state.cur();
    let save = &vmcb.save;
    let rax = match VcpuState::code_size(vmcb) {
        CodeSize::Bits64 => save.rax,
        CodeSize::Bits32 => save.rax & 0xffff_ffff,
        CodeSize::Bits16 => save.rax & 0xffff,
    };
    let context = Context { efer: save.efer, cr0: save.cr0, rflags: save.rflags, cpl: save.cpl, rax };
    named(code).is_some_and(|(pure, _)| insn::check(pure, &context, &nested.caps).is_ok())
}

fn allowed(run: &Run<'_>, insn: insn::Insn, rax: u64) -> Result<(), Fault> {
    let Some(nested) = run.vcpu.domain().arch.nested.as_ref() else { return Err(Fault::InvalidOpcode) };
    let save = &run.state.cur().save;
    let context = Context { efer: exit::efer(run), cr0: save.cr0, rflags: save.rflags, cpl: save.cpl, rax };
    insn::check(insn, &context, &nested.caps)
}

fn raise(run: &mut Run<'_>, fault: Fault) {
    match fault {
        Fault::InvalidOpcode => run.state.inject_ud(),
        Fault::GeneralProtection => run.state.inject_gp(),
    }
}

/// Second tier: what is left, and every SVM instruction of a domain without nested virtualization.
pub fn instruction(run: &mut Run<'_>, code: ExitCode) -> Next {
    let Some((pure, decoded)) = named(code) else { return Next::Resume };
    let rax = operand(run);
    if let Err(fault) = allowed(run, pure, rax) {
        raise(run, fault);
        return Next::Resume;
    }
    let Ok(len) = run.length(decoded) else { return Next::Resume };
    if pure == insn::Insn::Invlpga {
        let asid12 = run.state.gprs.regs[Gprs::RCX] as u32;
        let pcpu = run.ctx.cpu.index;
        let hardware = match run.state.nested.as_deref_mut() {
            Some(nested) if asid12 != 0 => nested.asids.invlpga(asid12, &run.ctx.pool, pcpu),
            _ => run.state.tag.current(&run.ctx.pool, pcpu),
        };
        if let Some(asid) = hardware {
            entry::invlpga(rax, asid);
        }
    }
    run.state.advance(len);
    Next::Resume
}

/// Reads an SVM MSR. `None`: #GP.
pub fn rdmsr(run: &Run<'_>, number: u32) -> Option<u64> {
    let caps = &run.vcpu.domain().arch.nested.as_ref()?.caps;
    run.state.nested.as_ref()?.machine.msrs.read(number, caps)?.ok()
}

/// Writes an SVM MSR. `None`: #GP.
pub fn wrmsr(run: &mut Run<'_>, number: u32, value: u64) -> Option<()> {
    let efer = exit::efer(run);
    let domain = run.vcpu.domain();
    let caps = &domain.arch.nested.as_ref()?.caps;
    run.state.nested.as_mut()?.machine.msrs.write(number, value, efer, caps)?.ok()
}
