//! Port I/O. A PVH guest has almost no ports: what nobody claims reads all-ones and swallows writes.

use crate::decode::{Gprs, Insn};
use crate::guest::ports;
use crate::svm::run::{Next, Run};
use crate::svm::{Features, exit::FetchError};
use addr::Gva;
use vsvm::layout::Clean;

/// EXITINFO1 of an IOIO exit (APM vol. 2, "IN and OUT Behavior").
#[derive(Clone, Copy, Debug)]
struct Info(u64);

impl Info {
    fn is_in(self) -> bool {
        self.0 & 1 != 0
    }
    fn is_string(self) -> bool {
        self.0 & 4 != 0
    }
    fn is_repeated(self) -> bool {
        self.0 & 8 != 0
    }
    fn size(self) -> u8 {
        match self.0 >> 4 & 7 {
            1 => 1,
            2 => 2,
            _ => 4,
        }
    }
    fn address_bits(self) -> u32 {
        match self.0 >> 7 & 7 {
            1 => 16,
            2 => 32,
            _ => 64,
        }
    }
    fn port(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// Handles one IN, OUT, INS or OUTS.
pub fn handle(run: &mut Run<'_>) -> Next {
    let control = &run.state.cur().control;
    let info = Info(control.exit_info_1);
    // EXITINFO2 is the address behind the instruction, on every processor with SVM.
    let next = control.exit_info_2;
    if info.is_string() {
        return string(run, info, next);
    }
    let size = info.size();
    if info.is_in() {
        let value = ports::read(run, info.port(), size);
        let rax = &mut run.state.cur_mut().save.rax;
        *rax = match size {
            1 => *rax & !0xff | u64::from(value & 0xff),
            2 => *rax & !0xffff | u64::from(value & 0xffff),
            _ => value.into(),
        };
    } else {
        let mask = u32::MAX >> (32 - 8 * u32::from(size));
        let value = run.state.cur().save.rax as u32 & mask;
        if let Some(stop) = ports::write(run, info.port(), size, value) {
            return stop;
        }
    }
    finish(run, next)
}

fn finish(run: &mut Run<'_>, next: u64) -> Next {
    let len = next.wrapping_sub(run.state.cur().save.rip);
    if next != 0 && len <= 15 {
        run.state.advance(len as u8);
        return Next::Resume;
    }
    debug_assert!(!run.ctx.features.has(Features::NRIPS));
    run.advance_over(Insn::Io)
}

/// One step of INS or OUTS; a repeated one comes back here until RCX is 0, so that interrupts get in between.
fn string(run: &mut Run<'_>, info: Info, next: u64) -> Next {
    let mask = u64::MAX >> (64 - info.address_bits());
    let count = run.state.gprs.regs[Gprs::RCX] & mask;
    if info.is_repeated() && count == 0 {
        return finish(run, next);
    }
    match step(run, info, mask) {
        Ok(None) => {}
        Ok(Some(stop)) => return stop,
        Err(FetchError::Changed | FetchError::Gone) => return Next::Resume,
    }
    if info.is_repeated() {
        set_masked(&mut run.state.gprs.regs[Gprs::RCX], count.wrapping_sub(1), mask);
        if count != 1 {
            return Next::Resume;
        }
    }
    finish(run, next)
}

fn set_masked(register: &mut u64, value: u64, mask: u64) {
    // A 32-bit write clears the upper half, a 16-bit one keeps it.
    let keep = if mask == 0xffff { *register & !mask } else { 0 };
    *register = value & mask | keep;
}

fn step(run: &mut Run<'_>, info: Info, mask: u64) -> Result<Option<Next>, FetchError> {
    let size = info.size();
    let index = if info.is_in() { Gprs::RDI } else { Gprs::RSI };
    let offset = run.state.gprs.regs[index] & mask;
    // INS always uses ES; OUTS uses DS but for a prefix, whose number EXITINFO1 holds in bits 12:10 if the
    // processor has decode assists.
    let save = &run.state.cur().save;
    let segment = match (info.is_in(), info.0 >> 10 & 7) {
        (true, _) => save.es,
        (false, 0) if run.ctx.features.has(Features::DECODE_ASSISTS) => save.es,
        (false, 1) => save.cs,
        (false, 2) => save.ss,
        (false, 4) => save.fs,
        (false, 5) => save.gs,
        (false, _) => save.ds,
    };
    let long = save.efer & vsvm::layout::reg::EFER_LMA != 0 && save.cs.attrib & vsvm::layout::attrib::L != 0;
    let linear = if long { offset } else { segment.base.wrapping_add(offset) & 0xffff_ffff };
    let backwards = save.rflags & (1 << 10) != 0;
    let mut buffer = [0; 4];
    let bytes = &mut buffer[..size as usize];
    let mut stop = None;
    if info.is_in() {
        // The destination is touched first: a fault must not swallow input.
        if run.copy_from_guest(Gva::new(linear), bytes, true).is_none() {
            return Ok(None.or(Some(Next::Resume)));
        }
        let value = ports::read(run, info.port(), size).to_le_bytes();
        bytes.copy_from_slice(&value[..size as usize]);
        if run.copy_to_guest(Gva::new(linear), bytes).is_none() {
            return Ok(Some(Next::Resume));
        }
    } else {
        if run.copy_from_guest(Gva::new(linear), bytes, false).is_none() {
            return Ok(Some(Next::Resume));
        }
        stop = ports::write(run, info.port(), size, u32::from_le_bytes(buffer));
    }
    let moved = if backwards { offset.wrapping_sub(size.into()) } else { offset.wrapping_add(size.into()) };
    set_masked(&mut run.state.gprs.regs[index], moved, mask);
    run.state.cur_mut().control.mark_dirty(Clean::empty());
    Ok(stop)
}
