//! The paravirtual clock: a system time, the TSC at that moment, and the scale between them
//! (`struct vcpu_time_info`, `public/xen.h`).

use addr::GuestPage;
use core::sync::atomic::{Ordering::SeqCst, fence};
use xen_abi::shared::{SharedLayout, vcpu_time};

/// The ratio of ns to TSC ticks: ns = ((ticks << shift) * mul) >> 32, the shift being to the right if
/// negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscScale {
    /// Fraction of 2^32.
    pub mul: u32,
    /// Left shift of the ticks.
    pub shift: i8,
}

impl TscScale {
    /// For a TSC of `khz` kHz; 0 counts as 1.
    pub const fn from_khz(khz: u64) -> Self {
        let khz = if khz == 0 { 1 } else { khz as u128 };
        // mul = ns per tick * 2^32, brought into 2^31..2^32 for precision.
        let mut mul = (1_000_000u128 << 64) / khz;
        let mut shift = -32i32;
        while mul >= 1 << 32 {
            mul >>= 1;
            shift += 1;
        }
        while mul < 1 << 31 && shift > -127 {
            mul <<= 1;
            shift -= 1;
        }
        Self { mul: mul as u32, shift: shift as i8 }
    }

    /// ns in `ticks`.
    pub const fn ns(self, ticks: u64) -> u64 {
        let shifted = if self.shift >= 0 {
            ticks.wrapping_shl(self.shift as u32)
        } else {
            ticks.wrapping_shr(-(self.shift as i32) as u32)
        };
        ((shifted as u128 * self.mul as u128) >> 32) as u64
    }
}

/// The clock of one vCPU at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// What the guest's TSC read at `system_time`.
    pub tsc: u64,
    /// ns since the machine booted.
    pub system_time: u64,
    /// The scale of the guest's TSC.
    pub scale: TscScale,
    /// All vCPUs of the domain have the same clock, for good.
    pub stable: bool,
}

impl Clock {
    /// The 32 bytes of a vcpu_time_info with version `version`.
    pub fn bytes(&self, version: u32) -> [u8; vcpu_time::SIZE] {
        let mut out = [0; vcpu_time::SIZE];
        out[..4].copy_from_slice(&version.to_le_bytes());
        out[8..16].copy_from_slice(&self.tsc.to_le_bytes());
        out[16..24].copy_from_slice(&self.system_time.to_le_bytes());
        out[24..28].copy_from_slice(&self.scale.mul.to_le_bytes());
        out[28..32].copy_from_slice(&self.tail().to_le_bytes());
        out
    }

    /// tsc_shift and flags, with their padding.
    fn tail(&self) -> u32 {
        let flags = if self.stable { vcpu_time::FLAG_TSC_STABLE } else { 0 };
        u32::from_le_bytes([self.scale.shift as u8, flags, 0, 0])
    }
}

/// Writes the clock into the vcpu_info at `vcpu_info` of `page`. Only one writer at a time.
/// A reader that finds the version odd, or changed after it read, tries again.
pub fn write_time<P: GuestPage>(page: &P, vcpu_info: usize, clock: &Clock) {
    let at = vcpu_info + xen_abi::shared::vcpu_info::TIME;
    // What the guest wrote there does not matter: only that ours changes, and is even at the end.
    let version = page.read_u32(at + vcpu_time::VERSION) & !1;
    page.write_u32(at + vcpu_time::VERSION, version.wrapping_add(1));
    fence(SeqCst);
    page.write_u64(at + vcpu_time::TSC_TIMESTAMP, clock.tsc);
    page.write_u64(at + vcpu_time::SYSTEM_TIME, clock.system_time);
    page.write_u32(at + vcpu_time::TSC_TO_SYSTEM_MUL, clock.scale.mul);
    page.write_u32(at + vcpu_time::TSC_SHIFT, clock.tail());
    fence(SeqCst);
    page.write_u32(at + vcpu_time::VERSION, version.wrapping_add(2));
}

/// Writes the wallclock (UTC in ns at system time 0) into a shared info page. Only one writer at a time.
pub fn write_wallclock<P: GuestPage>(page: &P, layout: &SharedLayout, utc: u64) {
    let (sec, nsec) = (utc / 1_000_000_000, utc % 1_000_000_000);
    let version = page.read_u32(layout.wc_version) & !1;
    page.write_u32(layout.wc_version, version.wrapping_add(1));
    fence(SeqCst);
    page.write_u32(layout.wc_sec, sec as u32);
    page.write_u32(layout.wc_nsec, nsec as u32);
    page.write_u32(layout.wc_sec_hi, (sec >> 32) as u32);
    fence(SeqCst);
    page.write_u32(layout.wc_version, version.wrapping_add(2));
}

#[cfg(test)]
mod tests {
    use super::*;
    use addr::testing::HeapPage;
    use xen_abi::shared::{LAYOUT_32, LAYOUT_64};

    #[test]
    fn the_scale_is_right_to_a_billionth_over_the_range_of_real_clocks() {
        for khz in [1, 1_000, 32_768, 999_999, 1_000_000, 2_399_987, 4_000_000, 9_999_999] {
            let scale = TscScale::from_khz(khz);
            assert!(scale.mul >= 1 << 31, "{khz}");
            let second = scale.ns(khz * 1000);
            assert!(
                second.abs_diff(1_000_000_000) <= 1_000_000_000 / khz.max(1_000_000) + 3,
                "{khz}: {second}"
            );
        }
        // Hours later it has not drifted away: 10^-9 of 10^14 ns.
        let day = TscScale::from_khz(2_399_987).ns(2_399_987_000 * 86_400);
        assert!(day.abs_diff(86_400_000_000_000) < 100_000, "{day}");
    }

    #[test]
    fn the_version_is_even_afterwards_and_new_whatever_the_guest_left_there() {
        let page = HeapPage::default();
        let clock =
            Clock { tsc: 7, system_time: 9, scale: TscScale { mul: 0x8000_0000, shift: -1 }, stable: true };
        for old in [0u32, 1, 2, 0xffff_ffff] {
            page.write_u32(64 + 32, old);
            write_time(&page, 64, &clock);
            let new = page.read_u32(64 + 32);
            assert!(new % 2 == 0 && new != old, "{old:#x} -> {new:#x}");
        }
        assert_eq!(page.read_u64(64 + 40), 7);
        assert_eq!(page.read_u64(64 + 48), 9);
        assert_eq!(page.read_u32(64 + 56), 0x8000_0000);
        assert_eq!(page.read_u8(64 + 60), 0xff);
        assert_eq!(page.read_u8(64 + 61), 1);
        assert_eq!(clock.bytes(2)[24..30], [0, 0, 0, 0x80, 0xff, 1]);
    }

    #[test]
    fn the_wallclock_has_its_seconds_in_two_halves() {
        let page = HeapPage::default();
        for layout in [LAYOUT_64, LAYOUT_32] {
            write_wallclock(&page, &layout, (4 << 32) * 1_000_000_000 + 42);
            assert_eq!(page.read_u32(layout.wc_sec), 0);
            assert_eq!(page.read_u32(layout.wc_sec_hi), 4);
            assert_eq!(page.read_u32(layout.wc_nsec), 42);
            assert_eq!(page.read_u32(layout.wc_version) % 2, 0);
        }
    }
}
