//! The one thing wanted from the definition blocks: how to enter S5 (soft off).

use crate::bytes::{u8_at, u16_at};

/// The SLP_TYP values of a sleep state (ACPI 6.5, 7.4.2): what goes into bits 10..=12 of PM1a_CNT and
/// PM1b_CNT, together with SLP_EN (bit 13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SleepType {
    /// For PM1a_CNT (and for the sleep control register of hardware-reduced machines), 0..=7.
    pub a: u8,
    /// For PM1b_CNT, 0..=7.
    pub b: u8,
}

impl SleepType {
    /// Finds `Name (\_S5, Package {a, b, …})` in a DSDT or SSDT by its encoding (20.2.5.1, 20.2.5.4), not by
    /// interpreting: a name that is made only under a condition is found too, which on real machines is the
    /// one that holds. Linear in the table's length.
    pub fn find(table: &[u8]) -> Option<Self> {
        const NAME_OP: u8 = 0x08;
        table.windows(4).enumerate().filter(|(_, word)| word == b"_S5_").find_map(|(at, _)| {
            let before = |n: usize| at.checked_sub(n).and_then(|at| u8_at(table, at));
            let named = before(1) == Some(NAME_OP) || before(1) == Some(b'\\') && before(2) == Some(NAME_OP);
            named.then(|| Self::package(table.get(at + 4..)?)).flatten()
        })
    }

    fn package(aml: &[u8]) -> Option<Self> {
        const PACKAGE_OP: u8 = 0x12;
        if u8_at(aml, 0)? != PACKAGE_OP {
            return None;
        }
        // PkgLength (20.2.4): the two top bits of its first byte count further bytes. Then NumElements.
        let elements = 2 + usize::from(u8_at(aml, 1)? >> 6);
        let count = u8_at(aml, elements)?;
        let (a, length) = integer(aml.get(elements + 1..)?)?;
        // A package of one element holds both values, b in the second byte.
        let b = match count {
            0 => return None,
            1 => a >> 8,
            _ => integer(aml.get(elements + 1 + length..)?)?.0,
        };
        Some(Self { a: (a & 7) as u8, b: (b & 7) as u8 })
    }
}

/// An integer constant of up to 16 bits, and the bytes it takes (20.2.3).
fn integer(aml: &[u8]) -> Option<(u16, usize)> {
    match u8_at(aml, 0)? {
        0x00 => Some((0, 1)),
        0x01 => Some((1, 1)),
        0x0a => Some((u8_at(aml, 1)?.into(), 2)),
        0x0b => Some((u16_at(aml, 1)?, 3)),
        // A dword constant, as some compilers write every number.
        0x0c => Some((u16_at(aml, 1)?, 5)),
        _ => None,
    }
}
