//! What a VMX instruction of L1's must pass before it does anything, and how it tells L1 what came of it.
//! SDM vol. 3, "VMX Instruction Reference": each instruction's operation and exceptions, and "Conventions".

use crate::bits::reg::*;
use crate::bits::secondary;
use crate::caps::Caps;
use crate::code::InsnError;

/// The instructions that VMX adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The manual's mnemonics.
pub enum Insn {
    Vmxon,
    Vmxoff,
    Vmclear,
    Vmptrld,
    Vmptrst,
    Vmread,
    Vmwrite,
    Vmlaunch,
    Vmresume,
    Vmcall,
    Vmfunc,
    Invept,
    Invvpid,
}

/// The exception that the instruction raises instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// #UD.
    InvalidOpcode,
    /// #GP(0).
    GeneralProtection,
    /// #SS(0).
    Stack,
}

/// The state of L1 that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// L1's CR0 as L1 sees it.
    pub cr0: u64,
    /// L1's CR4 as L1 sees it.
    pub cr4: u64,
    /// L1's EFER.
    pub efer: u64,
    /// L1's RFLAGS.
    pub rflags: u64,
    /// CS.L.
    pub cs_l: bool,
    /// Current privilege level.
    pub cpl: u8,
    /// Blocking by MOV SS.
    pub mov_ss: bool,
}

impl Context {
    /// Whether L1 is in 64-bit mode: operands have 64 bits.
    pub fn long(&self) -> bool {
        self.efer & EFER_LMA != 0 && self.cs_l
    }
}

/// Whether L1 may execute `insn`, `on` saying whether it is in VMX operation. To be asked before the operand
/// is looked at. (An L2's instructions never come here: they exit to L1 whatever its CPL.) CPL comes
/// before everything but #UD (CVE-2018-12904, CVE-2013-4551).
pub fn check(insn: Insn, l1: &Context, on: bool, caps: &Caps) -> Result<(), Fault> {
    let protected = l1.cr0 & CR0_PE != 0 && l1.rflags & RFLAGS_VM == 0;
    let compatibility = l1.efer & EFER_LMA != 0 && !l1.cs_l;
    let second = |bit| caps.msrs.secondary.has(bit);
    let exists = match insn {
        Insn::Vmxon => l1.cr4 & CR4_VMXE != 0,
        Insn::Vmfunc => false,
        Insn::Invept => on && second(secondary::EPT),
        Insn::Invvpid => on && second(secondary::VPID),
        _ => on,
    };
    if !protected || compatibility || !exists {
        return Err(Fault::InvalidOpcode);
    }
    if l1.cpl & 3 != 0 {
        return Err(Fault::GeneralProtection);
    }
    // VMXON: the control registers must be what VMX operation fixes. IA32_FEATURE_CONTROL is locked with VMX
    // on, so it never objects.
    let fits = caps.cr0_fits(l1.cr0) && caps.cr4_fits(l1.cr4);
    if insn == Insn::Vmxon && !on && !fits { Err(Fault::GeneralProtection) } else { Ok(()) }
}

/// How an instruction failed without an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// VMfailInvalid.
    Invalid,
    /// VMfail: VMfailValid with this number, or VMfailInvalid where there is no current VMCS.
    Valid(InsnError),
}

/// What is to be seen in RFLAGS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// VMsucceed.
    Success,
    /// VMfailInvalid.
    FailInvalid,
    /// VMfailValid.
    FailValid,
}

impl Verdict {
    /// `rflags` after the instruction: CF, PF, AF, ZF, SF, OF change.
    pub const fn rflags(self, rflags: u64) -> u64 {
        const ARITHMETIC: u64 = 1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 11;
        let bit = match self {
            Self::Success => 0,
            Self::FailInvalid => 1,
            Self::FailValid => 1 << 6,
        };
        rflags & !ARITHMETIC | bit
    }
}
