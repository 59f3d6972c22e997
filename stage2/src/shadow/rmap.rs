//! The reverse map: from a page of L1's to the leaves that map it.
//!
//! Leaves are chained by a hash of (page, size), through the record page of their table. What a leaf maps
//! is read from its own record, never computed from where the leaf is (CVE-2026-46113).

use super::Host;
use super::slab::NIL;
use super::state::{Inner, Kind};
use crate::format::{Format, level_shift};
use crate::table::TableMemory;
use addr::Gpa;

/// A leaf's number: table and slot.
const fn leaf_id(table: u32, slot: usize) -> u32 {
    table << 9 | slot as u32
}
pub(super) const fn leaf_of(id: u32) -> (u32, usize) {
    (id >> 9, id as usize & 511)
}

/// Fibonacci hashing: the high bits of the product are the best mixed.
pub(super) fn hash(value: u64, heads: &[u32]) -> usize {
    (value.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - heads.len().ilog2())) as usize
}

impl<F: Format> Inner<F> {
    pub fn bucket(&self, gpa: Gpa, level: u8) -> usize {
        hash(gpa.raw() | u64::from(level), &self.leaf_heads)
    }

    /// The page of L1's that a leaf maps, from its record.
    pub fn leaf_gpa(&self, host: &impl Host, id: u32, slot: usize) -> Gpa {
        let table = &self.tables[id];
        match table.kind {
            Kind::Pieces { base } => base.wrapping_add((slot as u64) << level_shift(table.level)),
            _ => {
                let paging = self.roots[table.root].key.paging();
                paging.page_address(self.raw(host, id, slot), table.level, slot % 2 == 1)
            }
        }
    }

    pub fn neighbours(&self, host: &impl Host, leaf: u32) -> (u32, u32) {
        let (id, slot) = leaf_of(leaf);
        let word = host.tables().read(self.tables[id].links, slot);
        (word as u32, (word >> 32) as u32)
    }
    pub fn set_neighbours(&self, host: &impl Host, leaf: u32, next: u32, prev: u32) {
        let (id, slot) = leaf_of(leaf);
        host.tables().write(self.tables[id].links, slot, u64::from(prev) << 32 | u64::from(next));
    }

    pub fn link_leaf(&mut self, host: &impl Host, id: u32, slot: usize, gpa: Gpa) {
        let bucket = self.bucket(gpa, self.tables[id].level);
        let leaf = leaf_id(id, slot);
        let head = core::mem::replace(&mut self.leaf_heads[bucket], leaf);
        self.set_neighbours(host, leaf, head, NIL);
        if head != NIL {
            let (next, _) = self.neighbours(host, head);
            self.set_neighbours(host, head, next, leaf);
        }
        self.leaves += 1;
    }

    pub fn unlink_leaf(&mut self, host: &impl Host, id: u32, slot: usize) {
        let (next, prev) = self.neighbours(host, leaf_id(id, slot));
        if prev == NIL {
            let bucket = self.bucket(self.leaf_gpa(host, id, slot), self.tables[id].level);
            self.leaf_heads[bucket] = next;
        } else {
            let (_, before) = self.neighbours(host, prev);
            self.set_neighbours(host, prev, next, before);
        }
        if next != NIL {
            let (after, _) = self.neighbours(host, next);
            self.set_neighbours(host, next, after, prev);
        }
        self.leaves -= 1;
    }

    /// First leaf in the chain that holds the leaves of level `level` for the page at `gpa`, others
    /// mixed in.
    pub fn chain_head(&self, gpa: Gpa, level: u8) -> Option<(u32, usize)> {
        let head = self.leaf_heads[self.bucket(gpa, level)];
        (head != NIL).then(|| leaf_of(head))
    }
    /// The leaf after this one.
    pub fn chain_next(&self, host: &impl Host, id: u32, slot: usize) -> Option<(u32, usize)> {
        let (next, _) = self.neighbours(host, leaf_id(id, slot));
        (next != NIL).then(|| leaf_of(next))
    }
}
