//! Atomics and locks. The rest of the crate takes them from here, so that a model checker can replace
//! the atomics, and so that every spin lock keeps interrupts out.
//!
//! Lock order, outermost first; a lock is never held while calling [`crate::platform::Arch`] or
//! [`crate::platform::DomainMemory`], except where the method says so:
//! 1. `Domains` (registry)
//! 2. event channels: configuration of a domain (two domains: lower id first), then one channel, then the
//!    domain's FIFO moves, then one or two FIFO queues (lower index first)
//! 3. a vCPU's runstate, areas, a domain's parameters, console ring, grant table, maptrack (leaves: nothing below)
//! 4. the scheduler's account list, then one run queue; a timer queue (leaves)

use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use inner::{Guard, Inner};

/// The atomics: loom's while a model is checked, else the language's.
pub mod atomic {
    #[cfg(not(loom))]
    pub use core::sync::atomic::{
        AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    #[cfg(loom)]
    pub use loom::sync::atomic::{
        AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
}

/// The spin lock proper: while a model is checked, one whose waiting the checker knows of.
mod inner {
    #[cfg(loom)]
    pub use loom::sync::{Mutex as Inner, MutexGuard as Guard};
    #[cfg(not(loom))]
    pub use spin::mutex::{SpinMutex as Inner, SpinMutexGuard as Guard};

    #[cfg(not(loom))]
    pub fn lock<T>(inner: &Inner<T>) -> Guard<'_, T> {
        inner.lock()
    }
    #[cfg(not(loom))]
    pub fn try_lock<T>(inner: &Inner<T>) -> Option<Guard<'_, T>> {
        inner.try_lock()
    }
    #[cfg(loom)]
    pub fn lock<T>(inner: &Inner<T>) -> Guard<'_, T> {
        inner.lock().expect("a panic ends the model")
    }
    #[cfg(loom)]
    pub fn try_lock<T>(inner: &Inner<T>) -> Option<Guard<'_, T>> {
        inner.try_lock().ok()
    }
}

/// How interrupts of this pCPU are kept out of a critical section.
pub trait Irq: Send + Sync + 'static {
    /// What [`Irq::restore`] needs.
    type Saved: Copy;
    /// Turns interrupts off and tells how they were.
    fn disable() -> Self::Saved;
    /// Puts them back.
    fn restore(saved: Self::Saved);
}

/// No interrupts to keep out: host tests, and data that no interrupt handler touches.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoIrq;

impl Irq for NoIrq {
    type Saved = ();
    fn disable() {}
    fn restore((): ()) {}
}

/// A spin lock that is held with interrupts off.
pub struct IrqLock<T, I: Irq> {
    inner: Inner<T>,
    irq: PhantomData<fn() -> I>,
}

/// The guard of an [`IrqLock`]. The lock is released before interrupts come back.
pub struct IrqGuard<'a, T, I: Irq> {
    guard: Guard<'a, T>,
    // Declared after the guard, so dropped after it.
    _restore: Restore<I>,
}

struct Restore<I: Irq>(I::Saved);

impl<I: Irq> Drop for Restore<I> {
    fn drop(&mut self) {
        I::restore(self.0);
    }
}

impl<T, I: Irq> IrqLock<T, I> {
    /// A lock around `value`.
    #[cfg(not(loom))]
    pub const fn new(value: T) -> Self {
        Self { inner: Inner::new(value), irq: PhantomData }
    }
    /// A lock around `value`.
    #[cfg(loom)]
    pub fn new(value: T) -> Self {
        Self { inner: Inner::new(value), irq: PhantomData }
    }

    /// Waits for the lock.
    pub fn lock(&self) -> IrqGuard<'_, T, I> {
        let restore = Restore(I::disable());
        IrqGuard { guard: inner::lock(&self.inner), _restore: restore }
    }

    /// Takes the lock if it is free.
    pub fn try_lock(&self) -> Option<IrqGuard<'_, T, I>> {
        let restore = Restore(I::disable());
        inner::try_lock(&self.inner).map(|guard| IrqGuard { guard, _restore: restore })
    }
}

impl<T, I: Irq> Deref for IrqGuard<'_, T, I> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T, I: Irq> DerefMut for IrqGuard<'_, T, I> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T, I: Irq> fmt::Debug for IrqLock<T, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IrqLock(..)")
    }
}

impl<T, I: Irq> fmt::Debug for IrqGuard<'_, T, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IrqGuard(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::thread_local;

    thread_local!(static OFF: Cell<i32> = const { Cell::new(0) });
    struct Counted;
    impl Irq for Counted {
        type Saved = i32;
        fn disable() -> i32 {
            OFF.replace(OFF.get() + 1)
        }
        fn restore(saved: i32) {
            OFF.set(saved);
        }
    }

    #[test]
    fn interrupts_are_off_exactly_while_the_lock_is_held() {
        let lock = IrqLock::<u32, Counted>::new(1);
        {
            let mut guard = lock.lock();
            assert_eq!(OFF.get(), 1);
            *guard += 1;
            assert!(lock.try_lock().is_none());
            assert_eq!(OFF.get(), 1, "a failed attempt must restore interrupts");
        }
        assert_eq!(OFF.get(), 0);
        assert_eq!(*lock.try_lock().unwrap(), 2);
    }
}
