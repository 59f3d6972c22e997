//! Who may still be using a translation of a domain, and waiting until nobody is.
//!
//! A change of a domain's tables bumps [`TlbControl::generation`]. A vCPU publishes the generation it
//! enters the guest with, *then* looks at the generation again; whoever changes bumps first, *then* looks
//! at what the vCPUs published. So one of the two sees the other, and no vCPU runs the guest with an older
//! generation than the one [`TlbControl::flush`] has waited for.

use crate::smp;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use spin::RwLock;

/// Published by a vCPU that is not in the guest and will look before it enters.
const OUTSIDE: u64 = u64::MAX;

/// One vCPU's publication.
#[derive(Debug)]
pub struct RunMark {
    entered: AtomicU64,
    pcpu: AtomicU32,
}

impl Default for RunMark {
    fn default() -> Self {
        RunMark { entered: AtomicU64::new(OUTSIDE), pcpu: AtomicU32::new(0) }
    }
}

impl RunMark {
    /// The vCPU is about to enter the guest on CPU `pcpu`. Returns the generation to be flushed up to;
    /// after this the vCPU must enter, or call [`RunMark::leave`].
    #[inline]
    pub fn enter(&self, control: &TlbControl, pcpu: u32) -> u64 {
        self.pcpu.store(pcpu, Ordering::Relaxed);
        loop {
            let generation = control.generation.load(Ordering::Acquire);
            self.entered.store(generation, Ordering::SeqCst);
            if control.generation.load(Ordering::SeqCst) == generation {
                return generation;
            }
        }
    }

    /// The vCPU has left the guest, and may itself wait for others.
    #[inline]
    pub fn leave(&self) {
        self.entered.store(OUTSIDE, Ordering::Release);
    }
}

/// A domain's generation and its vCPUs' publications.
#[derive(Debug, Default)]
pub struct TlbControl {
    generation: AtomicU64,
    marks: RwLock<Vec<Arc<RunMark>>>,
}

impl TlbControl {
    /// The generation of the domain's tables.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// A publication for one more vCPU.
    pub fn add_vcpu(&self) -> Arc<RunMark> {
        let mark = Arc::new(RunMark::default());
        self.marks.write().push(mark.clone());
        mark
    }

    /// Makes every vCPU of the domain flush before it uses a translation again; returns when none is in
    /// the guest with an older one. Interrupts must be on and no lock held; a vCPU that calls this has
    /// published that it is outside.
    pub fn flush(&self) {
        let wanted = self.generation.fetch_add(1, Ordering::SeqCst) + 1;
        crate::trace::flush(wanted);
        let behind = |mark: &RunMark| mark.entered.load(Ordering::SeqCst) < wanted;
        let marks = self.marks.read();
        for mark in marks.iter().filter(|mark| behind(mark)) {
            smp::kick(mark.pcpu.load(Ordering::Relaxed));
        }
        for mark in marks.iter() {
            while behind(mark) {
                core::hint::spin_loop();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vcpu_enters_with_the_generation_it_published() {
        let control = TlbControl::default();
        let mark = control.add_vcpu();
        assert_eq!(mark.enter(&control, 0), 0);
        mark.leave();
        control.flush();
        assert_eq!(mark.enter(&control, 0), 1);
    }

    #[test]
    fn a_flush_waits_until_no_old_generation_is_in_use() {
        let control = Arc::new(TlbControl::default());
        let mark = control.add_vcpu();
        for round in 0..200 {
            assert_eq!(mark.enter(&control, 0), round);
            let other = control.clone();
            let flusher = std::thread::spawn(move || other.flush());
            // In the guest until the bump is seen, as the kick would make it leave.
            while control.generation() == round {
                core::hint::spin_loop();
            }
            assert!(!flusher.is_finished() || control.generation() > round);
            mark.leave();
            flusher.join().unwrap();
        }
    }
}
