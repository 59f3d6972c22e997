//! Firmware tables of any content are read, refused or noted as damaged.
#![no_main]
use addr::Hpa;
use boot::acpi::{Acpi, Rsdp};

/// Where the input lies: where a BIOS leaves its root pointer.
const BASE: u64 = 0xe0000;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let memory = |at: Hpa, count: usize| {
        let start = usize::try_from(at.raw().checked_sub(BASE)?).ok()?;
        bytes.get(start..start.checked_add(count)?).map(|b| b.to_vec())
    };
    if let Ok(rsdp) = Rsdp::search(&memory) {
        let _ = Acpi::read(&memory, &rsdp);
    }
    // Checksums stop most inputs above: the tables' own parsers must bear anything too.
    let rsdp = Rsdp { revision: 0, rsdt: Hpa::new(BASE), xsdt: None };
    let _ = Acpi::read(&memory, &rsdp);
    let _ = boot::acpi::Madt::parse(bytes);
});
