//! Flushes: reading again what L1 may have changed.

use super::Host;
use super::WriteProtect as _;
use super::fill::until_dirty;
use super::slab::NIL;
use super::state::{Inner, Kind, New, Source, Trust};
use super::zap::Zap;
use crate::debt::TlbDebt;
use crate::format::{Entry, Format, Mapping, Perms};
use crate::walk12::Entry12;
use addr::GuestMemory;

/// What a flush concerns: one root ([`super::RootRef::scope`]), or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope(Option<u32>);

impl Scope {
    /// Every root of the domain.
    pub const ALL: Self = Self(None);

    pub(super) const fn root(index: u32) -> Self {
        Self(Some(index))
    }
}

/// A flush between its halves.
#[must_use = "the flush is not done before resync_finish"]
#[derive(Debug)]
pub struct Resync {
    ticket: u64,
    scope: Scope,
}

/// Writes to a protected page that make it hot: it then stays unsync over flushes.
const HOT: u8 = 3;
/// Flushes without a change after which a hot page is protected again.
const COOL: u8 = 4;

/// What became of one entry.
enum Revision {
    Drop,
    Rights(u64),
    Same,
}

impl<F: Format> Inner<F> {
    pub fn resync_begin(&mut self, host: &impl Host, scope: Scope) -> Option<(Resync, TlbDebt)> {
        self.ticket += 1;
        let ticket = self.ticket;
        let (mut debt, mut any) = (TlbDebt::none(), false);
        for place in 0..self.unsync.len() {
            let source = self.unsync[place];
            if source == NIL || !self.in_scope(source, scope) {
                continue;
            }
            any = true;
            let Source { frame, state, heat, .. } = self.sources[source];
            if state != Trust::Unsync || heat >= HOT {
                continue;
            }
            match host.guard().protect(frame) {
                Ok(owed) => {
                    debt.merge(owed);
                    self.sources[source].state = Trust::Protecting(ticket);
                    // L2 may not write there unseen, either.
                    self.zap_frame(host, frame, Zap::Writes, &mut debt);
                }
                Err(failed) => debt.merge(failed.debt),
            }
        }
        any.then_some((Resync { ticket, scope }, debt))
    }

    pub fn resync_finish(&mut self, host: &impl Host, resync: Resync, debt: &mut TlbDebt) {
        for place in 0..self.unsync.len() {
            let source = self.unsync[place];
            // What is read may drop other sources from the list, never this one.
            if source == NIL || !self.in_scope(source, resync.scope) {
                continue;
            }
            let Ok(page) = host.l1().pin(self.sources[source].frame) else {
                self.drop_tables_of(host, source, debt);
                continue;
            };
            let changed = self.reread(host, source, &page, debt);
            self.counts.reread += 1;
            let state = &mut self.sources[source];
            if state.state == Trust::Protecting(resync.ticket) {
                state.state = Trust::Sync;
                self.unlist(source);
            } else if changed {
                state.quiet = 0;
            } else {
                state.quiet += 1;
                if state.quiet >= COOL {
                    (state.heat, state.quiet) = (0, 0);
                }
            }
        }
        self.compact_unsync();
    }

    fn in_scope(&self, source: u32, scope: Scope) -> bool {
        scope.0.is_none_or(|root| self.tables_of(source).any(|id| self.tables[id].root == root))
    }

    /// Compares the entries that something was built from. Whether any had changed.
    fn reread(
        &mut self,
        host: &impl Host,
        source: u32,
        page: &impl addr::GuestPage,
        debt: &mut TlbDebt,
    ) -> bool {
        let mut changed = false;
        let mut id = self.sources[source].first;
        while id != NIL {
            let table = self.tables[id];
            let paging = *self.roots[table.root].key.paging();
            for slot in table.slots() {
                let raw = paging.read(page, self.offset12(id, slot));
                if raw != self.raw(host, id, slot) {
                    changed = true;
                    self.revise(host, id, slot, raw, debt);
                }
            }
            // Dropping what is below a table may drop its siblings, so look only now.
            id = self.tables[id].sibling;
        }
        changed
    }

    /// Makes a slot no more than what L1's entry, now `raw`, allows.
    fn revise(&mut self, host: &impl Host, id: u32, slot: usize, raw: u64, debt: &mut TlbDebt) {
        match self.revision(host, id, slot, raw) {
            Revision::Same => self.set_raw(host, id, slot, raw),
            Revision::Rights(entry) => {
                self.set_raw(host, id, slot, raw);
                self.set_rights(host, id, slot, entry, debt);
                self.counts.revised += 1;
            }
            Revision::Drop => {
                self.put(host, id, slot, New::Empty, debt);
                self.counts.revised += 1;
            }
        }
    }

    /// Rights are only ever taken here; a fault gives them.
    fn revision(&self, host: &impl Host, id: u32, slot: usize, raw: u64) -> Revision {
        let table = &self.tables[id];
        let key = &self.roots[table.root].key;
        let new = key.paging().decode(raw, table.level, slot % 2 == 1);
        // Execute-only and readable pages have nothing in common.
        let rights = |old, new: Perms, entry| match new {
            _ if old == new => Revision::Same,
            _ if new.is_empty() => Revision::Drop,
            _ => Revision::Rights(entry),
        };
        match (self.entry(host, id, slot), new) {
            (Entry::Leaf(old), Entry12::Leaf(leaf))
                if leaf.user && leaf.accessed && leaf.gpa == self.leaf_gpa(host, id, slot) =>
            {
                let perms = old.perms & until_dirty(leaf.perms, leaf.dirty);
                rights(old.perms, perms, F::leaf(&Mapping { perms, ..old }))
            }
            (Entry::Table { next, perms: old }, Entry12::Table(to)) if to.user && to.accessed => {
                match self.tables[self.child(host, id, slot)].kind {
                    Kind::Guest { source, .. } if self.sources[source].frame == to.frame => {
                        rights(old, old & to.perms, F::table(next, old & to.perms))
                    }
                    _ => Revision::Drop,
                }
            }
            (Entry::Table { next, perms: old }, Entry12::Leaf(leaf)) if leaf.user && leaf.accessed => {
                let perms = old & until_dirty(leaf.perms, leaf.dirty);
                match self.tables[self.child(host, id, slot)].kind {
                    Kind::Pieces { base } if base == leaf.gpa => rights(old, perms, F::table(next, perms)),
                    _ => Revision::Drop,
                }
            }
            _ => Revision::Drop,
        }
    }

    /// Drops what was built from a page of L1's that is no longer there. Top tables lose their entries,
    /// others go.
    pub fn drop_tables_of(&mut self, host: &impl Host, source: u32, debt: &mut TlbDebt) {
        let frame = self.sources[source].frame;
        while let Some(source) = self.find_source(frame) {
            let below = self.tables_of(source).find(|id| self.tables[*id].parent != NIL);
            let Some(id) = below else { break };
            let (parent, slot) = (self.tables[id].parent, usize::from(self.tables[id].parent_slot));
            self.put(host, parent, slot, New::Empty, debt);
        }
        let Some(source) = self.find_source(frame) else { return };
        let mut id = self.sources[source].first;
        while id != NIL {
            self.empty_table(host, id, debt);
            id = self.tables[id].sibling;
        }
        // It is no longer what was protected.
        self.make_unsync(host.guard(), source);
    }

    /// Clears every slot.
    pub fn empty_table(&mut self, host: &impl Host, id: u32, debt: &mut TlbDebt) {
        for slot in self.tables[id].slots() {
            self.put(host, id, slot, New::Empty, debt);
        }
    }
}
