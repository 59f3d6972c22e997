//! Failing on purpose, to try the report out: the key `C`, in the way that `crash-key=` says.
// UNSAFETY: breaks things; that is what it is for.
#![allow(unsafe_code)]

use crate::svm::entry;
use boot::cmdline::Crash;

/// Fails.
pub fn now(how: Crash) -> ! {
    match how {
        Crash::Panic => {}
        Crash::PageFault => page_fault(),
        Crash::StackOverflow => {
            overflow(0);
        }
        Crash::ClosedGif => entry::clgi(),
    }
    panic!("asked for by the key C");
}

#[inline(never)]
fn page_fault() {
    // The last byte of the lower half: Testudo maps nothing there.
    let nowhere = core::hint::black_box(0x7fff_ffff_ffff_u64) as *mut u8;
    // SAFETY: never written: the page fault ends Testudo.
    unsafe { nowhere.write_volatile(1) };
}

#[inline(never)]
fn overflow(depth: u64) -> u64 {
    let block = core::hint::black_box([depth; 32]);
    if block[0] == u64::MAX { 0 } else { overflow(depth + 1) + block[1] }
}
