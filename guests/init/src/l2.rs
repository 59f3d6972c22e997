//! The L2's part: say that user space is there, test, end.

use std::time::Duration;

use crate::words::Words;
use crate::{clock, load, net, sys};

/// How long the clock is watched in a mode that has no length of its own.
const WATCH: Duration = Duration::from_millis(500);
/// How long the network is used in such a mode.
const ECHO: Duration = Duration::from_millis(100);

/// `ticks`: when user space began. Do what `testudo.l2=` says.
///
/// # Errors
/// What failed first.
pub fn run(words: &Words, ticks: u64) -> sys::Verdict {
    let (kernel, cpus) = (sys::line("/proc/sys/kernel/osrelease"), sys::cpus());
    println!("@testudo l2 userland kernel={kernel} cpus={cpus} memory_kb={} ticks={ticks}", sys::memory_kb());
    let devices = words.has("testudo.devices");
    if devices {
        sys::load_modules("l2", |_| None)?;
    }
    let mode = words.get("testudo.l2").unwrap_or("hello");
    let verdict = match mode.split_once(':').unwrap_or((mode, "")) {
        ("hello" | "reboot", _) => {
            let clock = clock::watch(WATCH, cpus, None).report("l2");
            let devices = if devices { load::run(WATCH, "l2").and(network(ECHO)) } else { Ok(()) };
            clock.and(devices)
        }
        ("load", seconds) => loaded(words, Duration::from_secs(seconds.parse().unwrap_or(10))),
        ("shell", _) => sys::shell(),
        _ => Err(format!("unknown mode {mode}")),
    };
    verdict.and(sys::complaints())
}

/// Load of every kind there is, with the clock watched beside it.
fn loaded(words: &Words, duration: Duration) -> sys::Verdict {
    let (cpus, devices) = (sys::cpus(), words.has("testudo.devices"));
    let patience = u32::try_from(words.number("testudo.patience", 1)).unwrap_or(1);
    std::thread::scope(|scope| {
        println!("@testudo l2 load start");
        let watch = scope.spawn(|| clock::watch(duration, cpus, Some(patience)).report("l2"));
        let traffic = scope.spawn(|| if devices { network(duration) } else { Ok(()) });
        let loaded = load::run(duration, "l2");
        let clock = watch.join().map_err(|_| "clock watch died")?;
        let traffic = traffic.join().map_err(|_| "network load died")?;
        clock.and(loaded).and(traffic)
    })
}

fn network(duration: Duration) -> sys::Verdict {
    let result = net::echo(duration);
    match &result {
        Ok(bytes) => println!("@testudo l2 net ok echoed_kb={}", bytes >> 10),
        Err(why) => println!("@testudo l2 net failed {why}"),
    }
    result.map(|_| ())
}
