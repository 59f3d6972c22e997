//! #VMEXIT from L2 to L1: what L1 finds in its vmcb12, and what becomes of L1.
//!
//! Source: APM vol. 2, "#VMEXIT". L1's host state never leaves vmcb01, so there is nothing to load from the
//! host save area, and nothing there that L1 could forge.

use crate::caps::Features;
use crate::events;
use crate::layout::{Clean, Event, ExitCode, Segment, Vmcb, int_ctl, int_state, reg};
use crate::route::Exit;
use crate::vmcb12::{Cached12, at};
use addr::GuestPage;

/// int_ctl bits that the processor writes back: it may have taken the virtual interrupt, and L2 may have
/// written CR8 or its GIF.
const WRITTEN_BACK: u64 = int_ctl::V_TPR | int_ctl::V_IRQ | int_ctl::V_GIF;

/// What #VMEXIT makes of L1, beyond going back to what vmcb01 holds.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L1Resume {
    /// L1's TPR (CR8), if L2 shared it and so may have changed it.
    pub tpr: Option<u8>,
}

impl L1Resume {
    /// L1's GIF after a #VMEXIT.
    pub const GIF: bool = false;

    /// Turns vmcb01, untouched since L1 executed VMRUN, into L1 after the #VMEXIT: continues at `rip`
    /// (behind the VMRUN) with GIF 0, CPL 0, no breakpoint and no virtual-8086 mode. rAX still is what it
    /// was: the address of vmcb12. The back end also stores GIF in its own state.
    pub fn apply(&self, rip: u64, vmcb01: &mut Vmcb) {
        let (save, control) = (&mut vmcb01.save, &mut vmcb01.control);
        save.rip = rip;
        save.rflags &= !reg::RFLAGS_VM;
        (control.int_state, control.event_inj) = (0, 0);
        if save.cpl != 0 {
            save.cpl = 0;
            control.mark_dirty(Clean::SEG);
        }
        if save.dr7 != reg::DR7_RESET {
            save.dr7 = reg::DR7_RESET;
            control.mark_dirty(Clean::DRX);
        }
        let mut new = control.int_ctl;
        if new & int_ctl::V_GIF_ENABLE != 0 {
            new &= !int_ctl::V_GIF;
        }
        if let Some(tpr) = self.tpr {
            new = new & !int_ctl::V_TPR | u64::from(tpr);
        }
        if new != control.int_ctl {
            control.int_ctl = new;
            control.mark_dirty(Clean::TPR);
        }
    }
}

/// Writes the exit and L2's state to vmcb12's pinned `page`, brings the copy up to date with it, and ends
/// L2's run. `vmcb02` holds L2 as it was left; what L0 emulated for it must already be in there.
///
/// If `vmcb02.control.event_inj` is valid, an injection has not been delivered and becomes EXITINTINFO: the
/// caller clears that field after each real exit, if the processor does not.
///
/// With decode assists offered, instruction bytes are taken from vmcb02; the caller puts them there (or 0)
/// if the processor does not.
pub fn reflect(vmcb02: &Vmcb, exit: &Exit, c12: &mut Cached12, page: &impl GuestPage) -> L1Resume {
    let control = &vmcb02.control;
    let undelivered = if exit.int_info & Event::VALID != 0 { exit.int_info } else { control.event_inj };
    let int_info = if undelivered & Event::VALID != 0 { undelivered } else { 0 };
    let rip = rip12(vmcb02, Event(int_info), c12);
    put_exit(exit.code, [exit.info1, exit.info2, int_info], c12, page);
    if c12.features.contains(Features::NRIPS) {
        page.write_u64(at::NRIP, exit.nrip);
    }
    if c12.features.contains(Features::DECODE_ASSISTS) {
        put_insn(vmcb02, c12, page);
    }
    let shadow = control.int_state & int_state::INTERRUPT_SHADOW;
    page.write_u64(at::INT_STATE, shadow);
    c12.data.control.interrupt_shadow = shadow != 0;
    let tpr = sync_int_ctl(vmcb02, c12, page);
    sync_save(vmcb02, rip, c12, page);
    c12.left();
    L1Resume { tpr }
}

/// VMEXIT_INVALID: [`Cached12::load`] refused vmcb12, or L0 found out later that it can't be run. L2 did
/// not run, so only the exit itself is written.
pub fn refuse(c12: &mut Cached12, page: &impl GuestPage) -> L1Resume {
    put_exit(ExitCode::INVALID, [0; 3], c12, page);
    c12.refused();
    L1Resume { tpr: None }
}

/// The exit's description; EVENTINJ, if it was valid, is spent.
fn put_exit(code: ExitCode, info: [u64; 3], c12: &mut Cached12, page: &impl GuestPage) {
    page.write_u64(at::EXIT_CODE, code.0);
    page.write_u64(at::EXIT_INFO_1, info[0]);
    page.write_u64(at::EXIT_INFO_2, info[1]);
    page.write_u64(at::EXIT_INT_INFO, info[2]);
    let injected = &mut c12.data.control.event_inj;
    if injected.is_valid() {
        *injected = injected.spent();
        page.write_u64(at::EVENT_INJ, injected.0);
    }
}

/// Number of instruction bytes and the bytes, two words. Zeros are not written twice.
fn put_insn(vmcb02: &Vmcb, c12: &mut Cached12, page: &impl GuestPage) {
    let control = &vmcb02.control;
    let any = control.insn_len != 0;
    if !any && !c12.wrote_insn {
        return;
    }
    let mut bytes = [0; 16];
    if any {
        bytes[0] = control.insn_len.min(15);
        bytes[1..].copy_from_slice(&control.insn_bytes);
    }
    let value = u128::from_le_bytes(bytes);
    page.write_u64(at::INSN, value as u64);
    page.write_u64(at::INSN + 8, (value >> 64) as u64);
    c12.wrote_insn = any;
}

/// The bits of int_ctl that L2 may have changed. Returns the TPR, if it is L1's own.
fn sync_int_ctl(vmcb02: &Vmcb, c12: &mut Cached12, page: &impl GuestPage) -> Option<u8> {
    use int_ctl::*;
    let now = vmcb02.control.int_ctl;
    let theirs = c12.data.control.int_ctl;
    let irq = events::v_irq12(c12, now);
    let mask = if now & V_GIF_ENABLE != 0 { V_TPR | V_GIF } else { V_TPR };
    let new = theirs & !(mask | V_IRQ) | now & mask | if irq { V_IRQ } else { 0 };
    c12.data.control.int_ctl = new;
    let raw = c12.raw_int_ctl & !WRITTEN_BACK | new & WRITTEN_BACK;
    if raw != c12.raw_int_ctl {
        c12.raw_int_ctl = raw;
        page.write_u64(at::INT_CTL, raw);
    }
    (theirs & V_INTR_MASKING == 0).then_some((now & V_TPR) as u8)
}

/// L2's RIP for L1. A soft event of L1's that was not delivered leaves RIP at its instruction, also where
/// the merge had to start L2 behind it.
fn rip12(vmcb02: &Vmcb, undelivered: Event, c12: &Cached12) -> u64 {
    let (c, rip) = (&c12.data.control, vmcb02.save.rip);
    let ours = undelivered.pushes_next_rip()
        && (undelivered.kind(), undelivered.vector()) == (c.event_inj.kind(), c.event_inj.vector());
    if ours && c.event_inj.is_valid() && rip == c.nrip { c12.data.save.rip } else { rip }
}

/// The registers, each only if L2 changed it.
fn sync_save(vmcb02: &Vmcb, rip: u64, c12: &mut Cached12, page: &impl GuestPage) {
    let (now, s) = (&vmcb02.save, &mut c12.data.save);
    let put = |slot: &mut u64, value: u64, offset| {
        if *slot != value {
            *slot = value;
            page.write_u64(offset, value);
        }
    };
    put(&mut s.rip, rip, at::RIP);
    put(&mut s.rsp, now.rsp, at::RSP);
    put(&mut s.rax, now.rax, at::RAX);
    put(&mut s.rflags, now.rflags, at::RFLAGS);
    put(&mut s.cr0, now.cr0, at::CR0);
    put(&mut s.cr2, now.cr2, at::CR2);
    put(&mut s.cr3, now.cr3, at::CR3);
    put(&mut s.cr4, now.cr4, at::CR4);
    put(&mut s.efer, now.efer, at::EFER);
    put(&mut s.dr6, now.dr6, at::DR6);
    put(&mut s.dr7, now.dr7, at::DR7);
    if c12.data.control.misc_ctl & crate::layout::misc_ctl::NP_ENABLE != 0 {
        put(&mut s.g_pat, now.g_pat, at::G_PAT);
    }
    if s.cr4 & reg::CR4_CET != 0 {
        put(&mut s.s_cet, now.s_cet, at::S_CET);
        put(&mut s.ssp, now.ssp, at::SSP);
        put(&mut s.isst_addr, now.isst_addr, at::ISST_ADDR);
    }
    if s.cpl != now.cpl {
        s.cpl = now.cpl;
        page.write_u8(at::CPL, now.cpl);
    }
    for (slot, new, offset) in [
        (&mut s.es, now.es, at::ES),
        (&mut s.cs, now.cs, at::CS),
        (&mut s.ss, now.ss, at::SS),
        (&mut s.ds, now.ds, at::DS),
    ] {
        if *slot != new {
            *slot = new;
            page.write_u64(offset, low_word(new));
            page.write_u64(offset + 8, new.base);
        }
    }
    for (slot, new, offset) in [(&mut s.gdtr, now.gdtr, at::GDTR), (&mut s.idtr, now.idtr, at::IDTR)] {
        let new = Segment { selector: 0, attrib: 0, ..new };
        if *slot != new {
            *slot = new;
            page.write_u32(offset + 4, new.limit);
            page.write_u64(offset + 8, new.base);
        }
    }
}

/// Selector, attributes and limit as they lie in memory.
fn low_word(s: Segment) -> u64 {
    u64::from(s.selector) | u64::from(s.attrib) << 16 | u64::from(s.limit) << 32
}
