//! Running a vCPU: from being picked to being put back.
//!
//! Exits are handled in two tiers. The first runs with GIF=0 and the guest's FS, GS, TR and SYSCALL state in
//! the processor: short, bounded work that touches none of that and waits for nobody. What it does not
//! finish goes to the second, after the guest's state has been saved and the host's TR loaded: there
//! interrupts are on, and other CPUs may be waited for.

use crate::cpu::percpu::{self, PerCpu};
use crate::guest::arch::{X86, machine};
use crate::hw::mitigation;
use crate::policy::mitigation::Guards;
use crate::svm::vcpu::VcpuState;
use crate::svm::{Features, entry, exit, nested};
use addr::Hpa;
use alloc::sync::{Arc, Weak};
use core::sync::atomic::Ordering;
use hv_core::platform::PcpuId;
use hv_core::sched::WhyPut;
use hv_core::vcpu::{Pending, Vcpu};
use vsvm::asid::AsidPool;
use vsvm::layout::{Clean, Event, ExitCode, Vmcb, int_ctl, reg};

/// What a CPU's loop owns.
#[derive(Debug)]
pub struct CpuContext {
    /// The CPU.
    pub cpu: &'static PerCpu,
    /// Its address-space ids.
    pub pool: AsidPool,
    /// What its SVM can do.
    pub features: Features,
    /// The VMCB with the host's TR.
    pub host_vmcb: Hpa,
    /// What is done about speculation at each entry and exit.
    pub guards: Guards,
    /// The vCPU that ran here last. (Counted, so that no other one can come to lie at its address.)
    last: Weak<Vcpu<X86>>,
}

impl CpuContext {
    /// The context of the CPU this runs on.
    pub fn new(features: Features) -> Self {
        let cpu = percpu::this();
        CpuContext {
            cpu,
            pool: AsidPool::new(features.asids),
            features,
            host_vmcb: Hpa::new(cpu.host_vmcb.load(Ordering::Relaxed)),
            guards: Guards::of(&mitigation::plan()),
            last: Weak::new(),
        }
    }

    /// `vcpu` comes on this CPU: what another one has trained must not steer it.
    fn switch_to(&mut self, vcpu: &Arc<Vcpu<X86>>) {
        if !core::ptr::eq(self.last.as_ptr(), Arc::as_ptr(vcpu)) {
            self.last = Arc::downgrade(vcpu);
            mitigation::switch_barrier();
        }
    }
}

/// What becomes of the vCPU after an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It goes on.
    Resume,
    /// It halts until an event.
    Halt,
    /// It sleeps until anything happens to it, then goes on.
    Sleep,
    /// It lets others go first.
    Yield,
    /// It may not run any more.
    Stop,
}

/// Everything at hand while a vCPU runs.
#[derive(Debug)]
pub struct Run<'a> {
    /// The vCPU.
    pub vcpu: &'a Arc<Vcpu<X86>>,
    /// Its state.
    pub state: &'a mut VcpuState,
    /// The CPU.
    pub ctx: &'a mut CpuContext,
}

/// Runs `vcpu` until it blocks, its slice ends or something else comes first. Why it stopped.
pub fn run(
    vcpu: &Arc<Vcpu<X86>>,
    state: &mut VcpuState,
    ctx: &mut CpuContext,
    slice_end: u64,
    migrated: bool,
) -> WhyPut {
    if migrated {
        state.leave_pcpu();
    }
    ctx.switch_to(vcpu);
    state.load();
    let why = Run { vcpu, state, ctx }.until_put(slice_end);
    state.put();
    why
}

impl Run<'_> {
    fn until_put(&mut self, slice_end: u64) -> WhyPut {
        loop {
            if super::is_emulated() {
                entry::look_for_interrupts();
            }
            if let Some(why) = self.attend(slice_end) {
                return why;
            }
            self.collect_requests();
            entry::clgi();
            // Interrupts are held from here to the entry: whatever is posted later makes the guest exit.
            if self.ctx.cpu.pending.load(Ordering::SeqCst) != 0 || !self.vcpu.pending().is_empty() {
                entry::stgi();
                continue;
            }
            if self.state.wait_for_sipi {
                entry::stgi();
                return self.wait_for_startup();
            }
            if self.state.halted && !self.wakes() {
                entry::stgi();
                if let Some(why) = self.halt() {
                    return why;
                }
                continue;
            }
            self.state.halted = false;
            let exit = self.enter_tier1();
            entry::stgi();
            match exit::handle(self, exit) {
                Next::Resume => {}
                Next::Halt => {
                    self.state.halted = true;
                    if let Some(why) = self.halt() {
                        return why;
                    }
                }
                Next::Sleep => {
                    if let Some(why) = self.halt() {
                        return why;
                    }
                }
                Next::Yield => return WhyPut::Yield,
                Next::Stop => return WhyPut::Offline,
            }
        }
    }

    /// Looks at what waits for this CPU and this vCPU. Interrupts are on.
    fn attend(&mut self, slice_end: u64) -> Option<WhyPut> {
        let pcpu = PcpuId(self.ctx.cpu.index);
        crate::start::attend_cpu(self.ctx.cpu);
        if !self.vcpu.may_run() {
            return Some(WhyPut::Offline);
        }
        let pending = self.vcpu.take_pending();
        if pending.has(Pending::TIMER) {
            self.expire_lapic_timer();
        }
        if pending.has(Pending::AREAS) {
            crate::guest::arch::write_areas(self);
        }
        if machine().resched_wanted(pcpu) {
            return Some(WhyPut::Preempted);
        }
        let now = crate::time::now();
        (now >= slice_end && machine().sched.waiting(pcpu) > 0).then_some(WhyPut::SliceEnd)
    }

    /// Requests of other CPUs and of the local APIC, into what is entered next.
    fn collect_requests(&mut self) {
        // Whether there is still a reason is decided anew below.
        self.state.cancel_step();
        let startup = self.state.lapic.sync(&self.vcpu.shared.lapic);
        self.state.init_held |= startup.init;
        if self.state.init_held && !self.in_l2() && self.state.gif() {
            self.take_init();
        }
        if let Some(page) = startup.sipi
            && self.state.wait_for_sipi
        {
            self.state.set_startup(page);
        }
        self.catch_up_upcall();
        if self.in_l2() {
            nested::prepare_l2(self);
        }
        if !self.in_l2() {
            let callback = crate::guest::arch::callback_vector(self.vcpu);
            self.state.prepare_injection(callback);
            if self.state.nmi_in_shadow() {
                self.step_over_shadow();
            }
        }
    }

    /// A disabled local APIC drops upcalls; one that is due when it is enabled is raised then. (The address that
    /// senders match has just been published: whatever is posted from now on is not dropped.)
    fn catch_up_upcall(&mut self) {
        let accepting = self.state.lapic.is_accepting();
        let was = core::mem::replace(&mut self.state.was_accepting, accepting);
        let vector = self.vcpu.upcall_vector();
        if accepting && !was && vector != 0 && self.vcpu.upcall_due() {
            self.state.lapic.accept(vector);
        }
    }

    /// Whether L2 runs next.
    #[inline(always)]
    pub fn in_l2(&self) -> bool {
        self.state.nested.as_ref().is_some_and(|n| n.machine.active().is_some())
    }

    /// INIT: the registers are reset, the vCPU waits for a start-up message.
    pub fn take_init(&mut self) {
        self.state.init_held = false;
        self.state.set_svme(false);
        if let Some(nested) = &mut self.state.nested {
            nested.machine.init();
            nested.forget_all(&self.vcpu.domain().memory);
            let control = &mut self.state.vmcb01.control;
            if control.int_ctl & vsvm::layout::int_ctl::V_GIF_ENABLE != 0 {
                control.int_ctl |= vsvm::layout::int_ctl::V_GIF;
            }
        }
        self.state.lapic.init(&self.vcpu.shared.lapic);
        self.state.reset_registers();
        self.state.wait_for_sipi = true;
    }

    /// Enters the guest until an exit needs the second tier. GIF=0 before and after.
    fn enter_tier1(&mut self) -> ExitCode {
        // SAFETY of the instructions is argued in `entry`; GIF=0 here, and vmcb01's page is our own.
        self.load_guest_segments();
        let mark = self.vcpu.shared.mark.clone();
        let tlb = self.vcpu.domain().memory.tlb().clone();
        let exit = loop {
            let generation = mark.enter(&tlb, self.ctx.cpu.index);
            let code =
                if self.in_l2() { nested::enter_l2(self, generation) } else { self.enter_l1(generation) };
            if let Err(code) = exit::fast(self, code) {
                break code;
            }
        };
        mark.leave();
        self.save_guest_segments();
        exit
    }

    fn enter_l1(&mut self, generation: u64) -> ExitCode {
        let state = &mut *self.state;
        let by_asid = self.ctx.features.has(Features::FLUSH_BY_ASID);
        let grant = state.tag.prepare(&mut self.ctx.pool, self.ctx.cpu.index, generation, by_asid);
        let control = &mut state.vmcb01.control;
        if control.asid != grant.asid {
            control.asid = grant.asid;
            control.mark_dirty(Clean::ASID);
        }
        control.tlb_control = grant.tlb_control;
        let at = state.vmcb01.address();
        let hidden = hide_long_mode(&mut state.vmcb01);
        entry::run(at, &mut state.gprs, self.ctx.guards, &mut state.spec);
        show_long_mode(&mut state.vmcb01, hidden);
        self.ctx.pool.entered();
        state.tag.entered();
        let control = &mut state.vmcb01.control;
        if self.ctx.features.has(Features::VMCB_CLEAN) {
            control.mark_all_clean();
        }
        control.event_inj = 0;
        let int_info = control.exit_int_info;
        if int_info & Event::VALID != 0 {
            state.requeue(int_info);
        }
        state.lapic.observe_v_tpr((state.vmcb01.control.int_ctl & int_ctl::V_TPR) as u8);
        let code = ExitCode::from_hardware(state.vmcb01.control.exit_code);
        if state.step.is_some() && self.end_step(code) { exit::FINISHED } else { code }
    }

    /// Whether an event ends HLT.
    fn wakes(&self) -> bool {
        if self.in_l2() {
            return nested::wakes_l2(self);
        }
        self.state.has_interrupt() || crate::guest::arch::callback_vector(self.vcpu).is_some()
    }

    /// The guest halted. `None`: there is something to do at once.
    fn halt(&mut self) -> Option<WhyPut> {
        self.vcpu.arm();
        let waiting =
            !self.vcpu.pending().is_empty() || self.vcpu.shared.lapic.has_outstanding() || self.wakes();
        (!waiting).then_some(WhyPut::Blocked)
    }

    /// The vCPU waits for a start-up message: it is down, unless the message is there already.
    fn wait_for_startup(&mut self) -> WhyPut {
        self.vcpu.take_down();
        if self.vcpu.shared.lapic.has_outstanding() {
            self.vcpu.bring_up();
        }
        WhyPut::Offline
    }
}

/// QEMU's emulation loses its host's CR0 at a #VMEXIT from a guest that has EFER.LME without CR4.PAE and without
/// paging: it takes the return for an illegal way into long mode. Such a guest runs without LME; whatever could
/// make a difference (writes of CR4, accesses to EFER) exits. Whether that had to be done.
#[inline]
pub fn hide_long_mode(vmcb: &mut Vmcb) -> bool {
    let save = &mut vmcb.save;
    let fatal = super::is_emulated()
        && save.efer & reg::EFER_LME != 0
        && save.cr0 & reg::CR0_PG == 0
        && save.cr4 & reg::CR4_PAE == 0;
    if fatal {
        save.efer &= !reg::EFER_LME;
        vmcb.control.mark_dirty(Clean::CRX);
    }
    fatal
}

/// Takes [`hide_long_mode`] back, after the exit.
#[inline]
pub fn show_long_mode(vmcb: &mut Vmcb, hidden: bool) {
    if hidden {
        vmcb.save.efer |= reg::EFER_LME;
        vmcb.control.mark_dirty(Clean::CRX);
    }
}
