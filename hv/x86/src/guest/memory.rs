//! A domain's physical memory: the nested page tables that translate it, and the frames behind them.
// UNSAFETY: writes nested page tables through the direct map.
#![allow(unsafe_code)]

use crate::guest::map::{Changed, Foreign, GuestMap, Refused};
use crate::guest::page::Page;
use crate::guest::tlb::TlbControl;
use crate::mm::{direct, frames::frames};
use addr::{
    FaultReason, Frame, Gpa, GuestFault, GuestMemory, GuestPhys, HostPhys, Hpa, PAGE_SIZE, PageSize, Range,
    page_chunks,
};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use hv_core::memory::{FrameState, Kind, Owner, Zone};
use hv_core::platform::{DomainMemory, MapError};
use spin::Mutex;
use stage2::shadow::{Env, ShadowCache, Zap};
use stage2::{Flush, Mapping, Npt, Paid, Perms, TableMemory, TlbDebt, Translate2};

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
    map: GuestMap<Tables>,
    tlb: Arc<TlbControl>,
    pages: AtomicU64,
    layout: AtomicU64,
    /// The composed tables of this domain's L2s, if it may have any.
    shadow: Option<ShadowCache<Npt>>,
    /// Bytes of the hypervisor's heap that are charged to the domain.
    charged: Mutex<u64>,
}

/// A piece of guest memory and the host memory for it.
type Piece = (Range<GuestPhys>, Frame<HostPhys>);

/// Why memory could not be given to a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

impl GuestRam {
    /// Empty memory of domain `owner`. `nested`: its L2s' tables may use that many pages.
    pub fn new(owner: Owner, gigabyte_pages: bool, nested: Option<u32>) -> Result<Self, OutOfMemory> {
        let largest = if gigabyte_pages { PageSize::Size1G } else { PageSize::Size2M };
        let map = GuestMap::new(Tables(owner), largest).ok_or(OutOfMemory)?;
        Ok(GuestRam {
            owner,
            map,
            tlb: Arc::new(TlbControl::default()),
            pages: AtomicU64::new(0),
            layout: AtomicU64::new(0),
            shadow: nested.map(|quota| ShadowCache::new(Npt::four_level(largest), quota)),
            charged: Mutex::new(0),
        })
    }

    /// Root of the nested page tables.
    pub fn root(&self) -> Hpa {
        self.map.root()
    }

    /// Whose memory it is.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// The table pages' memory.
    pub fn tables(&self) -> &Tables {
        self.map.tables()
    }

    /// The composed tables of the domain's L2s.
    #[inline]
    pub fn shadow(&self) -> Option<&ShadowCache<Npt>> {
        self.shadow.as_ref()
    }

    /// Changes the rights of one frame of RAM. For the write protection of L1's own tables; what it owes is
    /// the caller's to pay.
    pub fn set_rights(&self, frame: Frame<GuestPhys>, perms: Perms) -> Result<TlbDebt, stage2::Failed> {
        self.map.protect(frame, perms, |host| {
            matches!(frames().state(host), FrameState::Owned { kind: Kind::DomainRam, .. })
        })
    }

    /// Takes what was built from `frame` out of the L2s' tables, after it has changed here.
    fn zap(&self, frame: Frame<GuestPhys>) {
        if let Some(shadow) = &self.shadow
            && let Some(range) = Range::new(frame.start(), PAGE_SIZE)
        {
            let env = Env { tables: self.map.tables(), l1: self, p2m: self, guard: self };
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

    /// Carries out the flush that `debt` asks for and frees its tables.
    pub fn pay(&self, debt: TlbDebt) {
        if debt.is_none() {
            return;
        }
        if *debt.flush() != Flush::NONE {
            self.tlb.flush();
        }
        debt.settle(self.map.tables(), Paid::flushed());
    }

    /// Gives the domain zeroed RAM at `range`, in the largest pieces that alignment and the machine's free
    /// memory allow. There must be nothing at `range`. On an error part of it may have been given.
    pub fn add_ram(&self, range: Range<GuestPhys>) -> Result<(), OutOfMemory> {
        let mut at = range.start();
        while at < range.end() {
            let piece = self.allocate(at, range.end()).ok_or(OutOfMemory)?;
            self.fill(&[piece]).map_err(|_| OutOfMemory)?;
            at = piece.0.end();
        }
        Ok(())
    }

    /// Zeroed memory for the largest piece that begins at `at` and ends at `end` at the latest.
    fn allocate(&self, at: Gpa, end: Gpa) -> Option<Piece> {
        let left = end.raw().checked_sub(at.raw())?;
        let fits = |size: &PageSize| at.is_aligned(*size) && left >= size.bytes();
        PageSize::LARGEST_FIRST.into_iter().filter(fits).find_map(|size| {
            let order = (size.shift() - PageSize::Size4K.shift()) as u8;
            let frame = frames().alloc(order, self.owner, Kind::DomainRam, Zone::Any).ok()?;
            // SAFETY: the block was just given to this domain, and no guest maps it yet.
            unsafe { core::ptr::write_bytes(direct::pointer(frame.start()), 0, size.bytes() as usize) };
            Some((Range::new(at, size.bytes())?, frame))
        })
    }

    /// Maps all of `pieces`, or none, and then gives them back.
    fn fill(&self, pieces: &[Piece]) -> Result<(), MapError> {
        let refused = match self.map.fill(pieces) {
            Ok(debt) => {
                self.pay(debt);
                let bytes: u64 = pieces.iter().map(|(range, _)| range.bytes()).sum();
                self.pages.fetch_add(bytes / PAGE_SIZE, Relaxed);
                return Ok(());
            }
            Err(refused) => self.refusal(refused),
        };
        pieces.iter().for_each(|(range, frame)| self.give_back(*frame, range.bytes()));
        Err(refused)
    }

    /// Pays what a refused change owes.
    fn refusal(&self, refused: Refused) -> MapError {
        match refused {
            Refused::Missing => MapError::BadFrame,
            Refused::Taken => MapError::NotAllowed,
            Refused::Failed(debt) => {
                self.pay(debt);
                MapError::NoMemory
            }
        }
    }

    /// Gives back RAM that is mapped nowhere.
    fn give_back(&self, first: Frame<HostPhys>, bytes: u64) {
        for n in 0..bytes / PAGE_SIZE {
            frames().release(first.wrapping_add(n), self.owner).expect("RAM of this domain");
        }
    }

    /// After `page` was put at `at`, with a pin for the mapping, or was not.
    fn put_done(
        &self,
        at: Frame<GuestPhys>,
        page: &Page,
        put: Result<Changed, Refused>,
    ) -> Result<(), MapError> {
        match put {
            Ok(changed) => {
                self.changed(at, changed);
                Ok(())
            }
            Err(refused) => {
                frames().put_ref(page.frame()).expect("the mapping's pin");
                Err(self.refusal(refused))
            }
        }
    }

    /// After a change of what lies at `at`: pays, and releases what was there.
    fn changed(&self, at: Frame<GuestPhys>, changed: Changed) {
        self.pay(changed.debt);
        self.moved();
        self.zap(at);
        if let Some(old) = changed.old {
            self.release(old);
        }
    }

    /// Where `gpa` lies, as the tables say now.
    #[inline]
    pub fn translate_now(&self, gpa: Gpa) -> Option<Mapping> {
        self.map.translate(gpa)
    }

    /// A page to be read or written at once and not kept: it may be one that is granted to the guest.
    fn hold(&self, frame: Frame<GuestPhys>, write: bool) -> Result<Page, GuestFault> {
        self.pin(frame).or_else(|fault| {
            self.map.with_foreign(frame, |granted| {
                let granted = granted.ok_or(fault)?;
                if write && !granted.writable {
                    return Err(GuestFault { reason: FaultReason::Permission, ..fault });
                }
                // While this looks the mapping, and so its pin, is there.
                if frames().dup_ref(granted.frame) { Ok(Page::adopt(granted.frame)) } else { Err(fault) }
            })
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
                || !self.map.is_foreign(frame) && frames().dup_ref(hpa.frame());
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
        // The mapping's own pin.
        core::mem::forget(page.clone());
        let put = self.map.put(at, page.frame());
        self.put_done(at, page, put)
    }

    fn unmap(&self, at: Frame<GuestPhys>) -> Result<(), MapError> {
        let changed = self.map.take(at, None).map_err(|refused| self.refusal(refused))?;
        self.changed(at, changed);
        Ok(())
    }

    fn unmap_page(&self, at: Frame<GuestPhys>, page: &Page) -> Result<(), MapError> {
        let changed = self.map.take(at, Some(page.frame())).map_err(|refused| self.refusal(refused))?;
        self.changed(at, changed);
        Ok(())
    }

    fn map_foreign(&self, at: Frame<GuestPhys>, page: &Page, writable: bool) -> Result<(), MapError> {
        // The mapping's own pin.
        core::mem::forget(page.clone());
        let put = self.map.put_foreign(at, Foreign { frame: page.frame(), writable });
        self.put_done(at, page, put)
    }

    fn unmap_foreign(&self, at: Frame<GuestPhys>, page: &Page) -> Result<(), MapError> {
        // Who pins looks at the layout last: it must have changed before this is no granted page.
        let taken = self.map.take_foreign(at, page.frame(), || self.moved());
        let debt = taken.map_err(|refused| self.refusal(refused))?;
        self.pay(debt);
        self.zap(at);
        frames().put_ref(page.frame()).expect("the mapping's pin");
        Ok(())
    }

    fn populate(&self, at: Frame<GuestPhys>, order: u32) -> Result<(), MapError> {
        let bytes = PAGE_SIZE.checked_shl(order).filter(|b| *b <= 1 << 30).ok_or(MapError::BadFrame)?;
        let range = Range::new(at.start(), bytes).ok_or(MapError::BadFrame)?;
        let mut pieces = Vec::new();
        let mut next = range.start();
        while next < range.end() {
            let Some(piece) = self.allocate(next, range.end()) else {
                pieces.iter().for_each(|(range, frame): &Piece| self.give_back(*frame, range.bytes()));
                return Err(MapError::NoMemory);
            };
            next = piece.0.end();
            pieces.push(piece);
        }
        self.fill(&pieces)?;
        self.moved();
        Ok(())
    }

    fn max_frame(&self) -> Frame<GuestPhys> {
        Frame::new(self.map.top())
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
            let env = Env { tables: self.map.tables(), l1: &*self, p2m: &*self, guard: &*self };
            let debt = shadow.destroy(&env);
            debt.settle(self.map.tables(), Paid::flushed());
        }
        // Core has given all of them back before it lets go of the domain; but one that was left must not be taken for
        // RAM of this domain below.
        let foreign = self.map.forget_foreign();
        for granted in foreign.values() {
            frames().put_ref(granted.frame).expect("the mapping's pin");
        }
        self.map.for_each(|gpa, mapping| {
            if foreign.contains_key(&gpa.frame().number()) {
                return;
            }
            let first = mapping.hpa.frame();
            (0..mapping.size.bytes() / PAGE_SIZE).for_each(|n| self.release(first.wrapping_add(n)));
        });
        let charged = self.charged.get_mut().div_ceil(PAGE_SIZE);
        frames().refund(self.owner, Kind::Hypervisor, charged as u32);
        self.map.destroy().settle(self.map.tables(), Paid::flushed());
    }
}
