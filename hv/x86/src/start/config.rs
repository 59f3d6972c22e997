//! The command line, in force.

use boot::cmdline::{self, ConsoleDevice, LogLevel, Options};
use boot::{Problem, Severity};
use log::Level;
use spin::Once;

static OPTIONS: Once<Options> = Once::new();

/// The options; the defaults before the command line has been read.
pub fn options() -> &'static Options {
    OPTIONS.get().unwrap_or_else(|| OPTIONS.call_once(Options::default))
}

/// Reads the command line and brings console and log into the state it asks for.
pub fn init(line: &str) {
    let (options, problems) = cmdline::parse(line);
    let options = OPTIONS.call_once(|| options);
    crate::power::set_no_reboot(options.noreboot);
    let port = match options.console.iter().find(|c| matches!(c, ConsoleDevice::Com1 | ConsoleDevice::Com2)) {
        Some(ConsoleDevice::Com2) => Some(options.com2),
        Some(_) => Some(options.com1),
        None => None,
    };
    if let Some(port) = port
        && (port.io_base != 0x3f8 || !crate::serial::present())
    {
        crate::serial::init(port.io_base);
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

/// First I/O port of the serial line that the console uses.
pub fn serial_port() -> u16 {
    match options().console.first() {
        Some(ConsoleDevice::Com2) => options().com2.io_base,
        _ => options().com1.io_base,
    }
}

/// The IRQ of the serial line that the console uses.
pub fn serial_irq() -> u8 {
    match options().console.first() {
        Some(ConsoleDevice::Com2) => options().com2.irq,
        _ => options().com1.irq,
    }
}

/// Whether a record of `level` is shown; `by_guest`: a guest caused it.
pub fn shows(level: Level, by_guest: bool) -> bool {
    let Some(options) = OPTIONS.get() else { return level <= Level::Info };
    let levels = if by_guest { options.guest_loglvl } else { options.loglvl };
    level <= most(levels.limited)
}

/// The least severe level of the facade that `level` lets through. Nothing is below `Error`: with `none`,
/// errors are still shown, as they precede a refusal or a crash.
fn most(level: LogLevel) -> Level {
    match level {
        LogLevel::None | LogLevel::Error => Level::Error,
        LogLevel::Warning => Level::Warn,
        LogLevel::Info => Level::Info,
        LogLevel::Debug => Level::Debug,
    }
}
