//! The hypervisor's own command line.
#![allow(clippy::todo)]
use crate::Problem;
use alloc::string::String;
use alloc::vec::Vec;

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
    /// Bits per second; `None` keeps what firmware set (`auto`).
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
    /// And debugging.
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

/// The command line's options, with their defaults where it says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `console=`
    pub console: Vec<ConsoleDevice>,
    /// `com1=`
    pub com1: Serial,
    /// `com2=`
    pub com2: Serial,
    /// `loglvl=`
    pub loglvl: LogLevels,
    /// `guest_loglvl=`
    pub guest_loglvl: LogLevels,
    /// `noreboot`
    pub noreboot: bool,
}

/// One row of the table of options.
#[derive(Clone, Copy, Debug)]
pub struct OptionDoc {
    /// The name before `=`.
    pub name: &'static str,
    /// What may follow.
    pub form: &'static str,
    /// What holds if the option is absent.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

/// Reads the command line. Never fails: what is wrong becomes a problem, and the option keeps its default.
pub fn parse(_line: &str) -> (Options, Vec<Problem>) {
    todo!()
}

/// Every option there is, in the order of their names.
pub fn option_table() -> &'static [OptionDoc] {
    todo!()
}

/// Markdown of [`option_table`].
pub fn option_markdown() -> String {
    todo!()
}
