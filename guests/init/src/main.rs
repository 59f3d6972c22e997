//! `/init` of the test images. One program for both levels: `testudo.l1=` on the kernel command line makes it the L1's,
//! else it is an L2's. Results go to the console as lines that start with `@testudo` (see `guests/README.md`).
//!
//! UNSAFETY: system calls without a wrapper in std (mount, finit_module, reboot, terminals).

mod clock;
mod l1;
mod l2;
mod load;
mod monitors;
mod net;
mod sys;
mod words;

use words::Words;

fn main() {
    let ticks = sys::tsc();
    sys::prepare();
    let words = Words::from_cmdline(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default());
    if words.has("testudo.l1") {
        let verdict = l1::run(&words, ticks);
        sys::report("l1", "done", &verdict);
        if words.get("testudo.end") == Some("reboot") { sys::reboot() } else { sys::poweroff() }
    }
    let verdict = l2::run(&words, ticks);
    sys::report("l2", "done", &verdict);
    if words.get("testudo.l2") == Some("reboot") { sys::reboot() } else { sys::poweroff() }
}
