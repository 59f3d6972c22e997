//! Events for L1 while L2 runs: what can be done about them now.
//!
//! Sources: APM vol. 2, "Interrupt and Local APIC Support" (of SVM), "Global Interrupt Flag", "Masking and
//! Injecting Virtual Interrupts". L1's GIF gates everything here; with V_INTR_MASKING the IF that L1 had at
//! VMRUN gates its interrupts, without it L2's IF does. L2's *virtual* GIF gates only what is virtual.

use crate::layout::{Clean, ExitCode, Intercept, Vmcb, int_ctl, int_state, reg};
use crate::vmcb12::{Cached12, Checked12};
use bitflags::bitflags;

/// Events that wait for L1, as its platform sees them (its local APIC has a deliverable vector, and so on).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Pending {
    /// INIT.
    pub init: bool,
    /// SMI.
    pub smi: bool,
    /// NMI.
    pub nmi: bool,
    /// A maskable interrupt above L1's TPR.
    pub intr: bool,
}

/// What decides about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct View {
    /// L1's GIF. VMRUN sets it; an L2 whose CLGI L1 lets through clears it.
    pub gif: bool,
    /// L1's IF at VMRUN.
    pub host_if: bool,
    /// L2's IF.
    pub guest_if: bool,
    /// L2 is in an interrupt shadow.
    pub shadow: bool,
    /// 12 has V_INTR_MASKING.
    pub masking: bool,
    /// 12 intercepts INIT, SMI, NMI, INTR.
    pub intercepts: Pending,
    /// NMIs are blocked by one being handled.
    pub nmi_blocked: bool,
    /// vmcb02 has an event to inject, or VMRUN was accepted and L2 has not run yet.
    pub entry_pending: bool,
}

impl View {
    /// The view from the state itself. `nmi_blocked` and `run_pending` (no real entry since VMRUN) are the
    /// caller's.
    pub fn of(
        gif: bool,
        vmcb01: &Vmcb,
        c12: &Checked12,
        vmcb02: &Vmcb,
        nmi_blocked: bool,
        run_pending: bool,
    ) -> Self {
        let has = |what| c12.control.intercepts.has(what);
        Self {
            gif,
            host_if: vmcb01.save.rflags & reg::RFLAGS_IF != 0,
            guest_if: vmcb02.save.rflags & reg::RFLAGS_IF != 0,
            shadow: vmcb02.control.int_state & int_state::INTERRUPT_SHADOW != 0,
            masking: c12.intr_masking(),
            intercepts: Pending {
                init: has(Intercept::INIT),
                smi: has(Intercept::SMI),
                nmi: has(Intercept::NMI),
                intr: has(Intercept::INTR),
            },
            nmi_blocked,
            entry_pending: run_pending || vmcb02.control.event_inj & crate::layout::Event::VALID != 0,
        }
    }
}

/// An event line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// INIT: resets the vCPU, L1 and L2 with it.
    Init,
    /// SMI.
    Smi,
    /// NMI through L2's IDT.
    Nmi,
    /// The interrupt, acknowledged from L1's local APIC, through L2's IDT.
    Intr,
}

bitflags! {
    /// When to ask again: as soon as any of these happens.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Windows: u8 {
        /// L2 can take a maskable interrupt: [`borrow_window`].
        const INTR = 1 << 0;
        /// L2 has left its NMI handler: intercept IRET.
        const NMI = 1 << 1;
        /// L2 has executed its next instruction, whatever its IF.
        const SHADOW = 1 << 2;
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run L2. What waits, waits for L1 to do something that exits.
    Nothing,
    /// Enter L2 once and come back at once: an exit now would lose what VMRUN promised to inject.
    EnterFirst,
    /// Leave L2 with this exit. The event stays pending for L1, but for INIT's and SMI's own handling.
    Reflect(ExitCode),
    /// The event happens to the processor as if there were no hypervisor between: L1 doesn't intercept it.
    Deliver(Line),
    /// Not yet.
    OpenWindow(Windows),
}

/// What to do about the most urgent event that can be acted upon (APM vol. 2, "Priorities" in "Exceptions
/// and Interrupts": INIT, SMI, NMI, INTR).
pub fn next(view: &View, pending: Pending) -> Action {
    let any = pending.init || pending.smi || pending.nmi || pending.intr;
    if !any || !view.gif {
        return Action::Nothing;
    }
    let candidates = [
        (pending.init, view.intercepts.init, Line::Init, ExitCode::INIT),
        (pending.smi, view.intercepts.smi, Line::Smi, ExitCode::SMI),
    ];
    for (waits, intercepted, line, code) in candidates {
        if waits {
            return if intercepted { reflect(view, code) } else { Action::Deliver(line) };
        }
    }
    let nmi = if pending.nmi { nmi(view) } else { Action::Nothing };
    if !pending.intr {
        return nmi;
    }
    // An NMI that has to wait does not hold up interrupts.
    match (nmi, intr(view)) {
        (Action::Nothing, action) | (action @ Action::OpenWindow(_), Action::Nothing) => action,
        (Action::OpenWindow(a), Action::OpenWindow(b)) => Action::OpenWindow(a | b),
        (Action::OpenWindow(_), action) => action,
        (action, _) => action,
    }
}

fn nmi(view: &View) -> Action {
    if view.nmi_blocked {
        Action::OpenWindow(Windows::NMI)
    } else if view.intercepts.nmi {
        reflect(view, ExitCode::NMI)
    } else {
        deliver(view, Line::Nmi)
    }
}

fn intr(view: &View) -> Action {
    let open = if view.masking { view.host_if } else { view.guest_if };
    match (open, view.masking) {
        // L1 runs L2 with its own interrupts off: it will look when it turns them on.
        (false, true) => Action::Nothing,
        (false, false) => Action::OpenWindow(Windows::INTR),
        (true, _) if view.intercepts.intr => reflect(view, ExitCode::INTR),
        (true, _) => deliver(view, Line::Intr),
    }
}

/// An intercepted event leaves L2 also from an interrupt shadow, which vmcb12 then carries.
fn reflect(view: &View, code: ExitCode) -> Action {
    if view.entry_pending { Action::EnterFirst } else { Action::Reflect(code) }
}

fn deliver(view: &View, line: Line) -> Action {
    if view.entry_pending {
        return Action::EnterFirst;
    }
    match (view.shadow, line) {
        (false, _) => Action::Deliver(line),
        // The window is gated by L2's IF, so it opens for an interrupt that IF gates.
        (true, Line::Intr) if !view.masking => Action::OpenWindow(Windows::INTR),
        (true, _) => Action::OpenWindow(Windows::SHADOW),
    }
}

/// The bits of int_ctl that a virtual interrupt consists of.
const VIRTUAL_INTERRUPT: u64 =
    int_ctl::V_IRQ | int_ctl::V_INTR_PRIO | int_ctl::V_IGN_TPR | int_ctl::V_INTR_VECTOR;

/// Makes vmcb02 exit with VINTR when L2 can take a maskable interrupt. 12's own virtual interrupt is set
/// aside until [`return_window`] or the reflect of another exit. While borrowed, VINTR is L0's.
pub fn borrow_window(c12: &mut Cached12, vmcb02: &mut Vmcb) {
    let control = &mut vmcb02.control;
    if c12.borrowed.is_none() {
        let irq = if v_irq12(c12, control.int_ctl) { int_ctl::V_IRQ } else { 0 };
        c12.borrowed = Some(control.int_ctl & VIRTUAL_INTERRUPT & !int_ctl::V_IRQ | irq);
    }
    control.int_ctl =
        control.int_ctl & !VIRTUAL_INTERRUPT | int_ctl::V_IRQ | int_ctl::V_IGN_TPR | int_ctl::V_INTR_PRIO;
    control.intercepts.set(Intercept::VINTR);
    control.mark_dirty(Clean::TPR | Clean::I);
}

/// The window has opened (or is no longer needed): gives 12's virtual interrupt back.
pub fn return_window(c12: &mut Cached12, vmcb02: &mut Vmcb) {
    let Some(saved) = c12.borrowed.take() else { return };
    let control = &mut vmcb02.control;
    let theirs = c12.data.control.int_ctl;
    // Where L0 keeps a clear virtual GIF, V_IRQ stays in the copy only.
    let masked = soft_vgif(theirs, control.int_ctl) && theirs & int_ctl::V_GIF == 0;
    let saved = if masked { saved & !int_ctl::V_IRQ } else { saved };
    control.int_ctl = control.int_ctl & !VIRTUAL_INTERRUPT | saved;
    if !c12.data.control.intercepts.has(Intercept::VINTR) {
        control.intercepts.clear(Intercept::VINTR);
    }
    control.mark_dirty(Clean::TPR | Clean::I);
}

/// Whether 12's virtual interrupt is pending, as far as vmcb02 (`int_ctl02`) and what L0 set aside tell.
pub(crate) fn v_irq12(c12: &Cached12, int_ctl02: u64) -> bool {
    let theirs = c12.data.control.int_ctl;
    let source = match c12.borrowed {
        Some(saved) => saved,
        None if soft_vgif(theirs, int_ctl02) && theirs & int_ctl::V_GIF == 0 => theirs,
        None => int_ctl02,
    };
    source & int_ctl::V_IRQ != 0
}

/// Whether L0 keeps L2's virtual GIF: L1 turned it on, vmcb02 hasn't got it.
fn soft_vgif(int_ctl12: u64, int_ctl02: u64) -> bool {
    int_ctl12 & int_ctl::V_GIF_ENABLE != 0 && int_ctl02 & int_ctl::V_GIF_ENABLE == 0
}

/// L2 executed STGI or CLGI, not intercepted by L1. If L2 has a virtual GIF that L0 keeps, changes it and
/// returns true; else the instruction acts on L1's GIF, the caller's to change.
pub fn set_vgif(c12: &mut Cached12, vmcb02: &mut Vmcb, on: bool) -> bool {
    let now = vmcb02.control.int_ctl;
    if !soft_vgif(c12.data.control.int_ctl, now) {
        return false;
    }
    let irq = if v_irq12(c12, now) { int_ctl::V_IRQ } else { 0 };
    let theirs = &mut c12.data.control.int_ctl;
    *theirs = *theirs & !(int_ctl::V_GIF | int_ctl::V_IRQ) | irq | if on { int_ctl::V_GIF } else { 0 };
    if c12.borrowed.is_none() {
        vmcb02.control.int_ctl = now & !int_ctl::V_IRQ | if on { irq } else { 0 };
        vmcb02.control.mark_dirty(Clean::TPR);
    }
    true
}
