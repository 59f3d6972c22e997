//! What a domain's L1 may use of SVM: constants of the domain, chosen when it is created.

use crate::layout::{Intercept, Intercepts, reg};
use bitflags::bitflags;

bitflags! {
    /// SVM features as CPUID 8000_000Ah EDX reports them (APM vol. 3, appendix E). Used both for what the
    /// processor has and for what L1 is offered.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Features: u32 {
        /// Nested paging.
        const NPT = 1 << 0;
        /// LBR virtualization.
        const LBRV = 1 << 1;
        /// SVM lock: VM_CR.LOCK and SVM_KEY.
        const SVML = 1 << 2;
        /// nRIP is saved on #VMEXIT.
        const NRIPS = 1 << 3;
        /// The TSC_RATIO MSR.
        const TSC_RATE = 1 << 4;
        /// VMCB clean bits.
        const VMCB_CLEAN = 1 << 5;
        /// TLB_CONTROL 3 and 7.
        const FLUSH_BY_ASID = 1 << 6;
        /// Decode assists.
        const DECODE_ASSISTS = 1 << 7;
        /// PAUSE filter count.
        const PAUSE_FILTER = 1 << 10;
        /// PAUSE filter threshold.
        const PAUSE_THRESHOLD = 1 << 12;
        /// AVIC.
        const AVIC = 1 << 13;
        /// Virtual VMLOAD and VMSAVE.
        const V_VMSAVE_VMLOAD = 1 << 15;
        /// Virtual GIF.
        const VGIF = 1 << 16;
        /// Guest mode execute trap.
        const GMET = 1 << 17;
        /// x2APIC mode of AVIC.
        const X2AVIC = 1 << 18;
        /// Supervisor shadow stack check.
        const SSS_CHECK = 1 << 19;
        /// Virtual NMI.
        const VNMI = 1 << 25;
        /// VMRUN, VMLOAD, VMSAVE check rAX before any intercept.
        const SVME_ADDR_CHK = 1 << 28;
    }
}

impl Features {
    /// Offered whatever the processor has, as they need software only: nRIP and decode assists come from
    /// the instruction decoder, clean bits and flush-by-ASID from this crate.
    pub const SOFTWARE: Self = Self::SVML
        .union(Self::NRIPS)
        .union(Self::VMCB_CLEAN)
        .union(Self::FLUSH_BY_ASID)
        .union(Self::DECODE_ASSISTS)
        .union(Self::SVME_ADDR_CHK);
    /// Lent to L2 where the processor has them. What stands in neither list isn't offered: this crate
    /// doesn't compose it.
    pub const LENT: Self = Self::NPT
        .union(Self::VGIF)
        .union(Self::PAUSE_FILTER)
        .union(Self::PAUSE_THRESHOLD)
        .union(Self::TSC_RATE);

    /// What to offer on a processor with `hardware`. `decoder` says whether the back end fills in nRIP and
    /// decode assists for each exit that it reflects.
    pub fn offer(hardware: Self, decoder: bool) -> Self {
        let software = if decoder {
            Self::SOFTWARE
        } else {
            Self::SOFTWARE.difference(Self::NRIPS.union(Self::DECODE_ASSISTS))
        };
        software | (hardware & (Self::LENT | Self::SOFTWARE))
    }
}

/// What this L1 may use. Equal on all vCPUs of a domain, unchanged during its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// SVM features.
    pub features: Features,
    /// Number of ASIDs that CPUID announces; L1 may use 1 to `asids - 1`, but any other works too.
    pub asids: u32,
    /// L1's physical address width in bits, 32 to 52.
    pub maxphyaddr: u8,
    /// CR4 bits that L1 and its guests may set.
    pub cr4_allowed: u64,
    /// EFER bits that L1 and its guests may set, SVME included.
    pub efer_allowed: u64,
    /// INVPCID exists.
    pub invpcid: bool,
    /// RDPRU exists.
    pub rdpru: bool,
}

impl Caps {
    /// CPUID 8000_000Ah as L1 sees it: EAX (SVM revision), EBX (ASIDs), ECX, EDX (features).
    pub fn cpuid_8000_000a(&self) -> [u32; 4] {
        [1, self.asids, 0, self.features.bits()]
    }

    /// Whether L1 has feature `f`.
    #[inline]
    pub fn has(&self, f: Features) -> bool {
        self.features.contains(f)
    }

    /// First physical address that L1 does not have.
    #[inline]
    pub fn phys_end(&self) -> u64 {
        1 << self.maxphyaddr.clamp(32, 52)
    }

    /// Whether linear addresses can have 57 bits.
    #[inline]
    pub fn la57(&self) -> bool {
        self.cr4_allowed & reg::CR4_LA57 != 0
    }

    /// Whether control-flow enforcement exists.
    #[inline]
    pub fn cet(&self) -> bool {
        self.cr4_allowed & reg::CR4_CET != 0
    }

    /// `address` sign-extended from L1's linear address width.
    #[inline]
    pub fn canonical(&self, address: u64) -> u64 {
        let shift = if self.la57() { 7 } else { 16 };
        ((address << shift) as i64 >> shift) as u64
    }

    /// The intercept bits that exist for L1. Others are reserved and ignored, as hardware without the
    /// feature ignores them.
    #[inline]
    pub fn intercepts(&self) -> Intercepts {
        let mut all = BASE_INTERCEPTS;
        if self.invpcid {
            all.set(Intercept::INVPCID);
        }
        if self.rdpru {
            all.set(Intercept::RDPRU);
        }
        all
    }
}

/// The intercepts of every SVM processor: all of the first four words, VMRUN to XSETBV of the fifth.
const BASE_INTERCEPTS: Intercepts = Intercepts([!0, !0, !0, !0, (Intercept::XSETBV.mask() << 1) - 1, 0]);

#[cfg(test)]
pub(crate) fn test_caps() -> Caps {
    Caps {
        features: Features::offer(Features::all(), true),
        asids: 16,
        maxphyaddr: 40,
        cr4_allowed: 0x0030_1fff & !reg::CR4_LA57,
        efer_allowed: 0x5d01,
        invpcid: true,
        rdpru: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn software_features_are_offered_on_tcg_and_uncomposed_ones_nowhere() {
        let tcg = Features::NPT | Features::VGIF | Features::SVME_ADDR_CHK;
        let offered = Features::offer(tcg, true);
        assert!(offered.contains(Features::SOFTWARE | Features::NPT | Features::VGIF));
        assert!(!Features::offer(tcg, false).intersects(Features::NRIPS | Features::DECODE_ASSISTS));
        assert!(!Features::offer(Features::NPT, true).contains(Features::VGIF));
        let rich = Features::offer(Features::all(), true);
        let never = Features::AVIC | Features::X2AVIC | Features::V_VMSAVE_VMLOAD | Features::LBRV;
        assert!(!rich.intersects(never | Features::VNMI | Features::GMET));
    }

    #[test]
    fn cpuid_image() {
        let caps = test_caps();
        assert_eq!(caps.cpuid_8000_000a(), [1, 16, 0, caps.features.bits()]);
    }

    #[test]
    fn canonical_extends_from_the_width_of_the_domain() {
        let mut caps = test_caps();
        assert_eq!(caps.canonical(0x0000_8000_0000_0000), 0xffff_8000_0000_0000);
        assert_eq!(caps.canonical(0xdead_7fff_ffff_ffff), 0x0000_7fff_ffff_ffff);
        caps.cr4_allowed |= reg::CR4_LA57;
        assert_eq!(caps.canonical(0x0100_0000_0000_0000), 0xff00_0000_0000_0000);
    }

    #[test]
    fn reserved_intercept_bits_do_not_exist() {
        let caps = test_caps();
        assert!(caps.intercepts().has(Intercept::XSETBV) && caps.intercepts().has(Intercept::INVPCID));
        assert!(!caps.intercepts().has(Intercept::RDPRU) && !caps.intercepts().has(Intercept::BUSLOCK));
        assert!(!caps.intercepts().has(Intercept::EFER_WRITE_TRAP));
    }
}
