//! The memory that the FIFO ABI shares with the guest: event words and control blocks. Nothing in it is trusted.

use crate::sync::atomic::{AtomicU32, Ordering::SeqCst};
use addr::GuestPage;
use alloc::boxed::Box;
use spin::Once;
use xen_abi::evtchn::fifo::{BUSY, HEAD, LINK, LINKED, MAX_PAGES, READY, WORDS_PER_PAGE};

/// Where a control block is.
#[derive(Debug)]
pub(crate) struct Control<P> {
    /// The page, pinned.
    pub(super) page: P,
    /// Where in it: a multiple of 8, and all of it lies within the page.
    pub(super) offset: usize,
}

impl<P: GuestPage> Control<P> {
    /// Makes `port` the first of queue `priority`, which is empty. `true`: the vCPU did not know that it has events
    /// of this priority.
    pub(super) fn put_head(&self, priority: u32, port: u32) -> bool {
        self.page.write_u32(self.offset + HEAD + priority as usize * 4, port);
        // The head is written before the bit says so.
        self.page.fetch_or_u32(self.offset + READY, 1 << priority) & 1 << priority == 0
    }
}

/// The pages of a domain, pinned until its FIFO ABI ends.
#[derive(Debug)]
pub(crate) struct Pages<P> {
    array: Box<[Once<P>]>,
    /// Pages of the array that exist. Written after the page is in its slot.
    count: AtomicU32,
    controls: Box<[Once<Control<P>>]>,
}

impl<P: GuestPage> Pages<P> {
    /// An empty array and no control block.
    pub(super) fn new(vcpus: u32) -> Self {
        Self {
            array: (0..MAX_PAGES).map(|_| Once::new()).collect(),
            count: AtomicU32::new(0),
            controls: (0..vcpus).map(|_| Once::new()).collect(),
        }
    }

    /// Bytes that it takes.
    pub(super) fn bytes(vcpus: u32) -> u64 {
        u64::from(MAX_PAGES) * size_of::<Once<P>>() as u64
            + u64::from(vcpus) * size_of::<Once<Control<P>>>() as u64
    }

    /// How many pages the array has.
    pub(super) fn len(&self) -> u32 {
        self.count.load(SeqCst)
    }

    /// Appends a page. Under the configuration lock, with fewer than [`MAX_PAGES`].
    pub(super) fn push(&self, page: P) {
        let slot = self.len();
        if let Some(free) = self.array.get(slot as usize) {
            free.call_once(|| page);
            self.count.store(slot + 1, SeqCst);
        }
    }

    /// A vCPU's control block.
    #[inline]
    pub(super) fn control(&self, vcpu: u32) -> Option<&Control<P>> {
        self.controls.get(vcpu as usize)?.get()
    }

    /// Sets a vCPU's control block; only the first time counts.
    pub(super) fn set_control(&self, vcpu: u32, control: Control<P>) {
        if let Some(slot) = self.controls.get(vcpu as usize) {
            slot.call_once(|| control);
        }
    }

    /// The word of a port, if the array is that long.
    #[inline]
    pub(crate) fn word(&self, port: u32) -> Option<Word<'_, P>> {
        let slot = port / WORDS_PER_PAGE;
        if slot >= self.len() {
            return None;
        }
        let page = self.array.get(slot as usize)?.get()?;
        Some(Word { page, at: (port % WORDS_PER_PAGE) as usize * 4 })
    }
}

/// The event word of a port.
#[derive(Debug)]
pub(crate) struct Word<'a, P> {
    page: &'a P,
    at: usize,
}

/// What came of linking to the tail of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Linked {
    /// The guest will find the port when it takes the tail off.
    Yes,
    /// The guest has taken the tail off: the queue is empty.
    Drained,
    /// The guest kept changing the word, against the protocol: the event is lost.
    Fought,
}

/// How often a word may change under us: a guest that keeps to the protocol clears PENDING, sets MASKED and clears
/// LINKED, each once, while BUSY is set.
const LINK_TRIES: u32 = 4;

impl<P: GuestPage> Word<'_, P> {
    pub(crate) fn read(&self) -> u32 {
        self.page.read_u32(self.at)
    }
    /// Sets bits; what was there before.
    pub(crate) fn set(&self, bits: u32) -> u32 {
        self.page.fetch_or_u32(self.at, bits)
    }
    /// Clears bits; what was there before.
    pub(crate) fn clear(&self, bits: u32) -> u32 {
        self.page.fetch_and_u32(self.at, !bits)
    }

    /// One attempt; `Err`: the word was not `seen` any more but this.
    fn try_link(&self, seen: u32, port: u32) -> Result<Linked, u32> {
        if seen & LINKED == 0 {
            return Ok(Linked::Drained);
        }
        let new = seen & !(BUSY | LINK) | port;
        self.page.compare_exchange_u32(self.at, seen, new).map(|_| Linked::Yes)
    }

    /// Makes `port` follow the port of this word, the tail of a queue.
    pub(super) fn link(&self, port: u32) -> Linked {
        if let Ok(done) = self.try_link(self.read(), port) {
            return done;
        }
        // The guest does not unmask while BUSY is set: so it runs out of changes to make.
        let mut seen = self.set(BUSY) | BUSY;
        let mut outcome = Linked::Fought;
        for _ in 0..LINK_TRIES {
            match self.try_link(seen, port) {
                Ok(Linked::Yes) => return Linked::Yes,
                Ok(other) => {
                    outcome = other;
                    break;
                }
                Err(found) => seen = found,
            }
        }
        self.clear(BUSY);
        outcome
    }
}
