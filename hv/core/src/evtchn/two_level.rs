//! The 2-level ABI: a pending and a mask bit for each port in the shared info page, and in each
//! vcpu_info a selector with a bit for each word of them.

use super::Raised;
use super::fifo::Place;
use crate::domain::Domain;
use crate::platform::Arch;
use crate::vcpu::VcpuId;
use addr::GuestPage;

/// A bit in an array of words of the guest's width that starts at `base`.
#[derive(Clone, Copy)]
struct Bit {
    at: usize,
    wide: bool,
    mask: u64,
}

impl Bit {
    fn new(base: usize, word: usize, n: u32) -> Self {
        let bits = word as u32 * 8;
        Self { at: base + (n / bits) as usize * word, wide: word == 8, mask: 1 << (n % bits) }
    }
    fn test<P: GuestPage>(self, page: &P) -> bool {
        let word = if self.wide { page.read_u64(self.at) } else { page.read_u32(self.at).into() };
        word & self.mask != 0
    }
    /// Sets it; tells whether it was set.
    fn set<P: GuestPage>(self, page: &P) -> bool {
        let old = if self.wide {
            page.fetch_or_u64(self.at, self.mask)
        } else {
            page.fetch_or_u32(self.at, self.mask as u32).into()
        };
        old & self.mask != 0
    }
    /// Clears it; tells whether it was set.
    fn clear<P: GuestPage>(self, page: &P) -> bool {
        let old = if self.wide {
            page.fetch_and_u64(self.at, !self.mask)
        } else {
            page.fetch_and_u32(self.at, !(self.mask as u32)).into()
        };
        old & self.mask != 0
    }
}

impl<A: Arch> Domain<A> {
    fn event_bit(&self, base: fn(&xen_abi::shared::SharedLayout) -> usize, port: u32) -> Option<Bit> {
        let layout = self.layout();
        (port < layout.ports).then(|| Bit::new(base(layout), layout.word, port))
    }

    /// Sets the bits of an event on `port`. The caller finishes with `deliver`.
    pub(super) fn raise_bits(&self, port: u32, place: &Place) -> Raised {
        let Some(pending) = self.event_bit(|layout| layout.evtchn_pending, port) else {
            return Raised::default();
        };
        if pending.set(self.shared_info()) {
            return Raised::default();
        }
        let target = place.target();
        let upcall = (!self.mask_bit(port) && self.select(port, target)).then_some(target);
        Raised { pending: true, upcall }
    }

    /// Sets the selector's bit for the word of `port`; tells whether it was clear.
    fn select(&self, port: u32, target: VcpuId) -> bool {
        let layout = self.layout();
        let word = port / (layout.word as u32 * 8);
        let Some(vcpu) = self.vcpu(target) else { return false };
        let was = vcpu.with_info(|page, at| Bit::new(at + layout.pending_sel, layout.word, word).set(page));
        was == Some(false)
    }

    fn mask_bit(&self, port: u32) -> bool {
        self.event_bit(|layout| layout.evtchn_mask, port).is_none_or(|bit| bit.test(self.shared_info()))
    }

    pub(super) fn pending_bit(&self, port: u32) -> bool {
        self.event_bit(|layout| layout.evtchn_pending, port).is_some_and(|bit| bit.test(self.shared_info()))
    }

    /// Clears the bit of `port`; tells whether it was set.
    pub(super) fn take_pending_bit(&self, port: u32) -> bool {
        self.event_bit(|layout| layout.evtchn_pending, port).is_some_and(|bit| bit.clear(self.shared_info()))
    }

    /// Clears the mask; who is notified must take an upcall for what was pending behind it.
    pub(super) fn unmask_bits(&self, port: u32, place: &Place) -> Raised {
        let Some(mask) = self.event_bit(|layout| layout.evtchn_mask, port) else { return Raised::default() };
        mask.clear(self.shared_info());
        let target = place.target();
        let upcall = (self.pending_bit(port) && self.select(port, target)).then_some(target);
        Raised { pending: false, upcall }
    }
}
