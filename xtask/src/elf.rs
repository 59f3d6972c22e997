//! The little of ELF64 that xtask needs: dropping what is not loaded.
use anyhow::{Context, Result, ensure};

/// An ELF64 file without sections, symbols and debug information: headers and segments stay where they are.
/// (System V ABI, "ELF Header" and "Program Header".) One null section header remains, since GRUB's
/// multiboot2 loader refuses a file with none.
pub fn strip(elf: &[u8]) -> Result<Vec<u8>> {
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
    let mut out = elf.get(..end).context("segments reach beyond the file")?.to_vec();
    out.resize(out.len().next_multiple_of(8), 0);
    let sections = out.len() as u64;
    out.resize(out.len() + 64, 0);
    out[40..48].copy_from_slice(&sections.to_le_bytes()); // e_shoff
    out[58..64].copy_from_slice(&[64, 0, 1, 0, 0, 0]); // e_shentsize, e_shnum, e_shstrndx
    Ok(out)
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
        let out = strip(&sample()).unwrap();
        assert_eq!(out.len(), 224 + 64);
        assert_eq!((out[40], out[58], out[60]), (224, 64, 1));
        assert!(out[224..].iter().all(|&b| b == 0));
    }

    #[test]
    fn a_segment_beyond_the_file_is_an_error() {
        let mut elf = sample();
        elf[64 + 34] = 1;
        assert!(strip(&elf).is_err());
        assert!(strip(b"MZ").is_err());
    }
}
