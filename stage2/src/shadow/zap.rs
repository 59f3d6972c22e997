//! Taking back: after changes of the p2m, and at the quota.

use super::slab::NIL;
use super::state::{Inner, New};
use super::{Host, PAGES_PER_TABLE};
use crate::debt::TlbDebt;
use crate::format::{Entry, Format, Mapping, Perms};
use addr::{Frame, Gpa, GuestPhys, PAGE_SIZE, PageSize, Range};

/// What a zap takes from the leaves it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zap {
    /// Everything: the frames are gone, or are other frames now. What was built from tables in them goes,
    /// too.
    All,
    /// The right to write: the frames stay, but writes must be seen (dirty log).
    Writes,
}

/// Tables taken back at once at the quota: bounds the time under the lock, and how often it happens.
const BATCH: u32 = 32;

impl<F: Format> Inner<F> {
    pub fn zap(&mut self, host: &impl Host, range: Range<GuestPhys>, what: Zap, debt: &mut TlbDebt) {
        let first = range.start().frame().number();
        let end = range.end().raw().div_ceil(PAGE_SIZE);
        // By frame or by leaf, whichever are fewer.
        if end - first > u64::from(self.leaves) + self.tables.len() as u64 {
            self.zap_by_leaf(host, range, what, debt);
            return;
        }
        for size in PageSize::LARGEST_FIRST {
            let mut base = range.start().align_down(size);
            while base < range.end() {
                self.zap_page(host, base, size, what, debt);
                let Some(next) = base.checked_add(size.bytes()) else { break };
                base = next;
            }
        }
        if what == Zap::All {
            (first..end).for_each(|n| self.zap_source(host, Frame::new(n), debt));
        }
    }

    /// The leaves that cover one frame.
    pub fn zap_frame(&mut self, host: &impl Host, frame: Frame<GuestPhys>, what: Zap, debt: &mut TlbDebt) {
        for size in PageSize::LARGEST_FIRST {
            self.zap_page(host, frame.start().align_down(size), size, what, debt);
        }
    }

    /// The leaves of size `size` that map L1's page at `base`.
    fn zap_page(&mut self, host: &impl Host, base: Gpa, size: PageSize, what: Zap, debt: &mut TlbDebt) {
        let mut at = self.chain_head(base, size.level());
        while let Some((id, slot)) = at {
            at = self.chain_next(host, id, slot);
            if self.tables[id].level == size.level() && self.leaf_gpa(host, id, slot) == base {
                self.zap_leaf(host, id, slot, what, debt);
            }
        }
    }

    fn zap_leaf(&mut self, host: &impl Host, id: u32, slot: usize, what: Zap, debt: &mut TlbDebt) {
        let Entry::Leaf(leaf) = self.entry(host, id, slot) else { return };
        if what == Zap::All {
            self.put(host, id, slot, New::Empty, debt);
        } else if leaf.perms.contains(Perms::W) {
            let entry = F::leaf(&Mapping { perms: leaf.perms.without(Perms::W), ..leaf });
            self.set_rights(host, id, slot, entry, debt);
        } else {
            return;
        }
        self.counts.zapped += 1;
    }

    fn zap_source(&mut self, host: &impl Host, frame: Frame<GuestPhys>, debt: &mut TlbDebt) {
        if let Some(source) = self.find_source(frame) {
            self.drop_tables_of(host, source, debt);
        }
    }

    fn zap_by_leaf(&mut self, host: &impl Host, range: Range<GuestPhys>, what: Zap, debt: &mut TlbDebt) {
        for id in 0..self.tables.bound() {
            let Some(table) = self.tables.get(id).copied() else { continue };
            let Some(size) = PageSize::of_level(table.level) else { continue };
            for slot in table.slots() {
                if matches!(self.entry(host, id, slot), Entry::Leaf(_)) {
                    let base = self.leaf_gpa(host, id, slot);
                    let page = Range::new(base, size.bytes());
                    if page.is_none_or(|page| page.overlaps(&range)) {
                        self.zap_leaf(host, id, slot, what, debt);
                    }
                }
            }
        }
        if what == Zap::All {
            for id in 0..self.sources.bound() {
                let frame = self.sources.get(id).map(|source| source.frame);
                if let Some(frame) = frame.filter(|frame| range.contains(frame.start())) {
                    self.zap_source(host, frame, debt);
                }
            }
        }
    }

    /// Takes back a batch of tables, of the idle root longest out of use, else of the root that has the
    /// most. False if there was nothing to take.
    pub fn reclaim(&mut self, host: &impl Host, debt: &mut TlbDebt) -> bool {
        let before = self.used;
        if let Some(root) = self.oldest_idle() {
            self.shrink(host, root, debt);
        } else if let Some((root, _)) = self.roots.iter().max_by_key(|(_, root)| root.tables) {
            self.shrink(host, root, debt);
        }
        let freed = (before - self.used) / PAGES_PER_TABLE;
        self.counts.reclaimed += u64::from(freed);
        freed > 0
    }

    /// Drops the idle root longest out of use.
    pub fn evict_root(&mut self, host: &impl Host, debt: &mut TlbDebt) -> bool {
        match self.oldest_idle() {
            Some(root) => {
                self.drop_root(host, root, debt);
                true
            }
            None => false,
        }
    }

    pub fn clear(&mut self, host: &impl Host, debt: &mut TlbDebt) {
        for index in 0..self.roots.bound() {
            match self.roots.get(index).copied() {
                Some(root) if root.users == 0 => self.drop_root(host, index, debt),
                Some(root) => self.empty_table(host, root.top, debt),
                None => {}
            }
        }
    }

    /// Drops all roots, also those that somebody was about to use.
    pub fn destroy(&mut self, host: &impl Host, debt: &mut TlbDebt) {
        for index in 0..self.roots.bound() {
            if self.roots.get(index).is_some() {
                self.drop_root(host, index, debt);
            }
        }
    }

    fn oldest_idle(&self) -> Option<u32> {
        let idle = self.roots.iter().filter(|(_, root)| root.users == 0 && root.top != NIL);
        idle.min_by_key(|(_, root)| root.stamp).map(|(index, _)| index)
    }

    /// Takes up to a batch of tables from a root; the root itself goes if it is idle and nothing else is
    /// left.
    fn shrink(&mut self, host: &impl Host, index: u32, debt: &mut TlbDebt) {
        let root = self.roots[index];
        if root.top == NIL {
            return;
        }
        let goal = self.used.saturating_sub(BATCH * PAGES_PER_TABLE);
        self.prune(host, root.top, goal, debt);
        if root.users == 0 && self.roots[index].tables == 1 {
            self.drop_root(host, index, debt);
        }
    }

    /// Drops tables below `id`, lowest first, until no more than `goal` pages are used. Recursion is
    /// bounded by the level.
    fn prune(&mut self, host: &impl Host, id: u32, goal: u32, debt: &mut TlbDebt) {
        for slot in self.tables[id].slots() {
            if self.used <= goal {
                return;
            }
            if let Entry::Table { .. } = self.entry(host, id, slot) {
                let child = self.child(host, id, slot);
                self.prune(host, child, goal, debt);
                if self.used > goal {
                    self.put(host, id, slot, New::Empty, debt);
                }
            }
        }
    }
}
