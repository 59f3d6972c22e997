//! One run of a machine: its lines are watched until what is expected came, something forbidden came, the
//! machine ended, or time ran out. QEMU's status says nothing: its own failures look like a guest's.
use crate::speech::{Line, matches};
use anyhow::{Context, Result};
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// What must and must not be said.
#[derive(Debug, Clone, Default)]
pub struct Expect {
    /// Patterns (`speech::matches`) with how many lines must match.
    pub lines: Vec<(String, usize)>,
    /// Patterns that end the run as failed.
    pub forbidden: Vec<String>,
    /// Time limit.
    pub limit: Duration,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Everything expected came (and the machine ended, or was stopped after it).
    Done,
    /// This line was forbidden.
    Forbidden(String),
    /// The machine ended without having said these.
    Ended(Vec<String>),
    /// Time ran out before these were said.
    Timeout(Vec<String>),
}

impl End {
    /// Whether the run is a success.
    pub fn ok(&self) -> bool {
        *self == End::Done
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let missing = |what: &[String]| what.iter().map(|m| format!("`{m}`")).collect::<Vec<_>>().join(", ");
        match self {
            End::Done => "everything expected came".into(),
            End::Forbidden(line) => format!("the machine said: {line}"),
            End::Ended(lines) => format!("the machine ended without {}", missing(lines)),
            End::Timeout(lines) => format!("time ran out before {}", missing(lines)),
        }
    }
}

/// How long a machine may take to power off once everything came, or to say more after a forbidden line.
const GRACE: Duration = Duration::from_secs(10);

/// A child that does not outlive us.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `cmd` and gives each line with its time since the start to `on_line`.
pub fn watch(cmd: &mut Command, expect: &Expect, mut on_line: impl FnMut(&Line, f64)) -> Result<End> {
    cmd.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = cmd.spawn().with_context(|| format!("cannot start {}", cmd.get_program().display()))?;
    let mut child = Reaped(child);
    let lines = lines_of(&mut child.0)?;
    let start = Instant::now();
    let mut deadline = start + expect.limit;
    let mut tally = Tally::new(expect);
    let mut end = None;
    loop {
        let now = Instant::now();
        match lines.recv_timeout(deadline.saturating_duration_since(now)) {
            Ok(raw) => {
                let line = Line::parse(&raw);
                on_line(&line, start.elapsed().as_secs_f64());
                if end.is_none() {
                    end = tally.hear(&line.full());
                    if end.is_some() {
                        deadline = deadline.min(Instant::now() + GRACE);
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => return Ok(end.unwrap_or_else(|| End::Timeout(tally.missing()))),
            Err(RecvTimeoutError::Disconnected) => {
                return Ok(end.unwrap_or_else(|| End::Ended(tally.missing())));
            }
        }
    }
}

/// Counts what came.
struct Tally<'a> {
    expect: &'a Expect,
    seen: Vec<usize>,
}

impl<'a> Tally<'a> {
    fn new(expect: &'a Expect) -> Tally<'a> {
        Tally { expect, seen: vec![0; expect.lines.len()] }
    }

    fn hear(&mut self, line: &str) -> Option<End> {
        if self.expect.forbidden.iter().any(|p| matches(p, line)) {
            return Some(End::Forbidden(line.to_string()));
        }
        for (count, (pattern, _)) in self.seen.iter_mut().zip(&self.expect.lines) {
            *count += usize::from(matches(pattern, line));
        }
        (!self.expect.lines.is_empty() && self.missing().is_empty()).then_some(End::Done)
    }

    fn missing(&self) -> Vec<String> {
        let all = self.seen.iter().zip(&self.expect.lines);
        all.filter(|(seen, (_, want))| *seen < want).map(|(_, (pattern, _))| pattern.clone()).collect()
    }
}

/// Both streams of a child, line by line; an unfinished line is handed out when its stream ends.
fn lines_of(child: &mut Child) -> Result<Receiver<Vec<u8>>> {
    let (send, receive) = channel();
    let streams: [Option<Box<dyn Read + Send>>; 2] = [
        child.stdout.take().map(|s| Box::new(s) as Box<dyn Read + Send>),
        child.stderr.take().map(|s| Box::new(s) as Box<dyn Read + Send>),
    ];
    for mut stream in streams.into_iter().flatten() {
        let send = send.clone();
        std::thread::spawn(move || {
            let (mut pending, mut buf) = (Vec::new(), [0; 8192]);
            while let Ok(n @ 1..) = stream.read(&mut buf) {
                for &byte in &buf[..n] {
                    if byte == b'\n' {
                        let _ = send.send(std::mem::take(&mut pending));
                    } else {
                        pending.push(byte);
                    }
                }
            }
            if !pending.is_empty() {
                let _ = send.send(pending);
            }
        });
    }
    Ok(receive)
}

/// Writes lines to a log file and, if wanted, to the screen.
#[derive(Debug)]
pub struct Log {
    file: std::io::BufWriter<std::fs::File>,
    screen: bool,
}

impl Log {
    /// Starts the log at `path`.
    pub fn create(path: &std::path::Path, screen: bool) -> Result<Log> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let file =
            std::fs::File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Log { file: std::io::BufWriter::new(file), screen })
    }

    /// Notes one line.
    pub fn line(&mut self, line: &Line, seconds: f64) {
        let _ = writeln!(self.file, "[{seconds:8.3}] {}", line.full());
        let _ = self.file.flush();
        if self.screen {
            let _ = writeln!(std::io::stdout(), "{}", line.painted());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, expect: &Expect) -> (End, Vec<String>) {
        let mut heard = Vec::new();
        let end =
            watch(Command::new("sh").args(["-c", script]), expect, |l, _| heard.push(l.full())).unwrap();
        (end, heard)
    }

    fn expect(lines: &[(&str, usize)], forbidden: &[&str], ms: u64) -> Expect {
        Expect {
            lines: lines.iter().map(|(l, n)| (l.to_string(), *n)).collect(),
            forbidden: forbidden.iter().map(|f| f.to_string()).collect(),
            limit: Duration::from_millis(ms),
        }
    }

    #[test]
    fn lines_decide_not_the_status() {
        let wanted = expect(&[("done ok", 2)], &["panic"], 20_000);
        assert_eq!(run("echo '(a) done ok'; echo '(b) done ok'; exit 1", &wanted).0, End::Done);
        assert_eq!(run("echo '(a) done ok'", &wanted).0, End::Ended(vec!["done ok".into()]));
        let (end, heard) = run("echo 'kernel panic here'; echo more; echo done ok; echo done ok", &wanted);
        assert_eq!(end, End::Forbidden("kernel panic here".into()));
        assert_eq!(heard.len(), 4, "what follows a panic is still shown");
    }

    #[test]
    fn a_silent_machine_is_stopped_in_time() {
        let start = Instant::now();
        let (end, _) = run("exec sleep 30", &expect(&[("never", 1)], &[], 300));
        assert_eq!(end, End::Timeout(vec!["never".into()]));
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}
