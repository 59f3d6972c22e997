//! The world switch with barriers, for processors and operators that ask for any ([`Guards`]).
//!
//! A routine of its own, so that the other one stays free of them: which of both runs is decided before the entry, and
//! the exit returns into the same. The flags are tested behind the exit by branches that a guest may have trained; an
//! LFENCE behind them all lets no speculation past a barrier, before the first indirect branch or return.
// UNSAFETY: VMRUN and model-specific registers.
#![allow(unsafe_code)]

use crate::decode::Gprs;
use crate::policy::mitigation::Guards;
use addr::Hpa;

/// A vCPU's SPEC_CTRL and ours, where they are swapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SpecCtrl {
    /// The guest's, while it does not run: L1's and L2's, as they share the register.
    pub guest: u64,
    /// Ours.
    pub host: u64,
}

#[cfg(target_os = "none")]
core::arch::global_asm!(
    r#"
    .text
    .balign 64
    # rdi = physical address of the VMCB, rsi = the guest's registers, rdx = Guards, rcx = SpecCtrl. GIF=0 before and
    # after. RAX and RSP of the guest are in the VMCB.
    .global svm_vmrun_guarded
svm_vmrun_guarded:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    push rcx
    push rdx
    push rsi
    test byte ptr [rsp + 8], {SWAP}
    jz 1f
    mov r8, rcx
    mov rax, [r8]
    cmp rax, [r8 + 8]
    je 1f
    mov rdx, rax
    shr rdx, 32
    mov ecx, 0x48
    wrmsr
1:  test byte ptr [rsp + 8], {DIV}
    jz 2f
    # The divider keeps what it divided last.
    xor eax, eax
    xor edx, edx
    mov ecx, 1
    div ecx
2:  mov rax, rdi
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
    test byte ptr [rsp + 8], {VERW}
    jz 3f
    # Last, so that nothing of ours is loaded behind it. Only the form with a memory operand clears.
    verw word ptr [rip + {selector}]
3:  vmrun rax
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
    pop rbx
    pop rbp
    test bl, {SWAP}
    jz 4f
    mov ecx, 0x48
    rdmsr
    mov [rbp], eax
    mov [rbp + 4], edx
    mov rax, [rbp + 8]
    cmp rax, [rbp]
    je 4f
    mov rdx, rax
    shr rdx, 32
    wrmsr
4:  test bl, {IBPB}
    jz 5f
    mov ecx, 0x49
    mov eax, {barrier}
    xor edx, edx
    wrmsr
    # Behind the barrier, which on some processors leaves the return stack as it is.
5:  test bl, {RSB}
    jz 6f
    .rept 32
    call 8f
7:  pause
    lfence
    jmp 7b
8:
    .endr
    add rsp, 32 * 8
6:  lfence
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
    "#,
    SWAP = const Guards::SWAP.bits(),
    IBPB = const Guards::IBPB.bits(),
    RSB = const Guards::RSB.bits(),
    VERW = const Guards::VERW.bits(),
    DIV = const Guards::DIV.bits(),
    barrier = const crate::policy::mitigation::pred_cmd::IBPB,
    selector = sym SELECTOR,
);

/// A writable data segment's selector, for VERW.
#[cfg(target_os = "none")]
static SELECTOR: u16 = crate::cpu::desc::DS;

#[cfg(target_os = "none")]
unsafe extern "C" {
    fn svm_vmrun_guarded(vmcb: u64, gprs: *mut Gprs, guards: u64, spec: *mut SpecCtrl);
}

/// As [`vmrun`](super::entry::vmrun), with what `guards` asks for around it.
///
/// # Safety
/// As there; and the processor has the registers that `guards` speaks of.
#[cfg(target_os = "none")]
#[inline(always)]
pub unsafe fn vmrun(vmcb: Hpa, gprs: &mut Gprs, guards: Guards, spec: &mut SpecCtrl) {
    // SAFETY: the caller vouches; the routine keeps the C ABI's registers.
    unsafe { svm_vmrun_guarded(vmcb.raw(), gprs, guards.bits(), spec) };
}

/// There is nothing to run on the host.
///
/// # Safety
/// Never called.
#[cfg(not(target_os = "none"))]
pub unsafe fn vmrun(_vmcb: Hpa, _gprs: &mut Gprs, _guards: Guards, _spec: &mut SpecCtrl) {
    unreachable!("no guest runs on the host");
}
