//! The virtual machine: KVM's objects, the CPUs' first state, and the CPUID they see.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_pit_config, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use crate::loader::{self, Entry};
use crate::memory::Ram;

/// A page triple for Intel's real-mode helper; any hole will do.
const TSS: usize = 0xfffb_d000;

/// Turn a KVM error into a sentence.
pub fn failed(what: &str) -> impl FnOnce(kvm_ioctls::Error) -> String + '_ {
    move |e| format!("{what}: {e}")
}

/// Open `/dev/kvm`.
///
/// # Errors
/// It is not there, or is not ours to use.
pub fn open() -> Result<Kvm, String> {
    Kvm::new().map_err(failed("/dev/kvm"))
}

/// A VM with `ram` and in-kernel APICs, I/O APIC and PIT.
///
/// # Errors
/// KVM refused.
pub fn create(kvm: &Kvm, ram: &Ram) -> Result<VmFd, String> {
    let vm = kvm.create_vm().map_err(failed("create VM"))?;
    vm.set_tss_address(TSS).map_err(failed("TSS address"))?;
    vm.create_irq_chip().map_err(failed("interrupt controllers"))?;
    vm.create_pit2(kvm_pit_config::default()).map_err(failed("PIT"))?;
    ram.register(&vm)?;
    Ok(vm)
}

/// The CPUID of vCPU `id` of `count`: what KVM supports, with APIC ids and topology filled in.
///
/// # Errors
/// KVM refused.
pub fn cpuid(kvm: &Kvm, id: u32, count: u32) -> Result<CpuId, String> {
    let mut table = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("supported CPUID"))?;
    let deadline_timer = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in table.as_mut_slice() {
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0xffff | count.min(255) << 16 | id << 24;
                entry.ecx |= 1 << 31;
                if deadline_timer {
                    entry.ecx |= 1 << 24;
                }
                entry.edx = entry.edx & !(1 << 28) | u32::from(count > 1) << 28;
            }
            // Each vCPU a package: no shared caches, no siblings, to be told apart by APIC id alone.
            4 => entry.eax &= 0x3fff,
            0xb | 0x1f => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, entry.index, id),
            0x8000_0008 => entry.ecx &= 0xffff_0000,
            0x8000_001e => entry.eax = id,
            _ => {}
        }
    }
    Ok(table)
}

fn segment(kind: u8, selector: u16, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

/// CR0.PE and CR0.ET.
const CR0_PROTECTED: u64 = 0x11;
/// CR0.PG.
const CR0_PG: u64 = 1 << 31;

/// Flat protected mode without paging.
pub fn protected_mode(sregs: &mut kvm_sregs) {
    sregs.cs = segment(0xb, 0x8, false);
    for data in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *data = segment(3, 0x10, false);
    }
    sregs.tr = kvm_segment { limit: 0x67, type_: 0xb, s: 0, g: 0, db: 0, ..segment(0xb, 0, false) };
    sregs.cr0 = CR0_PROTECTED;
    sregs.cr4 = 0;
    sregs.efer = 0;
}

/// 64-bit mode on the identity page tables; selectors 10h and 18h as Linux's 64-bit protocol wants them.
pub fn long_mode(sregs: &mut kvm_sregs) {
    protected_mode(sregs);
    sregs.cs = segment(0xb, 0x10, true);
    for data in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *data = segment(3, 0x18, false);
    }
    sregs.gdt.base = loader::GDT;
    sregs.gdt.limit = 31;
    sregs.cr3 = loader::PAGE_TABLES;
    sregs.cr4 = 1 << 5; // PAE
    sregs.cr0 = CR0_PROTECTED | CR0_PG;
    sregs.efer = 1 << 8 | 1 << 10; // LME, LMA
}

/// The descriptors behind [`long_mode`]'s selectors.
pub const GDT_ENTRIES: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Put the boot CPU at the kernel's entry.
///
/// # Errors
/// KVM refused.
pub fn enter(vcpu: &VcpuFd, entry: Entry) -> Result<(), String> {
    let mut sregs = vcpu.get_sregs().map_err(failed("read registers"))?;
    let mut regs = kvm_regs { rflags: 2, ..Default::default() };
    match entry {
        Entry::Pvh { rip, info } => {
            protected_mode(&mut sregs);
            (regs.rip, regs.rbx) = (rip, info);
        }
        Entry::Linux64 { rip, params } => {
            long_mode(&mut sregs);
            (regs.rip, regs.rsi) = (rip, params);
        }
    }
    vcpu.set_sregs(&sregs).map_err(failed("set system registers"))?;
    vcpu.set_regs(&regs).map_err(failed("set registers"))
}
