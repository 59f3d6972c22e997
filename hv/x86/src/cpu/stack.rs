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
//! | 0xE000 | guard |
//! | 0xF000 | #DF stack, then the pointer in the last 8 bytes |

/// Bytes of a block, and its alignment.
pub const BLOCK_BYTES: usize = 0x1_0000;
/// Offset of the main stack's first byte.
pub const MAIN_BOTTOM: usize = 0x1000;
/// Offset behind the main stack.
pub const MAIN_TOP: usize = 0x9000;
/// Offset behind the NMI stack.
pub const NMI_TOP: usize = 0xc000;
/// Offset behind the machine-check stack.
pub const MCE_TOP: usize = 0xe000;
/// Offset behind the double-fault stack.
pub const DF_TOP: usize = 0x1_0000 - 16;
/// Pages of a block that stay unmapped.
pub const GUARDS: [usize; 3] = [0, 0x9000, 0xe000];
/// Offset of the pointer to the per-CPU data.
pub const POINTER: usize = BLOCK_BYTES - 8;
