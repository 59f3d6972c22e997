//! What passes from a domain without focus: text, line ends, tabs and colours.
//!
//! The sequences are those of ECMA-48 ("Control Functions for Coded Character Sets", 5.4 control sequences, 5.6
//! control strings); the terminal is taken to be in UTF-8 mode, where the C1 controls are U+0080..U+009F.

/// The longest colour sequence that passes.
const SEQUENCE_BYTES: usize = 32;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    /// Behind ESC.
    Escape,
    /// Behind ESC and intermediate bytes: one more byte ends it.
    EscapeMore,
    /// Behind ESC [ or CSI.
    Control,
    /// In a control string (title, device control), up to BEL or ST.
    String,
    /// In a control string, behind ESC.
    StringEscape,
    /// Behind 0xc2, which begins U+0080..U+00BF.
    C2,
}

/// A complete sequence that may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sequence {
    bytes: [u8; SEQUENCE_BYTES],
    len: usize,
}

impl Sequence {
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What to do after a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Nothing,
    Byte(u8),
    Sequence(Sequence),
}

/// The state between bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filter {
    state: State,
    held: Sequence,
}

impl Default for Filter {
    fn default() -> Self {
        Self { state: State::Text, held: Sequence { bytes: [0; SEQUENCE_BYTES], len: 0 } }
    }
}

impl Filter {
    pub(super) fn feed(&mut self, byte: u8) -> Pass {
        // Line ends pass whatever stands before them: a cut-off sequence must not swallow the line.
        if matches!(byte, b'\r' | b'\n') {
            self.state = State::Text;
            return Pass::Byte(byte);
        }
        let (next, pass) = match (self.state, byte) {
            (State::String, 0x1b) => (State::StringEscape, Pass::Nothing),
            (State::StringEscape, b'\\') | (State::String, 0x07) => (State::Text, Pass::Nothing),
            (State::String, _) => (State::String, Pass::Nothing),
            (State::StringEscape, 0x1b) => (State::StringEscape, Pass::Nothing),
            (State::StringEscape, _) => (State::String, Pass::Nothing),
            (_, 0x1b) => (State::Escape, self.hold_first(0x1b)),
            (State::Escape, b'[') => (State::Control, self.hold(b'[')),
            (State::Escape, b'P' | b']' | b'X' | b'^' | b'_') => (State::String, Pass::Nothing),
            (State::Escape | State::EscapeMore, 0x20..=0x2f) => (State::EscapeMore, Pass::Nothing),
            (State::Escape | State::EscapeMore, _) => (State::Text, Pass::Nothing),
            (State::Control, 0x20..=0x3f) => (State::Control, self.hold(byte)),
            (State::Control, b'm') => (State::Text, self.finish(b'm')),
            (State::Control, _) => (State::Text, Pass::Nothing),
            (State::C2, 0x9b) => (State::Control, self.spoil()),
            (State::C2, 0x90 | 0x98 | 0x9d..=0x9f) => (State::String, Pass::Nothing),
            (State::C2, 0x80..=0x9f) => (State::Text, Pass::Nothing),
            (State::C2, 0xa0..=0xbf) => (State::Text, self.finish(byte)),
            (State::Text | State::C2, 0xc2) => (State::C2, self.hold_first(0xc2)),
            (State::Text | State::C2, 0x09 | 0x20..=0x7e | 0x80..) => (State::Text, Pass::Byte(byte)),
            (State::Text | State::C2, _) => (State::Text, Pass::Nothing),
        };
        self.state = next;
        pass
    }

    fn hold_first(&mut self, byte: u8) -> Pass {
        self.held.len = 0;
        self.hold(byte)
    }

    /// Keeps a byte; one too many spoils the sequence, but its end must still be found.
    fn hold(&mut self, byte: u8) -> Pass {
        if let Some(slot) = self.held.bytes.get_mut(self.held.len) {
            *slot = byte;
        }
        self.held.len = (self.held.len + 1).min(SEQUENCE_BYTES + 1);
        Pass::Nothing
    }

    /// What follows is a sequence that does not pass, whatever its end.
    fn spoil(&mut self) -> Pass {
        self.held.len = SEQUENCE_BYTES + 1;
        Pass::Nothing
    }

    fn finish(&mut self, byte: u8) -> Pass {
        self.hold(byte);
        if self.held.len > SEQUENCE_BYTES { Pass::Nothing } else { Pass::Sequence(self.held) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn run(text: &[u8]) -> Vec<u8> {
        let mut filter = Filter::default();
        let mut out = Vec::new();
        for &byte in text {
            match filter.feed(byte) {
                Pass::Nothing => {}
                Pass::Byte(b) => out.push(b),
                Pass::Sequence(s) => out.extend_from_slice(s.as_bytes()),
            }
        }
        out
    }

    #[test]
    fn text_and_colours_pass() {
        for text in ["plain\ttext\r\n", "\x1b[1;31mred\x1b[0m", "äöü € § \u{a0}", "a\u{20ac}b"] {
            assert_eq!(run(text.as_bytes()), text.as_bytes(), "{text:?}");
        }
    }

    #[test]
    fn what_moves_the_cursor_does_not() {
        for (text, left) in [
            ("a\x08b\x00\x0b\x0c\x7f\x07c", "abc"),
            ("a\x1b[2Jb\x1b[1;1Hc\x1b[Ad", "abcd"),
            ("a\x1b7b\x1b(Bc\x1bMd", "abcd"),
            ("a\x1b]0;title\x07b\x1bPq#0\x1b\\c", "abc"),
            ("a\u{85}b", "ab"),
            ("a\u{9b}1mb\u{9d}title\u{9c}c\x07d", "abd"),
            ("a\x1b[31", "a"),
            ("a\x1b[\nb", "a\nb"),
            ("\x1b[1\x1b[2mx", "\x1b[2mx"),
        ] {
            assert_eq!(run(text.as_bytes()), left.as_bytes(), "{text:?}");
        }
    }

    #[test]
    fn an_endless_sequence_is_dropped_and_ends() {
        let mut text = b"\x1b[".to_vec();
        text.extend([b'1'; 1000]);
        text.extend(b"mx");
        assert_eq!(run(&text), b"x");
    }
}
