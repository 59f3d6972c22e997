//! The APIC timer, computed rather than ticked.
//!
//! The timer's input clock is [`TIMER_HZ`]: one tick is one nanosecond of the domain's virtual time, before
//! the divider. APM vol. 2, "APIC Timer Interrupt"; SDM vol. 3, "APIC Timer" and "TSC-Deadline Mode".

/// Frequency of the timer's input clock in Hz; guests calibrate it, or find it in a CPUID timing leaf.
pub const TIMER_HZ: u64 = 1_000_000_000;

/// The shortest period of a periodic timer, in ns. A guest that asks for less gets this: faster ones could
/// only be a means of burning the host's time.
pub const MIN_PERIOD_NS: u64 = 10_000;

/// The bits that divide configuration has.
pub(super) const DIVIDE_BITS: u64 = 0b1011;

/// Where the APIC gets the time from; called only when a timer register needs it.
pub trait TimeSource {
    /// The domain's virtual time in ns, monotonic on a vCPU.
    fn now_ns(&self) -> u64;
    /// The TSC as the guest would read it now.
    fn guest_tsc(&self) -> u64;
}

/// When the timer must next be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deadline {
    /// At this virtual time, ns.
    Ns(u64),
    /// When the guest's TSC reaches this value; to be converted anew if the guest changes its TSC.
    Tsc(u64),
}

/// Bits 18:17 of the timer's LVT entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
    /// 0b11: no timer at all.
    Reserved,
}

impl TimerMode {
    pub const fn from_lvt(lvt: u32) -> Self {
        match (lvt >> 17) & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }

    const fn counts(self) -> bool {
        matches!(self, Self::OneShot | Self::Periodic)
    }
}

/// The timer's state, without its LVT entry.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Timer {
    initial: u32,
    divide: u32,
    armed: Option<Armed>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Armed {
    Count { deadline: u64 },
    Tsc { deadline: u64 },
}

impl Timer {
    pub const fn initial(&self) -> u32 {
        self.initial
    }

    pub const fn divide(&self) -> u32 {
        self.divide
    }

    /// The divisor: 0b0000 means 2, doubling up to 0b1010 (128); 0b1011 means 1.
    const fn divisor(&self) -> u64 {
        let code = (self.divide >> 1) & 4 | self.divide & 3;
        if code == 7 { 1 } else { 2 << code }
    }

    /// Writing the initial count starts the countdown; 0 stops it. Ignored in TSC-deadline mode.
    pub fn write_initial(&mut self, count: u32, mode: TimerMode, now: u64) {
        if matches!(mode, TimerMode::TscDeadline) {
            return;
        }
        self.initial = count;
        self.armed = None;
        if count != 0 && mode.counts() {
            self.armed = Some(Armed::Count { deadline: now.saturating_add(self.span(mode)) });
        }
    }

    /// The count that remains stays, and goes on at the new rate.
    pub fn write_divide(&mut self, value: u32, mode: TimerMode, now: u64) {
        let remaining = u64::from(self.current(mode, now));
        self.divide = value & DIVIDE_BITS as u32;
        if let Some(Armed::Count { .. }) = self.armed {
            let deadline = now.saturating_add(remaining.saturating_mul(self.divisor()));
            self.armed = Some(Armed::Count { deadline });
        }
    }

    /// One-shot and periodic only say what happens at zero; a change to or from TSC-deadline disarms.
    pub const fn change_mode(&mut self, old: TimerMode, new: TimerMode) {
        let was_deadline = matches!(old, TimerMode::TscDeadline);
        let is_deadline = matches!(new, TimerMode::TscDeadline);
        if was_deadline != is_deadline {
            self.initial = 0;
            self.armed = None;
        } else if !new.counts() && !is_deadline {
            self.armed = None;
        }
    }

    /// Arms the TSC deadline; 0 disarms. Ignored in other modes.
    pub fn write_tsc_deadline(&mut self, deadline: u64, mode: TimerMode) {
        if matches!(mode, TimerMode::TscDeadline) {
            self.armed = (deadline != 0).then_some(Armed::Tsc { deadline });
        }
    }

    /// The deadline if armed, else 0.
    pub const fn tsc_deadline(&self) -> u64 {
        match self.armed {
            Some(Armed::Tsc { deadline }) => deadline,
            _ => 0,
        }
    }

    /// The current count.
    pub fn current(&self, mode: TimerMode, now: u64) -> u32 {
        let Some(Armed::Count { deadline }) = self.armed else { return 0 };
        let mut left = deadline.saturating_sub(now);
        if left == 0 && mode == TimerMode::Periodic {
            // Due but not served yet: it reloaded meanwhile.
            let span = self.span(mode);
            left = span - (now - deadline) % span;
        }
        left.div_ceil(self.divisor()).min(u64::from(self.initial)) as u32
    }

    /// Whether the deadline was reached; if so a one-shot is over and a periodic one armed again, in phase.
    /// Periods that were missed count once, as their interrupts merge in the IRR anyway.
    pub fn due(&mut self, mode: TimerMode, time: &impl TimeSource) -> bool {
        match self.armed {
            None => false,
            Some(Armed::Tsc { deadline }) => {
                let due = time.guest_tsc() >= deadline;
                if due {
                    self.armed = None;
                }
                due
            }
            Some(Armed::Count { deadline }) => {
                let now = time.now_ns();
                if now < deadline {
                    return false;
                }
                self.armed = (mode == TimerMode::Periodic).then(|| {
                    let span = self.span(mode);
                    let left = span - (now - deadline) % span;
                    Armed::Count { deadline: now.saturating_add(left) }
                });
                true
            }
        }
    }

    pub const fn next(&self) -> Option<Deadline> {
        match self.armed {
            None => None,
            Some(Armed::Count { deadline }) => Some(Deadline::Ns(deadline)),
            Some(Armed::Tsc { deadline }) => Some(Deadline::Tsc(deadline)),
        }
    }

    /// Ticks of the input clock from the initial count to zero; at least 1.
    fn span(&self, mode: TimerMode) -> u64 {
        let ticks = u64::from(self.initial.max(1)) * self.divisor();
        if mode == TimerMode::Periodic { ticks.max(MIN_PERIOD_NS) } else { ticks }
    }
}
