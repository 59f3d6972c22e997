//! Loading a Linux: an ELF vmlinux entered by PVH (Xen: docs/misc/pvh.pandoc, "x86/HVM direct boot ABI") or a bzImage
//! entered by the 64-bit protocol (Linux: Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

use crate::acpi;
use crate::memory::Ram;

/// GDT for the entry state.
pub const GDT: u64 = 0x500;
const START_INFO: u64 = 0x6000;
const BOOT_PARAMS: u64 = 0x7000;
const MEMMAP: u64 = 0x8000;
/// PML4, then one PDPT, then four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
const CMDLINE: u64 = 0x2_0000;
/// End of conventional memory.
const LOW_END: u64 = 0x9_fc00;
const HIGH: u64 = 0x10_0000;

/// Where a PC's firmware starts; Linux may jump here to reboot ("reboot=b").
const RESET_VECTOR: u64 = 0xf_fff0;
/// `mov al, 0xfe; out 0x64, al; hlt; jmp $-1`: all the firmware there is asks for a reset.
const RESET_CODE: [u8; 7] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];

/// How to enter the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode without paging, EBX = `info`.
    Pvh {
        /// Entry point.
        rip: u64,
        /// Guest-physical address of `hvm_start_info`.
        info: u64,
    },
    /// 64-bit mode on identity page tables, RSI = `params`.
    Linux64 {
        /// Entry point.
        rip: u64,
        /// Guest-physical address of `boot_params`.
        params: u64,
    },
}

/// Put kernel, initrd, command line, tables into `ram`.
///
/// # Errors
/// Neither format fits, or something does not fit into RAM.
pub fn load(
    ram: &Ram,
    kernel: &[u8],
    initrd: Option<&[u8]>,
    cmdline: &str,
    cpus: u32,
) -> Result<Entry, String> {
    ram.write(acpi::BASE, &acpi::tables(cpus))?;
    ram.write(RESET_VECTOR, &RESET_CODE)?;
    ram.write(CMDLINE, cmdline.as_bytes())?;
    ram.write(CMDLINE + cmdline.len() as u64, &[0])?;
    let initrd = initrd.map(|bytes| place_initrd(ram, bytes)).transpose()?;
    if kernel.starts_with(b"\x7fELF") {
        let rip = load_elf(ram, kernel)?;
        write_start_info(ram, initrd)?;
        Ok(Entry::Pvh { rip, info: START_INFO })
    } else {
        load_bzimage(ram, kernel, initrd)
    }
}

/// As high as the kernel is sure to reach (2 GiB), so that the kernel's own size does not matter.
fn place_initrd(ram: &Ram, bytes: &[u8]) -> Result<(u64, u64), String> {
    let top = ram.ranges()[0].1.min(0x7fff_f000);
    let start = top.checked_sub(bytes.len() as u64).ok_or("initrd larger than memory")? & !0xfff;
    if start < HIGH + (16 << 20) {
        return Err("initrd and kernel do not fit into memory".into());
    }
    ram.write(start, bytes)?;
    Ok((start, bytes.len() as u64))
}

fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(b.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(b.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(b.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

fn slice(b: &[u8], start: u64, length: u64) -> Option<&[u8]> {
    b.get(usize::try_from(start).ok()?..usize::try_from(start.checked_add(length)?).ok()?)
}

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// Copy the segments, find the entry in the note.
fn load_elf(ram: &Ram, file: &[u8]) -> Result<u64, String> {
    let bad = || "kernel: malformed ELF".to_string();
    if file.get(4..6) != Some(&[2, 1]) {
        return Err("kernel: not a 64-bit little-endian ELF".into());
    }
    let (table, size, count) = (
        u64_at(file, 32).ok_or_else(bad)? as usize,
        u16_at(file, 54).ok_or_else(bad)? as usize,
        u16_at(file, 56).ok_or_else(bad)? as usize,
    );
    let mut entry = None;
    for i in 0..count {
        let header = file.get(table.saturating_add(i * size)..).ok_or_else(bad)?;
        let kind = u32_at(header, 0).ok_or_else(bad)?;
        let (offset, paddr, filesz) = (
            u64_at(header, 8).ok_or_else(bad)?,
            u64_at(header, 24).ok_or_else(bad)?,
            u64_at(header, 32).ok_or_else(bad)?,
        );
        let bytes = slice(file, offset, filesz).ok_or_else(bad)?;
        match kind {
            PT_LOAD => ram.write(paddr, bytes)?,
            PT_NOTE => entry = entry.or_else(|| pvh_entry(bytes)),
            _ => {}
        }
    }
    entry.map(u64::from).ok_or_else(|| "kernel: ELF has no PVH note".into())
}

/// `XEN_ELFNOTE_PHYS32_ENTRY` (18) of owner "Xen".
fn pvh_entry(mut notes: &[u8]) -> Option<u32> {
    loop {
        let (namesz, descsz, kind) = (u32_at(notes, 0)?, u32_at(notes, 4)?, u32_at(notes, 8)?);
        let name_end = 12usize.checked_add(namesz as usize)?;
        let desc = name_end.checked_next_multiple_of(4)?;
        if kind == 18 && notes.get(12..name_end)? == b"Xen\0" {
            return u32_at(notes, desc);
        }
        notes = notes.get(desc.checked_add(descsz as usize)?.checked_next_multiple_of(4)?..)?;
    }
}

/// e820-style ranges: (start, length, type).
fn memory_map(ram: &Ram) -> Vec<(u64, u64, u32)> {
    let mut map = vec![(0, LOW_END, 1), (acpi::BASE, HIGH - acpi::BASE, 2)];
    for (start, length) in ram.ranges() {
        map.push(if start == 0 { (HIGH, length - HIGH, 1) } else { (start, length, 1) });
    }
    map
}

fn write_start_info(ram: &Ram, initrd: Option<(u64, u64)>) -> Result<(), String> {
    let mut map = Vec::new();
    for (start, length, kind) in memory_map(ram) {
        map.extend([start, length, u64::from(kind)]);
    }
    let entries = map.len() as u64 / 3;
    let modlist = MEMMAP + map.len() as u64 * 8;
    if let Some((start, length)) = initrd {
        map.extend([start, length, 0, 0]);
    }
    let modules = u64::from(initrd.is_some());
    let info = [
        0x336e_c578 | 1 << 32,
        modules << 32,
        if modules == 1 { modlist } else { 0 },
        CMDLINE,
        acpi::BASE,
        MEMMAP,
        entries,
    ];
    let flat = |words: &[u64]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    ram.write(MEMMAP, &flat(&map))?;
    ram.write(START_INFO, &flat(&info))
}

fn load_bzimage(ram: &Ram, file: &[u8], initrd: Option<(u64, u64)>) -> Result<Entry, String> {
    let bad = || "kernel: neither an ELF nor a bzImage with a 64-bit entry".to_string();
    let version = u16_at(file, 0x206).ok_or_else(bad)?;
    let xloadflags = u16_at(file, 0x236).ok_or_else(bad)?;
    if file.get(0x202..0x206) != Some(b"HdrS") || version < 0x20c || xloadflags & 1 == 0 {
        return Err(bad());
    }
    let setup_sectors = match file[0x1f1] {
        0 => 4,
        n => n as usize,
    };
    let image = file.get((setup_sectors + 1) * 512..).ok_or_else(bad)?;
    let load_at = u64_at(file, 0x258).ok_or_else(bad)?;
    let init_size = u64::from(u32_at(file, 0x260).ok_or_else(bad)?);
    let end = load_at.checked_add(init_size.max(image.len() as u64)).ok_or_else(bad)?;
    if load_at < HIGH || end > initrd.map_or(ram.ranges()[0].1, |(start, _)| start) {
        return Err("kernel: does not fit into memory".into());
    }
    ram.write(load_at, image)?;

    let mut params = vec![0u8; 4096];
    let header_end = (0x202 + file[0x201] as usize).min(0x290);
    params[0x1f1..header_end].copy_from_slice(&file[0x1f1..header_end]);
    let mut put = |at: usize, bytes: &[u8]| params[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x70, &acpi::BASE.to_le_bytes()); // acpi_rsdp_addr
    put(0x210, &[0xff]); // type_of_loader: none assigned
    put(0x228, &(CMDLINE as u32).to_le_bytes());
    if let Some((start, length)) = initrd {
        put(0x218, &(start as u32).to_le_bytes());
        put(0x21c, &(length as u32).to_le_bytes());
    }
    let map = memory_map(ram);
    put(0x1e8, &[map.len() as u8]);
    for (i, (start, length, kind)) in map.into_iter().enumerate() {
        put(0x2d0 + i * 20, &start.to_le_bytes());
        put(0x2d8 + i * 20, &length.to_le_bytes());
        put(0x2e0 + i * 20, &kind.to_le_bytes());
    }
    ram.write(BOOT_PARAMS, &params)?;
    write_identity_tables(ram)?;
    Ok(Entry::Linux64 { rip: load_at + 0x200, params: BOOT_PARAMS })
}

/// Map the first 4 GiB to themselves with 2 MiB pages.
///
/// # Errors
/// The tables do not fit into RAM.
pub fn write_identity_tables(ram: &Ram) -> Result<(), String> {
    const PRESENT_WRITE: u64 = 3;
    const LARGE: u64 = 0x80;
    let pdpt = PAGE_TABLES + 0x1000;
    ram.write(PAGE_TABLES, &(pdpt | PRESENT_WRITE).to_le_bytes())?;
    for gib in 0..4 {
        let directory = pdpt + 0x1000 * (gib + 1);
        ram.write(pdpt + gib * 8, &(directory | PRESENT_WRITE).to_le_bytes())?;
        let entries: Vec<u8> =
            (0..512).flat_map(|i| (gib << 30 | i << 21 | LARGE | PRESENT_WRITE).to_le_bytes()).collect();
        ram.write(directory, &entries)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
        let mut n = Vec::new();
        n.extend((name.len() as u32).to_le_bytes());
        n.extend((desc.len() as u32).to_le_bytes());
        n.extend(kind.to_le_bytes());
        n.extend(name);
        n.resize(n.len().next_multiple_of(4), 0);
        n.extend(desc);
        n.resize(n.len().next_multiple_of(4), 0);
        n
    }

    #[test]
    fn entry_is_found_behind_other_notes() {
        let notes = [
            note(b"GNU\0", 18, &[9; 20]),
            note(b"Xen\0", 6, b"linux"),
            note(b"Xen\0", 18, &[0x10, 0x20, 0, 1]),
        ];
        assert_eq!(pvh_entry(&notes.concat()), Some(0x0100_2010));
        assert_eq!(pvh_entry(&notes[..2].concat()), None);
    }

    #[test]
    fn elf_with_wild_offsets_is_refused() {
        let ram = Ram::new(32 << 20, false).expect("memory");
        let mut elf = vec![0u8; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32..40].copy_from_slice(&64u64.to_le_bytes());
        elf[54..56].copy_from_slice(&56u16.to_le_bytes());
        elf[56..58].copy_from_slice(&1u16.to_le_bytes());
        elf[64..68].copy_from_slice(&PT_LOAD.to_le_bytes());
        elf[72..80].copy_from_slice(&u64::MAX.to_le_bytes());
        elf[96..104].copy_from_slice(&16u64.to_le_bytes());
        assert!(load(&ram, &elf, None, "", 1).is_err());
        assert!(load(&ram, &elf[..70], None, "", 1).is_err());
        assert!(load(&ram, &[0; 1024], None, "", 1).is_err());
    }

    #[test]
    fn memory_map_leaves_the_device_hole() {
        let ram = Ram::new(4 << 30, false).expect("memory");
        let map = memory_map(&ram);
        assert_eq!(map[2], (HIGH, crate::memory::HOLE_START - HIGH, 1));
        assert_eq!(map[3], (crate::memory::HOLE_END, 1 << 30, 1));
    }
}
