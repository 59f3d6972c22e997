//! Guest RAM: one anonymous mapping, given to KVM in one or two slots around the hole below 4 GiB.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;

/// Start of the hole for memory-mapped devices; RAM beyond it continues at 4 GiB.
pub const HOLE_START: u64 = 0xc000_0000;
/// End of the hole.
pub const HOLE_END: u64 = 1 << 32;

/// Guest RAM. The guest writes to it while we read: every access is a volatile copy through a raw pointer.
#[derive(Debug)]
pub struct Ram {
    base: *mut u8,
    size: usize,
}

// SAFETY: the pointer names a private mapping that lives until the process ends; accesses are volatile byte copies, and
// a race with the guest (or another thread) only changes which bytes are seen.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    /// Map `size` bytes of zeroes, not yet touched. `huge` lets the kernel use 2 MiB pages.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn new(size: u64, huge: bool) -> Result<Ram, String> {
        let size = usize::try_from(size).map_err(|_| "memory too large")?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches nothing of ours.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        if base == libc::MAP_FAILED {
            return Err(format!("mmap of {size} bytes: {}", std::io::Error::last_os_error()));
        }
        let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        // SAFETY: advice on our own mapping. A kernel without huge pages refuses it, which is as good.
        unsafe { libc::madvise(base, size, advice) };
        Ok(Ram { base: base.cast(), size })
    }

    /// Size in bytes.
    pub fn len(&self) -> u64 {
        self.size as u64
    }

    /// RAM in the guest's physical space: (start, length) of each range.
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        let low = self.len().min(HOLE_START);
        let mut ranges = vec![(0, low)];
        if self.len() > low {
            ranges.push((HOLE_END, self.len() - low));
        }
        ranges
    }

    /// Give the RAM to `vm` as slots 0 and 1.
    ///
    /// # Errors
    /// KVM refused.
    pub fn register(&self, vm: &VmFd) -> Result<(), String> {
        let mut offset = 0;
        for (slot, (start, length)) in self.ranges().into_iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: start,
                memory_size: length,
                userspace_addr: self.base as u64 + offset,
            };
            // SAFETY: the range lies in our mapping, which is never unmapped.
            unsafe { vm.set_user_memory_region(region) }.map_err(|e| format!("memory slot {slot}: {e}"))?;
            offset += length;
        }
        Ok(())
    }

    /// Copy `bytes` to guest-physical `gpa` (below the hole).
    ///
    /// # Errors
    /// The range is not RAM.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), String> {
        let at = self.place(gpa, bytes.len())?;
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: `place` proved that the range lies in the mapping.
            unsafe { at.add(i).write_volatile(*byte) };
        }
        Ok(())
    }

    /// Copy `length` bytes at guest-physical `gpa` (below the hole) out.
    ///
    /// # Errors
    /// The range is not RAM.
    pub fn read(&self, gpa: u64, length: usize) -> Result<Vec<u8>, String> {
        let at = self.place(gpa, length)?;
        // SAFETY: `place` proved that the range lies in the mapping.
        Ok((0..length).map(|i| unsafe { at.add(i).read_volatile() }).collect())
    }

    /// Forget all contents: every page reads as zero again.
    pub fn clear(&self) {
        // SAFETY: our own anonymous private mapping; DONTNEED makes its pages zero.
        unsafe { libc::madvise(self.base.cast(), self.size, libc::MADV_DONTNEED) };
    }

    fn place(&self, gpa: u64, length: usize) -> Result<*mut u8, String> {
        let low = self.len().min(HOLE_START);
        match gpa.checked_add(length as u64) {
            // SAFETY: the offset is within the mapping.
            Some(end) if end <= low => Ok(unsafe { self.base.add(gpa as usize) }),
            _ => Err(format!("{gpa:#x}+{length:#x} is not low RAM")),
        }
    }
}
