//! The L2's part: say that user space is there, test, end.

use std::time::Duration;

use crate::words::Words;
use crate::{clock, load, sys};

/// How long the clock is watched in a mode that has no length of its own.
const WATCH: Duration = Duration::from_millis(500);

/// Do what `testudo.l2=` says.
///
/// # Errors
/// What failed first.
pub fn run(words: &Words) -> sys::Verdict {
    let (kernel, cpus) = (sys::line("/proc/sys/kernel/osrelease"), sys::cpus());
    println!("@testudo l2 userland kernel={kernel} cpus={cpus} memory_kb={}", sys::memory_kb());
    let mode = words.get("testudo.l2").unwrap_or("hello");
    match mode.split_once(':').unwrap_or((mode, "")) {
        ("hello" | "reboot", _) => clock::watch(WATCH, cpus).report("l2"),
        ("load", seconds) => {
            let duration = Duration::from_secs(seconds.parse().unwrap_or(10));
            std::thread::scope(|scope| {
                let watch = scope.spawn(|| clock::watch(duration, cpus));
                let loaded = load::run(duration, "l2");
                let sanity = watch.join().map_err(|_| "clock watch died")?;
                sanity.report("l2").and(loaded)
            })
        }
        ("shell", _) => sys::shell(),
        _ => Err(format!("unknown mode {mode}")),
    }
}
