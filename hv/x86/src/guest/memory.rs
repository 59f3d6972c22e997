//! A domain's physical memory: the nested page tables that translate it, and the frames behind them.
// UNSAFETY: writes nested page tables through the direct map.
#![allow(unsafe_code)]

use crate::guest::page::Page;
use crate::guest::tlb::TlbControl;
use crate::mm::{direct, frames::frames};
use addr::{
    FaultReason, Frame, Gpa, GuestFault, GuestMemory, GuestPhys, HostPhys, Hpa, PAGE_SIZE, PageSize, Range,
    page_chunks,
};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use hv_core::memory::{FrameState, Kind, Owner, Zone};
use hv_core::platform::{DomainMemory, MapError};
use spin::Mutex;
use stage2::shadow::{Env, ShadowCache, Zap};
use stage2::{Flush, Mapping, MemType, Npt, Paid, Perms, Radix, TableMemory, TlbDebt, Translate2};

/// Table pages of one domain: charged to it, zeroed, reached through the direct map.
#[derive(Clone, Copy, Debug)]
pub struct Tables(pub Owner);

impl TableMemory for Tables {
    fn alloc(&self) -> Option<Hpa> {
        let frame = frames().alloc(0, self.0, Kind::Table, Zone::Any).ok()?;
        // SAFETY: the frame was just given to us.
        unsafe { direct::zero(frame) };
        Some(frame.start())
    }
    fn free(&self, table: Hpa) {
        frames().free(table.frame(), 0, self.0).expect("a table page of this domain");
    }
    #[inline]
    fn read(&self, table: Hpa, index: usize) -> u64 {
        // SAFETY: the engine hands in only pages it got from `alloc`.
        unsafe { direct::read_entry(table, index) }
    }
    #[inline]
    fn write(&self, table: Hpa, index: usize, entry: u64) {
        // SAFETY: as above; what the entry grants is the engine's to decide.
        unsafe { direct::write_entry(table, index, entry) };
    }
    #[inline]
    fn compare_exchange(&self, table: Hpa, index: usize, old: u64, new: u64) -> Result<(), u64> {
        let at = direct::pointer(table).cast::<u64>();
        // SAFETY: as above; the index is reduced to the page.
        let entry = unsafe { AtomicU64::from_ptr(at.add(index & 511)) };
        entry
            .compare_exchange(
                old,
                new,
                core::sync::atomic::Ordering::AcqRel,
                core::sync::atomic::Ordering::Acquire,
            )
            .map(drop)
    }
}

/// A domain's physical memory.
#[derive(Debug)]
pub struct GuestRam {
    owner: Owner,
    tables: Tables,
    radix: Option<Radix<Npt>>,
    /// Held for structural change of the tables; never while waiting for other CPUs.
    change: Mutex<()>,
    tlb: Arc<TlbControl>,
    pages: AtomicU64,
    top: AtomicU64,
    layout: AtomicU64,
    /// Pages of ours that the guest maps above its RAM, wherever it likes: the end of the domain visits these and
    /// not the space between.
    high: Mutex<BTreeSet<u64>>,
    /// The composed tables of this domain's L2s, if it may have any.
    shadow: Option<ShadowCache<Npt>>,
    /// Bytes of the hypervisor's heap that are charged to the domain.
    charged: Mutex<u64>,
    /// Pages that others granted and the guest mapped, by its frame. Taken with or after `change`.
    foreign: Mutex<BTreeMap<u64, Foreign>>,
}

/// A granted page in the guest's memory. The mapping has a pin of its own.
#[derive(Clone, Copy, Debug)]
struct Foreign {
    frame: Frame<HostPhys>,
    writable: bool,
}

/// Most entries of [`GuestRam::high`].
const MOST_HIGH: usize = 4096;

/// Why memory could not be given to a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

impl GuestRam {
    /// Empty memory of domain `owner`. `nested`: its L2s' tables may use that many pages.
    pub fn new(owner: Owner, gigabyte_pages: bool, nested: Option<u32>) -> Result<Self, OutOfMemory> {
        let tables = Tables(owner);
        let largest = if gigabyte_pages { PageSize::Size1G } else { PageSize::Size2M };
        let radix = Radix::new(Npt::four_level(largest), &tables).ok_or(OutOfMemory)?;
        Ok(GuestRam {
            owner,
            tables,
            radix: Some(radix),
            change: Mutex::new(()),
            tlb: Arc::new(TlbControl::default()),
            pages: AtomicU64::new(0),
            top: AtomicU64::new(0),
            layout: AtomicU64::new(0),
            high: Mutex::new(BTreeSet::new()),
            shadow: nested.map(|quota| ShadowCache::new(Npt::four_level(largest), quota)),
            charged: Mutex::new(0),
            foreign: Mutex::new(BTreeMap::new()),
        })
    }

    #[inline]
    fn radix(&self) -> &Radix<Npt> {
        self.radix.as_ref().expect("present until drop")
    }

    /// Root of the nested page tables.
    pub fn root(&self) -> Hpa {
        self.radix().root()
    }

    /// Whose memory it is.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// The table pages' memory.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The composed tables of the domain's L2s.
    #[inline]
    pub fn shadow(&self) -> Option<&ShadowCache<Npt>> {
        self.shadow.as_ref()
    }

    /// Changes the rights of one frame of RAM. For the write protection of L1's own tables; what it owes is
    /// the caller's to pay.
    pub fn set_rights(&self, frame: Frame<GuestPhys>, perms: Perms) -> Result<TlbDebt, stage2::Failed> {
        let _guard = self.change.lock();
        let range = Range::new(frame.start(), PAGE_SIZE).ok_or(stage2::MapError::OutOfRange)?;
        let is_ram = self.translate_now(frame.start()).is_some_and(|m| {
            matches!(
                frames().state(m.at(frame.start()).frame()),
                FrameState::Owned { kind: Kind::DomainRam, .. }
            )
        });
        // A granted page has the rights that were granted.
        if !is_ram || self.is_foreign(frame) {
            return Ok(TlbDebt::none());
        }
        self.radix().protect(&self.tables, range, perms)
    }

    /// Takes what was built from `frame` out of the L2s' tables, after it has changed here.
    fn zap(&self, frame: Frame<GuestPhys>) {
        if let Some(shadow) = &self.shadow
            && let Some(range) = Range::new(frame.start(), PAGE_SIZE)
        {
            let env = Env { tables: &self.tables, l1: self, p2m: self, guard: self };
            let debt = shadow.zap(&env, range, Zap::All);
            self.pay(debt);
        }
    }

    /// Changes whenever another frame, or none, lies behind one of the guest's addresses. (Rights and sizes of
    /// mappings change more often: those are the flush control's generation.)
    #[inline]
    pub fn layout(&self) -> u64 {
        self.layout.load(core::sync::atomic::Ordering::Acquire)
    }

    /// The domain's flush control.
    pub fn tlb(&self) -> &Arc<TlbControl> {
        &self.tlb
    }

    /// Runs a structural change of the tables, then pays what it owes.
    pub fn change<R>(&self, f: impl FnOnce(&Radix<Npt>, &Tables) -> (R, TlbDebt)) -> R {
        let (result, debt) = {
            let _guard = self.change.lock();
            f(self.radix(), &self.tables)
        };
        self.pay(debt);
        result
    }

    /// Carries out the flush that `debt` asks for and frees its tables.
    pub fn pay(&self, debt: TlbDebt) {
        if debt.is_none() {
            return;
        }
        if *debt.flush() != Flush::NONE {
            self.tlb.flush();
        }
        debt.settle(&self.tables, Paid::flushed());
    }

    /// Gives the domain zeroed RAM at `range`, in the largest pieces that alignment and the machine's free
    /// memory allow.
    pub fn add_ram(&self, range: Range<GuestPhys>) -> Result<(), OutOfMemory> {
        let mut at = range.start();
        while at < range.end() {
            let left = range.end().raw() - at.raw();
            let (frame, size) = PageSize::LARGEST_FIRST
                .into_iter()
                .filter(|size| at.is_aligned(*size) && left >= size.bytes())
                .find_map(|size| {
                    let order = (size.shift() - PageSize::Size4K.shift()) as u8;
                    Some((frames().alloc(order, self.owner, Kind::DomainRam, Zone::Any).ok()?, size))
                })
                .ok_or(OutOfMemory)?;
            // SAFETY: the block was just given to this domain, and no guest maps it yet.
            unsafe { core::ptr::write_bytes(direct::pointer(frame.start()), 0, size.bytes() as usize) };
            self.map_frames(Range::new(at, size.bytes()).ok_or(OutOfMemory)?, frame.start(), Perms::RWX)?;
            self.pages.fetch_add(size.bytes() / PAGE_SIZE, Relaxed);
            at = at.checked_add(size.bytes()).ok_or(OutOfMemory)?;
        }
        self.top.fetch_max(range.end().raw() / PAGE_SIZE - 1, Relaxed);
        Ok(())
    }

    fn map_frames(&self, range: Range<GuestPhys>, hpa: Hpa, perms: Perms) -> Result<(), OutOfMemory> {
        self.change(|radix, tables| {
            match radix.map(tables, range, hpa, perms, MemType::WriteBack, PageSize::Size1G) {
                Ok(debt) => (Ok(()), debt),
                Err(failed) => (Err(OutOfMemory), failed.debt),
            }
        })
    }

    /// Where `gpa` lies, as the tables say now.
    #[inline]
    pub fn translate_now(&self, gpa: Gpa) -> Option<Mapping> {
        self.radix().translate(&self.tables, gpa)
    }

    fn is_foreign(&self, frame: Frame<GuestPhys>) -> bool {
        self.foreign.lock().contains_key(&frame.number())
    }

    /// A page to be read or written at once and not kept: it may be one that is granted to the guest.
    fn hold(&self, frame: Frame<GuestPhys>, write: bool) -> Result<Page, GuestFault> {
        self.pin(frame).or_else(|fault| {
            let foreign = self.foreign.lock();
            let granted = foreign.get(&frame.number()).ok_or(fault)?;
            if write && !granted.writable {
                return Err(GuestFault { reason: FaultReason::Permission, ..fault });
            }
            // Under the lock the mapping, and so its pin, is there.
            if frames().dup_ref(granted.frame) { Ok(Page::adopt(granted.frame)) } else { Err(fault) }
        })
    }

    fn moved(&self) {
        self.layout.fetch_add(1, core::sync::atomic::Ordering::AcqRel);
    }

    /// Gives back what lay behind a frame that the tables no longer show and no TLB holds.
    fn release(&self, frame: Frame<HostPhys>) {
        match frames().state(frame) {
            FrameState::Owned { kind: Kind::DomainRam, .. } => {
                frames().release(frame, self.owner).expect("RAM of this domain");
                self.pages.fetch_sub(1, Relaxed);
            }
            _ => {
                frames().put_ref(frame).expect("the mapping's pin");
            }
        }
    }
}

impl Translate2 for GuestRam {
    #[inline]
    fn translate(&self, gpa: Gpa) -> Option<Mapping> {
        self.translate_now(gpa)
    }
}

impl GuestMemory for GuestRam {
    type Page = Page;

    fn pin(&self, frame: Frame<GuestPhys>) -> Result<Page, GuestFault> {
        let fault = GuestFault { gpa: frame.start(), reason: FaultReason::NotMapped };
        loop {
            let layout = self.layout();
            let hpa = self.translate_now(frame.start()).ok_or(fault)?.at(frame.start());
            // A page of ours that the guest maps has no claim of the owner's any more, but the mapping's pin. One that
            // is granted to the guest must not be kept longer than the mapping.
            let pinned = frames().get_ref(hpa.frame(), self.owner)
                || !self.is_foreign(frame) && frames().dup_ref(hpa.frame());
            let page = pinned.then(|| Page::adopt(hpa.frame()));
            // A frame is released only after the layout has moved: while it stands, this one was still what lies
            // at the address when it was pinned.
            if self.layout() == layout {
                return page.ok_or(fault);
            }
        }
    }

    fn read(&self, gpa: Gpa, out: &mut [u8]) -> Result<(), GuestFault> {
        for (at, from, n) in page_chunks(gpa, out.len()) {
            self.hold(at.frame(), false)?.copy_out(at.page_offset(), &mut out[from..from + n]);
        }
        Ok(())
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), GuestFault> {
        for (at, from, n) in page_chunks(gpa, data.len()) {
            self.hold(at.frame(), true)?.copy_in(at.page_offset(), &data[from..from + n]);
        }
        Ok(())
    }
}

impl DomainMemory for GuestRam {
    fn new_page(&self) -> Option<Page> {
        let frame = frames().alloc(0, self.owner, Kind::Shared, Zone::Any).ok()?;
        // SAFETY: the frame was just given to us.
        unsafe { direct::zero(frame) };
        // From here on the pins alone keep it.
        assert!(frames().get_ref(frame, self.owner), "a frame just allocated can be pinned");
        frames().release(frame, self.owner).expect("just allocated");
        Some(Page::adopt(frame))
    }

    fn map_page(&self, at: Frame<GuestPhys>, page: &Page) -> Result<(), MapError> {
        let range = Range::new(at.start(), PAGE_SIZE).ok_or(MapError::BadFrame)?;
        if at.number() > self.top.load(Relaxed) {
            let mut high = self.high.lock();
            if high.len() >= MOST_HIGH && !high.contains(&at.number()) {
                return Err(MapError::NoMemory);
            }
            high.insert(at.number());
        }
        // The mapping's own pin.
        core::mem::forget(page.clone());
        // What was there is looked up under the same lock: two vCPUs must not both release it.
        let old = self.change(|radix, tables| {
            if self.is_foreign(at) {
                return (Err(MapError::NotAllowed), TlbDebt::none());
            }
            let old = radix.translate(tables, at.start()).map(|m| m.at(at.start()).frame());
            match radix.map(
                tables,
                range,
                page.frame().start(),
                Perms::RW,
                MemType::WriteBack,
                PageSize::Size4K,
            ) {
                Ok(debt) => (Ok(old), debt),
                Err(failed) => (Err(MapError::NoMemory), failed.debt),
            }
        });
        let old = old.inspect_err(|_| {
            frames().put_ref(page.frame()).expect("the pin taken above");
        })?;
        self.moved();
        self.zap(at);
        if let Some(old) = old {
            self.release(old);
        }
        Ok(())
    }

    fn unmap(&self, at: Frame<GuestPhys>) -> Result<(), MapError> {
        let range = Range::new(at.start(), PAGE_SIZE).ok_or(MapError::BadFrame)?;
        let old = self.change(|radix, tables| {
            if self.is_foreign(at) {
                return (Err(MapError::NotAllowed), TlbDebt::none());
            }
            let Some(old) = radix.translate(tables, at.start()).map(|m| m.at(at.start()).frame()) else {
                return (Err(MapError::BadFrame), TlbDebt::none());
            };
            match radix.unmap(tables, range) {
                Ok(debt) => (Ok(old), debt),
                Err(failed) => (Err(MapError::NoMemory), failed.debt),
            }
        })?;
        self.high.lock().remove(&at.number());
        self.moved();
        self.zap(at);
        self.release(old);
        Ok(())
    }

    fn map_foreign(&self, at: Frame<GuestPhys>, page: &Page, writable: bool) -> Result<(), MapError> {
        let range = Range::new(at.start(), PAGE_SIZE).ok_or(MapError::BadFrame)?;
        let (frame, perms) = (page.frame(), if writable { Perms::RW } else { Perms::R });
        // The mapping's own pin.
        core::mem::forget(page.clone());
        let old = self.change(|radix, tables| {
            let mut foreign = self.foreign.lock();
            if foreign.contains_key(&at.number()) {
                return (Err(MapError::NotAllowed), TlbDebt::none());
            }
            let old = radix.translate(tables, at.start()).map(|m| m.at(at.start()).frame());
            match radix.map(tables, range, frame.start(), perms, MemType::WriteBack, PageSize::Size4K) {
                Ok(debt) => {
                    foreign.insert(at.number(), Foreign { frame, writable });
                    (Ok(old), debt)
                }
                Err(failed) => (Err(MapError::NoMemory), failed.debt),
            }
        });
        let old = old.inspect_err(|_| {
            frames().put_ref(frame).expect("the pin taken above");
        })?;
        self.moved();
        self.zap(at);
        if let Some(old) = old {
            self.release(old);
        }
        Ok(())
    }

    fn unmap_foreign(&self, at: Frame<GuestPhys>, page: &Page) -> Result<(), MapError> {
        let range = Range::new(at.start(), PAGE_SIZE).ok_or(MapError::BadFrame)?;
        self.change(|radix, tables| {
            let mut foreign = self.foreign.lock();
            if foreign.get(&at.number()).map(|granted| granted.frame) != Some(page.frame()) {
                return (Err(MapError::NotAllowed), TlbDebt::none());
            }
            match radix.unmap(tables, range) {
                Ok(debt) => {
                    // Who pins looks at the layout last: it must have changed before this is no granted page.
                    self.moved();
                    foreign.remove(&at.number());
                    (Ok(()), debt)
                }
                Err(failed) => (Err(MapError::NoMemory), failed.debt),
            }
        })?;
        self.zap(at);
        frames().put_ref(page.frame()).expect("the mapping's pin");
        Ok(())
    }

    fn populate(&self, at: Frame<GuestPhys>, order: u32) -> Result<(), MapError> {
        let bytes = PAGE_SIZE.checked_shl(order).filter(|b| *b <= 1 << 30).ok_or(MapError::BadFrame)?;
        let range = Range::new(at.start(), bytes).ok_or(MapError::BadFrame)?;
        // Never above what the domain was built with: its end walks that range.
        if range.end().raw() / PAGE_SIZE > self.top.load(Relaxed) + 1 {
            return Err(MapError::BadFrame);
        }
        let taken = |page: u64| self.translate_now(at.wrapping_add(page).start()).is_some();
        if (0..bytes / PAGE_SIZE).any(taken) {
            return Err(MapError::NotAllowed);
        }
        self.add_ram(range).map_err(|OutOfMemory| MapError::NoMemory)
    }

    fn max_frame(&self) -> Frame<GuestPhys> {
        let high = self.high.lock().last().copied().unwrap_or(0);
        Frame::new(self.top.load(Relaxed).max(high))
    }

    fn pages(&self) -> u64 {
        self.pages.load(Relaxed)
    }

    fn charge(&self, bytes: u64) -> bool {
        let mut charged = self.charged.lock();
        let Some(sum) = charged.checked_add(bytes) else { return false };
        // The account counts whole frames.
        let more = sum.div_ceil(PAGE_SIZE) - charged.div_ceil(PAGE_SIZE);
        let allowed =
            u32::try_from(more).is_ok_and(|more| frames().charge(self.owner, Kind::Hypervisor, more));
        if allowed {
            *charged = sum;
        }
        allowed
    }
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        // No vCPU of the domain can run any more: it holds this memory.
        if let Some(shadow) = self.shadow.take() {
            let env = Env { tables: &self.tables, l1: &*self, p2m: &*self, guard: &*self };
            let debt = shadow.clear(&env);
            debt.settle(&self.tables, Paid::flushed());
        }
        // Core has given all of them back before it lets go of the domain; but one that was left must not be taken for
        // RAM of this domain below.
        let foreign = core::mem::take(&mut *self.foreign.lock());
        for granted in foreign.values() {
            frames().put_ref(granted.frame).expect("the mapping's pin");
        }
        let end = self.top.load(Relaxed) + 1;
        let mut at = 0;
        while at < end {
            if foreign.contains_key(&at) {
                at += 1;
                continue;
            }
            let gpa = Frame::<GuestPhys>::new(at).start();
            match self.translate_now(gpa) {
                Some(mapping) => {
                    let first = mapping.at(gpa).frame();
                    let frames =
                        mapping.size.bytes() / PAGE_SIZE - (at & (mapping.size.bytes() / PAGE_SIZE - 1));
                    (0..frames).for_each(|n| self.release(first.wrapping_add(n)));
                    at += frames;
                }
                None => at += 1,
            }
        }
        let high = core::mem::take(&mut *self.high.lock());
        let rest = |frame: &u64| *frame >= end && !foreign.contains_key(frame);
        for frame in high.into_iter().filter(rest).map(Frame::<GuestPhys>::new) {
            if let Some(mapping) = self.translate_now(frame.start()) {
                self.release(mapping.at(frame.start()).frame());
            }
        }
        let charged = self.charged.get_mut().div_ceil(PAGE_SIZE);
        frames().refund(self.owner, Kind::Hypervisor, charged as u32);
        if let Some(radix) = self.radix.take() {
            radix.destroy().settle(&self.tables, Paid::flushed());
        }
    }
}
