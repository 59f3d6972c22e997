//! Exits that an operation costs L0, read from the hypervisor beneath: Testudo's counters by CPUID (domain option
//! `counters=on`, hv/x86/src/guest/stats.rs), or those of `vmm boot --counters` by ports (guests/vmm/src/ports.rs).

use crate::vmcb::exit;
use crate::{cpu, say};

/// Who counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Testudo.
    Cpuid,
    /// Our own monitor.
    Ports,
}

const LEAF: u32 = 0x4f4e_4d80;
const PORT_START: u16 = 0x620;
const PORT_CODE: u16 = 0x624;
const PORT_COUNT: u16 = 0x628;
/// Asks for the sum of all reasons.
const TOTAL: u32 = u32::MAX - 1;

/// Reasons that are told by name; the rest are in the total alone.
const NAMED: [(u64, &str); 13] = [
    (exit::INTR, "INTR"),
    (exit::NMI, "NMI"),
    (exit::VINTR, "VINTR"),
    (exit::CPUID, "CPUID"),
    (exit::IOIO, "IOIO"),
    (exit::MSR, "MSR"),
    (0x80, "VMRUN"),
    (exit::VMMCALL, "VMMCALL"),
    (0x82, "VMLOAD"),
    (0x83, "VMSAVE"),
    (0x84, "STGI"),
    (0x85, "CLGI"),
    (exit::NPF, "NPF"),
];
/// Rounds of a batch.
const BATCH: u64 = 4;
const BATCHES: usize = 41;

/// The named counts, then the total.
type Counts = [u64; NAMED.len() + 1];

impl Source {
    /// By the name on the command line, if it is there and counts.
    pub fn open(name: &str) -> Option<Source> {
        match name {
            "cpuid" if cpu::cpuid(LEAF, 0)[1..] == [*b"Test", *b"udoE", *b"xits"].map(u32::from_le_bytes) => {
                Some(Source::Cpuid)
            }
            "ports" if cpu::inb(PORT_START) == b'T' => {
                cpu::outb(PORT_START, 1);
                Some(Source::Ports)
            }
            _ => None,
        }
    }

    fn read(self, code: u32) -> u64 {
        match self {
            Source::Cpuid => {
                let [a, b, c, d] = cpu::cpuid(LEAF + 1, code);
                (u64::from(b) << 32 | u64::from(a)).wrapping_add(u64::from(d) << 32 | u64::from(c))
            }
            Source::Ports => {
                for (port, byte) in (PORT_CODE..).zip(code.to_le_bytes()) {
                    cpu::outb(port, byte);
                }
                (0..8).fold(0, |n, i| n | u64::from(cpu::inb(PORT_COUNT + i)) << (8 * i))
            }
        }
    }

    fn snapshot(self) -> Counts {
        let mut counts = [0; NAMED.len() + 1];
        for (count, (code, _)) in counts.iter_mut().zip(NAMED) {
            *count = self.read(code as u32);
        }
        counts[NAMED.len()] = self.read(TOTAL);
        counts
    }

    /// What each of [`BATCHES`] calls of `batch` costs, the fewest exits first.
    fn batches(self, mut batch: impl FnMut()) -> [Counts; BATCHES] {
        let mut all = [(); BATCHES].map(|()| -> Counts {
            let before = self.snapshot();
            batch();
            less(&self.snapshot(), &before)
        });
        all.sort_unstable_by_key(|counts| counts[NAMED.len()]);
        all
    }

    /// Prints what a call of `operation` costs.
    pub fn report(self, name: &str, mut operation: impl FnMut()) {
        let frame = self.batches(|| ())[0];
        let all = self.batches(|| (0..BATCH).for_each(|_| operation()));
        let (middle, fewest) = (less(&all[BATCHES / 2], &frame), less(&all[0], &frame));
        let total = [middle, fewest].map(|c| PerRound(c[NAMED.len()]));
        use core::fmt::Write;
        let mut out = crate::con::Console;
        // Console never fails.
        let _ = write!(
            out,
            "exits: {name} total={} least={} rounds={BATCH} batches={BATCHES}",
            total[0], total[1]
        );
        for ((_, name), n) in NAMED.iter().zip(middle).filter(|(_, n)| *n != 0) {
            let _ = write!(out, " {name}={}", PerRound(n));
        }
        say!("");
    }
}

fn less(after: &Counts, before: &Counts) -> Counts {
    core::array::from_fn(|i| after[i].saturating_sub(before[i]))
}

/// A count of a batch, printed by round with two decimals.
struct PerRound(u64);

impl core::fmt::Display for PerRound {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let hundredths = self.0 * 100 / BATCH;
        write!(f, "{}.{:02}", hundredths / 100, hundredths % 100)
    }
}
