//! `xtask test`: rows of checks on the host, then whole machines.
mod host;
mod memory;
mod system;

use crate::layout::Layout;
use crate::run::BuildArgs;
use crate::ui;
use anyhow::{Result, bail};
use std::path::PathBuf;
use std::time::Instant;

/// Options of `cargo xtask test`.
#[derive(Debug, Clone, clap::Args)]
pub struct TestOptions {
    /// Run only these rows, or those whose names contain these
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// List the rows and end
    #[arg(long)]
    pub list: bool,
    /// Also the long rows; those that passed in an earlier such run of the same build are not run again
    #[arg(long)]
    pub full: bool,
    /// With --full: forget what passed before
    #[arg(long, requires = "full")]
    pub restart: bool,
    /// Give each machine, and the watchdogs of the kernels in it, so many times their limits (on a busy computer)
    #[arg(long, default_value_t = 1, value_name = "TIMES")]
    pub patience: u32,
    /// Machines at a time
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub jobs: usize,
    /// How the hypervisor is built.
    #[command(flatten)]
    pub build: BuildArgs,
}

/// How a row ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It passed.
    Passed,
    /// It failed: why.
    Failed(String),
    /// It can't be run here: why.
    Skipped(String),
    /// It passed in an earlier run of the same build.
    Before,
}

/// One row of the summary.
#[derive(Debug, Clone)]
pub struct Outcome {
    name: String,
    verdict: Verdict,
    seconds: f64,
}

impl Outcome {
    /// Prints the row, and the end of its log if it failed.
    fn report(&self, layout: &Layout) {
        let (mark, why) = match &self.verdict {
            Verdict::Passed => (ui::paint("32", "ok     "), ""),
            Verdict::Failed(why) => (ui::paint("31", "FAILED "), why.as_str()),
            Verdict::Skipped(why) => (ui::paint("33", "skipped"), why.as_str()),
            Verdict::Before => (ui::paint("32", "ok     "), "before (--restart runs it again)"),
        };
        println!("{mark} {:<28} {:>7.1} s  {why}", self.name, self.seconds);
        if matches!(self.verdict, Verdict::Failed(_)) {
            let path = log_path(layout, &self.name);
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            for line in crate::proc::tail(&text, 40).lines() {
                println!("    | {line}");
            }
            println!("    log: {}", layout.show(&path));
        }
    }
}

/// Where a row's log is.
fn log_path(layout: &Layout, name: &str) -> PathBuf {
    layout.target("test-logs").join(format!("{name}.log"))
}

/// The last line: what a summary's reader looks for.
fn summary(outcomes: &[Outcome]) -> String {
    let count = |f: fn(&Verdict) -> bool| outcomes.iter().filter(|o| f(&o.verdict)).count();
    let skipped = match count(|v| matches!(v, Verdict::Skipped(_))) {
        0 => String::new(),
        n => format!(", {n} skipped"),
    };
    let before = match count(|v| *v == Verdict::Before) {
        0 => String::new(),
        n => format!(" ({n} of them before)"),
    };
    let passed = count(|v| matches!(v, Verdict::Passed | Verdict::Before));
    let failed = count(|v| matches!(v, Verdict::Failed(_)));
    format!("{passed} passed{before}, {failed} failed{skipped}")
}

/// Whether a row is meant: by its whole name, or by a part of it if no row has just that name.
fn chosen(name: &str, wanted: &[String], all: &[&str]) -> bool {
    let meant = |w: &String| if all.contains(&w.as_str()) { name == w } else { name.contains(w.as_str()) };
    wanted.is_empty() || wanted.iter().any(meant)
}

/// `xtask test`; true if no row failed.
pub fn run(layout: &Layout, options: &TestOptions) -> Result<bool> {
    let scenarios = system::load(layout)?;
    let all: Vec<&str> =
        host::CHECKS.iter().map(|c| c.name).chain(scenarios.iter().map(|s| s.name.as_str())).collect();
    let wanted: Vec<String> =
        all.iter().filter(|n| chosen(n, &options.names, &all)).map(|n| n.to_string()).collect();
    let chosen = |name: &str| wanted.iter().any(|w| w == name);
    let checks: Vec<_> = host::CHECKS.iter().filter(|c| chosen(c.name)).collect();
    let by_name = !options.names.is_empty();
    let scenarios: Vec<_> = scenarios
        .into_iter()
        .filter(|s| chosen(&s.name) && (!s.full || options.full || by_name || options.list))
        .collect();
    if checks.is_empty() && scenarios.is_empty() {
        bail!("no row has a name with {}; `cargo xtask test --list` shows them", options.names.join(" or "));
    }
    if options.list {
        for check in checks {
            println!("{:<28} {}", check.name, check.about);
        }
        for scenario in scenarios {
            let full = if scenario.full { " (only with --full or by name)" } else { "" };
            println!("{:<28} {}{full}", scenario.name, scenario.about);
        }
        return Ok(true);
    }
    let begin = Instant::now();
    let mut outcomes = Vec::new();
    for check in checks {
        let start = Instant::now();
        ui::step(&format!("test {}", check.name));
        let verdict = check.run(layout, &options.build);
        let outcome = Outcome { name: check.name.into(), verdict, seconds: start.elapsed().as_secs_f64() };
        outcome.report(layout);
        outcomes.push(outcome);
    }
    outcomes.extend(system::run(layout, options, &scenarios));
    let minutes = begin.elapsed().as_secs_f64() / 60.0;
    println!("\n{}, {minutes:.1} min", summary(&outcomes));
    Ok(!outcomes.iter().any(|o| matches!(o.verdict, Verdict::Failed(_))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(verdict: Verdict) -> Outcome {
        Outcome { name: "x".into(), verdict, seconds: 0.0 }
    }

    #[test]
    fn a_whole_name_means_one_row_and_a_part_all_that_have_it() {
        let all = ["clippy", "clippy-bare", "doc"];
        let rows = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|w| w.to_string()).collect();
            all.into_iter().filter(|n| chosen(n, &wanted, &all)).collect::<Vec<_>>()
        };
        assert_eq!(rows(&["clippy"]), ["clippy"]);
        assert_eq!(rows(&["clip"]), ["clippy", "clippy-bare"]);
        assert_eq!(rows(&[]).len(), 3);
        assert!(rows(&["nothing"]).is_empty());
    }

    #[test]
    fn the_summary_names_skips_only_if_there_are_any() {
        let mut all = vec![outcome(Verdict::Passed), outcome(Verdict::Failed("y".into()))];
        assert_eq!(summary(&all), "1 passed, 1 failed");
        all.push(outcome(Verdict::Skipped("z".into())));
        assert_eq!(summary(&all), "1 passed, 1 failed, 1 skipped");
        all.push(outcome(Verdict::Before));
        assert_eq!(summary(&all), "2 passed (1 of them before), 1 failed, 1 skipped");
    }
}
