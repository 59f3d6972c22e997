//! The screen as a console: VGA text or a linear framebuffer, where there is no serial line.
//!
//! [`Screen`] keeps what is to be seen and writes only what changed: reading a screen back is slow, and a
//! framebuffer is mapped uncached. A [`Surface`] draws one character; `vga` and `framebuffer` are the two.
// UNSAFETY: the screen's memory and registers.
#![allow(unsafe_code)]

mod framebuffer;
mod screen;
mod vga;

pub use framebuffer::{Canvas, Layout};
pub use screen::{Screen, Surface};
pub use vga::Text;

use crate::mm::{direct, host};
use addr::{Hpa, PAGE_SIZE};
use boot::multiboot2::{Framebuffer, FramebufferKind};
use core::fmt;
use spin::Mutex;

/// Where VGA text lies.
const VGA_TEXT: u64 = 0xb8000;
/// Behind what the early map shows.
const EARLY_END: u64 = 1 << 32;

/// What the loader left on the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// VGA text.
    Text {
        /// First cell.
        at: Hpa,
        /// Characters per line.
        columns: u32,
        /// Lines.
        rows: u32,
        /// Bytes per line.
        pitch: u32,
    },
    /// Pixels.
    Pixels {
        /// First byte.
        at: Hpa,
        /// How they lie.
        layout: Layout,
    },
}

impl Mode {
    /// VGA's text mode 3.
    pub const VGA: Self = Mode::Text { at: Hpa::new(VGA_TEXT), columns: 80, rows: 25, pitch: 160 };

    /// The mode that the loader describes. Without a description it is VGA text on a BIOS machine, nothing on
    /// one with EFI. `None`: nothing that can be drawn on.
    pub fn new(described: Option<&Framebuffer>, efi: bool) -> Option<Self> {
        let Some(fb) = described else { return (!efi).then_some(Self::VGA) };
        let mode = match fb.kind {
            FramebufferKind::EgaText => {
                let (columns, rows, pitch) = (fb.width, fb.height, fb.pitch);
                let fits = (1..=256).contains(&columns) && (1..=128).contains(&rows);
                (fits && pitch >= columns * 2).then_some(Mode::Text { at: fb.addr, columns, rows, pitch })
            }
            FramebufferKind::Rgb { red, green, blue } => {
                let layout = Layout::new(fb.width, fb.height, fb.pitch, fb.bpp, [red, green, blue]);
                layout.map(|layout| Mode::Pixels { at: fb.addr, layout })
            }
            FramebufferKind::Indexed | FramebufferKind::Unknown(_) => None,
        };
        mode.filter(|mode| {
            let (at, bytes) = mode.extent();
            at.raw() != 0 && at.raw().checked_add(bytes).is_some_and(|end| end <= 1 << 52)
        })
    }

    /// The screen's memory: first byte and length.
    pub fn extent(&self) -> (Hpa, u64) {
        match *self {
            Mode::Text { at, rows, pitch, .. } => (at, u64::from(pitch) * u64::from(rows)),
            Mode::Pixels { at, layout } => (at, layout.bytes()),
        }
    }

    /// The console's place for [`super::pci::silence`]: framebuffer, or whether it is VGA text.
    pub fn place(&self) -> (Option<Hpa>, bool) {
        match *self {
            Mode::Text { .. } => (None, true),
            Mode::Pixels { at, .. } => (Some(at), false),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mode::Text { columns, rows, .. } => write!(f, "VGA text, {columns}x{rows}"),
            Mode::Pixels { at, layout } => write!(f, "framebuffer at {:#x}, {layout}", at.raw()),
        }
    }
}

/// The screen's memory, mapped.
#[derive(Debug)]
struct Memory {
    base: *mut u8,
    bytes: usize,
}

// SAFETY: the pointer is to device memory that is the screen's alone, used under its lock.
unsafe impl Send for Memory {}

/// Memory of a screen: stores that must not be left out or merged away.
pub trait Store {
    /// Stores `bytes` at `offset`. Nothing happens behind the end.
    fn store(&mut self, offset: usize, bytes: &[u8]);
}

impl Store for Memory {
    fn store(&mut self, offset: usize, bytes: &[u8]) {
        if offset.checked_add(bytes.len()).is_none_or(|end| end > self.bytes) {
            return;
        }
        // SAFETY: inside the mapping, as just checked. Wide stores are few stores: each is a bus cycle.
        unsafe {
            let mut to = self.base.add(offset);
            let mut words = bytes.chunks_exact(8);
            for word in &mut words {
                let value = u64::from_le_bytes(word.try_into().unwrap_or_default());
                to.cast::<u64>().write_unaligned_volatile(value);
                to = to.add(8);
            }
            for byte in words.remainder() {
                to.write_volatile(*byte);
                to = to.add(1);
            }
        }
    }
}

/// A volatile store that may be unaligned.
trait Unaligned<T> {
    /// # Safety
    /// As `write_volatile`, but for alignment.
    unsafe fn write_unaligned_volatile(self, value: T);
}

impl Unaligned<u64> for *mut u64 {
    #[inline(always)]
    unsafe fn write_unaligned_volatile(self, value: u64) {
        // SAFETY: the caller vouches for the memory; x86 stores may be unaligned.
        unsafe {
            core::arch::asm!("mov [{}], {}", in(reg) self, in(reg) value, options(nostack, preserves_flags));
        }
    }
}

#[derive(Debug)]
enum Device {
    Text(Screen<Text<Memory>>),
    Pixels(Screen<Canvas<Memory>>),
}

static DEVICE: Mutex<Option<(Mode, Device)>> = Mutex::new(None);

/// Opens the screen while the early map is in place (the low 4 GiB at the direct map's base). `false`: it
/// lies outside. It must be followed by [`init`] once the host map is built, before the next output.
pub fn init_early(mode: Mode) -> bool {
    let (at, bytes) = mode.extent();
    if at.raw().saturating_add(bytes) > EARLY_END {
        return false;
    }
    open(mode, direct::pointer(at), bytes);
    true
}

/// Opens the screen; if it was open, goes on where it was.
pub fn init(mode: Mode) {
    let (at, bytes) = mode.extent();
    let pages = bytes + at.raw() % PAGE_SIZE;
    open(mode, host::device(at, pages), bytes);
    log::info!("screen: {mode}");
}

fn open(mode: Mode, base: *mut u8, bytes: u64) {
    let memory = Memory { base, bytes: bytes as usize };
    let mut device = DEVICE.lock();
    match device.as_mut() {
        Some((old, Device::Text(screen))) if *old == mode => screen.surface_mut().replace(memory),
        Some((old, Device::Pixels(screen))) if *old == mode => screen.surface_mut().replace(memory),
        _ => {
            let new = match mode {
                Mode::Text { columns, rows, pitch, .. } => {
                    vga::hide_cursor();
                    let text = Text::new(memory, columns as usize, rows as usize, pitch as usize);
                    Device::Text(Screen::new(text))
                }
                Mode::Pixels { layout, .. } => Device::Pixels(Screen::new(Canvas::new(memory, layout))),
            };
            *device = Some((mode, new));
        }
    }
}

/// Gives the screen up: nothing is drawn any more.
pub fn close() {
    *DEVICE.lock() = None;
}

/// Whether a screen is open.
pub fn present() -> bool {
    DEVICE.lock().is_some()
}

/// Shows `bytes`: text with `\n`, `\r`, tabs and backspaces; escape sequences are left out.
pub fn write(bytes: &[u8]) {
    match DEVICE.lock().as_mut() {
        Some((_, Device::Text(screen))) => screen.write(bytes),
        Some((_, Device::Pixels(screen))) => screen.write(bytes),
        None => {}
    }
}

/// As [`write()`], from a panic: the lock's holder may be stopped, so it is broken.
pub fn write_panic(bytes: &[u8]) {
    // SAFETY: the other CPUs are stopped or about to be; at worst a line is garbled.
    unsafe { DEVICE.force_unlock() };
    write(bytes);
}

#[cfg(test)]
mod tests;
