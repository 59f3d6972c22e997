//! MSR and I/O permission maps: where a bit lies, what L1's map says, and the merged map of vmcb02.
//!
//! Source: APM vol. 2, "MSR Intercepts" and "IOIO Intercepts". A set bit intercepts. The merged map is L0's
//! map OR L1's, so an access reaches the machine only if both allow it. L0's map lets only few
//! accesses through, so only the words that hold them are merged; all others are ones for ever.

use addr::{Gpa, GuestPage};

/// Words of an MSR permission map, 8 KiB.
pub const MSRPM_WORDS: usize = 1024;
/// Words of an I/O permission map, 12 KiB.
pub const IOPM_WORDS: usize = 1536;

/// Bit of RDMSR of `msr` in the MSR permission map (WRMSR's is the next); `None` for an MSR outside the
/// three ranges, which is always intercepted.
#[inline]
pub const fn msr_bit(msr: u32) -> Option<u16> {
    let index = msr & 0x1fff;
    let range = match msr >> 13 {
        0 => 0,
        0x6_0000 => 1,
        0x6_0008 => 2,
        _ => return None,
    };
    Some((range * 0x4000 + index * 2) as u16)
}

/// L1's maps as they are now, byte by byte.
pub trait Perm12 {
    /// Byte `offset` of the MSR permission map.
    fn msr_byte(&self, offset: usize) -> u8;
    /// Byte `offset` of the I/O permission map.
    fn io_byte(&self, offset: usize) -> u8;
}

/// L1's maps by their pinned pages. A page that could not be pinned reads as all ones, as an address
/// without memory does.
#[derive(Clone, Debug)]
pub struct Maps12<P> {
    /// The two pages of the MSR permission map.
    pub msrpm: [Option<P>; 2],
    /// The three pages of the I/O permission map.
    pub iopm: [Option<P>; 3],
}

impl<P: GuestPage> Perm12 for Maps12<P> {
    #[inline]
    fn msr_byte(&self, offset: usize) -> u8 {
        byte(&self.msrpm, offset)
    }
    #[inline]
    fn io_byte(&self, offset: usize) -> u8 {
        byte(&self.iopm, offset)
    }
}

#[inline]
fn byte<P: GuestPage>(pages: &[Option<P>], offset: usize) -> u8 {
    match pages.get(offset / 4096) {
        Some(Some(page)) => page.read_u8(offset % 4096),
        _ => !0,
    }
}

/// Word `index` of a map by its pinned pages; all ones where there is no memory. For
/// [`MergedMap::refresh`].
#[inline]
pub fn map_word<P: GuestPage>(pages: &[Option<P>], index: usize) -> u64 {
    match pages.get(index / 512) {
        Some(Some(page)) => page.read_u64(index % 512 * 8),
        _ => !0,
    }
}

/// Whether L1's MSR permission map intercepts this access to `msr`.
#[inline]
pub fn msr_intercepted(perm: &impl Perm12, msr: u32, write: bool) -> bool {
    match msr_bit(msr) {
        Some(bit) => perm.msr_byte(usize::from(bit / 8)) >> (bit % 8 + u16::from(write)) & 1 != 0,
        None => true,
    }
}

/// A port access, as EXITINFO1 of an IOIO exit describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoAccess {
    /// First port.
    pub port: u16,
    /// Bytes: 1, 2 or 4.
    pub size: u8,
}

impl IoAccess {
    /// Decodes EXITINFO1 (APM vol. 2, "IN and OUT Behavior"): port in 31:16, size in 6:4. A size that
    /// no processor reports is taken as the largest one.
    #[inline]
    pub const fn from_info(info1: u64) -> Self {
        let size = match info1 >> 4 & 7 {
            1 => 1,
            2 => 2,
            _ => 4,
        };
        Self { port: (info1 >> 16) as u16, size }
    }
}

/// Whether L1's I/O permission map intercepts any byte of `access`. Past port FFFFh the map goes on with the
/// three bits that the manual keeps for such accesses.
#[inline]
pub fn io_intercepted(perm: &impl Perm12, access: IoAccess) -> bool {
    let first = usize::from(access.port);
    let wanted = (1u16 << access.size.min(4)) - 1;
    let shift = first % 8;
    let low = u16::from(perm.io_byte(first / 8));
    // The second byte is read only if the access reaches into it.
    let high = if shift + usize::from(access.size.min(4)) > 8 { perm.io_byte(first / 8 + 1) } else { 0 };
    (low | u16::from(high) << 8) >> shift & wanted != 0
}

/// Most words with a zero that [`OpenWords`] lists.
const MAX_OPEN: usize = 64;

/// The words of L0's map that let something through.
#[derive(Clone, Debug)]
pub struct OpenWords {
    list: [u16; MAX_OPEN],
    /// `None`: more than the list holds, take every word.
    len: Option<u8>,
}

impl OpenWords {
    /// Finds them in L0's `map`.
    pub fn of(map: &[u64]) -> Self {
        let mut open = Self { list: [0; MAX_OPEN], len: Some(0) };
        for (index, _) in map.iter().enumerate().filter(|(_, word)| **word != !0) {
            open.len = match open.len {
                Some(n) if usize::from(n) < MAX_OPEN => {
                    open.list[usize::from(n)] = index as u16;
                    Some(n + 1)
                }
                _ => None,
            };
        }
        open
    }

    #[inline]
    fn for_each(&self, words: usize, mut f: impl FnMut(usize)) {
        match self.len {
            Some(n) => self.list[..usize::from(n)].iter().for_each(|&i| f(usize::from(i))),
            None => (0..words).for_each(f),
        }
    }
}

/// L0's own map for a domain.
#[derive(Clone, Copy, Debug)]
pub struct L0Map<'a> {
    /// The bits.
    pub bits: &'a [u64],
    /// Where they have zeros.
    pub open: &'a OpenWords,
    /// Changes whenever the bits do. Never 0.
    pub generation: u64,
}

/// What a merged map was made from. One per map of each vmcb02.
#[derive(Clone, Copy, Debug, Default)]
pub struct MergedMap {
    generation01: u64,
    from: Option<(Option<Gpa>, Option<u64>)>,
}

impl MergedMap {
    /// A map that was never made.
    pub const fn new() -> Self {
        Self { generation01: 0, from: None }
    }

    /// Forgets what the map was made from: after a restore, or when the pages behind the address changed.
    pub fn invalidate(&mut self) {
        *self = Self::new();
    }

    /// Brings `out` up to date. `base` is the address of L1's map, `None` if L1 doesn't intercept that
    /// class of accesses at all. `source` is a stamp that changes with every write to L1's map, if the
    /// caller has one (write protection, or L1's word by an enlightenment); without it the open words
    /// are read again each time, as L1 may edit its map with no notice. `read` gives word `n` of L1's map.
    ///
    /// Returns whether anything was done.
    #[inline]
    pub fn refresh(
        &mut self,
        l0: L0Map<'_>,
        base: Option<Gpa>,
        source: Option<u64>,
        read: impl Fn(usize) -> u64,
        out: &mut [u64],
    ) -> bool {
        let known = self.generation01 == l0.generation;
        let stable = base.is_none() || source.is_some();
        if known && stable && self.from == Some((base, source)) {
            return false;
        }
        if !known {
            // Words that neither side can open are ones, also where L0's map is shorter than ours.
            out.iter_mut().for_each(|word| *word = !0);
        }
        l0.open.for_each(l0.bits.len(), |index| {
            if let (Some(slot), Some(&ours)) = (out.get_mut(index), l0.bits.get(index)) {
                *slot = ours | if base.is_some() { read(index) } else { 0 };
            }
        });
        (self.generation01, self.from) = (l0.generation, Some((base, source)));
        true
    }
}
