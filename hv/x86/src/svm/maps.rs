//! Testudo's own permission maps: what every guest may reach without an exit.
// UNSAFETY: fills pages that the hardware reads.
#![allow(unsafe_code)]

use crate::hw::mitigation::{self, PRED_CMD, SPEC_CTRL};
use crate::mm::{direct, frames::frames};
use crate::policy::mitigation::MitigationPlan;
use crate::policy::msr::OPEN;
use addr::Hpa;
use hv_core::memory::{Kind, Owner, Zone};
use spin::Once;
use vsvm::perm::{OpenWords, msr_bit};

/// 64-bit words of the MSR permission map (8 KiB).
pub const MSRPM_WORDS: usize = 1024;
/// 64-bit words of the I/O permission map (12 KiB).
pub const IOPM_WORDS: usize = 1536;

/// The maps, shared by all vCPUs.
#[derive(Debug)]
pub struct Maps {
    /// I/O permission map: everything exits.
    pub iopm: Hpa,
    /// MSR permission map.
    pub msrpm: Hpa,
    /// The same, for merging.
    pub msrpm_bits: &'static [u64],
    /// Words of it that have zeros.
    pub msrpm_open: OpenWords,
    /// For merging.
    pub iopm_bits: &'static [u64],
    /// None.
    pub iopm_open: OpenWords,
}

static MAPS: Once<Maps> = Once::new();

/// The maps, made at first use.
pub fn shared() -> &'static Maps {
    MAPS.call_once(|| {
        let msrpm = filled(MSRPM_WORDS, |bits| {
            for (msr, access) in open(&mitigation::plan()) {
                let bit = usize::from(msr_bit(msr).expect("an MSR that the map covers"));
                bits[bit / 64] &= !(access << (bit % 64));
            }
        });
        let iopm = filled(IOPM_WORDS, |_| ());
        Maps {
            iopm: direct::physical(iopm.as_ptr()),
            msrpm: direct::physical(msrpm.as_ptr()),
            msrpm_bits: msrpm,
            msrpm_open: OpenWords::of(msrpm),
            iopm_bits: iopm,
            iopm_open: OpenWords::of(iopm),
        }
    })
}

/// What a guest accesses without an exit, and how (bit 0 reads, bit 1 writes): VMLOAD/VMSAVE state, which is switched
/// with the vCPU, and what the world switch keeps apart.
fn open(plan: &MitigationPlan) -> impl Iterator<Item = (u32, u64)> {
    let spec_ctrl = plan.guest.spec_ctrl != 0;
    let pred_cmd = plan.guest.pred_cmd != 0;
    let speculation = [spec_ctrl.then_some((SPEC_CTRL, 3)), pred_cmd.then_some((PRED_CMD, 2))];
    OPEN.into_iter().map(|msr| (msr, 3)).chain(speculation.into_iter().flatten())
}

/// `words` ones, changed by `f`, in frames that are never freed.
fn filled(words: usize, f: impl FnOnce(&mut [u64])) -> &'static [u64] {
    let order = (words * 8).div_ceil(4096).next_power_of_two().trailing_zeros() as u8;
    let frame = frames()
        .alloc(order, Owner::HYPERVISOR, Kind::Hypervisor, Zone::Any)
        .expect("memory for the permission maps");
    // SAFETY: the block was just given to us, for ever; `u64` has no invalid bytes.
    let bits = unsafe {
        let at = direct::pointer(frame.start()).cast::<u64>();
        core::ptr::write_bytes(at, 0xff, (4096 / 8) << order);
        core::slice::from_raw_parts_mut(at, words)
    };
    f(bits);
    bits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::mitigation::GuestSpec;
    use std::vec::Vec;

    #[test]
    fn speculation_registers_are_open_as_far_as_guests_have_them() {
        let beyond = |guest| {
            let plan = MitigationPlan { guest, ..MitigationPlan::default() };
            open(&plan).skip(OPEN.len()).collect::<Vec<_>>()
        };
        assert_eq!(beyond(GuestSpec::default()), []);
        assert_eq!(beyond(GuestSpec { pred_cmd: 1, ..GuestSpec::default() }), [(0x49, 2)], "write-only");
        let both = GuestSpec { pred_cmd: 1, spec_ctrl: 7, ..GuestSpec::default() };
        assert_eq!(beyond(both), [(0x48, 3), (0x49, 2)]);
    }
}
