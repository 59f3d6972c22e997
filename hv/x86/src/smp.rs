//! Starting the other CPUs, and reaching them.
// UNSAFETY: start-up code for CPUs in real mode.
#![allow(unsafe_code)]

use crate::apic;
use crate::cpu::{
    desc, instr,
    percpu::{self, MAX_CPUS, PerCpu},
    stack,
};
use crate::hw::{mitigation, mtrr, tsc_warp, watchdog};
use crate::mm::{direct, host};
use crate::trap::vector;
use addr::{Frame, HostPhys};
use alloc::boxed::Box;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

static CPUS: [AtomicPtr<PerCpu>; MAX_CPUS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_CPUS];
static COUNT: AtomicU32 = AtomicU32::new(0);

/// CR3 and stack top of the CPU that is being started.
static AP_CR3: AtomicU64 = AtomicU64::new(0);
static AP_STACK: AtomicU64 = AtomicU64::new(0);

#[cfg(target_os = "none")]
core::arch::global_asm!(
    r#"
    # Copied to a page below 1 MiB, where a CPU comes out of INIT.
    .section .rodata
    .global ap_trampoline
    .global ap_trampoline_end
    .code16
ap_trampoline:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl (ap_gdt_pointer - ap_trampoline)
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x18, $ap32
ap_gdt_pointer:
    .short 31
    .long early_gdt
ap_trampoline_end:
    .code64
    .text
    "#,
    options(att_syntax),
);

#[cfg(target_os = "none")]
core::arch::global_asm!(
    r#"
    .global ap32
    .section .boot.text, "ax"
    .code32
ap32:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    mov eax, offset early_pml4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x900
    wrmsr
    mov eax, cr0
    and eax, 0x9ffffff3
    or eax, 0x80010003
    mov cr0, eax
    jmp 0x08, offset ap64
    .code64
ap64:
    movabs rax, offset ap64_high
    jmp rax
    .text
ap64_high:
    mov rax, [{cr3}]
    mov rcx, [{stack}]
    mov cr3, rax
    mov rsp, rcx
    xor ebp, ebp
    call {start}
1:  hlt
    jmp 1b
    "#,
    cr3 = sym AP_CR3,
    stack = sym AP_STACK,
    start = sym ap_start,
);

#[cfg(target_os = "none")]
unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
}

/// The trampoline's bytes.
#[cfg(target_os = "none")]
fn trampoline() -> &'static [u8] {
    let start = &raw const ap_trampoline;
    let len = (&raw const ap_trampoline_end) as usize - start as usize;
    // SAFETY: both symbols delimit bytes of the image's read-only data.
    unsafe { core::slice::from_raw_parts(start, len) }
}

#[cfg(not(target_os = "none"))]
fn trampoline() -> &'static [u8] {
    &[]
}

/// CPU `index`, if it is up.
#[inline]
pub fn cpu(index: u32) -> Option<&'static PerCpu> {
    let pointer = CPUS.get(index as usize)?.load(Ordering::Acquire);
    // SAFETY: non-null entries were leaked boxes (or the boot CPU's static).
    (!pointer.is_null()).then(|| unsafe { &*pointer })
}

/// How many CPUs are up.
pub fn count() -> u32 {
    COUNT.load(Ordering::Acquire)
}

/// All CPUs that are up.
pub fn cpus() -> impl Iterator<Item = &'static PerCpu> {
    (0..count()).filter_map(cpu)
}

/// Makes `cpu` known to the others.
pub fn register(cpu: &'static PerCpu) {
    CPUS[cpu.index as usize].store(core::ptr::from_ref(cpu).cast_mut(), Ordering::Release);
    COUNT.fetch_add(1, Ordering::AcqRel);
}

/// Interrupts CPU `index` so that it looks at its pending word.
pub fn kick(index: u32) {
    if let Some(cpu) = cpu(index) {
        apic::send_ipi(cpu.apic_id.load(Ordering::Relaxed), vector::KICK);
    }
}

/// Sends an NMI to all CPUs but this one.
pub fn nmi_others() {
    let me = percpu::this().index;
    for cpu in cpus().filter(|c| c.index != me) {
        apic::send_nmi(cpu.apic_id.load(Ordering::Relaxed));
    }
}

/// A CPU's data and stack, never freed.
fn prepare(index: u32, apic_id: u32) -> (&'static PerCpu, u64) {
    let cpu = Box::leak(Box::new(PerCpu::new(index)));
    cpu.apic_id.store(apic_id, Ordering::Relaxed);
    let block = host::stack_block(index);
    // SAFETY: `stack_block` has mapped the block.
    unsafe { percpu::attach(block, cpu) };
    (cpu, block)
}

/// Starts the CPUs with the given local APIC ids, one after the other, through the real-mode page
/// `trampoline_page` (below 1 MiB, nobody else's).
///
/// The sequence is INIT, 10 ms, start-up, and a second start-up if the first was not taken (Intel SDM
/// vol. 3, "MP Initialization Protocol Algorithm"; APM vol. 2, "Initializing Application Processors").
pub fn start(apic_ids: &[u32], trampoline_page: Frame<HostPhys>) {
    let code = trampoline();
    host::ensure_cached(trampoline_page.start(), 4096);
    // SAFETY: the page was set apart for this; the code is far shorter than a page.
    unsafe {
        core::ptr::copy_nonoverlapping(code.as_ptr(), direct::pointer(trampoline_page.start()), code.len());
    }
    AP_CR3.store(instr::read_cr3(), Ordering::SeqCst);
    for &apic_id in apic_ids {
        let index = count();
        if index as usize == MAX_CPUS {
            log::warn!("more than {MAX_CPUS} CPUs: the rest stay off");
            break;
        }
        let (cpu, block) = prepare(index, apic_id);
        AP_STACK.store(block + stack::MAIN_TOP as u64, Ordering::SeqCst);
        apic::send_init(apic_id);
        crate::time::pause_us(10_000);
        for _ in 0..2 {
            apic::send_startup(apic_id, trampoline_page.number() as u8);
            if tsc_warp::boot_side(index, 100_000) {
                break;
            }
        }
        // One that is late must not run into the next one's stack: a CPU that missed its time stays off,
        // and the rest are not started.
        if !came_up(cpu, 1_000_000) {
            log::error!("CPU with APIC id {apic_id} does not start: going on with {index} CPUs");
            break;
        }
    }
}

fn came_up(cpu: &PerCpu, us: u64) -> bool {
    let end = crate::time::now() + us * 1000;
    while crate::time::now() < end {
        if cpu.online.load(Ordering::Acquire) != 0 {
            return true;
        }
        core::hint::spin_loop();
    }
    cpu.online.load(Ordering::Acquire) != 0
}

#[cfg_attr(not(target_os = "none"), allow(dead_code, reason = "only the image's entry code calls it"))]
extern "C" fn ap_start() -> ! {
    let cpu = percpu::this();
    let block = instr::rsp() & !(stack::BLOCK_BYTES as u64 - 1);
    // SAFETY: nobody else touches this CPU's tables, and the data are never freed.
    unsafe { (*core::ptr::from_ref(cpu).cast_mut()).tables.load(block) };
    desc::load_idt();
    crate::start::init_cpu_state();
    mitigation::apply_cpu(&mitigation::plan());
    apic::init_cpu();
    watchdog::start_cpu();
    mtrr::check_cpu();
    tsc_warp::ap_side();
    crate::svm::enter_cpu();
    crate::trace::start_cpu(cpu);
    register(cpu);
    cpu.online.store(1, Ordering::Release);
    crate::start::run_cpu()
}
