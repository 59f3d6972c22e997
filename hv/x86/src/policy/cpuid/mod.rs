//! A domain's CPUID: built once from the host's and the domain's configuration, then looked up.
//!
//! Every feature bit is an allow-list entry (`features`): passed on if the host has it, always there because
//! software provides it, or hidden. What is not listed is zero, and so are leaves that are not listed. The
//! table is the same for all vCPUs of a domain; what differs by vCPU or changes at run time is patched in at
//! lookup ([`VcpuCpuidState`]). A lookup indexes two arrays and tests one byte; only leaves 4000_0003 sub-leaf 1,
//! 7, 0Bh, 0Dh and 8000_001Dh look at the sub-leaf.
//!
//! Source: AMD APM vol. 3, appendix E "Obtaining Processor Information Via the CPUID Instruction"; the Xen
//! leaves are those of Xen's public header `arch-x86/cpuid.h`.

mod features;
mod topology;
mod xsave;

use super::mitigation::GuestSpec;
use super::msr::check::efer_bits;
use features::{Register, masked};
use xsave::Xsave;

pub use xsave::xcr0_is_valid;

/// One leaf's EAX, EBX, ECX, EDX.
pub type Leaf = [u32; 4];

/// CR4.OSXSAVE.
pub const CR4_OSXSAVE: u64 = 1 << 18;
/// CR4.PKE.
pub const CR4_PKE: u64 = 1 << 22;

/// Highest standard leaf.
const MAX_STANDARD: u32 = 0xd;
/// Highest extended leaf.
const MAX_EXTENDED: u32 = 0x8000_0021;
/// Highest Xen leaf: the base and five more.
const MAX_XEN: u32 = 0x4000_0005;

/// What the Xen leaves say of time (xen-abi: leaf +3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XenTime {
    /// RDTSC is emulated.
    pub emulated: bool,
    /// The host's TSCs run alike and never stop.
    pub host_reliable: bool,
    /// 0 default, 1 always emulate, 2 never emulate.
    pub mode: u32,
    /// The guest's TSC frequency in kHz.
    pub guest_khz: u32,
    /// The host's, in kHz.
    pub host_khz: u32,
    /// How often the domain was restored.
    pub incarnation: u32,
    /// Added to the host's TSC, modulo 2^64.
    pub offset: u64,
    /// ns = ticks, shifted, times this, over 2^32.
    pub mul: u32,
    /// Left shift before the multiplication, if negative to the right.
    pub shift: i8,
}

/// The Xen leaves of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XenLeaves {
    /// Version that is reported, major and minor.
    pub version: (u16, u16),
    /// The domain's id.
    pub domid: u16,
    /// Time.
    pub time: XenTime,
    /// The virtual APIC's registers are virtualised by hardware.
    pub apic_in_hardware: bool,
}

/// What a domain is configured to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainCpuConfig {
    /// SVM is offered.
    pub nested: bool,
    /// Leaf 8000_000A, if `nested`: the virtual SVM's capabilities.
    pub svm: Leaf,
    /// How many vCPUs; their APIC ids are twice their numbers.
    pub vcpus: u32,
    /// The guest's TSC has a constant rate, in all power states and wherever it runs.
    pub invariant_tsc: bool,
    /// TSC_ADJUST is emulated.
    pub tsc_adjust: bool,
    /// The states of XCR0 that Testudo switches.
    pub xcr0: u64,
    /// Guest-physical address width in bits; 0 is the host's.
    pub max_phys: u8,
    /// Speculation controls, from the mitigation plan.
    pub spec: GuestSpec,
    /// The Xen leaves, unless the domain must not know.
    pub xen: Option<XenLeaves>,
}

/// What lookup needs of the vCPU that asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuCpuidState {
    /// XCR0.
    pub xcr0: u64,
    /// XSS.
    pub xss: u64,
    /// CR4, of which OSXSAVE and PKE count.
    pub cr4: u64,
    /// The (x2)APIC id.
    pub apic_id: u32,
    /// The vCPU's number.
    pub vcpu_id: u32,
    /// APIC_BASE: the APIC is enabled (bit 11), which leaf 1 shows.
    pub apic_enabled: bool,
}

/// What a leaf has beside its constant registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Extra {
    #[default]
    Nothing,
    /// 1: APIC id, OSXSAVE, APIC enabled.
    Features,
    /// 7: sub-leaves, OSPKE.
    Structured,
    /// 0Bh: sub-leaves, x2APIC id.
    Topology,
    /// 0Dh: sub-leaves, sizes by XCR0 and XSS.
    State,
    /// 4000_0003: sub-leaves.
    XenTime,
    /// 4000_0004: vCPU id.
    XenVcpu,
    /// 8000_001D: sub-leaves.
    Caches,
    /// 8000_001E: APIC id, core id.
    ExtendedApic,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    regs: Leaf,
    extra: Extra,
}

impl From<Leaf> for Entry {
    fn from(regs: Leaf) -> Self {
        Self { regs, extra: Extra::Nothing }
    }
}

/// A domain's CPUID, constant over its life.
#[derive(Clone, Debug)]
pub struct GuestCpuid {
    standard: [Entry; (MAX_STANDARD + 1) as usize],
    xen: [Entry; (MAX_XEN - 0x4000_0000 + 1) as usize],
    extended: [Entry; (MAX_EXTENDED - 0x8000_0000 + 1) as usize],
    /// Sub-leaves 1 and 2 of leaf 7.
    structured: [Leaf; 2],
    topology: [Leaf; 2],
    /// Sub-leaves 1 and 2 of leaf 4000_0003.
    xen_time: [Leaf; 2],
    caches: [Leaf; topology::CACHES],
    xsave: Xsave,
    efer: u64,
}

impl GuestCpuid {
    /// Builds the table from the host's `cpuid(leaf, sub-leaf)`.
    pub fn new(host: impl Fn(u32, u32) -> Leaf, config: &DomainCpuConfig) -> Self {
        let host_max = host(0, 0)[0];
        let host_max_ext = host(0x8000_0000, 0)[0];
        // Beyond its last leaf a CPU may answer anything.
        let raw = |leaf: u32, sub: u32| match leaf {
            0..=0x3fff_ffff if leaf <= host_max => host(leaf, sub),
            0x8000_0000.. if leaf <= host_max_ext => host(leaf, sub),
            _ => [0; 4],
        };
        let xsave = Xsave::new(&raw, config.xcr0);
        let shown = |register: Register| masked(register, &raw, config, &xsave);

        let mut table = Self {
            standard: Default::default(),
            xen: Default::default(),
            extended: [Entry::default(); (MAX_EXTENDED - 0x8000_0000 + 1) as usize],
            structured: [
                [shown(Register::L7S1Eax), 0, 0, shown(Register::L7S1Edx)],
                [0, 0, 0, shown(Register::L7S2Edx)],
            ],
            topology: topology::extended(config.vcpus),
            xen_time: [[0; 4]; 2],
            caches: topology::caches(&raw, config.vcpus),
            xsave,
            efer: 0,
        };
        table.fill_standard(&raw, &shown, config);
        table.fill_extended(&raw, &shown, config);
        if let Some(xen) = &config.xen {
            table.fill_xen(xen, shown(Register::E1Edx) & features::RDTSCP != 0);
        }
        table.efer = table.efer_of(config);
        table
    }

    /// What CPUID gives for `leaf` (EAX) and `subleaf` (ECX).
    pub fn lookup(&self, leaf: u32, subleaf: u32, vcpu: &VcpuCpuidState) -> Leaf {
        self.find(leaf, subleaf, vcpu).unwrap_or_default()
    }

    /// The same, but `None` where the table has no such leaf.
    #[inline]
    pub fn find(&self, leaf: u32, subleaf: u32, vcpu: &VcpuCpuidState) -> Option<Leaf> {
        let index = (leaf & 0x3fff_ffff) as usize;
        let entry = match leaf >> 30 {
            0 => self.standard.get(index),
            1 => self.xen.get(index),
            2 => self.extended.get(index),
            _ => None,
        };
        let entry = entry?;
        Some(if entry.extra == Extra::Nothing { entry.regs } else { self.patched(entry, subleaf, vcpu) })
    }

    /// The EFER bits that the domain may set, for [`check::efer`](super::msr::check::efer).
    pub fn efer(&self) -> u64 {
        self.efer
    }

    /// The states that XSETBV may enable.
    pub fn xcr0(&self) -> u64 {
        self.xsave.xcr0()
    }

    /// The states that XSS may enable: none, as those there are (shadow stacks) are hidden.
    pub fn xss(&self) -> u64 {
        0
    }

    /// Guest-physical address width in bits.
    pub fn max_phys(&self) -> u8 {
        self.extended[8].regs[0] as u8
    }

    /// Linear address width in bits: 48 or 57.
    pub fn linear_bits(&self) -> u8 {
        (self.extended[8].regs[0] >> 8) as u8
    }

    /// Whether 1 GiB pages are offered.
    pub fn gigabyte_pages(&self) -> bool {
        self.extended[1].regs[3] & features::PAGE_1G != 0
    }

    fn patched(&self, entry: &Entry, subleaf: u32, vcpu: &VcpuCpuidState) -> Leaf {
        let mut regs = entry.regs;
        match entry.extra {
            Extra::Nothing => {}
            Extra::Features => {
                regs[1] |= vcpu.apic_id << 24;
                let osxsave = vcpu.cr4 & CR4_OSXSAVE != 0 && regs[2] & features::XSAVE != 0;
                regs[2] |= if osxsave { features::OSXSAVE } else { 0 };
                regs[3] &= if vcpu.apic_enabled { !0 } else { !features::APIC };
            }
            Extra::Structured => match subleaf {
                0 => {
                    let ospke = vcpu.cr4 & CR4_PKE != 0 && regs[2] & features::PKU != 0;
                    regs[2] |= if ospke { features::OSPKE } else { 0 };
                }
                1 | 2 => regs = self.structured[subleaf as usize - 1],
                _ => regs = [0; 4],
            },
            Extra::Topology => {
                // Beyond the levels: type 0, the sub-leaf's number, and the id as always.
                regs = *self.topology.get(subleaf as usize).unwrap_or(&[0, 0, subleaf & 0xff, 0]);
                regs[3] = vcpu.apic_id;
            }
            Extra::State => regs = self.xsave.leaf(subleaf, vcpu.xcr0, vcpu.xss),
            Extra::XenTime => match subleaf {
                0 => {}
                1 | 2 => regs = self.xen_time[subleaf as usize - 1],
                _ => regs = [0; 4],
            },
            Extra::XenVcpu => regs[1] = vcpu.vcpu_id,
            Extra::Caches => regs = *self.caches.get(subleaf as usize).unwrap_or(&[0; 4]),
            Extra::ExtendedApic => {
                regs[0] = vcpu.apic_id;
                // Threads per core less one in 15:8 is 0: each vCPU is a core.
                regs[1] = vcpu.vcpu_id & 0xff;
            }
        }
        regs
    }

    fn fill_standard(
        &mut self,
        raw: &impl Fn(u32, u32) -> Leaf,
        shown: &impl Fn(Register) -> u32,
        config: &DomainCpuConfig,
    ) {
        let vendor = raw(0, 0);
        let has_xsave = shown(Register::L1Ecx) & features::XSAVE != 0;
        let max = if has_xsave { MAX_STANDARD } else { 0xb };
        self.standard[0] = [max, vendor[1], vendor[2], vendor[3]].into();
        let [signature, brand, ..] = raw(1, 0);
        // EBX: brand 7:0, CLFLUSH size 15:8, logical processors 23:16; the APIC id is the vCPU's.
        let processors = config.vcpus.min(255) << 16;
        let ebx = brand & 0xffff | processors;
        self.standard[1] = Entry {
            regs: [signature, ebx, shown(Register::L1Ecx), shown(Register::L1Edx)],
            extra: Extra::Features,
        };
        // The virtual APIC's timer never stops (ARAT).
        self.standard[6] = [1 << 2, 0, 0, 0].into();
        self.standard[7] = Entry {
            regs: [2, shown(Register::L7Ebx), shown(Register::L7Ecx), shown(Register::L7Edx)],
            extra: Extra::Structured,
        };
        self.standard[0xb].extra = Extra::Topology;
        if has_xsave {
            self.standard[0xd].extra = Extra::State;
        }
    }

    fn fill_extended(
        &mut self,
        raw: &impl Fn(u32, u32) -> Leaf,
        shown: &impl Fn(Register) -> u32,
        config: &DomainCpuConfig,
    ) {
        let host = |leaf: u32| raw(0x8000_0000 | leaf, 0);
        let [_, b, c, d] = host(0);
        self.extended[0] = [MAX_EXTENDED, b, c, d].into();
        let [signature, package, ..] = host(1);
        let package = package & 0xf000_0000;
        self.extended[1] = [signature, package, shown(Register::E1Ecx), shown(Register::E1Edx)].into();
        // Names, caches and TLBs: nothing in them depends on who runs.
        for leaf in [2, 3, 4, 5, 6, 0x19, 0x1a] {
            self.extended[leaf as usize] = host(leaf).into();
        }
        self.extended[7] = [0, 0, 0, if config.invariant_tsc { 1 << 8 } else { 0 }].into();
        self.extended[8] = [address_sizes(host(8)[0], config), shown(Register::E8Ebx), 0, 0].into();
        self.extended[8].regs[2] = topology::core_count(config.vcpus);
        if config.nested {
            self.extended[0xa] = config.svm.into();
        }
        if shown(Register::E1Ecx) & features::TOPOEXT != 0 {
            self.extended[0x1d].extra = Extra::Caches;
            self.extended[0x1e].extra = Extra::ExtendedApic;
        }
        self.extended[0x21] = [shown(Register::E21Eax), 0, shown(Register::E21Ecx), 0].into();
    }

    fn fill_xen(&mut self, xen: &XenLeaves, rdtscp: bool) {
        let time = &xen.time;
        self.xen[0] = [MAX_XEN, 0x566e_6558, 0x6558_4d4d, 0x4d4d_566e].into(); // "XenVMMXenVMM"
        self.xen[1] = [u32::from(xen.version.0) << 16 | u32::from(xen.version.1), 0, 0, 0].into();
        self.xen[2] = [1, 0x4000_0000, 0, 0].into();
        let flags = u32::from(time.emulated) | u32::from(time.host_reliable) << 1 | u32::from(rdtscp) << 2;
        self.xen[3] =
            Entry { regs: [flags, time.mode, time.guest_khz, time.incarnation], extra: Extra::XenTime };
        if !time.emulated {
            let offset = time.offset;
            self.xen_time[0] = [offset as u32, (offset >> 32) as u32, time.mul, time.shift as u8 as u32];
        }
        self.xen_time[1] = [time.host_khz, 0, 0, 0];
        // vCPU id, domain id and upcall vector per vCPU are always told.
        let hardware = if xen.apic_in_hardware { 0b11 } else { 0 };
        self.xen[4] = Entry {
            regs: [hardware | 1 << 3 | 1 << 4 | 1 << 6, 0, xen.domid.into(), 0],
            extra: Extra::XenVcpu,
        };
    }

    fn efer_of(&self, config: &DomainCpuConfig) -> u64 {
        let [_, _, ecx, edx] = self.extended[1].regs;
        [
            (edx & features::SYSCALL, efer_bits::SCE),
            (edx & features::LONG_MODE, efer_bits::LME),
            (edx & features::NX, efer_bits::NXE),
            (edx & features::FFXSR, efer_bits::FFXSR),
            (ecx & features::TCE, efer_bits::TCE),
            (u32::from(config.nested), efer_bits::SVME),
            (u32::from(config.spec.auto_ibrs), efer_bits::AIBRSE),
        ]
        .into_iter()
        .filter(|(cpuid, _)| *cpuid != 0)
        .fold(0, |all, (_, bit)| all | bit)
    }
}

/// Leaf 8000_0008 EAX: physical bits 7:0, linear 15:8, guest-physical 23:16 (0: as physical).
fn address_sizes(host: u32, config: &DomainCpuConfig) -> u32 {
    let host_phys = match host & 0xff {
        bits @ 32..=52 => bits,
        _ => 36,
    };
    let phys = match u32::from(config.max_phys) {
        bits @ 32..=52 => bits.min(host_phys),
        _ => host_phys,
    };
    let linear = if host >> 8 & 0xff == 57 { 57 } else { 48 };
    phys | linear << 8
}

#[cfg(test)]
mod tests;
