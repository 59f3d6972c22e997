//! Each row of the policy, and each value that must fault.

use super::check::{Gp, efer_bits::*};
use super::*;
use std::collections::BTreeMap;
use std::vec::Vec;

const NOTHING: MsrClass = MsrClass::Const { value: 0, write: OnWrite::Ignore };

#[test]
fn the_registers_that_guests_touch_unguarded() {
    use MsrClass::*;
    let rows: &[(u32, MsrClass)] = &[
        (0x10, Tsc),
        (0x1b, ApicBase),
        (0x3a, Fault), // FEATURE_CONTROL is not AMD's
        (0x3b, TscAdjust),
        (0x48, SpecCtrl),
        (0x49, PredCmd),
        (0x8b, PatchLevel),
        (0xfe, Const { value: 0x508, write: OnWrite::Fault }),
        (0x10a, Fault), // ARCH_CAPABILITIES
        (0x179, Const { value: 0, write: OnWrite::Fault }),
        (0x17a, Software(Slot::MCG_STATUS)),
        (0x17b, Fault), // MCG_CTL, as MCG_CAP has no MCG_CTL_P
        (0x186, Fault), // architectural PMU
        (0x1d9, DebugCtl),
        (0x277, Pat),
        (0x2ff, Software(Slot::MTRR_DEF_TYPE)),
        (0x400, Fault), // MC0_CTL: no banks
        (0x480, Fault), // VMX
        (0x606, Const { value: 0, write: OnWrite::Fault }),
        (0x6e0, TscDeadline),
        (0x7ff, Fault),
        (0x800, Lapic(0)),
        (0x8ff, Lapic(0xff)),
        (0x900, Fault),
        (0xda0, Xss),
        (0x4000_0000, XenHypercall),
        (0x4000_0001, Fault),
        (0x4000_0073, Fault),
        (0x4b56_4d01, Fault),
        (0xc000_0080, Efer),
        (0xc000_0103, TscAux),
        (0xc000_0104, Svm(SvmMsr::TscRatio)),
        (0xc001_0000, NOTHING),
        (0xc001_0010, NOTHING),
        (0xc001_0015, Software(Slot::HWCR)),
        (0xc001_001d, NOTHING),
        (0xc001_0020, WriteIgnored),
        (0xc001_0114, Svm(SvmMsr::VmCr)),
        (0xc001_0117, Svm(SvmMsr::HsavePa)),
        (0xc001_011f, VirtSpecCtrl),
        (0xc001_0130, Fault), // GHCB
        (0xc001_0131, Fault), // SEV_STATUS
        (0xc001_1029, Const { value: 2, write: OnWrite::Ignore }),
        (0xc001_1030, Fault), // IBS
        (u32::MAX, Fault),
    ];
    for &(msr, class) in rows {
        assert_eq!(classify(msr), class, "{msr:#x}");
    }
}

#[test]
fn open_is_exactly_what_passes_through() {
    let ranges = [0..0x2000u32, 0xc000_0000..0xc000_2000, 0xc001_0000..0xc001_2000];
    let through: Vec<u32> =
        ranges.into_iter().flatten().filter(|&msr| classify(msr) == MsrClass::PassThrough).collect();
    assert_eq!(through, OPEN);
}

#[test]
fn each_slot_belongs_to_one_register() {
    let mut slots = BTreeMap::new();
    for msr in 0..0x2000u32 {
        if let MsrClass::Software(slot) = classify(msr) {
            assert_eq!(slots.insert(std::format!("{slot:?}"), msr), None, "{msr:#x}");
        }
    }
    // All but HWCR, which is in another range.
    assert_eq!(slots.len(), Slot::COUNT - 1);
    assert_eq!(classify(0xc001_0015), MsrClass::Software(Slot::HWCR));
}

fn slot(msr: u32) -> Slot {
    match classify(msr) {
        MsrClass::Software(slot) => slot,
        other => panic!("{msr:#x} is {other:?}"),
    }
}

#[test]
fn storage_keeps_what_was_written_and_refuses_the_rest() {
    let mut soft = SoftMsrs::default();
    assert_eq!(soft.read(slot(0x2ff)), 0x806, "write-back at reset");
    assert_eq!(soft.read(Slot::HWCR), 1 << 24, "the TSC counts at P0");
    for (msr, value, kept) in [
        (0x200, 0xf_ffff_f006, Ok(0xf_ffff_f006)), // MTRR_PHYS_BASE0
        (0x200, 0x1000_0000_0006, Err(Gp)),        // beyond 40 bits
        (0x200, 0x0000_1002, Err(Gp)),             // type 2
        (0x200, 0x0000_1806, Err(Gp)),             // bit 11
        (0x201, 0xff_ffff_f800, Ok(0xff_ffff_f800)),
        (0x201, 0x0000_1806, Err(Gp)), // a type in a mask
        (0x20f, 0x0000_0800, Ok(0x0000_0800)),
        (0x250, 0x0606_0606_0606_0606, Ok(0x0606_0606_0606_0606)),
        (0x26f, 0x0706_0606_0606_0606, Err(Gp)), // UC- is the PAT's only
        (0x2ff, 0xc06, Ok(0xc06)),
        (0x2ff, 0x1006, Err(Gp)),
        (0x2ff, 0x0003, Err(Gp)),
        (0x17a, 7, Ok(7)),
        (0x17a, 8, Err(Gp)),
        (0xc001_0015, u64::MAX, Ok(1 << 24 | 1 << 18)),
        (0xc001_0015, 0, Ok(1 << 24)),
    ] {
        let before = soft.read(slot(msr));
        assert_eq!(soft.write(slot(msr), value, 40), kept.map(|_| ()), "{msr:#x} = {value:#x}");
        assert_eq!(soft.read(slot(msr)), kept.unwrap_or(before), "{msr:#x} = {value:#x}");
    }
}

#[test]
fn canonical_addresses() {
    for (address, four, five) in [
        (0, true, true),
        (0x7fff_ffff_ffff, true, true),
        (0x8000_0000_0000, false, true),
        (0xffff_8000_0000_0000, true, true),
        (0xffff_7fff_ffff_ffff, false, true),
        (0x0100_0000_0000_0000, false, false),
        (0xff00_0000_0000_0000, false, true),
        (0xfe00_0000_0000_0000, false, false),
    ] {
        assert_eq!(check::canonical(address, 48).is_ok(), four, "{address:#x}");
        assert_eq!(check::canonical(address, 57).is_ok(), five, "{address:#x}");
    }
}

#[test]
fn pat_entries() {
    assert!(check::pat(0x0007_0406_0007_0406).is_ok());
    assert!(check::pat(0x0105_0607_0401_0000).is_ok());
    for bad in [2, 3, 8, 0x16, 0xff] {
        for byte in 0..8 {
            assert_eq!(check::pat(bad << (8 * byte)), Err(Gp), "{bad:#x} in entry {byte}");
        }
    }
}

#[test]
fn efer_keeps_its_rules() {
    let offered = SCE | LME | NXE | SVME;
    assert_eq!(check::efer(SCE | LME | NXE, 0, false, offered), Ok(SCE | LME | NXE));
    assert_eq!(check::efer(LME | LMA, LME, true, offered), Ok(LME), "LMA is the CPU's");
    assert_eq!(check::efer(LME, LME | LMA, true, offered), Ok(LME | LMA));
    assert_eq!(check::efer(0, LME | LMA, true, offered), Err(Gp), "LME with paging on");
    assert_eq!(check::efer(SVME, 0, false, offered & !SVME), Err(Gp), "not nested");
    for bit in [1, 9, 13, 14, 15, 17, 18, 20, 21, 63] {
        assert_eq!(check::efer(1 << bit, 0, false, offered), Err(Gp), "bit {bit}");
    }
}

#[test]
fn the_others_that_fault() {
    assert_eq!(check::spec_ctrl(1, 0), Err(Gp));
    assert_eq!(check::spec_ctrl(0, 0), Err(Gp), "no such register");
    assert_eq!(check::spec_ctrl(0b101, 0b111), Ok(0b101));
    assert_eq!(check::spec_ctrl(0b1000, 0b111), Err(Gp));
    assert_eq!(check::pred_cmd(1 << 7, 1), Err(Gp));
    assert_eq!(check::pred_cmd(1, 1), Ok(1));
    assert_eq!(check::virt_spec_ctrl(u64::MAX, true), Ok(4));
    assert_eq!(check::virt_spec_ctrl(0, false), Err(Gp));
    assert_eq!(check::tsc_aux(1 << 32), Err(Gp));
    assert_eq!(check::debugctl(0x40), Err(Gp));
    assert_eq!(check::debugctl(0x3f), Ok(0x3f));
    assert_eq!(check::xss(1 << 11, 0), Err(Gp));
    assert_eq!(check::hypercall_page(0x1000), Ok(0x1000));
    assert_eq!(check::hypercall_page(0x1001), Err(Gp));
}
