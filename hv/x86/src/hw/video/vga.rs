//! VGA text: a character and an attribute per cell.
// UNSAFETY: I/O ports of the display controller.
#![allow(unsafe_code)]

use super::{Store, Surface};
use crate::cpu::instr;

/// Light grey on black.
const ATTRIBUTE: u8 = 0x07;
/// The display controller's index and data port in colour modes (IBM VGA, CRT controller registers).
const CRTC: u16 = 0x3d4;
/// Cursor start; bit 5 turns the cursor off.
const CURSOR_START: u8 = 0x0a;

/// A text screen in `M`.
#[derive(Debug)]
pub struct Text<M> {
    memory: M,
    columns: usize,
    rows: usize,
    pitch: usize,
}

impl<M: Store> Text<M> {
    /// A screen of `columns` by `rows` cells; lines are `pitch` bytes apart.
    pub const fn new(memory: M, columns: usize, rows: usize, pitch: usize) -> Self {
        Self { memory, columns, rows, pitch }
    }

    pub(super) fn replace(&mut self, memory: M) {
        self.memory = memory;
    }

    /// The memory.
    pub const fn memory(&self) -> &M {
        &self.memory
    }
}

impl<M: Store> Surface for Text<M> {
    fn columns(&self) -> usize {
        self.columns
    }
    fn rows(&self) -> usize {
        self.rows
    }
    fn jump(&self) -> usize {
        1
    }
    fn wipe(&mut self) {
        for row in 0..self.rows {
            for column in 0..self.columns {
                self.draw(column, row, b' ');
            }
        }
    }
    fn draw(&mut self, column: usize, row: usize, c: u8) {
        self.memory.store(row * self.pitch + column * 2, &[c, ATTRIBUTE]);
    }
}

/// Turns the blinking cursor off, which stays where the loader left it.
pub(super) fn hide_cursor() {
    // SAFETY: the display controller's ports, in a text mode.
    unsafe {
        instr::outb(CRTC, CURSOR_START);
        let start = instr::inb(CRTC + 1);
        instr::outb(CRTC, CURSOR_START);
        instr::outb(CRTC + 1, start | 1 << 5);
    }
}
