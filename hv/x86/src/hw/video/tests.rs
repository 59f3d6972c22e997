use super::*;
use boot::multiboot2::ColourField;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster};
use proptest::prelude::*;
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

/// Memory that notes stores outside.
struct Bytes {
    bytes: Vec<u8>,
    stores: usize,
}

impl Bytes {
    fn new(bytes: usize) -> Self {
        Self { bytes: vec![0xee; bytes], stores: 0 }
    }
}

impl Store for Bytes {
    fn store(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..][..bytes.len()].copy_from_slice(bytes);
        self.stores += 1;
    }
}

/// A surface that only remembers its text.
struct Paper {
    text: Vec<Vec<u8>>,
    jump: usize,
    draws: usize,
}

impl Surface for Paper {
    fn columns(&self) -> usize {
        self.text[0].len()
    }
    fn rows(&self) -> usize {
        self.text.len()
    }
    fn jump(&self) -> usize {
        self.jump
    }
    fn wipe(&mut self) {
        for row in &mut self.text {
            row.fill(b' ');
        }
    }
    fn draw(&mut self, column: usize, row: usize, c: u8) {
        assert!((b' '..=b'~').contains(&c));
        self.text[row][column] = c;
        self.draws += 1;
    }
}

fn screen(columns: usize, rows: usize, jump: usize) -> Screen<Paper> {
    Screen::new(Paper { text: vec![vec![b'#'; columns]; rows], jump, draws: 0 })
}

fn shown(screen: &mut Screen<Paper>) -> String {
    let text = &screen.surface_mut().text;
    let lines: Vec<_> = text.iter().map(|row| String::from_utf8(row.clone()).unwrap()).collect();
    lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("|")
}

#[test]
fn text_goes_where_it_should() {
    let table: [(&[u8], &str); 12] = [
        (b"", "||"),
        (b"ab\r\ncd\n", "ab|cd|"),
        (b"ab\rc", "cb||"),
        (b"12345678", "12345678||"),
        // A full line and its end make one line, not two.
        (b"12345678\nx", "12345678|x|"),
        (b"123456789", "12345678|9|"),
        (b"1\n2\n3\n4", "2|3|4"),
        (b"1\n2\n3\n4\n", "3|4|"),
        (b"a\tb", "a|b|"),
        (b"abc\x08\x08X", "aXc||"),
        (b"\x08\x08x\x07\x00y", "xy||"),
        ("aµ→b".as_bytes(), "a??b||"),
    ];
    for (bytes, expected) in table {
        let mut whole = screen(8, 3, 1);
        whole.write(bytes);
        assert_eq!(shown(&mut whole), expected, "{}", bytes.escape_ascii());
        let mut pieces = screen(8, 3, 1);
        bytes.iter().for_each(|byte| pieces.write(&[*byte]));
        assert_eq!(shown(&mut pieces), expected);
    }
}

#[test]
fn escape_sequences_leave_no_trace() {
    let sequences: [&[u8]; 9] = [
        b"\x1b[31m",
        b"\x1b[0;1;37m",
        b"\x1b[2J",
        b"\x1b[?25l",
        b"\x1b(B",
        b"\x1bc",
        b"\x1b]0;title\x07",
        b"\x1b]0;title\x1b\\",
        b"\x1bM",
    ];
    for sequence in sequences {
        let mut screen = screen(20, 3, 1);
        screen.write(b"a");
        screen.write(sequence);
        screen.write(b"b");
        assert_eq!(shown(&mut screen), "ab||", "{}", sequence.escape_ascii());
    }
    // One that is broken off does not swallow the next line.
    let mut screen = screen(20, 3, 1);
    screen.write(b"a\x1b[31\nb\x1b]0;never ended\nc");
    assert_eq!(shown(&mut screen), "a|b|c");
}

#[test]
fn a_slow_surface_is_moved_rarely_and_only_where_it_changes() {
    let mut screen = screen(40, 8, 4);
    for n in 0..9 {
        screen.write(format!("line {n}\r\n").as_bytes());
    }
    assert_eq!(shown(&mut screen), "line 4|line 5|line 6|line 7|line 8|||");
    let mut same = self::screen(40, 8, 4);
    (0..8).for_each(|_| same.write(b"same\n"));
    same.surface_mut().draws = 0;
    (0..3).for_each(|_| same.write(b"same\n"));
    assert_eq!(same.surface_mut().draws, 3 * 4);
}

#[test]
fn absurd_surfaces_are_cut() {
    let mut tall = screen(3000, 500, 900);
    tall.write(&[b'x'; 250]);
    (0..300).for_each(|_| tall.write(b"\n"));
    assert_eq!(shown(&mut tall).trim_end_matches('|'), "");
}

const FIELDS: [ColourField; 3] = [
    ColourField { position: 16, size: 8 },
    ColourField { position: 8, size: 8 },
    ColourField { position: 0, size: 8 },
];
const FIELDS_565: [ColourField; 3] = [
    ColourField { position: 11, size: 5 },
    ColourField { position: 5, size: 6 },
    ColourField { position: 0, size: 5 },
];
/// What the brightest pixel of text is.
const BRIGHT: u8 = 0xd0;

#[test]
fn pixels_have_the_glyphs_shape_in_every_depth() {
    let table = [
        (32, FIELDS, 4, [BRIGHT, BRIGHT, BRIGHT, 0]),
        (24, FIELDS, 3, [BRIGHT, BRIGHT, BRIGHT, 0]),
        // Red 11010, green 110100, blue 11010.
        (16, FIELDS_565, 2, [0x9a, 0xd6, 0, 0]),
    ];
    let glyph = get_raster('M', FontWeight::Regular, RasterHeight::Size16).unwrap();
    let (width, height) = (glyph.width(), glyph.height());
    for (bpp, fields, pixel, bright) in table {
        // Lines longer than their pixels.
        let pitch = 100 * pixel + 12;
        let layout = Layout::new(100, 50, pitch as u32, bpp, fields).unwrap();
        let mut screen = Screen::new(Canvas::new(Bytes::new(pitch * 50), layout));
        screen.write(b"\n M");
        let memory = &screen.surface_mut().memory().bytes;
        for y in 0..50 {
            for x in 0..100 {
                let at = y * pitch + x * pixel;
                let found = &memory[at..][..pixel];
                let shade = (x.checked_sub(width).zip(y.checked_sub(height)))
                    .and_then(|(x, y)| glyph.pixel(x, y))
                    .unwrap_or(0);
                match shade {
                    255 => assert_eq!(found, &bright[..pixel], "{bpp}: {x},{y}"),
                    0 => assert_eq!(found, &[0; 4][..pixel], "{bpp}: {x},{y}"),
                    _ => {}
                }
            }
            // What lies between the lines is nobody's.
            assert_eq!(&memory[y * pitch + 100 * pixel..][..12], &[0xee; 12]);
        }
        assert!(glyph.pixels().contains(&255), "the test would see nothing");
    }
}

#[test]
fn vga_cells_have_character_and_attribute() {
    let mut screen = Screen::new(Text::new(Bytes::new(25 * 160), 80, 25, 160));
    screen.write(b"A\nB");
    let memory = &screen.surface_mut().memory().bytes;
    assert_eq!((&memory[..4], &memory[160..164]), (&b"A\x07 \x07"[..], &b"B\x07 \x07"[..]));
    assert!(memory.chunks(2).all(|cell| cell[1] == 7));
    for n in 0..100 {
        screen.write(format!("\n{n}").as_bytes());
    }
    let memory = &screen.surface_mut().memory().bytes;
    assert_eq!(&memory[24 * 160..][..4], b"9\x079\x07");
}

fn described(kind: FramebufferKind, bpp: u8, pitch: u32) -> Framebuffer {
    Framebuffer { addr: Hpa::new(0x8000_0000), pitch, width: 640, height: 480, bpp, kind }
}

#[test]
fn the_mode_is_what_the_loader_says() {
    let [red, green, blue] = FIELDS;
    let rgb = FramebufferKind::Rgb { red, green, blue };
    let mode = Mode::new(Some(&described(rgb, 32, 2560)), true).unwrap();
    assert_eq!(mode.extent(), (Hpa::new(0x8000_0000), 2560 * 480));
    assert_eq!(mode.place(), (Some(Hpa::new(0x8000_0000)), false));
    assert_eq!(Mode::new(None, false), Some(Mode::VGA));
    assert_eq!(Mode::VGA.place(), (None, true));
    assert_eq!(Mode::new(None, true), None);
    // Not drawable: palettes, lines shorter than their pixels, depths that do not hold the colours, no
    // address.
    assert_eq!(Mode::new(Some(&described(FramebufferKind::Indexed, 8, 640)), false), None);
    assert_eq!(Mode::new(Some(&described(rgb, 32, 2559)), false), None);
    assert_eq!(Mode::new(Some(&described(rgb, 16, 1280)), false), None);
    let nowhere = Framebuffer { addr: Hpa::new(0), ..described(rgb, 32, 2560) };
    assert_eq!(Mode::new(Some(&nowhere), false), None);
    let text = Framebuffer { width: 80, height: 25, ..described(FramebufferKind::EgaText, 16, 160) };
    assert!(matches!(Mode::new(Some(&text), false), Some(Mode::Text { columns: 80, rows: 25, .. })));
    let narrow = Framebuffer { pitch: 100, ..text };
    assert_eq!(Mode::new(Some(&narrow), false), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_input_leaves_the_screen(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        (columns, rows, jump) in (1usize..20, 1usize..8, 0usize..9),
    ) {
        let mut screen = screen(columns, rows, jump);
        screen.write(&bytes);
        prop_assert_eq!(screen.surface_mut().text.len(), rows);
    }

    #[test]
    fn no_layout_is_drawn_outside(
        (width, height, pitch, bpp) in (0u32..70, 0u32..70, 0u32..400, 0u8..40),
        fields in proptest::array::uniform3((0u8..40, 0u8..40)),
    ) {
        let fields = fields.map(|(position, size)| ColourField { position, size });
        if let Some(layout) = Layout::new(width, height, pitch, bpp, fields) {
            // `Bytes` panics outside.
            let mut screen = Screen::new(Canvas::new(Bytes::new(layout.bytes() as usize), layout));
            screen.write(&[b'W'; 300]);
            prop_assert!(screen.surface_mut().memory().stores > 0);
        }
    }
}
