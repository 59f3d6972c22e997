//! System tests: whole machines from the table in `tests/scenarios.toml`, two at a time.
use super::memory::Memory;
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
    let mut shop = Workshop::new(layout, options.build.clone());
    shop.patience = options.patience.clamp(1, 100);
    let memory = options.full.then(|| Memory::load(layout, options.restart));
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
                    let outcome = one(&shop, memory.as_ref(), scenario);
                    let mut all = outcomes.lock().unwrap_or_else(|e| e.into_inner());
                    outcome.report(layout);
                    all.push(outcome);
                }
            });
        }
    });
    outcomes.into_inner().unwrap_or_else(|e| e.into_inner())
}

fn one(shop: &Workshop, memory: Option<&Memory>, scenario: &Scenario) -> Outcome {
    let outcome = |verdict, seconds| Outcome { name: scenario.name.clone(), verdict, seconds };
    if scenario.machine.accel == Accel::Kvm && !Path::new("/dev/kvm").exists() {
        return outcome(Verdict::Skipped("no /dev/kvm".into()), 0.0);
    }
    let start = Instant::now();
    let log = log_path(shop.layout, &scenario.name);
    match boot(shop, memory, scenario, &log) {
        Ok((Verdict::Before, seconds)) => outcome(Verdict::Before, seconds),
        Ok((verdict, _)) => outcome(verdict, start.elapsed().as_secs_f64()),
        Err(e) => {
            let text = format!("{e:#}");
            let _ = log.parent().map(std::fs::create_dir_all);
            let _ = std::fs::write(&log, &text);
            let why = text.lines().next().unwrap_or("").to_string();
            outcome(Verdict::Failed(why), start.elapsed().as_secs_f64())
        }
    }
}

/// The verdict, and how many seconds the machine ran, now or then.
fn boot(
    shop: &Workshop,
    memory: Option<&Memory>,
    scenario: &Scenario,
    path: &Path,
) -> Result<(Verdict, f64)> {
    let print = match memory {
        Some(memory) => memory.print(scenario, &scenario.assemble(shop)?)?,
        None => 0,
    };
    if let Some(seconds) = memory.and_then(|m| m.passed(&scenario.name, print)) {
        return Ok((Verdict::Before, seconds));
    }
    let prepared = scenario.prepare(shop, &format!("test-{}.iso", scenario.name.replace('/', "-")))?;
    let mut cmd = prepared.machine.command(shop.layout, shop.build.policy())?;
    let mut log = Log::create(path, false)?;
    let mut expect = scenario.expectations();
    expect.limit *= shop.patience;
    for pace in &mut expect.numbers.pace {
        // Lines arrive later, too.
        pace.within_ms *= u64::from(shop.patience);
    }
    let start = Instant::now();
    let end = watch(&mut cmd, &expect, |line, seconds| log.line(line, seconds))?;
    let seconds = start.elapsed().as_secs_f64();
    if let Boot::Iso(iso) = &prepared.machine.boot {
        // A hundred megabytes that the scenario's row makes again in a second.
        let _ = std::fs::remove_file(iso);
    }
    if let Some(memory) = memory {
        memory.note(&scenario.name, print, end.ok().then_some(seconds))?;
    }
    Ok((if end.ok() { Verdict::Passed } else { Verdict::Failed(end.describe()) }, seconds))
}
