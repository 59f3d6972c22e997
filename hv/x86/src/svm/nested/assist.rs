//! What L1 is promised with an exit and this processor may not give: next RIP, decode assists.
//!
//! Source: APM vol. 2, "Decode Assists" and "State Saved on Exit" (nRIP).
// UNSAFETY: reads the bases of FS and GS, which are in the processor.
#![allow(unsafe_code)]

use crate::cpu::instr;
use crate::decode::{self, CodeSize, CrAccess, Insn, Segment};
use crate::svm::Features;
use crate::svm::run::Run;
use crate::svm::vcpu::VcpuState;
use vsvm::layout::ExitCode;
use vsvm::route::Exit;

/// Information 1 of MOV to or from a control register: it was a MOV, and of which register.
const IS_MOV: u64 = 1 << 63;
/// Error code bit of an instruction fetch.
const FETCH: u64 = 1 << 4;

/// Instructions whose exits have a next RIP, if the exit itself says which one it was. Accesses to control
/// registers have several forms and are not among them.
fn instruction_of(exit: &Exit) -> Option<Insn> {
    Some(match exit.code {
        ExitCode(0x20..0x40) => Insn::MovDr,
        ExitCode::IDTR_READ => Insn::Sidt,
        ExitCode::GDTR_READ => Insn::Sgdt,
        ExitCode::LDTR_READ => Insn::Sldt,
        ExitCode::TR_READ => Insn::Str,
        ExitCode::IDTR_WRITE => Insn::Lidt,
        ExitCode::GDTR_WRITE => Insn::Lgdt,
        ExitCode::LDTR_WRITE => Insn::Lldt,
        ExitCode::TR_WRITE => Insn::Ltr,
        ExitCode::RDTSC => Insn::Rdtsc,
        ExitCode::RDPMC => Insn::Rdpmc,
        ExitCode::PUSHF => Insn::Pushf,
        ExitCode::POPF => Insn::Popf,
        ExitCode::CPUID => Insn::Cpuid,
        ExitCode::RSM => Insn::Rsm,
        ExitCode::IRET => Insn::Iret,
        ExitCode::SWINT => Insn::IntN,
        ExitCode::INVD => Insn::Invd,
        ExitCode::PAUSE => Insn::Pause,
        ExitCode::HLT => Insn::Hlt,
        ExitCode::INVLPG => Insn::Invlpg,
        ExitCode::INVLPGA => Insn::Invlpga,
        ExitCode::MSR if exit.info1 & 1 != 0 => Insn::Wrmsr,
        ExitCode::MSR => Insn::Rdmsr,
        ExitCode::VMRUN => Insn::Vmrun,
        ExitCode::VMMCALL => Insn::Vmmcall,
        ExitCode::VMLOAD => Insn::Vmload,
        ExitCode::VMSAVE => Insn::Vmsave,
        ExitCode::STGI => Insn::Stgi,
        ExitCode::CLGI => Insn::Clgi,
        ExitCode::SKINIT => Insn::Skinit,
        ExitCode::RDTSCP => Insn::Rdtscp,
        ExitCode::ICEBP => Insn::Icebp,
        ExitCode::WBINVD => Insn::Wbinvd,
        ExitCode::MONITOR => Insn::Monitor,
        ExitCode::MWAIT | ExitCode::MWAIT_CONDITIONAL => Insn::Mwait,
        ExitCode::XSETBV => Insn::Xsetbv,
        ExitCode::RDPRU => Insn::Rdpru,
        ExitCode::INVPCID => Insn::Invpcid,
        // The exceptions that instructions are made for.
        ExitCode(0x43) => Insn::Int3,
        ExitCode(0x44) => Insn::Into,
        _ => return None,
    })
}

/// Completes an exit of an instruction that L1 is going to get.
#[inline]
pub fn complete(run: &mut Run<'_>, exit: &mut Exit) {
    let assisted = run.ctx.features.has(Features::DECODE_ASSISTS);
    if exit.code == ExitCode::IOIO {
        exit.nrip = exit.info2;
        port_access(run, exit, assisted);
    } else if exit.code.0 < 0x20 || exit.code == ExitCode::CR0_SEL_WRITE {
        control_register(run, exit, assisted);
    } else if let Some(insn) = instruction_of(exit) {
        if exit.nrip == 0
            && let Ok(len) = run.length(insn)
        {
            exit.nrip = next_rip(run, len);
        }
        if !assisted {
            operands(run, exit, insn);
        }
    }
    if !assisted {
        let bytes = exit.code == ExitCode::exception(14);
        instruction_bytes(run, bytes && exit.info1 & FETCH == 0);
    }
}

fn next_rip(run: &Run<'_>, len: u8) -> u64 {
    let vmcb = run.state.cur();
    VcpuState::code_size(vmcb).advance(vmcb.save.rip, len)
}

fn control_register(run: &mut Run<'_>, exit: &mut Exit, assisted: bool) {
    if exit.nrip != 0 && assisted {
        return;
    }
    let Ok(fetched) = run.fetch() else { return };
    let Ok(access) = decode::cr_access(fetched.bytes(), VcpuState::code_size(run.state.cur())) else {
        return;
    };
    let (len, info1) = match access {
        CrAccess::Mov(mov) => (mov.len, IS_MOV | mov.gpr.index() as u64),
        CrAccess::Clts { len } | CrAccess::Lmsw { len, .. } | CrAccess::Smsw { len, .. } => (len, 0),
    };
    if exit.nrip == 0 {
        exit.nrip = next_rip(run, len);
    }
    if !assisted {
        exit.info1 = info1;
    }
}

/// Address size and segment of INS and OUTS, which QEMU's emulation leaves out (APM vol. 2, "IN and OUT Behavior").
fn port_access(run: &Run<'_>, exit: &mut Exit, assisted: bool) {
    const IN: u64 = 1 << 0;
    const STRING: u64 = 1 << 2;
    const SIZES: u64 = 7 << 7;
    const SEGMENT: u32 = 10;
    if exit.info1 & STRING == 0 || exit.info1 & SIZES != 0 && assisted {
        return;
    }
    let Ok(fetched) = run.fetch() else { return };
    let size = VcpuState::code_size(run.state.cur());
    let Ok(operand) = decode::string_operand(fetched.bytes(), size) else { return };
    if exit.info1 & SIZES == 0 {
        exit.info1 |= match operand.address_size {
            CodeSize::Bits16 => 1 << 7,
            CodeSize::Bits32 => 1 << 8,
            CodeSize::Bits64 => 1 << 9,
        };
    }
    if !assisted && exit.info1 & IN == 0 {
        exit.info1 |= (operand.segment as u64) << SEGMENT;
    }
}

/// What information 1 tells of the operand.
fn operands(run: &mut Run<'_>, exit: &mut Exit, insn: Insn) {
    if !matches!(insn, Insn::MovDr | Insn::IntN | Insn::Invlpg) {
        return;
    }
    let Ok(fetched) = run.fetch() else { return };
    let (bytes, size) = (fetched.bytes(), VcpuState::code_size(run.state.cur()));
    let info1 = match insn {
        Insn::MovDr => decode::mov_dr(bytes, size).ok().map(|mov| mov.gpr.index() as u64),
        // The vector is the last byte.
        Insn::IntN => decode::length(insn, bytes, size)
            .ok()
            .and_then(|len| bytes.get(usize::from(len).checked_sub(1)?))
            .map(|&vector| vector.into()),
        _ => {
            run.sync_gprs_in();
            let save = &run.state.cur().save;
            decode::memory_operand(insn, bytes, size, save.rip, &run.state.gprs, |segment| match segment {
                Segment::Es => save.es.base,
                Segment::Cs => save.cs.base,
                Segment::Ss => save.ss.base,
                Segment::Ds => save.ds.base,
                Segment::Fs => live_base(x86::msr::IA32_FS_BASE),
                Segment::Gs => live_base(x86::msr::IA32_GS_BASE),
            })
            .ok()
            .map(|operand| operand.linear)
        }
    };
    if let Some(info1) = info1 {
        exit.info1 = info1;
    }
}

/// FS and GS are L2's in the first tier, where instructions' exits are given to L1.
fn live_base(msr: u32) -> u64 {
    // SAFETY: every processor in long mode has both registers.
    unsafe { instr::rdmsr(msr) }
}

/// The bytes of the instruction that met a page fault go into vmcb02, where a processor with decode assists
/// puts them; for any other exit there are none.
pub fn instruction_bytes(run: &mut Run<'_>, wanted: bool) {
    // Fetched only for an L1 that was promised them: it takes a walk through three translations.
    let caps = run.vcpu.domain().arch.nested.as_ref().map(|n| n.caps);
    if !caps.is_some_and(|caps| caps.has(vsvm::caps::Features::DECODE_ASSISTS)) {
        return;
    }
    if run.ctx.features.has(Features::DECODE_ASSISTS) {
        return;
    }
    let fetched = if wanted { run.fetch().ok() } else { None };
    let bytes = fetched.as_ref().map_or(&[][..], |fetched| fetched.bytes());
    let control = &mut run.state.cur_mut().control;
    control.insn_len = bytes.len() as u8;
    control.insn_bytes = [0; 15];
    for (to, from) in control.insn_bytes.iter_mut().zip(bytes) {
        *to = *from;
    }
}

/// Whether a nested page fault with this error code comes with instruction bytes.
pub fn has_bytes(info1: u64) -> bool {
    info1 & FETCH == 0
}
