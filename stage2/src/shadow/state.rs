//! The cache's metadata: tables, roots, and how slots are replaced.
//!
//! Each shadow table has two record pages beside it, reached like tables: `raws` holds L1's entry that a
//! slot was built from; `links` holds the number of the child table, or, for a leaf, its neighbours in
//! the reverse map. So a table costs three pages and some hundred bytes, nothing is allocated per leaf,
//! and a leaf is found and removed in a handful of accesses.

use super::slab::{NIL, Slab};
use super::{Host, NoRoot, PAGES_PER_TABLE, RootRef, Stats};
use crate::debt::TlbDebt;
use crate::format::{Entry, Format, Perms};
use crate::table::TableMemory;
use crate::walk12::{Root12, Shape};
use addr::{Frame, Gpa, GuestPhys, Hpa};
use alloc::vec;
use alloc::vec::Vec;

/// No page: the quota or the table memory is used up.
#[derive(Debug)]
pub(super) struct NoRoom;

/// What a shadow table is built from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing: a level above L1's walk.
    Pad,
    /// A table page of L1's. With 4-byte entries, `part` says which stretch of it.
    Guest { source: u32, part: u8 },
    /// The pieces of the large page of L1's at `base`.
    Pieces { base: Gpa },
}

/// The same before it is known whether such a table exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    Pad,
    Guest { frame: Frame<GuestPhys>, part: u8 },
    Pieces { base: Gpa },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub hpa: Hpa,
    pub raws: Hpa,
    pub links: Hpa,
    /// One bit per slot in use.
    pub live: [u64; 8],
    pub kind: Kind,
    pub level: u8,
    pub root: u32,
    /// `NIL` for a root's top table.
    pub parent: u32,
    pub parent_slot: u16,
    /// Neighbours among the tables of the same source.
    pub sibling: u32,
    pub elder: u32,
}

impl Table {
    /// The slots in use.
    pub fn slots(&self) -> impl Iterator<Item = usize> + use<> {
        let live = self.live;
        (0..8usize).flat_map(move |word| {
            let mut bits = live[word];
            core::iter::from_fn(move || {
                let bit = bits.checked_ilog2()?;
                bits &= !(1 << bit);
                Some(word * 64 + bit as usize)
            })
        })
    }
    fn mark(&mut self, slot: usize, live: bool) {
        let bit = 1 << (slot % 64);
        if live {
            self.live[slot / 64] |= bit;
        } else {
            self.live[slot / 64] &= !bit;
        }
    }
}

/// Whether a table page of L1's can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// Read-only for L1, and what was built from it is true.
    Sync,
    /// Read-only in the tables, but CPUs may not know yet: the flush with this ticket is waiting for that.
    Protecting(u64),
    /// Writable.
    Unsync,
}

/// A table page of L1's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    pub frame: Frame<GuestPhys>,
    pub state: Trust,
    /// How often it was written while protected, and for how many flushes it has not changed since.
    pub heat: u8,
    pub quiet: u8,
    /// First of the tables built from it.
    pub first: u32,
    /// Next in its hash chain.
    pub chain: u32,
    /// Place in the unsync list; `NIL` if sync.
    pub place: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Root {
    pub key: Root12,
    pub hpa: Hpa,
    pub top: u32,
    pub users: u32,
    /// When it was last acquired or released.
    pub stamp: u64,
    pub generation: u64,
    pub tables: u32,
}

#[derive(Debug)]
pub(super) struct Inner<F> {
    pub format: F,
    pub tables: Slab<Table>,
    pub sources: Slab<Source>,
    pub roots: Slab<Root>,
    /// Reverse map: chains of leaves by hash of (L1 page, size).
    pub leaf_heads: Vec<u32>,
    pub source_heads: Vec<u32>,
    /// Sources that are not sync; `NIL` where one has left, so that a loop over it may drop any of them.
    pub unsync: Vec<u32>,
    pub quota: u32,
    pub used: u32,
    pub leaves: u32,
    pub clock: u64,
    pub ticket: u64,
    pub counts: Stats,
}

/// What to put in a slot.
pub(super) enum New {
    Empty,
    Leaf { raw: u64, gpa: Gpa, entry: u64 },
    Link { raw: u64, child: u32, entry: u64 },
}

/// Most roots; beyond, the one longest out of use goes.
const MAX_ROOTS: usize = 256;

impl<F: Format> Inner<F> {
    pub fn new(format: F, quota: u32) -> Self {
        // Leaf numbers have 9 bits of slot and `NIL` is none of them.
        let tables = (quota / PAGES_PER_TABLE).min((1 << 23) - 1);
        let n = tables as usize;
        Self {
            format,
            tables: Slab::with_capacity(n),
            sources: Slab::with_capacity(n),
            roots: Slab::with_capacity(n.min(MAX_ROOTS)),
            leaf_heads: vec![NIL; (n * 64).next_power_of_two()],
            source_heads: vec![NIL; (n * 2).next_power_of_two()],
            unsync: Vec::with_capacity(n * 2),
            quota: tables * PAGES_PER_TABLE,
            used: 0,
            leaves: 0,
            clock: 0,
            ticket: 0,
            counts: Stats::default(),
        }
    }

    pub fn stats(&self) -> Stats {
        Stats {
            leaves: self.leaves.into(),
            pages: self.used.into(),
            sources: self.sources.len() as u64,
            roots: self.roots.len() as u64,
            held: self.roots.iter().map(|(_, root)| u64::from(root.users)).sum(),
            ..self.counts
        }
    }

    // Roots.

    pub fn acquire(&mut self, host: &impl Host, key: Root12, debt: &mut TlbDebt) -> Result<RootRef, NoRoot> {
        if key.paging().levels() > self.format.levels() {
            return Err(NoRoot::Unsupported);
        }
        let known = self.roots.iter().find(|(_, root)| root.key == key).map(|(index, _)| index);
        let index = match known {
            Some(index) => index,
            None => self.new_root(host, key, debt).map_err(|NoRoom| NoRoot::OutOfMemory)?,
        };
        self.clock += 1;
        let stamp = self.clock;
        let root = &mut self.roots[index];
        root.users += 1;
        root.stamp = stamp;
        Ok(RootRef { index, hpa: root.hpa, generation: root.generation, key })
    }

    pub fn release(&mut self, held: RootRef) {
        self.clock += 1;
        let stamp = self.clock;
        let root = &mut self.roots[held.index];
        assert!(root.generation == held.generation && root.users > 0, "a root of another cache");
        root.users -= 1;
        root.stamp = stamp;
    }

    fn new_root(&mut self, host: &impl Host, key: Root12, debt: &mut TlbDebt) -> Result<u32, NoRoom> {
        let level = self.format.levels();
        while self.roots.len() >= MAX_ROOTS {
            if !self.evict_root(host, debt) {
                return Err(NoRoom);
            }
        }
        self.clock += 1;
        let root = Root {
            key,
            hpa: Hpa::ZERO,
            top: NIL,
            users: 0,
            stamp: self.clock,
            generation: self.clock,
            tables: 0,
        };
        let index = self.roots.insert(root);
        let want = self.want_below(index, level + 1, 0);
        let made = self.new_table(host, index, (NIL, 0), level, want).or_else(|NoRoom| {
            self.reclaim(host, debt);
            self.new_table(host, index, (NIL, 0), level, want)
        });
        match made {
            Ok(top) => {
                let hpa = self.tables[top].hpa;
                let root = &mut self.roots[index];
                (root.top, root.hpa) = (top, hpa);
                Ok(index)
            }
            Err(NoRoom) => {
                self.roots.remove(index);
                Err(NoRoom)
            }
        }
    }

    /// What the table of level `level - 1` is built from where L1's walk has not begun above it.
    pub fn want_below(&self, root: u32, level: u8, ngpa: u64) -> Want {
        let key = &self.roots[root].key;
        if level - 1 > key.paging().levels() {
            return Want::Pad;
        }
        Want::Guest { frame: key.base().frame(), part: part(key, level - 1, ngpa) }
    }

    // Tables.

    /// A table, not yet linked.
    pub fn new_table(
        &mut self,
        host: &impl Host,
        root: u32,
        (parent, parent_slot): (u32, usize),
        level: u8,
        want: Want,
    ) -> Result<u32, NoRoom> {
        if self.used + PAGES_PER_TABLE > self.quota {
            return Err(NoRoom);
        }
        let [hpa, raws, links] = three_pages(host.tables()).ok_or(NoRoom)?;
        let kind = match want {
            Want::Pad => Kind::Pad,
            Want::Pieces { base } => Kind::Pieces { base },
            Want::Guest { frame, part } => Kind::Guest { source: self.source(frame), part },
        };
        self.used += PAGES_PER_TABLE;
        self.roots[root].tables += 1;
        let id = self.tables.insert(Table {
            hpa,
            raws,
            links,
            live: [0; 8],
            kind,
            level,
            root,
            parent,
            parent_slot: parent_slot as u16,
            sibling: NIL,
            elder: NIL,
        });
        if let Kind::Guest { source, .. } = kind {
            let first = core::mem::replace(&mut self.sources[source].first, id);
            self.tables[id].sibling = first;
            if first != NIL {
                self.tables[first].elder = id;
            }
        }
        Ok(id)
    }

    /// Whether table `id` is what `want` asks for.
    pub fn is(&self, id: u32, want: Want) -> bool {
        match (self.tables[id].kind, want) {
            (Kind::Pad, Want::Pad) => true,
            (Kind::Pieces { base: a }, Want::Pieces { base: b }) => a == b,
            (Kind::Guest { source, part: a }, Want::Guest { frame, part: b }) => {
                a == b && self.sources[source].frame == frame
            }
            _ => false,
        }
    }

    /// Drops the metadata of a tree of tables that no entry points to. The tables themselves are the
    /// debt's. Recursion is bounded by the level.
    fn forget(&mut self, host: &impl Host, id: u32) {
        let table = self.tables[id];
        for slot in table.slots() {
            match self.entry(host, id, slot) {
                Entry::Leaf(_) => self.unlink_leaf(host, id, slot),
                Entry::Table { .. } => self.forget(host, self.child(host, id, slot)),
                Entry::Empty => {}
            }
        }
        if let Kind::Guest { source, .. } = table.kind {
            self.leave_source(host.guard(), id, source);
        }
        host.tables().free(table.raws);
        host.tables().free(table.links);
        self.tables.remove(id);
        self.used -= PAGES_PER_TABLE;
        self.roots[table.root].tables -= 1;
    }

    /// Drops a root that nobody uses.
    pub fn drop_root(&mut self, host: &impl Host, index: u32, debt: &mut TlbDebt) {
        let root = self.roots[index];
        self.forget(host, root.top);
        debt.owe_02(root.hpa);
        debt.own::<F>(root.hpa, self.format.levels());
        self.roots.remove(index);
    }

    pub fn entry(&self, host: &impl Host, id: u32, slot: usize) -> Entry {
        let table = &self.tables[id];
        F::decode(host.tables().read(table.hpa, slot), table.level)
    }
    /// L1's entry that a slot was built from.
    pub fn raw(&self, host: &impl Host, id: u32, slot: usize) -> u64 {
        host.tables().read(self.tables[id].raws, slot)
    }
    /// The number of the table that a slot points to.
    pub fn child(&self, host: &impl Host, id: u32, slot: usize) -> u32 {
        host.tables().read(self.tables[id].links, slot) as u32
    }

    /// The table that a slot points to with exactly these rights: the common case, without decoding.
    pub fn linked(&self, host: &impl Host, id: u32, slot: usize, perms: Perms) -> Option<u32> {
        let table = &self.tables[id];
        // If the slot is no link, this is no table's number, or that of one to which no entry here
        // can be equal.
        let child = self.child(host, id, slot);
        let entry = F::table(self.tables.get(child)?.hpa, perms);
        (host.tables().read(table.hpa, slot) == entry).then_some(child)
    }

    /// Replaces what a slot says, in one store, and notes what that owes.
    pub fn put(&mut self, host: &impl Host, id: u32, slot: usize, new: New, debt: &mut TlbDebt) {
        let mem = host.tables();
        let (hpa, level, root) = (self.tables[id].hpa, self.tables[id].level, self.tables[id].root);
        let root_hpa = self.roots[root].hpa;
        let found = mem.read(hpa, slot);
        let old = F::decode(found, level);
        let orphan = match old {
            Entry::Table { .. } => Some(self.child(host, id, slot)),
            Entry::Leaf(_) => {
                self.unlink_leaf(host, id, slot);
                None
            }
            Entry::Empty => None,
        };
        let (raws, links) = (self.tables[id].raws, self.tables[id].links);
        let entry = match new {
            New::Empty => 0,
            New::Leaf { raw, gpa, entry } => {
                mem.write(raws, slot, raw);
                self.link_leaf(host, id, slot, gpa);
                entry
            }
            New::Link { raw, child, entry } => {
                mem.write(raws, slot, raw);
                mem.write(links, slot, child.into());
                entry
            }
        };
        self.tables[id].mark(slot, entry != 0);
        if entry != found {
            mem.write(hpa, slot, entry);
        }
        if loses(old, F::decode(entry, level)) {
            debt.owe_02(root_hpa);
        }
        if let Some(orphan) = orphan {
            let top = self.tables[orphan];
            self.forget(host, orphan);
            debt.own::<F>(top.hpa, top.level);
        }
    }

    /// Replaces an entry of the same kind, for the same address of L1's or the same table.
    pub fn set_rights(&mut self, host: &impl Host, id: u32, slot: usize, entry: u64, debt: &mut TlbDebt) {
        let table = &self.tables[id];
        let old = F::decode(host.tables().read(table.hpa, slot), table.level);
        host.tables().write(table.hpa, slot, entry);
        if loses(old, F::decode(entry, table.level)) {
            debt.owe_02(self.roots[table.root].hpa);
        }
    }
    pub fn set_raw(&self, host: &impl Host, id: u32, slot: usize, raw: u64) {
        host.tables().write(self.tables[id].raws, slot, raw);
    }

    /// Offset of L1's entry for a slot, within the page that the table was built from.
    pub fn offset12(&self, id: u32, slot: usize) -> usize {
        let table = &self.tables[id];
        let part = match table.kind {
            Kind::Guest { part, .. } => usize::from(part),
            _ => 0,
        };
        let key = &self.roots[table.root].key;
        match (key.paging().shape(), table.level) {
            (Shape::TwoLevel, 1) => part * 2048 + slot * 4,
            (Shape::TwoLevel, _) => part * 1024 + slot / 2 * 4,
            (Shape::Pae, 3) => key.base().page_offset() + slot % 4 * 8,
            _ => slot * 8,
        }
    }
}

/// Which stretch of a page of 4-byte entries a shadow table of level `level` is built from.
pub(super) fn part(key: &Root12, level: u8, ngpa: u64) -> u8 {
    match (key.paging().shape(), level) {
        (Shape::TwoLevel, 1) => (ngpa >> 21) as u8 & 1,
        (Shape::TwoLevel, 2) => (ngpa >> 30) as u8 & 3,
        _ => 0,
    }
}

/// Whether hardware that still knows `old` could do what `new` forbids, or reach another place.
fn loses(old: Entry, new: Entry) -> bool {
    match (old, new) {
        (Entry::Empty, _) => false,
        (Entry::Leaf(was), Entry::Leaf(is)) => {
            (was.hpa, was.size, was.memtype) != (is.hpa, is.size, is.memtype) || !is.perms.contains(was.perms)
        }
        (Entry::Table { next: a, perms: was }, Entry::Table { next: b, perms: is }) => {
            a != b || !is.contains(was)
        }
        _ => true,
    }
}

fn three_pages(mem: &impl TableMemory) -> Option<[Hpa; 3]> {
    let first = mem.alloc()?;
    let Some(second) = mem.alloc() else {
        mem.free(first);
        return None;
    };
    let Some(third) = mem.alloc() else {
        mem.free(first);
        mem.free(second);
        return None;
    };
    Some([first, second, third])
}
