//! TLBs that forget nothing.

use crate::format::{Entry, Format, Perms, level_shift, slot};
use crate::table::TableMemory;
use addr::{Hpa, PageSize};
use std::vec::Vec;

/// A hardware tag: an ASID, a VPID with its EP4TA, a VMID.
pub type Tag = u32;

/// One way in which a CPU could translate an address: to this byte, with these rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Where it lands.
    pub hpa: Hpa,
    /// What it may do there.
    pub perms: Perms,
}

/// A walk under way: the table it stands at. With level 0, the page it arrived at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Partial {
    tag: Tag,
    level: u8,
    /// The address bits used so far.
    prefix: u64,
    at: Hpa,
    perms: Perms,
}

/// The TLBs and paging-structure caches of some CPUs.
///
/// Every translation, and every intermediate step, that a CPU has seen stays with it under its tag, also
/// next to newer ones that contradict it, until that CPU flushes the tag. Only a fault drops what was
/// cached for its own address, as the manuals have it.
#[derive(Debug)]
pub struct Tlb<F> {
    format: F,
    cpus: Vec<Vec<Partial>>,
}

impl<F: Format> Tlb<F> {
    /// TLBs of `cpus` CPUs.
    pub fn new(format: F, cpus: usize) -> Self {
        Self { format, cpus: std::vec![Vec::new(); cpus] }
    }

    /// Every way in which `cpu` could now translate `addr` under `tag` with its root register at `root`:
    /// what it has cached, and every walk from the root or from a cached step on. All of them are cached,
    /// as speculation may.
    pub fn reaches(
        &mut self,
        mem: &impl TableMemory,
        cpu: usize,
        tag: Tag,
        root: Hpa,
        addr: u64,
    ) -> Vec<Reach> {
        let top = Partial { tag, level: self.format.levels(), prefix: 0, at: root, perms: Perms::RWX };
        let mut todo = std::vec![top];
        let cached = self.cpus[cpu].iter().filter(|p| p.tag == tag && p.prefix == prefix(addr, p.level));
        todo.extend(cached);
        let mut found = Vec::new();
        while let Some(step) = todo.pop() {
            if step.level == 0 {
                let reach = Reach { hpa: Hpa::new(step.at.raw() | addr & 0xfff), perms: step.perms };
                if !found.contains(&reach) {
                    found.push(reach);
                }
                self.keep(cpu, step);
                continue;
            }
            if step != top {
                self.keep(cpu, step);
            }
            let (level, at, perms) = match F::decode(mem.read(step.at, slot(addr, step.level)), step.level) {
                Entry::Empty => continue,
                Entry::Table { next, perms } => (step.level - 1, next, perms),
                Entry::Leaf(leaf) => {
                    (0, leaf.at(addr::Gpa::new(addr)).align_down(PageSize::Size4K), leaf.perms)
                }
            };
            let next = Partial { tag, level, prefix: prefix(addr, level), at, perms: step.perms & perms };
            if !self.cpus[cpu].contains(&next) {
                todo.push(next);
            }
        }
        found
    }

    /// Makes an access by one of the ways that [`Tlb::reaches`] gives, chosen by `whim`. `None`: it
    /// faults; with it goes what was cached for this address.
    #[expect(clippy::too_many_arguments, reason = "who, where and what of an access")]
    pub fn access(
        &mut self,
        mem: &impl TableMemory,
        cpu: usize,
        tag: Tag,
        root: Hpa,
        addr: u64,
        needs: Perms,
        whim: usize,
    ) -> Option<Reach> {
        let ways = self.reaches(mem, cpu, tag, root, addr);
        let way = ways.get(whim % ways.len().max(1)).filter(|way| way.perms.contains(needs)).copied();
        if way.is_none() {
            self.cpus[cpu].retain(|p| p.tag != tag || p.prefix != prefix(addr, p.level));
        }
        way
    }

    /// Drops everything under `tag` on `cpu`.
    pub fn flush(&mut self, cpu: usize, tag: Tag) {
        self.cpus[cpu].retain(|p| p.tag != tag);
    }

    fn keep(&mut self, cpu: usize, step: Partial) {
        if !self.cpus[cpu].contains(&step) {
            self.cpus[cpu].push(step);
        }
    }
}

/// The bits of `addr` that have been used when a walk stands at `level`.
fn prefix(addr: u64, level: u8) -> u64 {
    addr >> level_shift(level + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelTables;
    use crate::{MemType, Npt, Paid, Radix};
    use addr::{Gpa, Range};

    #[test]
    fn a_forgotten_flush_is_noticed() {
        let mem = ModelTables::default();
        let format = Npt::four_level(PageSize::Size1G);
        let radix = Radix::new(format, &mem).unwrap();
        let mut tlb = Tlb::new(format, 2);
        let range = Range::new(Gpa::new(0x5000), 0x1000).unwrap();
        let owed = radix
            .map(&mem, range, Hpa::new(0x9000), Perms::RWX, MemType::WriteBack, PageSize::Size4K)
            .unwrap();
        assert!(owed.is_none());
        let read =
            |tlb: &mut Tlb<Npt>, cpu, tag| tlb.access(&mem, cpu, tag, radix.root(), 0x5004, Perms::R, 0);
        assert_eq!(read(&mut tlb, 0, 7).unwrap().hpa, Hpa::new(0x9004));
        let debt = radix.unmap(&mem, range).unwrap();
        assert!(read(&mut tlb, 0, 7).is_some(), "still cached");
        assert!(read(&mut tlb, 0, 8).is_none() && read(&mut tlb, 1, 7).is_none());
        tlb.flush(0, 7);
        assert!(read(&mut tlb, 0, 7).is_none());
        debt.settle(&mem, Paid::flushed());
    }

    #[test]
    #[should_panic(expected = "not in use")]
    fn a_cached_walk_through_a_freed_table_is_noticed() {
        let mem = ModelTables::default();
        let format = Npt::four_level(PageSize::Size1G);
        let radix = Radix::new(format, &mem).unwrap();
        let mut tlb = Tlb::new(format, 1);
        let map = |at, bytes| {
            let range = Range::new(Gpa::new(at), bytes).unwrap();
            let wb = MemType::WriteBack;
            radix.map(&mem, range, Hpa::new(at), Perms::RWX, wb, PageSize::Size2M).unwrap()
        };
        map(0x20_1000, 0x1000).settle(&mem, Paid::flushed());
        tlb.access(&mem, 0, 1, radix.root(), 0x20_1000, Perms::R, 0).unwrap();
        // Replaces the table by a large page, and claims to have flushed.
        map(0x20_0000, 0x20_0000).settle(&mem, Paid::flushed());
        tlb.access(&mem, 0, 1, radix.root(), 0x20_2000, Perms::R, 0);
    }
}
