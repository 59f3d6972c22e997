//! Stacks: one aligned block per CPU, with guard pages, that also says which CPU one is on.
//!
//! While a guest's FS, GS and TR are live (exits handled with GIF=0) no segment base of ours is at hand.
//! So the pointer to the per-CPU data lies at the top of the CPU's stack block, and any code finds it
//! from its stack pointer. The NMI, #MC and #DF stacks are parts of the same block, so it works there.
//!
//! | offset | what |
//! |---|---|
//! | 0 | guard |
//! | 0x1000 | main stack, 32 KiB |
//! | 0x9000 | guard |
//! | 0xA000 | NMI stack, 8 KiB |
//! | 0xC000 | #MC stack, 8 KiB |
//! | 0xE000 | #DF stack, 8 KiB, with the pointer in the last 8 bytes |
//!
//! Each of the three has room for a whole report (`report`). Nothing guards them from each other: what runs on
//! them ends the machine or does next to nothing.

/// Bytes of a block, and its alignment.
pub const BLOCK_BYTES: usize = 0x1_0000;
/// Offset of the main stack's first byte.
pub const MAIN_BOTTOM: usize = 0x1000;
/// Offset behind the main stack, which is 32 KiB.
pub const MAIN_TOP: usize = 0x9000;
/// Offset behind the NMI stack.
pub const NMI_TOP: usize = 0xc000;
/// Offset behind the machine-check stack.
pub const MCE_TOP: usize = 0xe000;
/// Offset behind the double-fault stack.
pub const DF_TOP: usize = 0x1_0000 - 16;
/// Pages of a block that stay unmapped.
pub const GUARDS: [usize; 2] = [0, 0x9000];
/// Offset of the pointer to the per-CPU data.
pub const POINTER: usize = BLOCK_BYTES - 8;

/// Whether the `bytes` bytes at `address` lie in one of the stacks of the block at `block`, so that they can be
/// read whatever else is wrong.
pub const fn holds(block: u64, address: u64, bytes: u64) -> bool {
    let Some(offset) = address.checked_sub(block) else { return false };
    let Some(end) = offset.checked_add(bytes) else { return false };
    let main = offset >= MAIN_BOTTOM as u64 && end <= MAIN_TOP as u64;
    let others = offset >= (MAIN_TOP + 0x1000) as u64 && end <= BLOCK_BYTES as u64;
    main || others
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_are_never_read() {
        let block = 0xffff_c000_0001_0000;
        for (offset, bytes, inside) in [
            (0xff8, 8, false),
            (0x1000, 16, true),
            (0x8ff0, 16, true),
            (0x8ff8, 16, false),
            (0x9ff8, 16, false),
            (0xa000, 16, true),
            (0xfff0, 16, true),
            (0xfff8, 16, false),
        ] {
            assert_eq!(holds(block, block + offset, bytes), inside, "{offset:#x}");
        }
        assert!(!holds(block, block - 8, 16) && !holds(block, u64::MAX - 4, 16) && !holds(block, 0, 8));
        for guard in GUARDS {
            assert!(!holds(block, block + guard as u64, 1));
        }
    }
}
