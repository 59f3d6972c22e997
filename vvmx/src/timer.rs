//! Time for L2: composed TSC offset and multiplier, and the preemption timer.
//! SDM vol. 3, "Changes to Instruction Behavior in VMX Non-Root Operation" (RDTSC), "VMX-Preemption Timer".

/// A multiplier of 1: 48 bits of fraction.
pub const ONE: u64 = 1 << 48;

/// A TSC as a function of the one below: `(tsc * multiplier >> 48) + offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tsc {
    /// Fixed point with 48 bits of fraction.
    pub multiplier: u64,
    /// Added, modulo 2^64.
    pub offset: u64,
}

impl Default for Tsc {
    fn default() -> Self {
        Self { multiplier: ONE, offset: 0 }
    }
}

impl Tsc {
    /// The TSC, when the one below is `tsc`.
    #[inline]
    pub fn at(self, tsc: u64) -> u64 {
        (((u128::from(tsc) * u128::from(self.multiplier)) >> 48) as u64).wrapping_add(self.offset)
    }
}

/// L2's TSC against the machine's: L1's (`tsc01`), then what L1 makes of it for L2. L1's offset is signed when
/// it is scaled.
#[inline]
pub fn compose(tsc01: Tsc, tsc12: Option<Tsc>) -> Tsc {
    let Some(tsc12) = tsc12 else { return tsc01 };
    if tsc12.multiplier == ONE {
        return Tsc { offset: tsc01.offset.wrapping_add(tsc12.offset), ..tsc01 };
    }
    let scaled = (i128::from(tsc01.offset as i64) * i128::from(tsc12.multiplier)) >> 48;
    let product = (u128::from(tsc01.multiplier) * u128::from(tsc12.multiplier)) >> 48;
    // The processor refuses a multiplier of 0, which the product of two others can come to.
    Tsc {
        multiplier: product.clamp(1, u64::MAX.into()) as u64,
        offset: (scaled as u64).wrapping_add(tsc12.offset),
    }
}

/// L1's preemption timer, as a moment of L1's TSC. The timer counts down by 1 each time bit `rate` of the TSC
/// changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// L1's TSC when it reaches 0.
    pub tsc: u64,
    rate: u32,
}

impl Deadline {
    /// For a timer that L1 set to `value` when its TSC was `now`. `misc` is the IA32_VMX_MISC that L1 sees.
    pub fn new(value: u32, now: u64, misc: u64) -> Self {
        let rate = (misc & crate::bits::misc::TIMER_RATE) as u32;
        Self { tsc: (now >> rate << rate).wrapping_add(u64::from(value) << rate), rate }
    }
    /// What is left of it, in its own ticks: 0 when it has passed.
    pub fn left(&self, now: u64) -> u32 {
        let ahead = self.tsc.wrapping_sub(now >> self.rate << self.rate) as i64;
        (ahead.max(0) >> self.rate).min(u32::MAX.into()) as u32
    }
    /// Whether it has passed.
    pub fn passed(&self, now: u64) -> bool {
        self.left(now) == 0
    }
}
