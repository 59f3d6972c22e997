//! What follows an exit. [`fast`] is the first tier, [`handle`] the second; families have files of their own.

mod cpuid;
mod cr;
pub(super) mod fetch;
mod hypercall;
mod io;
mod msr;
mod npf;

use crate::decode::Insn;
use crate::guest::arch;
use crate::svm::nested;
use crate::svm::run::{Next, Run};
use hv_core::trace::Level;
use vsvm::layout::{Event, ExitCode, Intercept};

pub use fetch::{FetchError, Fetched};
pub use msr::efer;
pub use npf::device;

/// What the first tier made of an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier1 {
    /// Finished; enter again.
    Again,
    /// Finished, but something else must be looked at first.
    Done,
    /// For the second tier.
    Slow,
}

/// A code that the hardware never gives: the first tier has finished the exit.
pub const FINISHED: ExitCode = ExitCode(0xf000_1000);

impl Run<'_> {
    /// Counts an exit.
    #[inline(always)]
    fn count(&self, level: Level, code: ExitCode) {
        self.vcpu.shared.counters.inc(level, arch::counter_of(code));
    }
}

/// First tier: GIF=0, the guest's segments live. `Ok`: enter again; `Err`: the code for [`handle`].
#[inline]
pub fn fast(run: &mut Run<'_>, code: ExitCode) -> Result<(), ExitCode> {
    let tier = if run.in_l2() {
        run.count(Level::L2, code);
        nested::fast_l2(run, code)
    } else {
        run.count(Level::L1, code);
        fast_l1(run, code)
    };
    match tier {
        // A reason to look around that this very exit has posted is not announced by an interrupt.
        Tier1::Again if run.vcpu.pending().is_empty() => Ok(()),
        Tier1::Again | Tier1::Done => Err(FINISHED),
        Tier1::Slow => Err(code),
    }
}

#[inline]
fn fast_l1(run: &mut Run<'_>, code: ExitCode) -> Tier1 {
    match code {
        ExitCode::CPUID => cpuid::handle(run),
        ExitCode::MSR => msr::fast(run),
        ExitCode::VINTR => {
            let callback = arch::callback_vector(run.vcpu);
            run.state.prepare_injection(callback);
            Tier1::Again
        }
        c if c == ExitCode::exception(13) => nested::fast_gp(run),
        ExitCode::VMRUN | ExitCode::VMLOAD | ExitCode::VMSAVE | ExitCode::STGI | ExitCode::CLGI => {
            nested::fast_l1(run, code)
        }
        _ => Tier1::Slow,
    }
}

/// Second tier: interrupts on, the host's segments.
pub fn handle(run: &mut Run<'_>, code: ExitCode) -> Next {
    if code == FINISHED {
        return Next::Resume;
    }
    if run.in_l2() {
        return nested::handle_l2(run, code);
    }
    handle_l1(run, code)
}

/// An exit of L1, or one of L2 that L0 handles as if there were no L1 (`run.view()` is L2's then).
pub fn handle_l1(run: &mut Run<'_>, code: ExitCode) -> Next {
    match code {
        // Taken by now: GIF was set with interrupts on.
        ExitCode::INTR | ExitCode::NMI | ExitCode::SMI | ExitCode::INIT => Next::Resume,
        ExitCode::VINTR => Next::Resume,
        ExitCode::HLT => match run.advance_over(Insn::Hlt) {
            Next::Resume => Next::Halt,
            other => other,
        },
        ExitCode::CPUID => {
            cpuid::handle(run);
            Next::Resume
        }
        ExitCode::MSR => msr::handle(run),
        ExitCode::IOIO => io::handle(run),
        ExitCode::NPF => npf::handle(run),
        ExitCode::VMMCALL => hypercall::handle(run),
        ExitCode::WBINVD => run.advance_over(Insn::Wbinvd),
        ExitCode::INVD => run.advance_over(Insn::Invd),
        ExitCode::PAUSE => match run.advance_over(Insn::Pause) {
            Next::Resume => Next::Yield,
            other => other,
        },
        ExitCode::XSETBV => cr::xsetbv(run),
        ExitCode::IRET => {
            run.state.iret();
            Next::Resume
        }
        ExitCode::SHUTDOWN => triple_fault(run),
        ExitCode::VMRUN
        | ExitCode::VMLOAD
        | ExitCode::VMSAVE
        | ExitCode::STGI
        | ExitCode::CLGI
        | ExitCode::INVLPGA
        | ExitCode::SKINIT => nested::instruction(run, code),
        // A machine check has been taken already, if it was ours to see; the guest has no banks.
        c if c == ExitCode::exception(18) => Next::Resume,
        c if c == ExitCode::exception(1) => cr::debug_exception(run),
        c if c == ExitCode::exception(13) => cr::protection_fault(run),
        c if c == ExitCode::exception(17) => {
            run.state.inject_exception(17, Some(0));
            Next::Resume
        }
        ExitCode(0..0x20) => cr::access(run, code),
        ExitCode(0x20..0x40) => {
            run.state.use_debug();
            Next::Resume
        }
        ExitCode::TASK_SWITCH => {
            run.vcpu.domain().crash(format_args!("a hardware task switch, which Testudo does not emulate"));
            Next::Stop
        }
        ExitCode::INVALID => cr::invalid(run),
        // Instructions that this guest's CPUID does not have.
        ExitCode::MONITOR
        | ExitCode::MWAIT
        | ExitCode::MWAIT_CONDITIONAL
        | ExitCode::RDPRU
        | ExitCode::RSM
        | ExitCode::INVLPGB
        | ExitCode::INVLPGB_ILLEGAL
        | ExitCode::TLBSYNC
        | ExitCode::MCOMMIT => {
            run.state.inject_ud();
            Next::Resume
        }
        // No performance counters are announced: RDPMC of any of them is #GP.
        ExitCode::RDPMC => {
            run.state.inject_gp();
            Next::Resume
        }
        _ => unknown(run, code),
    }
}

fn triple_fault(run: &mut Run<'_>) -> Next {
    run.vcpu.domain().crash(format_args!(
        "triple fault on vCPU {} at rip {:#x}",
        run.vcpu.id(),
        run.state.cur().save.rip
    ));
    Next::Stop
}

/// The running level has shut down: its own L1's affair, if that intercepts it.
fn shutdown(run: &mut Run<'_>) -> Next {
    if nested::shutdown(run) { Next::Resume } else { triple_fault(run) }
}

/// An exit nobody asked for: the guest's trouble, not ours.
fn unknown(run: &mut Run<'_>, code: ExitCode) -> Next {
    let control = &run.state.cur().control;
    let event = Event(control.exit_int_info);
    debug_assert!(
        Intercept::of(code).is_none_or(|i| !control.intercepts.has(i)),
        "an intercept without a handler"
    );
    run.vcpu.domain().crash(format_args!(
        "exit {code} (info {:#x}, {:#x}, event {event:?}) at rip {:#x}",
        control.exit_info_1,
        control.exit_info_2,
        run.state.cur().save.rip
    ));
    Next::Stop
}
