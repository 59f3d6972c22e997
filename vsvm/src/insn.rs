//! What an SVM instruction must pass before it does anything, when L1 executes it.

use crate::caps::Caps;
use crate::layout::reg::{CR0_PE, EFER_SVME, RFLAGS_VM};

/// The instructions that SVM adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The manual's mnemonics.
pub enum Insn {
    Vmrun,
    Vmload,
    Vmsave,
    Stgi,
    Clgi,
    Invlpga,
    Skinit,
    Vmmcall,
}

/// The exception that the instruction raises instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// #UD.
    InvalidOpcode,
    /// #GP(0).
    GeneralProtection,
}

/// The state of L1 that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// L1's EFER as L1 sees it.
    pub efer: u64,
    /// L1's CR0.
    pub cr0: u64,
    /// L1's RFLAGS.
    pub rflags: u64,
    /// L1's current privilege level.
    pub cpl: u8,
    /// rAX, cut to the instruction's address size.
    pub rax: u64,
}

/// Whether L1 may execute `insn`. Source: APM vol. 3, "System Instruction Reference", the exception tables
/// of each instruction, whose order this keeps: #UD for SVM off or no protected mode, then #GP for CPL, then
/// #GP for a bad rAX. VMMCALL has none of these: a guest without SVM uses it for hypercalls. SKINIT is
/// not offered. STGI needs SVME too, as without SKINIT nothing else can make it legal.
pub fn check(insn: Insn, l1: &Context, caps: &Caps) -> Result<(), Fault> {
    if insn == Insn::Vmmcall {
        return Ok(());
    }
    let protected = l1.cr0 & CR0_PE != 0 && l1.rflags & RFLAGS_VM == 0;
    if insn == Insn::Skinit || l1.efer & EFER_SVME == 0 || !protected {
        return Err(Fault::InvalidOpcode);
    }
    let address = matches!(insn, Insn::Vmrun | Insn::Vmload | Insn::Vmsave);
    let bad_address = address && (l1.rax & 0xfff != 0 || l1.rax >= caps.phys_end());
    if l1.cpl & 3 != 0 || bad_address {
        return Err(Fault::GeneralProtection);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caps::test_caps;

    const ALL: [Insn; 8] = [
        Insn::Vmrun,
        Insn::Vmload,
        Insn::Vmsave,
        Insn::Stgi,
        Insn::Clgi,
        Insn::Invlpga,
        Insn::Skinit,
        Insn::Vmmcall,
    ];

    fn ready() -> Context {
        Context { efer: EFER_SVME, cr0: CR0_PE, rflags: 2, cpl: 0, rax: 0x1000 }
    }

    #[test]
    fn all_but_skinit_run_when_svm_is_on() {
        for insn in ALL {
            let want = if insn == Insn::Skinit { Err(Fault::InvalidOpcode) } else { Ok(()) };
            assert_eq!(check(insn, &ready(), &test_caps()), want, "{insn:?}");
        }
    }

    #[test]
    fn svme_clear_or_real_mode_or_vm86_is_ud_before_cpl() {
        let broken = [
            Context { efer: 0, cpl: 3, ..ready() },
            Context { cr0: 0, cpl: 3, ..ready() },
            Context { rflags: RFLAGS_VM, cpl: 3, rax: 1, ..ready() },
        ];
        for l1 in broken {
            for insn in ALL {
                let want = if insn == Insn::Vmmcall { Ok(()) } else { Err(Fault::InvalidOpcode) };
                assert_eq!(check(insn, &l1, &test_caps()), want, "{insn:?} {l1:?}");
            }
        }
    }

    #[test]
    fn user_mode_is_gp() {
        let l1 = Context { cpl: 3, ..ready() };
        for insn in [Insn::Vmrun, Insn::Vmload, Insn::Vmsave, Insn::Stgi, Insn::Clgi, Insn::Invlpga] {
            assert_eq!(check(insn, &l1, &test_caps()), Err(Fault::GeneralProtection), "{insn:?}");
        }
    }

    #[test]
    fn an_unaligned_or_too_high_vmcb_is_gp_for_the_three_that_take_one() {
        for rax in [0x1008, 1 << 40, !0xfff] {
            let l1 = Context { rax, ..ready() };
            for insn in [Insn::Vmrun, Insn::Vmload, Insn::Vmsave] {
                assert_eq!(check(insn, &l1, &test_caps()), Err(Fault::GeneralProtection), "{insn:?} {rax:x}");
            }
            assert_eq!(check(Insn::Stgi, &l1, &test_caps()), Ok(()));
            assert_eq!(check(Insn::Invlpga, &l1, &test_caps()), Ok(()));
        }
    }
}
