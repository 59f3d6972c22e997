//! System tests: whole machines from the table in `tests/scenarios.toml`, two at a time.
use super::{Outcome, TestOptions, Verdict, log_path};
use crate::layout::Layout;
use crate::qemu::{Accel, Boot};
use crate::scenario::{Scenario, Workshop};
use crate::session::{Log, watch};
use crate::setup;
use crate::{tools, ui};
use anyhow::{Context, Result};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

/// The table.
pub fn load(layout: &Layout) -> Result<Vec<Scenario>> {
    let path = layout.repo("tests/scenarios.toml");
    let text = std::fs::read_to_string(&path).with_context(|| layout.show(&path))?;
    Scenario::table(&text).with_context(|| layout.show(&path))
}

/// Runs scenarios, `options.jobs` at a time, and reports each as it ends.
pub fn run(layout: &Layout, options: &TestOptions, scenarios: &[Scenario]) -> Vec<Outcome> {
    if scenarios.is_empty() {
        return Vec::new();
    }
    // What all need is fetched before the clock of any runs.
    if let Err(e) = setup::require(layout, &tools::QEMU, options.build.policy()) {
        ui::step(&format!("{e:#}"));
    }
    let shop = Workshop::new(layout, options.build.clone());
    let (next, outcomes) = (Mutex::new(0), Mutex::new(Vec::new()));
    let take = || {
        let mut next = next.lock().unwrap_or_else(|e| e.into_inner());
        *next += 1;
        scenarios.get(*next - 1)
    };
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.clamp(1, 16) {
            scope.spawn(|| {
                while let Some(scenario) = take() {
                    let start = Instant::now();
                    let verdict = one(&shop, scenario);
                    let outcome = Outcome {
                        name: scenario.name.clone(),
                        verdict,
                        seconds: start.elapsed().as_secs_f64(),
                    };
                    let mut all = outcomes.lock().unwrap_or_else(|e| e.into_inner());
                    outcome.report(layout);
                    all.push(outcome);
                }
            });
        }
    });
    outcomes.into_inner().unwrap_or_else(|e| e.into_inner())
}

fn one(shop: &Workshop, scenario: &Scenario) -> Verdict {
    if scenario.machine.accel == Accel::Kvm && !Path::new("/dev/kvm").exists() {
        return Verdict::Skipped("no /dev/kvm".into());
    }
    let log = log_path(shop.layout, &scenario.name);
    match boot(shop, scenario, &log) {
        Ok(verdict) => verdict,
        Err(e) => {
            let text = format!("{e:#}");
            let _ = std::fs::create_dir_all(shop.layout.target("test-logs"));
            let _ = std::fs::write(&log, &text);
            Verdict::Failed(text.lines().next().unwrap_or("").to_string())
        }
    }
}

fn boot(shop: &Workshop, scenario: &Scenario, path: &Path) -> Result<Verdict> {
    let prepared = scenario.prepare(shop, &format!("test-{}.iso", scenario.name))?;
    let mut cmd = prepared.machine.command(shop.layout, shop.build.policy())?;
    let mut log = Log::create(path, false)?;
    let end = watch(&mut cmd, &scenario.expectations(), |line, seconds| log.line(line, seconds))?;
    if let Boot::Iso(iso) = &prepared.machine.boot {
        // A hundred megabytes that the scenario's row makes again in a second.
        let _ = std::fs::remove_file(iso);
    }
    Ok(if end.ok() { Verdict::Passed } else { Verdict::Failed(end.describe()) })
}
