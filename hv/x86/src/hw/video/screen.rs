//! A terminal without frills: what is to be seen, and where the next character goes.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

/// What characters are drawn on.
pub trait Surface {
    /// Characters per line, at least 1.
    fn columns(&self) -> usize;
    /// Lines, at least 1.
    fn rows(&self) -> usize;
    /// Lines to move at a time: more where drawing is slow.
    fn jump(&self) -> usize;
    /// Makes everything black.
    fn wipe(&mut self);
    /// Draws printable ASCII character `c`.
    fn draw(&mut self, column: usize, row: usize, c: u8);
}

/// What comes next in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Text.
    Plain,
    /// The byte after ESC.
    Escape,
    /// The parameters of a control sequence, up to its final byte.
    Sequence,
    /// A string that a bell or ESC `\` ends.
    Text,
}

const ESC: u8 = 0x1b;
const TAB: usize = 8;
/// Most columns and lines that are used: what one can read, and what the early heap has room for.
pub(super) const MAX_COLUMNS: usize = 200;
pub(super) const MAX_ROWS: usize = 100;

/// Text on a surface.
pub struct Screen<S> {
    surface: S,
    columns: usize,
    rows: usize,
    /// What is to be seen, line by line.
    wanted: Vec<u8>,
    /// What is drawn.
    drawn: Vec<u8>,
    column: usize,
    row: usize,
    state: State,
}

impl<S> fmt::Debug for Screen<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Screen({}x{} at {},{})", self.columns, self.rows, self.column, self.row)
    }
}

impl<S: Surface> Screen<S> {
    /// An empty screen; whatever the surface showed is wiped.
    pub fn new(mut surface: S) -> Self {
        let columns = surface.columns().clamp(1, MAX_COLUMNS);
        let rows = surface.rows().clamp(1, MAX_ROWS);
        surface.wipe();
        Self {
            surface,
            columns,
            rows,
            wanted: vec![b' '; columns * rows],
            drawn: vec![b' '; columns * rows],
            column: 0,
            row: 0,
            state: State::Plain,
        }
    }

    /// The surface.
    pub fn surface_mut(&mut self) -> &mut S {
        &mut self.surface
    }

    /// Shows `bytes`.
    pub fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.state = match self.state {
                State::Plain => self.plain(byte),
                State::Escape => match byte {
                    b'[' => State::Sequence,
                    b']' | b'P' | b'_' | b'^' | b'X' => State::Text,
                    // Intermediate bytes of a longer sequence (a choice of character set, say).
                    b' '..=b'/' => State::Escape,
                    _ => State::Plain,
                },
                // Parameters and intermediates are 20h to 3Fh; a control character breaks the sequence off.
                State::Sequence => match byte {
                    b' '..=b'?' => State::Sequence,
                    0..b' ' => self.plain(byte),
                    _ => State::Plain,
                },
                State::Text => match byte {
                    0x07 => State::Plain,
                    ESC => State::Escape,
                    // A string that is never ended must not swallow the log.
                    b'\n' => self.plain(byte),
                    _ => State::Text,
                },
            };
        }
    }

    fn plain(&mut self, byte: u8) -> State {
        match byte {
            ESC => return State::Escape,
            b'\n' => {
                // Lines end with `\r\n` or a bare `\n`.
                self.column = 0;
                self.line_feed();
            }
            b'\r' => self.column = 0,
            b'\t' => self.column = ((self.column / TAB + 1) * TAB).min(self.columns),
            0x08 => self.column = self.column.saturating_sub(1),
            b' '..=b'~' => self.put(byte),
            // One mark for a character of UTF-8: its first byte. The others are below.
            0xc0..=0xff => self.put(b'?'),
            _ => {}
        }
        State::Plain
    }

    fn put(&mut self, c: u8) {
        // Only now: a line of exactly the screen's width makes no empty line.
        if self.column >= self.columns {
            self.column = 0;
            self.line_feed();
        }
        let at = self.row * self.columns + self.column;
        self.wanted[at] = c;
        self.draw(at);
        self.column += 1;
    }

    fn line_feed(&mut self) {
        if self.row + 1 < self.rows {
            self.row += 1;
            return;
        }
        let jump = self.surface.jump().clamp(1, self.rows);
        let cells = jump * self.columns;
        self.wanted.copy_within(cells.., 0);
        let kept = self.wanted.len() - cells;
        self.wanted[kept..].fill(b' ');
        self.row = self.rows - jump;
        for at in 0..self.wanted.len() {
            self.draw(at);
        }
    }

    fn draw(&mut self, at: usize) {
        if self.drawn[at] != self.wanted[at] {
            self.drawn[at] = self.wanted[at];
            self.surface.draw(at % self.columns, at / self.columns, self.wanted[at]);
        }
    }
}
