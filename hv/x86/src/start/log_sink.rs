//! The `log` facade's end: one line per record on the console.

use core::fmt::Write;
use log::{LevelFilter, Log, Metadata, Record};

struct Sink;

struct Line;

impl Write for Line {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        crate::serial::write(text.as_bytes());
        crate::hw::video::write(text.as_bytes());
        Ok(())
    }
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        super::config::shows(metadata.level(), metadata.target() == crate::GUEST)
    }
    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mark = match record.level() {
            log::Level::Error => "error: ",
            log::Level::Warn => "warning: ",
            _ => "",
        };
        if record.target() != crate::trace::UNTRACED {
            crate::trace::log(format_args!("{mark}{}", record.args()));
        }
        if !crate::console::log(format_args!("{mark}{}", record.args())) {
            // In the middle of another line of this very CPU: straight to the line.
            let _ = write!(Line, "(testudo) {mark}{}\r\n", record.args());
        }
    }
    fn flush(&self) {}
}

/// Connects the facade.
pub fn init() {
    // A second call would find the first logger in place, which is just as good.
    let _ = log::set_logger(&Sink);
    log::set_max_level(LevelFilter::Debug);
}
