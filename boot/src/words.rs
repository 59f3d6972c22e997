//! Words, numbers and sizes as Xen's command line writes them; shared by the option and module lines.

use alloc::string::String;
use alloc::vec::Vec;

/// One word of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    /// The word, quotes removed.
    pub text: String,
    /// Whether it ended in the middle of a quotation.
    pub unclosed: bool,
}

/// Splits a line at white space. `'…'` and `"…"` keep white space together and may begin inside a word
/// (`-- "a b"`, `name="a b"`). A standalone `--` ends the words: what follows it comes back verbatim.
pub(crate) fn split(line: &str) -> (Vec<Word>, Option<&str>) {
    let mut words = Vec::new();
    let mut chars = line.char_indices().peekable();
    loop {
        while chars.next_if(|(_, c)| c.is_ascii_whitespace()).is_some() {}
        let Some(&(start, _)) = chars.peek() else { return (words, None) };
        let rest = &line[start..];
        if let Some(tail) = rest.strip_prefix("--").filter(|tail| ends_word(tail)) {
            return (words, Some(tail.trim_ascii()));
        }
        let mut text = String::new();
        let mut quote = None;
        while let Some((_, c)) = chars.next_if(|(_, c)| quote.is_some() || !c.is_ascii_whitespace()) {
            match quote {
                None if c == '"' || c == '\'' => quote = Some(c),
                Some(open) if c == open => quote = None,
                _ => text.push(c),
            }
        }
        words.push(Word { text, unclosed: quote.is_some() });
    }
}

fn ends_word(rest: &str) -> bool {
    rest.chars().next().is_none_or(|c| c.is_ascii_whitespace())
}

/// Whether a first word stands for the file's name, which GRUB does not pass: `placeholder`, or a path as
/// other loaders give it.
pub(crate) fn is_file_name(word: &str) -> bool {
    word == "placeholder" || word.starts_with('/') || word.starts_with('(')
}

/// A boolean in any of Xen's spellings.
pub(crate) fn boolean(value: &str) -> Option<bool> {
    match value {
        "1" | "yes" | "on" | "true" | "enable" => Some(true),
        "0" | "no" | "off" | "false" | "disable" => Some(false),
        _ => None,
    }
}

/// An integer as C's `strtoul` reads it with base 0: `0x` is hexadecimal, a leading `0` octal.
pub(crate) fn integer(value: &str) -> Option<u64> {
    let (digits, radix) = match value.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&value[2..], 16),
        [b'0', _, ..] => (&value[1..], 8),
        _ => (value, 10),
    };
    // from_str_radix would take a sign, strtoul's we don't want.
    if !digits.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

/// A size in bytes: an integer and one of `B K M G T` in either case. A bare number counts KiB, as in Xen
/// (xen-command-line, "Size (<size>)").
pub(crate) fn size(value: &str) -> Option<u64> {
    let (digits, shift) = match value.as_bytes().last()? {
        b'b' | b'B' if !value.starts_with("0x") => (&value[..value.len() - 1], 0),
        b'k' | b'K' => (&value[..value.len() - 1], 10),
        b'm' | b'M' => (&value[..value.len() - 1], 20),
        b'g' | b'G' => (&value[..value.len() - 1], 30),
        b't' | b'T' => (&value[..value.len() - 1], 40),
        _ => (value, 10),
    };
    integer(digits)?.checked_mul(1 << shift)
}

/// The name in `names` that is nearest to `word` and near enough to be meant.
pub(crate) fn nearest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let within = (word.chars().count() / 3).clamp(1, 3);
    let near = names.into_iter().map(|name| (distance(word, name), name));
    near.filter(|(distance, _)| *distance <= within)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Optimal string alignment distance: insertions, deletions, replacements, swaps of neighbours. Only the
/// first 32 characters count, which bounds the work.
fn distance(a: &str, b: &str) -> usize {
    const MOST: usize = 32;
    let a: Vec<char> = a.chars().take(MOST).collect();
    let b: Vec<char> = b.chars().take(MOST).collect();
    let mut rows = [[0usize; MOST + 1]; MOST + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(line: &str) -> Vec<String> {
        split(line).0.into_iter().map(|word| word.text).collect()
    }

    #[test]
    fn words_quotes_and_the_double_dash() {
        assert_eq!(texts("  a  b=c\td "), ["a", "b=c", "d"]);
        assert_eq!(texts("name=\"a b\" 'c \"d' e''f"), ["name=a b", "c \"d", "ef"]);
        assert_eq!(split("a -- root=/dev/vda  \"x y\" ").1, Some("root=/dev/vda  \"x y\""));
        assert_eq!(split("a --").1, Some(""));
        assert_eq!(split("a --b -- c"), (split("a --b").0, Some("c")));
        assert_eq!(split("\"a -- b\" c").1, None);
        assert!(split("a \"b c").0[1].unclosed);
        assert_eq!(texts("über – x"), ["über", "–", "x"]);
    }

    #[test]
    fn numbers_as_xen_reads_them() {
        assert_eq!(integer("10"), Some(10));
        assert_eq!(integer("0x10"), Some(16));
        assert_eq!(integer("010"), Some(8));
        assert_eq!(integer("0"), Some(0));
        for bad in ["", "-1", "+1", "0x", "08", "1a", "0x-1", "99999999999999999999"] {
            assert_eq!(integer(bad), None, "{bad}");
        }
        assert_eq!(size("4"), Some(4096));
        assert_eq!(size("512B"), Some(512));
        assert_eq!(size("3k"), Some(3 << 10));
        assert_eq!(size("1024M"), Some(1 << 30));
        assert_eq!(size("2g"), Some(2 << 30));
        assert_eq!(size("1T"), Some(1 << 40));
        assert_eq!(size("0x1b"), Some(0x1b << 10));
        assert_eq!(size("99999999T"), None);
        assert_eq!(size("M"), None);
        assert_eq!(size(""), None);
        assert_eq!(size("1ü"), None);
    }

    #[test]
    fn suggestions_are_near_or_none() {
        let names = ["memory", "vcpus", "name", "nested"];
        assert_eq!(nearest("memroy", names), Some("memory"));
        assert_eq!(nearest("vcpu", names), Some("vcpus"));
        assert_eq!(nearest("nestd", names), Some("nested"));
        assert_eq!(nearest("root", names), None);
        assert_eq!(nearest("", names), None);
    }

    proptest! {
        #[test]
        fn any_line_splits(line in any::<String>()) {
            let (words, _) = split(&line);
            for word in words {
                let _ = (integer(&word.text), size(&word.text), nearest(&word.text, ["memory"]));
            }
        }

        #[test]
        fn distance_is_symmetric(a in "[a-d]{0,40}", b in "[a-d]{0,40}") {
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert_eq!(distance(&a, &a), 0);
        }
    }
}
