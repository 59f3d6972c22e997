//! The FIFO ABI: a word of the guest's memory for each port, and for each vCPU a queue of ports per priority, linked
//! through those words.
//!
//! What is shared with the guest ([`Pages`]) hangs off the queues' locks: raising takes the lock of the queue that
//! the port belongs on, and finds the pages there. So whoever holds all queues one after the other, as a reset does,
//! knows afterwards that nobody uses the pages any more.
//!
//! A channel remembers the *last queue* it was put on ([`Place::last`]): the tail of that queue may still be this
//! very port. That changes only under the domain's `moves` lock and the locks of both queues, so the usual raise
//! (same queue as before) takes one lock and never retries. The rest is one protocol with the guest, who sets and
//! clears bits of the words at the same time ([`raise`]).
//!
//! Source: `public/event_channel.h` of Xen 4.17, "EVTCHN_FIFO"; the design is Xen's "Event Channel ABI (FIFO)".

#[cfg(all(test, loom))]
mod model;
mod ops;
mod pages;
mod raise;
#[cfg(all(test, not(loom)))]
mod tests;

use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use crate::sync::{Irq, IrqLock};
use crate::vcpu::VcpuId;
use alloc::boxed::Box;
use alloc::sync::Arc;
pub(super) use ops::{busy, clear_pending, leave};
use pages::Control;
pub(super) use pages::Pages;
use spin::Once;
use xen_abi::evtchn::fifo::{DEFAULT_PRIORITY, PRIORITIES};

/// Where a channel's events go.
#[derive(Debug)]
pub(crate) struct Place {
    /// The vCPU that is notified.
    pub(super) notify: AtomicU32,
    /// FIFO: its priority.
    pub(super) priority: AtomicU32,
    /// FIFO: index of the queue it was last put on, and may still be the tail of. Survives closing.
    pub(super) last: AtomicU32,
    /// FIFO: raised while the array had no word for it.
    pub(super) latched: AtomicBool,
}

impl Place {
    pub(super) fn new() -> Self {
        Self {
            notify: AtomicU32::new(0),
            priority: AtomicU32::new(DEFAULT_PRIORITY),
            last: AtomicU32::new(DEFAULT_PRIORITY),
            latched: AtomicBool::new(false),
        }
    }

    /// For a port that is being opened: what `last` says still holds.
    pub(super) fn open(&self, vcpu: VcpuId) {
        self.notify.store(vcpu.0, SeqCst);
        self.priority.store(DEFAULT_PRIORITY, SeqCst);
        self.latched.store(false, SeqCst);
    }

    /// The vCPU that is notified.
    pub(super) fn target(&self) -> VcpuId {
        VcpuId(self.notify.load(SeqCst))
    }

    /// As for a domain whose queues are all empty.
    fn forget(&self) {
        self.priority.store(DEFAULT_PRIORITY, SeqCst);
        self.last.store(DEFAULT_PRIORITY, SeqCst);
        self.latched.store(false, SeqCst);
    }

    /// Index of the queue that an event goes on now.
    fn wanted(&self) -> u32 {
        self.notify.load(SeqCst) * PRIORITIES + self.priority.load(SeqCst)
    }
}

/// What is ours alone of a queue.
#[derive(Debug)]
pub(super) struct Queue<P> {
    /// The port that was put on last; 0: surely empty. The guest may have taken it off since.
    tail: u32,
    /// What is shared with the guest; `None` while the domain uses the 2-level ABI.
    pages: Option<Arc<Pages<P>>>,
}

type Queues<P, I> = Box<[IrqLock<Queue<P>, I>]>;

/// The FIFO side of a domain's event channels. It takes memory when the guest first asks for this ABI.
pub(super) struct Fifo<P, I: Irq> {
    /// vCPU times 16 plus priority.
    queues: Once<Queues<P, I>>,
    /// Held while a channel changes its queue.
    moves: IrqLock<(), I>,
    on: AtomicBool,
}

impl<P, I: Irq> Fifo<P, I> {
    pub(super) fn new() -> Self {
        Self { queues: Once::new(), moves: IrqLock::new(()), on: AtomicBool::new(false) }
    }

    /// Whether the domain uses this ABI.
    #[inline]
    pub(super) fn on(&self) -> bool {
        self.on.load(SeqCst)
    }

    /// Bytes that [`Fifo::start`] takes the first time.
    fn bytes(vcpus: u32) -> u64 {
        (vcpus * PRIORITIES) as u64 * size_of::<IrqLock<Queue<P>, I>>() as u64
    }

    /// From now on events go on empty queues and into `pages`. Under the configuration lock.
    pub(super) fn start(&self, vcpus: u32, pages: &Arc<Pages<P>>) {
        let empty = |_| IrqLock::new(Queue { tail: 0, pages: None });
        let queues = self.queues.call_once(|| (0..vcpus * PRIORITIES).map(empty).collect());
        for queue in queues {
            *queue.lock() = Queue { tail: 0, pages: Some(pages.clone()) };
        }
        self.on.store(true, SeqCst);
    }

    /// Back to the 2-level ABI: when this returns, nobody uses the pages any more. Under the configuration lock, by
    /// a caller that holds the pages, too, so that they are not freed in here.
    pub(super) fn stop(&self) {
        self.on.store(false, SeqCst);
        for queue in self.queues.get().into_iter().flatten() {
            *queue.lock() = Queue { tail: 0, pages: None };
        }
    }
}
