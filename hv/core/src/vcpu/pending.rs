//! Reasons for a vCPU to look around before it next enters its guest.

use core::fmt;
use core::ops::{BitAnd, BitOr};

/// A set of reasons. Others set them ([`super::Vcpu::post`]); the vCPU's own pCPU takes them
/// ([`super::Vcpu::take_pending`]) and acts.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Pending(pub u64);

impl Pending {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// An event-channel upcall is due, or an interrupt was put into the interrupt controller.
    pub const EVENT: Self = Self(1 << 0);
    /// The architecture's timer ([`crate::time::TimerKind::Arch`]) ran out.
    pub const TIMER: Self = Self(1 << 1);
    /// Something that comes first waits for this pCPU, or the vCPU must be looked at anew.
    pub const RESCHED: Self = Self(1 << 2);
    /// It may no longer run: test [`super::Vcpu::may_run`].
    pub const STOP: Self = Self(1 << 3);
    /// A non-maskable interrupt.
    pub const NMI: Self = Self(1 << 4);
    /// INIT: back to the state after reset (the architecture keeps the details).
    pub const INIT: Self = Self(1 << 5);
    /// Start-up: begin to run (the architecture keeps the vector).
    pub const SIPI: Self = Self(1 << 6);
    /// Mappings changed: the generations must be compared.
    pub const TLB: Self = Self(1 << 7);
    /// The guest's runstate and time areas are stale: [`super::Vcpu::write_areas`].
    pub const AREAS: Self = Self(1 << 8);
    /// A poll is over.
    pub const POLL: Self = Self(1 << 9);
    /// The architecture's own reasons: bits 32 to 63.
    pub const ARCH: Self = Self(!0 << 32);

    /// The architecture's reason number `n`, 0 to 31.
    pub const fn arch(n: u32) -> Self {
        Self(1 << (32 + n % 32))
    }
    /// Whether it has any of `other`.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
    /// Whether it is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for Pending {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Pending {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 10] =
            ["EVENT", "TIMER", "RESCHED", "STOP", "NMI", "INIT", "SIPI", "TLB", "AREAS", "POLL"];
        let mut set = f.debug_set();
        for bit in (0..64).filter(|bit| self.0 & 1 << bit != 0) {
            match NAMES.get(bit) {
                Some(name) => set.entry(&format_args!("{name}")),
                None => set.entry(&format_args!("{bit}")),
            };
        }
        set.finish()
    }
}
