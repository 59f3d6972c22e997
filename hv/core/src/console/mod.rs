//! The one serial line: everybody's output, and who gets the input.
//!
//! Testudo's log and each domain's console share the line. Every output line begins with its speaker:
//! `(testudo) `, or `(name) ` for the domain of that name. A domain's text is held back until its line
//! is complete, so that speakers do not mix within a line; what stays incomplete is shown after a while
//! ([`Console::flush_idle`]). The domain that has the input focus is shown at once, byte by byte, so that
//! echo and prompts work; where another speaks in the middle of a line, the rest of that line begins with
//! the prefix again.
//!
//! **No speaker can pass for another.** After every line feed and carriage return the true prefix is written
//! again before any text: a carriage return in the middle of a line rewrites the prefix of the domain in
//! focus, and ends the line of any other. NULs are dropped. From a domain without focus, nothing that
//! moves the cursor passes: control characters are dropped but for tab and line ends, escape sequences but for
//! colours. The domain in focus may send any sequence, as an editor or a pager must: who gives it the
//! input looks at its screen. In the recorded byte stream, lines and prefixes are true in either case.
//! Testudo's own lines may quote what a guest said, so control characters in them become `?`.
//!
//! **Input** goes to the focus. The switch character (Ctrl-A unless `conswitch=` says otherwise), three
//! times, moves the focus on: through the domains by their number, then to Testudo, where each key is a
//! command ([`Console::register_key`], `h` lists them). As in Xen, a switch character is held back until the
//! next byte says that it was meant for the domain.
//!
//! Everything here takes `&mut self`: the caller has the lock, and calls command handlers after letting
//! go of it.

mod filter;
pub mod gate;
mod input;
mod limit;
mod log_ring;
mod output;
#[cfg(test)]
mod tests;

pub use input::{Conswitch, Handler, InputBytes, InputEvent};
pub use limit::{RateLimit, Verdict};
pub use log_ring::LogRing;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use input::Key;
use output::Speaker;

/// Where the bytes go: a UART, or a test's vector. The console writes `\r\n` at line ends.
pub trait Sink {
    /// Sends all of `bytes`.
    fn write(&mut self, bytes: &[u8]);
}

/// Who speaks, and who listens: Testudo, or a domain by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// The hypervisor: its log, its key commands.
    Testudo,
    /// A domain.
    Domain(u16),
}

/// The longest part of a line that is held back; longer lines are shown in pieces.
pub const LINE_BYTES: usize = 256;
/// The longest domain name shown.
pub const NAME_BYTES: usize = 32;
/// How much of Testudo's own log is kept.
pub const LOG_BYTES: usize = 64 << 10;
/// How long an incomplete line is held back by default, in nanoseconds.
pub const IDLE_NS: u64 = 200_000_000;

/// The multiplexer.
pub struct Console<S> {
    sink: S,
    domains: Vec<Speaker>,
    /// Whose unfinished text stands on the current line.
    open: Option<Who>,
    focus: Who,
    conswitch: Conswitch,
    /// Switch characters seen in a row and held back, 0 to 2.
    switches: u8,
    keys: Vec<Key>,
    log: LogRing,
    idle_ns: u64,
}

impl<S> fmt::Debug for Console<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("focus", &self.focus)
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

impl<S: Sink> Console<S> {
    /// A console with no domains, the input with Testudo.
    pub fn new(sink: S) -> Self {
        Self {
            sink,
            domains: Vec::new(),
            open: None,
            focus: Who::Testudo,
            conswitch: Conswitch::default(),
            switches: 0,
            keys: Vec::new(),
            log: LogRing::new(LOG_BYTES),
            idle_ns: IDLE_NS,
        }
    }

    /// Adds a domain's console (or renames it). Of `name`, what could be taken for something else in a
    /// prefix becomes `_`, as does what is beyond [`NAME_BYTES`]; nobody is called `testudo`.
    pub fn add_domain(&mut self, domid: u16, name: &str) {
        self.remove_domain(domid);
        let at = self.domains.partition_point(|d| d.domid < domid);
        self.domains.insert(at, Speaker::new(domid, &clean_name(name)));
    }

    /// Shows what the domain has said so far and forgets it. The focus, if it was there, goes to Testudo.
    pub fn remove_domain(&mut self, domid: u16) {
        let Ok(at) = self.index(domid) else { return };
        self.show_partial(at);
        self.domains.remove(at);
        if self.open == Some(Who::Domain(domid)) {
            self.end_line();
        }
        if self.focus == Who::Domain(domid) {
            self.set_focus(Who::Testudo);
        }
    }

    /// Who gets the input.
    pub fn focus(&self) -> Who {
        self.focus
    }

    /// Testudo's own log, the last [`LOG_BYTES`] of it.
    pub fn log_ring(&self) -> &LogRing {
        &self.log
    }

    /// The sink, for a panic handler that has to write past everything else.
    pub fn sink(&mut self) -> &mut S {
        &mut self.sink
    }

    /// How long incomplete lines are held back, in nanoseconds ([`IDLE_NS`] at first).
    pub fn set_idle(&mut self, ns: u64) {
        self.idle_ns = ns;
    }

    fn index(&self, domid: u16) -> Result<usize, usize> {
        self.domains.binary_search_by_key(&domid, |d| d.domid)
    }

    fn name(&self, who: Who) -> &str {
        match who {
            Who::Testudo => "Testudo",
            Who::Domain(domid) => self.index(domid).map_or("?", |at| self.domains[at].name()),
        }
    }
}

fn clean_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_graphic() && c != '(' && c != ')' { c } else { '_' };
    let mut clean: String = name.chars().take(NAME_BYTES).map(plain).collect();
    if clean.is_empty() || clean.eq_ignore_ascii_case("testudo") {
        clean.push('_');
    }
    clean
}
