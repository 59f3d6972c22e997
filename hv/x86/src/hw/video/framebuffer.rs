//! A linear framebuffer and its font.
//!
//! The font is Noto Sans Mono, pre-rendered with 256 shades, by the crate `noto-sans-mono-bitmap`.

use super::screen::MAX_ROWS;
use super::{Store, Surface};
use boot::multiboot2::ColourField;
use core::fmt;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

const WEIGHT: FontWeight = FontWeight::Regular;
const HEIGHT: RasterHeight = RasterHeight::Size16;
/// Pixels per character.
const CELL_WIDTH: usize = get_raster_width(WEIGHT, HEIGHT);
const CELL_HEIGHT: usize = HEIGHT.val();
/// Bytes of a cell's line at most.
const CELL_BYTES: usize = CELL_WIDTH * 4;
/// How bright the text is, of 255.
const BRIGHTNESS: u32 = 0xd0;
/// Largest screen that is believed, in pixels either way.
const MAX_PIXELS: u32 = 16384;

/// How a framebuffer's pixels lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    width: u32,
    height: u32,
    pitch: u32,
    /// Bytes per pixel, 2 to 4.
    pixel: u32,
    /// Red, green, blue.
    colours: [(u8, u8); 3],
}

impl Layout {
    /// From the loader's numbers: pixels, bytes per line, bits per pixel, and where red, green and blue lie.
    /// `None`: impossible or not supported (15 to 32 bits per pixel are).
    pub fn new(width: u32, height: u32, pitch: u32, bpp: u8, colours: [ColourField; 3]) -> Option<Self> {
        let pixel = u32::from(bpp).div_ceil(8);
        let fits = (15..=32).contains(&bpp)
            && (CELL_WIDTH as u32..=MAX_PIXELS).contains(&width)
            && (CELL_HEIGHT as u32..=MAX_PIXELS).contains(&height)
            && (width * pixel..=MAX_PIXELS * 8).contains(&pitch)
            && colours.iter().all(|c| c.size > 0 && u32::from(c.position) + u32::from(c.size) <= pixel * 8);
        fits.then_some(Self { width, height, pitch, pixel, colours: colours.map(|c| (c.position, c.size)) })
    }

    /// Bytes of the whole screen.
    pub const fn bytes(&self) -> u64 {
        self.pitch as u64 * self.height as u64
    }

    /// The pixel of a shade of grey.
    fn grey(&self, shade: u8) -> u32 {
        let bright = u32::from(shade) * BRIGHTNESS / 255;
        self.colours.iter().fold(0, |pixel, &(position, size)| {
            let value =
                if size >= 8 { u64::from(bright) << (size - 8) } else { u64::from(bright >> (8 - size)) };
            pixel | (value << position) as u32
        })
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}, {} bytes per pixel", self.width, self.height, self.pixel)
    }
}

/// A screen of pixels in `M`.
#[derive(Debug)]
pub struct Canvas<M> {
    memory: M,
    layout: Layout,
}

impl<M: Store> Canvas<M> {
    /// A screen.
    pub const fn new(memory: M, layout: Layout) -> Self {
        Self { memory, layout }
    }

    pub(super) fn replace(&mut self, memory: M) {
        self.memory = memory;
    }

    /// The memory.
    pub const fn memory(&self) -> &M {
        &self.memory
    }
}

impl<M: Store> Surface for Canvas<M> {
    fn columns(&self) -> usize {
        self.layout.width as usize / CELL_WIDTH
    }
    fn rows(&self) -> usize {
        self.layout.height as usize / CELL_HEIGHT
    }
    fn jump(&self) -> usize {
        // A move redraws most of the screen, through an uncached mapping.
        self.rows().min(MAX_ROWS) / 4
    }
    fn wipe(&mut self) {
        let black = [0; 1024];
        let line = (self.layout.width * self.layout.pixel) as usize;
        for y in 0..self.layout.height as usize {
            for from in (0..line).step_by(black.len()) {
                let bytes = black.len().min(line - from);
                self.memory.store(y * self.layout.pitch as usize + from, &black[..bytes]);
            }
        }
    }
    fn draw(&mut self, column: usize, row: usize, c: u8) {
        let Some(glyph) = get_raster(char::from(c), WEIGHT, HEIGHT) else { return };
        let pixel = self.layout.pixel as usize;
        for (y, shades) in glyph.rows().enumerate() {
            let mut line = [0; CELL_BYTES];
            for (to, shade) in line.chunks_exact_mut(pixel).zip(shades) {
                to.copy_from_slice(&self.layout.grey(*shade).to_le_bytes()[..pixel]);
            }
            let top = (row * CELL_HEIGHT + y) * self.layout.pitch as usize;
            self.memory.store(top + column * CELL_WIDTH * pixel, &line[..CELL_WIDTH * pixel]);
        }
    }
}
