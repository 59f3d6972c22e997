//! The tables for people, and the verdicts.
use super::rows::{Heard, Row};

/// A bound on a number that is counted, so that a run gives the same on any machine.
struct Target {
    what: &'static str,
    /// More than this is a failure.
    must: f64,
    /// Where we want to be.
    aim: Option<f64>,
    unit: &'static str,
    read: fn(&Heard) -> Option<f64>,
}

const TARGETS: &[Target] = &[
    Target {
        what: "CPUID from L2",
        must: 8000.0,
        aim: Some(5000.0),
        unit: "ticks",
        read: |h| ticks(h, "l2", "cpuid"),
    },
    Target { what: "  its exits to L0", must: 5.0, aim: None, unit: "exits", read: cpuid_exits },
    Target {
        what: "nested fault, page present in L1",
        must: 15_000.0,
        aim: Some(9000.0),
        unit: "ticks",
        read: |h| ticks(h, "l2", "npf_present"),
    },
    Target {
        what: "OUT, injected interrupt, IRET in L2",
        must: 18_000.0,
        aim: Some(12_000.0),
        unit: "ticks",
        read: |h| ticks(h, "l2", "pio_irq"),
    },
    Target {
        what: "CPUID from L1's user space",
        must: 900.0,
        aim: Some(600.0),
        unit: "ticks",
        read: |h| ticks(h, "l1", "cpuid"),
    },
    Target {
        what: "memory not charged to a domain",
        must: 16.0,
        aim: None,
        unit: "MiB",
        read: |h| h.fact("testudo", "testudo_kb").map(|kb| kb as f64 / 1024.0),
    },
];

fn find<'a>(heard: &'a Heard, l0: &str, level: &str, operation: &str) -> Option<&'a Row> {
    heard.rows.iter().find(|r| {
        (r.l0.as_str(), r.level.as_str(), r.operation.as_str(), r.svm) == (l0, level, operation, false)
    })
}

fn ticks(heard: &Heard, level: &str, operation: &str) -> Option<f64> {
    find(heard, "testudo", level, operation).map(|r| r.ticks_median as f64)
}

/// External interrupts aside. STGI and CLGI leave only where the processor has no virtual GIF; they are allowed then.
fn cpuid_exits(heard: &Heard) -> Option<f64> {
    let row = find(heard, "testudo", "l2", "cpuid")?;
    let exits = row.l0_exits.as_ref()?;
    let gif = if ["STGI", "CLGI"].iter().any(|r| exits.contains_key(*r)) { 2.0 } else { 0.0 };
    Some((row.least? - gif).max(0.0))
}

/// The bounds with what was measured, and whether no `must` was missed. What was not measured has no verdict.
pub fn verdicts(heard: &Heard) -> (String, bool) {
    let (mut text, mut good) = (String::new(), true);
    for target in TARGETS {
        let Some(value) = (target.read)(heard) else { continue };
        let met = value <= target.must;
        good &= met;
        let verdict = match target.aim {
            _ if !met => "MISSED",
            Some(aim) if value > aim => "met, aim missed",
            _ => "met",
        };
        let aim = target.aim.map_or("-".into(), |aim| format!("{aim}"));
        text += &format!(
            "{:<38} {:>9} {:<5} {:>7} {aim:>7}  {verdict}\n",
            target.what,
            shown(value),
            target.unit,
            target.must
        );
    }
    if !text.is_empty() {
        text.insert_str(
            0,
            &format!("\n{:<38} {:>9} {:<5} {:>7} {:>7}\n", "Testudo", "measured", "", "must", "aim"),
        );
    }
    (text, good)
}

/// Without decimals where there are none.
fn shown(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value}") } else { format!("{value:.2}") }
}

/// A column: its title, and which rows are its.
type Column<'a> = (String, Box<dyn Fn(&Row) -> bool + 'a>);

/// Operations by line, L0s and levels by column.
fn grid(title: &str, rows: &[&Row], columns: &[Column<'_>], cell: impl Fn(&Row) -> Option<String>) -> String {
    let mut operations: Vec<(String, bool)> = Vec::new();
    for row in rows {
        let line = (row.operation.clone(), row.mode == "user");
        if !operations.contains(&line) {
            operations.push(line);
        }
    }
    let mut text = format!("\n{title:<22}");
    for (name, _) in columns {
        text += &format!(" {name:>21}");
    }
    text.push('\n');
    for (operation, user) in operations {
        let mut line =
            format!("{:<22}", if user { format!("{operation}, user space") } else { operation.clone() });
        for (_, mine) in columns {
            let row = rows.iter().find(|r| r.operation == operation && (r.mode == "user") == user && mine(r));
            line += &format!(" {:>21}", row.and_then(|r| cell(r)).unwrap_or_default());
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// Every number of the runs.
pub fn text(heard: &Heard) -> String {
    let both =
        |r: &Row| Some(format!("{} / {}", r.ticks_median, r.ticks_min)).filter(|_| r.ticks_median != 0);
    let (svm, plain): (Vec<&Row>, Vec<&Row>) = heard.rows.iter().partition(|r| r.svm);
    let columns = |rows: &[&Row]| -> Vec<Column<'static>> {
        let mut keys: Vec<(String, String)> = rows.iter().map(|r| (r.l0.clone(), r.level.clone())).collect();
        keys.sort();
        keys.dedup();
        keys.into_iter()
            .map(|(l0, level)| {
                let title = if l0 == "none" { "no L0".to_string() } else { format!("{l0}, {level}") };
                (title, Box::new(move |r: &Row| r.l0 == l0 && r.level == level) as Box<dyn Fn(&Row) -> bool>)
            })
            .collect()
    };
    let mut text = String::new();
    if !plain.is_empty() {
        text += &grid("ticks: median / min", &plain, &columns(&plain), both);
    }
    if !svm.is_empty() {
        text += &grid("an L1 that is svm-l1", &svm, &columns(&svm), both);
    }
    text + &exits(heard) + &facts(heard)
}

fn exits(heard: &Heard) -> String {
    let mut text = String::new();
    for row in &heard.rows {
        let Some(reasons) = &row.l0_exits else { continue };
        if text.is_empty() {
            text += "\nL0's exits per operation (external interrupts aside, then all by reason)\n";
        }
        let mut sorted: Vec<_> = reasons.iter().collect();
        sorted.sort_by(|a, b| b.1.total_cmp(a.1).then(a.0.cmp(b.0)));
        let list: Vec<_> = sorted.iter().map(|(name, n)| format!("{name} {}", shown(**n))).collect();
        let operation =
            if row.mode == "user" { format!("{}, user space", row.operation) } else { row.operation.clone() };
        let who = format!("{}, {}", row.l0, row.level);
        text += &format!(
            "{who:<12} {operation:<18} {:>6}  {}\n",
            shown(row.least.unwrap_or(0.0)),
            list.join(", ")
        );
    }
    text
}

/// What is no operation.
fn facts(heard: &Heard) -> String {
    let mut text = String::new();
    let mut line = |what: &str, value: Option<String>| {
        if let Some(value) = value {
            text += &format!("{what:<58} {value:>16}\n");
        }
    };
    let fact = |run: &str, name: &str| heard.fact(run, name);
    let kib = |n: Option<u64>| n.map(|kb| format!("{:.2} MiB", kb as f64 / 1024.0));
    line(
        "Testudo: GRUB's hand-over to the first guest's entry, ticks",
        fact("testudo", "handover_to_guest").map(|n| n.to_string()),
    );
    // The machine's TSC begins at reset: what the firmware takes is told by a guest without an L0.
    let kvm = fact("kvm", "entry_tsc")
        .zip(fact("svm-l1-bare", "tsc"))
        .map(|(all, firmware)| all.saturating_sub(firmware));
    line("Linux with KVM: loader's hand-over to the same, ticks", kvm.map(|n| n.to_string()));
    line("Testudo: size of the image file", kib(fact("testudo", "image_kb")));
    line("Testudo: memory of the machine", kib(fact("testudo", "total_kb")));
    line("  not charged to a domain (the most that was seen)", kib(fact("testudo", "testudo_kb")));
    line("    of this, the image and boot-time tables", kib(fact("testudo", "image_and_tables_kb")));
    line("  the domain's kernel and ramdisk, kept for its restart", kib(fact("testudo", "modules_kb")));
    if text.is_empty() { text } else { format!("\n{text}") }
}

#[cfg(test)]
mod tests {
    use super::super::rows::RUNS;
    use super::*;
    use crate::speech::Line;

    fn heard(lines: &[&str]) -> Heard {
        let run = RUNS.iter().find(|r| r.name == "testudo").unwrap();
        let mut heard = Heard::new("p".into());
        lines.iter().for_each(|line| heard.hear(&Line::parse(line.as_bytes()), run));
        heard
    }

    #[test]
    fn a_missed_must_is_said_and_what_was_not_measured_is_not() {
        let (text, good) = verdicts(&heard(&[
            "(l1) bench: cpuid min=4000 median=6000",
            "(l1) bench: user_cpuid min=500 median=550",
            "(l1) bench: pio_irq min=4000 median=25167",
        ]));
        assert!(!good);
        let line = |what: &str| text.lines().find(|l| l.starts_with(what)).map(str::to_string);
        assert!(
            line("CPUID from L2").unwrap().ends_with("6000 ticks    8000    5000  met, aim missed"),
            "{text}"
        );
        assert!(line("CPUID from L1's").unwrap().ends_with("met"));
        assert!(line("OUT, injected").unwrap().ends_with("MISSED"));
        assert_eq!(line("nested fault"), None);
        assert_eq!(verdicts(&heard(&[])), (String::new(), true));
    }

    #[test]
    fn two_exits_more_are_allowed_without_a_virtual_gif() {
        let cpuid = "(l1) bench: cpuid min=4000 median=6000";
        let tail = "rounds=8 batches=15 CPUID=1.00";
        let with = |least: f64, more: &str| {
            verdicts(&heard(&[cpuid, &format!("(l1) exits: cpuid total=9.00 least={least:.2} {tail}{more}")]))
                .1
        };
        assert!(with(5.0, "") && !with(5.13, "") && !with(7.0, ""));
        assert!(with(7.0, " STGI=1.00 CLGI=1.00") && !with(7.13, " STGI=1.00 CLGI=1.00"));
    }

    #[test]
    fn tables_have_a_line_per_operation_and_a_column_per_level() {
        let mut all =
            heard(&["(l1) bench: cpuid min=1 median=9000", "(l1) bench: user_cpuid min=3 median=4"]);
        all.hear(&Line::parse(b"(l1) bench: cpuid min=2 median=29383"), &RUNS[1]);
        let text = text(&all);
        let lines: Vec<_> =
            text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(lines[1], "ticks: median / min kvm, l2 testudo, l1 testudo, l2");
        assert_eq!(lines[2], "cpuid 29383 / 2 9000 / 1");
        assert_eq!(lines[3], "cpuid, user space 4 / 3");
    }
}
