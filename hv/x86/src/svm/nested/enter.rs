//! VMRUN by L1, and entering L2.

use super::memory::env;
use super::{Nested, Todo};
use crate::apic;
use crate::guest::arch;
use crate::guest::page::Page;
use crate::policy::mitigation::Guards;
use crate::svm::Features;
use crate::svm::exit::{FINISHED, Tier1};
use crate::svm::maps;
use crate::svm::run::{Run, world_switch};
use crate::trap::vector;
use addr::{Gpa, GuestMemory, Hpa};
use core::sync::atomic::Ordering;
use hv_core::trace::{Kind, Level};
use vsvm::asid::Flush;
use vsvm::events::{self, Action, Line, Pending, View, Windows};
use vsvm::layout::{Clean, Event, ExitCode, Intercept, Intercepts, Vmcb, int_ctl};
use vsvm::merge::{L0Policy, merge};
use vsvm::perm::{L0Map, map_word};
use vsvm::reflect::refuse;
use vsvm::route::Exit;

/// What Testudo intercepts in every L2 beyond what `vsvm` requires.
const INTERCEPTS02: Intercepts = Intercepts::of(&[
    Intercept::WBINVD,
    Intercept::MONITOR,
    Intercept::MWAIT,
    Intercept::RDPMC,
    Intercept::TASK_SWITCH,
    Intercept::RSM,
    Intercept::INVLPGB,
    Intercept::INVLPGB_ILLEGAL,
    Intercept::MCOMMIT,
    Intercept::TLBSYNC,
]);

/// VMRUN, all checks of the instruction passed, the operand `gpa`, `len` bytes long.
pub fn vmrun(run: &mut Run<'_>, gpa: Gpa, len: u8) -> Tier1 {
    let memory = &run.vcpu.domain().memory;
    let l1_cr0 = run.state.vmcb01.save.cr0;
    let Some(caps) = run.vcpu.domain().arch.nested.as_ref().map(|n| n.caps) else { return Tier1::Slow };
    let Some(nested) = run.state.nested.as_deref_mut() else { return Tier1::Slow };
    let pick = nested.machine.pick(gpa);
    let slot = &mut nested.slots[pick.slot];
    if !pick.hit {
        slot.vmcb02.control.vmcb_clean = 0;
        slot.page = None;
        slot.msrpm12 = None;
    }
    // An operand that is no memory.
    let Some(moved) = slot.pin(memory, gpa) else {
        run.state.inject_gp();
        return Tier1::Again;
    };
    // What was copied from another page tells nothing of this one.
    let trusted = pick.hit && !moved;
    run.state.advance(len);
    let resume = run.state.vmcb01.save.rip;
    let Some(nested) = run.state.nested.as_deref_mut() else { return Tier1::Slow };
    let Some((page, _)) = &nested.slots[pick.slot].page else { return Tier1::Slow };
    let entry = nested.machine.slot_mut(pick.slot);
    match entry.c12.load(page, &caps, l1_cr0, trusted) {
        Ok(dirty) => {
            let by_asid12 = caps.has(vsvm::caps::Features::FLUSH_BY_ASID);
            let Some(c12) = entry.c12.checked() else { return Tier1::Slow };
            let selected = nested.asids.select(c12, by_asid12);
            nested.tag = selected.index;
            if selected.flush_01 {
                run.state.tag.owe(Flush::All);
            }
            compose(run, pick.slot, dirty, selected.resync);
            let Some(nested) = run.state.nested.as_deref_mut() else { return Tier1::Slow };
            nested.machine.enter(pick.slot, resume);
            run.ctx.trace.detail(Level::L1, Kind::NESTED_ENTRY, 0, gpa.raw(), 0);
            set_v_gif(&mut run.state.vmcb01);
            run.note_entry();
            let Some(nested) = run.state.nested.as_deref_mut() else { return Tier1::Slow };
            if nested.todo.root || nested.todo.resync { Tier1::Done } else { ready(run) }
        }
        Err(refusal) => {
            // Told in the second tier: a console is slow, and L1 may do this without end.
            let before = nested.refused.map_or(0, |(times, _)| times);
            nested.refused = Some((before.saturating_add(1), refusal));
            let resume_l1 = refuse(&mut entry.c12, page);
            nested.machine.leave();
            resume_l1.apply(resume, &mut run.state.vmcb01);
            Tier1::Again
        }
    }
}

/// VMRUN sets L1's GIF, also where the processor keeps it.
fn set_v_gif(vmcb01: &mut Vmcb) {
    let control = &mut vmcb01.control;
    if control.int_ctl & (int_ctl::V_GIF_ENABLE | int_ctl::V_GIF) == int_ctl::V_GIF_ENABLE {
        control.int_ctl |= int_ctl::V_GIF;
        control.mark_dirty(Clean::TPR);
    }
}

/// Whether an event of L1 waits that must be looked at before L2 runs. One that waits only for L2 to be entered, as
/// most do right after VMRUN, needs no second tier.
fn ready(run: &mut Run<'_>) -> Tier1 {
    let waits = run.state.lapic.highest_pending().is_some() || run.state.lapic.nmi_pending();
    if !waits {
        return Tier1::Again;
    }
    let action = next_action(run, arch::callback_vector(run.vcpu));
    match run.state.nested.as_deref_mut() {
        Some(nested) if action == Action::EnterFirst => {
            nested.kick_after_entry = true;
            Tier1::Again
        }
        _ => Tier1::Done,
    }
}

/// Writes vmcb02 of `slot`, its maps and its root as far as they can be had without waiting.
fn compose(run: &mut Run<'_>, slot: usize, dirty: vsvm::vmcb12::Dirty, resync: bool) {
    let hardware = vsvm::caps::Features::from_bits_retain(run.ctx.features.edx);
    let memory = &run.vcpu.domain().memory;
    let generation = memory.layout();
    let Some(nested) = run.state.nested.as_deref() else { return };
    let Some(c12) = nested.machine.slot(slot).c12.checked() else { return };
    let root = c12.np().then(|| run.root_of(c12));
    let Some(nested) = run.state.nested.as_deref_mut() else { return };
    let Nested { machine, slots, todo, .. } = nested;
    let (own, pure) = (&mut slots[slot], machine.slot_mut(slot));
    let Some(c12) = pure.c12.checked() else { return };
    let n_cr3 = match root {
        None => memory.root(),
        Some(root) => match &own.root {
            Some(held) if *held.key() == root => held.hpa(),
            _ => Hpa::ZERO,
        },
    };
    *todo = Todo { root: root.is_some() && n_cr3 == Hpa::ZERO, resync: resync && root.is_some() };
    let wants_msr = c12.control().intercepts.has(Intercept::MSR);
    let base = wants_msr.then_some(c12.control().msrpm);
    let pages = base.map(|base| msrpm_pages(&mut own.msrpm12, memory, base, generation));
    let shared = maps::shared();
    let l0 = L0Map { bits: shared.msrpm_bits, open: &shared.msrpm_open, generation: 1 };
    pure.msrpm.refresh(l0, base, None, |n| pages.map_or(0, |p| map_word(p, n)), &mut own.msrpm[..]);
    let mut intercepts = INTERCEPTS02;
    if !run.state.debug_live {
        // Until the guest's debug registers are loaded.
        intercepts.0[Intercepts::DR] = u32::MAX;
    }
    if !run.ctx.features.has(Features::SVME_ADDRESS_CHECK) {
        // Some addresses are #GP to the processor before it looks at intercepts.
        intercepts.set(Intercept::exception(13));
    }
    if crate::svm::is_emulated() && c12.control().intercepts.has(Intercept::RDTSCP) {
        // QEMU's emulation looks only at this one.
        intercepts.set(Intercept::RDTSC);
    }
    if !c12.intr_masking() {
        // L2's CR8 is L1's: lowering it may let an interrupt of L1's through.
        intercepts.set(Intercept::cr_write(8));
    }
    let policy = L0Policy {
        hardware,
        intercepts,
        n_cr3,
        msrpm: own.msrpm.address(),
        iopm: shared.iopm,
        asid: own.vmcb02.control.asid,
        tlb_control: 0,
        cr0_read_trap: crate::svm::is_emulated(),
        tsc_ratio12: vsvm::msr::RATIO_ONE,
        pause: (0, 0),
    };
    merge(&run.state.vmcb01, c12, dirty, &policy, &mut own.vmcb02);
    if !run.state.debug_live && own.vmcb02.save.dr7 & 0xff != 0 {
        // L2's breakpoints are those in DR0 to DR3.
        run.state.use_debug();
    }
}

/// The two pages of L1's MSR permission map, pinned.
fn msrpm_pages<'a>(
    cached: &'a mut Option<(Gpa, u64, [Option<Page>; 2])>,
    memory: &crate::guest::memory::GuestRam,
    base: Gpa,
    generation: u64,
) -> &'a [Option<Page>; 2] {
    let valid = matches!(cached, Some((at, under, _)) if *at == base && *under == generation);
    if !valid {
        let frame = base.frame();
        let pages = [memory.pin(frame).ok(), memory.pin(frame.wrapping_add(1)).ok()];
        *cached = Some((base, generation, pages));
    }
    match cached {
        Some((_, _, pages)) => pages,
        None => &[const { None }; 2],
    }
}

impl Run<'_> {
    /// Counts an entry to L2.
    fn note_entry(&self) {
        self.vcpu.shared.entries_l2.fetch_add(1, Ordering::Relaxed);
    }

    /// Does what VMRUN left: finds the root, flushes L1's tables. Interrupts are on.
    fn finish_vmrun(&mut self) {
        if self.state.nested.as_ref().is_none_or(|nested| !nested.todo.root && !nested.todo.resync) {
            return;
        }
        let domain = self.vcpu.domain().clone();
        let memory = &domain.memory;
        let Some(shadow) = memory.shadow() else { return };
        let root12 = self.root12();
        let Some(nested) = self.state.nested.as_deref_mut() else { return };
        let slot = nested.active_slot();
        let Some(root12) = root12 else {
            // Without nested paging L2 runs on the domain's own tables.
            nested.slots[slot].release_root(memory);
            return;
        };
        let todo = core::mem::take(&mut nested.todo);
        if todo.root {
            nested.slots[slot].release_root(memory);
            // Twice, as the first try may have to give pages back first, and those of other L2s may be needed.
            for _ in 0..2 {
                let (root, debt) = shadow.acquire_root(&env(memory), root12);
                memory.pay(debt);
                if let Ok(root) = root {
                    let own = &mut nested.slots[slot];
                    own.vmcb02.control.n_cr3 = root.hpa().raw();
                    own.vmcb02.control.mark_dirty(Clean::NP);
                    own.root = Some(root);
                    break;
                }
                nested.release_roots_but(slot, memory);
            }
            if nested.slots[slot].root.is_none() {
                domain.crash(format_args!("no memory for its nested page tables"));
                return;
            }
        }
        if todo.resync
            && let Some(root) = &nested.slots[slot].root
            && let Some((resync, debt)) = shadow.resync_begin(&env(memory), root.scope())
        {
            memory.pay(debt);
            memory.pay(shadow.resync_finish(&env(memory), resync));
        }
    }
}

/// Before L2 is entered: what VMRUN left, and events for L1. Interrupts are on.
pub fn prepare_l2(run: &mut Run<'_>) {
    run.finish_vmrun();
    if !run.vcpu.may_run() {
        return;
    }
    let callback = arch::callback_vector(run.vcpu);
    let action = next_action(run, callback);
    let Some(nested) = run.state.nested.as_deref_mut() else { return };
    let slot = nested.active_slot();
    match action {
        Action::Nothing => {
            events::return_window(&mut nested.machine.slot_mut(slot).c12, &mut nested.slots[slot].vmcb02);
        }
        Action::EnterFirst => nested.kick_after_entry = true,
        Action::Reflect(code) => super::exit::reflect_now(run, Exit { code, ..Exit::default() }),
        Action::Deliver(line) => deliver(run, line, callback),
        Action::OpenWindow(windows) => {
            if windows.contains(Windows::NMI) {
                nested.watch_iret(true);
            }
            if windows.contains(Windows::INTR) {
                events::borrow_window(&mut nested.machine.slot_mut(slot).c12, &mut nested.slots[slot].vmcb02);
            }
            if windows.contains(Windows::SHADOW) {
                run.step_over_shadow();
            }
        }
    }
}

/// What is to be done about events for L1 while L2 runs.
fn next_action(run: &Run<'_>, callback: Option<u8>) -> Action {
    let pending = Pending {
        init: run.state.init_held,
        smi: false,
        nmi: run.state.lapic.nmi_pending(),
        intr: callback.is_some() || run.state.lapic.highest_pending().is_some(),
    };
    let Some(nested) = run.state.nested.as_deref() else { return Action::Nothing };
    let Some(active) = nested.machine.active() else { return Action::Nothing };
    let Some(c12) = nested.machine.slot(active.slot).c12.checked() else { return Action::Nothing };
    let vmcb02 = &nested.slots[active.slot % super::SLOTS].vmcb02;
    let (gif, masked) = (nested.machine.gif, run.state.nmi_masked);
    events::next(&View::of(gif, &run.state.vmcb01, c12, vmcb02, masked, active.run_pending), pending)
}

/// Whether something ends L2's HLT that L1 does not intercept.
pub fn wakes_l2(run: &Run<'_>) -> bool {
    let control = &run.state.cur().control;
    let flags = run.state.cur().save.rflags;
    let virtual_irq = control.int_ctl & int_ctl::V_IRQ != 0 && flags & vsvm::layout::reg::RFLAGS_IF != 0;
    let acts = matches!(
        next_action(run, arch::callback_vector(run.vcpu)),
        Action::EnterFirst | Action::Reflect(_) | Action::Deliver(_)
    );
    acts || virtual_irq || Event(control.event_inj).is_valid()
}

/// L1 lets its interrupts through to L2.
fn deliver(run: &mut Run<'_>, line: Line, callback: Option<u8>) {
    let event = match line {
        Line::Nmi => {
            run.state.lapic.take_nmi();
            run.state.nmi_masked = true;
            Event::NMI
        }
        Line::Intr => match callback.or_else(|| run.state.lapic.highest_pending()) {
            Some(vector) => {
                if callback.is_none() {
                    run.state.lapic.ack(vector);
                }
                Event::intr(vector)
            }
            None => return,
        },
        Line::Init => return run.take_init(),
        Line::Smi => return,
    };
    run.state.cur_mut().control.event_inj = event.0;
}

/// Enters L2. First tier.
#[inline]
pub fn enter_l2(run: &mut Run<'_>, generation: u64) -> ExitCode {
    let by_asid = run.ctx.features.has(crate::svm::Features::FLUSH_BY_ASID);
    let pcpu = run.ctx.cpu.index;
    let Some(nested) = run.state.nested.as_deref_mut() else { return ExitCode::INVALID };
    let slot = nested.active_slot();
    let own = &mut nested.slots[slot];
    let identity = own.root.as_ref().map_or((0, 0), |root| (root.hpa().raw(), root.generation()));
    let tag_root = &mut nested.tag_roots[nested.tag % 8];
    let tag = nested.asids.tag(nested.tag);
    if *tag_root != identity {
        *tag_root = identity;
        tag.owe(Flush::All);
    }
    let grant = tag.prepare(&mut run.ctx.pool, pcpu, generation, by_asid);
    let control = &mut own.vmcb02.control;
    if control.asid != grant.asid {
        control.asid = grant.asid;
        control.mark_dirty(Clean::ASID);
    }
    control.tlb_control = grant.tlb_control;
    if core::mem::take(&mut nested.kick_after_entry) {
        // Held by GIF=0 until the entry, which it ends at once.
        apic::send_ipi(run.ctx.cpu.apic_id.load(Ordering::Relaxed), vector::KICK);
    }
    // SPEC_CTRL is one register for L1 and L2: L1 is not offered one for each.
    let guards = run.ctx.guards;
    if guards.has(Guards::IN_VMCB) {
        own.vmcb02.save.spec_ctrl = run.state.vmcb01.save.spec_ctrl;
    }
    run.ctx.trace.entry(Level::L2, &own.vmcb02);
    world_switch(&mut own.vmcb02, &mut run.state.gprs, guards, &mut run.state.spec);
    run.ctx.pool.entered();
    let Some(nested) = run.state.nested.as_deref_mut() else { return ExitCode::INVALID };
    if guards.has(Guards::IN_VMCB) {
        run.state.vmcb01.save.spec_ctrl = nested.slots[slot].vmcb02.save.spec_ctrl;
    }
    nested.asids.tag(nested.tag).entered();
    nested.machine.has_run();
    let shares_tpr = nested.machine.slot(slot).c12.checked().is_some_and(|c12| !c12.intr_masking());
    run.ctx.trace.exit(Level::L2, &nested.slots[slot].vmcb02);
    let control = &mut nested.slots[slot].vmcb02.control;
    if shares_tpr {
        run.state.lapic.observe_v_tpr((control.int_ctl & int_ctl::V_TPR) as u8);
    }
    if run.ctx.features.has(crate::svm::Features::VMCB_CLEAN) {
        control.mark_all_clean();
    }
    control.event_inj = 0;
    nested.exit = Exit {
        code: ExitCode::from_hardware(control.exit_code),
        info1: control.exit_info_1,
        info2: control.exit_info_2,
        int_info: control.exit_int_info,
        // Without next-RIP save the field holds what the merge put there.
        nrip: if run.ctx.features.has(crate::svm::Features::NRIPS) { control.nrip } else { 0 },
        ecx: run.state.gprs.regs[crate::decode::Gprs::RCX] as u32,
    };
    let code = nested.exit.code;
    if run.state.step.is_some() && run.end_step(code) { FINISHED } else { code }
}
