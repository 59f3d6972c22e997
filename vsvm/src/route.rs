//! Whose exit is it, when L2 was running?
//!
//! Total over all 2^64 codes. The default is L1: an exit that nobody asked for and L0 handled would let L2
//! act as L1. L0 gets what only it can understand, and what L1 did not intercept; it then acts *as L2*: it
//! emulates with L2's registers, composed TSC and so on, and where the instruction acts on an address or
//! on GIF, on L1's: VMLOAD and VMSAVE on L1-physical memory, STGI and CLGI on L1's GIF
//! ([`crate::events`]) or on a virtual GIF that L0 keeps. VMMCALL that L1 does not intercept is #UD.

use crate::layout::{ExitCode, Intercept, Intercepts};
use crate::perm::{self, IoAccess, Perm12};
use crate::vmcb12::Checked12;

/// An exit from L2, read once from vmcb02 (or computed: TCG's CR reads must carry the decoded register's
/// code, a nested page fault the software walk's information).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Exit {
    /// EXITCODE, by [`ExitCode::from_hardware`].
    pub code: ExitCode,
    /// EXITINFO1. With decode assists offered in software the caller fills it in.
    pub info1: u64,
    /// EXITINFO2.
    pub info2: u64,
    /// EXITINTINFO.
    pub int_info: u64,
    /// nRIP, 0 if the exit has none.
    pub nrip: u64,
    /// L2's ECX, which names the MSR on an MSR exit.
    pub ecx: u32,
}

impl Default for ExitCode {
    fn default() -> Self {
        ExitCode::INVALID
    }
}

/// The owner of an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// L0 handles it; L1 never hears of it.
    L0,
    /// Reflect it to L1.
    L1,
    /// L0 first; it may then have something for L1. INTR and NMI: service the machine's, then ask
    /// [`crate::events::next`]. #MC: likewise. Nested page fault: walk L1's tables, then fix, or reflect
    /// what the walk found.
    Both,
}

/// What L0 wants for reasons of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct L0Wants {
    /// Exits that L0 takes even if L1 intercepts them (a debugger's #DB and #BP).
    pub first: Intercepts,
    /// L0 borrowed the virtual interrupt: [`crate::vmcb12::Cached12::window_borrowed`].
    pub window_borrowed: bool,
}

/// How the owner of a code is found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// L1 iff its intercept bit is set, else L0.
    Bit,
    /// The same, but L0 has a look first.
    BothOrL0,
    /// L1 iff its bit is set and its map says so.
    Io,
    /// L1 iff its bit is set and its map says so.
    Msr,
    /// L0's window, else by the bit.
    Vintr,
    /// Always L0.
    Host,
    /// Always L1: unknown, or never asked for by L0.
    Guest,
}

/// Number of codes that have an intercept bit.
const CODES: usize = 0xc0;

/// Rule of each code that has an intercept bit.
const RULES: [Rule; CODES] = {
    let mut rules = [Rule::Bit; CODES];
    rules[ExitCode::exception(18).0 as usize] = Rule::BothOrL0;
    rules[ExitCode::INTR.0 as usize] = Rule::BothOrL0;
    rules[ExitCode::NMI.0 as usize] = Rule::BothOrL0;
    rules[ExitCode::SMI.0 as usize] = Rule::Host;
    rules[ExitCode::VINTR.0 as usize] = Rule::Vintr;
    rules[ExitCode::IOIO.0 as usize] = Rule::Io;
    rules[ExitCode::MSR.0 as usize] = Rule::Msr;
    // EFER and CR write traps exist for encrypted guests only; codes behind IDLE_HLT don't exist.
    let mut code = 0x8f;
    while code < 0xa0 {
        rules[code] = Rule::Guest;
        code += 1;
    }
    code = 0xa7;
    while code < CODES {
        rules[code] = Rule::Guest;
        code += 1;
    }
    rules
};

#[inline]
fn rule(code: ExitCode) -> Rule {
    match code {
        ExitCode(n) if n < CODES as u64 => RULES[n as usize],
        ExitCode::AVIC_INCOMPLETE_IPI | ExitCode::AVIC_NOACCEL | ExitCode::VMGEXIT => Rule::Host,
        // The processor refused vmcb02 or stopped in mid-run: L0 finds out why before L1 hears of it.
        ExitCode::INVALID | ExitCode::BUSY | ExitCode::IDLE_REQUIRED | ExitCode::INVALID_PMC => Rule::Host,
        _ => Rule::Guest,
    }
}

/// Whether L0 takes the exit without asking L1.
#[inline]
pub fn l0_wants(exit: &Exit, wants: &L0Wants) -> bool {
    match rule(exit.code) {
        Rule::Host => true,
        Rule::Vintr if wants.window_borrowed => true,
        _ => Intercept::of(exit.code).is_some_and(|bit| wants.first.has(bit)),
    }
}

/// Whether L1 asked for the exit, or must get it as nobody knows it.
#[inline]
pub fn l1_wants(exit: &Exit, c12: &Checked12, perm: &impl Perm12) -> bool {
    let by_bit = Intercept::of(exit.code).is_some_and(|bit| c12.control.intercepts.has(bit));
    match rule(exit.code) {
        Rule::Host => false,
        Rule::Guest => true,
        Rule::Bit | Rule::BothOrL0 | Rule::Vintr => by_bit,
        Rule::Io => by_bit && perm::io_intercepted(perm, IoAccess::from_info(exit.info1)),
        Rule::Msr => by_bit && perm::msr_intercepted(perm, exit.ecx, exit.info1 & 1 != 0),
    }
}

/// Whose exit it is. `perm` is asked only for port and MSR exits that L1 intercepts.
#[inline]
pub fn route(exit: &Exit, c12: &Checked12, wants: &L0Wants, perm: &impl Perm12) -> Route {
    if exit.code == ExitCode::NPF {
        return if c12.np() { Route::Both } else { Route::L0 };
    }
    if l0_wants(exit, wants) || !l1_wants(exit, c12, perm) {
        Route::L0
    } else if rule(exit.code) == Rule::BothOrL0 {
        Route::Both
    } else {
        Route::L1
    }
}

/// The code under which a write of CR0 is to be routed, if L0 itself intercepts CR0 writes: then the
/// processor never reports CR0_SEL_WRITE, which counts only changes of other bits than TS and MP, and
/// which a plain intercept by L1 beats (APM vol. 2, "Selective Intercepts" in "Instruction Intercepts").
pub fn cr0_write_code(c12: &Checked12, old: u64, new: u64) -> ExitCode {
    const TS_MP: u64 = 1 << 3 | 1 << 1;
    let plain = c12.control.intercepts.has(Intercept::cr_write(0));
    let selective = c12.control.intercepts.has(Intercept::CR0_SEL_WRITE);
    if !plain && selective && (old ^ new) & !TS_MP != 0 {
        ExitCode::CR0_SEL_WRITE
    } else {
        ExitCode::cr_write(0)
    }
}
