//! Walking a stack by its frame pointers, through interrupts and exceptions, within the bounds of a CPU's block.
// UNSAFETY: reads stacks.
#![allow(unsafe_code)]

use crate::cpu::stack;
use crate::mm::host;
use crate::trap::{self, Frame};
use core::fmt::{self, Write};

/// The registers that a stub saved at `at` in the block of stacks at `block`. `None`: that is no such place.
pub fn frame_at(block: u64, at: u64) -> Option<Frame> {
    read(block, at)
}

/// A value that any bytes make.
trait Plain: Copy {}
impl Plain for Frame {}
impl Plain for [u64; 2] {}

fn read<T: Plain>(block: u64, at: u64) -> Option<T> {
    let inside = block != 0 && stack::holds(block, at, size_of::<T>() as u64) && at.is_multiple_of(8);
    // SAFETY: in a stack of the block, which is mapped; any bytes make a `T`.
    inside.then(|| unsafe { (at as *const T).read_volatile() })
}

/// Prints where `frame` was and who called that, `most` lines at most.
pub fn print(out: &mut impl Write, block: u64, frame: &Frame, most: usize) {
    let _ = line(out, frame.rip, frame.rip);
    let mut at = frame.rbp;
    for _ in 1..most {
        let Some([next, back]) = read::<[u64; 2]>(block, at) else { return };
        if !host::is_text(back) {
            return;
        }
        // The call may be its function's last instruction, so that it returns into the next function.
        let _ = line(out, back, back - 1);
        if back == trap::returns_to() {
            // The stub keeps the address of the interrupted registers where a frame pointer would be.
            let Some(inner) = read::<Frame>(block, next) else { return };
            let _ = writeln!(out, "  -- {} --", trap::name(inner.vector));
            let _ = line(out, inner.rip, inner.rip);
            at = inner.rbp;
            continue;
        }
        // Stacks grow downwards: who called lies above.
        if next <= at {
            return;
        }
        at = next;
    }
    let _ = writeln!(out, "  ...");
}

/// `address`, with the name of the function that `inside` lies in.
fn line(out: &mut impl Write, address: u64, inside: u64) -> fmt::Result {
    let found = host::symbols().filter(|_| host::is_text(inside)).and_then(|table| table.find(inside));
    match found {
        Some(symbol) => {
            writeln!(out, "  {address:#018x} {}+{:#x}", symbol.name, symbol.offset + (address - inside))
        }
        None => writeln!(out, "  {address:#018x}"),
    }
}
