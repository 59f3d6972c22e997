//! The little of ELF64 that xtask needs: dropping what is not loaded, and putting the names of the functions
//! where the running image finds them.
use anyhow::{Context, Result, ensure};
use hv_core::symbols;
use object::elf::FileHeader64;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol, SymbolKind};

/// The section that `hv/x86` leaves for the table of symbols.
const SYMBOLS: &str = ".symbols";
/// Longer names are cut: they are read by people, off a serial line.
const LONGEST_NAME: usize = 160;

/// An ELF64 file without sections, symbols and debug information: headers and segments stay where they are
/// (System V ABI, "ELF Header" and "Program Header"); but the table of the functions' names
/// ([`hv_core::symbols`]) is put into the section made for it, which is the last segment. Returns the number of
/// names, too. One null section header remains, since GRUB's multiboot2 loader refuses a file with none.
pub fn strip(elf: &[u8]) -> Result<(Vec<u8>, usize)> {
    let file = ElfFile64::<Endianness>::parse(elf)?;
    let section = file.section_by_name(SYMBOLS).with_context(|| format!("no section {SYMBOLS}"))?;
    let (address, old) = (section.address(), section.data()?);
    ensure!(symbols::total(old) == Some(old.len()), "the section {SYMBOLS} holds no empty table");
    let functions = functions(&file)?;
    let table = symbols::encode(&functions.iter().map(|(at, name)| (*at, name.as_str())).collect::<Vec<_>>());
    let mut out = loaded(elf)?;
    let at = segment_of(elf, address)?;
    let (offset, _) = section.file_range().with_context(|| format!("{SYMBOLS} has no bytes"))?;
    let start = usize::try_from(offset)?;
    ensure!(start + old.len() == out.len(), "{SYMBOLS} is not the end of the last segment");
    out.truncate(start);
    out.extend(&table);
    let size = (table.len() as u64).to_le_bytes();
    out[at + 32..at + 40].copy_from_slice(&size); // p_filesz
    out[at + 40..at + 48].copy_from_slice(&size); // p_memsz
    end_with_sections(&mut out);
    Ok((out, functions.len()))
}

/// Address and readable name of each function.
fn functions(file: &ElfFile64<'_>) -> Result<Vec<(u64, String)>> {
    let text = file.section_by_name(".text").context("no section .text")?;
    let mut found: Vec<(u64, bool, String)> = file
        .symbols()
        .filter(|s| s.section_index() == Some(text.index()))
        .filter_map(|s| {
            let name = s.name().ok().filter(|n| !n.is_empty() && !n.starts_with(['.', '$']))?;
            matches!(s.kind(), SymbolKind::Text | SymbolKind::Label | SymbolKind::Unknown)
                .then(|| (s.address(), s.size() == 0, readable(name)))
        })
        .collect();
    // Of several at one address the one with a size is the function itself.
    found.sort();
    found.dedup_by_key(|(address, ..)| *address);
    Ok(found.into_iter().map(|(address, _, name)| (address, name)).collect())
}

fn readable(name: &str) -> String {
    let name = format!("{:#}", rustc_demangle::demangle(name));
    match name.char_indices().nth(LONGEST_NAME) {
        Some((at, _)) => format!("{}..", &name[..at]),
        None => name,
    }
}

/// File offset of the program header of the segment at `address`, which must hold nothing else.
fn segment_of(elf: &[u8], address: u64) -> Result<usize> {
    let header = FileHeader64::<Endianness>::parse(elf)?;
    let endian = header.endian()?;
    let headers = header.program_headers(endian, elf)?;
    let index = headers.iter().position(|h| h.p_vaddr(endian) == address && h.p_filesz(endian) != 0);
    let index = index.with_context(|| format!("no segment of its own for {SYMBOLS}"))?;
    Ok(usize::try_from(header.e_phoff(endian))? + index * usize::from(header.e_phentsize(endian)))
}

/// The file up to the end of its last segment.
fn loaded(elf: &[u8]) -> Result<Vec<u8>> {
    ensure!(elf.get(..6) == Some(b"\x7fELF\x02\x01"), "not a little-endian ELF64 file");
    let half = |at: usize| {
        elf.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_le_bytes).context("cut off")
    };
    let word = |at: usize| {
        let bytes = elf.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        bytes.and_then(|v| usize::try_from(v).ok()).context("cut off")
    };
    let (table, entry, count) = (word(32)?, usize::from(half(54)?), usize::from(half(56)?));
    ensure!(entry >= 56, "odd program header size");
    let mut end = table + entry * count;
    for index in 0..count {
        let header = table + index * entry;
        let (offset, size) = (word(header + 8)?, word(header + 32)?);
        end = end.max(offset.checked_add(size).context("segment out of range")?);
    }
    Ok(elf.get(..end).context("segments reach beyond the file")?.to_vec())
}

/// Appends one null section header and says so in the ELF header.
fn end_with_sections(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(8), 0);
    let sections = out.len() as u64;
    out.resize(out.len() + 64, 0);
    out[40..48].copy_from_slice(&sections.to_le_bytes()); // e_shoff
    out[58..64].copy_from_slice(&[64, 0, 1, 0, 0, 0]); // e_shentsize, e_shnum, e_shstrndx
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut elf = vec![0; 64 + 56 + 100 + 50];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32] = 64; // e_phoff
        elf[40] = 220; // e_shoff
        elf[54] = 56;
        elf[56] = 1;
        elf[60] = 3; // e_shnum
        elf[64 + 8] = 120; // p_offset
        elf[64 + 32] = 100; // p_filesz
        elf
    }

    #[test]
    fn segments_stay_and_sections_go() {
        let mut out = loaded(&sample()).unwrap();
        end_with_sections(&mut out);
        assert_eq!(out.len(), 224 + 64);
        assert_eq!((out[40], out[58], out[60]), (224, 64, 1));
        assert!(out[224..].iter().all(|&b| b == 0));
    }

    #[test]
    fn a_segment_beyond_the_file_is_an_error() {
        let mut elf = sample();
        elf[64 + 34] = 1;
        assert!(loaded(&elf).is_err());
        assert!(loaded(b"MZ").is_err());
        assert!(strip(&sample()).is_err(), "no place for the names");
    }

    #[test]
    fn names_are_for_people() {
        assert_eq!(readable("_ZN6hv_x866report5panic17h0123456789abcdefE"), "hv_x86::report::panic");
        assert_eq!(readable("_RNvNtC6hv_x866report5panic"), "hv_x86::report::panic");
        assert_eq!(readable("svm_vmrun"), "svm_vmrun");
        assert_eq!(readable(&"é".repeat(200)).chars().count(), LONGEST_NAME + 2);
    }
}
