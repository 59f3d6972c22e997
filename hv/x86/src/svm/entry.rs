//! The world switch.
// UNSAFETY: VMRUN and its kin.
#![allow(unsafe_code)]

use crate::decode::Gprs;
use crate::policy::mitigation::Guards;
use crate::svm::guarded::{self, SpecCtrl};
use addr::Hpa;
use core::arch::asm;

#[cfg(target_os = "none")]
core::arch::global_asm!(
    r#"
    .text
    .balign 64
    # rdi = physical address of the VMCB, rsi = the guest's registers. GIF=0 before and after.
    # RAX and RSP of the guest are in the VMCB.
    .global svm_vmrun
svm_vmrun:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    push rsi
    mov rax, rdi
    mov rcx, [rsi + 0x08]
    mov rdx, [rsi + 0x10]
    mov rbx, [rsi + 0x18]
    mov rbp, [rsi + 0x28]
    mov rdi, [rsi + 0x38]
    mov r8,  [rsi + 0x40]
    mov r9,  [rsi + 0x48]
    mov r10, [rsi + 0x50]
    mov r11, [rsi + 0x58]
    mov r12, [rsi + 0x60]
    mov r13, [rsi + 0x68]
    mov r14, [rsi + 0x70]
    mov r15, [rsi + 0x78]
    mov rsi, [rsi + 0x30]
    vmrun rax
    # RAX is the VMCB's address again, RSP is ours, all else is the guest's.
    xchg rsi, [rsp]
    mov [rsi + 0x08], rcx
    mov [rsi + 0x10], rdx
    mov [rsi + 0x18], rbx
    mov [rsi + 0x28], rbp
    mov [rsi + 0x38], rdi
    mov [rsi + 0x40], r8
    mov [rsi + 0x48], r9
    mov [rsi + 0x50], r10
    mov [rsi + 0x58], r11
    mov [rsi + 0x60], r12
    mov [rsi + 0x68], r13
    mov [rsi + 0x70], r14
    mov [rsi + 0x78], r15
    pop rcx
    mov [rsi + 0x30], rcx
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    # What speculation may follow finds no guest values.
    xor ecx, ecx
    xor edx, edx
    xor r8d, r8d
    xor r9d, r9d
    xor r10d, r10d
    xor r11d, r11d
    ret
    "#
);

#[cfg(target_os = "none")]
unsafe extern "C" {
    fn svm_vmrun(vmcb: u64, gprs: *mut Gprs);
}

/// Runs the guest of the VMCB at `vmcb` until it exits. `gprs.regs[RAX]` and `[RSP]` are neither used nor
/// set: they are in the VMCB.
///
/// # Safety
/// GIF must be 0, the VMCB complete and ours, its tables granting only what the guest may reach.
#[cfg(target_os = "none")]
#[inline(always)]
pub unsafe fn vmrun(vmcb: Hpa, gprs: &mut Gprs) {
    // SAFETY: the caller vouches; the routine keeps the C ABI's registers.
    unsafe { svm_vmrun(vmcb.raw(), gprs) };
}

/// There is nothing to run on the host.
///
/// # Safety
/// Never called.
#[cfg(not(target_os = "none"))]
pub unsafe fn vmrun(_vmcb: Hpa, _gprs: &mut Gprs) {
    unreachable!("no guest runs on the host");
}

/// Runs the guest of the VMCB at `at`, whose page the caller owns.
#[inline(always)]
pub fn run(at: Hpa, gprs: &mut Gprs, guards: Guards, spec: &mut SpecCtrl) {
    // SAFETY: callers are in the first tier (GIF=0) with a VMCB that `VcpuState::new` or the merge for an L2
    // has composed: nested paging on tables of the domain, and all required intercepts. `guards` is the plan's for
    // this machine.
    unsafe {
        if guards.around_vmrun() {
            guarded::vmrun(at, gprs, guards, spec);
        } else {
            vmrun(at, gprs);
        }
    }
}

/// Sets GIF: interrupts, NMIs and machine checks are taken.
#[inline(always)]
pub fn stgi() {
    // SAFETY: SVME is set on every CPU that runs guests; Testudo's TR and IDT are loaded by then.
    unsafe { asm!("stgi", options(nostack)) };
}

/// Clears GIF.
#[inline(always)]
pub fn clgi() {
    // SAFETY: SVME is set.
    unsafe { asm!("clgi", options(nostack)) };
}

/// Loads FS, GS, TR, LDTR, KERNEL_GS_BASE and the SYSCALL and SYSENTER MSRs from the VMCB at `vmcb`.
///
/// # Safety
/// GIF must be 0 if the state is a guest's; `vmcb` must be RAM.
#[inline(always)]
pub unsafe fn vmload(vmcb: Hpa) {
    // SAFETY: the caller vouches; Testudo uses none of that state but TR, and that only with GIF=1.
    unsafe { asm!("vmload rax", in("rax") vmcb.raw(), options(nostack, preserves_flags)) };
}

/// Stores the same state to the VMCB at `vmcb`.
///
/// # Safety
/// `vmcb` must be RAM of which nobody holds a reference.
#[inline(always)]
pub unsafe fn vmsave(vmcb: Hpa) {
    // SAFETY: the caller vouches.
    unsafe { asm!("vmsave rax", in("rax") vmcb.raw(), options(nostack, preserves_flags)) };
}

/// Makes the local APIC look again whether an interrupt waits. QEMU's emulation can forget one that arrives on another
/// thread just as a guest is entered or left.
#[inline]
pub fn look_for_interrupts() {
    // SAFETY: Testudo's own task priority is 0 always.
    unsafe { asm!("mov cr8, {}", in(reg) 0u64, options(nomem, nostack, preserves_flags)) };
}

/// Drops the translations of one linear address of hardware ASID `asid`.
pub fn invlpga(address: u64, asid: u32) {
    // SAFETY: dropping a translation is always allowed; SVME is set.
    unsafe { asm!("invlpga", in("rax") address, in("ecx") asid, options(nostack, preserves_flags)) };
}
