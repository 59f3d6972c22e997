//! The command line, in force.

use boot::cmdline::{self, ConsoleDevice, LogLevel, LogLevels, Options, Serial};
use boot::{Problem, Severity};
use hv_core::console::gate::{Gate, Levels};
use log::LevelFilter;
use spin::Once;

static OPTIONS: Once<Options> = Once::new();
static GATE: Once<Gate> = Once::new();
/// Until the command line has been read.
static EARLY_GATE: Gate = Gate::new(
    Levels { always: LevelFilter::Info, limited: LevelFilter::Info },
    Levels { always: LevelFilter::Off, limited: LevelFilter::Warn },
);

/// The options; the defaults before the command line has been read.
pub fn options() -> &'static Options {
    OPTIONS.get().unwrap_or_else(|| OPTIONS.call_once(Options::default))
}

/// Which log records are shown.
pub fn gate() -> &'static Gate {
    GATE.get().unwrap_or(&EARLY_GATE)
}

/// Reads the command line and brings console and log into the state it asks for.
pub fn init(line: &str) {
    let (options, problems) = cmdline::parse(line);
    let options = OPTIONS.call_once(|| options);
    crate::power::configure(options);
    GATE.call_once(|| Gate::new(levels(options.loglvl), levels(options.guest_loglvl)));
    let lines = serial_lines(options);
    let found = crate::serial::configure(lines);
    for (name, (line, found)) in ["com1", "com2"].into_iter().zip(lines.into_iter().zip(found)) {
        if let Some(Serial { io_base, .. }) = line.filter(|_| !found) {
            log::warn!(
                "no UART answers at {io_base:x}h: set its port by `{name}=`, or leave it out of `console=`"
            );
        }
    }
    crate::console::set_conswitch(options.conswitch.key, options.conswitch.to_domain);
    log(&problems);
}

/// Logs what is wrong with the user's words.
pub fn log(problems: &[Problem]) {
    for problem in problems {
        match problem.severity {
            Severity::Warning => log::warn!("{problem}"),
            Severity::Error => log::error!("{problem}"),
        }
    }
}

/// Whether the screen is a console.
pub fn uses_screen() -> bool {
    options().console.contains(&ConsoleDevice::Vga)
}

/// The serial lines that the console uses: `com1`, `com2`.
pub fn serial_lines(options: &Options) -> [Option<&Serial>; 2] {
    let used = |device| options.console.contains(&device);
    [used(ConsoleDevice::Com1).then_some(&options.com1), used(ConsoleDevice::Com2).then_some(&options.com2)]
}

fn levels(levels: LogLevels) -> Levels {
    Levels { always: filter(levels.always), limited: filter(levels.limited) }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::None => LevelFilter::Off,
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warning => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Options {
        let (options, problems) = cmdline::parse(line);
        assert_eq!(problems, [], "{line}");
        options
    }

    #[test]
    fn every_line_that_console_names_is_used_and_no_other() {
        let ports = |line: &str| serial_lines(&of(line)).map(|line| line.map(|serial| serial.io_base));
        assert_eq!(ports(""), [Some(0x3f8), None]);
        assert_eq!(ports("console=com2,com1 com2=9600,8n1,0x2e8"), [Some(0x3f8), Some(0x2e8)]);
        assert_eq!(ports("console=vga,com2"), [None, Some(0x2f8)]);
        assert_eq!(ports("console=vga"), [None, None]);
        assert_eq!(ports("console=none"), [None, None]);
    }

    #[test]
    fn the_options_levels_are_the_gates() {
        let both = |line: &str| (levels(of(line).loglvl), levels(of(line).guest_loglvl));
        let pair = |always, limited| Levels { always, limited };
        let default = (pair(LevelFilter::Info, LevelFilter::Info), pair(LevelFilter::Off, LevelFilter::Warn));
        assert_eq!(both(""), default);
        assert_eq!(both("loglvl=warning/all").0, pair(LevelFilter::Warn, LevelFilter::Debug));
        assert_eq!(both("loglvl=none").0, pair(LevelFilter::Off, LevelFilter::Off));
        assert_eq!(both("guest_loglvl=error/info").1, pair(LevelFilter::Error, LevelFilter::Info));
    }
}
