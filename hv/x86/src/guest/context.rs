//! `VCPUOP_initialise`: the registers in which a vCPU starts, given by the guest.
//!
//! Source: Xen's public header `hvm/hvm_vcpu.h`. What it leaves to the hypervisor follows Xen: every refusal is
//! `EINVAL`, and a segment's limit is the byte limit that the processor keeps. On top of that a state that VMRUN
//! would refuse (APM vol. 2, "Canonicalization and Consistency Checks") is refused here, where the guest learns it.

use crate::decode::Gprs;
use crate::policy::msr::check::is_canonical;
use crate::svm::vcpu::VcpuState;
use vsvm::layout::{Clean, Segment, attrib, reg};
use xen_abi::Errno;
use xen_abi::vcpu::{HVM_MODE_32, HVM_MODE_64, HvmContext, HvmX86_32, HvmX86_64};

/// What the domain's CPUID lets its vCPUs set.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// CR4 bits.
    pub cr4: u64,
    /// EFER bits, without LMA.
    pub efer: u64,
    /// Physical address width, bits.
    pub phys_bits: u8,
    /// Linear address width, bits.
    pub linear_bits: u8,
}

/// A state that the processor takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// By register number, RSP included.
    gprs: [u64; 8],
    rip: u64,
    rflags: u64,
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    cs: Segment,
    ds: Segment,
    ss: Segment,
    es: Segment,
    tr: Segment,
}

/// CR0.ET: always set.
const CR0_ET: u64 = 1 << 4;
/// Attribute bits of a segment: S and P, and of its type: code, writable (of data) or readable (of code), accessed.
const S: u16 = 1 << 4;
const CODE: u16 = 1 << 3;
const RW: u16 = 1 << 1;
const ACCESSED: u16 = 1 << 0;
/// Type of a busy TSS, 32- or 64-bit; without the busy bit, of a free one.
const TSS_BUSY: u16 = 0xb;
const BUSY: u16 = 1 << 1;

impl Start {
    /// Checks what the guest gave.
    ///
    /// # Errors
    /// `EINVAL`: not a mode, padding that is not zero, or a state that no processor could be in.
    pub fn new(context: &HvmContext, allowed: &Allowed) -> Result<Self, Errno> {
        if context.pad != 0 {
            return Err(Errno::EINVAL);
        }
        let start = match context.mode {
            HVM_MODE_32 => Self::protected(&context.regs_32())?,
            HVM_MODE_64 => Self::long(&context.regs_64(), allowed)?,
            _ => return Err(Errno::EINVAL),
        };
        start.checked(allowed)
    }

    /// Real, protected or compatibility mode, with the guest's segments.
    fn protected(regs: &HvmX86_32) -> Result<Self, Errno> {
        let segment = |n: usize| Segment {
            selector: 0,
            attrib: regs.attrs[n],
            limit: regs.limits[n],
            base: regs.bases[n].into(),
        };
        let [cs, ds, ss, es] = [Role::Code, Role::Data, Role::Stack, Role::Data];
        let (cs, ds) = (cs.check(segment(0))?, ds.check(segment(1))?);
        let (ss, es) = (ss.check(segment(2))?, es.check(segment(3))?);
        let tr = Role::Task.check(segment(4))?;
        let pages = cs.attrib & attrib::G != 0;
        let limit = if pages { cs.limit << 12 | 0xfff } else { cs.limit };
        let beyond = |data: Segment| data.attrib & attrib::P != 0 && dpl(data) > dpl(cs);
        let wrong = regs.pad1 != 0
            || regs.pad2 != [0; 3]
            || regs.eip > limit
            || dpl(ss) != dpl(cs)
            || beyond(ds)
            || beyond(es)
            || regs.efer & (reg::EFER_LMA | reg::EFER_LME) == reg::EFER_LMA;
        if wrong {
            return Err(Errno::EINVAL);
        }
        Ok(Start {
            gprs: regs.gprs.map(u64::from),
            rip: regs.eip.into(),
            rflags: regs.eflags.into(),
            cr0: regs.cr0.into(),
            cr3: regs.cr3.into(),
            cr4: regs.cr4.into(),
            efer: regs.efer,
            cs,
            ds,
            ss,
            es,
            tr,
        })
    }

    /// 64-bit mode, with flat segments.
    fn long(regs: &HvmX86_64, allowed: &Allowed) -> Result<Self, Errno> {
        let paged = regs.cr0 & reg::CR0_PG != 0 && regs.cr4 & reg::CR4_PAE != 0;
        if !is_canonical(regs.rip, allowed.linear_bits) || !paged || regs.efer & reg::EFER_LME == 0 {
            return Err(Errno::EINVAL);
        }
        let flat = |attrib| Segment { selector: 0, attrib, limit: u32::MAX, base: 0 };
        let data = flat(0xc93);
        Ok(Start {
            gprs: regs.gprs,
            rip: regs.rip,
            rflags: regs.rflags,
            cr0: regs.cr0,
            cr3: regs.cr3,
            cr4: regs.cr4,
            efer: regs.efer,
            cs: flat(0xa9b),
            ds: data,
            ss: data,
            es: data,
            tr: Segment { limit: 0x67, ..flat(0x8b) },
        })
    }

    /// The checks of both modes. LMA follows from the others, as in the processor.
    fn checked(mut self, allowed: &Allowed) -> Result<Self, Errno> {
        let (cr0, cr4) = (self.cr0, self.cr4);
        let paging = cr0 & reg::CR0_PG != 0;
        let long = paging && self.efer & reg::EFER_LME != 0;
        let both = attrib::L | attrib::D;
        let wrong = cr4 & !allowed.cr4 != 0
            || self.efer & !(allowed.efer | reg::EFER_LMA) != 0
            || cr0 >> 32 != 0
            || cr0 & (reg::CR0_CD | reg::CR0_NW) == reg::CR0_NW
            || paging && cr0 & reg::CR0_PE == 0
            || long && cr4 & reg::CR4_PAE == 0
            || long && self.cs.attrib & both == both
            || self.cr3 >> allowed.phys_bits.min(63) != 0;
        if wrong {
            return Err(Errno::EINVAL);
        }
        self.cr0 |= CR0_ET;
        self.efer = self.efer & !reg::EFER_LMA | if long { reg::EFER_LMA } else { 0 };
        self.rflags = self.rflags & reg::RFLAGS_WRITABLE | reg::RFLAGS_FIXED;
        if long {
            // There is no virtual-8086 mode in long mode.
            self.rflags &= !reg::RFLAGS_VM;
        }
        Ok(self)
    }

    /// The privilege level in which it starts.
    fn cpl(&self) -> u8 {
        match (self.cr0 & reg::CR0_PE != 0, self.rflags & reg::RFLAGS_VM != 0) {
            (false, _) => 0,
            (true, true) => 3,
            (true, false) => dpl(self.ss) as u8,
        }
    }

    /// Makes this `state`, which is down and was never started, and no more in wait for a start-up message.
    pub fn apply(&self, state: &mut VcpuState) {
        state.reset_registers();
        state.set_svme(self.efer & reg::EFER_SVME != 0);
        for (n, &value) in self.gprs.iter().enumerate() {
            state.gprs.regs[n] = value;
        }
        let save = &mut state.vmcb01.save;
        (save.rax, save.rsp) = (self.gprs[Gprs::RAX], self.gprs[Gprs::RSP]);
        (save.rip, save.rflags, save.cpl) = (self.rip, self.rflags, self.cpl());
        (save.cr0, save.cr3, save.cr4) = (self.cr0, self.cr3, self.cr4);
        save.efer = self.efer | reg::EFER_SVME;
        (save.cs, save.ds, save.ss, save.es, save.tr) = (self.cs, self.ds, self.ss, self.es, self.tr);
        state.vmcb01.control.mark_dirty(Clean::all());
        state.wait_for_sipi = false;
    }
}

fn dpl(segment: Segment) -> u16 {
    segment.attrib >> 5 & 3
}

/// What a segment register is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Code,
    Data,
    Stack,
    Task,
}

impl Role {
    /// `segment` as the processor would hold it after loading it: accessed, or busy.
    fn check(self, mut segment: Segment) -> Result<Segment, Errno> {
        let ar = &mut segment.attrib;
        if *ar & attrib::P != 0 {
            *ar |= if self == Role::Task { BUSY } else { ACCESSED };
        }
        let (ar, has) = (*ar, |bits: u16| *ar & bits == bits);
        let null = ar == 0 && self == Role::Data;
        let right = match self {
            Role::Task => !has(S) && ar & 0xf == TSS_BUSY,
            Role::Code => has(S | CODE),
            Role::Stack => has(S | RW) && !has(CODE),
            Role::Data => has(S) && (!has(CODE) || has(RW)),
        };
        // Bits 15:12 must be zero.
        if ar >> 12 == 0 && (null || has(attrib::P) && right) { Ok(segment) } else { Err(Errno::EINVAL) }
    }
}

#[cfg(test)]
mod tests;
