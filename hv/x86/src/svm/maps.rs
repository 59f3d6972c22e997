//! Testudo's own permission maps: what every guest may reach without an exit.
// UNSAFETY: fills pages that the hardware reads.
#![allow(unsafe_code)]

use crate::mm::{direct, frames::frames};
use addr::Hpa;
use hv_core::memory::{Kind, Owner, Zone};
use spin::Once;
use vsvm::perm::{OpenWords, msr_bit};

/// 64-bit words of the MSR permission map (8 KiB).
pub const MSRPM_WORDS: usize = 1024;
/// 64-bit words of the I/O permission map (12 KiB).
pub const IOPM_WORDS: usize = 1536;

/// MSRs that a guest reads and writes without an exit: VMLOAD/VMSAVE state, switched with the vCPU.
const OPEN_MSRS: &[u32] = &[
    x86::msr::IA32_FS_BASE,
    x86::msr::IA32_GS_BASE,
    x86::msr::IA32_KERNEL_GSBASE,
    x86::msr::IA32_STAR,
    x86::msr::IA32_LSTAR,
    x86::msr::IA32_CSTAR,
    x86::msr::IA32_FMASK,
    x86::msr::IA32_SYSENTER_CS,
    x86::msr::IA32_SYSENTER_ESP,
    x86::msr::IA32_SYSENTER_EIP,
];

/// MSRs that a guest reads without an exit, as the hardware's value is what it would be given.
///
/// DEBUGCTL: 0 on every CPU ([`super::enter_cpu`]), and a guest's writes exit. KVM as L1 reads it before each entry.
const READABLE_MSRS: &[u32] = &[x86::msr::IA32_DEBUGCTL];

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
            for &msr in OPEN_MSRS {
                let bit = usize::from(msr_bit(msr).expect("an MSR that the map covers"));
                bits[bit / 64] &= !(3 << (bit % 64));
            }
            for &msr in READABLE_MSRS {
                let bit = usize::from(msr_bit(msr).expect("an MSR that the map covers"));
                bits[bit / 64] &= !(1 << (bit % 64));
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
