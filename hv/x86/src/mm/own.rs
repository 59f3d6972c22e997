//! Pages of Testudo's that the hardware reads by physical address: VMCBs, permission maps.
// UNSAFETY: owns raw pages.
#![allow(unsafe_code)]

use crate::mm::{direct, frames::frames};
use addr::{Frame, HostPhys, Hpa};
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use hv_core::memory::{Kind, Owner, Zone};

/// A `T` in frames of its own, reached through the direct map.
///
/// The hardware may write it while a guest runs; nobody holds a reference then: VMRUN takes the address
/// while this value is mutably borrowed by the caller.
#[derive(Debug)]
pub struct HardwarePage<T> {
    frame: Frame<HostPhys>,
    order: u8,
    owner: Owner,
    kind: PhantomData<T>,
}

// SAFETY: it owns its frames; access follows the borrow rules of the value.
unsafe impl<T: Send> Send for HardwarePage<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for HardwarePage<T> {}

/// Marks types for which all-zero bytes are a value.
///
/// # Safety
/// They must be.
pub unsafe trait Zeroable {}

// SAFETY: integers and arrays of them.
unsafe impl Zeroable for vsvm::layout::Vmcb {}
// SAFETY: integers.
unsafe impl<const N: usize> Zeroable for [u64; N] {}

impl<T: Zeroable> HardwarePage<T> {
    /// Zeroed, on `owner`'s account. `None`: out of memory, or over the owner's limit.
    pub fn new(owner: Owner) -> Option<Self> {
        let order = size_of::<T>().div_ceil(4096).next_power_of_two().trailing_zeros() as u8;
        let frame = frames().alloc(order, owner, Kind::Hypervisor, Zone::Any).ok()?;
        for n in 0..1u64 << order {
            // SAFETY: the block was just given to us.
            unsafe { direct::zero(frame.wrapping_add(n)) };
        }
        Some(HardwarePage { frame, order, owner, kind: PhantomData })
    }
}

impl<T> HardwarePage<T> {
    /// Where the hardware finds it.
    #[inline(always)]
    pub fn address(&self) -> Hpa {
        self.frame.start()
    }
}

impl<T> Deref for HardwarePage<T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: owned, initialised (all-zero is a value), large enough and page aligned.
        unsafe { &*direct::pointer(self.frame.start()).cast::<T>() }
    }
}

impl<T> DerefMut for HardwarePage<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the value is borrowed mutably.
        unsafe { &mut *direct::pointer(self.frame.start()).cast::<T>() }
    }
}

impl<T> Drop for HardwarePage<T> {
    fn drop(&mut self) {
        frames().free(self.frame, self.order, self.owner).expect("frames of this value");
    }
}
