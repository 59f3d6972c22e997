//! One run of a machine: its lines are watched until what is expected came, something forbidden came, the
//! machine ended, or time ran out. QEMU's status says nothing: its own failures look like a guest's.
use crate::judge::{Numbers, Samples};
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
    /// What to type, whenever a line matches the pattern before it.
    pub press: Vec<(String, String)>,
    /// The machine must be silent once everything came, but still there.
    pub halts: bool,
    /// What is asked of the numbers in the lines.
    pub numbers: Numbers,
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
    /// Everything came, but numbers in it are not as they should be.
    Numbers(Vec<String>),
    /// Everything came, but the machine should have halted and did not.
    NotHalted(String),
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
            End::Numbers(problems) => problems.join("; "),
            End::NotHalted(how) => format!("everything expected came, but the machine did not halt: {how}"),
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
    cmd.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = cmd.spawn().with_context(|| format!("cannot start {}", cmd.get_program().display()))?;
    let mut child = Reaped(child);
    let mut keyboard = child.0.stdin.take();
    let lines = lines_of(&mut child.0)?;
    let start = Instant::now();
    let mut deadline = start + expect.limit;
    let mut tally = Tally::new(expect);
    let mut samples = Samples::new(&expect.numbers);
    let mut end = None;
    let verdict = |end: Option<End>, samples: &Samples<'_>, missing: End| match end.unwrap_or(missing) {
        End::Done => Some(samples.problems()).filter(|p| !p.is_empty()).map_or(End::Done, End::Numbers),
        other => other,
    };
    loop {
        let now = Instant::now();
        match lines.recv_timeout(deadline.saturating_duration_since(now)) {
            Ok(raw) => {
                let line = Line::parse(&raw);
                let seconds = start.elapsed().as_secs_f64();
                on_line(&line, seconds);
                samples.hear(&line, seconds);
                let full = line.full();
                for (_, keys) in expect.press.iter().filter(|(pattern, _)| matches(pattern, &full)) {
                    // A machine that has just ended reads nothing any more; its last lines are still coming.
                    let _ = keyboard.as_mut().map(|k| k.write_all(keys.as_bytes()).and_then(|()| k.flush()));
                }
                if end == Some(End::Done) && expect.halts {
                    end = Some(End::NotHalted(format!("it said `{full}`")));
                }
                if end.is_none() {
                    end = tally.hear(&full);
                    if end.is_some() {
                        deadline = deadline.min(Instant::now() + GRACE);
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                return Ok(verdict(end, &samples, End::Timeout(tally.missing())));
            }
            Err(RecvTimeoutError::Disconnected) if end == Some(End::Done) && expect.halts => {
                return Ok(End::NotHalted("it ended".into()));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Ok(verdict(end, &samples, End::Ended(tally.missing())));
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
    use crate::judge::Agree;

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
            ..Expect::default()
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
    fn keys_are_typed_when_their_line_comes() {
        let mut wanted = expect(&[("heard m", 1)], &[], 20_000);
        wanted.press = vec![("ready".into(), "m\n".into())];
        assert_eq!(run("echo ready; read key; echo heard $key", &wanted).0, End::Done);
    }

    #[test]
    fn numbers_are_judged_when_all_was_said() {
        let mut wanted = expect(&[("memory 2", 1)], &[], 20_000);
        let line = "memory".to_string();
        let agree =
            Agree { number: "memory ".into(), line, within: 0, skip: 0, until: String::new(), least: 2 };
        wanted.numbers.agree = vec![agree];
        assert!(matches!(run("echo memory 1; echo memory 2", &wanted).0, End::Numbers(p) if p.len() == 1));
        assert_eq!(run("echo memory 2; echo memory 2", &wanted).0, End::Done);
    }

    #[test]
    fn a_machine_that_halts_says_no_more_and_stays() {
        let mut wanted = expect(&[("halted", 1)], &[], 300);
        wanted.halts = true;
        assert_eq!(run("echo halted; exec sleep 30", &wanted).0, End::Done);
        assert!(matches!(run("echo halted; echo more; exec sleep 30", &wanted).0, End::NotHalted(_)));
        wanted.limit = Duration::from_secs(20);
        assert_eq!(run("echo halted", &wanted).0, End::NotHalted("it ended".into()));
    }

    #[test]
    fn a_silent_machine_is_stopped_in_time() {
        let start = Instant::now();
        let (end, _) = run("exec sleep 30", &expect(&[("never", 1)], &[], 300));
        assert_eq!(end, End::Timeout(vec!["never".into()]));
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}
