//! Domain ids (`public/xen.h`).

use crate::macros::numbers;

numbers! {
    /// A domain's id.
    DomId: u16 {
        /// The control domain.
        DOM0 = 0;
        /// First of the ids that name no domain but a role; ordinary ids lie below.
        FIRST_RESERVED = 0x7ff0;
        /// Foreign I/O memory.
        IO = 0x7ff1;
        /// The hypervisor's own memory.
        XEN = 0x7ff2;
        /// Copy-on-write pages.
        COW = 0x7ff3;
        /// No domain.
        INVALID = 0x7ff4;
        /// Frames without an owner.
        IDLE = 0x7fff;
    }
}

impl DomId {
    /// The caller itself, where an operation takes a domain (`DOMID_SELF`).
    pub const SELF: Self = Self::FIRST_RESERVED;
}

impl core::fmt::Display for DomId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "d{}", self.0)
    }
}
