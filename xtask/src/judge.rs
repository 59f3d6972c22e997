//! Judging numbers in what a machine said: samples that must agree, and spans that must take as long as they say.
use crate::speech::{Line, matches};
use serde::Deserialize;

/// Numbers in lines of one kind must agree: memory that must not grow, shares that must be fair.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agree {
    /// Which lines (`speech::matches`).
    pub line: String,
    /// The text just before the number, such as `spins=`.
    pub number: String,
    /// Percent of the largest that the smallest may be below it.
    #[serde(default)]
    pub within: u64,
    /// The first samples that do not count: what is allocated once.
    #[serde(default)]
    pub skip: usize,
    /// The line after which no more samples count; empty if there is none.
    #[serde(default)]
    pub until: String,
    /// So many samples there must be, without the skipped ones.
    #[serde(default = "two")]
    pub least: usize,
}

fn two() -> usize {
    2
}

/// A guest's clock against ours: a span must take as long as the guest says.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pace {
    /// The line that starts the span.
    pub from: String,
    /// The line that ends it and says how long it took.
    pub to: String,
    /// The text just before the guest's number of milliseconds.
    pub number: String,
    /// Milliseconds that the two may differ.
    pub within_ms: u64,
}

/// What is asked of the numbers.
#[derive(Debug, Clone, Default)]
pub struct Numbers {
    /// Samples that must agree.
    pub agree: Vec<Agree>,
    /// Spans that must be as long as they say.
    pub pace: Vec<Pace>,
}

/// What was heard of them.
#[derive(Debug)]
pub struct Samples<'a> {
    asked: &'a Numbers,
    agree: Vec<Vec<u64>>,
    over: Vec<bool>,
    begun: Vec<Option<f64>>,
    spans: Vec<Vec<(f64, u64)>>,
}

/// The digits behind the first `mark` in `text`.
fn number_after(text: &str, mark: &str) -> Option<u64> {
    let (_, rest) = text.split_once(mark)?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

impl<'a> Samples<'a> {
    /// Nothing heard yet.
    pub fn new(asked: &'a Numbers) -> Samples<'a> {
        Samples {
            asked,
            agree: vec![Vec::new(); asked.agree.len()],
            over: vec![false; asked.agree.len()],
            begun: vec![None; asked.pace.len()],
            spans: vec![Vec::new(); asked.pace.len()],
        }
    }

    /// Takes in one line, heard `seconds` after the start.
    pub fn hear(&mut self, line: &Line, seconds: f64) {
        let full = line.full();
        for ((asked, samples), over) in self.asked.agree.iter().zip(&mut self.agree).zip(&mut self.over) {
            *over |= !asked.until.is_empty() && matches(&asked.until, &full);
            if !*over
                && matches(&asked.line, &full)
                && let Some(n) = number_after(&full, &asked.number)
            {
                samples.push(n);
            }
        }
        for ((asked, begun), spans) in self.asked.pace.iter().zip(&mut self.begun).zip(&mut self.spans) {
            if matches(&asked.from, &full) {
                *begun = Some(seconds);
            } else if matches(&asked.to, &full)
                && let (Some(from), Some(ms)) = (begun.take(), number_after(&full, &asked.number))
            {
                spans.push((seconds - from, ms));
            }
        }
    }

    /// What is wrong with the numbers, once the run is over.
    pub fn problems(&self) -> Vec<String> {
        let agree = self.asked.agree.iter().zip(&self.agree);
        let pace = self.asked.pace.iter().zip(&self.spans);
        agree
            .filter_map(|(asked, samples)| disagreement(asked, samples))
            .chain(pace.filter_map(|(asked, spans)| mispaced(asked, spans)))
            .collect()
    }
}

fn disagreement(asked: &Agree, samples: &[u64]) -> Option<String> {
    let counted = samples.get(asked.skip..).unwrap_or_default();
    if counted.len() < asked.least {
        return Some(format!("`{}` was heard {} times, not {}", asked.line, counted.len(), asked.least));
    }
    let (least, most) = (counted.iter().min().copied()?, counted.iter().max().copied()?);
    let allowed = u128::from(most) * u128::from(asked.within);
    (u128::from(most - least) * 100 > allowed)
        .then(|| format!("`{}` in `{}` is not the same: {samples:?}", asked.number, asked.line))
}

fn mispaced(asked: &Pace, spans: &[(f64, u64)]) -> Option<String> {
    if spans.is_empty() {
        return Some(format!("`{}` never followed `{}`", asked.to, asked.from));
    }
    let (ours, theirs) =
        spans.iter().find(|(ours, theirs)| (ours * 1e3 - *theirs as f64).abs() > asked.within_ms as f64)?;
    Some(format!("from `{}` on the guest counted {theirs} ms, we {:.0} ms", asked.from, ours * 1e3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(asked: &Numbers, lines: &[(&str, f64)]) -> Vec<String> {
        let mut samples = Samples::new(asked);
        lines.iter().for_each(|(l, s)| samples.hear(&Line::parse(l.as_bytes()), *s));
        samples.problems()
    }

    fn agree(within: u64, skip: usize, least: usize) -> Numbers {
        let agree = Agree {
            line: "memory:*".into(),
            number: "Testudo ".into(),
            within,
            skip,
            least,
            until: "over".into(),
        };
        Numbers { agree: vec![agree], pace: Vec::new() }
    }

    #[test]
    fn growth_is_seen_and_the_first_allocation_forgiven() {
        let lines = [
            ("memory: Testudo 90 KiB", 0.0),
            ("memory: Testudo 100 KiB", 1.0),
            ("memory: Testudo 100 KiB", 2.0),
        ];
        assert!(judge(&agree(0, 1, 2), &lines).is_empty());
        assert_eq!(judge(&agree(0, 0, 2), &lines).len(), 1);
        assert!(judge(&agree(10, 0, 2), &lines).is_empty());
        let after = [("memory: Testudo 7 KiB", 0.0), ("memory: Testudo 7 KiB", 1.0), ("over", 2.0)];
        let freed = [&after[..], &[("memory: Testudo 1 KiB", 3.0)]].concat();
        assert!(judge(&agree(0, 0, 2), &freed).is_empty(), "what comes after the end does not count");
        assert_eq!(judge(&agree(0, 1, 3), &lines).len(), 1, "too few samples prove nothing");
        assert_eq!(judge(&agree(0, 0, 1), &[("other", 0.0)]).len(), 1, "no sample proves nothing");
    }

    #[test]
    fn a_clock_that_runs_at_another_pace_is_seen() {
        let pace = Pace { from: "start".into(), to: "stop*".into(), number: "ms=".into(), within_ms: 500 };
        let asked = Numbers { agree: Vec::new(), pace: vec![pace] };
        assert!(judge(&asked, &[("start", 10.0), ("stop ms=2000", 12.3)]).is_empty());
        assert_eq!(judge(&asked, &[("start", 10.0), ("stop ms=2000", 12.6)]).len(), 1);
        assert_eq!(judge(&asked, &[("stop ms=2000", 12.6)]).len(), 1);
    }
}
