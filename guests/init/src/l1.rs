//! The L1's part: load KVM, run L2 guests, measure.

use std::process::Command;
use std::time::Duration;

use crate::words::Words;
use crate::{load, sys};

const VMM: &str = "/vmm";
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const KERNEL: &str = "/l2/kernel";
const INITRD: &str = "/l2/initrd";

/// Carry out the steps of `testudo.l1=` in order; a step that fails does not keep the later ones from running.
///
/// # Errors
/// The first failure.
pub fn run(words: &Words) -> sys::Verdict {
    sys::mark(0x40);
    let mut verdict = Ok(());
    let mut background = None;
    for step in words.get("testudo.l1").unwrap_or_default().split(',').filter(|s| !s.is_empty()) {
        let result = match step {
            "modules" => modules(words),
            "info" => info(),
            "bench" => bench(words),
            "l2" => guests(words),
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
    verdict
}

fn info() -> sys::Verdict {
    let hypervisor = match sys::line("/sys/hypervisor/type") {
        kind if kind.is_empty() => "none".to_string(),
        kind => kind,
    };
    println!(
        "@testudo l1 kernel={} cpus={} memory_kb={} hypervisor={hypervisor} svm={} kvm={} clocksource={}",
        sys::line("/proc/sys/kernel/osrelease"),
        sys::cpus(),
        sys::memory_kb(),
        u8::from(sys::cpu_flag("svm")),
        u8::from(std::path::Path::new("/dev/kvm").exists()),
        sys::line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
    );
    Ok(())
}

/// Load `/modules/order` in order. Modules for other machines may be in the list: only `kvm*` decide.
fn modules(words: &Words) -> sys::Verdict {
    let order = std::fs::read_to_string("/modules/order").map_err(|e| format!("/modules/order: {e}"))?;
    let mut verdict = Ok(());
    for name in order.split_whitespace().map(|n| n.trim_end_matches(".ko")) {
        let params = match name {
            "kvm-amd" => words.get("testudo.kvm_amd").or_else(|| words.get("testudo.param.kvm-amd")),
            _ => words.get(&format!("testudo.param.{name}")),
        };
        let result =
            sys::load_module(&format!("/modules/{name}.ko"), &params.unwrap_or_default().replace(',', " "));
        sys::report("l1", &format!("module {name}"), &result);
        if name.starts_with("kvm") {
            verdict = verdict.and(result.map_err(|why| format!("module {name} {why}")));
        }
    }
    verdict
}

fn bench(words: &Words) -> sys::Verdict {
    let mut command = Command::new(VMM);
    command.arg("bench");
    for (option, word) in [("--ops", "testudo.ops"), ("--rounds", "testudo.rounds")] {
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

/// `testudo.repeat` rounds of `testudo.count` guests at once.
fn guests(words: &Words) -> sys::Verdict {
    let count = words.number("testudo.count", 1);
    let mut verdict = Ok(());
    for round in 1..=words.number("testudo.repeat", 1) {
        let results: Vec<sys::Verdict> = std::thread::scope(|scope| {
            let guests: Vec<_> =
                (1..=count).map(|index| scope.spawn(move || guest(words, round, index, count))).collect();
            guests.into_iter().map(|g| g.join().unwrap_or_else(|_| Err("guest thread died".into()))).collect()
        });
        verdict = results.into_iter().fold(verdict, Result::and);
    }
    verdict
}

fn guest(words: &Words, round: u64, index: u64, count: u64) -> sys::Verdict {
    let vmm = words.get("testudo.vmm").unwrap_or("vmm");
    let mode = words.get("testudo.l2").unwrap_or("hello");
    let mut command = match vmm {
        "vmm" => with_vmm(words, mode, index, count),
        "qemu" => with_qemu(words, mode),
        _ => return Err(format!("unknown vmm {vmm}")),
    };
    println!("@testudo l1 l2 start round={round} index={index} vmm={vmm}");
    let status = command.status().map_err(|e| format!("{vmm}: {e}"))?.code().unwrap_or(-1);
    // An L2 whose task is to reboot always does; the VMM says so when it has had enough.
    let good = status == if vmm == "vmm" && mode == "reboot" { 3 } else { 0 };
    println!(
        "@testudo l1 l2 end round={round} index={index} status={status} {}",
        if good { "ok" } else { "failed" }
    );
    if good { Ok(()) } else { Err(format!("l2 status {status}")) }
}

fn cmdline(words: &Words, mode: &str) -> String {
    let extra = words.get("testudo.l2args").unwrap_or_default().replace(',', " ");
    format!("console=ttyS0 panic=-1 testudo.l2={mode} {extra}")
}

fn with_vmm(words: &Words, mode: &str, index: u64, count: u64) -> Command {
    let prefix = if count == 1 { "(l2) ".to_string() } else { format!("(l2.{index}) ") };
    let mut command = Command::new(VMM);
    command.args(["boot", "--kernel", KERNEL, "--initrd", INITRD]);
    command.args(["--memory", words.get("testudo.memory").unwrap_or("128M")]);
    command.args(["--cpus", words.get("testudo.cpus").unwrap_or("1")]);
    command.args(["--cmdline", &cmdline(words, mode), "--prefix", &prefix]);
    command.args(["--timeout", words.get("testudo.timeout").unwrap_or("300")]);
    command.args(["--reboots", if mode == "reboot" { "2" } else { "0" }]);
    if mode == "shell" {
        command.arg("--stdin");
    }
    command
}

/// QEMU's own exit status says nothing about the guest; the L2's lines do.
fn with_qemu(words: &Words, mode: &str) -> Command {
    let mut command = Command::new(QEMU);
    command.args(["-accel", "kvm", "-cpu", "host", "-nographic", "-nodefaults", "-serial", "stdio"]);
    command.args(["-m", words.get("testudo.memory").unwrap_or("128M")]);
    command.args(["-smp", words.get("testudo.cpus").unwrap_or("1")]);
    command.args(["-kernel", KERNEL, "-initrd", INITRD, "-no-reboot", "-append", &cmdline(words, mode)]);
    command
}
