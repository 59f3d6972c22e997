//! Building a domain from its boot modules: memory, kernel, start info, vCPUs.

use crate::cpu::instr;
use crate::guest::arch::{self, DomainData, VcpuShared, X86, machine};
use crate::guest::memory::{GuestRam, OutOfMemory};
use crate::guest::page::Page;
use crate::guest::ports;
use crate::hw::mitigation;
use crate::mm::{direct, frames::frames};
use crate::policy::cpuid::{DomainCpuConfig, GuestCpuid, VcpuCpuidState, XenLeaves, XenTime};
use crate::svm::{nested, vcpu, xstate};
use crate::vlapic::{self, VlapicShared};
use addr::{Frame, Gpa, GuestMemory, PAGE_SIZE, Range};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use boot::modules::DomainConfig as BootConfig;
use boot::multiboot2::Module;
use boot::pvh::{self, AcpiOptions, ResetPort, SleepPorts, StartInfo, StartModule};
use boot::{E820Type, Region, bzimage, elf};
use core::sync::atomic::AtomicU64;
use hv_core::domain::{Action, Domain, DomainConfig, MemoryRegion};
use hv_core::evtchn::EventChannels;
use hv_core::grant::{GrantTable, Maptrack};
use hv_core::memory::{Limits, Owner};
use hv_core::platform::PcpuId;
use hv_core::sched::Affinity;
use spin::Mutex;

/// RAM below 4 GiB ends here at the latest; the rest goes above 4 GiB.
const LOW_END: u64 = 0xc000_0000;
/// Where RAM above the hole begins.
const HIGH_START: u64 = 1 << 32;
/// The guest's ACPI tables.
const ACPI: u64 = 0xfc00_0000;
/// The PV console's ring.
const CONSOLE: u64 = 0xfeff_8000;
/// Largest ELF image that a kernel may unpack to.
const MAX_KERNEL: usize = 256 << 20;

/// Why a domain could not be built; a sentence for the log.
pub type Failure = String;

/// What is kept to build the domain anew when it reboots.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The module line.
    pub config: BootConfig,
    /// All boot modules.
    pub modules: Arc<Vec<Module>>,
}

fn bytes(module: &Module) -> &'static [u8] {
    direct::module(module.start, module.bytes() as usize)
}

/// Builds the domain and starts it.
pub fn build(recipe: &Recipe) -> Result<Arc<Domain<X86>>, Failure> {
    let config = &recipe.config;
    let id = machine().domains.reserve().map_err(|e| format!("no domain id is free ({e:?})"))?;
    let result = build_as(recipe, id);
    if result.is_err() {
        machine().domains.release(id);
    }
    let domain = result?;
    log::info!(
        target: hv_core::console::gate::life(),
        "domain {}: {} MiB, {} vCPUs{}",
        config.name,
        config.memory >> 20,
        config.vcpus,
        if config.nested { ", nested virtualization" } else { "" }
    );
    if config.console {
        crate::console::add_domain(&domain);
    }
    domain.start();
    Ok(domain)
}

fn build_as(recipe: &Recipe, id: xen_abi::DomId) -> Result<Arc<Domain<X86>>, Failure> {
    let config = &recipe.config;
    let owner = Owner(id.0);
    limit(owner, config);
    let memory = make_memory(owner, config)?;
    let image = &recipe.modules[config.kernel];
    if pvh::lacks_root(bytes(image), config) {
        log::warn!(
            "domain {}: no ramdisk, and no `root=` behind the `--`: Linux will find nothing to start; add a line \
             `module2 <file> ramdisk name={}`",
            config.name,
            config.name
        );
    }
    let kernel = bzimage::extract_elf(bytes(image), MAX_KERNEL)
        .map_err(|e| format!("module {}: {e}", config.kernel + 1))?;
    let plan = elf::plan(&kernel).map_err(|e| format!("module {}: {e}", config.kernel + 1))?;
    let entry = plan.pvh_entry.ok_or_else(|| {
        format!(
            "module {}: an ELF image without Xen's PVH note: not a kernel that can start as a PVH guest",
            config.kernel + 1
        )
    })?;
    for segment in &plan.segments {
        load(&memory, segment.paddr, &kernel[segment.file.clone()])?;
    }
    drop(kernel);
    let map = memory_map(config);
    let start_info = place(recipe, &memory, &map)?;
    finish(config, id, memory, map, entry, start_info)
}

/// Memory accounts: RAM as configured, tables and pages of ours in proportion.
fn limit(owner: Owner, config: &BootConfig) {
    let pages = (config.memory / PAGE_SIZE) as u32;
    let tables = pages / 16 + 4096;
    let heap = EventChannels::<X86>::bytes_for(config.max_event_channels + 1)
        + GrantTable::<Page>::bytes_for(config.max_grant_frames)
        + Maptrack::<X86>::bytes_for(config.max_maptrack_frames);
    let other = 256 + config.max_grant_frames + config.vcpus * 64 + heap.div_ceil(PAGE_SIZE) as u32;
    // The ACPI tables and the console page are RAM beyond what the user asked for.
    frames().set_limits(owner, Limits { ram: pages + 64, tables, other });
}

fn low_bytes(config: &BootConfig) -> u64 {
    config.memory.min(LOW_END)
}

fn make_memory(owner: Owner, config: &BootConfig) -> Result<GuestRam, Failure> {
    // As it is now: what this domain takes before it fails is given back.
    let free = frames().stats().free * PAGE_SIZE;
    let short = |_| {
        format!(
            "not enough memory for {} MiB ({} MiB are free): lower memory= of this or another domain",
            config.memory >> 20,
            free >> 20
        )
    };
    if config.memory > free {
        return Err(short(OutOfMemory));
    }
    let host = arch::host();
    let shadow_quota = (config.memory / PAGE_SIZE / 64) as u32 + 1024;
    let quota = config.nested.then_some(shadow_quota);
    let memory = GuestRam::new(owner, host.gigabyte_pages, quota).map_err(short)?;
    let low = low_bytes(config);
    let pieces = [(0, low), (HIGH_START, config.memory - low), (ACPI, 16 * PAGE_SIZE), (CONSOLE, PAGE_SIZE)];
    for (start, bytes) in pieces {
        if bytes != 0 {
            let range = Range::new(Gpa::new(start), bytes).ok_or("memory= is beyond the address space")?;
            memory.add_ram(range).map_err(short)?;
        }
    }
    Ok(memory)
}

fn memory_map(config: &BootConfig) -> Vec<Region<addr::GuestPhys>> {
    let low = low_bytes(config);
    let mut map = Vec::from([
        Region::new(Gpa::ZERO, low, E820Type::RAM),
        Region::new(Gpa::new(ACPI), 16 * PAGE_SIZE, E820Type::ACPI),
        Region::new(Gpa::new(CONSOLE), PAGE_SIZE, E820Type::RESERVED),
    ]);
    if config.memory > low {
        map.push(Region::new(Gpa::new(HIGH_START), config.memory - low, E820Type::RAM));
    }
    map
}

fn load(memory: &GuestRam, at: Gpa, data: &[u8]) -> Result<(), Failure> {
    memory
        .write(at, data)
        .map_err(|_| format!("its kernel does not fit into its memory (at {at}): raise memory="))
}

/// Puts ramdisk, start info and ACPI tables into memory; returns where the start info is.
fn place(recipe: &Recipe, memory: &GuestRam, map: &[Region<addr::GuestPhys>]) -> Result<Gpa, Failure> {
    let config = &recipe.config;
    let acpi = AcpiOptions {
        sleep: Some(SleepPorts { control: ports::SLEEP_CONTROL, status: ports::SLEEP_STATUS, s5: ports::S5 }),
        reset: Some(ResetPort { port: ports::RESET, value: ports::RESET_VALUE }),
    };
    load(memory, Gpa::new(ACPI), &pvh::guest_acpi(Gpa::new(ACPI), config.vcpus, &acpi))?;
    // From the top of low memory downwards, and below 1 GiB, where every kernel has memory mapped early.
    let top = low_bytes(config).min(1 << 30);
    let info_at = Gpa::new(top - 64 * 1024);
    let mut next = info_at.raw();
    let mut modules = Vec::new();
    let images = config.ramdisk.into_iter().map(|m| (m, String::new()));
    for (index, cmdline) in images.chain(config.modules.iter().map(|m| (m.module, m.cmdline.clone()))) {
        let data = bytes(&recipe.modules[index]);
        next = next
            .checked_sub(data.len() as u64)
            .map(|n| n & !(PAGE_SIZE - 1))
            .filter(|n| *n > 0x10_0000)
            .ok_or_else(|| {
            format!(
                "module {} ({} MiB) does not fit into its memory: raise memory=",
                index + 1,
                data.len() >> 20
            )
        })?;
        load(memory, Gpa::new(next), data)?;
        modules.push(StartModule { addr: Gpa::new(next), bytes: data.len() as u64, cmdline });
    }
    let info = StartInfo {
        flags: 0,
        modules,
        cmdline: config.cmdline.clone(),
        rsdp: Some(Gpa::new(ACPI)),
        memmap: map.to_vec(),
    };
    load(memory, info_at, &info.build(info_at))?;
    Ok(info_at)
}

fn cpuid_of(config: &BootConfig, id: u16, svm: [u32; 4]) -> GuestCpuid {
    let khz = crate::time::tsc_khz() as u32;
    let host = arch::host();
    let time = XenTime {
        emulated: false,
        host_reliable: host.tsc_stable,
        mode: 0,
        guest_khz: khz,
        host_khz: khz,
        incarnation: 0,
        offset: crate::time::tsc_base().wrapping_sub(instr::rdtsc()),
        mul: crate::time::scale(u64::from(khz)).0,
        shift: crate::time::scale(u64::from(khz)).1,
    };
    let facts = DomainCpuConfig {
        nested: config.nested,
        svm,
        vcpus: config.vcpus,
        invariant_tsc: host.tsc_stable,
        tsc_adjust: true,
        xcr0: xstate::facts().supported,
        max_phys: 0,
        spec: mitigation::plan().guest,
        xen: Some(XenLeaves { version: (4, 17), domid: id, time, apic_in_hardware: false }),
    };
    GuestCpuid::new(instr::cpuid, &facts)
}

/// CR4 bits that go with the features that `cpuid` shows.
fn cr4_allowed(cpuid: &GuestCpuid) -> u64 {
    let state = VcpuCpuidState::default();
    let one = cpuid.lookup(1, 0, &state);
    let seven = cpuid.lookup(7, 0, &state);
    let rows = [
        (seven[2], 2, 11),  // UMIP
        (seven[2], 16, 12), // LA57
        (seven[1], 0, 16),  // FSGSBASE
        (one[2], 17, 17),   // PCID
        (one[2], 26, 18),   // XSAVE
        (seven[1], 7, 20),  // SMEP
        (seven[1], 20, 21), // SMAP
        (seven[2], 3, 22),  // PKU
    ];
    rows.iter().fold(0x7ff, |bits, (word, feature, bit)| bits | u64::from(word >> feature & 1) << bit)
}

fn finish(
    config: &BootConfig,
    id: xen_abi::DomId,
    memory: GuestRam,
    map: Vec<Region<addr::GuestPhys>>,
    entry: u32,
    start_info: Gpa,
) -> Result<Arc<Domain<X86>>, Failure> {
    let owner = Owner(id.0);
    let host = arch::host();
    let first = cpuid_of(config, id.0, [0; 4]);
    let (phys_bits, allowed) = (first.max_phys(), cr4_allowed(&first));
    let caps = config.nested.then(|| {
        let hardware = vsvm::caps::Features::from_bits_retain(host.svm.edx);
        let invpcid = first.lookup(7, 0, &VcpuCpuidState::default())[1] & (1 << 10) != 0;
        nested::caps(hardware, phys_bits, allowed, first.efer(), invpcid)
    });
    let cpuid = match &caps {
        Some(caps) => cpuid_of(config, id.0, caps.cpuid_8000_000a()),
        None => first,
    };
    let tsc_zero = instr::rdtsc();
    let setup = |number: u32| vcpu::Setup {
        owner,
        lapic: vlapic::Config {
            id: pvh::apic_id(number),
            bsp: number == 0,
            x2apic: true,
            tsc_deadline: true,
            phys_bits,
        },
        n_cr3: memory.root(),
        tsc_offset: tsc_zero.wrapping_neg(),
        vgif: host.svm.has(crate::svm::Features::VGIF),
        nested: config.nested,
    };
    let mut states = Vec::new();
    for number in 0..config.vcpus {
        let mut state = vcpu::VcpuState::new(setup(number)).ok_or("no memory for its vCPUs")?;
        if number == 0 {
            state.set_pvh_entry(entry, start_info.raw() as u32);
        }
        states.push(Some(Box::new(state)));
    }
    let data = DomainData {
        efer_allowed: cpuid.efer(),
        cpuid,
        phys_bits,
        cr4_allowed: allowed,
        nested: caps.map(|caps| nested::DomainNested { caps }),
        tsc_zero,
        counters: config.counters,
    };
    let tlb = memory.tlb().clone();
    let shared = |number: hv_core::vcpu::VcpuId| VcpuShared {
        lapic: VlapicShared::new(pvh::apic_id(number.0)),
        mark: tlb.add_vcpu(),
        counters: hv_core::trace::ExitCounters::new(),
        entries_l2: AtomicU64::new(0),
        tsc_offset: AtomicU64::new(tsc_zero.wrapping_neg()),
        state: Mutex::new(states.get_mut(number.index()).and_then(Option::take)),
    };
    let core_config = neutral(config, map);
    let domain = machine()
        .create_domain(id, core_config, memory, data, shared)
        .map_err(|e| format!("cannot be created: {e:?}"))?;
    domain.attach_console(Frame::new(CONSOLE >> 12)).map_err(|e| format!("no console: {e:?}"))?;
    Ok(domain)
}

/// The neutral part of the configuration.
fn neutral(config: &BootConfig, map: Vec<Region<addr::GuestPhys>>) -> DomainConfig {
    let mut core = DomainConfig::new(config.name.to_string(), config.vcpus, config.memory / PAGE_SIZE);
    core.weight = config.weight.into();
    core.cap = config.cap.into();
    core.max_port = config.max_event_channels;
    core.max_grant_frames = config.max_grant_frames;
    core.max_maptrack_frames = config.max_maptrack_frames;
    if !config.cpus.is_empty() {
        core.affinity = config
            .cpus
            .iter()
            .flat_map(|(from, to)| *from..=*to)
            .take_while(|n| *n < Affinity::MAX)
            .fold(Affinity::NONE, |set, n| set.with(PcpuId(n)));
    }
    core.memory_map = map
        .iter()
        .map(|r| MemoryRegion {
            start: r.start.raw(),
            bytes: r.bytes(),
            kind: xen_abi::memory::E820Type(r.kind.0),
        })
        .collect();
    core.on_crash = match config.on_crash {
        boot::modules::OnCrash::Destroy => Action::Destroy,
        boot::modules::OnCrash::Restart => Action::Rebuild,
    };
    core
}
