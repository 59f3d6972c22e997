//! Interrupts and exceptions taken by Testudo itself.
//!
//! Handlers of interrupts only acknowledge and set a bit of the CPU's pending word: they take no lock, so
//! code may be interrupted anywhere with GIF=1. An exception in Testudo is our bug: it ends in a panic,
//! but for the few instructions that may fault by design (`probe`).
// UNSAFETY: entry stubs.
#![allow(unsafe_code)]

use crate::cpu::{instr, percpu};
use core::fmt;

/// Registers as the stub pushed them.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Frame {
    /// R15 … RAX in the order of the pushes.
    pub r15: u64,
    /// R14.
    pub r14: u64,
    /// R13.
    pub r13: u64,
    /// R12.
    pub r12: u64,
    /// R11.
    pub r11: u64,
    /// R10.
    pub r10: u64,
    /// R9.
    pub r9: u64,
    /// R8.
    pub r8: u64,
    /// RBP, the head of the frame chain.
    pub rbp: u64,
    /// RDI.
    pub rdi: u64,
    /// RSI.
    pub rsi: u64,
    /// RDX.
    pub rdx: u64,
    /// RCX.
    pub rcx: u64,
    /// RBX.
    pub rbx: u64,
    /// RAX.
    pub rax: u64,
    /// Vector number.
    pub vector: u64,
    /// Error code, or 0 where the vector has none.
    pub error: u64,
    /// Where it happened.
    pub rip: u64,
    /// Code segment.
    pub cs: u64,
    /// Flags.
    pub rflags: u64,
    /// Stack pointer before.
    pub rsp: u64,
    /// Stack segment.
    pub ss: u64,
}

/// Vectors that Testudo uses. Exceptions are below 32; the 8259s are parked at 0x20.
pub mod vector {
    /// First vector of the remapped, masked 8259s: only spurious ones arrive.
    pub const PIC_BASE: u8 = 0x20;
    /// The console's serial line.
    pub const SERIAL: u8 = 0x38;
    /// Local APIC timer.
    pub const TIMER: u8 = 0xf0;
    /// Another CPU wants this one to look at its pending word.
    pub const KICK: u8 = 0xf1;
    /// Local APIC error.
    pub const APIC_ERROR: u8 = 0xf2;
    /// Local APIC spurious.
    pub const SPURIOUS: u8 = 0xff;
}

#[cfg(target_os = "none")]
core::arch::global_asm!(
    r#"
    .text
    .balign 16
    .global trap_stubs
trap_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    push 0
    .endif
    push vector
    jmp trap_common
    .set vector, vector + 1
    .endr

trap_common:
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp
    mov rbp, rsp
    and rsp, -16
    call {handle}
    .global trap_returns_to
trap_returns_to:                            # here RBP points to the saved registers, not to a frame
    mov rsp, rbp
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
    add rsp, 16
    iretq
    "#,
    handle = sym handle,
);

#[cfg(target_os = "none")]
unsafe extern "C" {
    static trap_stubs: [u8; 4096];
    static trap_returns_to: u8;
}

/// Where `handle` returns to: in a backtrace, what is above is a [`Frame`].
#[cfg(target_os = "none")]
pub fn returns_to() -> u64 {
    (&raw const trap_returns_to) as u64
}

/// On the host there are no stubs.
#[cfg(not(target_os = "none"))]
pub fn returns_to() -> u64 {
    0
}

/// Address of the stub of `vector`.
#[cfg(target_os = "none")]
pub fn stub(vector: u8) -> u64 {
    (&raw const trap_stubs) as u64 + u64::from(vector) * 16
}

/// On the host there are no stubs; tests never load an IDT.
#[cfg(not(target_os = "none"))]
pub fn stub(_vector: u8) -> u64 {
    0
}

/// Instructions of ours that may fault, and where to go on: (address, address).
#[cfg(target_os = "none")]
fn fixup(rip: u64) -> Option<u64> {
    probe::FIXUPS.iter().map(|f| f()).find(|&(at, _)| at == rip).map(|(_, to)| to)
}

#[cfg(not(target_os = "none"))]
#[allow(dead_code, reason = "only the image's entry code calls it")]
fn fixup(_rip: u64) -> Option<u64> {
    None
}

#[cfg_attr(not(target_os = "none"), allow(dead_code, reason = "only the image's entry code calls it"))]
extern "C" fn handle(frame: &mut Frame) {
    match frame.vector as u8 {
        vector::TIMER => {
            percpu::this().pend(percpu::Pending::TIMER);
            crate::apic::eoi();
        }
        vector::KICK => {
            percpu::this().pend(percpu::Pending::KICK);
            crate::apic::eoi();
        }
        vector::SERIAL => {
            percpu::this().pend(percpu::Pending::SERIAL);
            crate::apic::eoi();
        }
        vector::APIC_ERROR => {
            crate::apic::log_error();
            crate::apic::eoi();
        }
        // A spurious vector needs no EOI (APM vol. 2, "Spurious Interrupts").
        vector::SPURIOUS => {}
        2 => crate::nmi::handle(frame),
        18 => crate::mce::handle(frame),
        v if v < 32 => match fixup(frame.rip) {
            Some(to) => frame.rip = to,
            None => exception(frame),
        },
        v if (vector::PIC_BASE..vector::PIC_BASE + 16).contains(&v) => {
            crate::apic::pic::spurious(v - vector::PIC_BASE)
        }
        v => {
            crate::apic::log_unowned(v);
            crate::apic::eoi();
        }
    }
}

#[cfg_attr(not(target_os = "none"), allow(dead_code, reason = "only the image's entry code calls it"))]
fn exception(frame: &Frame) -> ! {
    crate::report::exception(frame, format_args!("unexpected exception in Testudo"))
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "rip {:#018x} rsp {:#018x} rflags {:#x} cs {:#x} ss {:#x} cr0 {:#x} cr2 {:#x} cr4 {:#x}",
            self.rip,
            self.rsp,
            self.rflags,
            self.cs,
            self.ss,
            instr::read_cr0(),
            instr::read_cr2(),
            instr::read_cr4(),
        )?;
        let rows = [
            [("rax", self.rax), ("rbx", self.rbx), ("rcx", self.rcx), ("rdx", self.rdx)],
            [("rsi", self.rsi), ("rdi", self.rdi), ("rbp", self.rbp), ("r8 ", self.r8)],
            [("r9 ", self.r9), ("r10", self.r10), ("r11", self.r11), ("r12", self.r12)],
            [("r13", self.r13), ("r14", self.r14), ("r15", self.r15), ("cr3", instr::read_cr3())],
        ];
        for row in rows {
            for (name, value) in row {
                write!(f, "{name} {value:016x}  ")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// The manual's mnemonic of an exception vector.
pub fn name(vector: u64) -> &'static str {
    const NAMES: [&str; 32] = [
        "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "?", "#TS", "#NP", "#SS", "#GP",
        "#PF", "?", "#MF", "#AC", "#MC", "#XF", "?", "#CP", "?", "?", "?", "?", "?", "?", "#HV", "#VC",
        "#SX", "?",
    ];
    NAMES.get(vector as usize).copied().unwrap_or("interrupt")
}

/// Instructions that may fault by design.
pub mod probe {
    #[cfg(target_os = "none")]
    use core::arch::global_asm;

    #[cfg(target_os = "none")]
    global_asm!(
        r#"
    .text
    .global probe_rdmsr
probe_rdmsr:                                # edi = msr, rsi = *mut u64; returns 1 if it exists
    mov ecx, edi
    .global probe_rdmsr_at
probe_rdmsr_at:
    rdmsr
    mov [rsi], eax
    mov [rsi + 4], edx
    mov eax, 1
    ret
    .global probe_wrmsr
probe_wrmsr:                                # edi = msr, rsi = value; returns 1 if accepted
    mov ecx, edi
    mov eax, esi
    mov rdx, rsi
    shr rdx, 32
    .global probe_wrmsr_at
probe_wrmsr_at:
    wrmsr
    mov eax, 1
    ret
    .global probe_failed
probe_failed:
    xor eax, eax
    ret
    "#
    );

    #[cfg(target_os = "none")]
    unsafe extern "C" {
        fn probe_rdmsr(msr: u32, out: *mut u64) -> u32;
        fn probe_wrmsr(msr: u32, value: u64) -> u32;
        fn probe_rdmsr_at();
        fn probe_wrmsr_at();
        fn probe_failed();
    }

    #[cfg(target_os = "none")]
    pub(super) const FIXUPS: [fn() -> (u64, u64); 2] = [
        || (probe_rdmsr_at as *const () as u64, probe_failed as *const () as u64),
        || (probe_wrmsr_at as *const () as u64, probe_failed as *const () as u64),
    ];

    /// Reads an MSR that may not exist.
    #[cfg(target_os = "none")]
    pub fn rdmsr(msr: u32) -> Option<u64> {
        let mut value = 0;
        // SAFETY: a #GP is caught by the fixup; reading an MSR has no side effect Testudo minds.
        (unsafe { probe_rdmsr(msr, &mut value) } == 1).then_some(value)
    }

    /// Writes an MSR that may not exist or may refuse the value; whether it was taken.
    ///
    /// # Safety
    /// If taken, the value's effect must be one Testudo is ready for.
    #[cfg(target_os = "none")]
    pub unsafe fn wrmsr(msr: u32, value: u64) -> bool {
        // SAFETY: a #GP is caught by the fixup; the caller vouches for the effect.
        unsafe { probe_wrmsr(msr, value) == 1 }
    }

    /// No MSR exists on the host.
    #[cfg(not(target_os = "none"))]
    pub fn rdmsr(_msr: u32) -> Option<u64> {
        None
    }

    /// No MSR exists on the host.
    ///
    /// # Safety
    /// Always safe here.
    #[cfg(not(target_os = "none"))]
    pub unsafe fn wrmsr(_msr: u32, _value: u64) -> bool {
        false
    }
}
