//! `console_io`.

use super::args::Ctx;
use super::{Args, CallResult};
use crate::platform::Arch;
use xen_abi::Errno;
use xen_abi::call::{CONSOLEIO_READ, CONSOLEIO_WRITE};

const CHUNK: usize = 256;
/// Bytes that one call writes before it looks for pending work.
const BUDGET: u64 = 4096;

pub(super) fn console_io<A: Arch>(ctx: &mut Ctx<'_, A>, args: Args) -> CallResult {
    let [op, count, buffer, ..] = args;
    let config = ctx.vcpu.domain().config();
    match op {
        CONSOLEIO_WRITE if config.privileged || config.console_io => write(ctx, count, buffer),
        // Input of the serial line comes through the PV console.
        CONSOLEIO_READ if config.privileged => CallResult::Return(0),
        CONSOLEIO_WRITE | CONSOLEIO_READ => Errno::EPERM.into(),
        _ => Errno::ENOSYS.into(),
    }
}

fn write<A: Arch>(ctx: &mut Ctx<'_, A>, count: u64, buffer: u64) -> CallResult {
    // The count is an int in the ABI.
    let count = count & 0xffff_ffff;
    if count > i32::MAX as u64 {
        return Errno::E2BIG.into();
    }
    let mut done = 0;
    while done < count.min(BUDGET) {
        let mut chunk = [0; CHUNK];
        let n = (count - done).min(CHUNK as u64) as usize;
        if ctx.io.copy_in(ctx.element(buffer, done, 1), &mut chunk[..n]).is_err() {
            return Errno::EFAULT.into();
        }
        A::console_write(ctx.vcpu.domain(), &chunk[..n]);
        done += n as u64;
    }
    if done < count {
        let rest = ctx.element(buffer, done, 1);
        return CallResult::Continue([CONSOLEIO_WRITE, count - done, rest, 0, 0, 0]);
    }
    CallResult::Return(0)
}
