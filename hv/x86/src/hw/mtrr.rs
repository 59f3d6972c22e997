//! Memory-type range registers: read on each CPU and compared with the boot CPU's.
//!
//! All CPUs must have the same (APM vol. 2, "Memory-Type Range Registers": otherwise "memory coherency"
//! is lost). Firmware sets them; Testudo does not repair them, but says where they differ.
// UNSAFETY: reads model-specific registers.
#![allow(unsafe_code)]

use crate::cpu::{instr, msr};
use crate::trap::probe;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use spin::Once;

/// Fixed-range registers by name and MSR (APM vol. 2, table "Fixed-Range MTRRs").
const FIXED: [(&str, u32); 11] = [
    ("MTRRfix64K_00000", 0x250),
    ("MTRRfix16K_80000", 0x258),
    ("MTRRfix16K_A0000", 0x259),
    ("MTRRfix4K_C0000", 0x268),
    ("MTRRfix4K_C8000", 0x269),
    ("MTRRfix4K_D0000", 0x26a),
    ("MTRRfix4K_D8000", 0x26b),
    ("MTRRfix4K_E0000", 0x26c),
    ("MTRRfix4K_E8000", 0x26d),
    ("MTRRfix4K_F0000", 0x26e),
    ("MTRRfix4K_F8000", 0x26f),
];
/// AMD's registers that decide, beside the MTRRs, what is memory (APM vol. 2, "Top of Memory").
const AMD: [(&str, u32); 3] = [("SYSCFG", 0xc001_0010), ("TOP_MEM", 0xc001_001a), ("TOP_MEM2", 0xc001_001d)];
/// First variable-range base; its mask is the next, then the next pair.
const PHYS_BASE0: u32 = 0x200;
/// MTRRCAP: the fixed-range registers exist.
const CAP_FIXED: u64 = 1 << 8;

/// A register of [`Mtrrs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// One with a name of its own.
    Named(&'static str),
    /// Base of variable range n.
    PhysBase(u8),
    /// Mask of variable range n.
    PhysMask(u8),
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Register::Named(name) => f.write_str(name),
            Register::PhysBase(n) => write!(f, "MTRRphysBase{n}"),
            Register::PhysMask(n) => write!(f, "MTRRphysMask{n}"),
        }
    }
}

/// A CPU's memory-type registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mtrrs(Vec<(Register, u64)>);

impl Mtrrs {
    /// From `rdmsr`, which answers `None` for an MSR that does not exist. `amd` adds AMD's own.
    pub fn read(rdmsr: impl Fn(u32) -> Option<u64>, amd: bool) -> Self {
        let mut all = Vec::new();
        let mut take = |register, number| {
            let value = rdmsr(number);
            all.extend(value.map(|value| (register, value)));
            value
        };
        let capabilities = take(Register::Named("MTRRcap"), msr::IA32_MTRRCAP).unwrap_or(0);
        take(Register::Named("MTRRdefType"), msr::IA32_MTRR_DEF_TYPE);
        for (name, number) in FIXED.into_iter().filter(|_| capabilities & CAP_FIXED != 0) {
            take(Register::Named(name), number);
        }
        // Architecturally at most 255, but the MSR block of 200h to 20Fh (or 213h) has room for few.
        for n in 0..(capabilities as u8).min(32) {
            take(Register::PhysBase(n), PHYS_BASE0 + u32::from(n) * 2);
            take(Register::PhysMask(n), PHYS_BASE0 + u32::from(n) * 2 + 1);
        }
        for (name, number) in AMD.into_iter().filter(|_| amd) {
            take(Register::Named(name), number);
        }
        Self(all)
    }

    /// Registers that differ: which, here, there. `None`: the register does not exist on that CPU.
    pub fn differences<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = (Register, Option<u64>, Option<u64>)> + 'a {
        let find = |all: &'a Self, wanted: Register| all.0.iter().find(|(r, _)| *r == wanted).map(|r| r.1);
        let mine =
            self.0.iter().map(move |&(register, value)| (register, Some(value), find(other, register)));
        let theirs = other
            .0
            .iter()
            .filter(move |(register, _)| find(self, *register).is_none())
            .map(|&(register, value)| (register, None, Some(value)));
        mine.chain(theirs).filter(|(_, here, there)| here != there)
    }
}

static BOOT: Once<Mtrrs> = Once::new();

fn this_cpu() -> Mtrrs {
    if instr::cpuid(1, 0)[3] & (1 << 12) == 0 {
        return Mtrrs::default();
    }
    let amd = super::mitigation::facts().amd;
    Mtrrs::read(probe::rdmsr, amd)
}

/// Remembers the boot CPU's registers. On the boot CPU, before another one starts.
pub fn record_boot() {
    BOOT.call_once(this_cpu);
}

/// Compares this CPU's registers with the boot CPU's and logs a line if they differ. On each other CPU,
/// while it comes up. Whether they are the same.
pub fn check_cpu() -> bool {
    let Some(boot) = BOOT.get() else { return true };
    let mine = this_cpu();
    let Some(report) = report(boot, &mine) else { return true };
    // Below a hypervisor they decide nothing; some reset them at INIT.
    let virtual_machine = instr::cpuid(1, 0)[2] & (1 << 31) != 0;
    let level = if virtual_machine { log::Level::Info } else { log::Level::Warn };
    log::log!(level, "CPU {}: {report}", crate::cpu::percpu::this().index);
    false
}

/// What differs, in one line; the rest is counted. `None`: nothing does.
fn report(boot: &Mtrrs, mine: &Mtrrs) -> Option<String> {
    const NAMED: usize = 4;
    let all: Vec<_> = boot.differences(mine).collect();
    let named = all.iter().take(NAMED).map(|&(register, theirs, here)| {
        alloc::format!("{register} is {}, not {}", Value(here), Value(theirs))
    });
    let mut line = String::from("memory types differ from CPU 0: ");
    line.push_str(&named.collect::<Vec<_>>().join("; "));
    if all.len() > NAMED {
        line.push_str(&alloc::format!("; and {} more", all.len() - NAMED));
    }
    (!all.is_empty()).then_some(line)
}

/// A register's value in a message.
struct Value(Option<u64>);

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) => write!(f, "{value:#x}"),
            None => f.write_str("absent"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;
    use alloc::string::ToString;
    use std::vec;

    fn machine() -> BTreeMap<u32, u64> {
        let mut msrs: BTreeMap<u32, u64> = BTreeMap::new();
        msrs.insert(0xfe, 0x508); // eight variable ranges, fixed ones, write-combining
        msrs.insert(0x2ff, 0xc06);
        msrs.extend(FIXED.map(|(_, number)| (number, 0x0606_0606_0606_0606)));
        msrs.extend((0x200..0x210).map(|number| (number, u64::from(number) << 20)));
        msrs.extend(AMD.map(|(_, number)| (number, 0x8000_0000)));
        msrs
    }

    fn read(msrs: &BTreeMap<u32, u64>) -> Mtrrs {
        Mtrrs::read(|number| msrs.get(&number).copied(), true)
    }

    #[test]
    fn every_register_is_compared() {
        let boot = machine();
        for &number in boot.keys() {
            let mut other = boot.clone();
            // MTRRcap is special: fewer ranges.
            *other.get_mut(&number).unwrap() ^= if number == 0xfe { 0x400 } else { 1 };
            let (a, b) = (read(&boot), read(&other));
            let found: Vec<_> = a.differences(&b).collect();
            assert_eq!(found.len(), 1, "MSR {number:#x}");
            assert_eq!((found[0].1, found[0].2), (Some(boot[&number]), Some(other[&number])));
            assert_eq!(a.differences(&a).count(), 0);
        }
    }

    #[test]
    fn names_are_the_manuals() {
        let mut other = machine();
        other.insert(0x205, 7);
        other.insert(0x204, 8);
        other.insert(0x26f, 9);
        let (a, b) = (read(&machine()), read(&other));
        let names: Vec<_> = a.differences(&b).map(|(register, ..)| register.to_string()).collect();
        assert_eq!(names, vec!["MTRRfix4K_F8000", "MTRRphysBase2", "MTRRphysMask2"]);
    }

    #[test]
    fn the_report_is_one_line() {
        let boot = machine();
        assert_eq!(report(&read(&boot), &read(&boot)), None);
        let mut other = boot.clone();
        other.insert(0x2ff, 0);
        other.remove(&0xc001_001d);
        let expected = "memory types differ from CPU 0: MTRRdefType is 0x0, not 0xc06; TOP_MEM2 is absent, \
                        not 0x80000000";
        assert_eq!(report(&read(&boot), &read(&other)).unwrap(), expected);
        let cleared = boot.keys().map(|number| (*number, if *number == 0xfe { 0x508 } else { 0 })).collect();
        assert!(report(&read(&boot), &read(&cleared)).unwrap().ends_with("; and 27 more"));
    }

    #[test]
    fn a_range_that_only_one_cpu_has_is_a_difference() {
        let mut other = machine();
        other.insert(0xfe, 0x507);
        let (a, b) = (read(&machine()), read(&other));
        let absent: Vec<_> = a.differences(&b).filter(|d| d.2.is_none()).map(|d| d.0).collect();
        assert_eq!(absent, vec![Register::PhysBase(7), Register::PhysMask(7)]);
        let absent: Vec<_> = b.differences(&a).filter(|d| d.1.is_none()).map(|d| d.0).collect();
        assert_eq!(absent, vec![Register::PhysBase(7), Register::PhysMask(7)]);
    }

    #[test]
    fn absurd_counts_are_bounded() {
        let count = core::cell::Cell::new(0);
        Mtrrs::read(
            |number| {
                count.set(count.get() + 1);
                Some(if number == 0xfe { 0x1ff } else { 0 })
            },
            false,
        );
        assert!(count.get() < 100);
    }
}
