//! Timers by deadline: a binary heap in which every timer knows its place, so that it can be moved and
//! removed, and a vCPU that sets its timer a million times still occupies one slot.

use crate::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};
use alloc::vec::Vec;

/// Which queue a timer is in, and where. Part of the timer's owner.
#[derive(Debug)]
pub struct TimerLink {
    /// The queue's number plus one; 0: in none.
    queue: AtomicU32,
    /// Index in the heap; meaningful under the queue's lock.
    at: AtomicUsize,
}

impl TimerLink {
    /// In no queue.
    pub fn new() -> Self {
        Self { queue: AtomicU32::new(0), at: AtomicUsize::new(0) }
    }
    /// The queue it is in. To be trusted only under that queue's lock.
    pub fn queue(&self) -> Option<u32> {
        self.queue.load(SeqCst).checked_sub(1)
    }
}

impl Default for TimerLink {
    fn default() -> Self {
        Self::new()
    }
}

/// A handle on something that has a [`TimerLink`].
pub trait Timed {
    /// Its link.
    fn link(&self) -> &TimerLink;
}

/// A timer that ran out.
#[derive(Debug, PartialEq, Eq)]
pub struct Expired<T> {
    /// Which.
    pub timer: T,
    /// When it should have.
    pub deadline: u64,
}

/// The timers set on one pCPU. The caller locks it.
#[derive(Debug)]
pub struct TimerQueue<T> {
    id: u32,
    heap: Vec<(u64, T)>,
}

impl<T: Timed> TimerQueue<T> {
    /// The empty queue number `id`.
    pub const fn new(id: u32) -> Self {
        Self { id, heap: Vec::new() }
    }

    /// Makes room for `more` timers beyond those set, so that setting them does not allocate.
    pub fn reserve(&mut self, more: usize) {
        self.heap.reserve(more);
    }

    /// Sets a timer to `deadline`; one that is set already is moved. `false`: it is in another queue and
    /// was left there.
    pub fn set(&mut self, timer: T, deadline: u64) -> bool {
        match timer.link().queue() {
            None => {
                // Claimed, not stored: two queues may be asked at once.
                let mine = self.id + 1;
                if timer.link().queue.compare_exchange(0, mine, SeqCst, SeqCst).is_err() {
                    return false;
                }
                let at = self.heap.len();
                timer.link().at.store(at, SeqCst);
                self.heap.push((deadline, timer));
                self.up(at);
            }
            Some(id) if id == self.id => {
                let at = timer.link().at.load(SeqCst);
                let Some(slot) = self.heap.get_mut(at) else { return false };
                slot.0 = deadline;
                let at = self.up(at);
                self.down(at);
            }
            Some(_) => return false,
        }
        true
    }

    /// Stops a timer. `false`: it is not in this queue.
    pub fn cancel(&mut self, timer: &T) -> bool {
        if timer.link().queue() != Some(self.id) {
            return false;
        }
        let at = timer.link().at.load(SeqCst);
        self.remove(at).is_some()
    }

    /// Takes one timer whose deadline is `now` or earlier, the earliest first.
    pub fn expire(&mut self, now: u64) -> Option<Expired<T>> {
        if self.next_deadline()? > now {
            return None;
        }
        self.remove(0).map(|(deadline, timer)| Expired { timer, deadline })
    }

    /// The earliest deadline.
    pub fn next_deadline(&self) -> Option<u64> {
        self.heap.first().map(|(deadline, _)| *deadline)
    }

    /// How many are set.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    fn remove(&mut self, at: usize) -> Option<(u64, T)> {
        let last = self.heap.len().checked_sub(1)?;
        if at > last {
            return None;
        }
        self.swap(at, last);
        let removed = self.heap.pop();
        if at < last {
            let at = self.up(at);
            self.down(at);
        }
        if let Some((_, timer)) = &removed {
            timer.link().queue.store(0, SeqCst);
        }
        removed
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.heap[a].1.link().at.store(a, SeqCst);
        self.heap[b].1.link().at.store(b, SeqCst);
    }

    fn up(&mut self, mut at: usize) -> usize {
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.heap[parent].0 <= self.heap[at].0 {
                break;
            }
            self.swap(at, parent);
            at = parent;
        }
        at
    }

    fn down(&mut self, mut at: usize) {
        loop {
            let child = match (2 * at + 1, 2 * at + 2) {
                (left, right) if right < self.heap.len() && self.heap[right].0 < self.heap[left].0 => right,
                (left, _) => left,
            };
            if child >= self.heap.len() || self.heap[at].0 <= self.heap[child].0 {
                return;
            }
            self.swap(at, child);
            at = child;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::sync::Arc;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    struct Timer(Arc<(usize, TimerLink)>);
    impl Timed for Timer {
        fn link(&self) -> &TimerLink {
            &self.0.1
        }
    }
    fn timers(n: usize) -> Vec<Timer> {
        (0..n).map(|i| Timer(Arc::new((i, TimerLink::new())))).collect()
    }

    #[test]
    fn a_timer_set_again_moves_and_takes_no_second_slot() {
        let t = timers(1);
        let mut queue = TimerQueue::new(0);
        for deadline in (0..1000).rev() {
            assert!(queue.set(t[0].clone(), deadline));
        }
        assert_eq!((queue.len(), queue.next_deadline()), (1, Some(0)));
        assert!(queue.set(t[0].clone(), 7));
        assert!(queue.expire(6).is_none());
        assert_eq!(queue.expire(7).unwrap().deadline, 7);
        assert!(queue.is_empty() && t[0].link().queue().is_none());
    }

    #[test]
    fn a_timer_is_in_one_queue_only() {
        let t = timers(1);
        let (mut a, mut b) = (TimerQueue::new(0), TimerQueue::new(1));
        assert!(a.set(t[0].clone(), 5));
        assert!(!b.set(t[0].clone(), 5) && !b.cancel(&t[0]));
        assert!(a.cancel(&t[0]) && !a.cancel(&t[0]));
        assert!(b.set(t[0].clone(), 6));
        assert_eq!(b.next_deadline(), Some(6));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// Against a sorted map: the same timers run out, in the order of their deadlines.
        #[test]
        fn it_agrees_with_a_sorted_map(ops in proptest::collection::vec((0usize..12, 0u64..100, 0u8..4), 1..200)) {
            let t = timers(12);
            let mut queue = TimerQueue::new(3);
            let mut model = BTreeMap::new();
            for (i, when, op) in ops {
                match op {
                    0 | 1 => { queue.set(t[i].clone(), when); model.insert(i, when); }
                    2 => prop_assert_eq!(queue.cancel(&t[i]), model.remove(&i).is_some()),
                    _ => {
                        let mut last = 0;
                        while let Some(due) = queue.expire(when) {
                            prop_assert!(due.deadline <= when && due.deadline >= last);
                            last = due.deadline;
                            prop_assert_eq!(model.remove(&due.timer.0.0), Some(due.deadline));
                        }
                        prop_assert!(model.values().all(|&left| left > when));
                    }
                }
                prop_assert_eq!(queue.next_deadline(), model.values().min().copied());
                prop_assert_eq!(queue.len(), model.len());
            }
        }
    }
}
