# PVH entry (32-bit, paging off, EBX = hvm_start_info) and the application processor's entry (real mode, at 8000h).
# Both end in 64-bit mode on identity page tables of 2 MiB pages for the first 4 GiB, open to user mode.

    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 4, 18                      # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long entry32

    .section .text.boot, "ax"
    .code32
    .globl entry32
entry32:
    cli
    cld
    mov esp, offset boot_stack_top
    mov ebp, ebx
    # PML4[0] -> PDPT; PDPT[0..4] -> four page directories
    mov eax, offset boot_pdpt + 7
    mov [boot_pml4], eax
    mov eax, offset boot_pd + 7
    mov edi, offset boot_pdpt
    mov ecx, 4
2:  mov [edi], eax
    add eax, 0x1000
    add edi, 8
    dec ecx
    jnz 2b
    # 2048 large pages; from FC000000h on uncached (local APIC)
    mov eax, 0x87
    mov edi, offset boot_pd
    mov ecx, 2048
3:  cmp eax, 0xfc000000
    jb 4f
    or eax, 0x18
4:  mov [edi], eax
    add eax, 0x200000
    add edi, 8
    dec ecx
    jnz 3b
    lgdt [boot_gdtr]
    call enable_long_mode
    push 8
    mov eax, offset entry64
    push eax
    retf

# CR4.PAE, CR3, EFER.LME|NXE, CR0.PG|WP|NE|ET|PE
enable_long_mode:
    mov eax, 0x20
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x900
    wrmsr
    mov eax, 0x80010031
    mov cr0, eax
    ret

    .code64
entry64:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov edi, ebp
    mov rsp, offset boot_stack_top
    call rust_main
5:  hlt
    jmp 5b

# Copied to 8000h; runs with CS = 0800h.
    .code16
    .globl ap_trampoline, ap_trampoline_end
ap_trampoline:
    .byte 0xeb, 14                      # over the GDT pointer, which lies at 8008h
    .skip 6
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt
    .skip 2
    cli
    xor ax, ax
    mov ds, ax
    .byte 0x66                          # 32-bit base
    lgdt [0x8008]
    mov eax, 0x11
    mov cr0, eax
    .byte 0x66, 0xea                    # ljmp 18h:ap32
    .long ap32
    .word 0x18
ap_trampoline_end:

    .code32
ap32:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, offset ap_stack_top
    call enable_long_mode
    push 8
    mov eax, offset ap64
    push eax
    retf
    .code64
ap64:
    mov rsp, offset ap_stack_top
    call rust_ap_main
6:  hlt
    jmp 6b

    .section .data.boot, "aw"
    .balign 16
    .globl boot_gdt, boot_gdt_end
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff            # 08 64-bit code
    .quad 0x00cf93000000ffff            # 10 data
    .quad 0x00cf9b000000ffff            # 18 32-bit code
    .quad 0x00cff3000000ffff            # 20 user data
    .quad 0x00affb000000ffff            # 28 user 64-bit code
    .quad 0, 0                          # 30 TSS, filled in later
    .quad 0, 0                          # 40 TSS of the second CPU
boot_gdt_end:
boot_gdtr:
    .word boot_gdt_end - boot_gdt - 1
    .quad boot_gdt

    .section .bss.boot, "aw", @nobits
    .balign 4096
    .globl boot_pml4
boot_pml4:
    .skip 4096
boot_pdpt:
    .skip 4096
boot_pd:
    .skip 4096 * 4
boot_stack:
    .skip 65536
boot_stack_top:
ap_stack:
    .skip 32768
ap_stack_top:
