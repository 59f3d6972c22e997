//! The settings of a domain's line.

use super::{
    DomainConfig, GuestType, Limits, MAX_EVENT_CHANNELS, MAX_GRANT_FRAMES, MAX_MAPTRACK_FRAMES, MAX_NAME,
    MIN_MEMORY, OnCrash,
};
use crate::words::{self, Word, boolean, integer, size};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Highest pCPU number that can be named.
const MAX_CPU: u64 = 4095;

/// Why a word cannot be taken.
pub(super) enum Fault {
    /// It resembles no setting.
    Stranger,
    /// It is a setting gone wrong.
    Bad {
        /// What is wrong.
        what: String,
        /// What would be right.
        remedy: String,
    },
}

/// What is wrong, and what would be right.
type Wrong = (String, String);
type Apply = fn(&mut DomainConfig, &str, &Limits) -> Result<(), Wrong>;

/// Name, whether it is a boolean, what it does.
const KEYS: [(&str, bool, Apply); 14] = [
    ("name", false, |d, v, _| name(v).map(|name| d.name = name)),
    ("vcpus", false, |d, v, limits| vcpus(v, limits).map(|n| d.vcpus = n)),
    ("memory", false, |d, v, limits| memory(v, limits).map(|bytes| d.memory = bytes)),
    ("nested", true, |d, v, _| on_off(v).map(|on| d.nested = on)),
    ("console", true, |d, v, _| on_off(v).map(|on| d.console = on)),
    ("counters", true, |d, v, _| on_off(v).map(|on| d.counters = on)),
    ("type", false, |d, v, _| one_of(v, &[("pvh", GuestType::Pvh)]).map(|kind| d.kind = kind)),
    ("cpus", false, |d, v, _| cpus(v).map(|list| d.cpus = list)),
    ("weight", false, |d, v, _| number(v, 1, u16::MAX.into()).map(|n| d.weight = n as u16)),
    ("cap", false, |d, v, _| number(v, 0, u16::MAX.into()).map(|n| d.cap = n as u16)),
    ("max_event_channels", false, |d, v, _| {
        number(v, 1, MAX_EVENT_CHANNELS.into()).map(|n| d.max_event_channels = n as u32)
    }),
    ("max_grant_frames", false, |d, v, _| {
        number(v, 1, MAX_GRANT_FRAMES.into()).map(|n| d.max_grant_frames = n as u32)
    }),
    ("max_maptrack_frames", false, |d, v, _| {
        number(v, 0, MAX_MAPTRACK_FRAMES.into()).map(|n| d.max_maptrack_frames = n as u32)
    }),
    ("on_crash", false, |d, v, _| {
        one_of(v, &[("destroy", OnCrash::Destroy), ("restart", OnCrash::Restart)])
            .map(|then| d.on_crash = then)
    }),
];

/// Takes one word of a domain's line into `draft`.
pub(super) fn apply(draft: &mut DomainConfig, word: &Word, limits: &Limits) -> Result<(), Fault> {
    let bad = |(what, remedy)| Fault::Bad { what, remedy };
    if word.unclosed {
        return Err(bad(("a quotation that does not end".into(), "add the missing quotation mark".into())));
    }
    let text = word.text.as_str();
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (text, None),
    };
    if let Some((_, flag, apply)) = KEYS.iter().find(|(name, ..)| *name == key) {
        let value = value.or(flag.then_some("on"));
        let value = value.ok_or_else(|| bad(("no value".into(), format!("write `{key}=...`"))))?;
        return apply(draft, value, limits).map_err(bad);
    }
    let negated = key.strip_prefix("no-").filter(|_| value.is_none());
    if let Some((.., apply)) = KEYS.iter().find(|(name, flag, _)| *flag && negated == Some(name)) {
        return apply(draft, "off", limits).map_err(bad);
    }
    match words::nearest(key, KEYS.iter().map(|(name, ..)| *name)) {
        Some(near) => Err(bad((
            "a domain has no such setting".into(),
            format!("did you mean `{near}={}`?", value.unwrap_or("...")),
        ))),
        None => Err(Fault::Stranger),
    }
}

fn wrong<T>(what: impl Into<String>, remedy: impl Into<String>) -> Result<T, Wrong> {
    Err((what.into(), remedy.into()))
}

fn name(value: &str) -> Result<String, Wrong> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    if value.is_empty() || value.len() > MAX_NAME {
        return wrong("a name of a wrong length", format!("use 1 to {MAX_NAME} characters"));
    }
    if !value.chars().all(plain) || !value.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        let remedy = "use letters, digits, `-`, `_`, `.`, `+`, with a letter or digit first";
        return wrong("a name with characters that names don't have", remedy);
    }
    Ok(value.into())
}

fn vcpus(value: &str, limits: &Limits) -> Result<u32, Wrong> {
    number(value, 1, limits.max_vcpus.into()).map(|n| n as u32)
}

fn memory(value: &str, limits: &Limits) -> Result<u64, Wrong> {
    let Some(bytes) = size(value) else {
        return wrong("not a size", "write a number and `M` or `G`, such as `memory=1024M`");
    };
    if bytes < MIN_MEMORY {
        let mut remedy = format!("a domain needs at least {}M", MIN_MEMORY >> 20);
        if value.bytes().all(|byte| byte.is_ascii_digit()) {
            remedy = format!("{remedy}, and a bare number counts KiB: did you mean `memory={value}M`?");
        }
        return wrong("too little memory", remedy);
    }
    if bytes > limits.max_memory {
        return wrong("too much memory", format!("a domain can have at most {}M", limits.max_memory >> 20));
    }
    Ok(bytes & !(addr::PAGE_SIZE - 1))
}

fn on_off(value: &str) -> Result<bool, Wrong> {
    boolean(value).map_or_else(|| wrong("neither on nor off", "write `on` or `off`"), Ok)
}

fn one_of<T: Copy>(value: &str, names: &[(&str, T)]) -> Result<T, Wrong> {
    match names.iter().find(|(name, _)| *name == value) {
        Some((_, found)) => Ok(*found),
        None => {
            let names: Vec<_> = names.iter().map(|(name, _)| format!("`{name}`")).collect();
            wrong("not one of the possible values", format!("write {}", names.join(" or ")))
        }
    }
}

fn number(value: &str, least: u64, most: u64) -> Result<u64, Wrong> {
    match integer(value) {
        Some(n) if (least..=most).contains(&n) => Ok(n),
        Some(_) => wrong("out of range", format!("write a number from {least} to {most}")),
        None => wrong("not a number", format!("write a number from {least} to {most}")),
    }
}

/// `all`, or CPU numbers and inclusive ranges, separated by commas.
fn cpus(value: &str) -> Result<Vec<(u32, u32)>, Wrong> {
    if value == "all" {
        return Ok(Vec::new());
    }
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (integer(first)?, integer(last)?);
        (first <= last && last <= MAX_CPU).then_some((first as u32, last as u32))
    };
    let list: Option<Vec<_>> = value.split(',').map(range).collect();
    list.map_or_else(|| wrong("not a list of CPUs", "write it like `cpus=0-3,6` or `cpus=all`"), Ok)
}
