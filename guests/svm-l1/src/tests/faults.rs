//! Which faults SVM's instructions and MSRs raise in L1 itself (APM vol. 3, "System Instruction Reference"; vol. 2,
//! "SVM Related MSRs").

use core::arch::naked_asm;

use crate::runner::Runner;
use crate::trap::{self, Fault, GP, UD};
use crate::{arena, attempt, check, check_eq, cpu};

/// One instruction, in kernel and in user mode: RAX holds a good page address.
struct Insn {
    name: &'static str,
    kernel: fn(u64) -> Option<Fault>,
    user: extern "C" fn(),
    takes_address: bool,
}

macro_rules! insns {
    ($($name:ident $text:literal $address:literal;)*) => {
        &[$({
            #[unsafe(naked)]
            extern "C" fn user() {
                naked_asm!($text, "ud2")
            }
            fn kernel(rax: u64) -> Option<Fault> {
                attempt!($text, in("rax") rax, in("rcx") 0)
            }
            Insn { name: stringify!($name), kernel, user, takes_address: $address }
        }),*]
    };
}

const INSNS: &[Insn] = insns! {
    vmrun   "vmrun rax"        true;
    vmload  "vmload rax"       true;
    vmsave  "vmsave rax"       true;
    stgi    "stgi"             false;
    clgi    "clgi"             false;
    invlpga "invlpga rax, ecx" false;
};

fn set_svme(on: bool) {
    let efer = cpu::rdmsr(cpu::EFER);
    cpu::wrmsr(cpu::EFER, if on { efer | cpu::SVME } else { efer & !cpu::SVME });
}

fn wrmsr(msr: u32, value: u64) -> Option<Fault> {
    attempt!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32)
}

pub fn run(r: &mut Runner<'_>) {
    for i in INSNS {
        let name = |what: &'static str| crate::runner::Text::new(format_args!("{}_{what}", i.name));
        r.case("faults", name("without_svme").as_str(), None, || {
            set_svme(false);
            check_eq!("fault", (i.kernel)(arena::page()), UD);
            Ok(())
        });
        r.case("faults", name("user_mode").as_str(), None, || {
            check_eq!("fault", trap::in_user_mode(i.user as *const () as u64, arena::page()), GP);
            Ok(())
        });
        r.case("faults", name("user_mode_without_svme").as_str(), None, || {
            set_svme(false);
            check_eq!("fault", trap::in_user_mode(i.user as *const () as u64, arena::page()), UD);
            Ok(())
        });
        if i.takes_address {
            r.case("faults", name("misaligned").as_str(), None, || {
                check_eq!("fault", (i.kernel)(arena::page() + 0x10), GP);
                Ok(())
            });
            r.case("faults", name("beyond_maxphys").as_str(), None, || {
                check_eq!("fault", (i.kernel)(1 << cpu::maxphys()), GP);
                Ok(())
            });
        }
    }
    registers(r);
    r.case("faults", "vmmcall_without_hypervisor", None, || {
        // Under Testudo (or Xen) an unknown hypercall returns -ENOSYS, and SVME does not matter.
        set_svme(false);
        let result: u64;
        let fault = attempt!("vmmcall", inout("rax") 0x7777_u64 => result);
        if crate::xen_leaves() {
            check_eq!("result", (fault, result), (None, -38i64 as u64));
        } else {
            check_eq!("fault", fault, UD);
        }
        Ok(())
    });
}

fn registers(r: &mut Runner<'_>) {
    r.case("faults", "hsave_misaligned", None, || {
        check_eq!("fault", wrmsr(cpu::VM_HSAVE_PA, arena::page() + 8), GP);
        Ok(())
    });
    r.case("faults", "hsave_beyond_maxphys", None, || {
        check_eq!("fault", wrmsr(cpu::VM_HSAVE_PA, 1 << cpu::maxphys()), GP);
        Ok(())
    });
    r.case("faults", "hsave_reads_back", None, || {
        let page = arena::page();
        check_eq!("fault", wrmsr(cpu::VM_HSAVE_PA, page), None);
        check_eq!("value", cpu::rdmsr(cpu::VM_HSAVE_PA), page);
        Ok(())
    });
    r.case("faults", "efer_reserved_bit", Some("reserved bits are dropped"), || {
        check_eq!("fault", wrmsr(cpu::EFER, cpu::rdmsr(cpu::EFER) | 1 << 40), GP);
        Ok(())
    });
    r.case("faults", "efer_svme_reads_back", None, || {
        set_svme(false);
        check_eq!("off", cpu::rdmsr(cpu::EFER) & cpu::SVME, 0);
        set_svme(true);
        check_eq!("on", cpu::rdmsr(cpu::EFER) & cpu::SVME, cpu::SVME);
        Ok(())
    });
    r.case("faults", "vm_cr_allows_svm", None, || {
        let (low, fault): (u64, _);
        let value: u64;
        fault = attempt!("rdmsr", in("ecx") cpu::VM_CR, out("rax") value, out("rdx") _);
        low = value;
        check_eq!("fault", fault, None);
        check_eq!("VM_CR.SVMDIS", low & 1 << 4, 0);
        Ok(())
    });
    r.case("faults", "cpuid_leaf", None, || {
        let [revision, asids, reserved, _] = cpu::cpuid(0x8000_000a, 0);
        check_eq!("revision", revision & 0xff, 1);
        check!(asids >= 2, "{asids} ASIDs");
        check_eq!("ecx", reserved, 0);
        Ok(())
    });
}
