//! What people see: headings, progress of slow steps, colours only on a terminal.
use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Whether standard output takes colours.
pub fn colours() -> bool {
    std::env::var_os("NO_COLOR").is_none() && std::io::stdout().is_terminal()
}

/// `text` in the ANSI colour `code` (such as `32` for green), or plain when colours are off.
pub fn paint(code: &str, text: &str) -> String {
    if colours() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
}

/// One line saying what happens now, on standard error so that results can be piped.
pub fn step(text: &str) {
    eprintln!("{:>10}  {text}", "xtask");
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes.div_ceil(1000)),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// Progress of a step with a known amount of work. Rewrites one line on a terminal; elsewhere it prints
/// a line at most each five seconds, so that logs stay short.
#[derive(Debug)]
pub struct Progress {
    title: String,
    total: u64,
    done: u64,
    tty: bool,
    shown: Option<Instant>,
}

impl Progress {
    /// Starts a step of `total` units (bytes).
    pub fn new(title: &str, total: u64) -> Progress {
        let tty = std::io::stderr().is_terminal();
        Progress { title: title.into(), total, done: 0, tty, shown: None }
    }

    /// `units` more are done; `what` names the current piece.
    pub fn add(&mut self, units: u64, what: &str) {
        self.done += units;
        let now = Instant::now();
        let quiet = if self.tty { 50 } else { 5000 };
        if self.shown.is_some_and(|at| now.duration_since(at).as_millis() < quiet) {
            return;
        }
        self.shown = Some(now);
        let text = format!("{} {} / {}  {what}", self.title, size(self.done), size(self.total));
        if self.tty {
            eprint!("\r\x1b[K{:>10}  {text}", "xtask");
            let _ = std::io::stderr().flush();
        } else {
            step(&text);
        }
    }

    /// The step is over.
    pub fn finish(self) {
        if self.tty && self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
        step(&format!("{} {} done", self.title, size(self.total)));
    }
}
