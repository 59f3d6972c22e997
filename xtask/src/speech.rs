//! Reading the one serial line: who speaks, what are results, what are counters.
//!
//! Testudo writes `(testudo) …` for itself and `(NAME) …` for each domain; what a domain hears from its own
//! guest arrives as `(l1) (l2) …`.
use std::collections::BTreeMap;

/// A line without its control sequences, its speakers, and what was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Outermost first; empty for firmware, GRUB and a bare machine.
    pub speakers: Vec<String>,
    /// What was said.
    pub text: String,
}

impl Line {
    /// Takes a raw line apart.
    pub fn parse(raw: &[u8]) -> Line {
        let clean = plain(raw);
        let mut rest = clean.as_str();
        let mut speakers = Vec::new();
        while let Some((name, after)) = speaker(rest) {
            speakers.push(name.to_string());
            rest = after;
        }
        Line { speakers, text: rest.to_string() }
    }

    /// The line as it came, without control sequences.
    pub fn full(&self) -> String {
        let mut out: String = self.speakers.iter().map(|s| format!("({s}) ")).collect();
        out.push_str(&self.text);
        out
    }

    /// For a terminal: each speaker in a colour of its own.
    pub fn painted(&self) -> String {
        const COLOURS: [&str; 6] = ["32", "36", "35", "34", "33", "96"];
        let mut out = String::new();
        for (depth, name) in self.speakers.iter().enumerate() {
            let code = if name == "testudo" {
                "1;33"
            } else {
                let sum: usize = name.bytes().map(usize::from).sum();
                COLOURS[(sum + depth * 2) % COLOURS.len()]
            };
            out += &crate::ui::paint(code, &format!("({name}) "));
        }
        let loud = self.text.starts_with("@testudo");
        out + &if loud { crate::ui::paint("1", &self.text) } else { self.text.clone() }
    }

    /// The words after `@KEY` if this is a result or counter line: `key=value` pairs by key.
    fn fields(&self, key: &str) -> Option<BTreeMap<&str, &str>> {
        let rest = self.text.strip_prefix(key)?.strip_prefix(' ')?;
        Some(rest.split_whitespace().filter_map(|w| w.split_once('=')).collect())
    }
}

/// `(name) rest`: a name is short and has no blanks, so that what programs print in brackets is not taken.
fn speaker(text: &str) -> Option<(&str, &str)> {
    let (name, rest) = text.strip_prefix('(')?.split_once(')')?;
    let good = !name.is_empty()
        && name.len() <= 24
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let rest = rest.strip_prefix(' ').or(rest.is_empty().then_some(""))?;
    good.then_some((name, rest))
}

/// Text without terminal control: escape sequences (ECMA-48) and other control characters.
fn plain(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => match chars.next() {
                Some('[') => while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {},
                Some(c) if "()*+#%".contains(c) => drop(chars.next()),
                _ => {}
            },
            '\t' => out.push('\t'),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// Whether `line` has the parts of `pattern` in order; `*` stands for anything between two parts.
pub fn matches(pattern: &str, line: &str) -> bool {
    let mut rest = line;
    pattern.split('*').all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

/// Who booted when, and the exits Testudo counted.
#[derive(Debug, Default, Clone)]
pub struct Summary {
    /// (who, what came up, seconds of wall-clock, ticks if the line says) in order.
    pub booted: Vec<(String, String, f64, Option<u64>)>,
    /// Exits by domain and level, by reason.
    pub exits: BTreeMap<(String, String), BTreeMap<String, u64>>,
    icount: bool,
    // The last time that each speaker's kernel said, in nanoseconds.
    clock: BTreeMap<String, u64>,
}

/// The time stamp of a kernel's line, `[   12.345678] …`, in nanoseconds.
fn stamp(text: &str) -> Option<u64> {
    let (seconds, rest) = text.strip_prefix('[')?.split_once('.')?;
    let micros = rest.split_once("] ")?.0;
    let (seconds, micros): (u64, u64) = (seconds.trim().parse().ok()?, micros.parse().ok()?);
    Some(seconds.checked_mul(1_000_000_000)?.saturating_add(micros.saturating_mul(1000)))
}

impl Summary {
    /// An empty summary. With `icount`, one nanosecond of a kernel's clock is one instruction.
    pub fn new(icount: bool) -> Summary {
        Summary { icount, ..Summary::default() }
    }

    /// Takes note of a line that came `seconds` after the start.
    pub fn hear(&mut self, line: &Line, seconds: f64) {
        if let Some(fields) = line.fields("@stat") {
            let get = |key: &str| fields.get(key).copied().unwrap_or("?").to_string();
            if let Some(count) = fields.get("count").and_then(|c| c.parse::<u64>().ok()) {
                let reasons = self.exits.entry((get("dom"), get("level"))).or_default();
                // Counters are totals: a later line of the same reason replaces the earlier.
                reasons.insert(get("reason"), count);
            }
        }
        let speaker = line.speakers.join(" ");
        if let Some(now) = stamp(&line.text) {
            self.clock.insert(speaker.clone(), now);
        }
        // A bare machine, or an L2 of a monitor that prefixes nothing, says in the result who it is.
        let named = line.text.strip_prefix("@testudo ").and_then(|t| t.split_whitespace().next());
        let mut who = line.speakers.clone();
        who.extend(named.filter(|n| who.last().is_none_or(|w| !w.starts_with(n))).map(String::from));
        let who = if who.is_empty() { "machine".to_string() } else { who.join(" ") };
        let first = line.text.contains("Linux version ");
        let result = line.fields("@testudo").filter(|f| f.contains_key("kernel"));
        if first || result.is_some() {
            let said = result.as_ref().and_then(|f| f.get("ticks")).and_then(|t| t.parse().ok());
            let ticks =
                said.or(self.clock.get(&speaker).copied().filter(|_| self.icount && result.is_some()));
            let what = match result {
                Some(fields) => format!("user space ({})", fields["kernel"]),
                None => "kernel".to_string(),
            };
            self.booted.push((who, what, seconds, ticks));
        }
    }

    /// The table at the end of a run.
    pub fn table(&self) -> String {
        let mut text = String::new();
        if !self.booted.is_empty() {
            let last = if self.icount { "  instructions" } else { "" };
            text += &format!("{:<20} {:<38} {:>9}{last}\n", "who", "booted", "seconds");
        }
        for (who, what, seconds, ticks) in &self.booted {
            let ticks = ticks.map(|t| t.to_string()).unwrap_or_default();
            text += format!("{who:<20} {what:<38} {seconds:>9.1}  {ticks}").trim_end();
            text.push('\n');
        }
        for ((dom, level), reasons) in &self.exits {
            let total: u64 = reasons.values().sum();
            let mut sorted: Vec<_> = reasons.iter().filter(|(_, n)| **n > 0).collect();
            sorted.sort_by_key(|(name, n)| (std::cmp::Reverse(**n), name.as_str()));
            text += &format!("\nexits of {dom}, level {level}: {total}\n");
            for (name, count) in sorted.iter().take(12) {
                text += &format!("  {name:<24} {count:>12}\n");
            }
            if sorted.len() > 12 {
                let rest: u64 = sorted[12..].iter().map(|(_, n)| **n).sum();
                text += &format!("  {:<24} {rest:>12}\n", "others");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speakers_nest() {
        let line = Line::parse(b"(l1) (l2) @testudo l2 userland kernel=6.1.0 cpus=1\r");
        assert_eq!(line.speakers, ["l1", "l2"]);
        assert_eq!(line.text, "@testudo l2 userland kernel=6.1.0 cpus=1");
        assert_eq!(line.full(), "(l1) (l2) @testudo l2 userland kernel=6.1.0 cpus=1");
    }

    #[test]
    fn brackets_in_what_is_said_are_no_speakers() {
        assert_eq!(Line::parse(b"(gcc version 12) x").speakers.len(), 0);
        assert_eq!(Line::parse(b"(l1) (not a name) x").speakers, ["l1"]);
        assert_eq!(Line::parse(b"(l1)").speakers, ["l1"]);
        assert_eq!(Line::parse(b"f(x) y").speakers.len(), 0);
    }

    #[test]
    fn control_sequences_go() {
        assert_eq!(Line::parse(b"\x1b[2J\x1b[01;01H\x1bcGRUB\x1b(B ok\x07\r").text, "GRUB ok");
        assert_eq!(Line::parse(b"\x1b[").text, "");
        assert_eq!(Line::parse(b"\xff\x1b").text, "\u{fffd}");
    }

    #[test]
    fn patterns_match_parts_in_order() {
        assert!(matches("l1 done*ok", "(l1) @testudo l1 done ok"));
        assert!(!matches("ok*done", "l1 done ok"));
        assert!(matches("", "anything"));
    }

    #[test]
    fn counted_instructions_come_from_the_kernels_clock() {
        let mut summary = Summary::new(true);
        summary.hear(&Line::parse(b"(l1) [    2.500001] Run /init as init process"), 1.0);
        summary.hear(&Line::parse(b"(l1) [not a time] x"), 1.0);
        summary.hear(&Line::parse(b"(l1) @testudo l1 kernel=6.1.0"), 1.5);
        assert_eq!(summary.booted[0].3, Some(2_500_001_000));
        assert_eq!(stamp("[ 99999999999999999999.0] x"), None);
    }

    #[test]
    fn the_table_has_boots_and_counters() {
        let mut summary = Summary::default();
        for line in [
            "(l1) [    0.000000] Linux version 6.1.0",
            "(l1) @testudo l1 kernel=6.1.0 cpus=2 ticks=77",
            "(testudo) @stat dom=l1 level=1 reason=cpuid count=5",
            "(testudo) @stat dom=l1 level=1 reason=cpuid count=9",
            "(testudo) @stat dom=l1 level=2 reason=npf count=x",
        ] {
            summary.hear(&Line::parse(line.as_bytes()), 1.5);
        }
        assert_eq!(summary.booted.len(), 2);
        assert_eq!(summary.booted[1].3, Some(77));
        assert_eq!(summary.exits.len(), 1);
        assert!(summary.table().contains("exits of l1, level 1: 9"));
    }
}
