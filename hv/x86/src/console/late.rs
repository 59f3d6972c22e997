//! Log records put aside while the console is taken. Pure.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use spin::{Mutex, MutexGuard};

/// Room for this much text.
const BYTES: usize = 4096;
/// How often the buffer is asked for before a record counts as lost. Who has it is about to let go, or is what an
/// interrupt handler interrupted, which then never comes.
const TRIES: u32 = 10_000;

/// A small buffer of lines. Nobody waits for it without end, so interrupt handlers may use it.
pub(super) struct Late {
    text: Mutex<Text>,
    lost: AtomicU32,
    any: AtomicBool,
}

struct Text {
    bytes: [u8; BYTES],
    len: usize,
}

impl Write for Text {
    /// Appends all of `text` or nothing.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.len..self.len + text.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

impl Late {
    pub(super) const fn new() -> Self {
        let text = Text { bytes: [0; BYTES], len: 0 };
        Self { text: Mutex::new(text), lost: AtomicU32::new(0), any: AtomicBool::new(false) }
    }

    /// Whether [`Late::drain`] would find anything.
    pub(super) fn is_empty(&self) -> bool {
        !self.any.load(SeqCst)
    }

    /// Puts one record aside. One that does not fit is counted instead.
    pub(super) fn push(&self, record: fmt::Arguments<'_>) {
        match self.try_text() {
            Some(mut text) => {
                let before = text.len;
                if writeln!(text, "{record}").is_err() {
                    text.len = before;
                    self.lost.fetch_add(1, SeqCst);
                }
            }
            None => {
                self.lost.fetch_add(1, SeqCst);
            }
        }
        self.any.store(true, SeqCst);
    }

    /// Gives out all there is, line by line. By one at a time: the holder of the console. `false`: somebody is just
    /// putting a record aside, perhaps the very code that an interrupt handler has interrupted; who does that looks
    /// after it that it is shown. Also after as much as the buffer holds, as others may fill it as fast as this shows
    /// it: the rest comes with the next record, or when CPU 0's timer looks.
    pub(super) fn drain(&self, mut show: impl FnMut(fmt::Arguments<'_>)) -> bool {
        let mut left = BYTES;
        while self.any.swap(false, SeqCst) {
            // An interrupt handler may push while a chunk is shown: the buffer is not held for that.
            let mut chunk = [0; 256];
            loop {
                let Some(n) = self.take(&mut chunk) else {
                    self.any.store(true, SeqCst);
                    return false;
                };
                if n == 0 {
                    break;
                }
                left = left.saturating_sub(n);
                let whole = core::str::from_utf8(&chunk[..n]).unwrap_or("?");
                whole.lines().for_each(|line| show(format_args!("{line}")));
                if left == 0 {
                    self.any.store(true, SeqCst);
                    return false;
                }
            }
            match self.lost.swap(0, SeqCst) {
                0 => {}
                lost => show(format_args!("{lost} messages lost: the console was too slow")),
            }
        }
        true
    }

    fn try_text(&self) -> Option<MutexGuard<'_, Text>> {
        (0..TRIES).find_map(|_| self.text.try_lock())
    }

    /// Moves whole lines, or as much of one long line as fits, to `chunk`.
    fn take(&self, chunk: &mut [u8; 256]) -> Option<usize> {
        let mut text = self.try_text()?;
        let most = text.len.min(chunk.len());
        let line_end = text.bytes[..most].iter().rposition(|&byte| byte == b'\n').map(|at| at + 1);
        let mut n = line_end.unwrap_or(most);
        while n > 0 && n < text.len && text.bytes[n] & 0xc0 == 0x80 {
            n -= 1;
        }
        chunk[..n].copy_from_slice(&text.bytes[..n]);
        let len = text.len;
        text.bytes.copy_within(n..len, 0);
        text.len = len - n;
        Some(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::{String, ToString};
    use alloc::vec::Vec;
    use std::format;

    fn drained(late: &Late) -> Vec<String> {
        let mut lines = Vec::new();
        late.drain(|line| lines.push(line.to_string()));
        lines
    }

    #[test]
    fn what_is_put_aside_comes_out_in_order_and_once() {
        let late = Late::new();
        assert!(late.is_empty() && drained(&late).is_empty());
        late.push(format_args!("one {}", 1));
        late.push(format_args!("two"));
        assert!(!late.is_empty());
        assert_eq!(drained(&late), ["one 1", "two"]);
        assert!(late.is_empty() && drained(&late).is_empty());
    }

    #[test]
    fn what_does_not_fit_is_counted_and_leaves_nothing_behind() {
        let late = Late::new();
        let long = "x".repeat(1500);
        (0..4).for_each(|_| late.push(format_args!("{long}")));
        let lines = drained(&late);
        let shown: usize = lines[..lines.len() - 1].iter().map(String::len).sum();
        assert_eq!(shown, 3000);
        assert_eq!(lines.last().unwrap(), "2 messages lost: the console was too slow");
        late.push(format_args!("again"));
        assert_eq!(drained(&late), ["again"]);
    }

    #[test]
    fn characters_are_not_cut() {
        let late = Late::new();
        let long = format!("x{}", "\u{20ac}".repeat(300));
        late.push(format_args!("{long}"));
        assert_eq!(drained(&late).concat(), long);
    }

    #[test]
    fn a_handler_that_interrupts_the_holder_does_not_wait_for_it() {
        let late = Late::new();
        late.push(format_args!("before"));
        let held = late.text.lock();
        late.push(format_args!("in between"));
        assert!(!late.drain(|_| panic!("nothing can be had now")));
        assert!(!late.is_empty());
        drop(held);
        assert_eq!(drained(&late), ["before", "1 messages lost: the console was too slow"]);
        // Nor while a line is shown.
        late.push(format_args!("outer"));
        let mut lines = Vec::new();
        late.drain(|line| {
            lines.push(line.to_string());
            if lines.len() == 1 {
                late.push(format_args!("inner"));
            }
        });
        assert_eq!(lines, ["outer", "inner"]);
    }

    #[test]
    fn many_at_once_lose_nothing_that_is_not_counted() {
        let late = Late::new();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let late = &late;
                scope.spawn(move || (0..50).for_each(|n| late.push(format_args!("{thread} {n}"))));
            }
        });
        let lines = drained(&late);
        let (lost, lines): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line.contains("lost"));
        let lost: usize =
            lost.iter().map(|line| line.split(' ').next().unwrap().parse::<usize>().unwrap()).sum();
        assert_eq!(lines.len() + lost, 200);
    }
}
