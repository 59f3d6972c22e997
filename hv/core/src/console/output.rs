//! Output: lines, prefixes, and what is held back.

use super::filter::{Filter, Pass};
use super::{Console, LINE_BYTES, Sink, Who};
use alloc::format;
use alloc::string::String;
use core::fmt::{self, Write};

const OWN_PREFIX: &str = "(testudo) ";

/// One domain's side of the output.
pub(super) struct Speaker {
    pub(super) domid: u16,
    prefix: String,
    held: [u8; LINE_BYTES],
    len: usize,
    /// When the first held byte came.
    since: u64,
    /// Part of the current line has been shown.
    begun: bool,
    /// A carriage return came; what it means depends on the next byte.
    cr: bool,
    filter: Filter,
}

impl Speaker {
    pub(super) fn new(domid: u16, name: &str) -> Self {
        Self {
            domid,
            prefix: format!("({name}) "),
            held: [0; LINE_BYTES],
            len: 0,
            since: 0,
            begun: false,
            cr: false,
            filter: Filter::default(),
        }
    }
    pub(super) fn name(&self) -> &str {
        &self.prefix[1..self.prefix.len() - 2]
    }
}

impl<S: Sink> Console<S> {
    /// What a domain says. Unknown domains are not shown. `now` in nanoseconds.
    pub fn domain_output(&mut self, domid: u16, bytes: &[u8], now: u64) {
        let Ok(at) = self.index(domid) else { return };
        let focused = self.focus == Who::Domain(domid);
        for &byte in bytes {
            if focused {
                if byte != 0 {
                    self.domain_byte(at, byte, now, true);
                }
                continue;
            }
            match self.domains[at].filter.feed(byte) {
                Pass::Nothing => {}
                Pass::Byte(byte) => self.domain_byte(at, byte, now, false),
                Pass::Sequence(text) => {
                    text.as_bytes().iter().for_each(|&b| self.domain_byte(at, b, now, false));
                }
            }
        }
        if focused {
            self.show_partial(at);
        }
    }

    /// A line (or several) of Testudo's own log: shown at once, and kept in the log ring.
    pub fn log(&mut self, text: fmt::Arguments<'_>) {
        let mut line = LogLine { console: self };
        // Formatting fails only if a Display implementation does; what came before is shown.
        let _ = line.write_fmt(text);
        if self.open == Some(Who::Testudo) {
            self.own_piece(b"\n");
        }
    }

    /// Shows the incomplete lines that have waited long enough. To be called now and then.
    pub fn flush_idle(&mut self, now: u64) {
        for at in 0..self.domains.len() {
            if now.saturating_sub(self.domains[at].since) >= self.idle_ns {
                self.show_partial(at);
            }
        }
    }

    /// Shows all that is held back (before a panic, or power-off).
    pub fn flush(&mut self) {
        (0..self.domains.len()).for_each(|at| self.show_partial(at));
        if self.open.is_some() {
            self.end_line();
        }
    }

    fn domain_byte(&mut self, at: usize, byte: u8, now: u64, focused: bool) {
        let speaker = &mut self.domains[at];
        match byte {
            b'\r' => {
                speaker.cr = true;
                return;
            }
            b'\n' => {
                speaker.cr = false;
                return self.end_domain_line(at);
            }
            _ => {}
        }
        if core::mem::take(&mut speaker.cr) {
            self.carriage_return(at, focused);
        }
        let speaker = &mut self.domains[at];
        if speaker.len == 0 {
            speaker.since = now;
        }
        speaker.held[speaker.len] = byte;
        speaker.len += 1;
        if speaker.len == LINE_BYTES {
            self.show_partial(at);
        }
    }

    /// Text follows a carriage return. In focus it may overwrite the line, but not the prefix; else it
    /// begins a new line.
    fn carriage_return(&mut self, at: usize, focused: bool) {
        let who = Who::Domain(self.domains[at].domid);
        if !focused {
            if self.domains[at].begun || self.domains[at].len > 0 {
                self.end_domain_line(at);
            }
            return;
        }
        self.show_partial(at);
        if self.open == Some(who) {
            self.sink.write(b"\r");
            self.sink.write(self.domains[at].prefix.as_bytes());
        }
    }

    fn end_domain_line(&mut self, at: usize) {
        let speaker = &mut self.domains[at];
        let who = Who::Domain(speaker.domid);
        let shown_before = core::mem::take(&mut speaker.begun);
        // The line's text is out already and somebody else ended that line: nothing more to say.
        if speaker.len == 0 && shown_before && self.open != Some(who) {
            return;
        }
        self.show(at);
        self.domains[at].begun = false;
        self.end_line();
    }

    /// Shows what a domain's line has so far, if anything.
    pub(super) fn show_partial(&mut self, at: usize) {
        if self.domains[at].len > 0 {
            self.show(at);
        }
    }

    fn show(&mut self, at: usize) {
        self.begin(Who::Domain(self.domains[at].domid));
        let speaker = &mut self.domains[at];
        self.sink.write(&speaker.held[..speaker.len]);
        speaker.len = 0;
        speaker.begun = true;
    }

    /// Makes the current line `who`'s.
    fn begin(&mut self, who: Who) {
        if self.open == Some(who) {
            return;
        }
        if self.open.is_some() {
            self.end_line();
        }
        let prefix = match who {
            Who::Testudo => OWN_PREFIX,
            Who::Domain(domid) => self.index(domid).map_or("(?) ", |at| &self.domains[at].prefix),
        };
        self.sink.write(prefix.as_bytes());
        self.open = Some(who);
    }

    pub(super) fn end_line(&mut self) {
        self.sink.write(b"\r\n");
        self.open = None;
    }

    /// A piece of our own log, at most one line feed, at its end.
    fn own_piece(&mut self, piece: &[u8]) {
        self.begin(Who::Testudo);
        let (text, ended) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
        self.sink.write(text);
        self.log.push(text);
        if ended {
            self.log.push(b"\n");
            self.end_line();
        }
    }

    /// Forgets a half-received escape sequence when the rules for a domain change.
    pub(super) fn reset_filter(&mut self, who: Who) {
        if let Who::Domain(domid) = who
            && let Ok(at) = self.index(domid)
        {
            self.domains[at].filter = Filter::default();
            self.show_partial(at);
        }
    }
}

struct LogLine<'c, S> {
    console: &'c mut Console<S>,
}

impl<S: Sink> Write for LogLine<'_, S> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // Runs between characters that could disturb the line, each of those shown as `?`.
        let harmful = |c: char| c.is_control() && c != '\n' && c != '\t';
        for line in text.split_inclusive('\n') {
            let mut pieces = line.split(harmful);
            self.console.own_piece(pieces.next().unwrap_or("").as_bytes());
            for piece in pieces {
                self.console.own_piece(b"?");
                self.console.own_piece(piece.as_bytes());
            }
        }
        Ok(())
    }
}
