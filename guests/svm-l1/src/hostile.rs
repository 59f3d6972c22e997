//! `hostile`: an L1 that breaks every rule, to see whether the hypervisor beneath survives.
//!
//! Rounds of five kinds take turns. Without the word `wild` the guests are contained: nested tables let them reach only
//! their own area, and intercepts bring them back, so that this program lives on and can tell of its progress. With
//! `wild` nothing is kept back, and this machine may well die; its hypervisor must not.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::arena::{peek, poke};
use crate::l2::{L2, reg};
use crate::npt::{ALL, NX, P, PS, U, W};
use crate::vmcb::*;
use crate::{apic, arena, attempt, code, cpu, say};

/// What a contained guest may write to.
const AREA: u64 = arena::START + (8 << 20);
const TIMER_VECTOR: u8 = 0x60;

/// VMCB that the second CPU scribbles over; 0: none.
static TARGET: AtomicU64 = AtomicU64::new(0);
/// The second CPU's rounds.
static SCRIBBLES: AtomicU32 = AtomicU32::new(0);

/// xorshift64*: the same seed gives the same attacks.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// A value that tends to matter: single bits, masks, addresses at limits, noise.
    fn value(&mut self) -> u64 {
        match self.below(7) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => (1 << cpu::maxphys()) - (self.below(3) << 12),
            4 => arena::START + self.below(arena::END - arena::START),
            5 => self.below(0x1_0000),
            _ => self.next(),
        }
    }
}

#[derive(Default)]
struct Tally {
    vmmcall: u32,
    invalid: u32,
    npf: u32,
    intr: u32,
    shutdown: u32,
    faults: u32,
    other: u32,
}

impl Tally {
    fn count(&mut self, code: u64) {
        *match code {
            exit::VMMCALL => &mut self.vmmcall,
            exit::INVALID | 0xffff_ffff => &mut self.invalid,
            exit::NPF => &mut self.npf,
            exit::INTR => &mut self.intr,
            exit::SHUTDOWN => &mut self.shutdown,
            _ => &mut self.other,
        } += 1;
    }
}

/// Attack `rounds` times; returns if it lives to tell.
pub fn run(seed: u64, rounds: u64, wild: bool) -> bool {
    let mut dice = Dice(seed | 1);
    let mut tally = Tally::default();
    say!("hostile: seed={seed} rounds={rounds} wild={}", u8::from(wild));
    arena::reset();
    cpu::wrmsr(cpu::EFER, cpu::rdmsr(cpu::EFER) | cpu::SVME);
    let hsave = arena::page();
    cpu::wrmsr(cpu::VM_HSAVE_PA, hsave);
    start_second_cpu();
    apic::start_timer(TIMER_VECTOR, 100_000);
    for round in 1..=rounds {
        arena::reset();
        arena::page(); // the host save area
        match dice.below(5) {
            0 => mutate(&mut dice, &mut tally, wild),
            1 => scramble_tables(&mut dice, &mut tally),
            2 => flush_storm(&mut dice, &mut tally),
            3 => race(&mut dice, &mut tally, wild),
            _ => svm_in_l2(&mut dice, &mut tally, wild),
        }
        if round % 100 == 0 || round == rounds {
            say!(
                "hostile: round={round} vmmcall={} invalid={} npf={} intr={} shutdown={} faults={} other={} scribbles={}",
                tally.vmmcall,
                tally.invalid,
                tally.npf,
                tally.intr,
                tally.shutdown,
                tally.faults,
                tally.other,
                SCRIBBLES.load(Relaxed),
            );
        }
    }
    say!(
        "hostile: survived rounds={rounds} second_cpu={}",
        if crate::trap::ap_died() { "died" } else { "ok" }
    );
    true
}

/// A guest in its area: own stack, IDT, page tables; nested tables that map the image read-only and the area writable.
fn contained(at: u64) -> L2 {
    let mut l2 = L2::new(at);
    // SAFETY: the area belongs to this round's guest; nothing of ours is in it.
    unsafe {
        core::ptr::write_bytes(AREA as *mut u8, 0, 0x20_0000);
        core::ptr::copy_nonoverlapping(l2.idt as *const u8, (AREA + 0x1000) as *mut u8, 4096);
    }
    let (pml4, pdpt) = (AREA + 0x2000, AREA + 0x3000);
    poke(pml4, pdpt | 7);
    for gib in 0..4 {
        poke(pdpt + gib * 8, (gib << 30) | 0xe7);
    }
    let (root, level3, level2, low) = (arena::page(), arena::page(), arena::page(), arena::page());
    poke(root, level3 | ALL);
    poke(level3, level2 | ALL);
    poke(level2, low | ALL);
    for page in 0..512 {
        poke(low + page * 8, page << 12 | (ALL & !W));
    }
    for large in 1..4 {
        poke(level2 + large * 8, large << 21 | PS | (ALL & !W));
    }
    for large in 0..4 {
        let at = AREA + (large << 21);
        poke(level2 + (at >> 21) * 8, at | PS | ALL);
    }
    l2.vmcb.set(MISC_CTL, 1);
    l2.vmcb.set(NCR3, root);
    l2.vmcb.set(CR3, pml4);
    l2.vmcb.set(RSP, AREA + 0x1_0000);
    l2.vmcb.segment(IDTR, 0, 0, 0xfff, AREA + 0x1000);
    l2.regs[reg::RDI] = AREA + 0x10_0000;
    fence(&mut l2);
    l2
}

/// Everything that must hold for us to get the CPU back.
fn fence(l2: &mut L2) {
    l2.vmcb.or(MISC1, 1 << 31 | 1 << 28 | 1 << 27 | 1 << 24 | 0xf);
    l2.vmcb.or(MISC2, 0x7f);
    l2.vmcb.or(INT_CTL, int_ctl::MASKING);
    l2.vmcb.or(MISC_CTL, 1);
    l2.vmcb.or(DR_INTERCEPTS, 0xffff_ffff);
    // All ports and MSRs exit: the maps are full.
    for page in 0..5u64 {
        let map = if page < 3 { l2.iopm + page * 4096 } else { l2.msrpm + (page - 3) * 4096 };
        // SAFETY: pages of this round's arena.
        unsafe { core::ptr::write_bytes(map as *mut u8, 0xff, 4096) };
    }
}

/// Enter with interrupts open, a few times, whatever comes.
fn enter(l2: &mut L2, tally: &mut Tally, times: u32) {
    for _ in 0..times {
        cpu::clgi();
        cpu::sti();
        let fault = l2.try_enter();
        cpu::stgi();
        cpu::cli();
        if fault.is_some() {
            tally.faults += 1;
            return;
        }
        tally.count(l2.vmcb.get(EXIT_CODE));
    }
}

fn worker() -> u64 {
    code!("2:", "mov [rdi], rcx", "mov rax, [rdi + 64]", "inc rcx", "cmp rcx, 1000", "jb 2b")
}

/// Random values in random places of the VMCB.
fn mutate(dice: &mut Dice, tally: &mut Tally, wild: bool) {
    let mut l2 = contained(worker());
    let ncr3 = l2.vmcb.get(NCR3);
    for _ in 0..=dice.below(6) {
        let area = if dice.below(2) == 0 { (0, 0xd8) } else { (0x400, 0x298) };
        let field = Field(area.0 + (dice.below(area.1) & !7), 8);
        l2.vmcb.set(field, dice.value());
    }
    if !wild {
        // Maps must stay ours; the root too.
        l2.vmcb.set(IOPM, l2.iopm);
        l2.vmcb.set(MSRPM, l2.msrpm);
        l2.vmcb.set(NCR3, ncr3);
        fence(&mut l2);
    }
    enter(&mut l2, tally, 3);
}

/// Nested tables of noise: wild roots, wild entries, any permission.
fn scramble_tables(dice: &mut Dice, tally: &mut Tally) {
    let mut l2 = contained(worker());
    let root = l2.vmcb.get(NCR3);
    match dice.below(3) {
        0 => l2.vmcb.set(NCR3, dice.value()),
        1 => {
            let tables = [root, peek(root) & !0xfff];
            let table = tables[dice.below(2) as usize];
            for _ in 0..8 {
                poke(table + dice.below(512) * 8, dice.value());
            }
        }
        _ => {
            // The area's large pages: any permission, but no other frame.
            let level2 = peek(peek(root) & !0xfff) & !0xfff;
            for large in 0..4 {
                let flags = dice.next() & (P | W | U | 0x78 | NX);
                let at = AREA + (large << 21);
                poke(level2 + (at >> 21) * 8, at | PS | flags);
            }
        }
    }
    l2.vmcb.set(ASID, dice.below(4));
    l2.vmcb.set(TLB_CONTROL, dice.below(8));
    enter(&mut l2, tally, 4);
}

/// Edits and flushes in quick succession.
fn flush_storm(dice: &mut Dice, tally: &mut Tally) {
    let mut l2 = contained(worker());
    let level2 = peek(peek(l2.vmcb.get(NCR3)) & !0xfff) & !0xfff;
    let entry = level2 + (AREA >> 21) * 8;
    for _ in 0..50 {
        l2.vmcb.set(RIP, worker());
        l2.regs[reg::RCX] = 990;
        poke(entry, AREA | PS | if dice.below(2) == 0 { ALL } else { ALL & !W });
        l2.vmcb.set(TLB_CONTROL, dice.below(8));
        l2.vmcb.set(ASID, 1 + dice.below(6));
        for _ in 0..dice.below(4) {
            let (address, asid) = (dice.value(), dice.below(8) as u32);
            // A non-canonical address or an absent ASID may fault; that is fine.
            let fault = attempt!("invlpga rax, ecx", in("rax") address, in("ecx") asid);
            tally.faults += u32::from(fault.is_some());
        }
        enter(&mut l2, tally, 1);
    }
}

/// VMRUN while the second CPU writes to the VMCB.
fn race(dice: &mut Dice, tally: &mut Tally, wild: bool) {
    let mut l2 = contained(worker());
    let kept = l2.vmcb.get(NCR3);
    TARGET.store(l2.vmcb.0 | u64::from(wild), Relaxed);
    for _ in 0..20 {
        l2.vmcb.set(RIP, worker());
        l2.vmcb.set(NCR3, kept);
        l2.regs[reg::RCX] = dice.below(1000);
        enter(&mut l2, tally, 1);
    }
    TARGET.store(0, Relaxed);
}

/// SVM instructions in L2, intercepted or not, with wild operands.
fn svm_in_l2(dice: &mut Dice, tally: &mut Tally, wild: bool) {
    let codes = [
        code!("vmrun rax"),
        code!("vmload rax"),
        code!("vmsave rax"),
        code!("stgi"),
        code!("clgi"),
        code!("invlpga rax, ecx"),
        code!("skinit eax"),
    ];
    let at = codes[dice.below(codes.len() as u64) as usize];
    let mut l2 = contained(at);
    l2.vmcb.set(RAX, dice.value());
    if dice.below(2) == 0 {
        l2.vmcb.clear(EFER, cpu::SVME * dice.below(2));
    }
    // VMLOAD and VMSAVE without intercept reach L1-physical memory: only where the address is harmless to us.
    if wild || at == codes[5] {
        l2.vmcb.clear(MISC2, dice.next() & 0x7e);
    }
    enter(&mut l2, tally, 2);
}

fn start_second_cpu() {
    unsafe extern "C" {
        static ap_trampoline: u8;
        static ap_trampoline_end: u8;
    }
    let (from, to) = (&raw const ap_trampoline, &raw const ap_trampoline_end);
    // SAFETY: the page at 8000h is RAM that nobody uses; both labels bound the trampoline.
    unsafe { core::ptr::copy_nonoverlapping(from, 0x8000 as *mut u8, to.offset_from_unsigned(from)) };
    apic::start_others(8);
}

/// The second CPU: write to whatever VMCB is being run.
pub fn second_cpu() -> ! {
    let mut dice = Dice(0x5eed);
    let bare = cpu::bare_tcg();
    loop {
        let target = TARGET.load(Relaxed);
        if target == 0 {
            core::hint::spin_loop();
            continue;
        }
        let vmcb = Vmcb(target & !0xfff);
        let (offset, value) = (dice.below(0x698) & !7, dice.value());
        // Contained: leave alone what brings the first CPU back (intercepts, maps, INT_CTL, nCR3).
        let kept = offset < 0x50
            || (0x60..0x68).contains(&offset)
            || (0x90..0x98).contains(&offset)
            || offset == 0xb0;
        // The emulator reads control registers more than once at VMRUN, and loses its own host state over it.
        let fragile = bare && (0x4d0..0x560).contains(&offset);
        if target & 1 != 0 || !(kept || fragile) {
            vmcb.set(Field(offset, 8), value);
        }
        SCRIBBLES.fetch_add(1, Relaxed);
    }
}
