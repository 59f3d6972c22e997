//! VMMCALL: Xen's hypercalls.

use crate::decode::{CodeSize, Gprs, Insn};
use crate::svm::run::{Next, Run};
use crate::svm::vcpu::VcpuState;
use addr::Gva;
use hv_core::hypercall::{self, CallResult, Width};
use hv_core::platform::{CallIo, Fault};
use hv_core::trace::{Kind, Level};
use xen_abi::Errno;

/// Reaches the caller's memory by linear address, with the caller's rights.
struct Io<'a, 'b>(&'a mut Run<'b>);

impl CallIo for Io<'_, '_> {
    fn copy_in(&mut self, gva: u64, out: &mut [u8]) -> Result<(), Fault> {
        self.0.read_l1(Gva::new(gva), out).map_err(|_| Fault)
    }
    fn copy_out(&mut self, gva: u64, data: &[u8]) -> Result<(), Fault> {
        self.0.write_l1(Gva::new(gva), data).map_err(|_| Fault)
    }
}

/// Handles a hypercall of L1.
pub fn handle(run: &mut Run<'_>) -> Next {
    let Ok(len) = run.length(Insn::Vmmcall) else { return Next::Resume };
    let wide = VcpuState::code_size(&run.state.vmcb01) == CodeSize::Bits64;
    if run.state.vmcb01.save.cpl != 0 {
        return finish(run, len, wide, Errno::EPERM.result());
    }
    let regs = &run.state.gprs.regs;
    let (number, args, width) = if wide {
        let args = [regs[Gprs::RDI], regs[Gprs::RSI], regs[Gprs::RDX], regs[10], regs[8], regs[9]];
        (run.state.vmcb01.save.rax, args, Width::Bits64)
    } else {
        let low = |n: usize| regs[n] & 0xffff_ffff;
        let args =
            [low(Gprs::RBX), low(Gprs::RCX), low(Gprs::RDX), low(Gprs::RSI), low(Gprs::RDI), low(Gprs::RBP)];
        (run.state.vmcb01.save.rax & 0xffff_ffff, args, Width::Bits32)
    };
    let Ok(number) = u32::try_from(number) else {
        return finish(run, len, wide, Errno::ENOSYS.result());
    };
    let vcpu = run.vcpu;
    let result = hypercall::dispatch(vcpu, &mut Io(run), number, args, width);
    run.ctx.trace.rare(Level::L1, Kind::HYPERCALL, number, args[0], value(&result));
    match result {
        CallResult::Return(value) => finish(run, len, wide, value),
        CallResult::Block(value) => {
            finish(run, len, wide, value);
            Next::Sleep
        }
        CallResult::Yield(value) => {
            finish(run, len, wide, value);
            Next::Yield
        }
        CallResult::Stop(value) => {
            finish(run, len, wide, value);
            Next::Stop
        }
        // The instruction is run again, with what the call has left in the registers.
        CallResult::Continue(updated) => {
            const WIDE: [usize; 6] = [Gprs::RDI, Gprs::RSI, Gprs::RDX, 10, 8, 9];
            const NARROW: [usize; 6] = [Gprs::RBX, Gprs::RCX, Gprs::RDX, Gprs::RSI, Gprs::RDI, Gprs::RBP];
            for (register, value) in (if wide { WIDE } else { NARROW }).into_iter().zip(updated) {
                run.state.gprs.regs[register] = value;
            }
            Next::Resume
        }
    }
}

/// What the trace shows of a result; of a call that goes on, the argument it goes on with.
fn value(result: &CallResult) -> u64 {
    match *result {
        CallResult::Return(value)
        | CallResult::Block(value)
        | CallResult::Yield(value)
        | CallResult::Stop(value) => value as u64,
        CallResult::Continue(args) => args[0],
    }
}

fn finish(run: &mut Run<'_>, len: u8, wide: bool, value: i64) -> Next {
    run.state.vmcb01.save.rax = if wide { value as u64 } else { value as u64 & 0xffff_ffff };
    run.state.advance(len);
    Next::Resume
}
