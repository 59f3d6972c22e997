//! The owner's part: state, priorities, acknowledgement and end of interrupts, reset.
//!
//! APM vol. 2, "Interrupt Priority", "Accepting System Interrupts", "Task Priority Register",
//! "Processor Priority Register", "End of Interrupt", "Spurious Interrupts".

use super::base::Base;
use super::dest::{Addressing, MODEL_FLAT, Mode};
use super::icr::DeliveryMode;
use super::lvt::{LVT_COUNT, LVT_MASKED, Lvt};
use super::shared::{self, FIRST_LEGAL_VECTOR, Startup, VlapicShared};
use super::timer::{Deadline, TimeSource, Timer, TimerMode};
use super::vectors::VectorSet;

/// SVR bits: vector, software enable (8), focus checking (9).
pub(super) const SVR_BITS: u64 = 0x3ff;
pub(super) const SVR_ENABLE: u32 = 1 << 8;
const SVR_RESET: u32 = 0xff;

/// Version 0x10 (integrated), six LVT entries, no extended registers, no EOI-broadcast suppression.
pub(super) const VERSION: u32 = ((LVT_COUNT as u32 - 1) << 16) | 0x10;

/// Error status: an illegal vector was to be sent.
pub(super) const ESR_SEND_ILLEGAL: u32 = 1 << 5;
/// Error status: an illegal vector was received.
pub(super) const ESR_RECEIVE_ILLEGAL: u32 = 1 << 6;
/// Error status: access to a register that there isn't.
pub(super) const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// What an APIC is made of; constants of the vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// The 32-bit APIC id, below 0xffff_ffff.
    pub id: u32,
    /// The boot processor: BSC in `MSR_APIC_BASE`.
    pub bsp: bool,
    /// Offer x2APIC mode (CPUID 1 ECX bit 21).
    pub x2apic: bool,
    /// Offer the TSC-deadline timer (CPUID 1 ECX bit 24).
    pub tsc_deadline: bool,
    /// Physical address width of the guest, in bits.
    pub phys_bits: u8,
}

/// What can be injected, given the priorities.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Injectable {
    /// Nothing is pending, or it waits for an EOI.
    Nothing,
    /// This vector, as soon as the vCPU takes interrupts.
    Now(u8),
    /// `vector` waits only for the task priority: deliverable once CR8 (or V_TPR) is below `class`.
    BelowTpr {
        /// The waiting vector.
        vector: u8,
        /// Its priority class, 1 to 15: V_INTR_PRIO, and the threshold for the task priority.
        class: u8,
    },
}

/// A virtual local APIC, as its vCPU's pCPU owns it.
#[derive(Clone, Debug)]
pub struct Vlapic {
    pub(super) irr: VectorSet,
    pub(super) isr: VectorSet,
    pub(super) tmr: VectorSet,
    pub(super) tpr: u8,
    pub(super) nmis: u8,
    pub(super) base: Base,
    pub(super) config: Config,
    pub(super) svr: u32,
    pub(super) ldr: u8,
    pub(super) model: u8,
    pub(super) icr: u64,
    pub(super) esr: u32,
    pub(super) errors: u32,
    pub(super) lvt: [u32; LVT_COUNT],
    pub(super) timer: Timer,
    published: u32,
}

impl Vlapic {
    /// An APIC after power-up: xAPIC mode at its usual address, software-disabled.
    pub fn new(config: Config) -> Self {
        let mut apic = Self {
            irr: VectorSet::EMPTY,
            isr: VectorSet::EMPTY,
            tmr: VectorSet::EMPTY,
            tpr: 0,
            nmis: 0,
            base: Base::POWER_UP,
            config,
            svr: SVR_RESET,
            ldr: 0,
            model: MODEL_FLAT,
            icr: 0,
            esr: 0,
            errors: 0,
            lvt: [LVT_MASKED; LVT_COUNT],
            timer: Timer::default(),
            published: 0,
        };
        apic.published = shared::pack(&apic.addressing());
        apic
    }

    /// Puts the registers into the state after reset; id, mode and base address stay.
    pub(super) fn reset_registers(&mut self) {
        let (base, published) = (self.base, self.published);
        *self = Self { base, published, ..Self::new(self.config) };
    }

    /// INIT: drops everything pending here and in `shared`, resets the registers, keeps id, mode and base
    /// (APM vol. 2, "Local APIC ID", "APIC initialization"). Requests for start-up in `shared` stay.
    pub fn init(&mut self, shared: &VlapicShared) {
        self.reset_registers();
        self.publish(shared);
        let startup = shared.collect().map(|collected| collected.startup).unwrap_or_default();
        if startup.init {
            _ = shared.post_init();
        }
        if let Some(vector) = startup.sipi {
            _ = shared.post_sipi(vector);
        }
    }

    /// The configuration that it was made with.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Whether SVR bit 8 and the mode let it accept fixed interrupts.
    pub const fn is_accepting(&self) -> bool {
        self.svr & SVR_ENABLE != 0 && !matches!(self.base.mode(), Mode::Disabled)
    }

    /// The address that senders match, now.
    pub fn addressing(&self) -> Addressing {
        Addressing {
            id: self.config.id,
            mode: self.base.mode(),
            ldr: self.ldr,
            model: self.model,
            accepting: self.is_accepting(),
            priority: self.ppr() & 0xf0,
        }
    }

    /// Takes over what others requested, and publishes the address. Called before each entry to the guest
    /// and after being woken; what is returned must be acted on first, INIT with [`Vlapic::init`].
    #[inline]
    #[must_use = "INIT and start-up are the caller's to do"]
    pub fn sync(&mut self, shared: &VlapicShared) -> Startup {
        self.publish(shared);
        let Some(new) = shared.collect() else { return Startup::default() };
        for word in 0..4 {
            // What was on its way when the APIC was disabled must not turn up when it is enabled again.
            if new.requests[word] != 0 && self.base.mode() != Mode::Disabled {
                self.irr.assign(word, new.requests[word], u64::MAX);
                self.tmr.assign(word, new.requests[word], new.level[word]);
            }
        }
        for _ in 0..new.nmis {
            self.latch_nmi();
        }
        if new.illegal_vector {
            self.error(ESR_RECEIVE_ILLEGAL);
        }
        new.startup
    }

    fn publish(&mut self, shared: &VlapicShared) {
        let packed = shared::pack(&self.addressing());
        if packed != self.published {
            self.published = packed;
            shared.publish(packed);
        }
    }

    /// Task priority register.
    pub const fn tpr(&self) -> u8 {
        self.tpr
    }

    /// Sets the task priority register.
    pub const fn set_tpr(&mut self, tpr: u8) {
        self.tpr = tpr;
    }

    /// CR8: the class of the task priority, 0 to 15.
    pub const fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// Writes CR8: the low four bits of `class` become the task priority's class, its subclass 0.
    pub const fn set_cr8(&mut self, class: u8) {
        self.tpr = class << 4;
    }

    /// Takes over V_TPR after an exit: as the class moved or not, so the subclass goes or stays.
    pub const fn observe_v_tpr(&mut self, class: u8) {
        if class & 0xf != self.cr8() {
            self.set_cr8(class);
        }
    }

    fn in_service(&self) -> u8 {
        self.isr.highest().unwrap_or(0)
    }

    /// Processor priority: the task priority, or the class in service if that is higher.
    pub fn ppr(&self) -> u8 {
        let class = self.in_service() & 0xf0;
        if self.tpr & 0xf0 >= class { self.tpr } else { class }
    }

    /// The highest pending vector that the processor priority lets through.
    #[inline]
    pub fn highest_pending(&self) -> Option<u8> {
        match self.next_injectable() {
            Injectable::Now(vector) => Some(vector),
            _ => None,
        }
    }

    /// What to inject, or which task priority to watch for.
    #[inline]
    pub fn next_injectable(&self) -> Injectable {
        let Some(vector) = self.irr.highest() else { return Injectable::Nothing };
        let class = vector >> 4;
        if self.base.mode() == Mode::Disabled || class <= self.in_service() >> 4 {
            Injectable::Nothing
        } else if class > self.tpr >> 4 {
            Injectable::Now(vector)
        } else {
            Injectable::BelowTpr { vector, class }
        }
    }

    /// The processor took `vector`: from requested to in service. Says whether it was requested.
    pub const fn ack(&mut self, vector: u8) -> bool {
        let was = self.irr.remove(vector);
        if was {
            self.isr.insert(vector);
        }
        was
    }

    /// End of interrupt: the highest vector leaves service. Returns it if it was level-triggered, to be
    /// told to the I/O APICs.
    #[inline]
    pub const fn eoi(&mut self) -> Option<u8> {
        let Some(vector) = self.isr.highest() else { return None };
        self.isr.remove(vector);
        if self.tmr.contains(vector) { Some(vector) } else { None }
    }

    /// The vector that a spurious interrupt has.
    pub const fn spurious_vector(&self) -> u8 {
        self.svr as u8
    }

    /// Whether `vector` is requested here (requests not yet synced aside).
    pub const fn is_requested(&self, vector: u8) -> bool {
        self.irr.contains(vector)
    }

    /// Whether `vector` is in service.
    pub const fn is_in_service(&self, vector: u8) -> bool {
        self.isr.contains(vector)
    }

    /// An edge-triggered interrupt from the vCPU's own pCPU; dropped if not accepting.
    pub fn accept(&mut self, vector: u8) {
        if !self.is_accepting() {
            return;
        }
        if vector < FIRST_LEGAL_VECTOR {
            self.error(ESR_RECEIVE_ILLEGAL);
        } else {
            self.irr.insert(vector);
            self.tmr.remove(vector);
        }
    }

    fn latch_nmi(&mut self) {
        self.nmis = (self.nmis + 1).min(2);
    }

    /// Whether an NMI waits.
    pub const fn nmi_pending(&self) -> bool {
        self.nmis != 0
    }

    /// Takes one NMI to be injected.
    pub const fn take_nmi(&mut self) -> bool {
        let pending = self.nmis != 0;
        self.nmis = self.nmis.saturating_sub(1);
        pending
    }

    /// Whether an external controller's interrupt gets through: LINT0 unmasked as ExtINT, or no APIC.
    pub const fn accepts_extint(&self) -> bool {
        let lint0 = self.lvt[Lvt::Lint0 as usize];
        matches!(self.base.mode(), Mode::Disabled)
            || lint0 & LVT_MASKED == 0 && matches!(DeliveryMode::from_register(lint0), DeliveryMode::ExtInt)
    }

    /// A local source signals an edge. Says whether it got through to the IRR or as an NMI.
    pub fn fire(&mut self, entry: Lvt) -> bool {
        let lvt = self.lvt[entry as usize];
        if lvt & LVT_MASKED != 0 || self.base.mode() == Mode::Disabled {
            return false;
        }
        let mode = match entry {
            Lvt::Timer => DeliveryMode::Fixed,
            _ => DeliveryMode::from_register(lvt),
        };
        match mode {
            DeliveryMode::Fixed => self.accept(lvt as u8),
            DeliveryMode::Nmi => self.latch_nmi(),
            _ => return false,
        }
        true
    }

    /// Notes an error for the next update of ESR, and signals it the first time.
    pub(super) fn error(&mut self, bit: u32) {
        let new = self.errors & bit == 0;
        self.errors |= bit;
        // Only new errors signal, so an error vector that is itself illegal ends here.
        if new {
            self.fire(Lvt::Error);
        }
    }

    pub(super) const fn timer_mode(&self) -> TimerMode {
        TimerMode::from_lvt(self.lvt[Lvt::Timer as usize])
    }

    /// Serves the timer if it is due. Says whether it raised an interrupt.
    pub fn expire(&mut self, time: &impl TimeSource) -> bool {
        self.timer.due(self.timer_mode(), time) && self.fire(Lvt::Timer)
    }

    /// When to call [`Vlapic::expire`] next; `None` while the timer could raise nothing.
    pub const fn next_deadline(&self) -> Option<Deadline> {
        if self.lvt[Lvt::Timer as usize] & LVT_MASKED != 0 { None } else { self.timer.next() }
    }
}
