//! Tests that need a whole vmcb12, and the doubles they share.

extern crate std;

mod asid;
mod check;
mod events;
mod laws;
mod perm;
mod reflect;
mod regressions;
mod route;
mod spy;
mod state;

use crate::caps::{Caps, Features, test_caps};
use crate::layout::{Clean, Intercept, Intercepts, Vmcb, attrib, misc_ctl, reg::*};
use crate::merge::{L0Policy, merge};
use crate::msr::RATIO_ONE;
use crate::vmcb12::{Cached12, Dirty, at};
use addr::testing::HeapPage;
use addr::{Gpa, GuestPage, Hpa};

/// L1's CR0 in most tests.
pub(crate) const L1_CR0: u64 = CR0_PE | CR0_PG;

/// Byte offset of an intercept's word, and its bit.
pub(crate) fn intercept_at(what: Intercept) -> (usize, u32) {
    (at::INTERCEPTS + what.word() * 4, what.mask())
}

/// Sets an intercept in a vmcb12.
pub(crate) fn intercept(page: &impl GuestPage, what: Intercept) {
    let (offset, bit) = intercept_at(what);
    page.fetch_or_u32(offset, bit);
}

/// A vmcb12 of a 64-bit L2 that passes every check, without nested paging.
pub(crate) fn valid_page() -> HeapPage {
    let page = HeapPage::default();
    intercept(&page, Intercept::VMRUN);
    for (offset, value) in [
        (at::ASID, 1),
        (at::MSRPM, 0x10_0000),
        (at::IOPM, 0x20_0000),
        (at::CR0, CR0_PE | CR0_PG),
        (at::CR3, 0x3000),
        (at::CR4, CR4_PAE),
        (at::EFER, EFER_SVME | EFER_LME | EFER_LMA),
        (at::CS, u64::from(attrib::L | attrib::P) << 16 | 8),
        (at::DR6, 0xffff_0ff0),
        (at::DR7, DR7_RESET),
        (at::RFLAGS, RFLAGS_FIXED | RFLAGS_IF),
        (at::RIP, 0x1000),
        (at::RSP, 0x2000),
        (at::G_PAT, 0x0007_0406_0007_0406),
    ] {
        page.write_u64(offset, value);
    }
    page
}

/// Turns nested paging on in a vmcb12.
pub(crate) fn with_np(page: &HeapPage) {
    page.write_u64(at::MISC_CTL, misc_ctl::NP_ENABLE);
    page.write_u64(at::N_CR3, 0x7000);
}

/// L0's side, on a processor with every feature.
pub(crate) fn policy() -> L0Policy {
    L0Policy {
        hardware: Features::all(),
        intercepts: Intercepts::NONE,
        n_cr3: Hpa::new(0xaaaa_a000),
        msrpm: Hpa::new(0xbbbb_b000),
        iopm: Hpa::new(0xcccc_c000),
        asid: 42,
        tlb_control: 0,
        cr0_read_trap: false,
        tsc_ratio12: RATIO_ONE,
        pause: (0, 0),
    }
}

/// L0's side on QEMU TCG.
pub(crate) fn tcg() -> L0Policy {
    L0Policy { hardware: Features::NPT | Features::VGIF, cr0_read_trap: true, ..policy() }
}

/// One vmcb12 with all that goes with it.
pub(crate) struct Rig {
    pub page: HeapPage,
    pub caps: Caps,
    pub c12: Cached12,
    pub vmcb01: Vmcb,
    pub vmcb02: Vmcb,
    pub l0: L0Policy,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(valid_page())
    }
    pub fn with(page: HeapPage) -> Self {
        let c12 = Cached12::new(Gpa::new(0x5000));
        let (vmcb01, vmcb02) = (Vmcb::new(), Vmcb::new());
        Self { page, caps: test_caps(), c12, vmcb01, vmcb02, l0: policy() }
    }
    /// VMRUN up to the hardware entry.
    pub fn vmrun(&mut self, trust_clean: bool) -> Dirty {
        let dirty = self.c12.load(&self.page, &self.caps, L1_CR0, trust_clean).expect("a valid vmcb12");
        merge(&self.vmcb01, self.c12.checked().unwrap(), dirty, &self.l0, &mut self.vmcb02);
        dirty
    }
    /// What the processor and the back end do around a real entry.
    pub fn ran(&mut self) {
        self.vmcb02.control.mark_all_clean();
        self.vmcb02.control.event_inj = 0;
    }
    /// Which groups of vmcb02 are not promised clean.
    pub fn touched(&self) -> Clean {
        Clean::all() - Clean::from_bits_truncate(self.vmcb02.control.vmcb_clean)
    }
}

/// A small deterministic generator, to fill pages from one seed.
pub(crate) struct Noise(pub u64);
impl Noise {
    pub fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// A page of noise made valid where VMRUN checks it, and random where it doesn't.
pub(crate) fn noisy_page(seed: u64) -> HeapPage {
    let (page, mut r) = (HeapPage::default(), Noise(seed));
    for offset in (0..4096).step_by(8) {
        page.write_u64(offset, r.next());
    }
    intercept(&page, Intercept::VMRUN);
    let caps = test_caps();
    let end = caps.phys_end() - 0x4000;
    let long = r.next();
    let event = [0, 0x8000_0030, 0x8000_0202, 0x8000_0b0e, 0x8000_0480, 0x77][r.below(6) as usize];
    let types = [0u64, 1, 4, 5, 6, 7];
    let pat = (0..8).fold(0, |pat, _| pat << 8 | types[r.below(6) as usize]);
    for (offset, value) in [
        (at::ASID, r.next() | 1),
        (at::MSRPM, r.below(end)),
        (at::IOPM, r.below(end)),
        (at::N_CR3, r.below(end)),
        (at::EVENT_INJ, event | r.next() << 32),
        (at::CR0, r.next() as u32 as u64 & !CR0_NW | CR0_PE),
        (at::CR3, r.below(end)),
        (at::CR4, r.next() & caps.cr4_allowed | CR4_PAE),
        (at::EFER, r.next() & caps.efer_allowed | EFER_SVME),
        (at::CS, long & !(u64::from(attrib::D) << 16)),
        (at::DR6, r.next() as u32 as u64),
        (at::DR7, r.next() as u32 as u64),
        (at::G_PAT, pat),
    ] {
        page.write_u64(offset, value);
    }
    page
}

/// The bytes of a page.
pub(crate) fn bytes(page: &impl GuestPage) -> std::vec::Vec<u8> {
    (0..4096).map(|i| page.read_u8(i)).collect()
}
