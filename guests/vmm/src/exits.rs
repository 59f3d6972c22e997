//! Counting the exits that an operation costs L0: snapshots of its counters before and after a batch of rounds.

use std::collections::BTreeMap;

use crate::perf::Perf;
use crate::ports;

/// Who counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Testudo beneath us, read by CPUID (its domain option `counters=on`).
    Cpuid,
    /// A `vmm boot --counters` beneath us, read by ports.
    Ports,
    /// The KVM that this program uses: a trace point of its kernel.
    Perf,
}

impl Source {
    /// By name.
    pub fn parse(name: &str) -> Option<Source> {
        [("cpuid", Source::Cpuid), ("ports", Source::Ports), ("perf", Source::Perf)]
            .into_iter()
            .find(|(n, _)| *n == name)
            .map(|(_, source)| source)
    }
}

/// Names of the exit codes that are told apart (AMD APM vol. 2, appendix C "SVM Intercept Exit Codes"). The rest
/// together are `other`: reading a counter costs exits and time, in which interrupts come.
pub const CODES: [(u32, &str); 24] = [
    (0x00, "CR0_READ"),
    (0x10, "CR0_WRITE"),
    (0x13, "CR3_WRITE"),
    (0x14, "CR4_WRITE"),
    (0x4e, "EXCP14"),
    (0x60, "INTR"),
    (0x61, "NMI"),
    (0x64, "VINTR"),
    (0x72, "CPUID"),
    (0x74, "IRET"),
    (0x77, "PAUSE"),
    (0x78, "HLT"),
    (0x79, "INVLPG"),
    (0x7a, "INVLPGA"),
    (0x7b, "IOIO"),
    (0x7c, "MSR"),
    (0x80, "VMRUN"),
    (0x81, "VMMCALL"),
    (0x82, "VMLOAD"),
    (0x83, "VMSAVE"),
    (0x84, "STGI"),
    (0x85, "CLGI"),
    (0x8d, "XSETBV"),
    (0x400, "NPF"),
];

/// Rounds of a batch: few, so that most batches see no external interrupt.
pub const BATCH: usize = 4;
/// Batches of an operation.
pub const BATCHES: usize = 41;

/// Counts by reason.
pub type Counts = BTreeMap<String, u64>;

/// A source that has been found.
#[derive(Debug)]
pub enum Counters {
    /// See [`Source::Cpuid`].
    Cpuid,
    /// See [`Source::Ports`].
    Ports(ports::Client),
    /// See [`Source::Perf`].
    Perf(Perf),
}

impl Counters {
    /// Opens a source; counting begins.
    ///
    /// # Errors
    /// It is not there.
    pub fn open(source: Source) -> Result<Counters, String> {
        Ok(match source {
            Source::Cpuid if testudo::present() => Counters::Cpuid,
            Source::Cpuid => {
                return Err("exits by CPUID: no Testudo beneath, or the domain lacks `counters=on`".into());
            }
            Source::Ports => Counters::Ports(ports::Client::open()?),
            Source::Perf => Counters::Perf(Perf::open(&CODES.map(|(code, _)| code))?),
        })
    }

    /// All counts of this moment. Taking it costs exits of its own, the same each time.
    ///
    /// # Errors
    /// The source failed.
    fn snapshot(&self) -> Result<Counts, String> {
        match self {
            Counters::Cpuid => named(|selector| Ok(testudo::read(selector))),
            Counters::Ports(client) => named(|selector| client.read(selector)),
            Counters::Perf(perf) => named(|selector| perf.read(selector)),
        }
    }

    /// Runs `batch` [`BATCHES`] times and gives what each cost.
    ///
    /// # Errors
    /// The batch failed, or the source did.
    pub fn batches(&self, mut batch: impl FnMut() -> Result<(), String>) -> Result<Vec<Counts>, String> {
        (0..BATCHES)
            .map(|_| {
                let before = self.snapshot()?;
                batch()?;
                Ok(difference(&self.snapshot()?, &before))
            })
            .collect()
    }
}

/// Selects the sum of all reasons, with each source.
pub const TOTAL: u32 = u32::MAX - 1;

fn named(read: impl Fn(u32) -> Result<u64, String>) -> Result<Counts, String> {
    let mut counts = Counts::new();
    for (code, name) in CODES {
        counts.insert(name.into(), read(code)?);
    }
    let known: u64 = counts.values().sum();
    counts.insert("other".into(), read(TOTAL)?.saturating_sub(known));
    Ok(counts)
}

fn difference(after: &Counts, before: &Counts) -> Counts {
    let less = |name: &String, n: u64| n.saturating_sub(before.get(name).copied().unwrap_or(0));
    after.iter().map(|(name, n)| (name.clone(), less(name, *n))).filter(|(_, n)| *n != 0).collect()
}

fn total(counts: &Counts) -> u64 {
    counts.values().sum()
}

/// The batch with the fewest exits: what the frame around the rounds costs, if the batches have none.
pub fn least(batches: &[Counts]) -> Counts {
    batches.iter().min_by_key(|c| total(c)).cloned().unwrap_or_default()
}

/// The line about an operation: what a round of the middle batch costs by reason, the `frame` taken off, and as `least`
/// the sum of what no batch has done without. An external interrupt and its handling fall into one batch or another, so
/// that they are not in it.
pub fn report(op: &str, batches: &[Counts], frame: &Counts) -> String {
    let mut own: Vec<Counts> = batches.iter().map(|b| difference(b, frame)).collect();
    own.sort_by_key(total);
    let per_round = |n: u64| n as f64 / BATCH as f64;
    let middle = &own[own.len() / 2];
    let of = |batch: &Counts, reason: &String| batch.get(reason).copied().unwrap_or(0);
    let least: u64 = middle.keys().map(|r| own.iter().map(|batch| of(batch, r)).min().unwrap_or(0)).sum();
    let mut line = format!(
        "exits: {op} total={:.2} least={:.2} rounds={BATCH} batches={}",
        per_round(total(middle)),
        per_round(least),
        own.len()
    );
    for (name, n) in middle {
        line += &format!(" {name}={:.2}", per_round(*n));
    }
    line
}

/// Testudo's leaves (hv/x86/src/guest/stats.rs).
mod testudo {
    use std::arch::x86_64::__cpuid_count;

    const BASE: u32 = 0x4f4e_4d80;

    /// Whether there is such a Testudo.
    pub fn present() -> bool {
        let r = __cpuid_count(BASE, 0);
        [r.ebx, r.ecx, r.edx] == [*b"Test", *b"udoE", *b"xits"].map(u32::from_le_bytes)
    }

    /// Exits of L1 and L2 by `code`.
    pub fn read(code: u32) -> u64 {
        let r = __cpuid_count(BASE + 1, code);
        let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        pair(r.eax, r.ebx).wrapping_add(pair(r.ecx, r.edx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(list: &[(&str, u64)]) -> Counts {
        list.iter().map(|(name, n)| (name.to_string(), *n)).collect()
    }

    #[test]
    fn the_frame_and_interrupts_are_set_apart() {
        let n = BATCH as u64;
        let frame = counts(&[("IOIO", 1), ("VMRUN", 1), ("CPUID", 25)]);
        let quiet = counts(&[("IOIO", 1), ("VMRUN", 1 + n), ("CPUID", 25 + n), ("VMLOAD", 2 * n)]);
        let (mut noisy, mut other) = (quiet.clone(), quiet.clone());
        noisy.insert("INTR".into(), 3);
        other.insert("MSR".into(), 9);
        let line = report("cpuid", &[noisy.clone(), other, noisy.clone()], &frame);
        assert!(
            line.starts_with("exits: cpuid total=4.75 least=4.00 rounds=4 batches=3 CPUID=1.00 INTR=0.75")
        );
        let line = report("cpuid", &[noisy, quiet.clone(), quiet], &frame);
        assert!(line.ends_with("CPUID=1.00 VMLOAD=2.00 VMRUN=1.00"), "{line}");
    }

    #[test]
    fn reasons_without_a_name_are_told_together() {
        let all = named(|s| Ok(if s == TOTAL { 30 } else { 1 })).expect("readable");
        assert_eq!(all["other"], 30 - CODES.len() as u64);
        assert!(named(|_| Err("gone".into())).is_err());
    }

    #[test]
    fn the_least_batch_is_a_whole_one() {
        let (a, b) = (counts(&[("A", 5)]), counts(&[("A", 1), ("B", 3)]));
        assert_eq!(least(&[a, b.clone()]), b);
        assert_eq!(least(&[]), Counts::new());
    }
}
