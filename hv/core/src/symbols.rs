//! The image's own symbol table: what turns an address in a panic's backtrace into a name.
//!
//! It is written behind the image by the build, which alone knows the addresses, and read by a panic, which
//! may neither allocate nor trust much: a table that makes no sense has no symbols.
//!
//! | offset | bytes | what (little-endian) |
//! |---|---|---|
//! | 0 | 8 | [`MAGIC`] |
//! | 8 | 4 | bytes of the whole table, these included |
//! | 12 | 4 | number of symbols; 0: the build has put nothing in |
//! | 16 | 8 | base address |
//! | 24 | 8 | 0 |
//! | 32 | 8 each | start of a function, relative to the base; offset in the table of its name |
//! | | | names: 2 bytes of length, then the name in UTF-8 |

use alloc::vec::Vec;

/// The first bytes of a table.
pub const MAGIC: [u8; 8] = *b"TESTSYM1";
/// Bytes before the first symbol.
pub const HEADER: usize = 32;
const ENTRY: usize = 8;

/// A function of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Its name.
    pub name: &'a str,
    /// How far behind its start the address lies, bytes.
    pub offset: u64,
}

/// A table in memory.
#[derive(Clone, Copy, Debug)]
pub struct Symbols<'a> {
    bytes: &'a [u8],
    base: u64,
    count: usize,
}

impl<'a> Symbols<'a> {
    /// The table at the start of `bytes`. `None`: there is none, or none with symbols.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        let bytes = bytes.get(..total(bytes)?)?;
        let count = usize::try_from(word(bytes, 12)?).ok()?;
        let base = u64::from(word(bytes, 16)?) | u64::from(word(bytes, 20)?) << 32;
        let fits = count.checked_mul(ENTRY)?.checked_add(HEADER)? <= bytes.len();
        (fits && count != 0).then_some(Symbols { bytes, base, count })
    }

    /// Number of symbols.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The function that `address` lies in or behind. `None`: it lies before all of them.
    pub fn find(&self, address: u64) -> Option<Symbol<'a>> {
        let offset = u32::try_from(address.checked_sub(self.base)?).ok()?;
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entry(middle)?.0 <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let (start, at) = self.entry(low.checked_sub(1)?)?;
        let at = usize::try_from(at).ok()?;
        let len = self.bytes.get(at..at.checked_add(2)?)?;
        let len = usize::from(u16::from_le_bytes([len[0], len[1]]));
        let name = self.bytes.get(at + 2..at.checked_add(2 + len)?)?;
        Some(Symbol { name: core::str::from_utf8(name).ok()?, offset: u64::from(offset.checked_sub(start)?) })
    }

    fn entry(&self, index: usize) -> Option<(u32, u32)> {
        let at = HEADER + index * ENTRY;
        Some((word(self.bytes, at)?, word(self.bytes, at + 4)?))
    }
}

/// Bytes of the table at the start of `bytes`, by its own header. `None`: there is no table.
pub fn total(bytes: &[u8]) -> Option<usize> {
    (bytes.get(..8)? == MAGIC).then_some(())?;
    usize::try_from(word(bytes, 8)?).ok().filter(|total| *total >= HEADER)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

/// Makes a table of functions (address, name). Names beyond 64 KiB and addresses beyond 4 GiB from the lowest
/// are left out; of several at one address the first stays.
pub fn encode(functions: &[(u64, &str)]) -> Vec<u8> {
    let mut sorted = functions.to_vec();
    sorted.sort_by_key(|(address, _)| *address);
    sorted.dedup_by_key(|(address, _)| *address);
    let base = sorted.first().map_or(0, |(address, _)| *address);
    sorted.retain(|(at, name)| u32::try_from(at - base).is_ok() && u16::try_from(name.len()).is_ok());
    let mut names = Vec::new();
    let mut entries = Vec::new();
    for (address, name) in &sorted {
        let at = HEADER + sorted.len() * ENTRY + names.len();
        entries.extend(((address - base) as u32).to_le_bytes());
        entries.extend((at as u32).to_le_bytes());
        names.extend((name.len() as u16).to_le_bytes());
        names.extend(name.as_bytes());
    }
    let mut out = Vec::from(MAGIC);
    out.extend(((HEADER + entries.len() + names.len()) as u32).to_le_bytes());
    out.extend((sorted.len() as u32).to_le_bytes());
    out.extend(base.to_le_bytes());
    out.extend([0; 8]);
    out.extend(entries);
    out.extend(names);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: u64 = 0xffff_ffff_8020_0000;

    fn table() -> Vec<u8> {
        encode(&[
            (TEXT + 0x40, "b::second"),
            (TEXT, "a::first"),
            (TEXT + 0x40, "alias"),
            (TEXT + 0x1000, "é"),
        ])
    }

    #[test]
    fn an_address_belongs_to_the_function_that_starts_before_it() {
        let mut bytes = table();
        bytes.extend(*b"what lies behind");
        let symbols = Symbols::new(&bytes).unwrap();
        let find = |at: u64| symbols.find(at).map(|s| (s.name, s.offset));
        assert_eq!(symbols.count(), 3);
        assert_eq!(find(TEXT - 1), None);
        assert_eq!(find(TEXT), Some(("a::first", 0)));
        assert_eq!(find(TEXT + 0x3f), Some(("a::first", 0x3f)));
        assert_eq!(find(TEXT + 0x40), Some(("b::second", 0)));
        assert_eq!(find(TEXT + 0x1007), Some(("é", 7)));
        assert_eq!(find(u64::MAX), Some(("é", u64::MAX - TEXT - 0x1000)));
        assert_eq!(find(0), None);
    }

    #[test]
    fn an_empty_table_and_none_have_no_symbols() {
        assert!(Symbols::new(&encode(&[])).is_none());
        assert_eq!(total(&encode(&[])), Some(HEADER));
        assert!(Symbols::new(&[]).is_none() && Symbols::new(&[0; 64]).is_none());
    }

    #[test]
    fn a_damaged_table_is_searched_without_harm() {
        let good = table();
        for cut in 0..good.len() {
            assert!(Symbols::new(&good[..cut]).is_none(), "cut at {cut}");
        }
        for at in 8..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                if let Some(symbols) = Symbols::new(&bad) {
                    for address in [0, TEXT, TEXT + 0x41, TEXT + 0x1000, u64::MAX] {
                        let _ = symbols.find(address);
                    }
                }
            }
        }
    }
}
