//! `multicall`.

use super::args::Ctx;
use super::{Args, CallResult, Width, call};
use crate::platform::Arch;
use xen_abi::Errno;
use xen_abi::call::{Call, MulticallEntry, MulticallEntry32};

/// Calls made before pending work is looked for.
const BATCH: u64 = 32;

pub(super) fn multicall<A: Arch>(ctx: &mut Ctx<'_, A>, args: Args) -> CallResult {
    let [list, count, ..] = args;
    let count = count & 0xffff_ffff;
    let size = match ctx.width {
        Width::Bits64 => size_of::<MulticallEntry>(),
        Width::Bits32 => size_of::<MulticallEntry32>(),
    } as u64;
    let again = |ctx: &Ctx<'_, A>, done: u64| {
        CallResult::Continue([ctx.element(list, done, size), count - done, 0, 0, 0, 0])
    };
    for i in 0..count {
        let at = ctx.element(list, i, size);
        let after = match one(ctx, at) {
            Err(error) => return error.into(),
            Ok(CallResult::Continue(_)) => return again(ctx, i),
            Ok(after) => after,
        };
        let last = i + 1 == count;
        match after {
            // What follows a call that stops or suspends the vCPU is made when it runs again.
            CallResult::Return(_) if !last && i + 1 < BATCH => {}
            CallResult::Return(_) if !last => return again(ctx, i + 1),
            CallResult::Return(_) => {}
            _ if !last => return again(ctx, i + 1),
            CallResult::Block(_) => return CallResult::Block(0),
            CallResult::Yield(_) => return CallResult::Yield(0),
            _ => return CallResult::Stop(0),
        }
    }
    CallResult::Return(0)
}

/// Makes one call and stores its result; one that took long has its arguments stored instead.
fn one<A: Arch>(ctx: &mut Ctx<'_, A>, at: u64) -> Result<CallResult, Errno> {
    let (op, args) = match ctx.width {
        Width::Bits64 => {
            let entry: MulticallEntry = ctx.read(at)?;
            // An op beyond 32 bits names no call.
            (u32::try_from(entry.op).unwrap_or(u32::MAX), entry.args)
        }
        Width::Bits32 => {
            let entry: MulticallEntry32 = ctx.read(at)?;
            (entry.op, entry.args.map(u64::from))
        }
    };
    // A multicall within a multicall would recurse as deep as the guest likes.
    let result = if Call(op) == Call::MULTICALL { Errno::ENOSYS.into() } else { call(ctx, Call(op), args) };
    let args_at = |n: u64| at.wrapping_add(n);
    match (result, ctx.width) {
        (CallResult::Continue(args), Width::Bits64) => ctx.write(args_at(16), &args)?,
        (CallResult::Continue(args), Width::Bits32) => ctx.write(args_at(8), &args.map(|arg| arg as u32))?,
        (
            CallResult::Return(value)
            | CallResult::Block(value)
            | CallResult::Yield(value)
            | CallResult::Stop(value),
            width,
        ) => match width {
            Width::Bits64 => ctx.write(at.wrapping_add(8), &value)?,
            Width::Bits32 => ctx.write(at.wrapping_add(4), &(value as i32))?,
        },
    }
    Ok(result)
}
