//! Events for L1 while L2 runs: what can be done about them now.
//!
//! Sources: SDM vol. 3, "Other Causes of VM Exits", "Priority Among Concurrent Events", "Changes to Blocking of
//! Events". An event that exits does so whatever L2's IF; one that does not goes to L2 as if there were no
//! hypervisor between.

use crate::bits::{exit, pin, reg::RFLAGS_IF};
use crate::code::{Reason, blocking, intr};
use crate::field::Field;
use crate::route::Exit;
use crate::vmcs12::Checked12;

/// Events that wait for L1, as its platform sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Pending {
    /// INIT.
    pub init: bool,
    /// A monitor-trap exit that L1 asked for and that hardware cannot make, as L2 is halted.
    pub mtf: bool,
    /// L1's preemption timer has reached 0.
    pub timer: bool,
    /// NMI.
    pub nmi: bool,
    /// The vector of a maskable interrupt above L1's TPR.
    pub intr: Option<u8>,
}

/// L2, as vmcs02 has it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct View {
    /// RFLAGS.
    pub rflags: u64,
    /// Interruptibility state.
    pub interruptibility: u64,
    /// An event that vmcs02 is to inject at the next entry.
    pub injecting: u32,
    /// VM entry was accepted and L2 has not run yet.
    pub run_pending: bool,
}

/// What makes it worth asking again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// L2 can take a maskable interrupt: interrupt-window exiting.
    Interrupt,
    /// L2 can take an NMI: NMI-window exiting.
    Nmi,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run L2.
    Nothing,
    /// Enter L2 once and come back at once: an exit now would lose what VM entry promised.
    EnterFirst,
    /// Leave L2 with this exit. `ack`: the interrupt is to be acknowledged first, and its vector put into the
    /// exit by [`acknowledged`].
    Reflect {
        /// The reason.
        reason: Reason,
        /// Interruption information, as far as it is known.
        info: u32,
        /// Acknowledge.
        ack: bool,
    },
    /// Inject into L2 an event with this interruption information.
    Inject(u32),
    /// Not yet.
    Wait(Window),
    /// The interrupt is L1's posted-interrupt notification: acknowledge it, and move what the descriptor holds
    /// to L2's virtual-APIC page.
    Posted,
}

/// Interruption information of an NMI.
pub const NMI: u32 = intr::VALID | intr::kind::NMI << 8 | 2;

/// What to do about the most urgent event that can be acted upon.
pub fn next(c12: &Checked12, view: &View, pending: Pending) -> Action {
    let plain = |reason| Action::Reflect { reason, info: 0, ack: false };
    let wanted = match pending {
        Pending { init: true, .. } => plain(Reason::INIT),
        Pending { mtf: true, .. } => plain(Reason::MONITOR_TRAP),
        Pending { timer: true, .. } if c12.pin(pin::PREEMPTION_TIMER) => plain(Reason::PREEMPTION_TIMER),
        Pending { nmi: true, intr, .. } => match (nmi(c12, view), intr) {
            // An NMI that has to wait does not hold up interrupts.
            (Action::Wait(window), Some(vector)) => match interrupt(c12, view, vector) {
                Action::Wait(_) => Action::Wait(window),
                other => other,
            },
            (action, _) => action,
        },
        Pending { intr: Some(vector), .. } => interrupt(c12, view, vector),
        _ => return Action::Nothing,
    };
    // INIT goes the same way: it stays latched.
    let entry_promised = view.run_pending;
    if entry_promised && !matches!(wanted, Action::Wait(_)) { Action::EnterFirst } else { wanted }
}

fn nmi(c12: &Checked12, view: &View) -> Action {
    let blocked = |bits| view.interruptibility & bits != 0;
    if c12.pin(pin::NMI) {
        // Virtual NMIs: what L2 blocks are its virtual ones.
        return match blocked(blocking::NMI) && !c12.pin(pin::VIRTUAL_NMIS) {
            true => Action::Wait(Window::Nmi),
            false => Action::Reflect { reason: Reason::EXCEPTION_NMI, info: NMI, ack: false },
        };
    }
    match blocked(blocking::NMI | blocking::MOV_SS | blocking::STI) || intr::valid(view.injecting) {
        true => Action::Wait(Window::Nmi),
        false => Action::Inject(NMI),
    }
}

fn interrupt(c12: &Checked12, view: &View, vector: u8) -> Action {
    if c12.pin(pin::EXTERNAL_INTERRUPT) {
        let posted = c12.pin(pin::POSTED_INTERRUPTS);
        return match posted && u64::from(vector) == c12.get(Field::POSTED_INTR_NV) {
            true => Action::Posted,
            // Without acknowledgement the interrupt stays in L1's local APIC, and the information is not valid.
            false => Action::Reflect {
                reason: Reason::EXTERNAL_INTERRUPT,
                info: 0,
                ack: c12.exit(exit::ACK_INTERRUPT),
            },
        };
    }
    let open =
        view.rflags & RFLAGS_IF != 0 && view.interruptibility & (blocking::STI | blocking::MOV_SS) == 0;
    match open && !intr::valid(view.injecting) {
        true => Action::Inject(intr::VALID | u32::from(vector)),
        false => Action::Wait(Window::Interrupt),
    }
}

/// Interruption information of an acknowledged external interrupt.
pub fn acknowledged(vector: u8) -> u32 {
    intr::VALID | intr::kind::EXTERNAL << 8 | u32::from(vector)
}

/// An exit that L0 makes up. An event that vmcs02 was still to inject was not delivered: L1 finds it in the
/// IDT-vectoring fields. `error` and `length` are vmcs02's VM-entry fields.
pub fn made_up(reason: Reason, info: u32, injecting: u32, error: u32, length: u32) -> Exit {
    let undelivered = intr::valid(injecting);
    Exit {
        reason: reason.0.into(),
        intr_info: info,
        idt_info: if undelivered { injecting } else { 0 },
        idt_error: if undelivered && injecting & intr::ERROR_CODE != 0 { error } else { 0 },
        insn_length: if undelivered && intr::is_soft(injecting) { length } else { 0 },
        ..Exit::default()
    }
}

/// What L0 injects again after it handled an exit during the delivery of an event: information, error code and
/// instruction length for vmcs02's VM-entry fields. SDM vol. 3, "Information for VM Exits That Occur During
/// Event Delivery".
pub fn again(e: &Exit) -> Option<(u32, u32, u32)> {
    const MEANINGFUL: u32 = !intr::NMI_UNBLOCKED;
    intr::valid(e.idt_info).then_some((e.idt_info & MEANINGFUL, e.idt_error, e.insn_length))
}
