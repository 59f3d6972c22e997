//! The ACPI tables of a PVH guest: CPUs, and the news that there is no legacy hardware at all.

use crate::acpi::{FadtFlags, Signature};
use crate::bytes::sum;
use addr::Gpa;
use alloc::vec;
use alloc::vec::Vec;

/// Most vCPUs that the tables describe; others are left out.
pub const MAX_ACPI_VCPUS: u32 = 4096;

/// What the guest's tables may offer beyond CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcpiOptions {
    /// Registers for switching off, if the platform has them.
    pub sleep: Option<SleepPorts>,
    /// Register for resetting, if the platform has it.
    pub reset: Option<ResetPort>,
}

/// Sleep control and status registers of hardware-reduced ACPI (ACPI 6.5, 4.8.3.7), I/O ports of one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SleepPorts {
    /// Control: SLP_TYP in bits 2..=4, SLP_EN in bit 5.
    pub control: u16,
    /// Status: WAK_STS in bit 7.
    pub status: u16,
    /// SLP_TYP of S5 (soft off), 0..=7.
    pub s5: u8,
}

/// Port and value that reset the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetPort {
    /// Port, one byte wide.
    pub port: u16,
    /// Value.
    pub value: u8,
}

/// The local APIC id of a vCPU: Xen's guests have even ids.
pub const fn apic_id(vcpu: u32) -> u32 {
    vcpu.wrapping_mul(2)
}

/// Where the tables start in the blob: root pointer at 0, then these.
const XSDT_AT: usize = 64;
const FADT_AT: usize = 128;
const MADT_AT: usize = 448;

/// The guest's ACPI tables as one blob for `base` (a multiple of 16), the root pointer first: RSDP, XSDT,
/// FADT (hardware-reduced), MADT (one local APIC or x2APIC per vCPU, [`apic_id`]), DSDT (empty but for
/// `\_S5`). The region must be RAM to the guest's p2m and ACPI or reserved in its memory map.
pub fn guest_acpi(base: Gpa, vcpus: u32, options: &AcpiOptions) -> Vec<u8> {
    let gpa = |offset: usize| base.wrapping_add(offset as u64).raw();
    let madt = madt(vcpus.min(MAX_ACPI_VCPUS));
    let dsdt_at = (MADT_AT + madt.len()).next_multiple_of(64);
    let xsdt = table(Signature::XSDT, 1, &[gpa(FADT_AT).to_le_bytes(), gpa(MADT_AT).to_le_bytes()].concat());
    let mut blob = Vec::new();
    for (at, table) in [
        (0, rsdp(gpa(XSDT_AT))),
        (XSDT_AT, xsdt),
        (FADT_AT, fadt(gpa(dsdt_at), options)),
        (MADT_AT, madt),
        (dsdt_at, dsdt(options)),
    ] {
        blob.resize(at, 0);
        blob.extend(table);
    }
    blob
}

/// ACPI 6.5, 5.2.5.3, revision 2, without an RSDT.
fn rsdp(xsdt: u64) -> Vec<u8> {
    let mut out = b"RSD PTR \0".to_vec();
    out.extend(OEM_ID);
    out.extend([2, 0, 0, 0, 0]);
    out[8] = checksum(&out);
    out.extend(36u32.to_le_bytes());
    out.extend(xsdt.to_le_bytes());
    out.extend([0; 4]);
    out[32] = checksum(&out);
    out
}

const OEM_ID: &[u8; 6] = b"TSTUDO";

/// A table with its header (5.2.6) around `body`.
fn table(signature: Signature, revision: u8, body: &[u8]) -> Vec<u8> {
    let mut out = signature.0.to_vec();
    out.extend((36 + body.len() as u32).to_le_bytes());
    out.extend([revision, 0]);
    out.extend(OEM_ID);
    out.extend(b"TESTUDO ");
    out.extend(1u32.to_le_bytes());
    out.extend(b"TSTD");
    out.extend(1u32.to_le_bytes());
    out.extend(body);
    out[9] = checksum(&out);
    out
}

/// The byte that makes the sum zero, its own place still being zero.
fn checksum(bytes: &[u8]) -> u8 {
    0u8.wrapping_sub(sum(bytes))
}

/// 5.2.9, revision 6.5. Of fixed hardware there is none, so every register but the optional two is zero.
fn fadt(dsdt: u64, options: &AcpiOptions) -> Vec<u8> {
    const LENGTH: usize = 276;
    /// IAPC_BOOT_ARCH: no VGA, no CMOS clock; bits 0 and 1 clear: no legacy devices, no 8042.
    const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;
    let mut flags = FadtFlags::HARDWARE_REDUCED.0
        | FadtFlags::WBINVD.0
        | FadtFlags::POWER_BUTTON.0
        | FadtFlags::SLEEP_BUTTON.0;
    let mut body = vec![0; LENGTH - 36];
    let mut put = |at: usize, bytes: &[u8]| body[at - 36..][..bytes.len()].copy_from_slice(bytes);
    // Both pointers, where the old one can hold it: some readers know only one of them.
    put(40, &u32::try_from(dsdt).unwrap_or(0).to_le_bytes());
    put(140, &dsdt.to_le_bytes());
    put(109, &BOOT_ARCH.to_le_bytes());
    put(131, &[5]);
    put(268, b"TESTUDO\0");
    if let Some(ResetPort { port, value }) = options.reset {
        flags |= FadtFlags::RESET.0;
        put(116, &io_byte(port));
        put(128, &[value]);
    }
    if let Some(sleep) = options.sleep {
        put(244, &io_byte(sleep.control));
        put(256, &io_byte(sleep.status));
    }
    put(112, &flags.to_le_bytes());
    table(Signature::FADT, 6, &body)
}

/// Generic address of an I/O port of one byte (5.2.3.2).
fn io_byte(port: u16) -> [u8; 12] {
    let mut out = [1, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    out[4..6].copy_from_slice(&port.to_le_bytes());
    out
}

/// 5.2.12, revision 5: no I/O APIC, no 8259s.
fn madt(vcpus: u32) -> Vec<u8> {
    const LAPIC: u32 = 0xfee0_0000;
    const ENABLED: u32 = 1;
    let mut body = [LAPIC.to_le_bytes(), [0; 4]].concat();
    for vcpu in 0..vcpus {
        let id = apic_id(vcpu);
        // Id 255 means "all" to a local APIC, so ids from there on are an x2APIC's.
        if id < 255 {
            body.extend([0, 8, vcpu as u8, id as u8]);
            body.extend(ENABLED.to_le_bytes());
        } else {
            body.extend([9, 16, 0, 0]);
            [id, ENABLED, vcpu].iter().for_each(|word| body.extend(word.to_le_bytes()));
        }
    }
    table(Signature::MADT, 5, &body)
}

/// Nothing but `Name (\_S5, Package () { s5, 0, 0, 0 })`, and that only if there are sleep registers.
fn dsdt(options: &AcpiOptions) -> Vec<u8> {
    let aml = options.sleep.map(|sleep| {
        let mut aml = b"\x08_S5_\x12\x07\x04\x0a\x00\x00\x00\x00".to_vec();
        aml[9] = sleep.s5 & 7;
        aml
    });
    table(Signature::DSDT, 2, &aml.unwrap_or_default())
}
