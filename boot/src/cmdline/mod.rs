//! The hypervisor's own command line: options by Xen's names and in Xen's syntax.
//!
//! One table ([`option_table`]) holds each option's name, form, default, meaning and parser, so what the
//! documentation says and what is accepted cannot drift apart. As in Xen, `-` and `_` are the same in
//! names, a boolean `foo` may be written `foo`, `no-foo` or `foo=<boolean>`, the last word on a matter
//! wins, and an option may only be misspelt loudly: every word that has no effect gives a [`Problem`].

mod table;
mod value;

pub use table::{OptionDoc, option_markdown, option_table};

use crate::words::{self, Word};
use crate::{Place, Problem, Severity};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use value::{Fault, Value};

/// A place for the console's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleDevice {
    /// First serial port.
    Com1,
    /// Second serial port.
    Com2,
    /// The screen.
    Vga,
}

/// A serial line's parity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parity {
    /// No parity bit.
    None,
    /// Odd.
    Odd,
    /// Even.
    Even,
    /// Always 1.
    Mark,
    /// Always 0.
    Space,
}

/// How a serial port is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serial {
    /// Bits per second; `None` keeps what firmware or the boot loader set (`auto`).
    pub baud: Option<u32>,
    /// Data bits, 5..=8.
    pub data_bits: u8,
    /// Parity.
    pub parity: Parity,
    /// Stop bits, 1 or 2.
    pub stop_bits: u8,
    /// First I/O port.
    pub io_base: u16,
    /// Interrupt line; 0 polls.
    pub irq: u8,
}

impl Serial {
    /// The first port of a PC, 115200 8n1.
    pub const COM1: Self = Self {
        baud: Some(115_200),
        data_bits: 8,
        parity: Parity::None,
        stop_bits: 1,
        io_base: 0x3f8,
        irq: 4,
    };
    /// The second.
    pub const COM2: Self = Self { io_base: 0x2f8, irq: 3, ..Self::COM1 };
}

/// What is logged, from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Nothing.
    None,
    /// Errors.
    Error,
    /// And warnings.
    Warning,
    /// And information.
    Info,
    /// And debugging: everything.
    Debug,
}

/// Two thresholds: up to `always` each message is logged, up to `limited` messages are rate-limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLevels {
    /// Logged always.
    pub always: LogLevel,
    /// Logged, but not too often. Never below `always`.
    pub limited: LogLevel,
}

/// The key that moves console input between the hypervisor and the domains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConSwitch {
    /// The letter, lower case, that is typed three times with Ctrl.
    pub key: u8,
    /// Whether input goes to the first domain at boot (no trailing `x`).
    pub to_domain: bool,
}

impl ConSwitch {
    /// What the serial line carries for one press: 1 for Ctrl-A.
    pub const fn control(self) -> u8 {
        self.key & 0x1f
    }
}

/// The schedulers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheduler {
    /// Proportional share by credit, with caps.
    Credit,
}

/// How far the time stamp counters of this machine can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tsc {
    /// Not at all.
    Unstable,
    /// They run alike, but from different values.
    Skewed,
    /// They agree within a socket and across sockets.
    StableSocket,
}

/// What the CPUs' traces record, each with all before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trace {
    /// Nothing.
    Off,
    /// Exits, and what is rare: hypercalls, changes of the vCPU, the log.
    Exits,
    /// Entries and what they inject, nested entries, reflected exits, flushes.
    All,
}

/// How Testudo fails on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// A panic.
    Panic,
    /// A write to nowhere.
    PageFault,
    /// Recursion without end: a double fault at the guard page.
    StackOverflow,
    /// A panic with GIF=0.
    ClosedGif,
}

/// The watchdog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watchdog {
    /// Off.
    Off,
    /// On, if the CPU can raise its NMIs reliably.
    On,
    /// On in any case.
    Force,
}

/// What to do with an NMI that nobody expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownNmi {
    /// Nothing.
    Ignore,
    /// Tell dom0.
    Dom0,
    /// Stop the machine.
    Fatal,
}

/// How to restart the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RebootMethod {
    /// Triple fault.
    Triple,
    /// Keyboard controller.
    Keyboard,
    /// ACPI reset register.
    Acpi,
    /// Port 0xcf9, reset.
    Cf9,
    /// Port 0xcf9, power cycle.
    Cf9Power,
}

/// `reboot=`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reboot {
    /// The method; `None` tries what the machine offers, safest first.
    pub method: Option<RebootMethod>,
    /// Ask firmware to skip its memory test.
    pub warm: bool,
    /// `no`: not by itself after a fatal error, as `noreboot`.
    pub never: bool,
}

/// `dom0_mem=`, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dom0Memory {
    /// What it gets at boot.
    pub size: Option<u64>,
    /// Least.
    pub min: Option<u64>,
    /// Most, now and later.
    pub max: Option<u64>,
}

/// The command line's options, with their defaults where it says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `badpage=`: ranges of 4 KiB host frames not to be used, both ends inclusive.
    pub badpage: Vec<(u64, u64)>,
    /// `com1=`
    pub com1: Serial,
    /// `com2=`
    pub com2: Serial,
    /// `console=`; empty for `none`.
    pub console: Vec<ConsoleDevice>,
    /// `conswitch=`
    pub conswitch: ConSwitch,
    /// `dom0_max_vcpus=`: least and most.
    pub dom0_max_vcpus: Option<(u32, u32)>,
    /// `dom0_mem=`
    pub dom0_mem: Dom0Memory,
    /// `guest_loglvl=`
    pub guest_loglvl: LogLevels,
    /// `loglvl=`
    pub loglvl: LogLevels,
    /// `maxcpus=`: most pCPUs to use; `None` for all.
    pub maxcpus: Option<u32>,
    /// `mem=`: RAM above this host address is not used; `None` for no limit.
    pub mem: Option<u64>,
    /// `nmi=`
    pub nmi: UnknownNmi,
    /// `crash-key`
    pub crash_key: Crash,
    /// `trace`
    pub trace: Trace,
    /// `noreboot`
    pub noreboot: bool,
    /// `reboot=`
    pub reboot: Reboot,
    /// `sched=`
    pub sched: Scheduler,
    /// `spec-ctrl=`: its comma-separated items, as written.
    pub spec_ctrl: Vec<String>,
    /// `tsc=`; `None` lets the hypervisor find out.
    pub tsc: Option<Tsc>,
    /// `watchdog`
    pub watchdog: Watchdog,
    /// `x2apic`
    pub x2apic: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            badpage: Vec::new(),
            com1: Serial::COM1,
            com2: Serial::COM2,
            console: Vec::from([ConsoleDevice::Com1, ConsoleDevice::Vga]),
            conswitch: ConSwitch { key: b'a', to_domain: true },
            dom0_max_vcpus: None,
            dom0_mem: Dom0Memory::default(),
            guest_loglvl: LogLevels { always: LogLevel::None, limited: LogLevel::Warning },
            loglvl: LogLevels { always: LogLevel::Info, limited: LogLevel::Info },
            maxcpus: None,
            mem: None,
            nmi: UnknownNmi::Fatal,
            crash_key: Crash::Panic,
            trace: Trace::Exits,
            noreboot: false,
            reboot: Reboot::default(),
            sched: Scheduler::Credit,
            spec_ctrl: Vec::new(),
            tsc: None,
            watchdog: Watchdog::Off,
            x2apic: true,
        }
    }
}

/// Reads the command line. Never fails: what is wrong becomes a problem, and that option stays as it was.
/// An unknown word is a warning, a bad value an error.
pub fn parse(line: &str) -> (Options, Vec<Problem>) {
    let mut options = Options::default();
    let mut problems = Vec::new();
    let (list, behind) = words::split(line);
    for (i, word) in list.iter().enumerate() {
        if i == 0 && words::is_file_name(&word.text) {
            continue;
        }
        if let Err((severity, what, remedy)) = take(&mut options, word) {
            let place = Place::CommandLine { word: i + 1 };
            problems.push(Problem { severity, place, culprit: word.text.clone(), what, remedy });
        }
    }
    if behind.is_some_and(|behind| !behind.is_empty()) {
        problems.push(Problem {
            severity: Severity::Warning,
            place: Place::CommandLine { word: list.len() + 1 },
            culprit: "--".into(),
            what: "nothing reads what stands behind it here".into(),
            remedy: "put a guest's kernel options behind the `--` of its module line".into(),
        });
    }
    (options, problems)
}

/// Takes in one word; says severity, what is wrong and the remedy.
fn take(options: &mut Options, word: &Word) -> Result<(), (Severity, String, String)> {
    if word.unclosed {
        let what = "a quotation that does not end".into();
        return Err((Severity::Error, what, "add the missing quotation mark".into()));
    }
    let (name, text) = match word.text.split_once('=') {
        Some((name, text)) => (name, Some(text)),
        None => (word.text.as_str(), None),
    };
    let (option, value) = match (table::find(name), text) {
        (Some(option), Some(text)) => (option, Value::Text(text)),
        (Some(option), None) => (option, Value::Bare),
        (None, None) if let Some(option) = name.strip_prefix("no-").and_then(table::find) => {
            (option, Value::Negated)
        }
        _ => return Err((Severity::Warning, "unknown option, ignored".into(), suggestion(name))),
    };
    option.apply(options, value).map_err(|fault| match fault {
        Fault::NoEffect(why) => (Severity::Warning, why.into(), String::new()),
        Fault::Absent(what, remedy) => (Severity::Error, what.into(), remedy.into()),
        Fault::Value => (
            Severity::Error,
            format!("`{}` cannot be set so", option.name),
            format!("write `{}`", option.form),
        ),
    })
}

fn suggestion(name: &str) -> String {
    let names = option_table().iter().map(|option| option.name);
    words::nearest(name, names).map_or(String::new(), |near| format!("did you mean `{near}`?"))
}

#[cfg(test)]
mod tests;
