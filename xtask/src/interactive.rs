//! `xtask run --interactive`: the terminal is the machine's serial line.
//!
//! The terminal is raw, so that Ctrl-C, Ctrl-Z and Ctrl-A reach the machine. QEMU's own escape is off; three
//! times Ctrl-] in a row (which nothing inside uses) ends the machine.
use crate::ui;
use anyhow::{Context, Result, bail};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io::{Read, Write};
use std::process::{Command, Stdio};

/// Ctrl-].
const LEAVE: u8 = 0x1d;

/// Puts the terminal back however we leave.
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Raw> {
        let Ok(old) = tcgetattr(std::io::stdin()) else { bail!("--interactive needs a terminal") };
        let mut raw = old.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Raw(old))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// Counts the keys that leave.
#[derive(Debug, Default)]
struct Escape(u8);

impl Escape {
    /// Takes one key; true when it was the third in a row.
    fn key(&mut self, key: u8) -> bool {
        self.0 = if key == LEAVE { self.0 + 1 } else { 0 };
        self.0 >= 3
    }
}

/// Runs the machine on this terminal until it ends or the user leaves. Always a success: the user judges.
pub fn run(cmd: &mut Command) -> Result<bool> {
    ui::step(
        "Ctrl-A three times: input to the next domain or Testudo's key menu (h: help); Ctrl-] three times: end",
    );
    let raw = Raw::enter()?;
    let mut child = cmd.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start QEMU")?;
    let (Some(mut to), Some(mut from)) = (child.stdin.take(), child.stdout.take()) else {
        bail!("QEMU has no serial line")
    };
    // The reader of the keyboard blocks in read: it is left behind when the machine ends, with the process.
    let pid = rustix::process::Pid::from_child(&child);
    std::thread::spawn(move || {
        let (mut escape, mut buf) = (Escape::default(), [0; 256]);
        while let Ok(n @ 1..) = std::io::stdin().lock().read(&mut buf) {
            if buf[..n].iter().any(|&key| escape.key(key)) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                return;
            }
            if to.write_all(&buf[..n]).and_then(|()| to.flush()).is_err() {
                return;
            }
        }
    });
    let (mut out, mut buf) = (std::io::stdout(), [0; 4096]);
    while let Ok(n @ 1..) = from.read(&mut buf) {
        out.write_all(&buf[..n])?;
        out.flush()?;
    }
    child.wait()?;
    drop(raw);
    println!();
    ui::step("the machine has ended");
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_three_in_a_row_leave() {
        let mut escape = Escape::default();
        let keys = [LEAVE, LEAVE, 3, LEAVE, LEAVE, 1, 1, 1];
        assert!(!keys.iter().any(|&k| escape.key(k)));
        assert!(!escape.key(LEAVE) && !escape.key(LEAVE) && escape.key(LEAVE));
    }
}
