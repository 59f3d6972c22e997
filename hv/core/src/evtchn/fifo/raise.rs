//! Raising an event: the hypervisor's half of the protocol.

use super::pages::{Linked, Word};
use super::{Fifo, Pages, Place, Queue};
use crate::evtchn::Raised;
use crate::sync::atomic::Ordering::SeqCst;
use crate::sync::{Irq, IrqGuard, IrqLock};
use crate::vcpu::VcpuId;
use addr::GuestPage;
use xen_abi::evtchn::fifo::{LINKED, MASKED, PENDING, PRIORITIES};

impl<P: GuestPage, I: Irq> Fifo<P, I> {
    /// Raises `port`. `None`: the domain does not use this ABI (any more).
    ///
    /// The lock of the queue is held from before PENDING is set: no vCPU may see the event on another queue, or not
    /// at all, and go to sleep.
    pub(crate) fn raise(&self, port: u32, place: &Place) -> Option<Raised> {
        let queues = self.queues.get()?;
        let wanted = place.wanted();
        if place.last.load(SeqCst) == wanted {
            let mut queue = queues.get(wanted as usize)?.lock();
            if place.last.load(SeqCst) == wanted {
                let Queue { tail, pages } = &mut *queue;
                return Some(put(pages.as_ref()?, port, place, wanted, tail, None));
            }
        }
        // It was on another queue, or another raise is moving it. Only the holder of this changes `last`.
        let _moves = self.moves.lock();
        let last = place.last.load(SeqCst);
        let (mut queue, old) = lock_both(queues, wanted, last)?;
        let Queue { tail, pages } = &mut *queue;
        match old {
            None => Some(put(pages.as_ref()?, port, place, wanted, tail, None)),
            Some(mut old) => Some(put(pages.as_ref()?, port, place, wanted, tail, Some(&mut old.tail))),
        }
    }

    /// Clears MASKED, and raises the event if it is pending. `None`: the domain does not use this ABI.
    pub(crate) fn unmask(&self, port: u32, place: &Place) -> Option<Raised> {
        let pending = self.with_pages(place, |pages| {
            pages.word(port).is_some_and(|word| word.clear(MASKED) & PENDING != 0)
        })?;
        if pending { self.raise(port, place) } else { Some(Raised::default()) }
    }

    /// Whether `port` is pending, seen by the guest or not. `None`: the domain does not use this ABI.
    pub(crate) fn pending(&self, port: u32, place: &Place) -> Option<bool> {
        let latched = place.latched.load(SeqCst);
        let set = |pages: &Pages<P>| pages.word(port).is_some_and(|word| word.read() & PENDING != 0);
        Some(self.with_pages(place, set)? || latched)
    }

    /// The pages, kept in use by the lock of the queue that the port belongs on.
    fn with_pages<T>(&self, place: &Place, f: impl FnOnce(&Pages<P>) -> T) -> Option<T> {
        if !self.on() {
            return None;
        }
        let queue = self.queues.get()?.get(place.wanted() as usize)?.lock();
        queue.pages.as_ref().map(|pages| f(pages))
    }
}

type Guard<'a, P, I> = IrqGuard<'a, Queue<P>, I>;
/// The queue that a port belongs on, and the one that it was on, if that is another.
type Both<'a, P, I> = (Guard<'a, P, I>, Option<Guard<'a, P, I>>);

/// Locks queue `wanted`, and `last` if that is another, the lower index first.
fn lock_both<P, I: Irq>(queues: &[IrqLock<Queue<P>, I>], wanted: u32, last: u32) -> Option<Both<'_, P, I>> {
    let (new, old) = (queues.get(wanted as usize)?, queues.get(last as usize)?);
    if wanted == last {
        return Some((new.lock(), None));
    }
    if wanted < last {
        let new = new.lock();
        return Some((new, Some(old.lock())));
    }
    let old = old.lock();
    Some((new.lock(), Some(old)))
}

/// Puts `port` on the queue `wanted`, whose tail is `tail`; both queues are locked. `old_tail`: of the queue that it
/// was put on last, if that was another.
fn put<P: GuestPage>(
    pages: &Pages<P>,
    port: u32,
    place: &Place,
    wanted: u32,
    tail: &mut u32,
    old_tail: Option<&mut u32>,
) -> Raised {
    let (vcpu, priority) = (wanted / PRIORITIES, wanted % PRIORITIES);
    let mut raised = Raised::default();
    let Some(word) = word_or_latch(pages, port, place, &mut raised) else { return raised };
    let Some(control) = pages.control(vcpu) else {
        // The guest binds to a vCPU before it has set that up: its own loss.
        log::debug!("event on port {port} dropped: vCPU {vcpu} has no FIFO control block");
        return raised;
    };
    let before = word.set(PENDING);
    raised.pending |= before & PENDING == 0;
    // PENDING and MASKED are in one word: a guest that unmasks after this sees PENDING, and asks us. And a guest
    // that has the port on a queue looks at PENDING after it took it off.
    if before & MASKED != 0 || word.set(LINKED) & LINKED != 0 {
        return raised;
    }
    // It is on no queue: one whose tail it is has been drained. Without this it would be linked to itself, or two
    // queues would run into each other.
    let moved = old_tail.is_some();
    let last = old_tail.unwrap_or(tail);
    if *last == port {
        *last = 0;
    }
    if moved {
        place.last.store(wanted, SeqCst);
    }
    let linked = match *tail {
        0 => Linked::Drained,
        tail => pages.word(tail).map_or(Linked::Drained, |word| word.link(port)),
    };
    *tail = port;
    match linked {
        Linked::Yes => {}
        Linked::Fought => log::debug!("event on port {port} lost: the guest fights for its queue"),
        Linked::Drained if control.put_head(priority, port) => raised.upcall = Some(VcpuId(vcpu)),
        Linked::Drained => {}
    }
    raised
}

/// The word of `port`; without one the event is latched until the array has it.
fn word_or_latch<'a, P: GuestPage>(
    pages: &'a Pages<P>,
    port: u32,
    place: &Place,
    raised: &mut Raised,
) -> Option<Word<'a, P>> {
    if let Some(word) = pages.word(port) {
        return Some(word);
    }
    raised.pending = !place.latched.swap(true, SeqCst);
    // The array may have grown meanwhile, and who made it grow have looked before the latch was set.
    let word = pages.word(port)?;
    place.latched.swap(false, SeqCst).then_some(word)
}
