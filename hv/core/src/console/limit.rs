//! A rate limit for log lines that a guest can cause.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Speakers are kept apart in this many groups, so that one that floods does not silence the others.
const SLOTS: usize = 8;
const SECOND: u64 = 1_000_000_000;

/// Whether a line may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes; so many before it were not.
    Show {
        /// Lines withheld since the last one shown.
        withheld: u16,
    },
    /// No.
    Withhold,
}

/// At most `n` lines per second and group of speakers, from one place in the code. Lock-free.
#[derive(Debug)]
pub struct RateLimit {
    per_second: u16,
    /// second 63:32, lines shown in it 31:16, lines withheld 15:0
    slots: [AtomicU64; SLOTS],
}

impl RateLimit {
    /// `per_second` lines in each second.
    pub const fn new(per_second: u16) -> Self {
        Self { per_second, slots: [const { AtomicU64::new(0) }; SLOTS] }
    }

    /// Asks for one line, of or about `speaker` (a domain id), at `now` (nanoseconds, any clock that goes on).
    pub fn check(&self, now: u64, speaker: u16) -> Verdict {
        let second = (now / SECOND) as u32;
        let mut verdict = Verdict::Withhold;
        let _ = self.slots[usize::from(speaker) % SLOTS].fetch_update(Relaxed, Relaxed, |slot| {
            let (shown, withheld) = ((slot >> 16) as u16, slot as u16);
            let shown = if (slot >> 32) as u32 == second { shown } else { 0 };
            let (shown, left) = if shown < self.per_second {
                verdict = Verdict::Show { withheld };
                (shown + 1, 0)
            } else {
                verdict = Verdict::Withhold;
                (shown, withheld.saturating_add(1))
            };
            Some(u64::from(second) << 32 | u64::from(shown) << 16 | u64::from(left))
        });
        verdict
    }
}

/// `log::warn!` for what a guest can cause: at most five lines per second from this place for each guest.
/// `limited_warn!(now_ns, domid, "text {}", value)`.
#[macro_export]
macro_rules! limited_warn {
    ($now:expr, $domid:expr, $($text:tt)+) => {{
        static LIMIT: $crate::console::RateLimit = $crate::console::RateLimit::new(5);
        match LIMIT.check($now, $domid) {
            $crate::console::Verdict::Show { withheld: 0 } => $crate::console::__log::warn!($($text)+),
            $crate::console::Verdict::Show { withheld } => $crate::console::__log::warn!(
                "{} ({withheld} like it not shown)", ::core::format_args!($($text)+)),
            $crate::console::Verdict::Withhold => {}
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_per_second_and_the_rest_is_counted() {
        let limit = RateLimit::new(2);
        let ask = |now| limit.check(now, 1);
        assert_eq!(ask(0), Verdict::Show { withheld: 0 });
        assert_eq!(ask(1), Verdict::Show { withheld: 0 });
        assert_eq!(ask(SECOND - 1), Verdict::Withhold);
        assert_eq!(ask(SECOND - 1), Verdict::Withhold);
        assert_eq!(ask(SECOND), Verdict::Show { withheld: 2 });
        assert_eq!(ask(SECOND), Verdict::Show { withheld: 0 });
        assert_eq!(ask(2 * SECOND - 1), Verdict::Withhold);
    }

    #[test]
    fn one_that_floods_does_not_silence_another() {
        let limit = RateLimit::new(1);
        let shown = (0..100_000).filter(|_| limit.check(5, 1) != Verdict::Withhold).count();
        assert_eq!(shown, 1);
        assert_eq!(limit.check(5, 2), Verdict::Show { withheld: 0 });
        assert_eq!(limit.check(SECOND, 1), Verdict::Show { withheld: u16::MAX }, "the count saturates");
    }

    #[test]
    fn the_macro_expands() {
        limited_warn!(0, 3, "guest {} did {}", 3, "that");
        limited_warn!(0, 3, "plain");
    }
}
