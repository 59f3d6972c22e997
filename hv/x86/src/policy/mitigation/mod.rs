//! Speculation: from what the CPU is to what must be done, and what guests are offered.
//!
//! [`CpuFacts`] is what CPUID says, [`Options`] what the operator says (`spec-ctrl=`, with the names and
//! meanings of Xen's option), [`MitigationPlan`] what the world switch does. Sources: AMD's guidance papers
//! ("Software Techniques for Managing Speculation", "Technical Guidance for Mitigating Branch Type Confusion",
//! "Technical Update regarding Speculative Return Stack Overflow", "Technical Guidance for Mitigating Transient
//! Scheduler Attacks") and the CPUID bits they define.
//!
//! Testudo is compiled without return or branch thunks, so where a CPU needs one, the entry barrier
//! (IBPB) stands in for it.

mod guards;
mod options;

pub use guards::Guards;
pub use options::{Options, Warning};

use core::fmt;

/// SPEC_CTRL bits.
pub mod spec_ctrl {
    /// Indirect branch restricted speculation.
    pub const IBRS: u64 = 1 << 0;
    /// Single thread indirect branch predictors.
    pub const STIBP: u64 = 1 << 1;
    /// Speculative store bypass disable.
    pub const SSBD: u64 = 1 << 2;
    /// Predictive store forwarding disable.
    pub const PSFD: u64 = 1 << 7;
}

/// PRED_CMD bits.
pub mod pred_cmd {
    /// Indirect branch prediction barrier.
    pub const IBPB: u64 = 1 << 0;
    /// Selective branch prediction barrier.
    pub const SBPB: u64 = 1 << 7;
}

/// The AMD core generations that differ here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Core {
    /// Not one of the below: older, or an emulator's.
    Other,
    /// Family 17h, models 00h-2Fh.
    Zen1,
    /// Family 17h from 30h.
    Zen2,
    /// Family 19h, models 00h-0Fh and 20h-5Fh.
    Zen3,
    /// Family 19h, the others.
    Zen4,
    /// Family 1Ah and later.
    Zen5,
}

/// The registers that the plan depends on: CPUID leaves 1, 8000_0008 (EBX), 8000_000A (EDX) and 8000_0021
/// (EAX, ECX), as read from the CPU that Testudo runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuFacts {
    /// AMD's or Hygon's; another vendor's CPU gets an empty plan.
    pub amd: bool,
    /// Leaf 1 EAX.
    pub signature: u32,
    /// Leaf 8000_0008 EBX.
    pub extended: u32,
    /// Leaf 8000_000A EDX: SVM features.
    pub svm: u32,
    /// Leaf 8000_0021 EAX.
    pub features2: u32,
    /// Leaf 8000_0021 ECX.
    pub features2c: u32,
    /// Two threads of one core run at the same time.
    pub smt: bool,
}

/// CPUID bits by register (APM vol. 3, appendix E).
mod bit {
    // 8000_0008 EBX
    pub const IBPB: u32 = 1 << 12;
    pub const IBRS: u32 = 1 << 14;
    pub const STIBP: u32 = 1 << 15;
    pub const STIBP_ALWAYS: u32 = 1 << 17;
    pub const SSBD: u32 = 1 << 24;
    pub const VIRT_SSBD: u32 = 1 << 25;
    pub const SSB_NO: u32 = 1 << 26;
    pub const PSFD: u32 = 1 << 28;
    pub const BTC_NO: u32 = 1 << 29;
    pub const IBPB_RET: u32 = 1 << 30;
    // 8000_000A EDX
    pub const V_SPEC_CTRL: u32 = 1 << 20;
    // 8000_0021 EAX
    pub const VERW_CLEAR: u32 = 1 << 5;
    pub const AUTO_IBRS: u32 = 1 << 8;
    pub const ERAPS: u32 = 1 << 24;
    pub const SBPB: u32 = 1 << 27;
    pub const IBPB_BRTYPE: u32 = 1 << 28;
    pub const SRSO_NO: u32 = 1 << 29;
    pub const SRSO_MSR_FIX: u32 = 1 << 31;
    // 8000_0021 ECX
    pub const TSA_SQ_NO: u32 = 1 << 1;
    pub const TSA_L1_NO: u32 = 1 << 2;
}

impl CpuFacts {
    /// From CPUID itself. `smt` can't be told from one CPU's leaves.
    pub fn from_cpuid(cpuid: impl Fn(u32, u32) -> [u32; 4], smt: bool) -> Self {
        let max = cpuid(0x8000_0000, 0)[0];
        let extended = |leaf: u32| if leaf <= max { cpuid(leaf, 0) } else { [0; 4] };
        let [_, b, c, d] = cpuid(0, 0);
        let vendor = [b, d, c];
        Self {
            amd: vendor == [0x6874_7541, 0x6974_6e65, 0x444d_4163]      // AuthenticAMD
                || vendor == [0x6f67_7948, 0x656e_6975, 0x656e_6975], // HygonGenuine
            signature: cpuid(1, 0)[0],
            extended: extended(0x8000_0008)[1],
            svm: extended(0x8000_000a)[3],
            features2: extended(0x8000_0021)[0],
            features2c: extended(0x8000_0021)[2],
            smt,
        }
    }

    /// Family and model, extended fields added.
    pub fn family_model(&self) -> (u32, u32) {
        let s = self.signature;
        let base = s >> 8 & 0xf;
        let (family, extended) =
            if base == 0xf { (base + (s >> 20 & 0xff), s >> 16 & 0xf) } else { (base, 0) };
        (family, s >> 4 & 0xf | extended << 4)
    }

    /// The generation.
    pub fn core(&self) -> Core {
        match self.family_model() {
            _ if !self.amd => Core::Other,
            (0x17, 0x00..=0x2f) | (0x18, _) => Core::Zen1,
            (0x17, _) => Core::Zen2,
            (0x19, 0x00..=0x0f | 0x20..=0x5f) => Core::Zen3,
            (0x19, _) => Core::Zen4,
            (0x1a.., _) => Core::Zen5,
            _ => Core::Other,
        }
    }

    fn has(&self, register: u32, bits: u32) -> bool {
        register & bits != 0
    }
}

/// How a guest's SPEC_CTRL is kept apart from ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GuestSpecCtrl {
    /// Guests have none.
    #[default]
    None,
    /// Ours and theirs are swapped at every entry and exit where they differ.
    Swap,
    /// The VMCB holds the guest's; the CPU applies both (APM vol. 2, "SPEC_CTRL Virtualization").
    Hardware,
}

/// What guests are offered, in CPUID and MSRs: a constant of all domains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestSpec {
    /// Bits of CPUID 8000_0008 EBX.
    pub extended: u32,
    /// Bits of CPUID 8000_0021 EAX.
    pub features2: u32,
    /// Bits of CPUID 8000_0021 ECX.
    pub features2c: u32,
    /// Bits that SPEC_CTRL accepts.
    pub spec_ctrl: u64,
    /// Bits that PRED_CMD accepts.
    pub pred_cmd: u64,
    /// EFER.AIBRSE may be set.
    pub auto_ibrs: bool,
}

/// What the world switch does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MitigationPlan {
    /// EFER.AIBRSE is set on the host.
    pub auto_ibrs: bool,
    /// SPEC_CTRL while Testudo runs.
    pub host_spec_ctrl: u64,
    /// How guests have theirs.
    pub guest_spec_ctrl: GuestSpecCtrl,
    /// IBPB at each exit, before the first indirect branch or return.
    pub ibpb_on_exit: bool,
    /// 32 calls at each exit that fill the return stack.
    pub rsb_on_exit: bool,
    /// VERW before each entry.
    pub verw_on_entry: bool,
    /// A division before each entry (the divider of Zen 1 keeps its last quotient).
    pub div_on_entry: bool,
    /// BP_CFG.BpSpecReduce is set while guests run.
    pub bp_spec_reduce: bool,
    /// IBPB when another vCPU comes on the CPU.
    pub ibpb_on_switch: bool,
    /// IBPB when an exit of L2 is given to L1: two guests on one vCPU, in one predictor domain.
    pub ibpb_on_reflect: bool,
    /// The value for PRED_CMD that makes a barrier.
    pub barrier: u64,
    /// The return stack must be filled after an IBPB, as the CPU's does not clear it.
    pub rsb_after_ibpb: bool,
    /// The CPU leaks between threads of a core, and they are on.
    pub smt_is_risky: bool,
    /// What guests get.
    pub guest: GuestSpec,
}

impl MitigationPlan {
    /// The plan for a CPU and the operator's options.
    pub fn new(cpu: &CpuFacts, options: &Options) -> Self {
        let core = cpu.core();
        if !cpu.amd {
            return Self::default();
        }
        let ext = |bits| cpu.has(cpu.extended, bits);
        let f2 = |bits| cpu.has(cpu.features2, bits);

        let ibpb = ext(bit::IBPB);
        let auto_ibrs = f2(bit::AUTO_IBRS) && options.ibrs.unwrap_or(true);
        let ibrs = ext(bit::IBRS) && !auto_ibrs && options.ibrs.unwrap_or(true);
        // Zen 2's IBRS leaves the sibling thread out; later CPUs say themselves that it should be set.
        let stibp_helps = cpu.smt && (ext(bit::STIBP_ALWAYS) || ibrs && core == Core::Zen2);
        let stibp = ext(bit::STIBP) && options.stibp.unwrap_or(stibp_helps);
        let mut host = 0;
        for (on, bits) in [
            (ibrs, spec_ctrl::IBRS),
            (stibp, spec_ctrl::STIBP),
            (ext(bit::SSBD) && options.ssbd.unwrap_or(false), spec_ctrl::SSBD),
            (ext(bit::PSFD) && options.psfd.unwrap_or(false), spec_ctrl::PSFD),
        ] {
            host |= if on { bits } else { 0 };
        }

        // Branch type confusion: Zen 1 and 2 predict returns as something else. Return stack overflow: Zen 1
        // to 4, where the barrier works only with the microcode that IBPB_BRTYPE announces (on Zen 1 and 2 it
        // always does, but for the other thread).
        let confused = matches!(core, Core::Zen1 | Core::Zen2) && !ext(bit::BTC_NO);
        let overflows = (Core::Zen1..=Core::Zen4).contains(&core) && !f2(bit::SRSO_NO);
        let overflow_barrier =
            overflows && (core <= Core::Zen2 || f2(bit::IBPB_BRTYPE)) && options.srso.unwrap_or(true);
        // BpSpecReduce does for guests alone what the barrier does, at a fraction of the cost.
        let bp_spec_reduce =
            !f2(bit::SRSO_NO) && f2(bit::SRSO_MSR_FIX) && options.bp_spec_reduce.unwrap_or(true);
        let ibpb_on_exit =
            ibpb && options.ibpb_entry.unwrap_or(confused || overflow_barrier && !bp_spec_reduce);

        let rsb_needed = core != Core::Other && !f2(bit::ERAPS);
        let rsb_after_ibpb = ibpb && core != Core::Other && !ext(bit::IBPB_RET);
        let rsb_on_exit = options.rsb.unwrap_or(rsb_needed && (!ibpb_on_exit || rsb_after_ibpb));

        let tsa = matches!(core, Core::Zen3 | Core::Zen4)
            && cpu.features2c & (bit::TSA_SQ_NO | bit::TSA_L1_NO) != bit::TSA_SQ_NO | bit::TSA_L1_NO;
        let verw_on_entry = f2(bit::VERW_CLEAR) && options.verw.unwrap_or(tsa);

        let switch = ibpb && options.ibpb.unwrap_or(true);
        Self {
            auto_ibrs,
            host_spec_ctrl: host,
            guest_spec_ctrl: guest_spec_ctrl(cpu, options),
            ibpb_on_exit,
            rsb_on_exit,
            verw_on_entry,
            div_on_entry: options.div_scrub.unwrap_or(core == Core::Zen1),
            bp_spec_reduce,
            // A barrier at each exit leaves nothing to clear at a switch.
            ibpb_on_switch: switch && !ibpb_on_exit,
            ibpb_on_reflect: switch && !ibpb_on_exit,
            barrier: if ibpb { pred_cmd::IBPB } else { 0 },
            rsb_after_ibpb,
            smt_is_risky: cpu.smt && confused,
            guest: guest_spec(cpu, options, auto_ibrs),
        }
    }
}

fn guest_spec_ctrl(cpu: &CpuFacts, options: &Options) -> GuestSpecCtrl {
    match guest_bits(cpu, options) {
        0 => GuestSpecCtrl::None,
        _ if cpu.has(cpu.svm, bit::V_SPEC_CTRL) => GuestSpecCtrl::Hardware,
        _ => GuestSpecCtrl::Swap,
    }
}

/// The SPEC_CTRL bits that the CPU has, if guests are to have the register at all (`msr-sc=`).
fn guest_bits(cpu: &CpuFacts, options: &Options) -> u64 {
    if !options.msr_sc.unwrap_or(true) {
        return 0;
    }
    [
        (bit::IBRS, spec_ctrl::IBRS),
        (bit::STIBP, spec_ctrl::STIBP),
        (bit::SSBD, spec_ctrl::SSBD),
        (bit::PSFD, spec_ctrl::PSFD),
    ]
    .into_iter()
    .filter(|(cpuid, _)| cpu.has(cpu.extended, *cpuid))
    .fold(0, |all, (_, bits)| all | bits)
}

fn guest_spec(cpu: &CpuFacts, options: &Options, auto_ibrs: bool) -> GuestSpec {
    // What the CPU does not suffer from is always told; what it can do, where the guest may use it. Of
    // VIRT_SSBD only an outer hypervisor's can be passed on, and we offer the real bit instead.
    let immune = bit::SSB_NO | bit::BTC_NO;
    let hints = 1 << 16 | bit::STIBP_ALWAYS | 1 << 18 | 1 << 19;
    let spec_ctrl = guest_bits(cpu, options);
    let mut extended = cpu.extended & immune;
    if spec_ctrl != 0 {
        extended |= cpu.extended & (bit::IBRS | bit::STIBP | bit::SSBD | bit::PSFD | hints);
    }
    extended |= cpu.extended & (bit::IBPB | bit::IBPB_RET);
    let barriers = [(cpu.extended & bit::IBPB, pred_cmd::IBPB), (cpu.features2 & bit::SBPB, pred_cmd::SBPB)];
    let mut features2 = cpu.features2 & (bit::SRSO_NO | bit::IBPB_BRTYPE | bit::SBPB | bit::VERW_CLEAR);
    features2 |= if auto_ibrs { bit::AUTO_IBRS } else { 0 };
    GuestSpec {
        extended: extended & !bit::VIRT_SSBD,
        features2,
        features2c: cpu.features2c & (bit::TSA_SQ_NO | bit::TSA_L1_NO),
        spec_ctrl,
        pred_cmd: barriers.iter().filter(|(cpuid, _)| *cpuid != 0).fold(0, |all, (_, bits)| all | bits),
        auto_ibrs,
    }
}

/// One line for the boot log.
impl fmt::Display for MitigationPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let guest = match self.guest_spec_ctrl {
            GuestSpecCtrl::None => "",
            GuestSpecCtrl::Swap => "guest SPEC_CTRL swapped",
            GuestSpecCtrl::Hardware => "guest SPEC_CTRL in hardware",
        };
        let host = |bits: u64| self.host_spec_ctrl & bits != 0;
        let words = [
            (self.auto_ibrs, "automatic IBRS"),
            (host(spec_ctrl::IBRS), "IBRS"),
            (host(spec_ctrl::STIBP), "STIBP"),
            (host(spec_ctrl::SSBD), "SSBD"),
            (host(spec_ctrl::PSFD), "PSFD"),
            (!guest.is_empty(), guest),
            (self.ibpb_on_exit, "IBPB on exit"),
            (self.rsb_on_exit, "RSB fill on exit"),
            (self.verw_on_entry, "VERW on entry"),
            (self.div_on_entry, "divider scrub on entry"),
            (self.bp_spec_reduce, "BP_SPEC_REDUCE"),
            (self.ibpb_on_switch, "IBPB on vCPU switch"),
            (self.ibpb_on_reflect, "IBPB from L2 to L1"),
            (self.smt_is_risky, "SMT leaks between threads (turn it off)"),
        ];
        f.write_str("speculation:")?;
        let mut any = false;
        for (_, word) in words.into_iter().filter(|(on, _)| *on) {
            write!(f, "{}{word}", if any { ", " } else { " " })?;
            any = true;
        }
        if any { Ok(()) } else { f.write_str(" no mitigation") }
    }
}

#[cfg(test)]
mod tests;
