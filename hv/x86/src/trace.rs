//! The trace rings of the CPUs: who writes what, and records in words.
//!
//! `trace=` chooses what is recorded. With `exits` (the default) every exit, hypercall, schedule-in and -out and
//! line of the log is; with `all` every entry with what it injects, every reflected exit, entry of L2 and flush
//! besides.

use crate::cpu::{instr, percpu, percpu::PerCpu};
use crate::guest::arch::X86;
use boot::cmdline::Trace;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, Ordering};
use hv_core::sched::WhyPut;
use hv_core::trace::{Kind, Level, NOBODY, Record, TraceRing};
use hv_core::vcpu::Vcpu;
use vsvm::layout::{Event, EventKind, ExitCode, Vmcb};

/// Records of a CPU's ring: 64 KiB.
const RECORDS: usize = 2048;

/// A CPU's ring.
pub type Ring = TraceRing<RECORDS>;

/// Target of log records that do not go into the trace: those that show it.
pub const UNTRACED: &str = "untraced";

/// What is recorded: 0 nothing, 1 exits and what is rare, 2 all.
static LEVEL: AtomicU8 = AtomicU8::new(0);

/// From now on CPUs that start get a ring; this one, too.
pub fn init(what: Trace) {
    LEVEL.store(what as u8, Ordering::Relaxed);
    start_cpu(percpu::this());
}

/// Gives `cpu` its ring, for ever. Without memory for one it has none.
pub fn start_cpu(cpu: &PerCpu) {
    if LEVEL.load(Ordering::Relaxed) == Trace::Off as u8 {
        return;
    }
    let Some(ring) = Ring::new(cpu.index, crate::time::tsc_khz()) else {
        return log::warn!("no memory for the trace of CPU {}", cpu.index);
    };
    cpu.trace.call_once(|| alloc::boxed::Box::leak(ring));
}

/// What the loop of a CPU writes with, without looking anything up.
#[derive(Clone, Copy, Debug)]
pub struct Tracer {
    /// Where exits go.
    exits: Option<&'static Ring>,
    /// The same ring, if all else is wanted.
    all: Option<&'static Ring>,
    /// The vCPU that is run.
    vcpu: u16,
}

impl Tracer {
    /// For the CPU this runs on.
    pub fn new(cpu: &'static PerCpu) -> Self {
        let exits = cpu.trace.get().copied();
        let all = exits.filter(|_| LEVEL.load(Ordering::Relaxed) == Trace::All as u8);
        Tracer { exits, all, vcpu: NOBODY }
    }

    /// `vcpu` is run from now on.
    pub fn schedule_in(&mut self, vcpu: &Vcpu<X86>) {
        self.vcpu = hv_core::trace::vcpu(vcpu.domain().id().0, vcpu.id().0);
        self.rare(Level::L1, Kind::SCHEDULE_IN, 0, 0, 0);
    }

    /// The vCPU is put back.
    pub fn schedule_out(&mut self, why: WhyPut) {
        self.rare(Level::L1, Kind::SCHEDULE_OUT, why as u32, 0, 0);
        self.vcpu = NOBODY;
    }

    /// The guest has been left.
    #[inline(always)]
    pub fn exit(&self, level: Level, vmcb: &Vmcb) {
        if let Some(ring) = self.exits {
            let control = &vmcb.control;
            let fault = control.exit_code == ExitCode::NPF.0;
            let info = if fault { control.exit_info_2 } else { control.exit_info_1 };
            push(ring, self.vcpu, level, Kind::EXIT, control.exit_code as u32, vmcb.save.rip, info);
        }
    }

    /// The guest is about to be entered.
    #[inline(always)]
    pub fn entry(&self, level: Level, vmcb: &Vmcb) {
        if let Some(ring) = self.all {
            let control = &vmcb.control;
            let event = control.event_inj as u32;
            push_cold(ring, self.vcpu, level, Kind::ENTRY, event, vmcb.save.rip, control.int_ctl);
        }
    }

    /// What is recorded with the exits, and rare.
    pub fn rare(&self, level: Level, kind: Kind, code: u32, a: u64, b: u64) {
        if let Some(ring) = self.exits {
            push(ring, self.vcpu, level, kind, code, a, b);
        }
    }

    /// What is recorded with `trace=all` only.
    #[inline(always)]
    pub fn detail(&self, level: Level, kind: Kind, code: u32, a: u64, b: u64) {
        if let Some(ring) = self.all {
            push_cold(ring, self.vcpu, level, kind, code, a, b);
        }
    }
}

#[inline(always)]
fn push(ring: &Ring, vcpu: u16, level: Level, kind: Kind, code: u32, a: u64, b: u64) {
    ring.push(Record { tsc: instr::rdtsc(), vcpu, level, kind, code, a, b });
}

#[cold]
#[inline(never)]
fn push_cold(ring: &Ring, vcpu: u16, level: Level, kind: Kind, code: u32, a: u64, b: u64) {
    push(ring, vcpu, level, kind, code, a, b);
}

/// The ring of the CPU this runs on, if records of this kind are wanted.
fn own(least: Trace) -> Option<&'static Ring> {
    if LEVEL.load(Ordering::Relaxed) < least as u8 {
        return None;
    }
    percpu::this().trace.get().copied()
}

/// The tables of a domain have a new generation.
pub fn flush(generation: u64) {
    if let Some(ring) = own(Trace::All) {
        push(ring, NOBODY, Level::L1, Kind::FLUSH, percpu::this().index, generation, 0);
    }
}

/// A line of the log.
pub fn log(text: fmt::Arguments<'_>) {
    if let Some(ring) = own(Trace::Exits) {
        let mut cut = Cut { ring, bytes: [0; PIECE], len: 0, pieces: 0 };
        let _ = cut.write_fmt(text);
        cut.end();
    }
}

const PIECE: usize = 16;
/// Longer lines are cut.
const MOST_PIECES: usize = 8;

/// Cuts a line into records.
struct Cut {
    ring: &'static Ring,
    bytes: [u8; PIECE],
    len: usize,
    pieces: usize,
}

impl Cut {
    /// Ends the line: by a piece that is not full.
    fn end(&mut self) {
        if self.len == PIECE {
            self.piece();
        }
        self.piece();
    }

    /// Writes what there is.
    fn piece(&mut self) {
        let [a, b] = [0, 8].map(|at| {
            let mut word = [0; 8];
            word.copy_from_slice(&self.bytes[at..at + 8]);
            u64::from_le_bytes(word)
        });
        push(self.ring, NOBODY, Level::L1, Kind::LOG, self.len as u32, a, b);
        (self.bytes, self.len, self.pieces) = ([0; PIECE], 0, self.pieces + 1);
    }
}

impl Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.len == PIECE {
                if self.pieces + 2 > MOST_PIECES {
                    // Room for the end.
                    self.len = PIECE - 1;
                    return Err(fmt::Error);
                }
                self.piece();
            }
            self.bytes[self.len] = byte;
            self.len += 1;
        }
        Ok(())
    }
}

/// The last `n` records of `cpu`, one line each, oldest first; `now` is the time stamp that they are counted from.
pub fn tail(cpu: &PerCpu, n: usize, now: u64, say: &mut dyn FnMut(fmt::Arguments<'_>)) {
    let Some(ring) = cpu.trace.get() else { return say(format_args!("CPU {}: no trace", cpu.index)) };
    say(format_args!("the last of {} events of CPU {} (microseconds before now):", ring.pushed(), cpu.index));
    let mut line = Line { text: [0; PIECE * MOST_PIECES], len: 0 };
    for record in ring.tail(n) {
        let when = When { tsc: record.tsc, now, khz: ring.khz() };
        if record.kind != Kind::LOG {
            say(format_args!("  {when} {}", InWords(record)));
        } else if line.add(&record) {
            say(format_args!("  {when} log: {}", line.text[..line.len].escape_ascii()));
            line.len = 0;
        }
    }
}

/// A line of the log that is put together again.
struct Line {
    text: [u8; PIECE * MOST_PIECES],
    len: usize,
}

impl Line {
    /// Adds a piece; whether it was the last one.
    fn add(&mut self, piece: &Record) -> bool {
        let mut bytes = [0; PIECE];
        bytes[..8].copy_from_slice(&piece.a.to_le_bytes());
        bytes[8..].copy_from_slice(&piece.b.to_le_bytes());
        let new = &bytes[..PIECE.min(piece.code as usize)];
        let room = &mut self.text[self.len..];
        let fits = new.len().min(room.len());
        room[..fits].copy_from_slice(&new[..fits]);
        self.len += fits;
        new.len() < PIECE
    }
}

/// Microseconds from a time stamp to another one.
struct When {
    tsc: u64,
    now: u64,
    khz: u64,
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Time stamps of other CPUs may lie in this one's future.
        let ticks = i128::from(self.now.wrapping_sub(self.tsc) as i64);
        let tenths = ticks * 10_000 / i128::from(self.khz.max(1));
        let (sign, tenths) = if tenths < 0 { ("+", -tenths) } else { ("-", tenths) };
        write!(f, "{sign}{}.{}", tenths / 10, tenths % 10)
    }
}

/// A record for people, without its time.
struct InWords(Record);

impl fmt::Display for InWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { vcpu, level, kind, code, a, b, .. } = self.0;
        if vcpu != NOBODY {
            write!(f, "d{}v{} ", vcpu >> 8, vcpu & 0xff)?;
        }
        match kind {
            Kind::EXIT => write!(f, "{level:?} exit {} at {a:#x} info {b:#x}", exit(code)),
            Kind::ENTRY if code == 0 => write!(f, "{level:?} entered at {a:#x}, interrupt control {b:#x}"),
            Kind::ENTRY => {
                let event = Event(code.into());
                write!(
                    f,
                    "{level:?} entered at {a:#x}, interrupt control {b:#x}, injected {}",
                    Injected(event)
                )
            }
            Kind::REFLECT => write!(f, "reflected to L1: {}", exit(code)),
            Kind::NESTED_ENTRY => write!(f, "L1 enters L2, vmcb12 at {a:#x}"),
            Kind::HYPERCALL => write!(f, "hypercall {code} (first argument {a:#x}): {}", b as i64),
            Kind::SCHEDULE_IN => write!(f, "scheduled in"),
            Kind::SCHEDULE_OUT => write!(f, "scheduled out: {}", why(code)),
            Kind::FLUSH => write!(f, "flush: generation {a}"),
            Kind(other) => write!(f, "kind {other} code {code:#x} {a:#x} {b:#x}"),
        }
    }
}

/// The exit code that was cut to 32 bits.
fn exit(code: u32) -> ExitCode {
    ExitCode::from_hardware(code.into())
}

fn why(code: u32) -> &'static str {
    const ALL: [(WhyPut, &str); 5] = [
        (WhyPut::Blocked, "it waits"),
        (WhyPut::SliceEnd, "its slice is over"),
        (WhyPut::Preempted, "another comes first"),
        (WhyPut::Yield, "it yields"),
        (WhyPut::Offline, "it may not run"),
    ];
    ALL.iter().find(|(why, _)| *why as u32 == code).map_or("?", |(_, name)| name)
}

struct Injected(Event);

impl fmt::Display for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vector = self.0.vector();
        match self.0.kind() {
            EventKind::Nmi => f.write_str("NMI"),
            EventKind::Exception => f.write_str(crate::trap::name(vector.into())),
            kind => write!(f, "{kind:?} {vector:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use std::string::{String, ToString};
    use std::vec::Vec;

    fn words(kind: Kind, code: u32, a: u64, b: u64) -> String {
        InWords(Record { tsc: 7_000, vcpu: 0x203, level: Level::L2, kind, code, a, b }).to_string()
    }

    #[test]
    fn records_are_named() {
        assert_eq!(
            words(Kind::EXIT, 0x400, 0x1000, 0xfee0_0000),
            "d2v3 L2 exit NPF at 0x1000 info 0xfee00000"
        );
        assert!(words(Kind::EXIT, ExitCode::INVALID.0 as u32, 0, 0).contains("INVALID"));
        assert!(words(Kind::ENTRY, Event::NMI.0 as u32, 0, 0).ends_with("injected NMI"));
        assert!(words(Kind::ENTRY, Event::exception(14, Some(2)).0 as u32, 0, 0).ends_with("injected #PF"));
        assert!(words(Kind::SCHEDULE_OUT, WhyPut::Offline as u32, 0, 0).ends_with("it may not run"));
        assert!(
            words(Kind::HYPERCALL, 29, 2, -38i64 as u64).contains("hypercall 29 (first argument 0x2): -38")
        );
        assert!(words(Kind(200), 1, 2, 3).contains("kind 200"));
    }

    #[test]
    fn time_stamps_of_any_order_and_frequency_print() {
        let when = |tsc, now, khz| When { tsc, now, khz }.to_string();
        assert_eq!(when(7_000, 10_000, 1_000), "-3000.0");
        assert_eq!(when(10_000, 7_000, 2_000_000), "+1.5");
        assert_eq!(when(u64::MAX, 0, 1_000), "-1.0");
        assert_eq!(when(0, 1 << 63, 0), "+9223372036854775808000.0");
    }

    #[test]
    fn a_line_of_the_log_is_cut_into_records() {
        let ring: &'static Ring = Box::leak(Ring::new(0, 1).unwrap());
        let shown = || {
            let mut all = Vec::new();
            let cpu = PerCpu::new(0);
            cpu.trace.call_once(|| ring);
            tail(&cpu, RECORDS, 0, &mut |line| all.push(line.to_string()));
            all.pop().unwrap()
        };
        let said = |text: &str| {
            let before = ring.pushed();
            let mut cut = Cut { ring, bytes: [0; PIECE], len: 0, pieces: 0 };
            let _ = cut.write_fmt(format_args!("{text}"));
            cut.end();
            let pieces: Vec<_> = ring.tail((ring.pushed() - before) as usize).collect();
            (pieces.iter().map(|p| p.code).collect::<Vec<_>>(), pieces[0].a.to_le_bytes())
        };
        assert_eq!(said("short").0, [5]);
        assert!(shown().ends_with("log: short"));
        assert_eq!(said("0123456789abcdefXY"), (Vec::from([16, 2]), *b"01234567"));
        assert!(shown().ends_with("log: 0123456789abcdefXY"));
        assert_eq!(said("0123456789abcdef"), (Vec::from([16, 0]), *b"01234567"));
        assert!(shown().ends_with("log: 0123456789abcdef"));
        assert_eq!(said(&"x".repeat(1000)).0, [16, 16, 16, 16, 16, 16, 16, 15]);
    }
}
