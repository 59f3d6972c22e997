//! What the kernel offers, as far as std has no name for it.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, IntoRawFd};

/// Result of a test: what went wrong, in a few words without line breaks.
pub type Verdict = Result<(), String>;

/// Mount the kernel's file systems and take the console as standard input and output. As process 1 there is nobody to
/// report a failure to; whatever is missing shows up in the tests.
pub fn prepare() {
    for (kind, target) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp"), ("tmpfs", "/run")]
    {
        // The directory may be there already.
        let _ = std::fs::create_dir_all(target);
        mount(kind, target);
    }
    if let Ok(console) = File::options().read(true).write(true).open("/dev/console") {
        let fd = console.into_raw_fd();
        for standard in 0..3 {
            // SAFETY: replaces one of our descriptors by another of ours.
            unsafe { libc::dup2(fd, standard) };
        }
    }
    // Warnings and up only: the kernel's chatter shall not cut result lines.
    let _ = std::fs::write("/proc/sys/kernel/printk", "4");
}

fn mount(kind: &str, target: &str) {
    let (Ok(kind), Ok(target)) = (CString::new(kind), CString::new(target)) else { return };
    // SAFETY: all three strings end in NUL and outlive the call; no data argument.
    unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
}

/// Print `@testudo LEVEL WHAT ok`, or `failed WHY`.
pub fn report(level: &str, what: &str, verdict: &Verdict) {
    match verdict {
        Ok(()) => println!("@testudo {level} {what} ok"),
        Err(why) => println!("@testudo {level} {what} failed {}", why.replace('\n', " ")),
    }
}

/// Contents of a small file, without white space at its ends; empty if there is none.
pub fn line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().into()
}

/// Number of CPUs that are up.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// `MemTotal` in KiB.
pub fn memory_kb() -> u64 {
    let info = line("/proc/meminfo");
    info.lines()
        .find_map(|l| l.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// Whether /proc/cpuinfo lists CPU flag `name`.
pub fn cpu_flag(name: &str) -> bool {
    line("/proc/cpuinfo")
        .lines()
        .find(|l| l.starts_with("flags"))
        .is_some_and(|l| l.split(' ').any(|f| f == name))
}

/// Load module file `path` with `params` (space-separated).
///
/// # Errors
/// The error number in words.
pub fn load_module(path: &str, params: &str) -> Verdict {
    let file = File::open(path).map_err(|e| format!("{path}: {e}"))?;
    let params = CString::new(params).map_err(|e| e.to_string())?;
    // SAFETY: an open file and a string that ends in NUL; both outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), params.as_ptr(), 0) };
    if result == 0 {
        return Ok(());
    }
    match std::io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        e => Err(format!("errno={}", e.raw_os_error().unwrap_or(0))),
    }
}

/// Load `/modules/order` in order, each with its parameters, which commas separate. Modules for other machines may be
/// in the list: only `kvm*` and `virtio*` decide.
///
/// # Errors
/// The first that failed of those.
pub fn load_modules<'a>(level: &str, params: impl Fn(&str) -> Option<&'a str>) -> Verdict {
    let order = std::fs::read_to_string("/modules/order").map_err(|e| format!("/modules/order: {e}"))?;
    let mut verdict = Ok(());
    for name in order.split_whitespace().map(|n| n.trim_end_matches(".ko")) {
        let params = params(name).unwrap_or_default().replace(',', " ");
        let result = load_module(&format!("/modules/{name}.ko"), &params);
        report(level, &format!("module {name}"), &result);
        if name.starts_with("kvm") || name.starts_with("virtio") {
            verdict = verdict.and(result.map_err(|why| format!("module {name} {why}")));
        }
    }
    verdict
}

/// Unload module `name`.
///
/// # Errors
/// The error number in words: it may be in use.
pub fn unload_module(name: &str) -> Verdict {
    let text = CString::new(name).map_err(|e| e.to_string())?;
    // SAFETY: a string that ends in NUL and outlives the call.
    match unsafe { libc::syscall(libc::SYS_delete_module, text.as_ptr(), libc::O_NONBLOCK) } {
        0 => Ok(()),
        _ => Err(format!("module {name} stays: {}", std::io::Error::last_os_error())),
    }
}

/// What a healthy kernel does not write into its log: lost time, stuck processors, broken assumptions.
const COMPLAINTS: [&str; 7] = [
    "soft lockup",
    "rcu: INFO",
    "as unstable",
    "blocked for more than",
    "WARNING: CPU",
    "unchecked MSR access",
    "nobody cared",
];

/// Judge the kernel's log, of which the console shows errors alone.
///
/// # Errors
/// The first complaint.
pub fn complaints() -> Verdict {
    const READ_ALL: libc::c_int = 3;
    let mut log = vec![0u8; 1 << 20];
    let room = log.len() as libc::c_int;
    // SAFETY: the kernel writes at most `room` bytes to a buffer of that size.
    let length = unsafe { libc::klogctl(READ_ALL, log.as_mut_ptr().cast(), room) };
    log.truncate(usize::try_from(length).map_err(|_| "no kernel log")?);
    complaint(&String::from_utf8_lossy(&log))
}

fn complaint(log: &str) -> Verdict {
    // The early calibration of the TSC is a guess, which an emulator that pauses makes worse.
    let bad = |line: &&str| COMPLAINTS.iter().any(|c| line.contains(c)) && !line.contains("'tsc-early'");
    log.lines().find(bad).map_or(Ok(()), |line| Err(format!("kernel log: {line}")))
}

/// A busybox shell on the console, until it ends.
///
/// # Errors
/// There is none.
pub fn shell() -> Verdict {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new("/bin/busybox");
    command.arg("sh").env("PATH", "/bin:/sbin:/usr/bin:/usr/sbin:/").env("PS1", "testudo# ");
    // SAFETY: the closure only makes system calls: a session of its own, with standard input as its terminal.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            libc::ioctl(0, libc::TIOCSCTTY, 0);
            Ok(())
        });
    }
    command.status().map(|_| ()).map_err(|e| format!("/bin/busybox: {e}"))
}

/// Power off; if the kernel can't, stop here.
pub fn poweroff() -> ! {
    end(libc::RB_POWER_OFF)
}

/// Reboot; if the kernel can't, stop here.
pub fn reboot() -> ! {
    end(libc::RB_AUTOBOOT)
}

fn end(how: libc::c_int) -> ! {
    // SAFETY: no arguments by pointer; this program is process 1 and has nothing to lose.
    unsafe {
        libc::sync();
        libc::reboot(how);
        // Without a way to power off the kernel halts, or comes back.
        libc::reboot(libc::RB_HALT_SYSTEM);
    }
    loop {
        std::thread::park();
    }
}

/// The time-stamp counter: ticks since this machine was made, if nobody has changed it.
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSC, and Linux leaves it open to programs.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Phase mark for traces of the hypervisor's exits (see `vmm`'s `mark`).
pub fn mark(n: u32) {
    std::hint::black_box(std::arch::x86_64::__cpuid(0x4f4e_4d00 + (n & 0xff)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_complaint_is_found_in_its_log() {
        assert!(complaint("<6>[    1.0] tsc: Refined TSC clocksource calibration\n<6>[ 2.0] x\n").is_ok());
        let log = "<6>[    1.0] a\n<4>[  9.1] clocksource: Marking clocksource 'tsc' as unstable because\n";
        assert!(complaint(log).is_err_and(|why| why.contains("as unstable")));
    }
}
