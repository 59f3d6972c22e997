//! A machine in small: L1's memory behind an `s2_01`, vCPUs that wander over pCPUs with hostile TLBs, and
//! the discipline of flushes and payments that the real glue follows. Every access checks what it reached.

use super::reference;
use crate::model::{ModelTables, Reach, Tag, Tlb};
use crate::shadow::{FaultOutcome, Host, RootRef, Scope, ShadowCache, TableWrite, WriteProtect, Zap};
use crate::walk12::{Access, Paging12, Root12, Shape, info1};
use crate::{Failed, MemType, Npt, Paid, Perms, Radix, Roots, TlbDebt};
use addr::testing::HeapPage;
use addr::{
    FaultReason, Frame, Gpa, GuestFault, GuestMemory, GuestPage, GuestPhys, Hpa, Ngpa, PageSize, Range,
};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

pub const CPUS: usize = 3;
pub const VCPUS: usize = 3;
/// Tags of a pCPU: few, so that they are reused.
const TAGS: usize = 4;

/// Who a tag on a pCPU stands for. `stint` changes whenever the vCPU moves: a tag from an earlier stay has
/// missed flushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TagKey {
    vcpu: usize,
    stint: u64,
    /// None: L1. Else the root and its generation.
    root: Option<(Hpa, u64)>,
}

#[derive(Debug)]
pub struct Vcpu {
    pub cpu: usize,
    stint: u64,
    pub root: Option<RootRef>,
}

/// L1 page and rights by which L2 might reach something, per L2 page.
type Allowed = BTreeMap<u64, Vec<(u64, Perms)>>;

pub struct World {
    pub tables: ModelTables,
    pub p2m: Radix<Npt>,
    /// Host frames of the domain and the L1 frame each serves as, also those whose debt is unpaid.
    owner: BTreeMap<u64, u64>,
    pub ram: BTreeMap<u64, HeapPage>,
    next_frame: u64,
    pub cache: ShadowCache<Npt>,
    pub protected: RefCell<BTreeSet<u64>>,
    tlb: Tlb<Npt>,
    tags: [Vec<TagKey>; CPUS],
    pub vcpus: Vec<Vcpu>,
    pub paging: Paging12,
    /// L2 pages that are looked at.
    pub ngpas: Vec<u64>,
    /// Since the vCPU's last flush, per (vCPU, nCR3).
    allowed: BTreeMap<(usize, u64), Allowed>,
    /// Debts not paid yet, and the host frames that are L1's until they are.
    pending: Vec<(TlbDebt, Vec<u64>)>,
    pub reached: u64,
}

/// The domain's memory through the p2m.
pub struct L1<'a>(pub &'a Radix<Npt>, pub &'a ModelTables, pub &'a BTreeMap<u64, HeapPage>);

impl GuestMemory for L1<'_> {
    type Page = HeapPage;
    fn pin(&self, frame: Frame<GuestPhys>) -> Result<HeapPage, GuestFault> {
        let fault = GuestFault { gpa: frame.start(), reason: FaultReason::NotMapped };
        let m = self.0.translate(self.1, frame.start()).ok_or(fault)?;
        Ok(self.2[&m.at(frame.start()).frame().number()].clone())
    }
    fn read(&self, _: Gpa, _: &mut [u8]) -> Result<(), GuestFault> {
        unreachable!("entries are read whole")
    }
    fn write(&self, _: Gpa, _: &[u8]) -> Result<(), GuestFault> {
        unreachable!("entries are never written blindly")
    }
}

pub struct Guard<'a>(pub &'a Radix<Npt>, pub &'a ModelTables, pub &'a RefCell<BTreeSet<u64>>);

impl WriteProtect for Guard<'_> {
    fn protect(&self, frame: Frame<GuestPhys>) -> Result<TlbDebt, Failed> {
        assert!(self.2.borrow_mut().insert(frame.number()), "protected twice");
        let range = Range::new(frame.start(), 0x1000).unwrap();
        self.0.protect(self.1, range, Perms::RX)
    }
    fn unprotect(&self, frame: Frame<GuestPhys>) {
        assert!(self.2.borrow_mut().remove(&frame.number()), "was not protected");
        let range = Range::new(frame.start(), 0x1000).unwrap();
        assert!(self.0.protect(self.1, range, Perms::RWX).unwrap().is_none());
    }
}

macro_rules! host {
    ($w:expr) => {
        $crate::shadow::Env {
            tables: &$w.tables,
            l1: &$crate::shadow::tests::world::L1(&$w.p2m, &$w.tables, &$w.ram),
            p2m: &$crate::P2m { radix: &$w.p2m, tables: &$w.tables },
            guard: &$crate::shadow::tests::world::Guard(&$w.p2m, &$w.tables, &$w.protected),
        }
    };
}
pub(super) use host;

impl World {
    /// L1 has RAM at frames 0..64 in 4 KiB pages, and one 2 MiB page at 2 MiB.
    pub fn new(paging: Paging12, ngpas: Vec<u64>, quota: u32) -> Self {
        let format = Npt::four_level(PageSize::Size1G);
        let tables = ModelTables::default();
        let p2m = Radix::new(format, &tables).unwrap();
        let mut world = Self {
            p2m,
            tables,
            owner: BTreeMap::new(),
            ram: BTreeMap::new(),
            next_frame: 0x10_0000,
            cache: ShadowCache::new(format, quota),
            protected: RefCell::default(),
            tlb: Tlb::new(format, CPUS),
            tags: Default::default(),
            vcpus: (0..VCPUS).map(|v| Vcpu { cpu: v % CPUS, stint: 0, root: None }).collect(),
            paging,
            ngpas,
            allowed: BTreeMap::new(),
            pending: Vec::new(),
            reached: 0,
        };
        (0..64).for_each(|n| world.map(n, PageSize::Size4K));
        world.map(512, PageSize::Size2M);
        world
    }

    /// Gives L1 fresh memory at `frame`.
    pub fn map(&mut self, frame: u64, size: PageSize) {
        let frames = size.bytes() >> 12;
        self.next_frame = self.next_frame.next_multiple_of(frames);
        let first = self.next_frame;
        self.next_frame += frames;
        for n in 0..frames {
            self.owner.insert(first + n, frame + n);
            self.ram.insert(first + n, HeapPage::default());
        }
        let range = Range::new(Gpa::new(frame << 12), size.bytes()).unwrap();
        let debt =
            self.p2m.map(&self.tables, range, Hpa::new(first << 12), Perms::RWX, MemType::WriteBack, size);
        assert!(debt.unwrap().is_none(), "only holes are mapped");
        self.note_change();
    }

    /// Takes L1's page away; its host frame is free once the debt, put on the pile, is paid.
    pub fn unmap(&mut self, frame: u64) {
        let gpa = Gpa::new(frame << 12);
        let Some(m) = self.p2m.translate(&self.tables, gpa) else { return };
        let range = Range::new(gpa, 0x1000).unwrap();
        let mut debt = self.p2m.unmap(&self.tables, range).unwrap();
        debt.merge(self.cache.zap(&host!(self), range, Zap::All));
        self.pending.push((debt, std::vec![m.at(gpa).frame().number()]));
        self.note_change();
    }
    pub fn is_mapped(&self, frame: u64) -> bool {
        self.p2m.translate(&self.tables, Gpa::new(frame << 12)).is_some()
    }

    pub fn pay_pending(&mut self) {
        for (debt, frames) in core::mem::take(&mut self.pending) {
            self.pay(debt);
            for frame in frames {
                self.owner.remove(&frame);
                self.ram.remove(&frame);
            }
        }
    }

    /// What `Tlb::pay` of the real thing does.
    pub fn pay(&mut self, debt: TlbDebt) {
        let flush = *debt.flush();
        for cpu in 0..CPUS {
            for (tag, key) in self.tags[cpu].clone().into_iter().enumerate() {
                let hit = match key.root {
                    None => flush.s2_01.is_some(),
                    Some((root, _)) => flush.s2_02 == Roots::All || flush.s2_02.contains(root),
                };
                if hit {
                    self.tlb.flush(cpu, tag as Tag);
                }
            }
        }
        debt.settle(&self.tables, Paid::flushed());
    }

    /// The tag of `vcpu` for L1 or its root: an old one is reused after a flush.
    fn tag(&mut self, vcpu: usize, root: Option<(Hpa, u64)>) -> Tag {
        let Vcpu { cpu, stint, .. } = self.vcpus[vcpu];
        let key = TagKey { vcpu, stint, root };
        let tags = &mut self.tags[cpu];
        if let Some(tag) = tags.iter().position(|k| *k == key) {
            return tag as Tag;
        }
        let tag = if tags.len() < TAGS {
            tags.push(key);
            tags.len() - 1
        } else {
            // Any will do, also one in use: its owner gets another.
            let tag = (stint as usize + vcpu * 7 + tags.len()) % TAGS;
            tags[tag] = key;
            tag
        };
        self.tlb.flush(cpu, tag as Tag);
        tag as Tag
    }

    pub fn migrate(&mut self, vcpu: usize, cpu: usize) {
        self.vcpus[vcpu].cpu = cpu;
        self.vcpus[vcpu].stint += 1;
    }

    /// VMRUN with another nCR3: by the architecture, a new translation context, thus a flush.
    pub fn enter(&mut self, vcpu: usize, ncr3: u64) {
        if self.vcpus[vcpu].root.as_ref().is_some_and(|root| root.key().base() == Gpa::new(ncr3)) {
            return;
        }
        if let Some(root) = self.vcpus[vcpu].root.take() {
            self.allowed.remove(&(vcpu, root.key().base().raw()));
            self.cache.release_root(root);
        }
        let (root, debt) = self.cache.acquire_root(&host!(self), Root12::new(ncr3, self.paging));
        self.pay(debt);
        self.vcpus[vcpu].root = Some(root.expect("the quota holds a few roots"));
        self.flush(vcpu, |_| {});
    }

    /// A flush by L1 on `vcpu`, with `between` run while the debt of its first half is outstanding.
    pub fn flush(&mut self, vcpu: usize, between: impl FnOnce(&mut Self)) {
        let Some(root) = self.vcpus[vcpu].root.take() else { return };
        let ncr3 = root.key().base().raw();
        let scope = if vcpu == 0 { Scope::ALL } else { root.scope() };
        let begun = self.cache.resync_begin(&host!(self), scope);
        // What is true from here on is what L1 may rely on.
        self.allowed.insert((vcpu, ncr3), self.reference(ncr3));
        let tag = self.tag(vcpu, Some((root.hpa(), root.generation())));
        self.vcpus[vcpu].root = Some(root);
        between(self);
        if let Some((resync, debt)) = begun {
            self.pay(debt);
            let debt = self.cache.resync_finish(&host!(self), resync);
            self.pay(debt);
        }
        self.tlb.flush(self.vcpus[vcpu].cpu, tag);
        // Now L1 relies on the least.
        for ngpa in self.ngpas.clone() {
            self.ways(vcpu, ngpa);
        }
    }

    /// L1 stores `value`. False if there is no memory.
    pub fn l1_write(&mut self, vcpu: usize, gpa: u64, value: u64, whim: usize) -> bool {
        for attempt in 0.. {
            assert!(attempt < 8, "L1 cannot get its store done");
            let tag = self.tag(vcpu, None);
            let cpu = self.vcpus[vcpu].cpu;
            let root = self.p2m.root();
            if let Some(reach) = self.tlb.access(&self.tables, cpu, tag, root, gpa, Perms::RW, whim + attempt)
            {
                return self.store(reach, gpa, value);
            }
            let frame = Gpa::new(gpa).frame();
            let host = host!(self);
            match self.p2m.translate(&self.tables, Gpa::new(gpa)) {
                None => return false,
                Some(m) if m.perms.contains(Perms::W) => {}
                Some(_) => {
                    let outcome = self.cache.on_table_write(host.guard(), frame);
                    assert_ne!(outcome, TableWrite::NotATable, "read-only for no reason");
                }
            }
        }
        unreachable!()
    }

    fn store(&mut self, reach: Reach, at: u64, value: u64) -> bool {
        let frame = reach.hpa.frame().number();
        assert!(self.owner.contains_key(&frame), "a store to a frame that is no longer the domain's");
        let page = &self.ram[&frame];
        match self.paging.levels() {
            2 => page.write_u32(at as usize & 0xffc, value as u32),
            _ => page.write_u64(at as usize & 0xff8, value),
        }
        self.note_change();
        true
    }

    /// L2 on `vcpu` accesses `ngpa`. Gives the L1 address and host address it reached, or why it did not.
    pub fn l2_access(
        &mut self,
        vcpu: usize,
        ngpa: u64,
        access: Access,
        value: Option<u64>,
        whim: usize,
    ) -> Result<u64, FaultOutcome> {
        let Some(root) = self.vcpus[vcpu].root.take() else { return Err(FaultOutcome::Retry) };
        let id = (root.hpa(), root.generation());
        let ncr3 = root.key().base().raw();
        let mut result = Err(FaultOutcome::Retry);
        self.vcpus[vcpu].root = Some(root);
        self.ways(vcpu, ngpa);
        let root = self.vcpus[vcpu].root.take().expect("just put there");
        for attempt in 0..12 {
            let tag = self.tag(vcpu, Some(id));
            let cpu = self.vcpus[vcpu].cpu;
            let way = self.tlb.access(&self.tables, cpu, tag, id.0, ngpa, access.needs(), whim + attempt);
            if let Some(reach) = way {
                let gpa = self.judge(vcpu, ncr3, ngpa, reach);
                if let Some(value) = value {
                    self.store(reach, ngpa, value);
                }
                result = Ok(gpa);
                break;
            }
            let (outcome, debt) = self.cache.handle_fault(&host!(self), &root, Ngpa::new(ngpa), access);
            self.pay(debt);
            if !matches!(outcome, FaultOutcome::Fixed | FaultOutcome::Retry) {
                result = Err(outcome);
                break;
            }
        }
        self.vcpus[vcpu].root = Some(root);
        // Accessed and dirty bits may have changed: no translation has.
        if let Err(FaultOutcome::Violation(v)) = result {
            let now = reference::walk(host!(self).l1, &self.paging, ncr3, ngpa, access);
            let found = match self.paging.shape() {
                // All rights of these tests have R.
                Shape::Ept if v.misconfigured => info1::P | info1::RSV,
                Shape::Ept => u64::from(v.info1 >> 3 & 7 != 0),
                _ => v.info1 & (info1::P | info1::RSV),
            };
            assert_eq!(Err(found), now, "reflected, but L1 allows it");
        }
        result
    }

    /// Whether this way to reach something is one that L1's tables, at some time since the vCPU's last
    /// flush, and L0's now, give. Returns the L1 address.
    fn judge(&mut self, vcpu: usize, ncr3: u64, ngpa: u64, reach: Reach) -> u64 {
        self.reached += 1;
        let frame = reach.hpa.frame().number();
        let Some(gpa) = self.owner.get(&frame) else {
            panic!("L2 at {ngpa:#x} reaches a frame that is no longer the domain's")
        };
        let allowed = &self.allowed[&(vcpu, ncr3)][&(ngpa & !0xfff)];
        let good = allowed.iter().any(|(g, perms)| g == gpa && perms.contains(reach.perms));
        assert!(good, "L2 at {ngpa:#x} reaches {gpa:#x} with {reach:?}; L1 allowed {allowed:x?}");
        gpa << 12 | reach.hpa.raw() & 0xfff
    }

    /// Every way in which the vCPU's L2 could now reach `ngpa`, each judged.
    pub fn ways(&mut self, vcpu: usize, ngpa: u64) -> Vec<Reach> {
        let Some(root) = &self.vcpus[vcpu].root else { return Vec::new() };
        let (id, ncr3) = ((root.hpa(), root.generation()), root.key().base().raw());
        let (tag, cpu) = (self.tag(vcpu, Some(id)), self.vcpus[vcpu].cpu);
        let ways = self.tlb.reaches(&self.tables, cpu, tag, id.0, ngpa);
        for way in &ways {
            self.judge(vcpu, ncr3, ngpa, *way);
        }
        ways
    }

    /// Everything L1's tables under `ncr3` now allow.
    fn reference(&self, ncr3: u64) -> Allowed {
        let host = host!(self);
        let now = |ngpa: u64| {
            let found = reference::rights(host.l1, &self.paging, ncr3, ngpa);
            (ngpa & !0xfff, found.map(|(gpa, perms)| (gpa >> 12, perms)).into_iter().collect())
        };
        self.ngpas.iter().map(|n| now(*n)).collect()
    }

    /// L1's tables may have changed: what they say now is allowed to everyone from now on.
    fn note_change(&mut self) {
        let keys: Vec<_> = self.allowed.keys().copied().collect();
        let roots: BTreeSet<u64> = keys.iter().map(|(_, ncr3)| *ncr3).collect();
        for ncr3 in roots {
            let now = self.reference(ncr3);
            for (_, allowed) in self.allowed.iter_mut().filter(|((_, n), _)| *n == ncr3) {
                for (ngpa, ways) in &now {
                    let list = allowed.entry(*ngpa).or_default();
                    list.extend(ways.iter().filter(|way| !list.contains(way)).copied().collect::<Vec<_>>());
                }
            }
        }
    }

    /// Writes an entry of L1's tables directly, for the set-up of a test (nothing runs yet).
    pub fn poke(&mut self, gpa: u64, value: u64) {
        let page = host!(self).l1.pin(Gpa::new(gpa).frame()).unwrap();
        match self.paging.levels() {
            2 => page.write_u32(gpa as usize & 0xffc, value as u32),
            _ => page.write_u64(gpa as usize & 0xff8, value),
        }
        self.note_change();
    }
    pub fn peek(&self, gpa: u64) -> u64 {
        let page = host!(self).l1.pin(Gpa::new(gpa).frame()).unwrap();
        page.read_u64(gpa as usize & 0xff8)
    }

    /// Ends as a domain does whose vCPUs had roots, and checks that nothing is lost.
    pub fn end_with_roots_held(mut self) {
        self.pay_pending();
        assert!(self.vcpus.iter().any(|vcpu| vcpu.root.is_some()));
        let format = Npt::four_level(PageSize::Size1G);
        let cache = core::mem::replace(&mut self.cache, ShadowCache::new(format, 1));
        let debt = cache.destroy(&host!(self));
        self.pay(debt);
        let Self { p2m, tables, .. } = self;
        p2m.destroy().settle(&tables, Paid::flushed());
        assert_eq!(tables.used(), 0);
    }

    /// Gives everything back and checks that nothing is lost.
    pub fn tear_down(mut self) {
        self.pay_pending();
        self.cache.check(&host!(self));
        for vcpu in 0..VCPUS {
            if let Some(root) = self.vcpus[vcpu].root.take() {
                self.cache.release_root(root);
            }
        }
        let debt = self.cache.clear(&host!(self));
        self.pay(debt);
        assert!(self.protected.borrow().is_empty(), "frames stay protected for nothing");
        let stats = self.cache.stats();
        assert_eq!((stats.pages, stats.leaves, stats.sources, stats.roots), (0, 0, 0, 0));
        let Self { p2m, tables, .. } = self;
        p2m.destroy().settle(&tables, Paid::flushed());
        assert_eq!(tables.used(), 0);
    }
}
