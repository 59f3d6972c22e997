//! Which host frame lies behind which guest frame of a domain: the nested page tables and the lock of their changes.
//! Pure: frames are numbers here, whose they are is the caller's.
//!
//! Each change looks up what it takes away and takes it away under one lock, and tells it to the caller: of two vCPUs
//! that race for a frame exactly one gets it, to release it once the debt is paid.

use addr::{Frame, Gpa, GuestPhys, HostPhys, Hpa, PAGE_SIZE, PageSize, Range};
use alloc::collections::BTreeMap;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use spin::Mutex;
use stage2::{MapError, Mapping, MemType, Npt, Perms, Radix, TableMemory, TlbDebt};

/// The map of one domain.
#[derive(Debug)]
pub struct GuestMap<T> {
    tables: T,
    radix: Option<Radix<Npt>>,
    /// Held for structural change of the tables; never while waiting for other CPUs. Pages that others granted and
    /// the guest mapped, by its frame.
    change: Mutex<BTreeMap<u64, Foreign>>,
    top: AtomicU64,
}

/// A granted page in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// The page.
    pub frame: Frame<HostPhys>,
    /// Whether the guest may write it.
    pub writable: bool,
}

/// What a change took away, to be released once the debt is paid.
#[must_use]
#[derive(Debug)]
pub struct Changed {
    /// The frame that was there.
    pub old: Option<Frame<HostPhys>>,
    /// What the change owes.
    pub debt: TlbDebt,
}

/// Why a change was refused. The debt of what was done and undone is to be paid all the same.
#[derive(Debug)]
pub enum Refused {
    /// Nothing is there, or not what was expected.
    Missing,
    /// Something is there already, or a granted page is, which goes only as it came.
    Taken,
    /// The tables cannot be made.
    Failed(TlbDebt),
}

impl<T: TableMemory> GuestMap<T> {
    /// An empty map whose pages are at most `largest`. `None`: no memory for the root table.
    pub fn new(tables: T, largest: PageSize) -> Option<Self> {
        let radix = Radix::new(Npt::four_level(largest), &tables)?;
        Some(Self { tables, radix: Some(radix), change: Mutex::new(BTreeMap::new()), top: AtomicU64::new(0) })
    }

    #[inline]
    fn radix(&self) -> &Radix<Npt> {
        self.radix.as_ref().expect("present until drop")
    }

    /// Root of the tables.
    pub fn root(&self) -> Hpa {
        self.radix().root()
    }

    /// The table pages' memory.
    #[inline]
    pub fn tables(&self) -> &T {
        &self.tables
    }

    /// The highest frame that was ever mapped.
    pub fn top(&self) -> u64 {
        self.top.load(Relaxed)
    }

    /// Where `gpa` lies, as the tables say now. Needs no lock.
    #[inline]
    pub fn translate(&self, gpa: Gpa) -> Option<Mapping> {
        self.radix().translate(&self.tables, gpa)
    }

    fn frame_at(&self, at: Frame<GuestPhys>) -> Option<Frame<HostPhys>> {
        self.translate(at.start()).map(|mapping| mapping.at(at.start()).frame())
    }

    /// Puts `frame` at `at`, to be read and written, instead of what is there.
    pub fn put(&self, at: Frame<GuestPhys>, frame: Frame<HostPhys>) -> Result<Changed, Refused> {
        self.put_locked(&self.change.lock(), at, frame, Perms::RW)
    }

    /// Puts a granted page at `at` instead of what is there.
    pub fn put_foreign(&self, at: Frame<GuestPhys>, page: Foreign) -> Result<Changed, Refused> {
        let mut foreign = self.change.lock();
        let perms = if page.writable { Perms::RW } else { Perms::R };
        let changed = self.put_locked(&foreign, at, page.frame, perms)?;
        foreign.insert(at.number(), page);
        Ok(changed)
    }

    fn put_locked(
        &self,
        foreign: &BTreeMap<u64, Foreign>,
        at: Frame<GuestPhys>,
        frame: Frame<HostPhys>,
        perms: Perms,
    ) -> Result<Changed, Refused> {
        let range = one(at).ok_or(Refused::Missing)?;
        if foreign.contains_key(&at.number()) {
            return Err(Refused::Taken);
        }
        let old = self.frame_at(at);
        let kind = MemType::WriteBack;
        let done = self.radix().map(&self.tables, range, frame.start(), perms, kind, PageSize::Size4K);
        let debt = done.map_err(|failed| Refused::Failed(failed.debt))?;
        self.top.fetch_max(at.number(), Relaxed);
        Ok(Changed { old, debt })
    }

    /// Takes the granted page `frame` from `at`. `first` runs before anybody can see that it is none any more.
    /// Something else there: `Taken`.
    pub fn take_foreign(
        &self,
        at: Frame<GuestPhys>,
        frame: Frame<HostPhys>,
        first: impl FnOnce(),
    ) -> Result<TlbDebt, Refused> {
        let range = one(at).ok_or(Refused::Missing)?;
        let mut foreign = self.change.lock();
        if foreign.get(&at.number()).is_none_or(|page| page.frame != frame) {
            return Err(Refused::Taken);
        }
        let done = self.radix().unmap(&self.tables, range);
        let debt = done.map_err(|failed| Refused::Failed(failed.debt))?;
        first();
        foreign.remove(&at.number());
        Ok(debt)
    }

    /// Whether a granted page is at `at`.
    pub fn is_foreign(&self, at: Frame<GuestPhys>) -> bool {
        self.change.lock().contains_key(&at.number())
    }

    /// Shows the granted page at `at`, which stays while `f` looks.
    pub fn with_foreign<R>(&self, at: Frame<GuestPhys>, f: impl FnOnce(Option<&Foreign>) -> R) -> R {
        f(self.change.lock().get(&at.number()))
    }

    /// Gives up what is known of granted pages, at the end of the map. Their mappings stay.
    pub fn forget_foreign(&self) -> BTreeMap<u64, Foreign> {
        core::mem::take(&mut *self.change.lock())
    }

    /// Makes `at` a hole; with `only`, just if that frame is there.
    pub fn take(&self, at: Frame<GuestPhys>, only: Option<Frame<HostPhys>>) -> Result<Changed, Refused> {
        let range = one(at).ok_or(Refused::Missing)?;
        let foreign = self.change.lock();
        if foreign.contains_key(&at.number()) {
            return Err(Refused::Taken);
        }
        let old = self.frame_at(at).ok_or(Refused::Missing)?;
        if only.is_some_and(|only| only != old) {
            return Err(Refused::Missing);
        }
        let done = self.radix().unmap(&self.tables, range);
        let debt = done.map_err(|failed| Refused::Failed(failed.debt))?;
        Ok(Changed { old: Some(old), debt })
    }

    /// Puts host memory at all of `pieces`, with all rights, if there is nothing at any of them; else changes nothing.
    pub fn fill(&self, pieces: &[(Range<GuestPhys>, Frame<HostPhys>)]) -> Result<TlbDebt, Refused> {
        let _guard = self.change.lock();
        if pieces.iter().any(|(range, _)| self.radix().maps_any(&self.tables, *range)) {
            return Err(Refused::Taken);
        }
        let mut debt = TlbDebt::none();
        for (n, (range, frame)) in pieces.iter().enumerate() {
            let (perms, kind) = (Perms::RWX, MemType::WriteBack);
            match self.radix().map(&self.tables, *range, frame.start(), perms, kind, PageSize::Size1G) {
                Ok(more) => debt.merge(more),
                Err(failed) => {
                    debt.merge(failed.debt);
                    for (range, _) in &pieces[..=n] {
                        // Nothing needs to be split: these are whole pieces of this very call.
                        match self.radix().unmap(&self.tables, *range) {
                            Ok(more) => debt.merge(more),
                            Err(failed) => debt.merge(failed.debt),
                        }
                    }
                    return Err(Refused::Failed(debt));
                }
            }
            self.top.fetch_max(range.end().raw() / PAGE_SIZE - 1, Relaxed);
        }
        Ok(debt)
    }

    /// Changes the rights of the frame at `at`. An error if `may` does not agree with what is there: whoever wants a
    /// page protected must know when it is not.
    pub fn protect(
        &self,
        at: Frame<GuestPhys>,
        perms: Perms,
        may: impl FnOnce(Frame<HostPhys>) -> bool,
    ) -> Result<TlbDebt, stage2::Failed> {
        let range = one(at).ok_or(MapError::OutOfRange)?;
        let foreign = self.change.lock();
        // A granted page has the rights that were granted.
        if foreign.contains_key(&at.number()) || !self.frame_at(at).is_some_and(may) {
            return Err(MapError::OutOfRange.into());
        }
        self.radix().protect(&self.tables, range, perms)
    }

    /// Shows every page there is. The work is in proportion to the tables, not to the space between pages.
    pub fn for_each(&self, f: impl FnMut(Gpa, Mapping)) {
        let _guard = self.change.lock();
        self.radix().for_each(&self.tables, f);
    }

    /// Gives up the tables, which the debt then owns. The map may not be used any more.
    pub fn destroy(&mut self) -> TlbDebt {
        self.radix.take().map_or_else(TlbDebt::none, Radix::destroy)
    }
}

fn one(at: Frame<GuestPhys>) -> Option<Range<GuestPhys>> {
    Range::new(at.start(), PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicUsize;
    use stage2::Paid;
    use stage2::model::ModelTables;
    use std::thread;
    use std::vec::Vec;

    /// Tables that count what is read, and let others go first at each step.
    #[derive(Debug)]
    struct Slow {
        tables: ModelTables,
        reads: AtomicUsize,
    }

    impl TableMemory for Slow {
        fn alloc(&self) -> Option<Hpa> {
            self.tables.alloc()
        }
        fn free(&self, table: Hpa) {
            self.tables.free(table);
        }
        fn read(&self, table: Hpa, index: usize) -> u64 {
            self.reads.fetch_add(1, Relaxed);
            thread::yield_now();
            self.tables.read(table, index)
        }
        fn write(&self, table: Hpa, index: usize, entry: u64) {
            thread::yield_now();
            self.tables.write(table, index, entry);
        }
        fn compare_exchange(&self, table: Hpa, index: usize, old: u64, new: u64) -> Result<(), u64> {
            self.tables.compare_exchange(table, index, old, new)
        }
    }

    fn map(limit: usize) -> GuestMap<Slow> {
        let tables = Slow { tables: ModelTables::new(limit), reads: AtomicUsize::new(0) };
        GuestMap::new(tables, PageSize::Size1G).unwrap()
    }

    fn frame(n: u64) -> Frame<HostPhys> {
        Frame::new(n)
    }

    fn settle(map: &GuestMap<Slow>, changed: Changed) -> Option<Frame<HostPhys>> {
        changed.debt.settle(map.tables(), Paid::flushed());
        changed.old
    }

    fn piece(at: u64, pages: u64, host: u64) -> (Range<GuestPhys>, Frame<HostPhys>) {
        (Range::new(Frame::new(at).start(), pages * PAGE_SIZE).unwrap(), frame(host))
    }

    fn fill(map: &GuestMap<Slow>, pieces: &[(Range<GuestPhys>, Frame<HostPhys>)]) -> bool {
        match map.fill(pieces) {
            Ok(debt) | Err(Refused::Failed(debt)) if debt.is_none() => {
                map.translate(pieces[0].0.start()).is_some()
            }
            Ok(debt) => {
                debt.settle(map.tables(), Paid::flushed());
                true
            }
            Err(Refused::Failed(debt)) => {
                debt.settle(map.tables(), Paid::flushed());
                false
            }
            Err(_) => false,
        }
    }

    /// What each of two vCPUs that do `f` at the same moment gets.
    fn race<R: Send>(f: impl Fn(u64) -> R + Sync) -> [R; 2] {
        let gate = std::sync::Barrier::new(2);
        thread::scope(|scope| {
            let start = |who| {
                let (f, gate) = (&f, &gate);
                scope.spawn(move || {
                    gate.wait();
                    f(who)
                })
            };
            let both = [start(0), start(1)];
            both.map(|one| one.join().unwrap())
        })
    }

    #[test]
    fn of_two_that_unmap_a_frame_at_once_one_gets_it() {
        let map = map(usize::MAX);
        for round in 0..300 {
            assert!(fill(&map, &[piece(round, 1, 1000 + round)]));
            let got =
                race(|_| map.take(Frame::new(round), None).ok().and_then(|changed| settle(&map, changed)));
            let got: Vec<_> = got.into_iter().flatten().collect();
            assert_eq!(got, [frame(1000 + round)], "released exactly once");
        }
    }

    #[test]
    fn of_two_that_replace_a_frame_one_gets_it_and_one_gets_the_others() {
        let map = map(usize::MAX);
        for round in 0..300 {
            assert!(fill(&map, &[piece(round, 1, 1000)]));
            let put = |who: u64| settle(&map, map.put(Frame::new(round), frame(1 + who)).unwrap()).unwrap();
            let mut got: Vec<_> = race(put).into_iter().map(|frame| frame.number()).collect();
            got.push(map.translate(Frame::new(round).start()).unwrap().hpa.frame().number());
            got.sort_unstable();
            assert_eq!(got, [1, 2, 1000], "each frame is with one");
        }
    }

    #[test]
    fn of_two_that_fill_a_hole_one_does() {
        let map = map(usize::MAX);
        for round in 0..300 {
            let at = round * 8;
            let filled =
                race(|who| fill(&map, &[piece(at, 4, 1000 + 100 * who), piece(at + 4, 4, 5000 + 100 * who)]));
            assert_eq!(filled.iter().filter(|filled| **filled).count(), 1);
            let winner = u64::from(filled[1]) * 100;
            for n in 0..8 {
                let host = if n < 4 { 1000 + n } else { 5000 + n - 4 } + winner;
                let found = map.translate(Frame::new(at + n).start()).unwrap();
                assert_eq!(found.at(Frame::<GuestPhys>::new(at + n).start()).frame(), frame(host));
            }
        }
    }

    #[test]
    fn what_does_not_fit_leaves_nothing() {
        // The root, and the three tables of the first piece.
        let map = map(4);
        assert!(fill(&map, &[piece(0, 1, 7)]));
        assert!(!fill(&map, &[piece(1, 1, 8), piece(1 << 30, 1, 9)]));
        assert!(map.translate(Frame::new(1).start()).is_none());
        assert!(!fill(&map, &[piece(5, 1, 8), piece(0, 1, 9)]), "something is there");
        assert!(map.translate(Frame::new(5).start()).is_none());
    }

    #[test]
    fn only_what_is_expected_is_taken() {
        let map = map(usize::MAX);
        assert!(settle(&map, map.put(Frame::new(3), frame(7)).unwrap()).is_none());
        assert!(matches!(map.take(Frame::new(3), Some(frame(8))), Err(Refused::Missing)));
        let changed = map.take(Frame::new(3), Some(frame(7))).unwrap();
        assert_eq!(settle(&map, changed), Some(frame(7)));
        assert!(matches!(map.take(Frame::new(3), None), Err(Refused::Missing)));
        assert!(matches!(map.take(Frame::new(u64::MAX >> 12), None), Err(Refused::Missing)));
    }

    #[test]
    fn a_granted_page_goes_only_as_it_came() {
        let map = map(usize::MAX);
        let at = Frame::new(3);
        assert!(settle(&map, map.put(at, frame(7)).unwrap()).is_none());
        let granted = Foreign { frame: frame(9), writable: false };
        assert_eq!(settle(&map, map.put_foreign(at, granted).unwrap()), Some(frame(7)), "replaces RAM");
        assert_eq!(map.translate(at.start()).unwrap().perms, Perms::R);
        assert!(matches!(map.put_foreign(at, granted), Err(Refused::Taken)));
        assert!(matches!(map.put(at, frame(7)), Err(Refused::Taken)));
        assert!(matches!(map.take(at, None), Err(Refused::Taken)));
        assert!(map.protect(at, Perms::RW, |_| true).is_err(), "keeps the rights that were granted");
        assert_eq!(map.translate(at.start()).unwrap().perms, Perms::R);
        assert!(matches!(map.take_foreign(at, frame(7), || ()), Err(Refused::Taken)));
        let debt = map.take_foreign(at, frame(9), || assert!(map.change.is_locked())).unwrap();
        debt.settle(map.tables(), Paid::flushed());
        assert!(!map.is_foreign(at) && map.translate(at.start()).is_none());
        assert!(matches!(map.take_foreign(at, frame(9), || ()), Err(Refused::Taken)));
    }

    #[test]
    fn the_end_visits_what_is_there_and_not_the_space_between() {
        let mut map = map(usize::MAX);
        assert!(fill(&map, &[piece(0, 16, 100), piece(1 << 18, 1 << 18, 1 << 18)]));
        let highest = (1 << 36) - 1;
        for at in [1 << 20, 1 << 30, highest] {
            assert!(settle(&map, map.put(Frame::new(at), frame(at & 0xffff)).unwrap()).is_none());
        }
        assert_eq!(map.top(), highest);
        map.tables().reads.store(0, Relaxed);
        let mut seen = Vec::new();
        map.for_each(|gpa, mapping| seen.push((gpa.frame().number(), mapping.size.bytes() / PAGE_SIZE)));
        assert_eq!(seen.len(), 16 + 1 + 3);
        assert_eq!(seen[16], (1 << 18, 1 << 18), "a large page is one");
        assert_eq!(seen.last(), Some(&(highest, 1)));
        let reads = map.tables().reads.load(Relaxed);
        assert!(reads <= 512 * map.tables().tables.used(), "{reads} reads");
        map.destroy().settle(map.tables(), Paid::flushed());
        assert_eq!(map.tables().tables.used(), 0);
    }
}
