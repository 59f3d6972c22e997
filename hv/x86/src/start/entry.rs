//! The first instructions: from GRUB's 32-bit hand-over to [`super::start`] in long mode.
//!
//! GRUB enters the same way on BIOS and on UEFI (boot services already left): EAX = magic, EBX = info
//! block, flat 32-bit protected mode, paging off (Multiboot2 Specification 2.0, "I386 machine state").
//! The code below runs at its physical address, builds a first map (the low 4 GiB at 0, at the direct
//! map's base, and the image at its linked address) and never returns.
// UNSAFETY: entry code is assembly by nature; nothing of it is called from Rust.
#![allow(unsafe_code)]

use core::arch::global_asm;

/// Flags, in the early map, of a 2 MiB leaf: present, writable, page size.
const LEAF: u32 = 0x83;
/// Present, writable.
const TABLE: u32 = 0x03;

global_asm!(
    r#"
    .section .multiboot2, "a"
    .balign 8
mb2_header:
    .long 0xe85250d6                        # magic
    .long 0                                 # architecture: i386 protected mode
    .long mb2_header_end - mb2_header
    .long 0 - 0xe85250d6 - (mb2_header_end - mb2_header)
    .balign 8
    .short 1, 0                             # information request, required
    .long 16
    .long 6                                 # memory map
    .long 3                                 # modules
    .balign 8
    .short 6, 0                             # modules are page aligned
    .long 8
    .balign 8
    .short 4, 1                             # console: EGA text is understood (optional)
    .long 12
    .long 2
    .balign 8
    .short 5, 1                             # framebuffer: no preference (optional)
    .long 20
    .long 0, 0, 0
    .balign 8
    .short 0, 0
    .long 8
mb2_header_end:

    .section .boot.text, "ax"
    .code32
    .global mb2_entry
mb2_entry:
    cli
    cld
    mov edi, eax                            # the magic survives until long mode
    mov esi, ebx                            # so does the info block
    mov esp, offset boot32_stack_top

    # A CPU without long mode cannot print our log: say it where every PC can.
    mov eax, 0x80000000
    cpuid
    cmp eax, 0x80000001
    jb 9f
    mov eax, 0x80000001
    cpuid
    bt edx, 29
    jnc 9f
    rdtsc                                   # when the loader let go: on top of this stack for `boot64`
    push edx
    push eax

    # 2048 leaves of 2 MiB: the first 4 GiB.
    mov eax, {leaf}
    mov ebx, offset early_pd
    xor ecx, ecx
1:  mov [ebx + ecx * 8], eax
    mov dword ptr [ebx + ecx * 8 + 4], 0
    add eax, 0x200000
    inc ecx
    cmp ecx, 2048
    jne 1b
    # PDPT of the low 4 GiB.
    mov eax, offset early_pd + {table}
    mov ebx, offset early_pdpt
    mov [ebx], eax
    add eax, 0x1000
    mov [ebx + 8], eax
    add eax, 0x1000
    mov [ebx + 16], eax
    add eax, 0x1000
    mov [ebx + 24], eax
    # PDPT of the top 2 GiB: the image lies in the first GiB.
    mov eax, offset early_pd + {table}
    mov ebx, offset early_pdpt_top
    mov [ebx + 510 * 8], eax
    # PML4: slot 0 (here we run), slot 256 (direct map), slot 511 (image).
    mov ebx, offset early_pml4
    mov eax, offset early_pdpt + {table}
    mov [ebx], eax
    mov [ebx + 256 * 8], eax
    mov eax, offset early_pdpt_top + {table}
    mov [ebx + 511 * 8], eax

    mov eax, cr4
    or eax, 0x20                            # PAE
    mov cr4, eax
    mov eax, offset early_pml4
    mov cr3, eax
    mov ecx, 0xc0000080                     # EFER
    rdmsr
    or eax, 0x900                           # LME, NXE
    wrmsr
    mov eax, cr0
    and eax, 0x9ffffff3                     # CD, NW, EM, TS off: caches and FPU state as we need them
    or eax, 0x80010003                      # PG, WP, MP, PE
    mov cr0, eax
    lgdt [early_gdt_pointer]
    jmp 0x08, offset boot64

    # "Testudo: this CPU has no 64-bit mode" to VGA text and COM1, then stop.
9:  mov esi, offset no_long_mode
    mov edi, 0xb8000
    mov dx, 0x3f8
2:  lodsb
    test al, al
    jz 3f
    mov ah, 0x4f
    mov [edi], ax
    add edi, 2
    out dx, al
    jmp 2b
3:  hlt
    jmp 3b

    .code64
boot64:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    xor eax, eax
    mov fs, ax
    mov gs, ax
    movabs rsp, offset {stack} + {stack_top}
    mov edi, edi
    mov esi, esi
    xor ebp, ebp
    mov edx, offset boot32_stack_top - 8
    mov rdx, [rdx]
    movabs rax, offset {start}
    call rax
4:  hlt
    jmp 4b

    # Where an application processor lands in long mode: its stack comes in by `AP_STACK`.
    .section .boot.data, "aw"
    .balign 16
    .global early_gdt
early_gdt:
    .quad 0
    .quad 0x00af9b000000ffff                # 08: 64-bit code
    .quad 0x00cf93000000ffff                # 10: data
    .quad 0x00cf9b000000ffff                # 18: 32-bit code (AP trampoline)
early_gdt_pointer:
    .short 31
    .long early_gdt
no_long_mode:
    .asciz "Testudo: this CPU has no 64-bit mode; Testudo needs an x86-64 CPU with AMD SVM and nested paging."

    .section .boot.bss, "aw"
    .balign 4096
    .global early_pml4
early_pml4:     .skip 4096
early_pdpt:     .skip 4096
early_pdpt_top: .skip 4096
early_pd:       .skip 4096 * 4
boot32_stack:   .skip 1024
boot32_stack_top:
    .text
    "#,
    leaf = const LEAF,
    table = const TABLE,
    stack = sym super::BOOT_STACK,
    stack_top = const crate::cpu::stack::BLOCK_BYTES - 16,
    start = sym super::start,
);
