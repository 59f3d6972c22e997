//! The MSR and I/O bitmaps: where a bit lies, what L1's bitmap says, and the merged one of vmcs02.
//!
//! Sources: SDM vol. 3, "MSR-Bitmap Address", "I/O-Bitmap Addresses", "Virtualizing MSR-Based APIC Accesses".
//! A set bit causes an exit. The merged map is L0's OR L1's; L0's lets only few accesses through, so only the
//! words that hold these are read from L1's page.

use crate::bits::{primary, secondary};
use crate::vmcs12::Vmcs12;
use addr::Gpa;

/// Words of an MSR bitmap, 4 KiB.
pub const MSR_WORDS: usize = 512;
/// Words of both I/O bitmaps, 8 KiB.
pub const IO_WORDS: usize = 1024;

/// Byte and bit of an access to `msr` in the MSR bitmap; `None` for an MSR outside both ranges, which always
/// exits.
#[inline]
pub const fn msr_bit(msr: u32, write: bool) -> Option<(usize, u32)> {
    let base = match msr >> 13 {
        0 => 0,
        0x6_0000 => 0x400,
        _ => return None,
    };
    let index = msr & 0x1fff;
    Some((base + if write { 0x800 } else { 0 } + index as usize / 8, index % 8))
}

/// L1's bitmaps as they are now, byte by byte. Where L1 has no memory all bytes are ones.
pub trait Maps12 {
    /// Byte `offset` of the MSR bitmap.
    fn msr(&self, offset: usize) -> u8;
    /// Byte `offset` of I/O bitmaps A and B.
    fn io(&self, offset: usize) -> u8;
    /// Byte `offset` of the VMREAD bitmap.
    fn vmread(&self, offset: usize) -> u8;
    /// Byte `offset` of the VMWRITE bitmap.
    fn vmwrite(&self, offset: usize) -> u8;
}

/// Whether L1 wants an access of L2's to `msr`.
#[inline]
pub fn msr_exits(v: &Vmcs12, maps: &impl Maps12, msr: u32, write: bool) -> bool {
    match msr_bit(msr, write) {
        Some((byte, bit)) if v.primary(primary::MSR_BITMAPS) => maps.msr(byte) >> bit & 1 != 0,
        _ => true,
    }
}

/// A port access, as the exit qualification describes it (SDM vol. 3, "Exit Qualification for I/O
/// Instructions").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoAccess {
    /// First port.
    pub port: u16,
    /// Bytes: 1, 2 or 4.
    pub size: u8,
}

impl IoAccess {
    /// Decodes an exit qualification. A size that no processor reports is taken as the largest.
    #[inline]
    pub const fn from_qualification(q: u64) -> Self {
        let size = match q & 7 {
            0 => 1,
            1 => 2,
            _ => 4,
        };
        Self { port: (q >> 16) as u16, size }
    }
}

/// Whether L1 wants a port access of L2's: any byte of it, and every one that wraps around the port space.
#[inline]
pub fn io_exits(v: &Vmcs12, maps: &impl Maps12, access: IoAccess) -> bool {
    if !v.primary(primary::IO_BITMAPS) {
        return v.primary(primary::UNCONDITIONAL_IO);
    }
    let first = u32::from(access.port);
    let ports = first..first + u32::from(access.size.min(4));
    ports.end > 0x1_0000 || ports.into_iter().any(|p| maps.io(p as usize / 8) >> (p % 8) & 1 != 0)
}

/// Which x2APIC accesses the processor virtualizes for L2, as bits that may be clear in vmcs02's bitmap. What
/// is not virtualized would reach the machine's own local APIC (CVE-2019-3887), so nothing else of the range
/// is ever clear, whatever L0's bitmap for L1 says.
fn x2apic_open(lent: u32, word: usize) -> u64 {
    const READS: core::ops::Range<usize> = 0x20..0x24;
    const WRITES: core::ops::Range<usize> = 0x120..0x124;
    let has = |bits| lent & bits == bits;
    if !has(secondary::X2APIC) {
        return 0;
    }
    let tpr = 1 << 8;
    match word {
        w if READS.contains(&w) && has(secondary::APIC_REGISTERS) => u64::MAX,
        0x20 | 0x120 => {
            let eoi_and_self_ipi = has(secondary::INTERRUPT_DELIVERY) && WRITES.contains(&word);
            tpr | if eoi_and_self_ipi { 1 << 0xb | 1 << 0x3f } else { 0 }
        }
        _ => 0,
    }
}

/// Words that belong to x2APIC MSRs (800h to 8FFh), reads and writes.
const fn is_x2apic(word: usize) -> bool {
    matches!(word, 0x20..=0x23 | 0x120..=0x123)
}

/// L0's own map for a domain: its bits, and the words that let something through.
#[derive(Clone, Copy, Debug)]
pub struct L0Map<'a> {
    /// The bits.
    pub bits: &'a [u64],
    /// Indexes of words with a zero, ascending.
    pub open: &'a [u16],
    /// Changes whenever the bits do. Never 0.
    pub generation: u64,
}

/// What a merged map was made from. One per map of each vmcs02.
#[derive(Clone, Copy, Debug, Default)]
pub struct MergedMap {
    generation01: u64,
    from: Option<(Option<Gpa>, u32, Option<u64>)>,
}

impl MergedMap {
    /// A map that was never made.
    pub const fn new() -> Self {
        Self { generation01: 0, from: None }
    }
    /// Forgets what the map was made from.
    pub fn invalidate(&mut self) {
        *self = Self::new();
    }

    /// Brings the MSR bitmap `out` of vmcs02 up to date. `base` is the address of L1's, `None` if L1 uses
    /// none (then everything exits). `lent` are the secondary controls of vmcs02. `stamp` changes with each
    /// write to L1's map, if the caller knows; without it the open words are read again each time. `read`
    /// gives word `n` of L1's map. Returns whether anything was done.
    pub fn msr(
        &mut self,
        l0: L0Map<'_>,
        base: Option<Gpa>,
        lent: u32,
        stamp: Option<u64>,
        read: impl Fn(usize) -> u64,
        out: &mut [u64],
    ) -> bool {
        let lent = lent & (secondary::X2APIC | secondary::APIC_REGISTERS | secondary::INTERRUPT_DELIVERY);
        let x2apic = [0x20, 0x21, 0x22, 0x23, 0x120, 0x121, 0x122, 0x123];
        let extra = if base.is_some() { &x2apic[..] } else { &[] };
        self.refresh(l0, (base, lent, stamp), extra, out, |word, ours| {
            if base.is_none() {
                u64::MAX
            } else if is_x2apic(word) {
                !x2apic_open(lent, word) | read(word)
            } else {
                ours | read(word)
            }
        })
    }

    /// Brings the I/O bitmaps `out` of vmcs02 up to date, as [`MergedMap::msr`]. `base` is `None` if L1 asks
    /// for no I/O exits at all.
    pub fn io(
        &mut self,
        l0: L0Map<'_>,
        base: Option<Gpa>,
        stamp: Option<u64>,
        read: impl Fn(usize) -> u64,
        out: &mut [u64],
    ) -> bool {
        let theirs = |word| if base.is_some() { read(word) } else { 0 };
        self.refresh(l0, (base, 0, stamp), &[], out, |word, ours| ours | theirs(word))
    }

    fn refresh(
        &mut self,
        l0: L0Map<'_>,
        key: (Option<Gpa>, u32, Option<u64>),
        extra: &[usize],
        out: &mut [u64],
        word: impl Fn(usize, u64) -> u64,
    ) -> bool {
        let known = self.generation01 == l0.generation;
        let stable = key.0.is_none() || key.2.is_some();
        if known && stable && self.from == Some(key) {
            return false;
        }
        // Words that neither side opens are ones, also where L0's map is shorter, and x2APIC words that were
        // lent before.
        if !known || self.from.map(|f| (f.0.is_some(), f.1)) != Some((key.0.is_some(), key.1)) {
            out.iter_mut().for_each(|word| *word = u64::MAX);
        }
        let open = l0.open.iter().map(|i| usize::from(*i)).chain(extra.iter().copied());
        for index in open {
            if let (Some(slot), Some(&ours)) = (out.get_mut(index), l0.bits.get(index)) {
                *slot = word(index, ours);
            }
        }
        (self.generation01, self.from) = (l0.generation, Some(key));
        true
    }
}
