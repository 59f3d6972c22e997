//! The instruction that exited: its bytes and its length.

use crate::decode::{self, DecodeError, Insn, MAX_LEN};
use crate::guest::arch;
use crate::policy::paging::{self, Access, PagingState, Privilege, WalkError};
use crate::svm::Features;
use crate::svm::fetch::Key;
use crate::svm::run::{Next, Run};
use crate::svm::vcpu::VcpuState;
use addr::{GuestMemory, Gva};
use vsvm::layout::Vmcb;

/// Bytes fetched at the guest's instruction pointer.
#[derive(Clone, Copy, Debug)]
pub struct Fetched {
    bytes: [u8; MAX_LEN],
    len: usize,
}

impl Fetched {
    /// What could be read: up to 15 bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Why an instruction could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchError {
    /// The page is not there (any more): the guest runs the instruction again and faults by itself.
    Gone,
    /// It is another instruction than the exit named: another CPU has changed it. Run it again.
    Changed,
}

impl Run<'_> {
    /// The paging registers of L1, for walks on its behalf.
    pub fn paging(&self) -> PagingState {
        paging_of(self.state.cur(), self.vcpu.domain().arch.phys_bits)
    }

    /// Length of the instruction that exited, known to be `insn`.
    #[inline]
    pub fn length(&mut self, insn: Insn) -> Result<u8, FetchError> {
        let vmcb = self.state.cur();
        if self.ctx.features.has(Features::NRIPS) && vmcb.control.nrip != 0 {
            return Ok(vmcb.control.nrip.wrapping_sub(vmcb.save.rip) as u8 & 0xf);
        }
        let linear = linear_rip(vmcb);
        let key = Key { cr3: vmcb.save.cr3, page: linear >> 12, root: vmcb.control.n_cr3 };
        if let Some((head, available)) = self.state.fetch.peek(&key, (linear & 0xfff) as usize)
            && let Some(len) = decode::fast_len(insn, head, available)
        {
            return Ok(len);
        }
        self.length_slow(insn, key, linear)
    }

    #[cold]
    fn length_slow(&mut self, insn: Insn, key: Key, linear: u64) -> Result<u8, FetchError> {
        let fetched = self.fetch()?;
        let memory = self.memory_view();
        if let Ok(gpa) = self.locate(linear)
            && let Ok(page) = memory.pin(gpa.frame())
        {
            self.state.fetch.remember(key, page);
        }
        let size = VcpuState::code_size(self.state.cur());
        decode::length(insn, fetched.bytes(), size).map_err(|_: DecodeError| FetchError::Changed)
    }

    fn locate(&self, linear: u64) -> Result<addr::Gpa, WalkError> {
        let privilege = privilege_of(self.state.cur());
        paging::translate(&self.paging(), &self.memory_view(), Gva::new(linear), Access::Execute, privilege)
    }

    /// Fetches up to 15 bytes at L1's instruction pointer.
    pub fn fetch(&self) -> Result<Fetched, FetchError> {
        let linear = linear_rip(self.state.cur());
        let mut fetched = Fetched { bytes: [0; MAX_LEN], len: 0 };
        let memory = self.memory_view();
        while fetched.len < MAX_LEN {
            let at = linear.wrapping_add(fetched.len as u64);
            let in_page = (4096 - (at & 0xfff) as usize).min(MAX_LEN - fetched.len);
            let Ok(gpa) = self.locate(at) else { break };
            let (from, to) = (fetched.len, fetched.len + in_page);
            if memory.read(gpa, &mut fetched.bytes[from..to]).is_err() {
                break;
            }
            fetched.len = to;
        }
        if fetched.len == 0 { Err(FetchError::Gone) } else { Ok(fetched) }
    }

    /// Moves L1 behind the instruction `insn` that exited. If it can't be found any more L1 runs it again.
    pub fn advance_over(&mut self, insn: Insn) -> Next {
        if let Ok(len) = self.length(insn) {
            self.state.advance(len);
        }
        Next::Resume
    }
}

/// Linear address of the instruction pointer.
#[inline]
pub fn linear_rip(vmcb: &Vmcb) -> u64 {
    let save = &vmcb.save;
    // In 64-bit mode the base of CS is 0 whatever the VMCB holds.
    let long = save.efer & paging::EFER_LMA != 0 && save.cs.attrib & vsvm::layout::attrib::L != 0;
    if long { save.rip } else { save.cs.base.wrapping_add(save.rip) & 0xffff_ffff }
}

/// The paging registers in `vmcb`.
pub fn paging_of(vmcb: &Vmcb, phys_bits: u8) -> PagingState {
    let save = &vmcb.save;
    PagingState {
        cr0: save.cr0,
        cr3: save.cr3,
        cr4: save.cr4,
        efer: save.efer,
        rflags: save.rflags,
        pkru: 0,
        max_phys: phys_bits,
        gigabyte_pages: arch::host().gigabyte_pages,
    }
}

/// The privilege at which `vmcb` runs.
pub fn privilege_of(vmcb: &Vmcb) -> Privilege {
    if vmcb.save.cpl == 3 { Privilege::User } else { Privilege::Supervisor }
}
