//! Laws of the tree, against a map of pages and the hostile TLB.

use super::*;
use crate::debt::Paid;
use crate::model::{ModelTables, Tlb};
use crate::npt::Npt;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec::Vec;

const M2: u64 = 0x20_0000;
const G1: u64 = 0x4000_0000;
const WB: MemType = MemType::WriteBack;

/// Addresses where something can go wrong: around the borders of the large pages used below.
fn probes() -> Vec<u64> {
    let edges = [0, M2, 2 * M2, G1 - M2, G1, G1 + M2, 2 * G1];
    let near = |e: u64| [e.saturating_sub(0x1000), e, e + 0x1000, e + 0x7000];
    let mut list: Vec<u64> = edges.into_iter().flat_map(near).collect();
    list.sort();
    list.dedup();
    list
}

#[derive(Clone, Debug)]
enum Change {
    Map { start: u64, bytes: u64, hpa: u64, perms: Perms, largest: PageSize },
    Unmap { start: u64, bytes: u64 },
    Protect { start: u64, bytes: u64, perms: Perms },
    Collapse { start: u64, bytes: u64 },
}

impl Change {
    fn range(&self) -> Range<GuestPhys> {
        let (Self::Map { start, bytes, .. }
        | Self::Unmap { start, bytes }
        | Self::Protect { start, bytes, .. }
        | Self::Collapse { start, bytes }) = *self;
        Range::new(Gpa::new(start), bytes).unwrap()
    }
    fn apply(&self, radix: &Radix<Npt>, mem: &ModelTables) -> Result<TlbDebt, Failed> {
        match *self {
            Self::Map { hpa, perms, largest, .. } => {
                radix.map(mem, self.range(), Hpa::new(hpa), perms, WB, largest)
            }
            Self::Unmap { .. } => radix.unmap(mem, self.range()),
            Self::Protect { perms, .. } => radix.protect(mem, self.range(), perms),
            Self::Collapse { .. } => Ok(radix.collapse(mem, self.range(), PageSize::Size1G)?),
        }
    }
    /// The same to a map from page to (frame, rights).
    fn model(&self, pages: &mut BTreeMap<u64, (u64, Perms)>) {
        for page in probes().into_iter().filter(|p| self.range().contains(Gpa::new(*p))) {
            match *self {
                Self::Map { start, hpa, perms, .. } => {
                    pages.insert(page, (hpa + (page - start), perms));
                }
                Self::Unmap { .. } => {
                    pages.remove(&page);
                }
                Self::Protect { perms, .. } => {
                    pages.entry(page).and_modify(|(_, old)| *old = perms);
                }
                Self::Collapse { .. } => {}
            }
        }
    }
}

fn changes() -> impl Strategy<Value = Change> {
    let starts =
        prop::sample::select(std::vec![0, 0x1000, M2 - 0x1000, M2, M2 + 0x7000, G1 - M2, G1, G1 + M2]);
    let lengths = prop::sample::select(std::vec![0x1000, 0x3000, M2 - 0x1000, M2, 2 * M2, G1]);
    let perms = prop::sample::select(std::vec![Perms::R, Perms::RW, Perms::RX, Perms::RWX]);
    let hosts = prop::sample::select(std::vec![0, 4 * G1, 4 * G1 + M2, 4 * G1 + 0x5000]);
    let sizes = prop::sample::select(PageSize::LARGEST_FIRST.to_vec());
    (0..7, starts, lengths, perms, hosts, sizes).prop_map(|(kind, start, bytes, perms, host, largest)| {
        match kind {
            // Host zero stands for "equal to the guest address": what `Collapse` can put together again.
            0..3 => Change::Map {
                start,
                bytes: bytes.min(4 * M2),
                hpa: if host == 0 { start } else { host },
                perms,
                largest,
            },
            3 => Change::Unmap { start, bytes },
            4 | 5 => Change::Protect { start, bytes, perms },
            _ => Change::Collapse { start: start & !(M2 - 1), bytes: bytes.max(M2) & !(M2 - 1) },
        }
    })
}

fn seen(radix: &Radix<Npt>, mem: &ModelTables, page: u64) -> Option<(u64, Perms)> {
    let m = radix.translate(mem, Gpa::new(page))?;
    Some((m.at(Gpa::new(page)).raw(), m.perms))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// After each change: translations are the model's; at each moment of it a walk saw the old or the
    /// new one; once the debt is paid, no cached translation or walk gives more than the new one.
    #[test]
    fn changes_are_exact_atomic_and_paid_for(list in prop::collection::vec(changes(), 1..16)) {
        let mem = ModelTables::default();
        let radix = Radix::new(Npt::four_level(PageSize::Size1G), &mem).unwrap();
        let mut tlb = Tlb::new(*radix.format(), 1);
        let mut pages = BTreeMap::new();
        for change in list {
            let before = pages.clone();
            for page in probes() {
                tlb.reaches(&mem, 0, 1, radix.root(), page);
            }
            mem.record();
            let debt = change.apply(&radix, &mem).unwrap();
            let writes = mem.recorded();
            change.model(&mut pages);

            mem.undo(&writes);
            for write in &writes {
                mem.redo(write);
                for page in probes() {
                    let now = seen(&radix, &mem, page);
                    prop_assert!(now.as_ref() == before.get(&page) || now.as_ref() == pages.get(&page));
                }
            }

            let owed = debt.flush().s2_01;
            for (page, (hpa, perms)) in &before {
                let kept = pages.get(page).is_some_and(|new| new.0 == *hpa && new.1.contains(*perms));
                let named = owed.is_some_and(|(start, end)| start.raw() <= *page && *page < end.raw());
                prop_assert!(kept || named, "{:x} lost by {:?}, owed {:?}", page, change, owed);
            }
            if owed.is_some() {
                tlb.flush(0, 1);
            }
            debt.settle(&mem, Paid::flushed());
            for page in probes() {
                let now = seen(&radix, &mem, page);
                prop_assert_eq!(now.as_ref(), pages.get(&page), "{:x} after {:?}", page, change);
                for reach in tlb.reaches(&mem, 0, 1, radix.root(), page) {
                    let (hpa, perms) = now.unwrap();
                    prop_assert!(reach.hpa.raw() == hpa && perms.contains(reach.perms));
                }
            }
        }
        radix.destroy().settle(&mem, Paid::flushed());
        prop_assert_eq!(mem.used(), 0);
    }

    /// Out of table memory at any point: what was not changed is as before, and no page is lost.
    #[test]
    fn running_out_leaves_old_or_new(list in prop::collection::vec(changes(), 1..8), limit in 1usize..12) {
        let mem = ModelTables::new(limit);
        let radix = Radix::new(Npt::four_level(PageSize::Size1G), &mem).unwrap();
        let mut pages = BTreeMap::new();
        for change in list {
            let before = pages.clone();
            change.model(&mut pages);
            match change.apply(&radix, &mem) {
                Ok(debt) => debt.settle(&mem, Paid::flushed()),
                Err(failed) => {
                    prop_assert_eq!(failed.error, MapError::NoMemory);
                    failed.debt.settle(&mem, Paid::flushed());
                    for page in probes() {
                        let now = seen(&radix, &mem, page);
                        prop_assert!(now.as_ref() == before.get(&page) || now.as_ref() == pages.get(&page));
                        match now {
                            Some(now) => pages.insert(page, now),
                            None => pages.remove(&page),
                        };
                    }
                }
            }
        }
        radix.destroy().settle(&mem, Paid::flushed());
        prop_assert_eq!(mem.used(), 0);
    }
}

fn tree() -> (ModelTables, Radix<Npt>) {
    let mem = ModelTables::default();
    let radix = Radix::new(Npt::four_level(PageSize::Size1G), &mem).unwrap();
    (mem, radix)
}

fn span(start: u64, bytes: u64) -> Range<GuestPhys> {
    Range::new(Gpa::new(start), bytes).unwrap()
}

#[test]
fn large_pages_are_used_split_and_put_together() {
    let (mem, radix) = tree();
    let largest = PageSize::Size1G;
    assert!(radix.map(&mem, span(0, 2 * G1), Hpa::new(8 * G1), Perms::RWX, WB, largest).unwrap().is_none());
    assert_eq!(mem.used(), 2, "root and one directory-pointer table");
    let one = span(G1 + 5 * M2 + 0x3000, 0x1000);
    let debt = radix.protect(&mem, one, Perms::RX).unwrap();
    // Splitting changes no translation: only the page itself is owed for.
    assert_eq!(debt.flush().s2_01, Some((one.start(), one.end())));
    debt.settle(&mem, Paid::flushed());
    assert_eq!(mem.used(), 4);
    let at = |gpa| radix.translate(&mem, Gpa::new(gpa)).unwrap();
    assert_eq!((at(one.start().raw()).perms, at(one.start().raw()).size), (Perms::RX, PageSize::Size4K));
    assert_eq!((at(G1).perms, at(G1).size), (Perms::RWX, PageSize::Size2M));
    assert_eq!(at(G1 + 5 * M2).hpa, Hpa::new(9 * G1 + 5 * M2));
    assert!(radix.collapse(&mem, span(0, 2 * G1), largest).unwrap().is_none(), "not alike");

    assert!(radix.protect(&mem, one, Perms::RWX).unwrap().is_none(), "more rights owe nothing");
    let debt = radix.collapse(&mem, span(0, 2 * G1), largest).unwrap();
    assert!(!debt.is_none() && mem.used() == 4, "pages stay until paid");
    debt.settle(&mem, Paid::flushed());
    assert_eq!((mem.used(), at(G1).size), (2, PageSize::Size1G));
}

#[test]
fn bad_requests_change_nothing() {
    let (mem, radix) = tree();
    let map = |range, hpa, perms| {
        radix.map(&mem, range, Hpa::new(hpa), perms, WB, PageSize::Size1G).map_err(|f| f.error).unwrap_err()
    };
    assert_eq!(map(span(0x800, 0x1000), 0, Perms::R), MapError::Unaligned);
    assert_eq!(map(span(0x1000, 0x1000), 1, Perms::R), MapError::Unaligned);
    assert_eq!(map(span(1 << 47, 1 << 48), 0, Perms::R), MapError::OutOfRange);
    assert_eq!(map(span(0, 0x2000), !0xfff, Perms::R), MapError::OutOfRange);
    assert_eq!(map(span(0, 0x1000), 0, Perms::X), MapError::BadPerms);
    assert!(radix.unmap(&mem, span(0, 1 << 48)).unwrap().is_none());
    assert_eq!(radix.translate(&mem, Gpa::new(1 << 48)), None);
    assert_eq!(mem.used(), 1);
}

#[test]
fn devices_keep_their_memory_type() {
    let (mem, radix) = tree();
    let uc = MemType::Uncached;
    let range = span(0xfee0_0000, 0x2000);
    assert!(
        radix.map(&mem, range, Hpa::new(0xfee0_0000), Perms::RW, uc, PageSize::Size4K).unwrap().is_none()
    );
    assert_eq!(radix.translate(&mem, Gpa::new(0xfee0_1000)).unwrap().memtype, uc);
    // Another memory type is another mapping: stale ones must go.
    let debt = radix.map(&mem, range, Hpa::new(0xfee0_0000), Perms::RW, WB, PageSize::Size4K).unwrap();
    assert!(!debt.is_none());
    debt.settle(&mem, Paid::flushed());
}

#[test]
fn five_levels_reach_57_bits() {
    let mem = ModelTables::default();
    let radix = Radix::new(Npt::five_level(PageSize::Size2M), &mem).unwrap();
    let high = (1 << 57) - M2;
    assert!(radix.map(&mem, span(high, M2), Hpa::new(M2), Perms::R, WB, PageSize::Size1G).unwrap().is_none());
    assert_eq!(seen(&radix, &mem, high + 0x1000), Some((M2 + 0x1000, Perms::R)));
    assert_eq!(mem.used(), 4);
}
