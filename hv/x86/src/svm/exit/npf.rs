//! Nested page faults of L1: the local APIC's page, and holes.

use crate::decode::{self, MmioOp};
use crate::guest::arch;
use crate::svm::nested;
use crate::svm::run::{Next, Run};
use crate::svm::vcpu::VcpuState;
use crate::vlapic::Mode;
use addr::{Gpa, PAGE_SIZE};

/// EXITINFO1 bits of a nested page fault (APM vol. 2, "Nested Paging").
const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;

/// Handles a fault of L1 on its physical memory.
pub fn handle(run: &mut Run<'_>) -> Next {
    let control = &run.state.cur().control;
    let (error, gpa) = (control.exit_info_1, Gpa::new(control.exit_info_2));
    if error & PRESENT != 0 && error & WRITE != 0 && nested::table_write(run, gpa) {
        return Next::Resume;
    }
    let memory = &run.vcpu.domain().memory;
    if let Some(mapping) = memory.translate_now(gpa) {
        // Mapped meanwhile by another vCPU, or by us after a flush: the guest tries again. A write to a page
        // that stays read-only (a page of ours) is ignored, as to ROM.
        if error & WRITE == 0 || mapping.perms.contains(stage2::Perms::W) {
            return Next::Resume;
        }
    }
    device(run, gpa)
}

/// An access to a physical address that is no memory.
pub fn device(run: &mut Run<'_>, gpa: Gpa) -> Next {
    let Ok(fetched) = run.fetch() else { return Next::Resume };
    let size = VcpuState::code_size(run.state.cur());
    let op = match decode::decode_mmio(fetched.bytes(), size) {
        Ok(op) => op,
        Err(error) => {
            run.vcpu.domain().crash(format_args!(
                "instruction at rip {:#x} accesses {gpa}, which is no memory, and cannot be emulated: {error:?}",
                run.state.cur().save.rip
            ));
            return Next::Stop;
        }
    };
    perform(run, gpa, &op);
    run.state.advance(op.len);
    Next::Resume
}

fn perform(run: &mut Run<'_>, gpa: Gpa, op: &MmioOp) {
    let bytes = (op.width.bits() / 8) as u8;
    let loaded = if op.reads() { read(run, gpa, bytes) } else { 0 };
    // RAX and RSP are kept in the VMCB while the guest's registers are ours.
    run.sync_gprs_in();
    let mut rflags = run.state.cur().save.rflags;
    let stored = op.complete(&mut run.state.gprs, &mut rflags, loaded);
    run.sync_gprs_out();
    run.state.cur_mut().save.rflags = rflags;
    if let Some(value) = stored {
        write(run, gpa, bytes, value);
    }
}

/// Offset into the local APIC's page, if `gpa` lies there.
fn lapic_offset(run: &Run<'_>, gpa: Gpa) -> Option<u16> {
    let lapic = &run.state.lapic;
    let offset = gpa.raw().wrapping_sub(lapic.base_address());
    (lapic.mode() == Mode::Xapic && offset < PAGE_SIZE).then_some(offset as u16)
}

fn read(run: &mut Run<'_>, gpa: Gpa, bytes: u8) -> u64 {
    match lapic_offset(run, gpa) {
        Some(offset) => {
            let time = arch::guest_time(run.state);
            run.state.lapic.mmio_read(offset, bytes, &time)
        }
        None => u64::MAX,
    }
}

fn write(run: &mut Run<'_>, gpa: Gpa, bytes: u8, value: u64) {
    if let Some(offset) = lapic_offset(run, gpa) {
        let time = arch::guest_time(run.state);
        let effect = run.state.lapic.mmio_write(offset, bytes, value, &time);
        run.apply_lapic(effect);
    }
}
