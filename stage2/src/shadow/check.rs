//! The invariants of the metadata, for tests.

use super::rmap::leaf_of;
use super::slab::NIL;
use super::state::{Inner, Kind, Trust};
use super::{Host, PAGES_PER_TABLE};
use crate::format::{Entry, Format};
use std::collections::BTreeSet;

impl<F: Format> Inner<F> {
    /// Checks the metadata against the tables.
    pub fn check(&self, host: &impl Host) {
        let mut leaves = BTreeSet::new();
        for (id, table) in self.tables.iter() {
            for slot in 0..crate::ENTRIES {
                let live = table.live[slot / 64] & 1 << (slot % 64) != 0;
                let entry = self.entry(host, id, slot);
                assert_eq!(live, entry != Entry::Empty);
                match entry {
                    Entry::Leaf(_) => assert!(leaves.insert((id, slot))),
                    Entry::Table { next, .. } => {
                        let child = &self.tables[self.child(host, id, slot)];
                        assert_eq!((child.hpa, child.level, child.root), (next, table.level - 1, table.root));
                        assert_eq!((child.parent, usize::from(child.parent_slot)), (id, slot));
                    }
                    Entry::Empty => {}
                }
            }
            if let Kind::Guest { source, .. } = table.kind {
                assert!(self.tables_of(source).any(|t| t == id));
            }
        }
        assert_eq!(self.leaves as usize, leaves.len());
        for head in &self.leaf_heads {
            let mut at = (*head != NIL).then(|| leaf_of(*head));
            while let Some((id, slot)) = at {
                assert!(leaves.remove(&(id, slot)), "in two chains, or dead");
                at = self.chain_next(host, id, slot);
            }
        }
        assert!(leaves.is_empty(), "not in the reverse map");
        assert_eq!(self.used, self.tables.len() as u32 * PAGES_PER_TABLE);
        assert!(self.used <= self.quota);
        for (id, source) in self.sources.iter() {
            assert_eq!(self.find_source(source.frame), Some(id));
            assert_eq!(source.state == Trust::Sync, source.place == NIL);
            assert!(source.place == NIL || self.unsync[source.place as usize] == id);
        }
        let listed = self.unsync.iter().filter(|s| **s != NIL).count();
        assert_eq!(listed, self.sources.iter().filter(|(_, s)| s.place != NIL).count());
        for (index, root) in self.roots.iter() {
            let mine = self.tables.iter().filter(|(_, t)| t.root == index).count();
            assert_eq!(mine, root.tables as usize);
        }
    }
}
