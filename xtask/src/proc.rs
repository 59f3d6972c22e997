//! Starting other programs: with their output kept, or shown, and with a time limit.
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How a program is named in messages: its own words, without the environment.
pub fn show(cmd: &Command) -> String {
    let words = std::iter::once(cmd.get_program()).chain(cmd.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Runs `cmd` to its end and gives its standard output. An error carries the end of what it said.
pub fn output(cmd: &mut Command) -> Result<String> {
    let out = cmd.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{}`", show(cmd)))?;
    if !out.status.success() {
        let said =
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        bail!("`{}` failed ({}):\n{}", show(cmd), out.status, tail(&said, 20));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Runs `cmd` with its output going where ours goes.
pub fn run(cmd: &mut Command) -> Result<()> {
    let status =
        cmd.stdin(Stdio::null()).status().with_context(|| format!("cannot start `{}`", show(cmd)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", show(cmd));
    }
    Ok(())
}

/// Runs `cmd` quietly for at most `limit`; true if it ended well in time.
pub fn quick(cmd: &mut Command, limit: Duration) -> bool {
    let spawned = cmd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let Ok(mut child) = spawned else { return false };
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if start.elapsed() < limit => std::thread::sleep(Duration::from_millis(50)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return false;
            }
        }
    }
}

/// Runs `cmd`, hands each line of its output (both streams) to `on_line`, and gives everything it said
/// with whether it ended well.
pub fn lines(cmd: &mut Command, mut on_line: impl FnMut(&str)) -> Result<(bool, String)> {
    let (mut reader, writer) = std::io::pipe()?;
    cmd.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = cmd.spawn().with_context(|| format!("cannot start `{}`", show(cmd)))?;
    // The command keeps the writing ends: drop them here, or the pipe never ends.
    cmd.stdout(Stdio::null()).stderr(Stdio::null());
    let (mut all, mut pending, mut buf) = (String::new(), Vec::new(), [0u8; 4096]);
    loop {
        let n = reader.read(&mut buf)?;
        if n == 0 {
            break;
        }
        pending.extend_from_slice(&buf[..n]);
        while let Some(end) = pending.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            on_line(line.trim_end());
            all.push_str(&line);
        }
    }
    if !pending.is_empty() {
        let line = String::from_utf8_lossy(&pending).into_owned();
        on_line(line.trim_end());
        all.push_str(&line);
    }
    Ok((child.wait()?.success(), all))
}

/// The last `n` lines of `text`.
pub fn tail(text: &str, n: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(n)..].join("\n")
}

/// Looks a program up in PATH.
pub fn which(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    // GRUB's tools are in sbin, which PATH often lacks for a user without privileges.
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join(name)).find(|file| is_executable(file))
}

/// Whether `file` is a program we may start.
pub fn is_executable(file: &std::path::Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_one_by_one_and_the_last_may_lack_its_newline() {
        let mut seen = Vec::new();
        let mut cmd = Command::new("sh");
        cmd.args(["-c", "echo one; echo two >&2; printf three"]);
        let (ok, all) = lines(&mut cmd, |line| seen.push(line.to_string())).unwrap();
        assert!(ok);
        assert_eq!(seen, ["one", "two", "three"]);
        assert_eq!(all, "one\ntwo\nthree");
    }

    #[test]
    fn a_slow_program_is_stopped() {
        let start = Instant::now();
        assert!(!quick(Command::new("sleep").arg("20"), Duration::from_millis(200)));
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn failure_carries_what_was_said() {
        let err = output(Command::new("sh").args(["-c", "echo because >&2; exit 3"])).unwrap_err();
        assert!(err.to_string().contains("because"));
    }
}
