//! Of a plan, what is done at each entry to a guest and at each exit.

use super::{GuestSpecCtrl, MitigationPlan};

/// A set of things to do around VMRUN. The bits are known to the routine that does them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guards(u64);

impl Guards {
    /// SPEC_CTRL is swapped.
    pub const SWAP: Self = Self(1 << 0);
    /// IBPB after the exit.
    pub const IBPB: Self = Self(1 << 1);
    /// The return stack is filled after the exit.
    pub const RSB: Self = Self(1 << 2);
    /// VERW before the entry.
    pub const VERW: Self = Self(1 << 3);
    /// A division before the entry.
    pub const DIV: Self = Self(1 << 4);
    /// SPEC_CTRL is in the VMCB, and L1's goes with the vCPU to L2 and back.
    pub const IN_VMCB: Self = Self(1 << 5);

    /// What the routine around VMRUN has to do anything for.
    const AROUND: u64 = Self::IN_VMCB.0 - 1;

    /// What `plan` asks for.
    pub const fn of(plan: &MitigationPlan) -> Self {
        let swap = matches!(plan.guest_spec_ctrl, GuestSpecCtrl::Swap);
        let in_vmcb = matches!(plan.guest_spec_ctrl, GuestSpecCtrl::Hardware);
        let rows = [
            (swap, Self::SWAP),
            (plan.ibpb_on_exit && plan.barrier != 0, Self::IBPB),
            (plan.rsb_on_exit, Self::RSB),
            (plan.verw_on_entry, Self::VERW),
            (plan.div_on_entry, Self::DIV),
            (in_vmcb, Self::IN_VMCB),
        ];
        let (mut all, mut n) = (0, 0);
        while n < rows.len() {
            all |= if rows[n].0 { rows[n].1.0 } else { 0 };
            n += 1;
        }
        Self(all)
    }

    /// The bits, for the routine.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether all of `other` are asked for.
    #[inline(always)]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether VMRUN needs the guarded routine.
    #[inline(always)]
    pub const fn around_vmrun(self) -> bool {
        self.0 & Self::AROUND != 0
    }
}
