//! Events on their way into the guest: exceptions, NMIs, interrupts, windows.

use crate::svm::vcpu::VcpuState;
use crate::vlapic::Injectable;
use vsvm::layout::{Clean, Event, EventKind, Intercept, int_ctl, int_state, reg};

/// The event that results when `vector` is raised while `pending` has not been delivered (APM vol. 2,
/// "#DF: Double-Fault Exception"): two contributory faults, or a fault on the way to #PF, make #DF; a
/// fault on the way to #DF is a shutdown, which the hardware makes of #DF by itself once injected, unless that fault
/// is intercepted.
pub fn combine(pending: Event, vector: u8, error: Option<u32>) -> Event {
    let contributory = |v: u8| matches!(v, 0 | 10..=13);
    let new = Event::exception(vector, error);
    if !pending.is_valid() || pending.kind() != EventKind::Exception {
        return new;
    }
    let first = pending.vector();
    let double =
        contributory(first) && contributory(vector) || first == 14 && (contributory(vector) || vector == 14);
    if double || first == 8 { Event::exception(8, Some(0)) } else { new }
}

/// When L1 is to exit for an interrupt that it cannot take yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Window {
    /// Not at all: nothing waits.
    Closed,
    /// As soon as it takes interrupts.
    Open,
    /// As soon as it takes interrupts with a task priority below this class.
    BelowTpr(u8),
}

impl VcpuState {
    /// The event that L1's exit interrupted, to be delivered again. Soft events are raised anew by the
    /// instruction, at which RIP still points.
    #[inline]
    pub fn requeue(&mut self, int_info: u64) {
        let event = Event(int_info);
        if !event.is_valid() {
            return;
        }
        let again = match event.kind() {
            EventKind::Soft => false,
            EventKind::Exception => !matches!(event.vector(), 3 | 4),
            _ => true,
        };
        if again {
            self.vmcb01.control.event_inj = event.0;
        }
    }

    /// Whether L1's GIF is set.
    #[inline]
    pub fn gif(&self) -> bool {
        let int_ctl = self.vmcb01.control.int_ctl;
        if int_ctl & int_ctl::V_GIF_ENABLE != 0 {
            int_ctl & int_ctl::V_GIF != 0
        } else {
            self.nested.as_ref().is_none_or(|n| n.machine.gif)
        }
    }

    /// STGI or CLGI of L1's.
    pub fn set_gif(&mut self, on: bool) {
        if let Some(nested) = &mut self.nested {
            nested.machine.gif = on;
        }
        let control = &mut self.vmcb01.control;
        if control.int_ctl & int_ctl::V_GIF_ENABLE != 0 {
            control.int_ctl = control.int_ctl & !int_ctl::V_GIF | if on { int_ctl::V_GIF } else { 0 };
            control.mark_dirty(Clean::TPR);
        }
    }

    /// Puts the next event into vmcb01, or opens a window for it. L1 runs next; requests of others have
    /// been collected ([`Vlapic::sync`](crate::vlapic::Vlapic::sync)). `callback` is a vector to be taken
    /// outside of the local APIC (Xen's callback by vector).
    pub fn prepare_injection(&mut self, callback: Option<u8>) {
        let emulated = super::is_emulated();
        let busy = Event(self.vmcb01.control.event_inj).is_valid();
        let shadow = self.vmcb01.control.int_state & int_state::INTERRUPT_SHADOW != 0;
        let gif = self.gif();
        let mut occupied = busy;
        if self.lapic.nmi_pending() && gif {
            if !occupied && !self.nmi_masked && !shadow {
                self.lapic.take_nmi();
                self.nmi_masked = true;
                self.vmcb01.control.event_inj = Event::NMI.0;
                occupied = true;
            }
            self.watch_iret(self.nmi_masked);
        }
        let open = self.vmcb01.save.rflags & reg::RFLAGS_IF != 0 && !shadow && gif && !occupied;
        // While GIF is clear nothing can come in before STGI. Where the processor keeps it, it also holds back the
        // window for interrupts, so these need no exit on STGI.
        self.watch_stgi(!gif && (self.init_held || self.lapic.nmi_pending()));
        let mut window = Window::Closed;
        let mut tpr_watch = false;
        match (callback, self.lapic.next_injectable()) {
            (Some(vector), _) if open => self.vmcb01.control.event_inj = Event::intr(vector).0,
            (Some(_), _) => window = Window::Open,
            (None, Injectable::Now(vector)) if open => {
                self.lapic.ack(vector);
                self.vmcb01.control.event_inj = Event::intr(vector).0;
                if self.lapic.highest_pending().is_some() {
                    window = Window::Open;
                }
            }
            (None, Injectable::Now(_)) => window = Window::Open,
            // QEMU's emulation takes a virtual interrupt of the very class of the task priority.
            (None, Injectable::BelowTpr { class, .. }) if emulated && class == self.lapic.cr8() => {
                tpr_watch = true;
            }
            (None, Injectable::BelowTpr { class, .. }) => window = Window::BelowTpr(class),
            (None, Injectable::Nothing) => {}
        }
        let held_back = self.vmcb01.control.int_ctl & int_ctl::V_GIF_ENABLE != 0;
        self.set_window(if gif || held_back { window } else { Window::Closed });
        self.watch_tpr(tpr_watch);
        self.publish_tpr();
    }

    /// Asks for an exit as soon as L1 takes interrupts, by a virtual interrupt that is never delivered.
    fn set_window(&mut self, window: Window) {
        let class = |class: u8| u64::from(class & 0xf) << int_ctl::V_INTR_PRIO.trailing_zeros();
        let bits = match window {
            Window::Closed => 0,
            Window::Open => int_ctl::V_IRQ | int_ctl::V_IGN_TPR | int_ctl::V_INTR_PRIO,
            Window::BelowTpr(n) => int_ctl::V_IRQ | class(n),
        };
        let control = &mut self.vmcb01.control;
        let new = control.int_ctl & !(int_ctl::V_IRQ | int_ctl::V_IGN_TPR | int_ctl::V_INTR_PRIO) | bits;
        if new != control.int_ctl {
            control.int_ctl = new;
            control.mark_dirty(Clean::TPR);
        }
        self.watch(Intercept::VINTR, bits != 0);
    }

    /// STGI exits where L0 keeps GIF, and while something waits for it.
    fn watch_stgi(&mut self, waiting: bool) {
        if self.vmcb01.control.int_ctl & int_ctl::V_GIF_ENABLE != 0 && self.msrs.svme {
            self.watch(Intercept::STGI, waiting);
        }
    }

    fn watch_tpr(&mut self, on: bool) {
        self.watch(Intercept::cr_write(8), on);
    }

    fn watch_iret(&mut self, on: bool) {
        self.watch(Intercept::IRET, on);
    }

    pub(super) fn watch(&mut self, what: Intercept, on: bool) {
        let control = &mut self.vmcb01.control;
        if control.intercepts.has(what) != on {
            if on {
                control.intercepts.set(what)
            } else {
                control.intercepts.clear(what)
            }
            control.mark_dirty(Clean::I);
        }
    }

    /// V_TPR from the local APIC.
    #[inline]
    pub fn publish_tpr(&mut self) {
        let tpr = u64::from(self.lapic.cr8());
        let control = &mut self.vmcb01.control;
        if control.int_ctl & int_ctl::V_TPR != tpr {
            control.int_ctl = control.int_ctl & !int_ctl::V_TPR | tpr;
            control.mark_dirty(Clean::TPR);
        }
    }

    /// L1's NMI handler returns: the next NMI may come, after the IRET has been executed.
    pub fn iret(&mut self) {
        self.nmi_masked = false;
        self.watch_iret(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_on_the_way_to_faults() {
        let gp = Event::exception(13, Some(0));
        let pf = Event::exception(14, Some(2));
        let db = Event::exception(1, None);
        assert_eq!(combine(gp, 13, Some(0)).vector(), 8);
        assert_eq!(combine(pf, 14, Some(0)).vector(), 8);
        assert_eq!(combine(gp, 14, Some(0)).vector(), 14, "#PF on the way to #GP is just #PF");
        assert_eq!(combine(db, 13, Some(0)).vector(), 13);
        assert_eq!(combine(Event::intr(0x30), 14, Some(0)).vector(), 14);
    }
}
