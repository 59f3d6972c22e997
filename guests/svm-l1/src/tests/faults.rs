//! Which faults SVM's instructions and MSRs raise in L1 itself (APM vol. 3, "System Instruction Reference"; vol. 2,
//! "SVM Related MSRs").

use core::arch::naked_asm;

use crate::l2::{L2, reg};
use crate::runner::{Bad, Runner};
use crate::trap::{self, Fault, GP, UD};
use crate::vmcb::{MISC_CTL, RAX, exit};
use crate::{arena, attempt, check, check_eq, check_exit, code, cpu};

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

/// VM_CR.LOCK.
const LOCK: u64 = 1 << 3;
/// VM_CR.SVMDIS.
const SVMDIS: u64 = 1 << 4;

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

const SPEC_CTRL: u32 = 0x48;
const PRED_CMD: u32 = 0x49;

/// Whether there is a SPEC_CTRL (IBRS, STIBP, SSBD, PSFD), and an IBPB.
fn controls() -> (bool, bool) {
    let extended = cpu::cpuid(0x8000_0008, 0)[1];
    (extended & (1 << 14 | 1 << 15 | 1 << 24 | 1 << 28) != 0, extended & 1 << 12 != 0)
}

fn rdmsr(msr: u32) -> Option<Fault> {
    attempt!("rdmsr", in("ecx") msr, out("rax") _, out("rdx") _)
}

/// SPEC_CTRL and PRED_CMD (APM vol. 2, "Speculation Control MSRs").
fn speculation(r: &mut Runner<'_>) {
    r.case("spec", "registers_are_as_cpuid_says", Some("unknown registers are ignored"), || {
        let (spec_ctrl, ibpb) = controls();
        let fault = |there| if there { None } else { GP };
        let accesses = (rdmsr(SPEC_CTRL), wrmsr(SPEC_CTRL, 0));
        check_eq!("RDMSR, WRMSR of SPEC_CTRL", accesses, (fault(spec_ctrl), fault(spec_ctrl)));
        check_eq!("WRMSR of PRED_CMD", wrmsr(PRED_CMD, 1), fault(ibpb));
        check_eq!("RDMSR of PRED_CMD", rdmsr(PRED_CMD), GP);
        Ok(())
    });
    r.case("spec", "value_survives_exits_and_l2", None, || {
        if !controls().0 {
            return Err(Bad::Skipped("no SPEC_CTRL"));
        }
        // IBRS, STIBP or SSBD, whichever there is.
        let extended = cpu::cpuid(0x8000_0008, 0)[1];
        let bit = [(14, 1), (15, 2), (24, 4), (28, 0x80)].iter().find(|(n, _)| extended & 1 << n != 0);
        let value = bit.map_or(0, |(_, bit)| *bit);
        check_eq!("fault", wrmsr(SPEC_CTRL, value), None);
        if cpu::rdmsr(SPEC_CTRL) != value {
            return Err(Bad::Skipped("the emulator has no SPEC_CTRL"));
        }
        for _ in 0..100 {
            cpu::cpuid(0, 0);
        }
        check_eq!("after exits", cpu::rdmsr(SPEC_CTRL), value);
        let mut l2 = L2::new(code!("mov ecx, 0x48", "rdmsr", "mov ebx, eax", "xor eax, eax", "wrmsr"));
        check_exit!(l2, l2.run(), exit::VMMCALL);
        check_eq!("in L2", l2.regs[reg::RBX], value);
        check_eq!("after L2 has cleared it", cpu::rdmsr(SPEC_CTRL), 0);
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
    let ignored = Some("VM_CR is ignored");
    r.case("faults", "svmdis_keeps_svme_from_being_set", ignored, || {
        set_svme(false);
        check_eq!("setting SVMDIS", wrmsr(cpu::VM_CR, SVMDIS), None);
        check_eq!("VM_CR", cpu::rdmsr(cpu::VM_CR), SVMDIS);
        let fault = wrmsr(cpu::EFER, cpu::rdmsr(cpu::EFER) | cpu::SVME);
        let same = wrmsr(cpu::EFER, cpu::rdmsr(cpu::EFER));
        let insn = attempt!("vmload rax", in("rax") arena::page());
        check_eq!("clearing SVMDIS", wrmsr(cpu::VM_CR, 0), None);
        check_eq!("setting SVME, writing EFER back, VMLOAD", (fault, same, insn), (GP, None, UD));
        set_svme(true);
        check_eq!("SVME", cpu::rdmsr(cpu::EFER) & cpu::SVME, cpu::SVME);
        Ok(())
    });
    r.case("faults", "svmdis_under_svme", ignored, || {
        check_eq!("fault", wrmsr(cpu::VM_CR, SVMDIS), GP);
        check_eq!("VM_CR", cpu::rdmsr(cpu::VM_CR), 0);
        Ok(())
    });
    r.case("faults", "vm_cr_locked", ignored, || {
        // For good: only a reset clears LOCK.
        set_svme(false);
        check_eq!("setting LOCK", wrmsr(cpu::VM_CR, LOCK), None);
        check_eq!("setting SVMDIS", wrmsr(cpu::VM_CR, SVMDIS), None);
        check_eq!("VM_CR", cpu::rdmsr(cpu::VM_CR), LOCK);
        set_svme(true);
        check_eq!("setting SVMDIS under SVME", wrmsr(cpu::VM_CR, SVMDIS), GP);
        Ok(())
    });
    speculation(r);
    r.case("faults", "invlpgb_and_tlbsync_are_hidden", None, || {
        check_eq!("CPUID 8000_0008", cpu::cpuid(0x8000_0008, 0)[1] & 1 << 3, 0);
        let invlpgb = attempt!(".byte 0x0f, 0x01, 0xfe", in("rax") 0, in("ecx") 0, in("edx") 0);
        check_eq!("INVLPGB, TLBSYNC in L1", (invlpgb, attempt!(".byte 0x0f, 0x01, 0xff")), (UD, UD));
        for at in [code!(".byte 0x0f, 0x01, 0xfe"), code!(".byte 0x0f, 0x01, 0xff")] {
            let mut l2 = L2::new(at);
            l2.vmcb.set(MISC_CTL, 1 << 7);
            check_exit!(l2, l2.run(), exit::VMMCALL);
            check_eq!("in L2: handler", l2.vmcb.get(RAX), 0x1006);
        }
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
