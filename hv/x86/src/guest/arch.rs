//! What the neutral core needs of this architecture.

use crate::cpu::{instr, percpu};
use crate::guest::context::{Allowed, Start};
use crate::guest::memory::GuestRam;
use crate::guest::tlb::RunMark;
use crate::policy::cpuid::GuestCpuid;
use crate::svm::Features;
use crate::svm::run::Run;
use crate::svm::vcpu::VcpuState;
use crate::vlapic::{TimeSource, VlapicShared};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use hv_core::Machine;
use hv_core::domain::{Callback, Domain};
use hv_core::platform::{Arch, CallIo, Fault, PcpuId};
use hv_core::sync::NoIrq;
use hv_core::time::{Clock, TscScale};
use hv_core::trace::ExitCounters;
use hv_core::vcpu::{Vcpu, VcpuId};
use spin::{Mutex, Once};
use vsvm::layout::ExitCode;
use xen_abi::Errno;
use xen_abi::vcpu::HvmContext;

/// The x86 machine.
#[derive(Debug)]
pub struct X86;

/// What all domains share.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// SVM.
    pub svm: Features,
    /// 1 GiB pages.
    pub gigabyte_pages: bool,
    /// Physical address width, bits.
    pub phys_bits: u8,
    /// All CPUs' TSCs agree, and go on at the same pace.
    pub tsc_stable: bool,
    /// Microcode level that guests are shown.
    pub patch_level: u64,
    /// RDTSCP exists, and with it TSC_AUX.
    pub rdtscp: bool,
}

static HOST: Once<Host> = Once::new();
static MACHINE: Once<Arc<Machine<X86>>> = Once::new();
/// A domain wants to be looked at.
static TEND: AtomicBool = AtomicBool::new(false);

/// What all domains share.
#[inline(always)]
pub fn host() -> &'static Host {
    HOST.get().expect("set at boot, before any domain is made")
}

/// The machine.
#[inline(always)]
pub fn machine() -> &'static Arc<Machine<X86>> {
    MACHINE.get().expect("set at boot, before any CPU runs a guest")
}

/// Waits until the boot CPU has set up the machine. Other CPUs come here first.
pub fn wait_until_ready() -> &'static Host {
    MACHINE.wait();
    host()
}

/// At boot.
pub fn init(host: Host, machine: Arc<Machine<X86>>) {
    HOST.call_once(|| host);
    MACHINE.call_once(|| machine);
}

/// Whether a domain wants to be looked at; asked once.
pub fn take_tend() -> bool {
    TEND.load(Ordering::Relaxed) && TEND.swap(false, Ordering::SeqCst)
}

/// What the architecture keeps for a domain: constants, chosen at creation.
#[derive(Debug)]
pub struct DomainData {
    /// CPUID.
    pub cpuid: GuestCpuid,
    /// Physical address width, bits.
    pub phys_bits: u8,
    /// CR4 bits the guest may set.
    pub cr4_allowed: u64,
    /// EFER bits the guest may set.
    pub efer_allowed: u64,
    /// Nested virtualization.
    pub nested: Option<crate::svm::nested::DomainNested>,
    /// Host TSC at the guest's TSC zero.
    pub tsc_zero: u64,
}

/// Counted reasons of exits: see [`counter_of`].
pub const COUNTERS: usize = 0xa8 + 4;

/// What other CPUs may touch of a vCPU.
#[derive(Debug)]
pub struct VcpuShared {
    /// Interrupt requests.
    pub lapic: VlapicShared,
    /// Which table generation it runs with.
    pub mark: Arc<RunMark>,
    /// Exits by level and reason.
    pub counters: ExitCounters<COUNTERS>,
    /// Entries to L2.
    pub entries_l2: AtomicU64,
    /// Its TSC offset.
    pub tsc_offset: AtomicU64,
    /// The rest: of whoever runs it, or holds the lock while it does not run.
    pub state: Mutex<Option<Box<VcpuState>>>,
}

/// Index of the counter of an exit code.
#[inline(always)]
pub fn counter_of(code: ExitCode) -> usize {
    match code.0 {
        n @ 0..0xa8 => n as usize,
        0x400 => 0xa8,
        u64::MAX => 0xa9,
        0x401..=0x403 => 0xaa,
        _ => 0xab,
    }
}

/// The exit code whose counter has index `index`.
pub fn code_of(index: usize) -> ExitCode {
    match index {
        0..0xa8 => ExitCode(index as u64),
        0xa8 => ExitCode::NPF,
        0xa9 => ExitCode::INVALID,
        0xaa => ExitCode::AVIC_NOACCEL,
        _ => ExitCode(0xf000_0000),
    }
}

impl Arch for X86 {
    type Memory = GuestRam;
    type DomainData = DomainData;
    type VcpuShared = VcpuShared;
    // Interrupt handlers take no lock: none needs interrupts off.
    type Irq = NoIrq;

    #[inline]
    fn now() -> u64 {
        crate::time::now()
    }

    fn wallclock() -> u64 {
        crate::time::wallclock()
    }

    #[inline]
    fn this_pcpu() -> PcpuId {
        PcpuId(percpu::this().index)
    }

    fn kick(pcpu: PcpuId) {
        crate::smp::kick(pcpu.0);
    }

    fn arm_timer(deadline: u64) {
        crate::start::arm_timer(percpu::this(), deadline);
    }

    fn clock(vcpu: &Vcpu<Self>) -> Clock {
        let tsc = instr::rdtsc();
        let now = crate::time::tsc_to_ns(tsc.wrapping_sub(crate::time::tsc_base()));
        Clock {
            tsc: tsc.wrapping_add(vcpu.shared.tsc_offset.load(Ordering::Relaxed)),
            system_time: now,
            scale: TscScale::from_khz(crate::time::tsc_khz()),
            stable: host().tsc_stable,
        }
    }

    fn set_upcall(vcpu: &Vcpu<Self>) {
        let vector = vcpu.upcall_vector();
        if vector != 0 {
            // The caller wakes and kicks the vCPU.
            let _ = vcpu.shared.lapic.post(vector);
        }
    }

    fn console_write(domain: &Domain<Self>, bytes: &[u8]) {
        crate::console::domain_output(domain, bytes);
    }

    fn initialise_vcpu(vcpu: &Arc<Vcpu<Self>>, context: &HvmContext) -> Result<(), Errno> {
        let domain = vcpu.domain();
        let data = &domain.arch;
        let allowed = Allowed {
            cr4: data.cr4_allowed,
            efer: data.efer_allowed,
            phys_bits: data.phys_bits,
            linear_bits: data.cpuid.linear_bits(),
        };
        let start = Start::new(context, &allowed)?;
        // Held for long only by a vCPU that a start-up message has set running meanwhile: not to be waited for.
        let mut state = vcpu.shared.state.try_lock().ok_or(Errno::EEXIST)?;
        let state = state.as_mut().filter(|_| !vcpu.is_up()).ok_or(Errno::EEXIST)?;
        start.apply(state);
        // Its TSC goes on from the boot vCPU's, which the guest may have moved.
        if let Some(first) = domain.vcpu(VcpuId(0)) {
            let offset = first.shared.tsc_offset.load(Ordering::Relaxed);
            state.vmcb01.control.tsc_offset = offset;
            vcpu.shared.tsc_offset.store(offset, Ordering::Relaxed);
        }
        Ok(())
    }

    fn capabilities() -> &'static str {
        "hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 "
    }

    fn tend(_domain: &Domain<Self>) {
        TEND.store(true, Ordering::SeqCst);
        // The boot CPU tends domains.
        if Self::this_pcpu() != PcpuId(0) {
            crate::smp::kick(0);
        }
    }
}

/// The vector to be injected outside of the local APIC: Xen's callback by vector, for a vCPU that has not
/// chosen one of its own.
#[inline]
pub fn callback_vector(vcpu: &Vcpu<X86>) -> Option<u8> {
    if vcpu.upcall_vector() != 0 {
        return None;
    }
    match vcpu.domain().callback() {
        Callback::Vector(vector) if vcpu.upcall_due() => Some(vector),
        _ => None,
    }
}

/// A guest's time.
#[derive(Clone, Copy, Debug)]
pub struct GuestTime {
    offset: u64,
}

impl TimeSource for GuestTime {
    fn now_ns(&self) -> u64 {
        crate::time::now()
    }
    fn guest_tsc(&self) -> u64 {
        instr::rdtsc().wrapping_add(self.offset)
    }
}

pub use crate::svm::nested::GuestView;

/// L1's time.
#[inline]
pub fn guest_time(state: &VcpuState) -> GuestTime {
    GuestTime { offset: state.vmcb01.control.tsc_offset }
}

/// Brings the guest's runstate and time areas up to date.
pub fn write_areas(run: &mut Run<'_>) {
    struct Io<'a, 'b>(&'a mut Run<'b>);
    impl CallIo for Io<'_, '_> {
        fn copy_in(&mut self, gva: u64, out: &mut [u8]) -> Result<(), Fault> {
            self.0.read_l1(addr::Gva::new(gva), out).map_err(|_| Fault)
        }
        fn copy_out(&mut self, gva: u64, data: &[u8]) -> Result<(), Fault> {
            self.0.write_l1(addr::Gva::new(gva), data).map_err(|_| Fault)
        }
    }
    let vcpu = run.vcpu;
    vcpu.write_areas(&mut Io(run));
}
