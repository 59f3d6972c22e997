//! Which log records are shown: Xen's `loglvl=` and `guest_loglvl=`, each with two levels. Up to the lower, every
//! record is shown; from there up to the upper, only so many.
//!
//! A record's target says whose fault it is: [`guest`] for what a guest can cause as often as it likes, [`life`]
//! for the births and deaths of domains, which a guest that restarts itself can cause too. Any other record is the
//! hypervisor's own.

use super::limit::{RateLimit, Verdict};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use log::{Level, LevelFilter};

/// Guests are kept apart in this many groups, so that one that floods does not silence the others.
const GROUPS: usize = 8;
const GUESTS: [&str; GROUPS] =
    ["guest0", "guest1", "guest2", "guest3", "guest4", "guest5", "guest6", "guest7"];
const LIFE: &str = "domain";
const URGENT: &str = "urgent";

/// The log target of what domain `domid` can cause: `log::warn!(target: guest(domid), …)`.
pub fn guest(domid: u16) -> &'static str {
    GUESTS[usize::from(domid) % GROUPS]
}

/// The log target of births and deaths of domains. They are shown by `loglvl=`, and never without limit.
pub const fn life() -> &'static str {
    LIFE
}

/// The log target of what is shown whatever the levels: why the machine stops.
pub const fn urgent() -> &'static str {
    URGENT
}

/// One option's two levels. `always` is not above `limited`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels {
    /// Up to here every record is shown.
    pub always: LevelFilter,
    /// From there to here records are rate-limited.
    pub limited: LevelFilter,
}

/// Decides about each record. Lock-free.
#[derive(Debug)]
pub struct Gate {
    own: Levels,
    guests: Levels,
    own_limit: RateLimit,
    guest_limits: [RateLimit; GROUPS],
    life_limit: RateLimit,
    /// How many want to see everything just now.
    open: AtomicU32,
}

impl Gate {
    /// A gate by `loglvl=` and `guest_loglvl=`.
    pub const fn new(own: Levels, guests: Levels) -> Self {
        Self {
            own,
            guests,
            own_limit: RateLimit::xens(),
            guest_limits: [const { RateLimit::xens() }; GROUPS],
            // A domain's end prints its counters: this is room for several at once.
            life_limit: RateLimit::new(1000, 500_000_000),
            open: AtomicU32::new(0),
        }
    }

    /// Whether a record may be shown that has this level and target, at `now` (ns).
    pub fn check(&self, level: Level, target: &str, now: u64) -> Verdict {
        let shown = Verdict::Show { withheld: 0 };
        let group = GUESTS.iter().position(|name| *name == target);
        if target == URGENT || group.is_none() && self.open.load(SeqCst) != 0 {
            return shown;
        }
        let levels = if group.is_some() { self.guests } else { self.own };
        if level > levels.limited {
            return Verdict::Withhold;
        }
        if target == LIFE {
            return self.life_limit.check(now);
        }
        if level <= levels.always {
            return shown;
        }
        group.map_or(&self.own_limit, |group| &self.guest_limits[group]).check(now)
    }

    /// Shows everything of Testudo's own while `f` runs: the answer to a key must not be withheld. What guests cause
    /// stays limited.
    pub fn opened<R>(&self, f: impl FnOnce() -> R) -> R {
        self.open.fetch_add(1, SeqCst);
        let result = f();
        self.open.fetch_sub(1, SeqCst);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOW: Verdict = Verdict::Show { withheld: 0 };

    fn gate(own: [LevelFilter; 2], guests: [LevelFilter; 2]) -> Gate {
        let levels = |[always, limited]: [LevelFilter; 2]| Levels { always, limited };
        Gate::new(levels(own), levels(guests))
    }

    fn shown(gate: &Gate, level: Level, target: &str) -> usize {
        (0..100).filter(|_| gate.check(level, target, 5) != Verdict::Withhold).count()
    }

    #[test]
    fn below_the_first_level_all_between_them_some_above_none() {
        use LevelFilter::{Info, Warn};
        let gate = gate([Warn, Info], [Warn, Info]);
        for target in ["hv_x86::smp", guest(3)] {
            assert_eq!(shown(&gate, Level::Error, target), 100);
            assert_eq!(shown(&gate, Level::Warn, target), 100);
            assert_eq!(shown(&gate, Level::Info, target), 10);
            assert_eq!(shown(&gate, Level::Debug, target), 0);
        }
    }

    #[test]
    fn the_answer_to_a_key_is_shown_and_a_guest_cannot_flood_it() {
        use LevelFilter::{Off, Warn};
        let gate = gate([Off, Off], [Off, Warn]);
        gate.opened(|| {
            assert_eq!(shown(&gate, Level::Info, "hv_x86::keys"), 100);
            assert_eq!(shown(&gate, Level::Warn, guest(1)), 10);
        });
        assert_eq!(shown(&gate, Level::Info, "hv_x86::keys"), 0);
    }

    #[test]
    fn with_xens_default_a_guest_shows_ten_warnings_and_silences_nobody_else() {
        use LevelFilter::{Info, Off, Warn};
        let gate = gate([Info, Info], [Off, Warn]);
        assert_eq!(shown(&gate, Level::Warn, guest(1)), 10);
        assert_eq!(shown(&gate, Level::Info, guest(1)), 0);
        assert_eq!(shown(&gate, Level::Error, guest(2)), 10);
        assert_eq!(shown(&gate, Level::Info, "hv_core::machine"), 100);
        assert_eq!(gate.check(Level::Warn, guest(1), 5_000_000_005), Verdict::Show { withheld: 90 });
    }

    #[test]
    fn none_is_none_but_for_why_the_machine_stops_and_for_who_asks() {
        use LevelFilter::Off;
        let gate = gate([Off, Off], [Off, Off]);
        assert_eq!(shown(&gate, Level::Error, "hv_x86::start"), 0);
        assert_eq!(gate.check(Level::Error, urgent(), 0), SHOW);
        assert_eq!(gate.opened(|| shown(&gate, Level::Info, "hv_x86::keys")), 100);
        assert_eq!(shown(&gate, Level::Info, "hv_x86::keys"), 0);
    }

    #[test]
    fn domains_that_come_and_go_without_end_do_not_fill_the_log() {
        use LevelFilter::{Info, Off};
        let gate = gate([Info, Info], [Off, Off]);
        let lines =
            (0..100_000u64).filter(|ms| gate.check(Level::Info, life(), ms * 1_000_000) != Verdict::Withhold);
        assert_eq!(lines.count(), 1000 + 199);
        assert_eq!(shown(&gate, Level::Debug, life()), 0);
    }
}
