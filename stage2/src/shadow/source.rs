//! The pages of L1's that serve as tables: found by frame, each with the tables built from it, and listed
//! while they are not sync.

use super::rmap::hash;
use super::slab::NIL;
use super::state::{Inner, Source, Trust};
use super::{TableWrite, WriteProtect};
use crate::format::Format;
use addr::{Frame, GuestPhys};

impl<F: Format> Inner<F> {
    pub fn find_source(&self, frame: Frame<GuestPhys>) -> Option<u32> {
        let mut at = self.source_heads[hash(frame.number(), &self.source_heads)];
        while at != NIL && self.sources[at].frame != frame {
            at = self.sources[at].chain;
        }
        (at != NIL).then_some(at)
    }

    /// The source for `frame`: a new one is unsync, as nothing protects it yet.
    pub fn source(&mut self, frame: Frame<GuestPhys>) -> u32 {
        if let Some(known) = self.find_source(frame) {
            return known;
        }
        let bucket = hash(frame.number(), &self.source_heads);
        let id = self.sources.insert(Source {
            frame,
            state: Trust::Unsync,
            heat: 0,
            quiet: 0,
            first: NIL,
            chain: self.source_heads[bucket],
            place: NIL,
        });
        self.source_heads[bucket] = id;
        self.list_unsync(id);
        id
    }

    /// Takes table `id` out of its source's list; the last one takes the source along.
    pub fn leave_source(&mut self, guard: &impl WriteProtect, id: u32, source: u32) {
        let (next, prev) = (self.tables[id].sibling, self.tables[id].elder);
        if prev == NIL {
            self.sources[source].first = next;
        } else {
            self.tables[prev].sibling = next;
        }
        if next != NIL {
            self.tables[next].elder = prev;
        }
        if self.sources[source].first != NIL {
            return;
        }
        self.unlist(source);
        let gone = self.sources.remove(source);
        if gone.state != Trust::Unsync {
            guard.unprotect(gone.frame);
        }
        let bucket = hash(gone.frame.number(), &self.source_heads);
        let mut at = self.source_heads[bucket];
        if at == source {
            self.source_heads[bucket] = gone.chain;
            return;
        }
        while self.sources[at].chain != source {
            at = self.sources[at].chain;
        }
        self.sources[at].chain = gone.chain;
    }

    pub fn table_write(&mut self, guard: &impl WriteProtect, frame: Frame<GuestPhys>) -> TableWrite {
        let Some(source) = self.find_source(frame) else { return TableWrite::NotATable };
        if self.sources[source].state == Trust::Unsync {
            return TableWrite::AlreadyUnsync;
        }
        let heat = &mut self.sources[source].heat;
        *heat = heat.saturating_add(1);
        self.make_unsync(guard, source);
        self.counts.unsynced += 1;
        TableWrite::Unsynced
    }

    pub fn make_unsync(&mut self, guard: &impl WriteProtect, source: u32) {
        let old = core::mem::replace(&mut self.sources[source].state, Trust::Unsync);
        if old != Trust::Unsync {
            guard.unprotect(self.sources[source].frame);
        }
        self.list_unsync(source);
    }

    pub fn list_unsync(&mut self, source: u32) {
        if self.sources[source].place != NIL {
            return;
        }
        if self.unsync.len() == self.unsync.capacity() {
            self.compact_unsync();
        }
        self.sources[source].place = self.unsync.len() as u32;
        self.unsync.push(source);
    }

    /// Takes a source out of the unsync list, leaving a gap.
    pub fn unlist(&mut self, source: u32) {
        let place = core::mem::replace(&mut self.sources[source].place, NIL);
        if place != NIL {
            self.unsync[place as usize] = NIL;
        }
    }

    pub fn compact_unsync(&mut self) {
        self.unsync.retain(|source| *source != NIL);
        for (place, source) in self.unsync.iter().enumerate() {
            self.sources[*source].place = place as u32;
        }
    }

    /// The tables built from a source.
    pub fn tables_of(&self, source: u32) -> impl Iterator<Item = u32> + '_ {
        let first = self.sources[source].first;
        core::iter::successors((first != NIL).then_some(first), |id| {
            let next = self.tables[*id].sibling;
            (next != NIL).then_some(next)
        })
    }
}
