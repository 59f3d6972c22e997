//! The hypercalls that are one operation each.

use super::args::Ctx;
use super::{Args, CallResult, Width};
use crate::platform::Arch;
use crate::time::TimerKind;
use xen_abi::Errno;
use xen_abi::call::{VMASST_CMD_DISABLE, VMASST_CMD_ENABLE, VMASST_TYPE_RUNSTATE_UPDATE_FLAG};

/// A deadline further ahead is a caller's mistake (`set_timer_op` of Xen 4.17): it is made this soon.
const FAR: u64 = 1 << 50;
const SOON: u64 = 100_000_000;

/// The deadline for `timeout` at `now`; `None` stops the timer.
fn deadline(timeout: u64, now: u64) -> Option<u64> {
    let far = (timeout as i64) < 0 || timeout.saturating_sub(now) >= FAR;
    match timeout {
        0 => None,
        _ if far => Some(now.saturating_add(SOON)),
        _ => Some(timeout),
    }
}

pub(super) fn set_timer_op<A: Arch>(ctx: &mut Ctx<'_, A>, args: Args) -> CallResult {
    let [low, high, ..] = args;
    let timeout = match ctx.width {
        Width::Bits64 => low,
        Width::Bits32 => high << 32 | low,
    };
    ctx.vcpu.set_timer(TimerKind::Singleshot, deadline(timeout, A::now()));
    CallResult::Return(0)
}

pub(super) fn vm_assist<A: Arch>(ctx: &mut Ctx<'_, A>, args: Args) -> CallResult {
    let [cmd, kind, ..] = args;
    let on = match cmd {
        VMASST_CMD_ENABLE => true,
        VMASST_CMD_DISABLE => false,
        _ => return Errno::ENOSYS.into(),
    };
    // The other assists are for PV guests.
    if kind != VMASST_TYPE_RUNSTATE_UPDATE_FLAG {
        return Errno::EINVAL.into();
    }
    ctx.vcpu.domain().set_runstate_update_flag(on);
    CallResult::Return(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_and_negative_deadlines_come_soon() {
        let now = 5_000;
        assert_eq!(deadline(0, now), None);
        assert_eq!(deadline(1, now), Some(1));
        assert_eq!(deadline(now + FAR - 1, now), Some(now + FAR - 1));
        assert_eq!(deadline(now + FAR, now), Some(now + SOON));
        assert_eq!(deadline(u64::MAX, now), Some(now + SOON));
    }
}
