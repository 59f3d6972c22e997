//! SDM vol. 3, "Checks on VMX Controls": "VM-Execution Control Fields", "VM-Exit Control Fields", "VM-Entry
//! Control Fields".

use super::{View, rules, threshold_counts};
use crate::bits::{basic, entry, exit, misc, pin, primary, reg::*, secondary, vmfunc};
use crate::code::intr;
use crate::field::Field;

rules! {
    /// A rule about controls. Breaking one is VMfailValid 7.
    ControlRule;
    /// Rules that hold as long as no control changes.
    fn settings(x) {
        /// "Reserved bits in the pin-based VM-execution controls must be set properly."
        PinReserved => !x.caps.msrs.pin.allows(x.get32(Field::PIN_CONTROLS));
        /// "Reserved bits in the primary processor-based VM-execution controls must be set properly."
        PrimaryReserved => !x.caps.msrs.primary.allows(x.get32(Field::PRIMARY_CONTROLS));
        /// The same of the secondary ones, if they are activated.
        SecondaryReserved => !x.caps.msrs.secondary.allows(x.v.secondary_word());
        /// "The CR3-target count must not be greater than 4", or what IA32_VMX_MISC says.
        Cr3TargetCount => x.get(Field::CR3_TARGET_COUNT) > x.caps.msrs.misc >> 16 & 0x1ff;
        /// "If the “use I/O bitmaps” VM-execution control is 1, bits 11:0 of each I/O-bitmap address must be 0."
        IoBitmapAddress => x.v.primary(primary::IO_BITMAPS)
            && (x.misplaced(Field::IO_BITMAP_A, 4096) || x.misplaced(Field::IO_BITMAP_B, 4096));
        /// The same of MSR bitmaps.
        MsrBitmapAddress => x.v.primary(primary::MSR_BITMAPS) && x.misplaced(Field::MSR_BITMAP, 4096);
        /// The same of the virtual-APIC page.
        VirtualApicAddress =>
            x.v.primary(primary::TPR_SHADOW) && x.misplaced(Field::VIRTUAL_APIC_ADDRESS, 4096);
        /// "If the “use TPR shadow” VM-execution control is 0, the following VM-execution controls must also be
        /// 0: virtualize x2APIC mode, APIC-register virtualization, and virtual-interrupt delivery."
        ApicWithoutTprShadow => !x.v.primary(primary::TPR_SHADOW) && x.v.secondary_word()
            & (secondary::X2APIC | secondary::APIC_REGISTERS | secondary::INTERRUPT_DELIVERY) != 0;
        /// "If the “NMI exiting” VM-execution control is 0, the “virtual NMIs” VM-execution control must be 0."
        VirtualNmisWithoutExiting => x.v.pin(pin::VIRTUAL_NMIS) && !x.v.pin(pin::NMI);
        /// "If the “virtual NMIs” VM-execution control is 0, the “NMI-window exiting” VM-execution control must
        /// be 0."
        NmiWindowWithoutVirtualNmis => x.v.primary(primary::NMI_WINDOW) && !x.v.pin(pin::VIRTUAL_NMIS);
        /// The same as of the I/O bitmaps of the APIC-access page.
        ApicAccessAddress =>
            x.v.secondary(secondary::APIC_ACCESS) && x.misplaced(Field::APIC_ACCESS_ADDRESS, 4096);
        /// "If the “virtualize x2APIC mode” VM-execution control is 1, the “virtualize APIC accesses”
        /// VM-execution control must be 0."
        X2apicAndApicAccess => x.v.secondary(secondary::X2APIC | secondary::APIC_ACCESS);
        /// "If the “virtual-interrupt delivery” VM-execution control is 1, the “external-interrupt exiting”
        /// VM-execution control must be 1."
        DeliveryWithoutInterruptExiting =>
            x.v.secondary(secondary::INTERRUPT_DELIVERY) && !x.v.pin(pin::EXTERNAL_INTERRUPT);
        /// "If the “process posted interrupts” VM-execution control is 1": "The “virtual-interrupt delivery”
        /// VM-execution control is 1."
        PostedWithoutDelivery =>
            x.v.pin(pin::POSTED_INTERRUPTS) && !x.v.secondary(secondary::INTERRUPT_DELIVERY);
        /// Likewise: "The “acknowledge interrupt on exit” VM-exit control is 1."
        PostedWithoutAck => x.v.pin(pin::POSTED_INTERRUPTS) && !x.v.exit(exit::ACK_INTERRUPT);
        /// Likewise: "The posted-interrupt notification vector has a value in the range 0–255."
        PostedVector => x.v.pin(pin::POSTED_INTERRUPTS) && x.get(Field::POSTED_INTR_NV) > 255;
        /// Likewise: "Bits 5:0 of the posted-interrupt descriptor address are all 0."
        PostedAddress => x.v.pin(pin::POSTED_INTERRUPTS) && x.misplaced(Field::POSTED_INTR_DESC_ADDR, 64);
        /// "If the “enable VPID” VM-execution control is 1, the value of the VPID VM-execution control field
        /// must not be 0000H."
        VpidZero => x.v.vpid() == Some(0);
        /// "If the “enable EPT” VM-execution control is 1, the EPTP VM-execution control field must satisfy the
        /// following checks": memory type, walk length, accessed and dirty flags, reserved bits.
        EptPointer => x.v.ept() && !crate::ept::eptp_is_valid(x.get(Field::EPT_POINTER), x.caps);
        /// "If the “enable PML” VM-execution control is 1, the “enable EPT” VM-execution control must also be
        /// 1."
        PmlWithoutEpt => x.v.secondary(secondary::PML) && !x.v.ept();
        /// Likewise of the PML address.
        PmlAddress => x.v.secondary(secondary::PML) && x.misplaced(Field::PML_ADDRESS, 4096);
        /// "If either the “unrestricted guest” VM-execution control or the “mode-based execute control for EPT”
        /// VM-execution control is 1, the “enable EPT” VM-execution control must also be 1."
        NeedsEpt => !x.v.ept() && x.v.secondary_word()
            & (secondary::UNRESTRICTED_GUEST | secondary::MODE_BASED_EXECUTE) != 0;
        /// "If the “enable VM functions” processor-based VM-execution control is 1, reserved bits in the
        /// VM-function controls must be clear."
        VmFunctionReserved => x.v.secondary(secondary::VM_FUNCTIONS)
            && x.get(Field::VM_FUNCTION_CONTROLS) & !x.caps.msrs.vmfunc != 0;
        /// Likewise of EPTP switching: "the “enable EPT” VM-execution control must also be 1."
        EptpSwitchingWithoutEpt => eptp_switching(x) && !x.v.ept();
        /// Likewise: "the EPTP-list address must satisfy the following checks".
        EptpListAddress => eptp_switching(x) && x.misplaced(Field::EPTP_LIST_ADDRESS, 4096);
        /// "If the “VMCS shadowing” VM-execution control is 1, the VMREAD-bitmap and VMWRITE-bitmap addresses
        /// must each satisfy the following checks".
        ShadowBitmapAddress => x.v.secondary(secondary::VMCS_SHADOWING)
            && (x.misplaced(Field::VMREAD_BITMAP, 4096) || x.misplaced(Field::VMWRITE_BITMAP, 4096));
        /// "If the “use TSC scaling” VM-execution control is 1, the TSC-multiplier must not be 0."
        TscMultiplierZero =>
            x.v.secondary(secondary::TSC_SCALING) && x.get(Field::TSC_MULTIPLIER) == 0;
        /// "Reserved bits in the primary VM-exit controls must be set properly."
        ExitReserved => !x.caps.msrs.exit.allows(x.get32(Field::EXIT_CONTROLS));
        /// "If the “activate VMX-preemption timer” VM-execution control is 0, the “save VMX-preemption timer
        /// value” VM-exit control must also be 0."
        SaveTimerWithoutTimer => x.v.exit(exit::SAVE_TIMER) && !x.v.pin(pin::PREEMPTION_TIMER);
        /// "The following checks are performed for the VM-exit MSR-store address if the VM-exit MSR-store count
        /// field is non-zero".
        ExitStoreList => list(x, Field::VM_EXIT_MSR_STORE_ADDR, Field::VM_EXIT_MSR_STORE_COUNT);
        /// The same of the VM-exit MSR-load area.
        ExitLoadList => list(x, Field::VM_EXIT_MSR_LOAD_ADDR, Field::VM_EXIT_MSR_LOAD_COUNT);
        /// "Reserved bits in the VM-entry controls must be set properly."
        EntryReserved => !x.caps.msrs.entry.allows(x.get32(Field::ENTRY_CONTROLS));
        /// The same as of the exit lists of the VM-entry MSR-load area. ("Entry to SMM" and "deactivate
        /// dual-monitor treatment" are not offered: they are reserved bits.)
        EntryLoadList => list(x, Field::VM_ENTRY_MSR_LOAD_ADDR, Field::VM_ENTRY_MSR_LOAD_COUNT);
    }
    /// Rules about what is different at each entry.
    fn event(x) {
        /// "If the “use TPR shadow” VM-execution control is 1 and the “virtual-interrupt delivery” VM-execution
        /// control is 0, bits 31:4 of the TPR threshold must be 0."
        TprThresholdReserved => threshold_counts(x.v) && x.get(Field::TPR_THRESHOLD) >> 4 != 0;
        /// Likewise, without virtualized APIC accesses: "the value of bits 3:0 of the TPR threshold should not
        /// be greater than the value of bits 7:4 of VTPR."
        TprThresholdAboveVtpr =>
            x.seen.vtpr.is_some_and(|vtpr| x.get(Field::TPR_THRESHOLD) > u64::from(vtpr >> 4));
        /// "The field's interruption type (bits 10:8) is not set to a reserved value": 1, and 7 without the
        /// monitor trap flag.
        EventType => event(x).is_some_and(|e| match intr::kind_of(e) {
            intr::kind::RESERVED => true,
            intr::kind::OTHER => !x.caps.msrs.primary.has(primary::MONITOR_TRAP),
            _ => false,
        });
        /// "The field's vector (bits 7:0) is consistent with the interruption type": NMI 2, hardware exception
        /// at most 31, other event 0.
        EventVector => event(x).is_some_and(|e| match (intr::kind_of(e), intr::vector(e)) {
            (intr::kind::NMI, vector) => vector != 2,
            (intr::kind::HARDWARE, vector) => vector > 31,
            (intr::kind::OTHER, vector) => vector != 0,
            _ => false,
        });
        /// "The field's deliver-error-code bit (bit 11) is 1 if each of the following holds" and 0 if any of the
        /// others does; with IA32_VMX_BASIC\[56\] the vector does not count.
        EventErrorCodeBit => event(x).is_some_and(|e| wrong_error_code_bit(x, e));
        /// "Reserved bits in the field (30:12) are 0."
        EventReserved => event(x).is_some_and(|e| e & 0x7fff_f000 != 0);
        /// "If the deliver-error-code bit (bit 11) is 1, bits 31:16 of the VM-entry exception error-code field
        /// are 0."
        EventErrorCode => event(x)
            .is_some_and(|e| e & intr::ERROR_CODE != 0 && x.get(Field::ENTRY_ERROR_CODE) >> 16 != 0);
        /// "If the interruption type is software interrupt, software exception, or privileged software
        /// exception, the VM-entry instruction-length field is in the range 0–15", 0 only with
        /// IA32_VMX_MISC\[30\].
        EventLength => event(x).is_some_and(|e| {
            let zero = x.caps.msrs.misc & misc::ZERO_LENGTH_INJECTION != 0;
            let length = x.get(Field::ENTRY_INSN_LENGTH);
            intr::is_soft(e) && (length > 15 || length == 0 && !zero)
        });
    }
}

fn event(x: &View<'_>) -> Option<u32> {
    Some(x.get32(Field::ENTRY_INTR_INFO)).filter(|e| intr::valid(*e))
}

fn eptp_switching(x: &View<'_>) -> bool {
    x.v.secondary(secondary::VM_FUNCTIONS) && x.get(Field::VM_FUNCTION_CONTROLS) & vmfunc::EPTP_SWITCHING != 0
}

/// Vectors that push an error code: #DF, #TS, #NP, #SS, #GP, #PF, #AC, and #CP with CET.
fn pushes_error_code(vector: u8, cet: bool) -> bool {
    matches!(vector, 8 | 10..=14 | 17) || vector == 21 && cet
}

fn wrong_error_code_bit(x: &View<'_>, event: u32) -> bool {
    let delivers = event & intr::ERROR_CODE != 0;
    let real = x.v.secondary(secondary::UNRESTRICTED_GUEST) && x.get(Field::GUEST_CR0) & CR0_PE == 0;
    let hardware = intr::kind_of(event) == intr::kind::HARDWARE;
    if real || !hardware {
        return delivers;
    }
    let any = x.caps.msrs.basic & basic::ANY_ERROR_CODE != 0;
    !any && delivers != pushes_error_code(intr::vector(event), x.caps.msrs.entry.has(entry::LOAD_CET))
}

/// "The lower 4 bits of the address must be 0. The address should not set any bits beyond the processor's
/// physical-address width." The same of the last byte.
fn list(x: &View<'_>, address: Field, count: Field) -> bool {
    let (address, count) = (x.get(address), x.get(count));
    let last = address.checked_add(count * 16).and_then(|end| end.checked_sub(1));
    count != 0 && (address & 15 != 0 || last.is_none_or(|last| last >= x.caps.phys_end()))
}
