//! Reading and writing a caller's structures.

use super::Width;
use crate::platform::{Arch, CallIo};
use crate::vcpu::Vcpu;
use alloc::sync::Arc;
use xen_abi::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A hypercall being answered.
pub(crate) struct Ctx<'a, A: Arch> {
    pub(crate) vcpu: &'a Arc<Vcpu<A>>,
    pub(crate) io: &'a mut dyn CallIo,
    pub(crate) width: Width,
}

impl<A: Arch> Ctx<'_, A> {
    /// Copies a structure in. What is returned no longer changes under the handler.
    pub(crate) fn read<T: FromBytes + IntoBytes>(&mut self, gva: u64) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        self.io.copy_in(gva, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Copies a structure out.
    pub(crate) fn write<T: IntoBytes + Immutable>(&mut self, gva: u64, value: &T) -> Result<(), Errno> {
        Ok(self.io.copy_out(gva, value.as_bytes())?)
    }

    /// Reads a long or a pointer.
    pub(crate) fn read_long(&mut self, gva: u64) -> Result<u64, Errno> {
        match self.width {
            Width::Bits64 => self.read::<u64>(gva),
            Width::Bits32 => Ok(self.read::<u32>(gva)?.into()),
        }
    }

    /// Bytes of a long.
    pub(crate) fn long_size(&self) -> u64 {
        match self.width {
            Width::Bits64 => 8,
            Width::Bits32 => 4,
        }
    }

    /// `base + index * size` in the caller's address space.
    pub(crate) fn element(&self, base: u64, index: u64, size: u64) -> u64 {
        let at = base.wrapping_add(index.wrapping_mul(size));
        if self.width == Width::Bits32 { at & 0xffff_ffff } else { at }
    }
}
