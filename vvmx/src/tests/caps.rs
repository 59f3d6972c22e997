//! What is offered on which processor.

use super::*;
use crate::bits::{misc, vmfunc};

#[test]
fn the_reported_controls_are_consistent() {
    for hw in [new_cpu(), old_cpu()] {
        let caps = Caps::offer(&hw, cpu());
        for (legacy, modern) in [(0x481, 0x48d), (0x482, 0x48e), (0x483, 0x48f), (0x484, 0x490)] {
            let (legacy, modern) = (Ctl(caps.rdmsr(legacy).unwrap()), Ctl(caps.rdmsr(modern).unwrap()));
            assert_eq!(legacy.must() & modern.must(), modern.must());
            assert_eq!(legacy.may(), modern.may() | legacy.must());
            assert_eq!(modern.must() & !modern.may(), 0);
        }
        let basic = caps.rdmsr(0x480).unwrap();
        assert_eq!((basic as u32, basic >> 32 & 0x1fff, basic >> 50 & 15), (REVISION, 4096, 6));
        assert_eq!(basic >> 31 & 1, 0, "bit 31 of the revision is the shadow indicator");
        assert_eq!(caps.rdmsr(0x3a), Some(5));
        assert_eq!(caps.rdmsr(0x493), None);
        assert_eq!(caps.rdmsr(0x492), None);
        // Every field that exists can be told from IA32_VMX_VMCS_ENUM.
        let highest = caps.rdmsr(0x48a).unwrap();
        assert!(Field::all().filter(|f| caps.exists(*f)).all(|f| u64::from(f.encoding() & 0x3fe) <= highest));
    }
}

#[test]
fn nothing_is_offered_that_the_processor_must_do_and_can_not() {
    let caps = Caps::offer(&old_cpu(), cpu());
    let m = &caps.msrs;
    assert!(!m.secondary.has(secondary::UNRESTRICTED_GUEST) && !m.secondary.has(secondary::TSC_SCALING));
    assert!(!m.pin.has(pin::POSTED_INTERRUPTS) && !m.entry.has(entry::LOAD_EFER));
    assert_eq!((m.vmfunc, caps.rdmsr(0x491)), (0, None));
    assert_eq!(m.misc & misc::EXIT_SAVES_LMA, 0, "saved by unrestricted guest only");
    // What L0 does by itself is.
    assert!(m.pin.has(pin::PREEMPTION_TIMER) && m.exit.has(exit::SAVE_TIMER));
    assert!(m.secondary.has(secondary::VPID | secondary::VMCS_SHADOWING | secondary::PML));
    assert!(m.ept_vpid & ept_cap::ACCESSED_DIRTY != 0 && m.ept_vpid & ept_cap::INVVPID_ALL != 0);
    assert_eq!(m.ept_vpid & ept_cap::EXEC_ONLY, 0);

    let mut no_ept = old_cpu();
    no_ept.secondary = Ctl::new(0, secondary::WBINVD);
    let caps = Caps::offer(&no_ept, cpu());
    assert!(!caps.exists(Field::EPT_POINTER) && !caps.msrs.secondary.has(secondary::PML));
    assert_eq!(caps.msrs.ept_vpid & ept_cap::WB, 0);
}

#[test]
fn what_nobody_composes_is_offered_nowhere() {
    let m = caps().msrs;
    assert_eq!(
        m.secondary.may() & (secondary::EPT_VE | secondary::SPP | secondary::ENCLS | secondary::BUS_LOCK),
        0
    );
    assert_eq!(m.secondary.may() & (secondary::NOTIFY | secondary::PASID | secondary::PCONFIG), 0);
    assert_eq!(m.primary.may() & primary::TERTIARY, 0);
    assert_eq!(m.exit.may() & exit::SECONDARY, 0);
    assert_eq!(m.entry.may() & (entry::SMM | entry::DEACTIVATE_DUAL_MONITOR), 0);
    // Xen let an L2 enter these in hardware.
    assert_eq!(m.misc & (misc::SHUTDOWN | misc::WAIT_FOR_SIPI), 0);
    assert_eq!(m.vmfunc, vmfunc::EPTP_SWITCHING);
}

#[test]
fn what_the_domain_lacks_is_not_offered() {
    let few = Cpu { perf_global: 0, cr4: CR4_PAE, absent: secondary::RDTSCP | secondary::XSAVES, ..cpu() };
    let caps = Caps::offer(&new_cpu(), few);
    for field in
        [Field::GUEST_PERF_GLOBAL_CTRL, Field::HOST_PKRS, Field::GUEST_SSP, Field::XSS_EXITING_BITMAP]
    {
        assert!(!caps.exists(field), "{field:?}");
    }
    assert!(!caps.msrs.secondary.has(secondary::RDTSCP));
    assert_eq!(caps.rdmsr(0x489), Some(CR4_PAE | CR4_VMXE));
}

#[test]
fn reading_a_processor_touches_only_msrs_that_exist() {
    let old = VmxMsrs::read(|msr| match msr {
        0x480 => 0,
        0x481 => Ctl::new(0x16, 9).0,
        0x482 => Ctl::new(0x0401_e172, 0).0,
        0x483..=0x489 => u64::from(msr),
        _ => panic!("RDMSR of {msr:#x}"),
    });
    assert_eq!((old.secondary, old.ept_vpid, old.vmfunc, old.cr4_fixed1), (Ctl(0), 0, 0, 0x489));
    assert_eq!(old.pin, Ctl::new(0x16, 9));
    let new = VmxMsrs::read(|msr| match msr {
        0x480 => basic::TRUE_CONTROLS,
        0x48e => Ctl::new(0, primary::SECONDARY).0,
        0x48b => Ctl::new(0, secondary::EPT | secondary::VM_FUNCTIONS).0,
        0x481..=0x484 => panic!("a TRUE MSR exists"),
        0x485..=0x491 => u64::from(msr),
        _ => panic!("RDMSR of {msr:#x}"),
    });
    assert_eq!((new.ept_vpid, new.vmfunc, new.pin.0, new.entry.0), (0x48c, 0x491, 0x48d, 0x490));
}
