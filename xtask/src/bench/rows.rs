//! What the guests of a run say, as rows and facts.
use crate::speech::Line;
use serde::Serialize;
use std::collections::BTreeMap;

/// A kind of run.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it measures.
    pub about: &'static str,
    /// Who is beneath: `testudo`, `kvm`, or `none` (the bare emulator).
    pub l0: &'static str,
    /// Level of the bench's guest.
    pub level: u32,
}

/// All runs, in the order of the default.
pub const RUNS: &[Run] = &[
    Run { name: "kvm-one-level", about: "KVM on the machine itself", l0: "kvm", level: 1 },
    Run { name: "kvm", about: "KVM as L0: Linux with KVM as L1, then svm-l1 as L1", l0: "kvm", level: 2 },
    Run { name: "testudo", about: "Testudo as L0, the same Linux as L1", l0: "testudo", level: 2 },
    Run { name: "svm-l1", about: "Testudo as L0, svm-l1 as L1", l0: "testudo", level: 1 },
    Run { name: "svm-l1-bare", about: "svm-l1 on the machine itself", l0: "none", level: 1 },
];

impl Run {
    /// Whether the only guest is the bare-metal L1.
    pub fn is_svm(&self) -> bool {
        self.name.starts_with("svm-l1")
    }
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The machine.
    pub platform: String,
    /// Who is L0: `testudo`, `kvm`, or `none` (the bare emulator; not written to the file).
    pub l0: String,
    /// Where the operation was executed: `l1` is a guest of L0, `l2` a guest of it.
    pub level: String,
    /// Privilege there: `kernel`, or `user`.
    pub mode: String,
    /// Which operation.
    pub operation: String,
    /// TSC ticks of a round trip, the pair of RDTSC included.
    pub ticks_median: u64,
    /// The best round.
    pub ticks_min: u64,
    /// World switches of L0 for one operation by reason, where they were counted.
    pub l0_exits: Option<BTreeMap<String, f64>>,
    /// The least of each reason over all batches, together: external interrupts have no part in it.
    #[serde(skip)]
    pub least: Option<f64>,
    /// One of svm-l1's, which are shown apart.
    #[serde(skip)]
    pub svm: bool,
}

/// Operations of the file; the others are only shown.
const OPERATIONS: [&str; 11] = [
    "cpuid",
    "vmmcall",
    "rdmsr",
    "pio",
    "mmio",
    "hlt",
    "pio_irq",
    "npf_present",
    "npf_absent",
    "vmrun",
    "boot",
];

/// All that was heard.
#[derive(Debug, Default)]
pub struct Heard {
    platform: String,
    /// Measurements.
    pub rows: Vec<Row>,
    /// Numbers that are no operation's, by run and name.
    pub facts: BTreeMap<(String, String), u64>,
}

impl Heard {
    /// Nothing yet, on `platform`.
    pub fn new(platform: String) -> Heard {
        Heard { platform, ..Heard::default() }
    }

    /// A number that is no operation's.
    pub fn fact(&self, run: &str, name: &str) -> Option<u64> {
        self.facts.get(&(run.to_string(), name.to_string())).copied()
    }

    /// Takes note of a line.
    pub fn hear(&mut self, line: &Line, run: &Run) {
        if let Some(rest) = line.text.strip_prefix("bench: ") {
            self.ticks(rest, line, run);
        } else if let Some(rest) = line.text.strip_prefix("exits: ") {
            self.exits(rest, line, run);
        } else {
            self.boot(line, run);
            self.note(line, run);
        }
    }

    /// `OP min=N median=N p99=N rounds=N`.
    fn ticks(&mut self, rest: &str, line: &Line, run: &Run) -> Option<()> {
        let (operation, rest) = rest.split_once(' ')?;
        let (median, min) = (number(rest, "median")?, number(rest, "min")?);
        let row = self.row(operation, line, run);
        (row.ticks_median, row.ticks_min) = (median, min);
        Some(())
    }

    /// `OP total=X least=X rounds=N batches=N REASON=X …`.
    fn exits(&mut self, rest: &str, line: &Line, run: &Run) -> Option<()> {
        let (operation, rest) = rest.split_once(' ')?;
        let words = rest.split_whitespace().filter_map(|w| w.split_once('='));
        let mut all: BTreeMap<String, f64> =
            words.filter_map(|(name, n)| Some((name.to_string(), n.parse().ok()?))).collect();
        let least = all.remove("least")?;
        for other in ["total", "rounds", "batches"] {
            all.remove(other)?;
        }
        let row = self.row(operation, line, run);
        (row.l0_exits, row.least) = (Some(all), Some(least));
        Some(())
    }

    /// `@testudo l1 kernel=… ticks=N` of a guest of L0, `@testudo l2 userland … ticks=N` of a guest of its guest.
    fn boot(&mut self, line: &Line, run: &Run) -> Option<()> {
        let text = line.text.strip_prefix("@testudo ")?;
        let level = match (line.speakers.iter().map(String::as_str).collect::<Vec<_>>().as_slice(), text) {
            (["l1"], text) if text.starts_with("l1 kernel=") => "l1",
            (["l1", "l2"], text) if text.starts_with("l2 userland") => "l2",
            _ => return None,
        };
        let ticks = number(text, "ticks")?;
        let row = self.row("boot", line, run);
        (row.level, row.ticks_median, row.ticks_min) = (level.into(), ticks, ticks);
        Some(())
    }

    /// Lines that are known by their first word.
    fn note(&mut self, line: &Line, run: &Run) -> Option<()> {
        let (first, rest) = line.text.split_once(' ')?;
        let names: &[&str] = match (first, line.speakers.len()) {
            ("@boot", 1) => &["handover_to_guest"],
            ("@memory", 1) => &["total_kb", "domains_kb", "modules_kb", "testudo_kb", "image_and_tables_kb"],
            // L0's monitor of L1, not L1's of L2.
            ("vmm:", 1) if line.speakers[0] == "l1" => &["entry_tsc"],
            ("svm-l1:", _) => &["tsc"],
            _ => return None,
        };
        for name in names {
            let value = number(rest, name)?;
            let most = self.facts.entry((run.name.into(), name.to_string())).or_default();
            *most = value.max(*most);
        }
        Some(())
    }

    /// The row of an operation, made if there is none yet.
    fn row(&mut self, operation: &str, line: &Line, run: &Run) -> &mut Row {
        let svm = run.is_svm() || line.speakers.last().is_some_and(|s| s == "svm");
        let user = operation == "user_cpuid";
        // CPUID in L1's own user space happens one level up; and svm-l1 is always the L1.
        let level = match run.level {
            level if user => level - 1,
            _ if svm => 1,
            level => level,
        };
        let operation = match operation {
            "user_cpuid" => "cpuid",
            // The whole round trip is the operation; its two ways are shown apart.
            "vmrun_vmexit" if svm => "vmrun",
            "vmrun" if svm => "vmrun_there",
            "vmexit" if svm => "vmrun_back",
            "vmrun_vmexit_clean" => "vmrun, clean",
            "vmrun_clean" => "vmrun_there, clean",
            "vmexit_clean" => "vmrun_back, clean",
            other => other,
        };
        let fresh = Row {
            platform: self.platform.clone(),
            l0: run.l0.into(),
            level: format!("l{level}"),
            mode: if user { "user" } else { "kernel" }.into(),
            operation: operation.into(),
            ticks_median: 0,
            ticks_min: 0,
            l0_exits: None,
            least: None,
            svm,
        };
        let same = |r: &Row| {
            // A boot's level is told by its speakers, which its caller has looked at.
            let level = r.level == fresh.level && operation != "boot";
            level && (&r.l0, &r.mode, &r.operation, r.svm) == (&fresh.l0, &fresh.mode, &fresh.operation, svm)
        };
        let at = self.rows.iter().position(same).unwrap_or_else(|| {
            self.rows.push(fresh);
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    /// The rows for the file.
    pub fn for_file(&self) -> Vec<&Row> {
        let meant = |r: &&Row| {
            let ours = OPERATIONS.contains(&r.operation.as_str()) && r.l0 != "none";
            // What svm-l1 has beside VMRUN, others measure as they are used.
            ours && r.level != "l0" && (!r.svm || r.operation == "vmrun")
        };
        self.rows.iter().filter(meant).collect()
    }
}

/// The value of `name=N` among words.
fn number(words: &str, name: &str) -> Option<u64> {
    words.split_whitespace().find_map(|w| w.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(run: &str, lines: &[&str]) -> Heard {
        let run = RUNS.iter().find(|r| r.name == run).unwrap();
        let mut heard = Heard::new("p".into());
        for line in lines {
            heard.hear(&Line::parse(line.as_bytes()), run);
        }
        heard
    }

    #[test]
    fn ticks_and_exits_of_an_operation_make_one_row() {
        let heard = heard(
            "testudo",
            &[
                "(l1) bench: cpuid min=2000 median=2114 p99=3000 rounds=500",
                "(l1) bench: user_cpuid min=1 median=2 p99=3 rounds=5",
                "(l1) bench: broken median=x",
                "(l1) exits: cpuid total=5.13 least=5.00 rounds=8 batches=15 CPUID=1.13 VMRUN=1.00",
                "(l1) exits: cpuid total=",
            ],
        );
        assert_eq!(heard.rows.len(), 2);
        let [l2, user] = &heard.rows[..] else { panic!() };
        assert_eq!(
            (l2.level.as_str(), l2.mode.as_str(), l2.ticks_median, l2.ticks_min),
            ("l2", "kernel", 2114, 2000)
        );
        assert_eq!((l2.least, l2.l0_exits.as_ref().unwrap().len()), (Some(5.0), 2));
        assert_eq!(
            (user.operation.as_str(), user.level.as_str(), user.mode.as_str()),
            ("cpuid", "l1", "user")
        );
    }

    #[test]
    fn svm_l1_is_always_the_l1() {
        let lines =
            ["(svm) bench: vmrun_vmexit min=1 median=2 p99=3 rounds=4", "(svm) bench: cpuid min=5 median=6"];
        let heard = heard("kvm", &lines);
        let file: Vec<_> =
            heard.for_file().iter().map(|r| (r.operation.as_str(), r.level.as_str())).collect();
        assert_eq!((file, heard.rows.len()), (vec![("vmrun", "l1")], 2));
    }

    #[test]
    fn boots_are_told_apart_by_who_speaks() {
        let lines = [
            "(l1) @testudo l1 kernel=6.1.0 cpus=1 ticks=7000",
            "(l1) (l2) @testudo l2 userland kernel=6.1.0 cpus=1 ticks=8000",
            "@testudo l1 kernel=6.1.0 ticks=9",
        ];
        let heard = heard("kvm", &lines);
        let boots: Vec<_> = heard.rows.iter().map(|r| (r.level.as_str(), r.ticks_median)).collect();
        assert_eq!(boots, [("l1", 7000), ("l2", 8000)]);
    }

    #[test]
    fn facts_keep_the_most() {
        let memory = |own| {
            format!(
                "(testudo) @memory total_kb=9 domains_kb=1 modules_kb=2 testudo_kb={own} image_and_tables_kb=3"
            )
        };
        let heard = heard(
            "testudo",
            &[
                "(testudo) @boot handover_to_guest=77 ticks",
                &memory(5),
                &memory(4),
                "(l1) (l2) vmm: entry_tsc=3",
            ],
        );
        assert_eq!(heard.fact("testudo", "testudo_kb"), Some(5));
        assert_eq!(heard.fact("testudo", "handover_to_guest"), Some(77));
        assert_eq!(heard.fact("testudo", "entry_tsc"), None);
    }
}
