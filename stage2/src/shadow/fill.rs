//! Building on a fault: the chain of tables for one walk, and its leaf.

use super::Host;
use super::state::{Inner, Kind, New, NoRoom, Want, part};
use crate::debt::TlbDebt;
use crate::format::{Entry, Format, Mapping, Perms, slot};
use crate::walk12::Mapped;
use addr::{Gpa, Ngpa, PageSize};

/// What a slot should be.
struct Wanted {
    /// L1's entry behind it; zero where there is none.
    raw: u64,
    /// The rights that entry gives, apart from those above and below it.
    perms: Perms,
    /// The table below, unless this is where the leaf goes.
    below: Want,
}

impl<F: Format> Inner<F> {
    /// Installs the translation of `ngpa` that `mapped` (L1's part) and `page` (the p2m's) make.
    pub fn fill(
        &mut self,
        host: &impl Host,
        root: u32,
        mapped: &Mapped,
        page: &Mapping,
        ngpa: Ngpa,
        debt: &mut TlbDebt,
    ) -> Result<(), NoRoom> {
        let size = mapped.size.min(page.size).min(self.format.max_page());
        let mut table = self.roots[root].top;
        for level in (size.level() + 1..=self.format.levels()).rev() {
            let wanted = self.wanted(root, mapped, ngpa, level);
            table = self.follow(host, table, slot(ngpa.raw(), level), wanted, debt)?;
        }
        self.install(host, table, size, mapped, page, ngpa, debt);
        Ok(())
    }

    /// What the slot at `level` on the way to `ngpa` should be.
    fn wanted(&self, root: u32, mapped: &Mapped, ngpa: Ngpa, level: u8) -> Wanted {
        let key = &self.roots[root].key;
        let Some(visit) = mapped.at_level(level) else {
            // Above L1's walk, or below it.
            let below = if level > key.paging().levels() {
                self.want_below(root, level, ngpa.raw())
            } else {
                pieces(mapped, level)
            };
            return Wanted { raw: 0, perms: Perms::RWX, below };
        };
        let (perms, below) = match mapped.at_level(level - 1).filter(|_| !visit.leaf) {
            Some(next) => {
                (visit.perms, Want::Guest { frame: next.frame, part: part(key, level - 1, ngpa.raw()) })
            }
            None => (until_dirty(visit.perms, mapped.dirty), pieces(mapped, level)),
        };
        Wanted { raw: visit.raw, perms, below }
    }

    /// The table below a slot, made or remade if it is not the one wanted.
    fn follow(
        &mut self,
        host: &impl Host,
        id: u32,
        slot: usize,
        wanted: Wanted,
        debt: &mut TlbDebt,
    ) -> Result<u32, NoRoom> {
        let Wanted { raw, perms, below } = wanted;
        if let Some(child) = self.linked(host, id, slot, perms)
            && self.is(child, below)
        {
            if self.raw(host, id, slot) != raw {
                self.set_raw(host, id, slot, raw);
            }
            return Ok(child);
        }
        if let Entry::Table { next, perms: old } = self.entry(host, id, slot) {
            let child = self.child(host, id, slot);
            // Rights of a table built from L1's never grow in place: leaves below may be from a time
            // when L1 had more in lower entries and less in this one, and never both.
            let may_stay = old.contains(perms) || matches!(self.tables[child].kind, Kind::Pieces { .. });
            if may_stay && self.is(child, below) {
                self.set_rights(host, id, slot, F::table(next, perms), debt);
                self.set_raw(host, id, slot, raw);
                return Ok(child);
            }
        }
        let (root, level) = (self.tables[id].root, self.tables[id].level);
        let child = self.new_table(host, root, (id, slot), level - 1, below)?;
        let entry = F::table(self.tables[child].hpa, perms);
        self.put(host, id, slot, New::Link { raw, child, entry }, debt);
        Ok(child)
    }

    #[expect(clippy::too_many_arguments, reason = "both halves of a translation, and where it goes")]
    fn install(
        &mut self,
        host: &impl Host,
        id: u32,
        size: PageSize,
        mapped: &Mapped,
        page: &Mapping,
        ngpa: Ngpa,
        debt: &mut TlbDebt,
    ) {
        let level = size.level();
        let slot = slot(ngpa.raw(), level);
        let (raw, perms12) = match mapped.at_level(level) {
            // The leaf of L1's is higher up; its rights are there, too.
            None => (0, Perms::RWX),
            Some(visit) => (visit.raw, until_dirty(visit.perms, mapped.dirty)),
        };
        let piece = page.piece(mapped.gpa, size);
        let entry = F::leaf(&Mapping { perms: piece.perms & perms12, ..piece });
        let gpa = mapped.gpa.align_down(size);
        self.counts.filled += 1;
        if matches!(self.entry(host, id, slot), Entry::Leaf(_)) && self.leaf_gpa(host, id, slot) == gpa {
            // It stays in its place in the reverse map.
            self.set_raw(host, id, slot, raw);
            self.set_rights(host, id, slot, entry, debt);
        } else {
            self.put(host, id, slot, New::Leaf { raw, gpa, entry }, debt);
        }
    }
}

/// The pieces of a large page of L1's that a slot at `level` stands for.
fn pieces(mapped: &Mapped, level: u8) -> Want {
    let base = match PageSize::of_level(level) {
        Some(size) => mapped.gpa.align_down(size),
        None => Gpa::ZERO,
    };
    Want::Pieces { base }
}

/// A page whose dirty bit is clear is read-only, so that its first write is seen.
pub(super) fn until_dirty(perms: Perms, dirty: bool) -> Perms {
    if dirty { perms } else { perms.without(Perms::W) }
}
