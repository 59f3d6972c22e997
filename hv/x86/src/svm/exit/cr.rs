//! Control registers, XSETBV, debug exceptions, and VMCBs that the hardware refuses.

use crate::decode::{self, CrAccess, Gpr, Insn};
use crate::svm::run::{Next, Run};
use crate::svm::vcpu::VcpuState;
use vsvm::layout::{Clean, Event, EventKind, int_ctl, reg};

/// CR8: bits 3:0.
const CR8: u8 = 8;

/// A control register access that was intercepted: CR4 writes always, CR8 writes while TPR masks a pending
/// interrupt; any read on an emulator that checks them all against the CR0 intercept.
pub fn access(run: &mut Run<'_>, _code: vsvm::layout::ExitCode) -> Next {
    let Ok(fetched) = run.fetch() else { return Next::Resume };
    let size = VcpuState::code_size(run.state.cur());
    match decode::cr_access(fetched.bytes(), size) {
        Ok(CrAccess::Mov(mov)) if mov.write => {
            let value = run.gpr(mov.gpr);
            let value = if size == decode::CodeSize::Bits64 { value } else { value & 0xffff_ffff };
            if write(run, mov.cr, value) {
                run.state.advance(mov.len);
            } else {
                run.state.inject_gp();
            }
        }
        Ok(CrAccess::Mov(mov)) => {
            let save = &run.state.cur().save;
            let value = match mov.cr {
                0 => save.cr0,
                2 => save.cr2,
                3 => save.cr3,
                4 => save.cr4,
                CR8 => run.state.cur().control.int_ctl & int_ctl::V_TPR,
                _ => {
                    run.state.inject_ud();
                    return Next::Resume;
                }
            };
            run.set_gpr(mov.gpr, value);
            run.state.advance(mov.len);
        }
        Ok(CrAccess::Smsw { len, dest }) => smsw(run, fetched.bytes(), size, len, dest),
        // CLTS and LMSW are not intercepted by Testudo; whatever this is, it is tried again.
        _ => {}
    }
    Next::Resume
}

/// SMSW, seen where reads of CR0 are intercepted on behalf of other registers.
fn smsw(run: &mut Run<'_>, bytes: &[u8], size: decode::CodeSize, len: u8, dest: Option<decode::RegOperand>) {
    let cr0 = run.state.cur().save.cr0;
    run.sync_gprs_in();
    match dest {
        Some(register) => {
            register.write(&mut run.state.gprs, cr0);
            run.sync_gprs_out();
        }
        None => {
            let save = &run.state.cur().save;
            // FS and GS have been saved to vmcb01, for whichever level runs.
            let live = &run.state.vmcb01.save;
            let operand =
                decode::memory_operand(Insn::Smsw, bytes, size, save.rip, &run.state.gprs, |segment| {
                    use decode::Segment::*;
                    match segment {
                        Es => save.es.base,
                        Cs => save.cs.base,
                        Ss => save.ss.base,
                        Ds => save.ds.base,
                        Fs => live.fs.base,
                        Gs => live.gs.base,
                    }
                });
            let Ok(operand) = operand else { return };
            if run.copy_to_guest(addr::Gva::new(operand.linear), &(cr0 as u16).to_le_bytes()).is_none() {
                return;
            }
        }
    }
    run.state.advance(len);
}

/// `false`: #GP.
fn write(run: &mut Run<'_>, cr: u8, value: u64) -> bool {
    match cr {
        4 => write_cr4(run, value),
        CR8 if value < 16 => {
            run.state.lapic.set_cr8(value as u8);
            let control = &mut run.state.cur_mut().control;
            control.int_ctl = control.int_ctl & !int_ctl::V_TPR | value;
            control.mark_dirty(Clean::TPR);
            true
        }
        _ => false,
    }
}

/// CR4's rules (APM vol. 2, "CR4 Register"; #GP conditions of MOV CRn).
fn write_cr4(run: &mut Run<'_>, value: u64) -> bool {
    const PCIDE: u64 = 1 << 17;
    const PAE: u64 = 1 << 5;
    let allowed = run.vcpu.domain().arch.cr4_allowed;
    let save = &run.state.cur().save;
    let long = save.efer & reg::EFER_LMA != 0;
    let turns_on_pcid = value & !save.cr4 & PCIDE != 0;
    let bad = value & !allowed != 0
        || long && value & PAE == 0
        || long && (value ^ save.cr4) & reg::CR4_LA57 != 0
        || turns_on_pcid && (!long || save.cr3 & 0xfff != 0);
    if bad {
        return false;
    }
    // A change of what translations mean drops them (APM vol. 2, "TLB Management").
    const FLUSHING: u64 = 1 << 4 | PAE | 1 << 7 | PCIDE | 1 << 20 | 1 << 21;
    if (run.state.cur().save.cr4 ^ value) & FLUSHING != 0 {
        run.owe_flush(vsvm::asid::Flush::All);
    }
    let vmcb = run.state.cur_mut();
    vmcb.save.cr4 = value;
    vmcb.control.mark_dirty(Clean::CRX);
    true
}

/// XSETBV: always seen, as XCR0 is what the switch between vCPUs depends on.
pub fn xsetbv(run: &mut Run<'_>) -> Next {
    let index = run.gpr(Gpr::new(1)) as u32;
    let value = run.edx_eax();
    if run.state.cur().save.cpl != 0 || index != 0 || !run.state.xstate.set_xcr0(value) {
        run.state.inject_gp();
        return Next::Resume;
    }
    run.advance_over(Insn::Xsetbv)
}

/// #DB is intercepted so that a guest cannot make it recur for ever unseen; it is the guest's all the same.
pub fn debug_exception(run: &mut Run<'_>) -> Next {
    run.state.inject_exception(1, None);
    Next::Resume
}

/// A #GP that is intercepted for the sake of SVM's instructions, and is none of theirs.
pub fn protection_fault(run: &mut Run<'_>) -> Next {
    let control = &mut run.state.cur_mut().control;
    let pending = Event(control.event_inj);
    if pending.is_valid() && pending.kind() == EventKind::Exception && pending.vector() == 8 {
        // A fault on the way to #DF, which the processor would have made a shutdown of if it were not intercepted.
        control.event_inj = 0;
        return super::shutdown(run);
    }
    let error = control.exit_info_1 as u32;
    run.state.inject_exception(13, Some(error));
    Next::Resume
}

/// The hardware refuses vmcb01. A guest can cause it: an emulator accepts an unintercepted MOV CR3 or CR4 with
/// reserved bits and then finds the state invalid.
pub fn invalid(run: &mut Run<'_>) -> Next {
    let fetched = run.fetch();
    let size = VcpuState::code_size(run.state.cur());
    let mov = fetched.ok().and_then(|f| decode::mov_cr(f.bytes(), size).ok());
    if mov.is_some_and(|m| m.write && matches!(m.cr, 0 | 3 | 4)) {
        run.state.inject_gp();
        return Next::Resume;
    }
    let save = &run.state.cur().save;
    run.vcpu.domain().crash(format_args!(
        "the processor refuses its state: rip {:#x} cr0 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}",
        save.rip, save.cr0, save.cr3, save.cr4, save.efer
    ));
    Next::Stop
}
