//! The values of options: from what stands behind `=` to what it means.

use super::{
    ConSwitch, ConsoleDevice, Dom0Memory, LogLevel, LogLevels, Parity, Reboot, RebootMethod, Scheduler,
    Serial, Watchdog,
};
use crate::words::{boolean, integer, size};
use alloc::vec::Vec;

/// How an option was written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    /// `foo`
    Bare,
    /// `no-foo`
    Negated,
    /// `foo=…`
    Text(&'a str),
}

/// Why a word has no effect.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// The value is not of the option's form.
    Value,
    /// The option is known, but does nothing here.
    NoEffect(&'static str),
    /// Xen has this value, Testudo has not: what is missing, and what to write instead.
    Absent(&'static str, &'static str),
}

impl<'a> Value<'a> {
    pub(super) fn boolean(self) -> Result<bool, Fault> {
        match self {
            Self::Bare => Ok(true),
            Self::Negated => Ok(false),
            Self::Text(text) => boolean(text).ok_or(Fault::Value),
        }
    }

    /// The text behind `=`, turned into a value by `parse`.
    pub(super) fn text<T>(self, parse: impl Fn(&'a str) -> Option<T>) -> Result<T, Fault> {
        match self {
            Self::Text(text) => parse(text).ok_or(Fault::Value),
            _ => Err(Fault::Value),
        }
    }

    /// One of some names.
    pub(super) fn one_of<T: Copy>(self, names: &[(&str, T)]) -> Result<T, Fault> {
        self.text(|text| names.iter().find(|(name, _)| *name == text).map(|(_, value)| *value))
    }
}

/// `<a>,<b>,…`, each by `item`.
pub(super) fn list<T>(text: &str, item: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    text.split(',').map(item).collect()
}

/// `<n>` or `<first>-<last>`, both ends inclusive.
pub(super) fn range(text: &str) -> Option<(u64, u64)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (integer(first)?, integer(last)?);
    (first <= last).then_some((first, last))
}

pub(super) fn console(text: &str) -> Option<Vec<ConsoleDevice>> {
    if text == "none" {
        return Some(Vec::new());
    }
    list(text, |item| match item {
        "com1" => Some(ConsoleDevice::Com1),
        "com2" => Some(ConsoleDevice::Com2),
        "vga" => Some(ConsoleDevice::Vga),
        _ => None,
    })
}

/// `<baud>[,DPS[,<io-base>[,<irq>]]]`, each part possibly empty, or `name=value` pairs behind them.
pub(super) fn serial(text: &str, default: Serial) -> Option<Serial> {
    let mut serial = default;
    for (i, part) in text.split(',').enumerate() {
        match (part.split_once('='), i) {
            (Some((name, value)), _) => serial_pair(&mut serial, name, value)?,
            (None, _) if part.is_empty() => {}
            (None, 0) => serial.baud = baud(part)?,
            (None, 1) => frame(&mut serial, part)?,
            (None, 2) => serial.io_base = integer(part)?.try_into().ok()?,
            (None, 3) => serial.irq = integer(part)?.try_into().ok()?,
            _ => return None,
        }
    }
    Some(serial)
}

fn serial_pair(serial: &mut Serial, name: &str, value: &str) -> Option<()> {
    match name {
        "baud" => serial.baud = baud(value)?,
        "data-bits" => serial.data_bits = data_bits(value)?,
        "parity" => serial.parity = parity(value)?,
        "stop-bits" => serial.stop_bits = stop_bits(value)?,
        "io-base" => serial.io_base = integer(value)?.try_into().ok()?,
        "irq" => serial.irq = integer(value)?.try_into().ok()?,
        _ => return None,
    }
    Some(())
}

/// A PC's UART divides 115200 by a whole number of 16 bits: no other speed can be had.
fn baud(text: &str) -> Option<Option<u32>> {
    if text == "auto" {
        return Some(None);
    }
    let baud = u32::try_from(integer(text)?).ok()?;
    ((2..=115_200).contains(&baud) && 115_200 % baud == 0).then_some(Some(baud))
}

/// Data bits, parity and stop bits in three characters, as in `8n1`.
fn frame(serial: &mut Serial, text: &str) -> Option<()> {
    serial.data_bits = data_bits(text.get(..1)?)?;
    serial.parity = parity(text.get(1..2)?)?;
    serial.stop_bits = stop_bits(text.get(2..)?)?;
    Some(())
}

fn data_bits(text: &str) -> Option<u8> {
    integer(text).filter(|bits| (5..=8).contains(bits)).map(|bits| bits as u8)
}

fn stop_bits(text: &str) -> Option<u8> {
    integer(text).filter(|bits| (1..=2).contains(bits)).map(|bits| bits as u8)
}

fn parity(text: &str) -> Option<Parity> {
    Some(match text {
        "n" => Parity::None,
        "o" => Parity::Odd,
        "e" => Parity::Even,
        "m" => Parity::Mark,
        "s" => Parity::Space,
        _ => return None,
    })
}

/// `<level>` or `<level>/<rate-limited level>`.
pub(super) fn log_levels(text: &str) -> Option<LogLevels> {
    let (always, limited) = text.split_once('/').unwrap_or((text, text));
    let (always, limited) = (log_level(always)?, log_level(limited)?);
    Some(LogLevels { always, limited: limited.max(always) })
}

fn log_level(text: &str) -> Option<LogLevel> {
    Some(match text {
        "none" => LogLevel::None,
        "error" => LogLevel::Error,
        "warning" => LogLevel::Warning,
        "info" => LogLevel::Info,
        "debug" | "all" => LogLevel::Debug,
        _ => return None,
    })
}

pub(super) fn conswitch(text: &str) -> Option<ConSwitch> {
    match text.as_bytes() {
        [key @ b'a'..=b'z'] => Some(ConSwitch { key: *key, to_domain: true }),
        [key @ b'a'..=b'z', b'x'] => Some(ConSwitch { key: *key, to_domain: false }),
        _ => None,
    }
}

pub(super) fn watchdog(value: Value<'_>) -> Result<Watchdog, Fault> {
    match value {
        Value::Text("force") => Ok(Watchdog::Force),
        _ => value.boolean().map(|on| if on { Watchdog::On } else { Watchdog::Off }),
    }
}

/// Xen looks at first letters only; whole names are accepted too, and `cf9` for what Xen calls `pci`.
pub(super) fn reboot(value: Value<'_>) -> Result<Reboot, Fault> {
    let Value::Text(text) = value else { return Err(Fault::Value) };
    let mut reboot = Reboot::default();
    for part in text.split(',') {
        match part {
            "w" | "warm" => reboot.warm = true,
            "c" | "cold" => reboot.warm = false,
            "n" | "no" => reboot.never = true,
            "t" | "triple" => reboot.method = Some(RebootMethod::Triple),
            "k" | "kbd" => reboot.method = Some(RebootMethod::Keyboard),
            "a" | "acpi" => reboot.method = Some(RebootMethod::Acpi),
            "p" | "pci" | "cf9" => reboot.method = Some(RebootMethod::Cf9),
            "P" | "Power" => reboot.method = Some(RebootMethod::Cf9Power),
            "e" | "efi" | "x" | "xen" => {
                let what = "Testudo cannot restart the machine by EFI or by a hypervisor below it";
                return Err(Fault::Absent(
                    what,
                    "write `acpi`, `cf9`, `Power`, `kbd` or `triple`, or nothing",
                ));
            }
            _ => return Err(Fault::Value),
        }
    }
    Ok(reboot)
}

pub(super) fn scheduler(value: Value<'_>) -> Result<Scheduler, Fault> {
    match value {
        Value::Text("credit") => Ok(Scheduler::Credit),
        Value::Text("credit2" | "arinc653" | "rtds" | "null") => Err(Fault::Absent(
            "Testudo has no such scheduler",
            "there is one, `credit`: write that, or nothing",
        )),
        _ => Err(Fault::Value),
    }
}

pub(super) fn dom0_memory(text: &str) -> Option<Dom0Memory> {
    let mut memory = Dom0Memory::default();
    for part in text.split(',') {
        match part.split_once(':') {
            None => memory.size = Some(size(part)?),
            Some(("min", part)) => memory.min = Some(size(part)?),
            Some(("max", part)) => memory.max = Some(size(part)?),
            Some(_) => return None,
        }
    }
    Some(memory)
}

/// `<most>` or `<least>-<most>`, neither zero.
pub(super) fn vcpu_range(text: &str) -> Option<(u32, u32)> {
    let (least, most) = range(text)?;
    let least = if text.contains('-') { least } else { 1 };
    (least > 0).then_some((least.try_into().ok()?, most.try_into().ok()?))
}
