//! Hypercalls: one table from number to handler. The calling convention is the architecture's: it
//! fetches the number and the arguments from registers and applies the [`CallResult`].

mod args;
mod console;
mod evtchn;
mod grant;
mod hvm;
mod memory;
mod misc;
mod multicall;
mod sched;
#[cfg(test)]
mod tests;
mod vcpu;
mod version;

use crate::domain::Domain;
use crate::platform::{Arch, CallIo};
use crate::sync::atomic::Ordering::SeqCst;
use crate::vcpu::Vcpu;
use alloc::sync::Arc;
use args::Ctx;
use xen_abi::Errno;
use xen_abi::call::Call;

/// How wide the caller's longs and pointers are: the mode it called in, not how it was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 4 bytes.
    Bits32,
    /// 8 bytes.
    Bits64,
}

/// What a hypercall asks of the architecture. In all cases but [`CallResult::Continue`] the value goes
/// into the result register and the instruction is finished; what is said beyond that happens afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallResult {
    /// Go on.
    Return(i64),
    /// Sleep as after HLT with interrupts enabled; [`crate::vcpu::Pending::POLL`] ends it, too.
    Block(i64),
    /// Let others run first ([`crate::sched::WhyPut::Yield`]).
    Yield(i64),
    /// The vCPU may not run any more (its domain stopped, or it went down): test [`Vcpu::may_run`] before
    /// the guest is entered again.
    Stop(i64),
    /// It took long: make these the arguments, leave the instruction pointer where it is, test for pending
    /// work, and let the guest execute the instruction again.
    Continue([u64; 6]),
}

impl From<Result<i64, Errno>> for CallResult {
    fn from(result: Result<i64, Errno>) -> Self {
        CallResult::Return(result.unwrap_or_else(Errno::result))
    }
}

impl From<Errno> for CallResult {
    fn from(error: Errno) -> Self {
        CallResult::Return(error.result())
    }
}

/// The arguments of a call.
pub(crate) type Args = [u64; 6];
type Handler<A> = fn(&mut Ctx<'_, A>, Args) -> CallResult;

/// Which handler answers `call`; `None`: -ENOSYS.
fn handler<A: Arch>(call: Call) -> Option<Handler<A>> {
    Some(match call {
        Call::MEMORY_OP => memory::memory_op,
        Call::MULTICALL => multicall::multicall,
        Call::SET_TIMER_OP => misc::set_timer_op,
        Call::XEN_VERSION => version::xen_version,
        Call::CONSOLE_IO => console::console_io,
        Call::GRANT_TABLE_OP => grant::grant_table_op,
        Call::VM_ASSIST => misc::vm_assist,
        Call::VCPU_OP => vcpu::vcpu_op,
        Call::SCHED_OP => sched::sched_op,
        Call::EVENT_CHANNEL_OP => evtchn::event_channel_op,
        Call::HVM_OP => hvm::hvm_op,
        _ => return None,
    })
}

/// Answers hypercall `nr` of `vcpu`, on its own pCPU, with interrupts on and no lock held. The caller has
/// checked that the guest was at its highest privilege (else the answer is -EPERM), and `io` reaches
/// memory with that privilege, through the translation the *caller* runs on.
pub fn dispatch<A: Arch>(
    vcpu: &Arc<Vcpu<A>>,
    io: &mut dyn CallIo,
    nr: u32,
    args: [u64; 6],
    width: Width,
) -> CallResult {
    vcpu.domain().counters.hypercalls.fetch_add(1, SeqCst);
    let mut ctx = Ctx { vcpu, io, width };
    call(&mut ctx, Call(nr), args)
}

fn call<A: Arch>(ctx: &mut Ctx<'_, A>, call: Call, args: Args) -> CallResult {
    // Registers of a 32-bit caller may hold anything above bit 31.
    let args = if ctx.width == Width::Bits32 { args.map(|arg| arg & 0xffff_ffff) } else { args };
    match handler::<A>(call) {
        Some(handler) => handler(ctx, args),
        None => Errno::ENOSYS.into(),
    }
}

/// The domain an operation names: the caller's own, or, for a privileged caller, another.
/// `ESRCH`: there is none; `EPERM`: not the caller's business.
fn target<A: Arch>(ctx: &Ctx<'_, A>, id: u16) -> Result<Arc<Domain<A>>, Errno> {
    let own = ctx.vcpu.domain();
    let id = xen_abi::DomId(id);
    if id == xen_abi::DomId::SELF || id == own.id() {
        return Ok(own.clone());
    }
    let other = own.machine().domains.get(id).ok_or(Errno::ESRCH)?;
    if own.config().privileged { Ok(other) } else { Err(Errno::EPERM) }
}
