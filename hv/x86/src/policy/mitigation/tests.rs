//! The plan for each generation, and each word of the option.

use super::*;
use std::string::ToString;
use std::vec::Vec;

const SIGNATURES: [(Core, u32); 8] = [
    (Core::Zen1, 0x0080_0f12),
    (Core::Zen1, 0x0080_0f82),
    (Core::Zen2, 0x0083_0f10),
    (Core::Zen3, 0x00a0_0f11),
    (Core::Zen3, 0x00a5_0f00),
    (Core::Zen4, 0x00a1_0f11),
    (Core::Zen4, 0x00a6_0f12),
    (Core::Zen5, 0x00b0_0f21),
];

fn cpu(signature: u32, extended: &[u32], features2: &[u32]) -> CpuFacts {
    let or = |bits: &[u32]| bits.iter().fold(0, |all, b| all | b);
    CpuFacts { amd: true, signature, extended: or(extended), features2: or(features2), ..CpuFacts::default() }
}

fn zen1() -> CpuFacts {
    cpu(0x0080_0f12, &[bit::IBPB], &[])
}
fn zen2() -> CpuFacts {
    let ext = [bit::IBPB, bit::IBRS, bit::STIBP, bit::SSBD];
    CpuFacts { smt: true, ..cpu(0x0083_0f10, &ext, &[]) }
}
fn zen3() -> CpuFacts {
    let ext = [bit::IBPB, bit::IBRS, bit::STIBP, bit::STIBP_ALWAYS, bit::SSBD, bit::PSFD, bit::BTC_NO];
    let f2 = [bit::IBPB_BRTYPE, bit::SBPB, bit::VERW_CLEAR];
    CpuFacts { smt: true, svm: bit::V_SPEC_CTRL, ..cpu(0x00a0_0f11, &ext, &f2) }
}
fn zen4() -> CpuFacts {
    let f2 = [bit::AUTO_IBRS, bit::IBPB_BRTYPE, bit::SBPB, bit::VERW_CLEAR];
    CpuFacts {
        signature: 0x00a1_0f11,
        extended: zen3().extended | bit::IBPB_RET,
        ..CpuFacts { features2: f2.iter().fold(0, |all, b| all | b), ..zen3() }
    }
}
fn zen5() -> CpuFacts {
    let f2 = bit::AUTO_IBRS | bit::ERAPS | bit::SRSO_MSR_FIX;
    CpuFacts { signature: 0x00b0_0f21, features2: f2, ..zen4() }
}
/// QEMU's emulator: an AMD vendor, family 6, none of the bits.
fn tcg() -> CpuFacts {
    cpu(0x0000_0663, &[], &[])
}

fn plan(cpu: &CpuFacts, option: &str) -> MitigationPlan {
    MitigationPlan::new(cpu, &Options::parse(option, |warning| panic!("{warning}")))
}

#[test]
fn generations_by_signature() {
    for (core, signature) in SIGNATURES {
        assert_eq!(cpu(signature, &[], &[]).core(), core, "{signature:#x}");
    }
    assert_eq!(tcg().core(), Core::Other);
    assert_eq!(CpuFacts { amd: false, ..zen3() }.core(), Core::Other);
}

#[test]
fn the_plan_of_each_generation() {
    // core, AIBRS, host SPEC_CTRL, IBPB exit, RSB exit, VERW, div, reduce, switch
    let rows = [
        (zen1(), false, 0, true, true, false, true, false, false),
        (zen2(), false, spec_ctrl::IBRS | spec_ctrl::STIBP, true, true, false, false, false, false),
        (zen3(), false, spec_ctrl::IBRS | spec_ctrl::STIBP, true, true, true, false, false, false),
        (zen4(), true, spec_ctrl::STIBP, true, false, true, false, false, false),
        (zen5(), true, spec_ctrl::STIBP, false, false, false, false, true, true),
        (tcg(), false, 0, false, false, false, false, false, false),
    ];
    for (cpu, auto, host, exit, rsb, verw, div, reduce, switch) in rows {
        let p = plan(&cpu, "");
        let core = cpu.core();
        assert_eq!((p.auto_ibrs, p.host_spec_ctrl), (auto, host), "{core:?}");
        assert_eq!((p.ibpb_on_exit, p.rsb_on_exit), (exit, rsb), "{core:?}");
        assert_eq!((p.verw_on_entry, p.div_on_entry, p.bp_spec_reduce), (verw, div, reduce), "{core:?}");
        assert_eq!((p.ibpb_on_switch, p.ibpb_on_reflect), (switch, switch), "{core:?}");
    }
    assert!(plan(&zen2(), "").smt_is_risky);
    assert!(!plan(&zen3(), "").smt_is_risky);
}

#[test]
fn an_emulator_and_another_vendor_get_nothing() {
    assert_eq!(plan(&tcg(), ""), MitigationPlan { ..MitigationPlan::default() });
    assert_eq!(plan(&CpuFacts { amd: false, ..zen4() }, ""), MitigationPlan::default());
    assert_eq!(plan(&tcg(), "").to_string(), "speculation: no mitigation");
    // Whatever is asked for, an MSR that the CPU does not have is not written.
    let asked = plan(&tcg(), "ibpb-entry,ibrs,ssbd,psfd,verw,ibpb,bp-spec-reduce");
    assert_eq!((asked.ibpb_on_exit, asked.host_spec_ctrl, asked.barrier), (false, 0, 0));
    assert!(!asked.verw_on_entry && !asked.ibpb_on_switch && !asked.bp_spec_reduce);
}

#[test]
fn what_guests_are_offered() {
    let p = plan(&zen3(), "");
    assert_eq!(p.guest_spec_ctrl, GuestSpecCtrl::Hardware);
    assert_eq!(p.guest.spec_ctrl, 0x87);
    assert_eq!(p.guest.pred_cmd, 0x81);
    assert!(p.guest.extended & bit::BTC_NO != 0 && !p.guest.auto_ibrs);
    assert_eq!(plan(&zen2(), "").guest_spec_ctrl, GuestSpecCtrl::Swap);
    assert!(plan(&zen4(), "").guest.auto_ibrs);
    let none = plan(&zen3(), "msr-sc=no");
    assert_eq!((none.guest_spec_ctrl, none.guest.spec_ctrl), (GuestSpecCtrl::None, 0));
    assert_eq!(none.guest.extended & (bit::IBRS | bit::STIBP | bit::SSBD | bit::PSFD), 0);
    assert!(none.guest.extended & bit::IBPB != 0, "the barrier is not SPEC_CTRL's");
    assert_eq!(plan(&zen1(), "").guest.spec_ctrl, 0);
    let virt = CpuFacts { extended: bit::VIRT_SSBD, ..zen2() };
    assert_eq!(plan(&virt, "").guest.extended, 0);
}

#[test]
fn no_means_nothing_at_all() {
    for cpu in [zen1(), zen2(), zen3(), zen4(), zen5()] {
        let p = MitigationPlan { smt_is_risky: false, ..plan(&cpu, "no") };
        assert_eq!(p.to_string(), "speculation: no mitigation", "{:?}", cpu.core());
    }
    let p = plan(&zen2(), "no");
    assert_eq!(p.to_string(), "speculation: SMT leaks between threads (turn it off)");
}

#[test]
fn words_are_applied_in_order() {
    assert!(!plan(&zen2(), "ibpb-entry=no-hvm").ibpb_on_exit);
    assert!(plan(&zen2(), "no-ibpb-entry").ibpb_on_switch, "without the barrier at exits, one at switches");
    assert!(!plan(&zen2(), "no-ibpb-entry,no-ibpb").ibpb_on_switch);
    assert!(plan(&zen2(), "no,ibpb").ibpb_on_switch);
    assert!(!plan(&zen2(), "ibpb,no").ibpb_on_switch);
    assert!(!plan(&zen2(), "rsb=0").rsb_on_exit);
    assert!(!plan(&zen3(), "md-clear=off").verw_on_entry);
    assert!(!plan(&zen5(), "verw=hvm").verw_on_entry, "the CPU has no VERW_CLEAR");
    assert_eq!(plan(&zen3(), "stibp=no").host_spec_ctrl, spec_ctrl::IBRS);
    assert_eq!(plan(&zen2(), "ssbd,ibrs=no").host_spec_ctrl, spec_ctrl::SSBD);
    assert!(!plan(&zen1(), "div-scrub=0").div_on_entry);
    assert!(!plan(&zen3(), "srso=no").ibpb_on_exit);
    let p = plan(&zen3(), "xen=no");
    assert!(!p.ibpb_on_exit && p.host_spec_ctrl & spec_ctrl::IBRS == 0);
    assert_eq!(p.guest_spec_ctrl, GuestSpecCtrl::Hardware, "guests keep theirs");
    assert!(!plan(&zen3(), "hvm=0").verw_on_entry);
    assert_eq!(plan(&zen3(), "no,yes"), plan(&zen3(), ""));
}

#[test]
fn what_does_nothing_is_named() {
    let mut warned = Vec::new();
    let value = "bti-thunk=retpoline,bti-thunk=magic,unpriv-mmio,no-l1d-flush,pv=0,msr-sc=pv,xen,frobnicate,ibpb=maybe,ssbd=hvm,";
    let options = Options::parse(value, |warning| warned.push(warning));
    assert_eq!(options, Options::default());
    use Warning::{NoEffect, Unknown};
    assert_eq!(
        warned,
        [
            NoEffect("bti-thunk=retpoline"),
            Unknown("bti-thunk=magic"),
            NoEffect("unpriv-mmio"),
            NoEffect("no-l1d-flush"),
            NoEffect("pv=0"),
            NoEffect("msr-sc=pv"),
            Unknown("xen"),
            Unknown("frobnicate"),
            Unknown("ibpb=maybe"),
            Unknown("ssbd=hvm"),
        ]
    );
    assert_eq!(warned[0].to_string(), "spec-ctrl=bti-thunk=retpoline has no effect here");
}

#[test]
fn facts_come_from_cpuid() {
    let cpuid = |leaf: u32, _: u32| match leaf {
        0 => [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        1 => [0x00a0_0f11, 0, 0, 0],
        0x8000_0000 => [0x8000_0020, 0, 0, 0],
        0x8000_0008 => [0, bit::IBPB, 0, 0],
        0x8000_0021 => panic!("beyond the last leaf"),
        _ => [0; 4],
    };
    let facts = CpuFacts::from_cpuid(cpuid, true);
    assert_eq!(facts, CpuFacts { smt: true, ..cpu(0x00a0_0f11, &[bit::IBPB], &[]) });
}

#[test]
fn what_surrounds_each_vmrun() {
    let guards = |cpu: CpuFacts, option: &str| Guards::of(&plan(&cpu, option));
    let bits = |all: &[Guards]| all.iter().fold(0, |sum, g| sum | g.bits());
    let rows = [
        (zen1(), "", bits(&[Guards::IBPB, Guards::RSB, Guards::DIV])),
        (zen2(), "", bits(&[Guards::SWAP, Guards::IBPB, Guards::RSB])),
        (zen2(), "msr-sc=no", bits(&[Guards::IBPB, Guards::RSB])),
        (zen2(), "ibpb-entry=no", bits(&[Guards::SWAP, Guards::RSB])),
        (zen3(), "", bits(&[Guards::IN_VMCB, Guards::IBPB, Guards::RSB, Guards::VERW])),
        (zen4(), "verw=no", bits(&[Guards::IN_VMCB, Guards::IBPB])),
        (zen5(), "", bits(&[Guards::IN_VMCB])),
        (zen5(), "no", 0),
        (tcg(), "", 0),
        // Without the registers there is nothing to write, whatever is asked for.
        (tcg(), "ibpb-entry,msr-sc,verw", 0),
        (tcg(), "rsb,div-scrub", bits(&[Guards::RSB, Guards::DIV])),
    ];
    for (cpu, option, expected) in rows {
        assert_eq!(guards(cpu, option).bits(), expected, "{:?} {option}", cpu.core());
    }
    assert!(guards(zen2(), "").around_vmrun() && guards(zen1(), "").around_vmrun());
    assert!(!guards(zen5(), "").around_vmrun(), "a copy between VMCBs needs no other routine");
    assert!(!guards(tcg(), "").around_vmrun());
}

#[test]
fn the_boot_line() {
    assert_eq!(
        plan(&zen2(), "").to_string(),
        "speculation: IBRS, STIBP, guest SPEC_CTRL swapped, IBPB on exit, RSB fill on exit, \
         SMT leaks between threads (turn it off)"
    );
}
