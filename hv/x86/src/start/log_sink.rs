//! The `log` facade's end: one line per record on the console.

use hv_core::console::Verdict;
use log::{Level, LevelFilter, Log, Metadata, Record};

struct Sink;

impl Log for Sink {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        // Asking costs nothing; whether it is shown is decided once, when the record is there.
        true
    }
    fn log(&self, record: &Record<'_>) {
        let verdict = super::config::gate().check(record.level(), record.target(), crate::time::now());
        let Verdict::Show { withheld } = verdict else { return };
        if withheld != 0 {
            crate::console::log(format_args!("{withheld} messages not shown: too many at a time"));
        }
        let mark = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            _ => "",
        };
        if record.target() != crate::trace::UNTRACED {
            crate::trace::log(format_args!("{mark}{}", record.args()));
        }
        crate::console::log(format_args!("{mark}{}", record.args()));
    }
    fn flush(&self) {}
}

/// Connects the facade.
pub fn init() {
    // A second call would find the first logger in place, which is just as good.
    let _ = log::set_logger(&Sink);
    log::set_max_level(LevelFilter::Debug);
}
