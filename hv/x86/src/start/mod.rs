//! From the boot loader's hand-over to the first guest: the order of bringing the machine up.
// UNSAFETY: reads what the loader left in memory; makes the boot CPU's stack.
#![allow(unsafe_code)]

pub mod config;
mod domains;
#[cfg(target_os = "none")]
mod entry;
mod log_sink;
mod memory;
mod run;

pub use run::{arm_timer, attend_cpu, run_cpu};

use crate::cpu::{
    desc, instr, msr,
    percpu::{self, PerCpu},
    stack,
};
use crate::guest::arch;
use crate::hw::video::{self, Mode};
use crate::hw::{mitigation, mtrr, pci, tsc_warp, watchdog};
use crate::mm::{direct, host};
use crate::{apic, mce, power, serial, smp, svm, time};
use ::boot::acpi::{Acpi, FadtFlags, GenericAddress, PhysRead, Rsdp, SpaceId};
use ::boot::multiboot2::{self, BootInfo};
use addr::Hpa;
use hv_core::sched::Tunables;
use hv_core::{Machine, SystemInfo};

/// The boot CPU's first stack block; its own, guarded one replaces it once memory is up.
#[derive(Debug)]
#[repr(align(65536))]
pub struct BootStack(#[allow(dead_code)] [u8; stack::BLOCK_BYTES]);
/// See [`BootStack`].
pub static mut BOOT_STACK: BootStack = BootStack([0; stack::BLOCK_BYTES]);

static mut BOOT_CPU: PerCpu = PerCpu::new(0);

fn boot_cpu() -> *mut PerCpu {
    &raw mut BOOT_CPU
}

/// Largest info block that is believed.
const MAX_INFO: u32 = 1 << 20;

/// Entered from the entry stub in long mode on [`BOOT_STACK`], with the loader's magic and info block, and the TSC at
/// the loader's hand-over.
pub extern "C" fn start(magic: u32, info: u32, handover: u64) -> ! {
    time::set_handover(handover);
    let block = (&raw const BOOT_STACK) as u64;
    // SAFETY: only this CPU runs; the statics live for ever.
    unsafe {
        percpu::attach(block, &*boot_cpu());
        (*boot_cpu()).tables.load(block);
    }
    desc::build_idt();
    desc::load_idt();
    let serial = serial::init_early();
    log_sink::init();
    crate::console::init();
    log::info!("Testudo {} ({})", env!("CARGO_PKG_VERSION"), crate::report::build_id());
    if !serial {
        log::warn!("no UART answers at 3f8h");
    }
    if magic != multiboot2::LOADER_MAGIC {
        refuse(&alloc::format!(
            "not started by a multiboot2 loader (EAX={magic:#x}): use GRUB's `multiboot2` command"
        ));
    }
    // SAFETY: the loader vouches for the block; it lies below 4 GiB, which the early map shows.
    let bytes = unsafe {
        let at = direct::pointer(Hpa::new(info.into()));
        let size = at.cast::<u32>().read().min(MAX_INFO);
        core::slice::from_raw_parts(at, size as usize)
    };
    let boot = match BootInfo::parse(bytes) {
        Ok(boot) => boot,
        Err(error) => refuse(&alloc::format!("the loader's information cannot be used: {error}")),
    };
    config::init(&boot.command_line);
    let screen = config::uses_screen()
        .then(|| Mode::new(boot.framebuffer.as_ref(), boot.efi64_system_table.is_some()))
        .flatten();
    if let Some(mode) = screen {
        video::init_early(mode);
    }
    let trampoline = memory::init(&boot, Hpa::new(info.into()), bytes.len() as u64);
    if let Some(mode) = screen {
        video::init(mode);
    }
    // From here on nothing below depends on the early map: `memory::init` has left it.
    run_on_own_stack(boot, trampoline)
}

fn run_on_own_stack(boot: BootInfo, trampoline: Option<addr::Frame<addr::HostPhys>>) -> ! {
    let block = host::stack_block(0);
    // SAFETY: the block is mapped; the boot CPU's data are static.
    unsafe {
        percpu::attach(block, &*boot_cpu());
        (*boot_cpu()).tables.load(block);
    }
    let argument = alloc::boxed::Box::into_raw(alloc::boxed::Box::new((boot, trampoline)));
    // SAFETY: switches to an empty stack and never comes back; the argument is owned by `bring_up`.
    unsafe {
        core::arch::asm!(
            "mov rsp, {stack}",
            "xor ebp, ebp",
            "call {go}",
            stack = in(reg) block + stack::MAIN_TOP as u64,
            in("rdi") argument,
            go = sym bring_up,
            options(noreturn),
        )
    }
}

/// What the loader gave, and the page for starting other CPUs.
type Handover = (BootInfo, Option<addr::Frame<addr::HostPhys>>);

extern "C" fn bring_up(argument: *mut Handover) -> ! {
    // SAFETY: `run_on_own_stack` made it from a box and gave it away.
    let (boot, trampoline) = *unsafe { alloc::boxed::Box::from_raw(argument) };
    init_cpu_state();
    let plan = mitigation::init(mitigation::plan_for(&config::options().spec_ctrl));
    mitigation::apply_cpu(plan);
    let acpi = read_acpi(&boot);
    apic::pic::disable();
    init_power(acpi.as_ref());
    time::init(match acpi.as_ref().and_then(|a| a.fadt.as_ref()).and_then(|f| io_port(f.pm_timer)) {
        Some(port) => time::Reference::PmTimer { port },
        None => time::Reference::Pit,
    });
    time::init_wallclock();
    apic::init_boot(time::tsc_khz(), config::options().x2apic);
    // SAFETY: the boot CPU's data are static.
    smp::register(unsafe { &*boot_cpu() });
    crate::trace::init(config::options().trace);
    if let Err(unfit) = svm::probe() {
        refuse(&alloc::format!("{unfit}"));
    }
    init_interrupts(acpi.as_ref());
    for line in config::serial_lines(config::options()).into_iter().flatten() {
        route_serial(acpi.as_ref(), line.irq);
    }
    svm::enter_cpu();
    instr::sti();
    watchdog::init(config::options().watchdog);
    mtrr::record_boot();
    match trampoline {
        Some(page) => smp::start(&other_cpus(acpi.as_ref()), page),
        None => log::warn!("no free page below 1 MiB: other CPUs stay off"),
    }
    log::info!("{} CPUs", smp::count());
    tsc_warp::decide(smp::count(), config::options().tsc);
    silence_devices(&boot, acpi.as_ref());
    start_machine(boot)
}

/// Devices that no domain owns: all of them. They stop writing memory and raising interrupts before any domain
/// has memory.
fn silence_devices(boot: &BootInfo, acpi: Option<&Acpi>) {
    let screen = Mode::new(boot.framebuffer.as_ref(), boot.efi64_system_table.is_some());
    let (framebuffer, vga_text) =
        screen.filter(|_| video::present()).map_or((None, false), |mode| mode.place());
    let uarts = config::serial_lines(config::options()).map(|line| line.map(|serial| serial.io_base));
    pci::silence(acpi, &pci::Console { framebuffer, vga_text, uarts });
}

/// The neutral machine, its domains, and this CPU's loop.
fn start_machine(boot: BootInfo) -> ! {
    let extended = instr::cpuid(0x8000_0001, 0)[3];
    let host = arch::Host {
        svm: svm::probe().unwrap_or_else(|unfit| refuse(&alloc::format!("{unfit}"))),
        gigabyte_pages: extended & (1 << 26) != 0,
        phys_bits: instr::cpuid(0x8000_0008, 0)[0] as u8,
        tsc_stable: tsc_warp::stable(),
        patch_level: crate::trap::probe::rdmsr(0x8b).unwrap_or(0),
        rdtscp: extended & (1 << 27) != 0,
    };
    log::info!("SVM: {} ASIDs, features {:#x}", host.svm.asids, host.svm.edx);
    crate::decode::warm_up();
    let info = SystemInfo { command_line: boot.command_line.clone(), ..SystemInfo::default() };
    let policy = alloc::boxed::Box::new(hv_core::sched::Credit::new(&Tunables::default()));
    let machine = Machine::new(smp::count(), policy, Tunables::default(), info);
    arch::init(host, machine);
    domains::build_all(&boot);
    crate::console::boot_done();
    run::run_cpu()
}

struct DirectMap;

impl PhysRead for DirectMap {
    fn read(&self, at: Hpa, len: usize) -> Option<alloc::vec::Vec<u8>> {
        if at.raw().checked_add(len as u64)? >= 1 << 46 {
            return None;
        }
        host::ensure_cached(at, len as u64);
        // SAFETY: `ensure_cached` has mapped the range; the bytes are copied at once.
        Some(unsafe { core::slice::from_raw_parts(direct::pointer(at), len) }.to_vec())
    }
}

fn read_acpi(boot: &BootInfo) -> Option<Acpi> {
    let rsdp = match &boot.rsdp {
        Some(rsdp) => *rsdp,
        None => Rsdp::search(&DirectMap).inspect_err(|e| log::warn!("no ACPI: {e}")).ok()?,
    };
    let acpi = Acpi::read(&DirectMap, &rsdp).inspect_err(|e| log::warn!("no ACPI: {e}")).ok()?;
    for damage in &acpi.damaged {
        log::warn!("ACPI: {damage}");
    }
    Some(acpi)
}

/// The I/O port of a register that lies in I/O space.
fn io_port(register: Option<GenericAddress>) -> Option<u16> {
    register.filter(|r| r.space == SpaceId::IO && r.address != 0).and_then(|r| u16::try_from(r.address).ok())
}

fn init_power(acpi: Option<&Acpi>) {
    let fadt = acpi.and_then(|a| a.fadt.as_ref());
    let firmware = power::Firmware {
        pm1_control: [fadt.and_then(|f| io_port(f.pm1a_control)), fadt.and_then(|f| io_port(f.pm1b_control))]
            .map(|p| p.unwrap_or(0)),
        s5: acpi.and_then(|a| a.s5).map(|s| [s.a, s.b]),
        reset: fadt
            .filter(|f| f.flags.has(FadtFlags::RESET))
            .and_then(|f| f.reset)
            .and_then(|(register, value)| Some((io_port(Some(register))?, value))),
    };
    power::init(firmware);
}

fn init_interrupts(acpi: Option<&Acpi>) {
    let Some(madt) = acpi.and_then(|a| a.madt.as_ref()) else { return };
    for chip in &madt.io_apics {
        apic::ioapic::add(chip.at, chip.gsi_base);
    }
}

/// A serial line's ISA interrupt `irq` to the boot CPU; 0 asks for polling.
fn route_serial(acpi: Option<&Acpi>, irq: u8) {
    if irq == 0 {
        return serial::poll();
    }
    let over = acpi.and_then(|a| a.madt.as_ref()).and_then(|m| m.overrides.iter().find(|o| o.irq == irq));
    let line = apic::ioapic::Line {
        gsi: over.map_or(irq.into(), |o| o.gsi),
        low: over.and_then(|o| o.flags.active_low()).unwrap_or(false),
        level: over.and_then(|o| o.flags.level()).unwrap_or(false),
    };
    if !apic::ioapic::route(line, crate::trap::vector::SERIAL, apic::id()) {
        log::warn!("no IOAPIC pin for the serial line's interrupt {irq}: its input is polled");
        serial::poll();
    }
}

/// APIC ids of the CPUs to start: enabled ones, this one excepted.
fn other_cpus(acpi: Option<&Acpi>) -> alloc::vec::Vec<u32> {
    let me = apic::id();
    let cpus = acpi.and_then(|a| a.madt.as_ref()).map(|m| m.cpus.as_slice()).unwrap_or_default();
    let most = config::options().maxcpus.map_or(usize::MAX, |n| n as usize - 1);
    cpus.iter().filter(|c| c.enabled && c.apic_id != me).map(|c| c.apic_id).take(most).collect()
}

/// Per-CPU control registers and MSRs, the same on all CPUs.
pub fn init_cpu_state() {
    // SAFETY: PAT's power-on value; CR4 bits that CPUID announces. OSXSAVE is needed to switch guests'
    // extended state; FSGSBASE and the like stay off in Testudo, whose CR4 a guest never sees.
    unsafe {
        instr::wrmsr(msr::IA32_PAT, msr::PAT_RESET);
        let features = instr::cpuid(1, 0)[2];
        let mut cr4 = instr::read_cr4() | 1 << 9 | 1 << 10;
        if features & (1 << 26) != 0 {
            cr4 |= 1 << 18;
        }
        instr::write_cr4(cr4);
    }
    mce::init_cpu();
}

/// Stops with a message: the machine or its configuration cannot be used.
pub fn refuse(why: &str) -> ! {
    log::error!(target: hv_core::console::gate::urgent(), "cannot start: {why}");
    instr::halt_forever()
}
