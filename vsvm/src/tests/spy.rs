//! A guest page that counts its readers and changes behind their back.

use super::*;
use proptest::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

/// Every byte changes right after it was read, and reads are counted by 8-byte word.
#[derive(Clone)]
pub(crate) struct SpyPage {
    page: HeapPage,
    state: Rc<RefCell<(Vec<u32>, Noise)>>,
}

impl SpyPage {
    pub fn new(page: HeapPage, seed: u64) -> Self {
        Self { page, state: Rc::new(RefCell::new((vec![0; 512], Noise(seed)))) }
    }
    fn seen(&self, offset: usize) {
        let mut state = self.state.borrow_mut();
        state.0[offset / 8] += 1;
        let noise = state.1.next();
        self.page.write_u64(offset & !7, noise);
    }
    pub fn reads(&self) -> Vec<u32> {
        self.state.borrow().0.clone()
    }
}

impl GuestPage for SpyPage {
    fn read_u8(&self, offset: usize) -> u8 {
        let value = self.page.read_u8(offset);
        self.seen(offset);
        value
    }
    fn read_u32(&self, offset: usize) -> u32 {
        let value = self.page.read_u32(offset);
        self.seen(offset);
        value
    }
    fn read_u64(&self, offset: usize) -> u64 {
        let value = self.page.read_u64(offset);
        self.seen(offset);
        value
    }
    fn write_u8(&self, offset: usize, value: u8) {
        self.page.write_u8(offset, value);
    }
    fn write_u32(&self, offset: usize, value: u32) {
        self.page.write_u32(offset, value);
    }
    fn write_u64(&self, offset: usize, value: u64) {
        self.page.write_u64(offset, value);
    }
    fn swap_u8(&self, _: usize, _: u8) -> u8 {
        panic!("no atomics on a vmcb12")
    }
    fn fetch_or_u64(&self, _: usize, _: u64) -> u64 {
        panic!("no atomics on a vmcb12")
    }
    fn fetch_and_u64(&self, _: usize, _: u64) -> u64 {
        panic!("no atomics on a vmcb12")
    }
    fn fetch_or_u32(&self, _: usize, _: u32) -> u32 {
        panic!("no atomics on a vmcb12")
    }
    fn fetch_and_u32(&self, _: usize, _: u32) -> u32 {
        panic!("no atomics on a vmcb12")
    }
    fn compare_exchange_u32(&self, _: usize, _: u32, _: u32) -> Result<u32, u32> {
        panic!("no atomics on a vmcb12")
    }
    fn compare_exchange_u64(&self, _: usize, _: u64, _: u64) -> Result<u64, u64> {
        panic!("no atomics on a vmcb12")
    }
}

/// Loads `page` quietly, and through a page that changes after each read; both must see the same.
pub(crate) fn double_fetch(page: &HeapPage, seed: u64) {
    let caps = test_caps();
    let mut quiet = Cached12::new(Gpa::ZERO);
    let want = quiet.load(page, &caps, L1_CR0, false);
    let spy = SpyPage::new(page.clone(), seed);
    let mut spied = Cached12::new(Gpa::ZERO);
    assert_eq!(spied.load(&spy, &caps, L1_CR0, false), want);
    assert_eq!(spied.data.control, quiet.data.control);
    assert_eq!(spied.data.save, quiet.data.save);
    assert!(spy.reads().iter().all(|&n| n <= 1), "a word was read twice");

    // The exit uses the copy, never the page.
    let before = spy.reads();
    if let Some(c12) = spied.checked().cloned() {
        let mut vmcb02 = Vmcb::new();
        merge(&Vmcb::new(), &c12, Dirty::all(), &policy(), &mut vmcb02);
        let _ = crate::reflect::reflect(&vmcb02, &crate::route::Exit::default(), &mut spied, &spy);
    } else {
        let _ = crate::reflect::refuse(&mut spied, &spy);
    }
    assert_eq!(spy.reads(), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn values_used_are_the_values_checked(seed: u64, noise: u64) {
        double_fetch(&noisy_page(seed), noise);
    }
}
