//! The shared info page (`public/xen.h`, `public/arch-x86/xen.h`), as offsets: it is read and written
//! field by field while the guest does the same.

/// Bytes of a vcpu_info, in either width.
pub const VCPU_INFO_SIZE: usize = 64;
/// vCPUs that have a vcpu_info within the shared info page.
pub const LEGACY_MAX_VCPUS: usize = 32;

/// Offsets within a vcpu_info.
pub mod vcpu_info {
    /// u8: an upcall is due.
    pub const UPCALL_PENDING: usize = 0;
    /// u8: upcalls are off (PV; `SCHEDOP_block` clears it).
    pub const UPCALL_MASK: usize = 1;
    /// Which words of the pending bits to look at: u64, or u32 at 4 for a 32-bit guest.
    pub const PENDING_SEL_64: usize = 8;
    /// See [`PENDING_SEL_64`].
    pub const PENDING_SEL_32: usize = 4;
    /// A vcpu_time_info, in either width.
    pub const TIME: usize = 32;
}

/// Offsets within a vcpu_time_info, 32 bytes.
pub mod vcpu_time {
    /// u32, odd while being written.
    pub const VERSION: usize = 0;
    /// u64: TSC at [`SYSTEM_TIME`].
    pub const TSC_TIMESTAMP: usize = 8;
    /// u64: ns since boot.
    pub const SYSTEM_TIME: usize = 16;
    /// u32: fraction of 2^32 ns per (shifted) tick.
    pub const TSC_TO_SYSTEM_MUL: usize = 24;
    /// i8: shift of the tick count before the multiplication, left if positive.
    pub const TSC_SHIFT: usize = 28;
    /// u8: [`FLAG_TSC_STABLE`].
    pub const FLAGS: usize = 29;
    /// Bytes.
    pub const SIZE: usize = 32;
    /// All vCPUs see the same clock.
    pub const FLAG_TSC_STABLE: u8 = 1;
}

/// Where things are in the shared info page of a guest of one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedLayout {
    /// Bytes of a word of the event bitmaps.
    pub word: usize,
    /// Pending bits.
    pub evtchn_pending: usize,
    /// Mask bits.
    pub evtchn_mask: usize,
    /// u32: version of the wallclock, odd while being written.
    pub wc_version: usize,
    /// u32: seconds, low half.
    pub wc_sec: usize,
    /// u32: ns.
    pub wc_nsec: usize,
    /// u32: seconds, high half.
    pub wc_sec_hi: usize,
    /// Ports of the 2-level ABI.
    pub ports: u32,
    /// Offset of the pending selector in a vcpu_info.
    pub pending_sel: usize,
}

/// 64-bit guests.
pub const LAYOUT_64: SharedLayout = SharedLayout {
    word: 8,
    evtchn_pending: 2048,
    evtchn_mask: 2560,
    wc_version: 3072,
    wc_sec: 3076,
    wc_nsec: 3080,
    wc_sec_hi: 3084,
    ports: 4096,
    pending_sel: vcpu_info::PENDING_SEL_64,
};

/// 32-bit guests.
pub const LAYOUT_32: SharedLayout = SharedLayout {
    word: 4,
    evtchn_pending: 2048,
    evtchn_mask: 2176,
    wc_version: 2304,
    wc_sec: 2308,
    wc_nsec: 2312,
    // The last word of arch_shared_info, which six longs precede.
    wc_sec_hi: 2340,
    ports: 1024,
    pending_sel: vcpu_info::PENDING_SEL_32,
};

const _: () = {
    const fn fits(l: SharedLayout) -> bool {
        let words = l.word * 8;
        l.evtchn_pending == LEGACY_MAX_VCPUS * VCPU_INFO_SIZE
            && l.ports as usize == words * words
            && l.evtchn_mask == l.evtchn_pending + words * l.word
            && l.wc_version == l.evtchn_mask + words * l.word
            && l.wc_sec_hi + 4 <= 4096
    }
    assert!(fits(LAYOUT_64) && fits(LAYOUT_32));
};
