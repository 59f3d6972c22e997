//! The ACPI tables of the machine: RSDP, XSDT, hardware-reduced FADT, MADT, and a DSDT with S5 and the serial port.
//! (ACPI specification 6.5, "ACPI Software Programming Model"; AML bytes by hand, see "ACPI Machine Language".)

/// Where the RSDP lies; the other tables follow it.
pub const BASE: u64 = 0xe_0000;
/// Sleep control register: the guest writes SLP_EN (20h) and the S5 type here to power off.
pub const PORT_SLEEP: u16 = 0x604;
/// Reset register: the guest writes [`RESET_VALUE`] here.
pub const PORT_RESET: u16 = 0x605;
/// The value to write to [`PORT_RESET`].
pub const RESET_VALUE: u8 = 0xfe;
/// SLP_EN in the sleep control register.
pub const SLP_EN: u8 = 1 << 5;
/// Physical address of the I/O APIC.
const IOAPIC: u32 = 0xfec0_0000;
/// Physical address of the local APICs.
const LAPIC: u32 = 0xfee0_0000;

/// All tables as one blob for [`BASE`].
pub fn tables(cpus: u32) -> Vec<u8> {
    let mut blob = vec![0; 64];
    let mut place = |table: Vec<u8>| {
        blob.resize(blob.len().next_multiple_of(16), 0);
        let at = BASE + blob.len() as u64;
        blob.extend(table);
        at
    };
    let dsdt = place(table(*b"DSDT", 2, &dsdt_body()));
    let fadt = place(table(*b"FACP", 6, &fadt_body(dsdt)));
    let madt = place(table(*b"APIC", 5, &madt_body(cpus)));
    let xsdt = place(table(*b"XSDT", 1, &[fadt.to_le_bytes(), madt.to_le_bytes()].concat()));
    blob[..36].copy_from_slice(&rsdp(xsdt));
    blob
}

fn rsdp(xsdt: u64) -> [u8; 36] {
    let mut r = [0; 36];
    r[..8].copy_from_slice(b"RSD PTR ");
    r[9..15].copy_from_slice(b"TSTUDO");
    r[15] = 2;
    r[20..24].copy_from_slice(&36u32.to_le_bytes());
    r[24..32].copy_from_slice(&xsdt.to_le_bytes());
    r[8] = checksum(&r[..20]);
    r[32] = checksum(&r);
    r
}

fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut t = Vec::with_capacity(36 + body.len());
    t.extend(signature);
    t.extend((36 + body.len() as u32).to_le_bytes());
    t.extend([revision, 0]);
    t.extend(b"TSTUDOGUESTVMM ");
    t.resize(24, b' ');
    t.extend(1u32.to_le_bytes());
    t.extend(b"TSTU");
    t.extend(1u32.to_le_bytes());
    t.extend(body);
    t[9] = checksum(&t);
    t
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b))
}

/// Generic address of an 8-bit I/O port.
fn io_port(port: u16) -> [u8; 12] {
    let mut gas = [1, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    gas[4..6].copy_from_slice(&port.to_le_bytes());
    gas
}

fn fadt_body(dsdt: u64) -> Vec<u8> {
    /// HW_REDUCED_ACPI, RESET_REG_SUP, "no power button", "no sleep button", WBINVD works.
    const FLAGS: u32 = 1 << 20 | 1 << 10 | 1 << 4 | 1 << 5 | 1;
    /// Boot flags: no VGA, no CMOS clock; neither "legacy devices" nor "8042".
    const IAPC: u16 = 1 << 2 | 1 << 5;
    let mut f = vec![0; 276 - 36];
    let mut put =
        |offset: usize, bytes: &[u8]| f[offset - 36..offset - 36 + bytes.len()].copy_from_slice(bytes);
    put(40, &(dsdt as u32).to_le_bytes());
    put(109, &IAPC.to_le_bytes());
    put(112, &FLAGS.to_le_bytes());
    put(116, &io_port(PORT_RESET));
    put(128, &[RESET_VALUE]);
    put(131, &[5]); // minor version
    put(140, &dsdt.to_le_bytes());
    put(244, &io_port(PORT_SLEEP));
    put(256, &io_port(PORT_SLEEP)); // status register: reads as zeroes would, never polled for S5
    f
}

fn madt_body(cpus: u32) -> Vec<u8> {
    let mut m = Vec::new();
    m.extend(LAPIC.to_le_bytes());
    m.extend(0u32.to_le_bytes());
    for id in 0..cpus as u8 {
        m.extend([0, 8, id, id, 1, 0, 0, 0]);
    }
    m.extend([1, 12, cpus as u8, 0]);
    m.extend(IOAPIC.to_le_bytes());
    m.extend(0u32.to_le_bytes());
    m
}

/// `Name (_S5, Package () {5})` and a PNP0501 device at 3F8h, IRQ 4.
fn dsdt_body() -> Vec<u8> {
    let mut aml = vec![0x08, b'_', b'S', b'5', b'_', 0x12, 0x04, 0x01, 0x0a, 0x05];
    #[rustfmt::skip]
    let resources: &[u8] = &[
        0x47, 0x01, 0xf8, 0x03, 0xf8, 0x03, 0x01, 0x08, // IO (Decode16, 3F8h, 3F8h, 1, 8)
        0x22, 0x10, 0x00,                               // IRQNoFlags {4}
        0x79, 0x00,                                     // end tag
    ];
    let mut device = b"COM1".to_vec();
    device.extend([0x08, b'_', b'H', b'I', b'D', 0x0c, 0x41, 0xd0, 0x05, 0x01]); // EISAID ("PNP0501")
    device.extend([0x08, b'_', b'U', b'I', b'D', 0x00]);
    device.extend([
        0x08,
        b'_',
        b'C',
        b'R',
        b'S',
        0x11,
        resources.len() as u8 + 3,
        0x0a,
        resources.len() as u8,
    ]);
    device.extend(resources);
    let mut scope = b"\\_SB_".to_vec();
    scope.extend([0x5b, 0x82, device.len() as u8 + 1]);
    scope.extend(device);
    assert!(scope.len() < 63, "a package length of one byte");
    aml.extend([0x10, scope.len() as u8 + 1]);
    aml.extend(scope);
    aml
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Follow the pointers as an operating system does; every table must sum to zero.
    #[test]
    fn tables_hang_together() {
        let blob = tables(3);
        let at = |gpa: u64| &blob[(gpa - BASE) as usize..];
        let u64_at = |b: &[u8], i: usize| u64::from_le_bytes(b[i..i + 8].try_into().expect("eight bytes"));
        let whole = |gpa: u64| {
            let t = at(gpa);
            let length = u32::from_le_bytes(t[4..8].try_into().expect("four bytes")) as usize;
            assert_eq!(checksum(&t[..length]), 0);
            &t[..length]
        };
        assert_eq!((&blob[..8], checksum(&blob[..20]), checksum(&blob[..36])), (&b"RSD PTR "[..], 0, 0));
        let xsdt = whole(u64_at(&blob, 24));
        let (fadt, madt) = (whole(u64_at(xsdt, 36)), whole(u64_at(xsdt, 44)));
        assert_eq!((&fadt[..4], fadt.len(), &madt[..4]), (&b"FACP"[..], 276, &b"APIC"[..]));
        assert_eq!(madt.len(), 44 + 3 * 8 + 12);
        assert_eq!(&whole(u64_at(fadt, 140))[..4], b"DSDT");
    }
}
