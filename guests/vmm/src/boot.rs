//! `vmm boot`: one thread per vCPU; the first that sees the machine end, ends it for all.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use crate::machine::{self, failed};
use crate::memory::Ram;
use crate::serial::{self, Serial};
use crate::{acpi, args, loader, mark, ports};

/// Port for an exit code, as QEMU's isa-debug-exit.
const PORT_EXIT: u16 = 0xf4;
const PORT_KEYBOARD: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;

/// Why a machine stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Poweroff,
    Exit(u8),
    Reboot,
    TripleFault,
    Error(String),
    Timeout,
}

impl End {
    fn name(&self) -> &'static str {
        match self {
            End::Poweroff => "poweroff",
            End::Exit(_) => "exit",
            End::Reboot => "reboot",
            End::TripleFault => "crash",
            End::Error(_) => "error",
            End::Timeout => "timeout",
        }
    }

    fn status(&self) -> i32 {
        match self {
            End::Poweroff | End::Exit(0) => 0,
            End::Exit(code) => 128 + i32::from(code & 127),
            End::Reboot => 3,
            End::TripleFault => 4,
            End::Error(_) => 5,
            End::Timeout => 6,
        }
    }
}

/// Exits by reason, in the order in which they are printed.
const REASONS: [&str; 8] = ["io", "mmio", "hlt", "intr", "shutdown", "irq_window", "entry_failed", "other"];

#[derive(Debug, Default)]
struct Counters {
    by_reason: [AtomicU64; REASONS.len()],
    /// TSC just before the first entry of the machine's last life.
    entered: AtomicU64,
}

impl Counters {
    fn count(&self, reason: &str) {
        let index = REASONS.iter().position(|r| *r == reason).unwrap_or(REASONS.len() - 1);
        self.by_reason[index].fetch_add(1, Ordering::Relaxed);
    }
}

/// What the vCPU threads of one machine share.
#[derive(Debug)]
struct Shared {
    vm: VmFd,
    serial: Mutex<Serial>,
    irq: AtomicBool,
    stop: AtomicBool,
    end: Mutex<Option<End>>,
    exits: Arc<Counters>,
    threads: Mutex<BTreeMap<u32, libc::pthread_t>>,
    triple_fault_reboots: bool,
    counters: bool,
}

/// Run the machine until it ends for good; the result is the exit status.
///
/// # Errors
/// The machine could not be built.
pub fn run(options: &args::Boot) -> Result<i32, String> {
    let kvm = machine::open()?;
    let read = |p: &std::path::Path| std::fs::read(p).map_err(|e| format!("{}: {e}", p.display()));
    let kernel = read(&options.kernel)?;
    let initrd = options.initrd.as_deref().map(read).transpose()?;
    let ram = Ram::new(options.memory, true)?;
    let started = Instant::now();
    let deadline = options.timeout.map(|s| started + Duration::from_secs(s));
    let exits = Arc::new(Counters::default());
    quiet_signal();

    let mut reboots = 0;
    let end = loop {
        let entry = loader::load(&ram, &kernel, initrd.as_deref(), &options.cmdline, options.cpus)?;
        let end = once(&kvm, &ram, entry, options, deadline, &exits)?;
        if end != End::Reboot || reboots == options.reboots {
            break end;
        }
        reboots += 1;
        println!("{}vmm: reboot {reboots}", options.prefix);
        ram.clear();
    };
    mark::phase(mark::ENDED);
    if let End::Error(why) = &end {
        println!("{}vmm: error {why}", options.prefix);
    }
    print_summary(&end, reboots, options, started.elapsed(), &exits);
    Ok(end.status())
}

fn print_summary(end: &End, reboots: u32, options: &args::Boot, time: Duration, exits: &Counters) {
    let counts: Vec<u64> = exits.by_reason.iter().map(|c| c.load(Ordering::Relaxed)).collect();
    let by_reason: String = REASONS.iter().zip(&counts).map(|(name, n)| format!(" {name}={n}")).collect();
    println!(
        "{}vmm: result={} code={} reboots={reboots} cpus={} seconds={:.3} entry_tsc={} exits={}{by_reason}",
        options.prefix,
        end.name(),
        if let End::Exit(code) = end { *code } else { 0 },
        options.cpus,
        time.as_secs_f64(),
        exits.entered.load(Ordering::Relaxed),
        counts.iter().sum::<u64>(),
    );
}

/// One life of the machine, from reset to its end.
fn once(
    kvm: &Kvm,
    ram: &Ram,
    entry: loader::Entry,
    options: &args::Boot,
    deadline: Option<Instant>,
    exits: &Arc<Counters>,
) -> Result<End, String> {
    let gdt: Vec<u8> = machine::GDT_ENTRIES.iter().flat_map(|e| e.to_le_bytes()).collect();
    ram.write(loader::GDT, &gdt)?;
    let shared = Arc::new(Shared {
        vm: machine::create(kvm, ram)?,
        serial: Mutex::new(Serial::new(&options.prefix)),
        irq: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        end: Mutex::new(None),
        exits: exits.clone(),
        threads: Mutex::default(),
        triple_fault_reboots: options.triple_fault_reboots,
        counters: options.counters,
    });
    let mut vcpus = Vec::new();
    for id in 0..options.cpus {
        let vcpu = shared.vm.create_vcpu(id.into()).map_err(failed("create vCPU"))?;
        vcpu.set_cpuid2(&machine::cpuid(kvm, id, options.cpus)?).map_err(failed("set CPUID"))?;
        vcpus.push(vcpu);
    }
    machine::enter(&vcpus[0], entry)?;
    mark::phase(mark::BUILT);

    if options.stdin {
        let shared = shared.clone();
        std::thread::spawn(move || feed(&shared));
    }
    let start = Arc::new(Barrier::new(vcpus.len()));
    mark::phase(mark::RUN);
    // SAFETY: every x86-64 CPU has RDTSC, and Linux leaves it open to programs.
    exits.entered.store(unsafe { std::arch::x86_64::_rdtsc() }, Ordering::Relaxed);
    let threads: Vec<_> = vcpus
        .into_iter()
        .zip(0..)
        .map(|(vcpu, id)| {
            let (shared, start) = (shared.clone(), start.clone());
            std::thread::spawn(move || vcpu_thread(&shared, vcpu, id, &start))
        })
        .collect();
    if let Some(deadline) = deadline {
        watch(&shared, deadline);
    }
    for thread in threads {
        thread.join().map_err(|_| "a vCPU thread panicked")?;
    }
    lock(&shared.serial).finish();
    let end = lock(&shared.end).take();
    Ok(end.unwrap_or_else(|| End::Error("ended without a reason".into())))
}

/// A poisoned lock only means that another thread panicked; the data are plain.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn watch(shared: &Shared, deadline: Instant) {
    while !shared.stop.load(Ordering::Acquire) {
        if Instant::now() >= deadline {
            finish(shared, End::Timeout);
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Standard input to serial port, until either ends. The thread outlives a reboot only until its next byte.
fn feed(shared: &Shared) {
    for byte in std::io::stdin().lock().bytes() {
        let Ok(byte) = byte else { return };
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        let mut serial = lock(&shared.serial);
        serial.receive(byte);
        set_irq(shared, &serial);
    }
}

/// Tell the interrupt controllers when the line has changed. Called with the port locked, so edges keep their order.
fn set_irq(shared: &Shared, serial: &Serial) {
    let level = serial.irq();
    if shared.irq.swap(level, Ordering::Relaxed) != level
        && let Err(e) = shared.vm.set_irq_line(serial::IRQ, level)
    {
        finish(shared, End::Error(format!("interrupt line: {e}")));
    }
}

fn vcpu_thread(shared: &Shared, mut vcpu: VcpuFd, id: u32, start: &Barrier) {
    // SAFETY: asks for our own thread's handle.
    lock(&shared.threads).insert(id, unsafe { libc::pthread_self() });
    start.wait();
    let mut counters = shared.counters.then(ports::Server::default);
    while !shared.stop.load(Ordering::Acquire) {
        if let Some(end) = step(shared, &mut vcpu, counters.as_mut()) {
            finish(shared, end);
        }
    }
    if *lock(&shared.end) == Some(End::Timeout)
        && let (Ok(regs), Ok(sregs)) = (vcpu.get_regs(), vcpu.get_sregs())
    {
        let (cs, cr0, cr3) = (sregs.cs.base, sregs.cr0, sregs.cr3);
        let mut serial = lock(&shared.serial);
        serial.finish();
        let (rip, rflags, rsp) = (regs.rip, regs.rflags, regs.rsp);
        serial.print(&format!(
            "vmm: vcpu {id} rip={rip:#x} rflags={rflags:#x} rsp={rsp:#x} cs={cs:#x} cr0={cr0:#x} cr3={cr3:#x}\n"
        ));
    }
    // Leave the list before the handle dies with the thread.
    lock(&shared.threads).remove(&id);
}

/// Enter the guest once and serve its exit.
fn step(shared: &Shared, vcpu: &mut VcpuFd, counters: Server<'_>) -> Option<End> {
    let exit = match vcpu.run() {
        Ok(exit) => exit,
        Err(e) if [libc::EINTR, libc::EAGAIN].contains(&e.errno()) => {
            shared.exits.count("intr");
            vcpu.set_kvm_immediate_exit(u8::from(shared.stop.load(Ordering::Acquire)));
            return None;
        }
        Err(e) => return Some(End::Error(format!("KVM_RUN: {e}"))),
    };
    let count = |reason| shared.exits.count(reason);
    match exit {
        VcpuExit::IoOut(port, data) => {
            count("io");
            return port_out(shared, counters, port, data);
        }
        VcpuExit::IoIn(port, data) => {
            count("io");
            port_in(shared, counters.as_deref(), port, data);
        }
        VcpuExit::MmioRead(_, data) => {
            count("mmio");
            data.fill(0xff);
        }
        VcpuExit::MmioWrite(..) => count("mmio"),
        VcpuExit::Hlt => count("hlt"),
        VcpuExit::Intr => count("intr"),
        VcpuExit::IrqWindowOpen => count("irq_window"),
        VcpuExit::Shutdown => {
            count("shutdown");
            return Some(if shared.triple_fault_reboots { End::Reboot } else { End::TripleFault });
        }
        VcpuExit::SystemEvent(kind, _) => {
            count("other");
            return Some(if kind == 1 { End::Poweroff } else { End::Reboot });
        }
        VcpuExit::FailEntry(reason, cpu) => {
            count("entry_failed");
            return Some(End::Error(format!("entry failed, hardware reason {reason:#x} on cpu {cpu}")));
        }
        other => {
            count("other");
            let what = format!("exit {other:?}");
            let rip = vcpu.get_regs().map_or(0, |r| r.rip);
            return Some(End::Error(format!("{what} at rip {rip:#x}")));
        }
    }
    None
}

type Server<'a> = Option<&'a mut ports::Server>;

fn port_out(shared: &Shared, counters: Server<'_>, port: u16, data: &[u8]) -> Option<End> {
    if let (ports::FIRST..=ports::LAST, Some(server)) = (port, counters) {
        let mut bytes = (port..=ports::LAST).zip(data);
        return bytes.find_map(|(port, byte)| server.write(port, *byte).err()).map(End::Error);
    }
    let value = *data.first()?;
    match port {
        serial::PORT..=0x3ff => {
            let mut serial = lock(&shared.serial);
            serial.write(port - serial::PORT, value);
            set_irq(shared, &serial);
            None
        }
        acpi::PORT_SLEEP if value & acpi::SLP_EN != 0 || data == [0, 0x20] => Some(End::Poweroff),
        acpi::PORT_RESET if value == acpi::RESET_VALUE => Some(End::Reboot),
        PORT_EXIT => Some(End::Exit(value)),
        PORT_KEYBOARD if value == KEYBOARD_RESET => Some(End::Reboot),
        _ => None,
    }
}

fn port_in(shared: &Shared, counters: Option<&ports::Server>, port: u16, data: &mut [u8]) {
    if let (ports::FIRST..=ports::LAST, Some(server)) = (port, counters) {
        data.iter_mut().zip(port..).for_each(|(byte, port)| *byte = server.read(port));
        return;
    }
    data.fill(0xff);
    match port {
        serial::PORT..=0x3ff => {
            let mut serial = lock(&shared.serial);
            data[0] = serial.read(port - serial::PORT);
            set_irq(shared, &serial);
        }
        // The keyboard controller's input buffer is never full, so that its reset may be asked for.
        PORT_KEYBOARD | acpi::PORT_SLEEP => data.fill(0),
        _ => {}
    }
}

/// Record the end (the first one counts) and fetch every vCPU out of the guest.
fn finish(shared: &Shared, end: End) {
    lock(&shared.end).get_or_insert(end);
    if shared.stop.swap(true, Ordering::AcqRel) {
        return;
    }
    // A thread that tests `stop` just before this and enters just after needs a second knock.
    for _ in 0..200 {
        // SAFETY: asks for our own thread's handle.
        let own = unsafe { libc::pthread_self() };
        let threads = lock(&shared.threads);
        let others: Vec<_> = threads.values().filter(|t| **t != own).collect();
        if others.is_empty() {
            return;
        }
        for thread in others {
            // SAFETY: the thread takes itself off the list, under its lock, before it ends; the signal has a handler.
            unsafe { libc::pthread_kill(*thread, libc::SIGUSR1) };
        }
        drop(threads);
        std::thread::sleep(Duration::from_millis(5));
    }
}

extern "C" fn nothing(_: libc::c_int) {}

/// SIGUSR1 shall interrupt KVM_RUN and do nothing else.
fn quiet_signal() {
    // SAFETY: a zeroed sigaction is a valid one; the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_differ() {
        let ends = [End::Exit(7), End::Reboot, End::TripleFault, End::Error(String::new()), End::Timeout];
        let statuses: std::collections::BTreeSet<i32> = ends.iter().map(End::status).collect();
        assert_eq!(statuses.into_iter().collect::<Vec<_>>(), [3, 4, 5, 6, 135]);
        assert_eq!((End::Poweroff.status(), End::Exit(0).status()), (0, 0));
    }

    #[test]
    fn unknown_reasons_are_counted_as_other() {
        let c = Counters::default();
        c.count("mmio");
        c.count("no such reason");
        assert_eq!((c.by_reason[1].load(Ordering::Relaxed), c.by_reason[7].load(Ordering::Relaxed)), (1, 1));
    }
}
