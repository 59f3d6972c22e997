//! Xen's hypercall page: one stub per number (`public/arch-x86/cpuid.h`, `public/xen.h`).

use crate::svm::run::Run;
use addr::{Gpa, GuestMemory};

/// Stubs of 32 bytes in a page.
const SLOTS: u32 = 128;
/// The slot of `iret`, which HVM guests don't have.
const IRET: u32 = 23;

/// The address is not the guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotRam;

/// The page's bytes: `mov $number, %eax; vmmcall; ret` in each slot, `int3` between.
pub fn contents() -> [u8; 4096] {
    let mut page = [0xcc; 4096];
    for number in 0..SLOTS {
        let at = number as usize * 32;
        if number == IRET {
            page[at..at + 2].copy_from_slice(&[0x0f, 0x0b]);
            continue;
        }
        page[at] = 0xb8;
        page[at + 1..at + 5].copy_from_slice(&number.to_le_bytes());
        page[at + 5..at + 9].copy_from_slice(&[0x0f, 0x01, 0xd9, 0xc3]);
    }
    page
}

/// Writes the page to guest-physical `address`, as the guest asked by the hypercall MSR, and latches the
/// width of the guest.
pub fn install(run: &Run<'_>, address: u64) -> Result<(), NotRam> {
    let domain = run.vcpu.domain();
    domain.memory.write(Gpa::new(address), &contents()).map_err(|_| NotRam)?;
    domain.latch_width(run.width());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::contents;

    #[test]
    fn a_stub_loads_its_number_and_calls() {
        let page = contents();
        assert_eq!(&page[29 * 32..29 * 32 + 9], &[0xb8, 29, 0, 0, 0, 0x0f, 0x01, 0xd9, 0xc3]);
        assert_eq!(&page[23 * 32..23 * 32 + 2], &[0x0f, 0x0b]);
    }
}
