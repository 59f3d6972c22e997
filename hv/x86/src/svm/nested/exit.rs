//! Exits of L2: whose they are, and giving them to L1.

use super::memory::env;
use super::{assist, insn};
use crate::decode::{self, CrAccess, Insn};
use crate::svm::exit::{self, Tier1};
use crate::svm::run::{Next, Run};
use crate::svm::vcpu::VcpuState;
use crate::svm::{Features, switch};
use addr::{Gpa, GuestMemory, Ngpa};
use stage2::shadow::FaultOutcome;
use stage2::walk12::Access;
use vsvm::layout::{Event, EventKind, ExitCode};
use vsvm::perm::Perm12;
use vsvm::reflect::reflect;
use vsvm::route::{Exit, L0Wants, Route, route};

/// L1's permission maps, read when an exit asks for them.
struct Maps<'a, 'b> {
    run: &'a Run<'b>,
    msrpm: Gpa,
    iopm: Gpa,
}

impl Maps<'_, '_> {
    fn byte(&self, base: Gpa, offset: usize) -> u8 {
        let mut byte = [0xff];
        let at = base.wrapping_add(offset as u64);
        // Where there is no memory the map reads as all ones.
        match self.run.vcpu.domain().memory.read(at, &mut byte) {
            Ok(()) => byte[0],
            Err(_) => 0xff,
        }
    }
}

impl Perm12 for Maps<'_, '_> {
    fn msr_byte(&self, offset: usize) -> u8 {
        self.byte(self.msrpm, offset)
    }
    fn io_byte(&self, offset: usize) -> u8 {
        self.byte(self.iopm, offset)
    }
}

/// Whose is the exit?
fn decide(run: &Run<'_>, exit: &Exit) -> Route {
    let Some(nested) = run.state.nested.as_deref() else { return Route::L0 };
    let Some(active) = nested.machine.active() else { return Route::L0 };
    let c12 = &nested.machine.slot(active.slot).c12;
    let Some(checked) = c12.checked() else { return Route::L0 };
    let wants = L0Wants { window_borrowed: c12.window_borrowed(), ..L0Wants::default() };
    let maps = Maps { run, msrpm: checked.control().msrpm, iopm: checked.control().iopm };
    route(exit, checked, &wants, &maps)
}

/// First tier of an exit of L2.
#[inline]
pub fn fast_l2(run: &mut Run<'_>, code: ExitCode) -> Tier1 {
    if code == ExitCode::NPF || code == ExitCode::INTR {
        return Tier1::Slow;
    }
    if code == exit::FINISHED {
        return Tier1::Done;
    }
    if code == ExitCode::exception(13) && !run.ctx.features.has(Features::SVME_ADDRESS_CHECK) {
        name_refused(run);
    }
    if (code.0 < 0x10 || code == ExitCode::RDTSC) && crate::svm::is_emulated() && !name_instruction(run) {
        return Tier1::Again;
    }
    let exit = match run.state.nested.as_deref() {
        Some(nested) => nested.exit,
        None => return Tier1::Slow,
    };
    match decide(run, &exit) {
        Route::L1 => {
            reflect_instruction(run, exit);
            Tier1::Again
        }
        Route::L0 if matches!(exit.code, ExitCode::VMLOAD | ExitCode::VMSAVE) => {
            unintercepted_vmload(run, exit.code)
        }
        Route::L0 | Route::Both => Tier1::Slow,
    }
}

/// A #GP that the processor raised at an SVM instruction for the address' sake alone becomes that instruction's exit.
#[cold]
fn name_refused(run: &mut Run<'_>) {
    let Some(code) = insn::refused(run).filter(|&code| insn::l2_may(run, code)) else { return };
    if let Some(nested) = run.state.nested.as_deref_mut() {
        nested.exit = Exit { code, info1: 0, info2: 0, nrip: 0, ..nested.exit };
    }
}

/// QEMU's emulation reports any read of a control register as one of CR0, and RDTSCP as RDTSC: puts what it was into
/// the exit. `false`: the instruction can't be found any more; it runs again.
#[cold]
fn name_instruction(run: &mut Run<'_>) -> bool {
    let Ok(fetched) = run.fetch() else { return false };
    let size = VcpuState::code_size(run.state.cur());
    let Some(nested) = run.state.nested.as_deref_mut() else { return false };
    if nested.exit.code == ExitCode::RDTSC {
        if decode::length(Insn::Rdtscp, fetched.bytes(), size).is_ok() {
            nested.exit.code = ExitCode::RDTSCP;
        }
    } else if let Ok(CrAccess::Mov(mov)) = decode::cr_access(fetched.bytes(), size)
        && !mov.write
    {
        nested.exit.code = ExitCode::cr_read(mov.cr);
    }
    true
}

/// Gives an exit to L1, with all that it is promised about the instruction.
#[inline]
fn reflect_instruction(run: &mut Run<'_>, mut exit: Exit) {
    assist::complete(run, &mut exit);
    reflect_now(run, exit);
}

/// Gives `exit` to L1: L2 is left.
pub fn reflect_now(run: &mut Run<'_>, exit: Exit) {
    // L2 must not steer what L1 predicts (CVE-2022-2196).
    crate::hw::mitigation::reflect_barrier();
    let memory = &run.vcpu.domain().memory;
    let Some(nested) = run.state.nested.as_deref_mut() else { return };
    let Some(active) = nested.machine.leave() else { return };
    nested.raised = None;
    let own = &mut nested.slots[active.slot % super::SLOTS];
    let gpa = nested.machine.slot(active.slot).c12.gpa();
    if own.pin(memory, gpa).is_none() {
        run.vcpu.domain().crash(format_args!("vmcb12 at {gpa} is no memory any more as its L2 exits"));
        return;
    }
    let Some((page, _)) = &own.page else { return };
    let c12 = &mut nested.machine.slot_mut(active.slot).c12;
    vsvm::events::return_window(c12, &mut own.vmcb02);
    let resume = reflect(&own.vmcb02, &exit, c12, page);
    resume.apply(active.resume_rip, &mut run.state.vmcb01);
    if let Some(tpr) = resume.tpr {
        run.state.lapic.set_cr8(tpr & 0xf);
    }
}

/// L2, if it runs, has shut down without an exit of the processor's that says so. Whether L1 gets one.
pub fn shutdown(run: &mut Run<'_>) -> bool {
    let exit = Exit { code: ExitCode::SHUTDOWN, ..Exit::default() };
    let reflected = run.in_l2() && decide(run, &exit) == Route::L1;
    if reflected {
        reflect_now(run, exit);
    }
    reflected
}

/// Second tier of an exit of L2.
pub fn handle_l2(run: &mut Run<'_>, code: ExitCode) -> Next {
    let next = handle(run, code);
    reflect_raised(run);
    next
}

/// An exception that handling the exit has raised for L2 is L1's if L1 intercepts it: "an exit due to an exception
/// that another event's delivery met" names that event (APM vol. 2, "Exception Intercepts", "EXITINTINFO").
fn reflect_raised(run: &mut Run<'_>) {
    let Some(nested) = run.state.nested.as_deref_mut() else { return };
    let Some((event, address)) = nested.raised.take() else { return };
    let code = ExitCode::exception(event.vector());
    let info1 = event.error().unwrap_or(0).into();
    // The event that was on its way is in vmcb02, to be delivered again.
    let exit = Exit { code, info1, info2: address, int_info: 0, nrip: 0, ..nested.exit };
    assist::instruction_bytes(run, code == ExitCode::exception(14) && assist::has_bytes(info1));
    reflect_now(run, exit);
}

fn handle(run: &mut Run<'_>, code: ExitCode) -> Next {
    let exit = match run.state.nested.as_deref() {
        Some(nested) => nested.exit,
        None => return Next::Resume,
    };
    if code == ExitCode::NPF {
        return nested_fault(run, exit);
    }
    requeue(run, exit.int_info);
    match exit.code {
        // Taken by now; whether L1 gets one is decided before the next entry.
        ExitCode::INTR | ExitCode::NMI | ExitCode::SMI | ExitCode::INIT | ExitCode::VINTR => Next::Resume,
        c if c == ExitCode::exception(18) => Next::Resume,
        // No L1 took it: there is no such instruction for L2.
        ExitCode::VMMCALL | ExitCode::VMRUN | ExitCode::SKINIT => {
            run.state.inject_ud();
            Next::Resume
        }
        ExitCode::IRET => {
            run.state.iret();
            if let Some(nested) = run.state.nested.as_deref_mut() {
                nested.watch_iret(false);
            }
            Next::Resume
        }
        ExitCode(0x20..0x40) => {
            run.state.use_debug();
            Next::Resume
        }
        ExitCode::RDTSC | ExitCode::RDTSCP => time_stamp(run, exit.code == ExitCode::RDTSCP),
        ExitCode::STGI | ExitCode::CLGI => set_gif(run, exit.code == ExitCode::STGI),
        ExitCode::INVALID => invalid(run, exit),
        code => exit::handle_l1(run, code),
    }
}

/// The event that the exit interrupted goes back to L2, which goes on.
fn requeue(run: &mut Run<'_>, int_info: u64) {
    let event = Event(int_info);
    let again = event.is_valid()
        && match event.kind() {
            EventKind::Soft => false,
            EventKind::Exception => !matches!(event.vector(), 3 | 4),
            _ => true,
        };
    if again {
        run.state.cur_mut().control.event_inj = event.0;
    }
}

/// L2 touched an L2-physical address that s2_02 does not show.
fn nested_fault(run: &mut Run<'_>, exit: Exit) -> Next {
    let domain = run.vcpu.domain().clone();
    let memory = &domain.memory;
    let Some(nested) = run.state.nested.as_deref_mut() else { return Next::Resume };
    let slot = nested.active_slot();
    let Some((shadow, root)) = memory.shadow().zip(nested.slots[slot].root.as_ref()) else {
        requeue(run, exit.int_info);
        return exit::handle_l1(run, ExitCode::NPF);
    };
    let uses_np = nested.machine.slot(slot).c12.checked().is_some_and(|c12| c12.np());
    if !uses_np {
        requeue(run, exit.int_info);
        return exit::handle_l1(run, ExitCode::NPF);
    }
    let access = Access::from_info1(exit.info1);
    let (outcome, debt) = shadow.handle_fault(&env(memory), root, Ngpa::new(exit.info2), access);
    memory.pay(debt);
    match outcome {
        FaultOutcome::Fixed | FaultOutcome::Retry => requeue(run, exit.int_info),
        FaultOutcome::Violation(violation) => {
            assist::instruction_bytes(run, assist::has_bytes(violation.info1));
            let reflected = Exit { info1: violation.info1, info2: violation.ngpa.raw(), nrip: 0, ..exit };
            reflect_now(run, reflected);
        }
        FaultOutcome::Mmio { gpa } | FaultOutcome::Denied { gpa, .. } => {
            requeue(run, exit.int_info);
            return exit::device(run, gpa);
        }
        FaultOutcome::OutOfMemory => {
            domain.crash(format_args!("no memory for its nested page tables"));
            return Next::Stop;
        }
    }
    Next::Resume
}

/// RDTSC or RDTSCP, seen because L1 intercepts the other one.
fn time_stamp(run: &mut Run<'_>, with_aux: bool) -> Next {
    let insn = if with_aux { Insn::Rdtscp } else { Insn::Rdtsc };
    let Ok(len) = run.length(insn) else { return Next::Resume };
    let now = crate::cpu::instr::rdtsc().wrapping_add(run.state.cur().control.tsc_offset);
    run.set_edx_eax(now);
    if with_aux {
        run.state.gprs.regs[crate::decode::Gprs::RCX] = run.state.msrs.tsc_aux;
    }
    run.state.advance(len);
    Next::Resume
}

/// STGI or CLGI of L2 that L1 does not intercept.
fn set_gif(run: &mut Run<'_>, on: bool) -> Next {
    let insn = if on { Insn::Stgi } else { Insn::Clgi };
    let Ok(len) = run.length(insn) else { return Next::Resume };
    let Some(nested) = run.state.nested.as_deref_mut() else { return Next::Resume };
    let slot = nested.active_slot();
    let virtual_gif =
        vsvm::events::set_vgif(&mut nested.machine.slot_mut(slot).c12, &mut nested.slots[slot].vmcb02, on);
    if !virtual_gif {
        nested.machine.gif = on;
    }
    run.state.advance(len);
    Next::Resume
}

/// The processor refuses vmcb02, or an emulator found it invalid in mid-run.
fn invalid(run: &mut Run<'_>, exit: Exit) -> Next {
    let fetched = run.fetch();
    let size = VcpuState::code_size(run.state.cur());
    let mov = fetched.ok().and_then(|f| decode::mov_cr(f.bytes(), size).ok());
    if mov.is_some_and(|m| m.write && matches!(m.cr, 0 | 3 | 4)) {
        run.state.inject_gp();
        return Next::Resume;
    }
    log::warn!(
        "domain {}: the processor refuses a vmcb02 that passed all checks: rip {:#x}",
        run.vcpu.domain().name(),
        run.state.cur().save.rip
    );
    reflect_now(run, Exit { info1: 0, info2: 0, int_info: 0, nrip: 0, ..exit });
    Next::Resume
}

/// VMLOAD or VMSAVE of L2 that L1 does not intercept: it acts on L1's physical memory.
fn unintercepted_vmload(run: &mut Run<'_>, code: ExitCode) -> Tier1 {
    let insn = if code == ExitCode::VMLOAD { Insn::Vmload } else { Insn::Vmsave };
    let Ok(len) = run.length(insn) else { return Tier1::Again };
    let gpa = run.state.cur().save.rax;
    let bits = run.vcpu.domain().arch.phys_bits;
    let cpl = run.state.cur().save.cpl;
    let memory = &run.vcpu.domain().memory;
    let legal = gpa & 0xfff == 0 && gpa >> bits == 0 && cpl == 0;
    let page = run.state.nested.as_deref_mut().filter(|_| legal).and_then(|n| n.pages.get(memory, gpa));
    let page_found = page.is_some();
    match page {
        Some(page) if code == ExitCode::VMLOAD => switch::forward_vmload(page),
        Some(page) => switch::forward_vmsave(page),
        None => run.state.inject_gp(),
    }
    if page_found {
        run.state.advance(len);
    }
    reflect_raised(run);
    Tier1::Again
}
