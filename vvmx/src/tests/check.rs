//! One case per rule of VM entry: a vmcs12 that breaks this rule and no earlier one.

use super::*;
use crate::bits::misc;
use crate::check::{ControlRule as C, GuestRule as G, HostRule as H, Refusal, Refusal::*};
use crate::code::{InsnError, blocking};
use crate::insn::Failure;
use crate::vmcs12::SHADOW_INDICATOR;
use std::collections::BTreeSet;

type Edits = &'static [(Field, u64)];

const PIN: u64 = 0x16 | 1 | 1 << 3;
const PRI: u64 = 0x0400_6172 | 1 << 31;
const EXIT: u64 = 0x3_6dfb | 1 << 9;
const ENTRY: u64 = 0x11fb | 1 << 9;
const HIGH: u64 = 1 << 40;
const UNCANONICAL: u64 = 1 << 47;
const VALID: u64 = 1 << 31;
const EPT: u64 = 2;
const VID: u64 = EPT | 1 << 9;
const TPR: u64 = PRI | 1 << 21;
const UG: u64 = EPT | 1 << 7;
const CR0: u64 = 0x8001_0021;
const CR4: u64 = 0x2020;

const PIN_C: Field = Field::PIN_CONTROLS;
const PRI_C: Field = Field::PRIMARY_CONTROLS;
const SEC_C: Field = Field::SECONDARY_CONTROLS;
const EXIT_C: Field = Field::EXIT_CONTROLS;
const ENTRY_C: Field = Field::ENTRY_CONTROLS;
const EVENT: Field = Field::ENTRY_INTR_INFO;
const BLOCKING: Field = Field::GUEST_INTERRUPTIBILITY;
const RFLAGS: Field = Field::GUEST_RFLAGS;
const CS: Field = Field::GUEST_CS_AR;
const SS: Field = Field::GUEST_SS_AR;
const DS: Field = Field::GUEST_DS_AR;

/// A 32-bit L2: what has to change with it.
macro_rules! legacy {
    ($($edit:expr),* $(,)?) => {
        &[(ENTRY_C, ENTRY & !(1 << 9)), (CS, 0xc09b), (Field::GUEST_RIP, 0x1000), (Field::GUEST_EFER, 0), $($edit),*]
    };
}
/// A virtual-8086 L2.
macro_rules! vm86 {
    ($($edit:expr),* $(,)?) => {
        legacy![
            (RFLAGS, 0x2_0202), (Field::GUEST_ES_SELECTOR, 0), (Field::GUEST_CS_SELECTOR, 0),
            (Field::GUEST_SS_SELECTOR, 0), (Field::GUEST_DS_SELECTOR, 0), (Field::GUEST_FS_SELECTOR, 0),
            (Field::GUEST_GS_SELECTOR, 0), (Field::GUEST_ES_LIMIT, 0xffff), (Field::GUEST_CS_LIMIT, 0xffff),
            (Field::GUEST_SS_LIMIT, 0xffff), (Field::GUEST_DS_LIMIT, 0xffff), (Field::GUEST_FS_LIMIT, 0xffff),
            (Field::GUEST_GS_LIMIT, 0xffff), (Field::GUEST_ES_AR, 0xf3), (CS, 0xf3), (SS, 0xf3), (DS, 0xf3),
            (Field::GUEST_FS_AR, 0xf3), (Field::GUEST_GS_AR, 0xf3), $($edit),*
        ]
    };
}

const POSTED: u64 = PIN | 1 << 7;
const ACK: u64 = EXIT | 1 << 15;

const CASES: &[(Refusal, Edits)] = &[
    (Controls(C::PinReserved), &[(PIN_C, PIN & !2)]),
    (Controls(C::PinReserved), &[(PIN_C, PIN | 1 << 8)]),
    (Controls(C::PrimaryReserved), &[(PRI_C, PRI & !2)]),
    (Controls(C::PrimaryReserved), &[(PRI_C, PRI | 1 << 17)]),
    (Controls(C::SecondaryReserved), &[(SEC_C, EPT | 1 << 18)]),
    (Controls(C::Cr3TargetCount), &[(Field::CR3_TARGET_COUNT, 5)]),
    (Controls(C::IoBitmapAddress), &[(PRI_C, PRI | 1 << 25), (Field::IO_BITMAP_B, 0x800)]),
    (Controls(C::IoBitmapAddress), &[(PRI_C, PRI | 1 << 25), (Field::IO_BITMAP_A, HIGH)]),
    (Controls(C::MsrBitmapAddress), &[(PRI_C, PRI | 1 << 28), (Field::MSR_BITMAP, 1)]),
    (Controls(C::VirtualApicAddress), &[(PRI_C, TPR), (Field::VIRTUAL_APIC_ADDRESS, HIGH)]),
    (Controls(C::ApicWithoutTprShadow), &[(SEC_C, EPT | 1 << 4)]),
    (Controls(C::ApicWithoutTprShadow), &[(SEC_C, EPT | 1 << 8)]),
    (Controls(C::ApicWithoutTprShadow), &[(SEC_C, VID)]),
    (Controls(C::VirtualNmisWithoutExiting), &[(PIN_C, PIN & !8 | 1 << 5)]),
    (Controls(C::NmiWindowWithoutVirtualNmis), &[(PRI_C, PRI | 1 << 22)]),
    (Controls(C::ApicAccessAddress), &[(SEC_C, EPT | 1), (Field::APIC_ACCESS_ADDRESS, 0x10)]),
    (Controls(C::X2apicAndApicAccess), &[(PRI_C, TPR), (SEC_C, EPT | 1 << 4 | 1)]),
    (Controls(C::DeliveryWithoutInterruptExiting), &[(PRI_C, TPR), (SEC_C, VID), (PIN_C, PIN & !1)]),
    (Controls(C::PostedWithoutDelivery), &[(PIN_C, POSTED), (EXIT_C, ACK)]),
    (Controls(C::PostedWithoutAck), &[(PIN_C, POSTED), (PRI_C, TPR), (SEC_C, VID)]),
    (
        Controls(C::PostedVector),
        &[(PIN_C, POSTED), (PRI_C, TPR), (SEC_C, VID), (EXIT_C, ACK), (Field::POSTED_INTR_NV, 256)],
    ),
    (
        Controls(C::PostedAddress),
        &[(PIN_C, POSTED), (PRI_C, TPR), (SEC_C, VID), (EXIT_C, ACK), (Field::POSTED_INTR_DESC_ADDR, 32)],
    ),
    (Controls(C::VpidZero), &[(SEC_C, EPT | 1 << 5)]),
    (Controls(C::EptPointer), &[(Field::EPT_POINTER, 0x8_001d)]),
    (Controls(C::EptPointer), &[(Field::EPT_POINTER, 0x8_0026)]),
    (Controls(C::EptPointer), &[(Field::EPT_POINTER, 0x8_009e)]),
    (Controls(C::EptPointer), &[(Field::EPT_POINTER, HIGH | 0x1e)]),
    (Controls(C::PmlWithoutEpt), &[(SEC_C, 1 << 17)]),
    (Controls(C::PmlAddress), &[(SEC_C, EPT | 1 << 17), (Field::PML_ADDRESS, 8)]),
    (Controls(C::NeedsEpt), &[(SEC_C, 1 << 7)]),
    (Controls(C::VmFunctionReserved), &[(SEC_C, EPT | 1 << 13), (Field::VM_FUNCTION_CONTROLS, 2)]),
    (Controls(C::EptpSwitchingWithoutEpt), &[(SEC_C, 1 << 13), (Field::VM_FUNCTION_CONTROLS, 1)]),
    (
        Controls(C::EptpListAddress),
        &[(SEC_C, EPT | 1 << 13), (Field::VM_FUNCTION_CONTROLS, 1), (Field::EPTP_LIST_ADDRESS, 8)],
    ),
    (Controls(C::ShadowBitmapAddress), &[(SEC_C, EPT | 1 << 14), (Field::VMREAD_BITMAP, 8)]),
    (Controls(C::ShadowBitmapAddress), &[(SEC_C, EPT | 1 << 14), (Field::VMWRITE_BITMAP, HIGH)]),
    (Controls(C::TscMultiplierZero), &[(SEC_C, EPT | 1 << 25), (Field::TSC_MULTIPLIER, 0)]),
    (Controls(C::ExitReserved), &[(EXIT_C, EXIT & !1)]),
    (Controls(C::SaveTimerWithoutTimer), &[(EXIT_C, EXIT | 1 << 22)]),
    (Controls(C::ExitStoreList), &[(Field::VM_EXIT_MSR_STORE_COUNT, 1), (Field::VM_EXIT_MSR_STORE_ADDR, 8)]),
    (
        Controls(C::ExitLoadList),
        &[(Field::VM_EXIT_MSR_LOAD_COUNT, 2), (Field::VM_EXIT_MSR_LOAD_ADDR, HIGH - 16)],
    ),
    (Controls(C::EntryReserved), &[(ENTRY_C, ENTRY | 1 << 10)]),
    (Controls(C::EntryReserved), &[(ENTRY_C, ENTRY | 1 << 11)]),
    (
        Controls(C::EntryLoadList),
        &[(Field::VM_ENTRY_MSR_LOAD_COUNT, !0), (Field::VM_ENTRY_MSR_LOAD_ADDR, !15)],
    ),
    (Controls(C::TprThresholdReserved), &[(PRI_C, TPR), (Field::TPR_THRESHOLD, 0x10)]),
    (
        Controls(C::TprThresholdAboveVtpr),
        // Page 5 of memory holds no VMCS in these tests, and VTPR is 0.
        &[(PRI_C, TPR), (Field::TPR_THRESHOLD, 1), (Field::VIRTUAL_APIC_ADDRESS, 0x20000)],
    ),
    (Controls(C::EventType), &[(EVENT, VALID | 1 << 8)]),
    (Controls(C::EventVector), &[(EVENT, VALID | 2 << 8 | 3)]),
    (Controls(C::EventVector), &[(EVENT, VALID | 3 << 8 | 32)]),
    (Controls(C::EventVector), &[(EVENT, VALID | 7 << 8 | 1)]),
    (
        Controls(C::EventErrorCodeBit),
        &[(EVENT, VALID | 4 << 8 | 1 << 11 | 0x80), (Field::ENTRY_INSN_LENGTH, 2)],
    ),
    (Controls(C::EventReserved), &[(EVENT, VALID | 1 << 12 | 0x20)]),
    (
        Controls(C::EventErrorCode),
        &[(EVENT, VALID | 3 << 8 | 1 << 11 | 13), (Field::ENTRY_ERROR_CODE, 1 << 16)],
    ),
    (Controls(C::EventLength), &[(EVENT, VALID | 6 << 8 | 3), (Field::ENTRY_INSN_LENGTH, 16)]),
    (Host(H::Cr0), &[(Field::HOST_CR0, CR0 & !0x20)]),
    (Host(H::Cr4), &[(Field::HOST_CR4, CR4 | 1 << 12)]),
    (Host(H::Cr4), &[(Field::HOST_CR4, 0x20)]),
    (Host(H::CetWithoutWp), &[(Field::HOST_CR4, CR4 | 1 << 23), (Field::HOST_CR0, CR0 & !(1 << 16))]),
    (Host(H::Cr3), &[(Field::HOST_CR3, HIGH)]),
    (Host(H::Sysenter), &[(Field::HOST_SYSENTER_ESP, UNCANONICAL)]),
    (Host(H::Sysenter), &[(Field::HOST_SYSENTER_EIP, UNCANONICAL)]),
    (Host(H::PerfGlobal), &[(EXIT_C, EXIT | 1 << 12), (Field::HOST_PERF_GLOBAL_CTRL, 1 << 20)]),
    (Host(H::Pat), &[(EXIT_C, EXIT | 1 << 19), (Field::HOST_PAT, 2)]),
    (Host(H::EferReserved), &[(EXIT_C, EXIT | 1 << 21), (Field::HOST_EFER, 0x502)]),
    (Host(H::EferMode), &[(EXIT_C, EXIT | 1 << 21), (Field::HOST_EFER, 0x100)]),
    (Host(H::SCet), &[(EXIT_C, EXIT | 1 << 28), (Field::HOST_S_CET, 1 << 6)]),
    (Host(H::SCet), &[(EXIT_C, EXIT | 1 << 28), (Field::HOST_S_CET, 3 << 10)]),
    (Host(H::SspTable), &[(EXIT_C, EXIT | 1 << 28), (Field::HOST_SSP_TABLE, UNCANONICAL)]),
    (Host(H::Ssp), &[(EXIT_C, EXIT | 1 << 28), (Field::HOST_SSP, 2)]),
    (Host(H::Pkrs), &[(EXIT_C, EXIT | 1 << 29), (Field::HOST_PKRS, 1 << 32)]),
    (Host(H::SelectorRplTi), &[(Field::HOST_GS_SELECTOR, 0x2b)]),
    (Host(H::SelectorRplTi), &[(Field::HOST_TR_SELECTOR, 0x44)]),
    (Host(H::SelectorNull), &[(Field::HOST_CS_SELECTOR, 0)]),
    (Host(H::SelectorNull), &[(Field::HOST_TR_SELECTOR, 0)]),
    (Host(H::SsNull), &[(EXIT_C, EXIT & !(1 << 9)), (Field::HOST_SS_SELECTOR, 0)]),
    (Host(H::Bases), &[(Field::HOST_IDTR_BASE, UNCANONICAL)]),
    (Host(H::Bases), &[(Field::HOST_FS_BASE, UNCANONICAL)]),
    (Host(H::InsideLongMode), &[(EXIT_C, EXIT & !(1 << 9))]),
    (Host(H::Host64), &[(Field::HOST_RIP, UNCANONICAL)]),
    (Host(H::Host64), &[(Field::HOST_CR4, 0x2000)]),
    (Guest(G::Cr0), &[(Field::GUEST_CR0, CR0 & !0x20)]),
    (Guest(G::Cr0), &[(Field::GUEST_CR0, CR0 & !(1 << 31))]),
    (Guest(G::Cr0), &[(Field::GUEST_CR0, CR0 | 1 << 32)]),
    (Guest(G::PagingWithoutProtection), &[(SEC_C, UG), (Field::GUEST_CR0, CR0 & !1)]),
    (Guest(G::Cr4), &[(Field::GUEST_CR4, CR4 | 1 << 12)]),
    (Guest(G::CetWithoutWp), &[(Field::GUEST_CR4, CR4 | 1 << 23), (Field::GUEST_CR0, CR0 & !(1 << 16))]),
    (Guest(G::Debugctl), &[(ENTRY_C, ENTRY | 4), (Field::GUEST_DEBUGCTL, 1 << 3)]),
    (Guest(G::LongModeWithoutPaging), &[(Field::GUEST_CR4, 0x2000)]),
    (Guest(G::LongModeWithoutPaging), &[(SEC_C, UG), (Field::GUEST_CR0, CR0 & !(1 << 31))]),
    (Guest(G::PcideOutsideLongMode), legacy![(Field::GUEST_CR4, 0x2_2020)]),
    (Guest(G::Cr3), &[(Field::GUEST_CR3, HIGH)]),
    (Guest(G::Dr7), &[(ENTRY_C, ENTRY | 4), (Field::GUEST_DR7, 1 << 32)]),
    (Guest(G::Sysenter), &[(Field::GUEST_SYSENTER_EIP, UNCANONICAL)]),
    (Guest(G::SCet), &[(ENTRY_C, ENTRY | 1 << 20), (Field::GUEST_S_CET, 1 << 9)]),
    (Guest(G::SspTable), &[(ENTRY_C, ENTRY | 1 << 20), (Field::GUEST_SSP_TABLE, UNCANONICAL)]),
    (Guest(G::Ssp), &[(ENTRY_C, ENTRY | 1 << 20), (Field::GUEST_SSP, 1)]),
    (Guest(G::PerfGlobal), &[(ENTRY_C, ENTRY | 1 << 13), (Field::GUEST_PERF_GLOBAL_CTRL, 1 << 20)]),
    (Guest(G::Pat), &[(ENTRY_C, ENTRY | 1 << 14), (Field::GUEST_PAT, 3)]),
    (Guest(G::EferReserved), &[(ENTRY_C, ENTRY | 1 << 15), (Field::GUEST_EFER, 0x1500)]),
    (Guest(G::EferMode), &[(ENTRY_C, ENTRY | 1 << 15), (Field::GUEST_EFER, 0x100)]),
    (Guest(G::EferMode), &[(ENTRY_C, ENTRY | 1 << 15), (Field::GUEST_EFER, 0x400)]),
    (Guest(G::Pkrs), &[(ENTRY_C, ENTRY | 1 << 22), (Field::GUEST_PKRS, 1 << 32)]),
    (Guest(G::TableBase), &[(Field::GUEST_IDTR_BASE, UNCANONICAL)]),
    (Guest(G::TableLimit), &[(Field::GUEST_GDTR_LIMIT, 0x1_0000)]),
    (Guest(G::Rip), &[(Field::GUEST_RIP, 1 << 48)]),
    (Guest(G::Rip), legacy![(Field::GUEST_RIP, 1 << 32)]),
    (Guest(G::RflagsReserved), &[(RFLAGS, 0x200)]),
    (Guest(G::RflagsReserved), &[(RFLAGS, 0x20a)]),
    (Guest(G::RflagsReserved), &[(RFLAGS, 1 << 22 | 2)]),
    (Guest(G::RflagsVm), vm86![(ENTRY_C, ENTRY)]),
    (Guest(G::RflagsIf), &[(RFLAGS, 2), (EVENT, VALID | 0x20)]),
    (Guest(G::ActivityUnsupported), &[(Field::GUEST_ACTIVITY, 2)]),
    (Guest(G::ActivityUnsupported), &[(Field::GUEST_ACTIVITY, 3)]),
    (Guest(G::ActivityUnsupported), &[(Field::GUEST_ACTIVITY, 4)]),
    (
        Guest(G::HltOutsideRing0),
        &[
            (Field::GUEST_ACTIVITY, 1),
            (CS, 0xa0fb),
            (SS, 0xc0f3),
            (Field::GUEST_SS_SELECTOR, 3),
            (Field::GUEST_CS_SELECTOR, 3),
        ],
    ),
    (Guest(G::InactiveWhileBlocked), &[(Field::GUEST_ACTIVITY, 1), (BLOCKING, blocking::STI)]),
    (Guest(G::EventBlockedByActivity), &[(Field::GUEST_ACTIVITY, 1), (EVENT, VALID | 3 << 8 | 6)]),
    (Guest(G::BlockingReserved), &[(BLOCKING, 1 << 5)]),
    (Guest(G::BlockingReserved), &[(BLOCKING, blocking::ENCLAVE)]),
    (Guest(G::StiAndMovSs), &[(BLOCKING, 3)]),
    (Guest(G::StiWithoutIf), &[(BLOCKING, 1), (RFLAGS, 2)]),
    (Guest(G::InterruptWhileBlocked), &[(BLOCKING, blocking::MOV_SS), (EVENT, VALID | 0x20)]),
    (Guest(G::NmiWithMovSsBlocking), &[(BLOCKING, blocking::MOV_SS), (EVENT, VALID | 0x202)]),
    (Guest(G::SmiBlocking), &[(BLOCKING, blocking::SMI)]),
    (Guest(G::NmiWithStiBlocking), &[(BLOCKING, blocking::STI), (EVENT, VALID | 0x202)]),
    (Guest(G::NmiWhileBlocked), &[(PIN_C, PIN | 1 << 5), (BLOCKING, blocking::NMI), (EVENT, VALID | 0x202)]),
    (Guest(G::PendingDebugReserved), &[(Field::GUEST_PENDING_DEBUG, 1 << 4)]),
    (Guest(G::PendingDebugReserved), &[(Field::GUEST_PENDING_DEBUG, 1 << 16)]),
    (Guest(G::PendingDebugStep), &[(BLOCKING, blocking::STI), (RFLAGS, 0x302)]),
    (Guest(G::PendingDebugStep), &[(BLOCKING, blocking::STI), (Field::GUEST_PENDING_DEBUG, 1 << 14)]),
    (Guest(G::LinkAddress), &[(Field::VMCS_LINK_POINTER, 0x10)]),
    (Guest(G::LinkAddress), &[(Field::VMCS_LINK_POINTER, HIGH)]),
    (Guest(G::LinkRevision), &[(Field::VMCS_LINK_POINTER, 0x3_0000)]),
    (Guest(G::LinkShadowIndicator), &[(Field::VMCS_LINK_POINTER, 0x6000)]),
    (Guest(G::LinkShadowIndicator), &[(Field::VMCS_LINK_POINTER, 0x7000), (SEC_C, EPT | 1 << 14)]),
    (Guest(G::LinkCurrent), &[(Field::VMCS_LINK_POINTER, 0x2000)]),
    (Guest(G::Pdpte), legacy![(Field::GUEST_PDPTE2, 0x1003)]),
    (Guest(G::Pdpte), legacy![(Field::GUEST_PDPTE0, HIGH | 1)]),
    (Guest(G::Pdpte), legacy![(SEC_C, 0), (Field::GUEST_CR3, 0x3_0000)]),
    (Guest(G::Pdpte), legacy![(SEC_C, 0), (Field::GUEST_CR3, 0x7f_ffff_f000)]),
    (Guest(G::SystemSelectorTi), &[(Field::GUEST_TR_SELECTOR, 0x3c)]),
    (Guest(G::SystemSelectorTi), &[(Field::GUEST_LDTR_AR, 0x82), (Field::GUEST_LDTR_SELECTOR, 0x34)]),
    (Guest(G::SsRpl), &[(Field::GUEST_SS_SELECTOR, 0x11)]),
    (Guest(G::BaseCanonical), &[(Field::GUEST_TR_BASE, UNCANONICAL)]),
    (Guest(G::BaseCanonical), &[(Field::GUEST_GS_BASE, UNCANONICAL)]),
    (Guest(G::BaseHigh), &[(Field::GUEST_CS_BASE, 1 << 32)]),
    (Guest(G::BaseHigh), &[(Field::GUEST_DS_BASE, 1 << 32)]),
    (Guest(G::Vm86Base), vm86![(Field::GUEST_DS_BASE, 16)]),
    (Guest(G::Vm86Limit), vm86![(Field::GUEST_ES_LIMIT, 0xfffe)]),
    (Guest(G::Vm86Rights), vm86![(DS, 0x93)]),
    (Guest(G::SegmentType), &[(CS, 0xa093)]),
    (Guest(G::SegmentType), &[(SS, 0xc091)]),
    (Guest(G::SegmentType), &[(DS, 0xc092)]),
    (Guest(G::SegmentType), &[(DS, 0xc099)]),
    (Guest(G::SegmentSystem), &[(CS, 0xa08b)]),
    (Guest(G::SegmentPresent), &[(DS, 0xc013)]),
    (Guest(G::CsDpl), &[(CS, 0xa0fb)]),
    (Guest(G::SsDpl), &[(CS, 0xa0bb), (SS, 0xc0b3)]),
    (Guest(G::DataDpl), &[(Field::GUEST_DS_SELECTOR, 0x1b)]),
    (Guest(G::CsLongAndDefault), &[(CS, 0xe09b)]),
    (Guest(G::Granularity), &[(DS, 0x4093)]),
    (Guest(G::Granularity), &[(CS, 0xa09b), (Field::GUEST_CS_LIMIT, 0xf_0000)]),
    (Guest(G::Granularity), &[(Field::GUEST_TR_LIMIT, 0x10_0000)]),
    (Guest(G::TrType), &[(Field::GUEST_TR_AR, 0x83)]),
    (Guest(G::LdtrType), &[(Field::GUEST_LDTR_AR, 0x83)]),
    (Guest(G::SystemRights), &[(Field::GUEST_TR_AR, 0x0b)]),
    (Guest(G::SystemRights), &[(Field::GUEST_LDTR_AR, 0x92)]),
    (Guest(G::TrUnusable), &[(Field::GUEST_TR_AR, 0x1_008b)]),
];

/// What must pass: near misses, and each mode that an L2 can start in.
const PASSES: &[Edits] = &[
    &[],
    legacy![],
    legacy![(Field::GUEST_PDPTE2, 0x1001), (Field::GUEST_PDPTE1, 0x1e6)],
    legacy![(SEC_C, 0)],
    legacy![(Field::GUEST_CR4, 0x2000), (SEC_C, 0)],
    legacy![(Field::GUEST_TR_AR, 0x83)],
    vm86![],
    // Real mode, unpaged protected mode.
    legacy![
        (SEC_C, UG),
        (Field::GUEST_CR0, 0x20),
        (CS, 0x93),
        (Field::GUEST_CS_LIMIT, 0xffff),
        (Field::GUEST_CR4, 0x2000)
    ],
    legacy![(SEC_C, UG), (Field::GUEST_CR0, 0x21)],
    &[(EVENT, VALID | 3 << 8 | 1 << 11 | 14), (Field::ENTRY_ERROR_CODE, 0xffff)],
    &[(EVENT, VALID | 6 << 8 | 3), (Field::ENTRY_INSN_LENGTH, 0)],
    &[(EVENT, 0x7fff_ffff)],
    &[(Field::GUEST_ACTIVITY, 1), (EVENT, VALID | 3 << 8 | 18)],
    &[(Field::GUEST_ACTIVITY, 1)],
    &[(Field::VMCS_LINK_POINTER, 0x7000)],
    &[(Field::VMCS_LINK_POINTER, 0x6000), (SEC_C, EPT | 1 << 14)],
    &[(PRI_C, PRI & !(1 << 31)), (SEC_C, !0)],
    &[(Field::VM_EXIT_MSR_LOAD_COUNT, 1), (Field::VM_EXIT_MSR_LOAD_ADDR, HIGH - 16)],
    &[(Field::VM_EXIT_MSR_LOAD_COUNT, 0), (Field::VM_EXIT_MSR_LOAD_ADDR, !0)],
    &[(EXIT_C, EXIT), (Field::HOST_PAT, !0), (Field::HOST_EFER, !0)],
    &[(Field::GUEST_ES_AR, 1 << 16), (Field::GUEST_ES_BASE, !0)],
    &[(PIN_C, PIN | 1 << 6), (EXIT_C, EXIT | 1 << 22)],
    &[(PIN_C, POSTED), (PRI_C, TPR), (SEC_C, VID), (EXIT_C, ACK), (Field::POSTED_INTR_NV, 255)],
    &[(Field::CR3_TARGET_COUNT, 4)],
];

fn rig(edits: Edits) -> Rig {
    let mut rig = Rig::new();
    rig.mem.put_u64(Gpa::new(0x6000), u64::from(REVISION | SHADOW_INDICATOR));
    rig.mem.put_u64(Gpa::new(0x3_0000), 0x1003);
    edits.iter().for_each(|(field, value)| rig.write(*field, *value));
    rig
}

fn outcome(rig: &mut Rig, long: bool) -> Option<Refusal> {
    match rig.nested.enter(Entry::Launch, false, long, &rig.mem, &mut rig.hw, &rig.caps) {
        Ok(_) => None,
        Err(NoEntry::Exit(why)) => Some(why),
        Err(NoEntry::Fail(Failure::Valid(error), why)) => {
            assert_eq!(why.and_then(Refusal::error), Some(error));
            why
        }
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn each_case_breaks_its_rule() {
    for (want, edits) in CASES {
        assert_eq!(outcome(&mut rig(edits), true), Some(*want), "{edits:x?}");
    }
}

#[test]
fn near_misses_and_all_modes_pass() {
    for edits in PASSES {
        assert_eq!(outcome(&mut rig(edits), true), None, "{edits:x?}");
    }
}

/// Rules of hosts outside IA-32e mode, and those that depend on what is offered, have tests of their own below.
const ELSEWHERE: &[Refusal] = &[Host(H::OutsideLongMode), Host(H::Host32)];

#[test]
fn every_rule_has_a_case() {
    let name = |r: &Refusal| std::format!("{r:?}");
    let tested: BTreeSet<_> = CASES.iter().map(|(r, _)| name(r)).chain(ELSEWHERE.iter().map(name)).collect();
    let all = C::ALL.iter().map(|r| Controls(*r));
    let all = all.chain(H::ALL.iter().map(|r| Host(*r))).chain(G::ALL.iter().map(|r| Guest(*r)));
    for rule in all {
        assert!(tested.contains(&name(&rule)), "no case breaks {rule:?}");
    }
}

#[test]
fn a_host_outside_long_mode_stays_there() {
    let long = rig(&[]);
    assert_eq!(outcome(&mut { long }, false), Some(Host(H::OutsideLongMode)));
    let no_host = &[(EXIT_C, EXIT & !(1 << 9))];
    assert_eq!(outcome(&mut rig(no_host), false), Some(Host(H::OutsideLongMode)), "a 64-bit guest");
    let host32 = legacy![(EXIT_C, EXIT & !(1 << 9)), (Field::HOST_RIP, 0x1000), (Field::HOST_EFER, 0)];
    assert_eq!(outcome(&mut rig(host32), false), None);
    let mut high = rig(host32);
    high.write(Field::HOST_RIP, 1 << 32);
    assert_eq!(outcome(&mut high, false), Some(Host(H::Host32)));
    let mut pcid = rig(host32);
    pcid.write(Field::HOST_CR4, CR4 | 1 << 17);
    assert_eq!(outcome(&mut pcid, false), Some(Host(H::Host32)));
}

#[test]
fn what_is_offered_decides() {
    // With IA32_VMX_BASIC[56] the vector does not decide about error codes; without it, it does.
    let odd: Edits = &[(EVENT, VALID | 3 << 8 | 6 | 1 << 11)];
    assert_eq!(outcome(&mut rig(odd), true), None);
    let mut strict = rig(odd);
    strict.caps.msrs.basic &= !basic::ANY_ERROR_CODE;
    assert_eq!(outcome(&mut strict, true), Some(Controls(C::EventErrorCodeBit)));
    let mut missing = rig(&[(EVENT, VALID | 3 << 8 | 13)]);
    missing.caps.msrs.basic &= !basic::ANY_ERROR_CODE;
    assert_eq!(outcome(&mut missing, true), Some(Controls(C::EventErrorCodeBit)));
    let mut zero = rig(&[(EVENT, VALID | 4 << 8 | 0x80)]);
    zero.caps.msrs.misc &= !misc::ZERO_LENGTH_INJECTION;
    assert_eq!(outcome(&mut zero, true), Some(Controls(C::EventLength)));
    // Real mode pushes no error codes.
    let real: Edits = legacy![
        (SEC_C, UG),
        (Field::GUEST_CR0, 0x20),
        (CS, 0x93),
        (Field::GUEST_CS_LIMIT, 0xffff),
        (EVENT, VALID | 3 << 8 | 13 | 1 << 11)
    ];
    assert_eq!(outcome(&mut rig(real), true), Some(Controls(C::EventErrorCodeBit)));
}

#[test]
fn failures_have_the_manuals_numbers_and_qualifications() {
    assert_eq!(Controls(C::VpidZero).error(), Some(InsnError::BadControls));
    assert_eq!(Host(H::Cr0).error(), Some(InsnError::BadHostState));
    assert_eq!(Guest(G::Cr0).error(), None);
    for (rule, qualification) in
        [(G::Cr0, 0), (G::Pdpte, 2), (G::NmiWithStiBlocking, 3), (G::LinkCurrent, 4), (G::LinkAddress, 4)]
    {
        assert_eq!(Guest(rule).qualification(), qualification, "{rule:?}");
    }
}

/// Skipping rules whose fields L1 has not touched never lets anything through.
#[test]
fn a_rule_broken_after_a_good_entry_is_found() {
    for (want, edits) in CASES {
        let mut rig = rig(&[]);
        rig.run();
        rig.leave(&Exit::default());
        // vmcs02 holds what L2 left; fetch it as L1's reads would.
        edits.iter().for_each(|(field, value)| rig.write(*field, *value));
        let got = rig.nested.enter(Entry::Resume, false, true, &rig.mem, &mut rig.hw, &rig.caps);
        let why = match got {
            Err(NoEntry::Exit(why) | NoEntry::Fail(_, Some(why))) => Some(why),
            _ => None,
        };
        assert_eq!(why, Some(*want), "{edits:x?}");
        // And a second try fails the same way: a failed check proves nothing.
        let again = rig.nested.enter(Entry::Resume, false, true, &rig.mem, &mut rig.hw, &rig.caps);
        assert_eq!(got, again);
    }
}
