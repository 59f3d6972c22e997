//! One instruction of a guest, and then an exit: how an event waits for the end of an interrupt shadow that no other
//! exit announces.
//!
//! The window that a virtual interrupt gives opens with the guest's IF; what IF does not gate (an NMI; an interrupt of
//! L1's that it lets through to an L2 with V_INTR_MASKING) would wait for whatever exit comes next. So the guest runs
//! with RFLAGS.TF, which traps behind the instruction in the shadow. Exceptions exit meanwhile, as their frames would
//! hold that TF; an instruction that shows the flags itself is not stepped over, and the event waits for the next exit.

use crate::decode::{self, CodeSize, Insn};
use crate::svm::run::Run;
use crate::svm::vcpu::VcpuState;
use hv_core::vcpu::Pending;
use vsvm::layout::int_state::INTERRUPT_SHADOW;
use vsvm::layout::{Clean, Event, ExitCode, Intercepts, Vmcb};

/// RFLAGS.TF.
const TF: u64 = 1 << 8;
/// DR6.BS.
const BS: u64 = 1 << 14;
/// #PF.
const PAGE_FAULT: u8 = 14;

/// What was changed in the VMCB of the level that runs, to be put back.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    exceptions: u32,
    dr6: u64,
}

/// What a step that has ended leaves of the exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// The exit as it is.
    Exit,
    /// Nothing.
    Nothing,
    /// An exception that nobody asked to see.
    Raise(Event),
}

impl Step {
    /// Arms `vmcb`. `None`: the guest steps itself, which exits just so.
    fn begin(vmcb: &mut Vmcb) -> Option<Self> {
        if vmcb.save.rflags & TF != 0 {
            return None;
        }
        let word = &mut vmcb.control.intercepts.0[Intercepts::EXCEPTION];
        let step = Step { exceptions: core::mem::replace(word, u32::MAX), dr6: vmcb.save.dr6 };
        vmcb.save.rflags |= TF;
        vmcb.control.mark_dirty(Clean::I);
        Some(step)
    }

    /// Takes [`Step::begin`] back.
    fn undo(self, vmcb: &mut Vmcb) {
        vmcb.save.rflags &= !TF;
        vmcb.control.intercepts.0[Intercepts::EXCEPTION] = self.exceptions;
        vmcb.control.mark_dirty(Clean::I);
    }

    /// After the exit with `code`.
    fn end(self, vmcb: &mut Vmcb, code: ExitCode) -> Left {
        self.undo(vmcb);
        let Some(vector) = code.exception_vector() else { return Left::Exit };
        if vector == 1 && vmcb.save.dr6 & BS != 0 {
            vmcb.save.dr6 = vmcb.save.dr6 & !BS | self.dr6 & BS;
            vmcb.control.mark_dirty(Clean::DRX);
            // A breakpoint that it met at once is the guest's.
            return if vmcb.save.dr6 == self.dr6 { Left::Nothing } else { Left::Exit };
        }
        if self.exceptions >> vector & 1 != 0 {
            return Left::Exit;
        }
        if vector == PAGE_FAULT {
            vmcb.save.cr2 = vmcb.control.exit_info_2;
            vmcb.control.mark_dirty(Clean::CR2);
        }
        let error = matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30);
        Left::Raise(Event::exception(vector, error.then_some(vmcb.control.exit_info_1 as u32)))
    }
}

/// Whether the instruction stores or loads RFLAGS.
fn shows_flags(bytes: &[u8], size: CodeSize) -> bool {
    const INSNS: [Insn; 7] =
        [Insn::Pushf, Insn::Popf, Insn::Iret, Insn::IntN, Insn::Int3, Insn::Into, Insn::Icebp];
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    const SYSENTER: [u8; 2] = [0x0f, 0x34];
    bytes.starts_with(&SYSCALL)
        || bytes.starts_with(&SYSENTER)
        || INSNS.iter().any(|&insn| decode::length(insn, bytes, size).is_ok())
}

impl VcpuState {
    /// A step that has not been made is called off.
    pub fn cancel_step(&mut self) {
        if let Some(step) = self.step.take() {
            step.undo(self.cur_mut());
        }
    }

    /// Whether an NMI waits for nothing but the end of L1's interrupt shadow.
    pub fn nmi_in_shadow(&self) -> bool {
        let control = &self.vmcb01.control;
        let shadow = control.int_state & INTERRUPT_SHADOW != 0;
        let busy = Event(control.event_inj).is_valid();
        shadow && self.lapic.nmi_pending() && self.gif() && !self.nmi_masked && !busy
    }
}

impl Run<'_> {
    /// The next entry of the level that runs ends behind its next instruction.
    pub fn step_over_shadow(&mut self) {
        let size = VcpuState::code_size(self.state.cur());
        // One that cannot be fetched faults, which exits.
        let shows = self.fetch().is_ok_and(|fetched| shows_flags(fetched.bytes(), size));
        if self.state.step.is_none() && !shows {
            self.state.step = Step::begin(self.state.cur_mut());
        }
    }

    /// The level that runs has exited with `code`. `true`: it was the step's own exit, and is handled.
    #[cold]
    pub fn end_step(&mut self, code: ExitCode) -> bool {
        let Some(step) = self.state.step.take() else { return false };
        let vmcb = self.state.cur_mut();
        let left = step.end(vmcb, code);
        if let Left::Raise(event) = left {
            // Its delivery ends the shadow, too.
            vmcb.control.int_state &= !INTERRUPT_SHADOW;
            vmcb.control.event_inj = event.0;
        }
        // What waited is looked at again before the next entry.
        self.vcpu.defer(Pending::EVENT);
        left != Left::Exit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vsvm::layout::Intercept;

    fn vmcb() -> Vmcb {
        let mut vmcb = Vmcb::new();
        vmcb.control.intercepts = Intercepts::of(&[Intercept::exception(1), Intercept::exception(17)]);
        vmcb.save.rflags = 2;
        vmcb.save.dr6 = 0xffff_0ff0;
        vmcb
    }

    fn stepped(code: ExitCode, change: impl FnOnce(&mut Vmcb)) -> (Left, Vmcb) {
        let mut vmcb = vmcb();
        let step = Step::begin(&mut vmcb).unwrap();
        assert!(vmcb.save.rflags & TF != 0);
        assert_eq!(vmcb.control.intercepts.0[Intercepts::EXCEPTION], u32::MAX);
        change(&mut vmcb);
        let left = step.end(&mut vmcb, code);
        assert_eq!(vmcb.save.rflags & TF, 0);
        assert_eq!(vmcb.control.intercepts.0[Intercepts::EXCEPTION], 1 << 1 | 1 << 17);
        (left, vmcb)
    }

    #[test]
    fn the_trap_leaves_no_trace() {
        let (left, after) = stepped(ExitCode::exception(1), |v| v.save.dr6 |= BS);
        assert_eq!((left, after.save.dr6), (Left::Nothing, 0xffff_0ff0));
    }

    #[test]
    fn a_breakpoint_met_at_once_is_the_guests() {
        let (left, after) = stepped(ExitCode::exception(1), |v| v.save.dr6 |= BS | 1);
        assert_eq!((left, after.save.dr6), (Left::Exit, 0xffff_0ff1));
    }

    #[test]
    fn exceptions_go_on_their_way() {
        let fault = |v: &mut Vmcb| (v.control.exit_info_1, v.control.exit_info_2) = (6, 0x1234);
        let (left, after) = stepped(ExitCode::exception(14), fault);
        assert_eq!((left, after.save.cr2), (Left::Raise(Event::exception(14, Some(6))), 0x1234));
        assert_eq!(stepped(ExitCode::exception(6), |_| ()).0, Left::Raise(Event::exception(6, None)));
        assert_eq!(stepped(ExitCode::exception(17), |_| ()).0, Left::Exit, "asked for");
        assert_eq!(stepped(ExitCode::NPF, |_| ()).0, Left::Exit);
    }

    #[test]
    fn a_guest_that_steps_itself_is_left_alone() {
        let mut vmcb = vmcb();
        vmcb.save.rflags |= TF;
        assert!(Step::begin(&mut vmcb).is_none());
        assert_eq!(vmcb.control.intercepts.0[Intercepts::EXCEPTION], 1 << 1 | 1 << 17);
    }

    #[test]
    fn instructions_that_show_the_flags() {
        let rows: &[(&[u8], bool)] = &[
            (&[0x9c], true),              // PUSHF
            (&[0x66, 0x9d], true),        // POPF
            (&[0x48, 0xcf], true),        // IRETQ
            (&[0xcd, 0x80], true),        // INT 80h
            (&[0xcc], true),              // INT3
            (&[0x0f, 0x05], true),        // SYSCALL
            (&[0x89, 0xc3, 0x90], false), // MOV
            (&[0xf4], false),             // HLT
        ];
        for &(bytes, shows) in rows {
            assert_eq!(shows_flags(bytes, CodeSize::Bits64), shows, "{bytes:x?}");
        }
    }
}
