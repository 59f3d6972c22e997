//! The L1's part: load KVM, run L2 guests, measure.

use std::process::Command;
use std::time::Duration;

use crate::words::Words;
use crate::{load, monitors, sys};

const VMM: &str = "/vmm";

/// `ticks`: when user space began. Carry out the steps of `testudo.l1=` in order; a step that fails does not keep the later ones from running.
///
/// # Errors
/// The first failure.
pub fn run(words: &Words, ticks: u64) -> sys::Verdict {
    sys::mark(0x40);
    let mut verdict = Ok(());
    let mut background = None;
    for step in words.get("testudo.l1").unwrap_or_default().split(',').filter(|s| !s.is_empty()) {
        let (name, words) = &words.step(step);
        let result = match name.as_str() {
            "modules" => modules(words),
            "info" => info(ticks),
            "bench" => bench(words),
            "l2" => monitors::run(words, step),
            "load" => {
                let duration = Duration::from_secs(words.number("testudo.load", 10));
                background = Some(std::thread::spawn(move || load::run(duration, "l1")));
                Ok(())
            }
            "shell" => sys::shell(),
            _ => Err(format!("unknown step {step}")),
        };
        if let Err(why) = &result {
            println!("@testudo l1 step {step} failed {why}");
        }
        verdict = verdict.and(result);
    }
    if let Some(thread) = background {
        verdict = verdict.and(thread.join().unwrap_or_else(|_| Err("load died".into())));
    }
    sys::mark(0x41);
    verdict.and(sys::complaints())
}

fn info(ticks: u64) -> sys::Verdict {
    let hypervisor = match sys::line("/sys/hypervisor/type") {
        kind if kind.is_empty() => "none".to_string(),
        kind => kind,
    };
    println!(
        "@testudo l1 kernel={} cpus={} memory_kb={} hypervisor={hypervisor} svm={} kvm={} clocksource={} ticks={ticks}",
        sys::line("/proc/sys/kernel/osrelease"),
        sys::cpus(),
        sys::memory_kb(),
        u8::from(sys::cpu_flag("svm")),
        u8::from(std::path::Path::new("/dev/kvm").exists()),
        sys::line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
    );
    Ok(())
}

fn modules(words: &Words) -> sys::Verdict {
    if std::path::Path::new("/sys/module/kvm_amd").exists() {
        sys::unload_module("kvm_amd")?;
    }
    sys::load_modules("l1", |name| {
        let param = words.get(&format!("testudo.param.{name}"));
        if name == "kvm-amd" { words.get("testudo.kvm_amd").or(param) } else { param }
    })
}

fn bench(words: &Words) -> sys::Verdict {
    let mut command = Command::new(VMM);
    command.arg("bench");
    for (option, word) in
        [("--ops", "testudo.ops"), ("--rounds", "testudo.rounds"), ("--exits", "testudo.exits")]
    {
        if let Some(value) = words.get(word) {
            command.args([option, value]);
        }
    }
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("bench: {status}")),
        Err(e) => Err(format!("{VMM}: {e}")),
    }
}
