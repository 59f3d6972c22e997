//! Extended processor state: x87, SSE, AVX and what follows, switched with the vCPU.
//!
//! Testudo's own code is soft-float, so the guest's registers stay in the processor across exits; they are
//! saved and loaded only when a pCPU changes to another vCPU, eagerly (lazy switching leaks them:
//! CVE-2018-3665), under an XCR0 of everything that the processor has.
// UNSAFETY: XSAVE and XRSTOR.
#![allow(unsafe_code)]

use crate::cpu::instr;
use crate::mm::own::HardwarePage;
use core::arch::asm;
use hv_core::memory::Owner;
use spin::Once;

/// What this machine's extended state is like.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Components that XCR0 may enable and Testudo switches.
    pub supported: u64,
    /// Bytes of an area with all of them, standard format.
    pub bytes: u32,
    /// XSAVEOPT exists.
    pub optimised: bool,
    /// XSAVE exists at all; else FXSAVE.
    pub xsave: bool,
}

/// Components that Testudo knows to be plain state: x87, SSE, AVX, AVX-512 (three), PKRU. Others (AMX with
/// its XFD, LWP) stay hidden.
const KNOWN: u64 = 0b10_1110_0111;
/// Bytes that one vCPU's area may have: the pages below.
const AREA: usize = 4096;

static FACTS: Once<Facts> = Once::new();

/// What this machine has.
pub fn facts() -> Facts {
    *FACTS.call_once(|| {
        let xsave = instr::cpuid(1, 0)[2] & (1 << 26) != 0;
        if !xsave {
            return Facts { supported: 3, bytes: 512, optimised: false, xsave };
        }
        let [low, _, _, high] = instr::cpuid(0xd, 0);
        let mut supported = (u64::from(high) << 32 | u64::from(low)) & KNOWN;
        let area = |components: u64| {
            (2..63)
                .filter(|n| components & (1 << n) != 0)
                .map(|n| instr::cpuid(0xd, n))
                .map(|c| c[0] + c[1])
                .max()
        };
        // Never more than the area holds; the largest components are the highest.
        while area(supported).unwrap_or(576) as usize > AREA {
            supported &= !(1 << (63 - supported.leading_zeros()));
        }
        let bytes = area(supported).unwrap_or(576);
        Facts { supported, bytes, optimised: instr::cpuid(0xd, 1)[0] & 1 != 0, xsave }
    })
}

/// One vCPU's extended state while it is not in the processor, and its XCR0.
#[derive(Debug)]
pub struct XState {
    area: HardwarePage<[u64; AREA / 8]>,
    /// The guest's XCR0.
    pub xcr0: u64,
}

impl XState {
    /// The state after reset.
    pub fn new() -> Option<Self> {
        let mut state = XState { area: HardwarePage::new(Owner::HYPERVISOR)?, xcr0: 1 };
        state.reset();
        Some(state)
    }

    /// Initial state of all components: FCW=37Fh, MXCSR=1F80h, everything else zero.
    pub fn reset(&mut self) {
        self.area.fill(0);
        self.area[0] = 0x37f;
        self.area[3] = 0x1f80;
        self.xcr0 = 1;
    }

    /// Loads the vCPU's state, then its XCR0.
    pub fn load(&self) {
        let facts = facts();
        let at = self.area.as_ptr();
        // SAFETY: the area is large enough for `supported`, was written by `reset` or `save`, and is page
        // aligned; XCR0 takes what CPUID announces.
        unsafe {
            if facts.xsave {
                instr::xsetbv(0, facts.supported);
                asm!("xrstor64 [{}]", in(reg) at, in("eax") facts.supported as u32, in("edx") (facts.supported >> 32) as u32, options(nostack));
                instr::xsetbv(0, self.xcr0);
            } else {
                asm!("fxrstor64 [{}]", in(reg) at, options(nostack));
            }
        }
    }

    /// Saves the vCPU's state.
    pub fn save(&mut self) {
        let facts = facts();
        let at = self.area.as_mut_ptr();
        // SAFETY: as in `load`.
        unsafe {
            if facts.xsave {
                instr::xsetbv(0, facts.supported);
                asm!("xsave64 [{}]", in(reg) at, in("eax") facts.supported as u32, in("edx") (facts.supported >> 32) as u32, options(nostack));
            } else {
                asm!("fxsave64 [{}]", in(reg) at, options(nostack));
            }
        }
    }

    /// The guest writes XCR0 while its state is in the processor. `false`: #GP.
    pub fn set_xcr0(&mut self, value: u64) -> bool {
        if !is_legal(value, facts().supported) {
            return false;
        }
        self.xcr0 = value;
        // SAFETY: checked by the rules of XSETBV against what CPUID announces.
        unsafe { instr::xsetbv(0, value) };
        true
    }
}

/// XSETBV's rules (APM vol. 4, "XSETBV"): x87 always, AVX needs SSE, AVX-512 all three and AVX.
pub fn is_legal(value: u64, supported: u64) -> bool {
    const AVX512: u64 = 0b1110_0000;
    value & 1 != 0
        && value & !supported == 0
        && (value & 4 == 0 || value & 2 != 0)
        && (value & AVX512 == 0 || value & AVX512 == AVX512 && value & 4 != 0)
}

#[cfg(test)]
mod tests {
    use super::is_legal;

    #[test]
    fn xcr0_follows_the_manuals_rules() {
        let all = 0b10_1110_0111;
        for legal in [1, 3, 7, 0b1110_0111, 0b10_0000_0011] {
            assert!(is_legal(legal, all), "{legal:#b}");
        }
        for illegal in [0, 2, 5, 0b1110_0011, 0b0010_0111, 1 << 18 | 1] {
            assert!(!is_legal(illegal, all), "{illegal:#b}");
        }
        assert!(!is_legal(7, 3), "AVX needs the hardware");
    }
}
