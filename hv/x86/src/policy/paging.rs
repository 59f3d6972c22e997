//! The guest's own page tables, walked in software: guest linear to guest physical.
//!
//! For hypercall buffers, instruction fetch and emulation. All formats of AMD APM vol. 2, chapter 5 "Page
//! Translation and Protection": none, 32-bit (with PSE and PSE-36), PAE, 4 and 5 levels; with the checks of
//! its section "Page-Protection Checks" (U/S, R/W with CR0.WP, NX, SMEP, SMAP, protection keys). The tables
//! are the guest's and change while we look: each entry is read once, the copy is used, and the levels bound
//! the walk.

use addr::{FaultReason, Gpa, GuestFault, GuestMemory, GuestPage, Gva, page_chunks};

/// CR0.WP: supervisor writes honour read-only pages.
pub const CR0_WP: u64 = 1 << 16;
/// CR0.PG: paging.
pub const CR0_PG: u64 = 1 << 31;
/// CR4.PSE: 4 MiB pages in 32-bit tables.
pub const CR4_PSE: u64 = 1 << 4;
/// CR4.PAE.
pub const CR4_PAE: u64 = 1 << 5;
/// CR4.LA57: five levels.
pub const CR4_LA57: u64 = 1 << 12;
/// CR4.SMEP.
pub const CR4_SMEP: u64 = 1 << 20;
/// CR4.SMAP.
pub const CR4_SMAP: u64 = 1 << 21;
/// CR4.PKE: protection keys for user pages.
pub const CR4_PKE: u64 = 1 << 22;
/// EFER.LMA: long mode.
pub const EFER_LMA: u64 = 1 << 10;
/// EFER.NXE.
pub const EFER_NXE: u64 = 1 << 11;
/// RFLAGS.AC: with SMAP, lets the supervisor reach user pages.
pub const RFLAGS_AC: u64 = 1 << 18;

const P: u64 = 1 << 0;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const NX: u64 = 1 << 63;
/// Bits 51:12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// How often a walk is begun again because the guest changed an entry while its A or D bit was set.
const ATTEMPTS: usize = 8;

/// The registers a walk depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PagingState {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// RFLAGS, of which AC counts.
    pub rflags: u64,
    /// PKRU, if CR4.PKE is set.
    pub pkru: u32,
    /// Guest-physical address width in bits, as the guest's CPUID says; more are reserved bits.
    pub max_phys: u8,
    /// Whether the guest's CPUID offers 1 GiB pages.
    pub gigabyte_pages: bool,
}

/// What is done at the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A data read.
    Read,
    /// A data write.
    Write,
    /// An instruction fetch.
    Execute,
}

/// On whose authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// CPL 3.
    User,
    /// CPL 0 to 2, an explicit access: RFLAGS.AC lifts SMAP.
    Supervisor,
    /// The CPU's own access to a system structure (descriptor tables, TSS): AC does not count.
    Implicit,
}

/// Whether a walk leaves traces in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessBits {
    /// Sets the accessed and dirty bits, as the CPU would.
    Set,
    /// Only looks.
    Keep,
}

/// A page fault, to be injected if it was the guest's instruction that caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// For CR2.
    pub gva: Gva,
    /// APM vol. 2, "#PF Page-Fault Exception": P 0, R/W 1, U/S 2, RSV 3, I/D 4, PK 5.
    pub error_code: u32,
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// The guest's tables say no.
    PageFault(PageFault),
    /// The address is not canonical: #GP, or #SS for a stack access.
    NotCanonical(Gva),
    /// A table, or in a copy the page itself, is not in the guest's RAM.
    Memory(GuestFault),
    /// Other CPUs of the guest kept changing the entries; the instruction may be tried again.
    Unstable,
}

impl From<GuestFault> for WalkError {
    fn from(fault: GuestFault) -> Self {
        WalkError::Memory(fault)
    }
}

/// A translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked {
    /// Where the byte is.
    pub gpa: Gpa,
    /// log2 of the page it lies in: 12, 21, 22 (32-bit tables), 30; 32 or more without paging.
    pub page_shift: u32,
}

/// Error code bits.
mod error {
    pub const P: u32 = 1 << 0;
    pub const W: u32 = 1 << 1;
    pub const U: u32 = 1 << 2;
    pub const RSV: u32 = 1 << 3;
    pub const ID: u32 = 1 << 4;
    pub const PK: u32 = 1 << 5;
}

/// One table format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Format {
    levels: u32,
    /// log2 of the entries per table.
    index_bits: u32,
    /// Bytes per entry.
    entry_bytes: u64,
    /// Bits of the linear address in use.
    linear_bits: u32,
    /// Which bits of CR3 are the top table's address.
    cr3_mask: u64,
}

impl Format {
    /// levels, index bits, entry bytes, linear bits, CR3 mask (APM vol. 2, figures "CR3" of each mode).
    const LEGACY: Format = Format::new(2, 10, 4, 32, 0xffff_f000);
    const PAE: Format = Format::new(3, 9, 8, 32, 0xffff_ffe0);
    const LONG4: Format = Format::new(4, 9, 8, 48, ADDRESS);
    const LONG5: Format = Format::new(5, 9, 8, 57, ADDRESS);

    const fn new(levels: u32, index_bits: u32, entry_bytes: u64, linear_bits: u32, cr3_mask: u64) -> Self {
        Format { levels, index_bits, entry_bytes, linear_bits, cr3_mask }
    }

    /// The format in use; `None` without paging.
    fn of(state: &PagingState) -> Option<Format> {
        if state.cr0 & CR0_PG == 0 {
            return None;
        }
        Some(match (state.efer & EFER_LMA != 0, state.cr4 & CR4_PAE != 0, state.cr4 & CR4_LA57 != 0) {
            (true, _, false) => Format::LONG4,
            (true, _, true) => Format::LONG5,
            (false, true, _) => Format::PAE,
            (false, false, _) => Format::LEGACY,
        })
    }

    const fn shift(self, level: u32) -> u32 {
        12 + (level - 1) * self.index_bits
    }
    const fn is_long(self) -> bool {
        self.levels >= 4
    }
    /// PAE's four top entries have neither rights nor an accessed bit.
    const fn is_bare(self, level: u32) -> bool {
        self.levels == 3 && level == 3
    }
}

impl PagingState {
    /// Whether an entry with PS set at `level` is a page; where it is not, PS is reserved or ignored.
    fn page_at(&self, format: Format, level: u32) -> bool {
        match (level, format.levels) {
            (2, 2) => self.cr4 & CR4_PSE != 0,
            (2, _) => true,
            (3, 4 | 5) => self.gigabyte_pages,
            _ => false,
        }
    }

    /// The bits that must be zero in an entry (APM vol. 2, chapter 5, the entry figures of each mode).
    fn reserved(&self, format: Format, level: u32, is_page: bool) -> u64 {
        let above_phys = ADDRESS & !((1 << u32::from(self.max_phys).clamp(32, 52)) - 1);
        if format.levels == 2 {
            // PSE-36: bits 20:13 of a 4 MiB entry are address bits 39:32; bit 21 is reserved.
            return if is_page { 1 << 21 | (above_phys >> 32 & 0xff) << 13 } else { 0 };
        }
        let mut reserved = above_phys;
        if format.is_long() {
            reserved |= if self.efer & EFER_NXE == 0 { NX } else { 0 };
        } else {
            // Bits 62:52, available in long mode, must be zero in PAE tables.
            reserved |= 0x7ff0_0000_0000_0000;
            reserved |= if self.efer & EFER_NXE == 0 || format.is_bare(level) { NX } else { 0 };
        }
        if format.is_bare(level) {
            // The accessed bit (5) is reserved as well, but an emulator's own walk sets it in memory, and
            // hardware looks at these entries when CR3 is loaded, not here.
            return reserved | 0x1c6;
        }
        match (is_page, level) {
            (true, 2) => reserved | 0x001f_e000,
            (true, 3) => reserved | 0x3fff_e000,
            // PS where no page can be: reserved at levels 3 and up.
            (false, 3..) => reserved | PS,
            _ => reserved,
        }
    }

    /// Instruction fetches are told apart in the error code only where something depends on it.
    fn reports_fetch(&self) -> bool {
        let nx = self.efer & EFER_NXE != 0 && self.cr4 & CR4_PAE != 0;
        nx || self.cr4 & CR4_SMEP != 0
    }
}

/// The rights that all levels together leave.
#[derive(Clone, Copy, Debug)]
struct Rights {
    writable: bool,
    user: bool,
    no_execute: bool,
    key: u32,
}

/// The rights check behind a walk: 0, or the error code's bits beside those that name the access.
fn violation(state: &PagingState, rights: Rights, access: Access, privilege: Privilege, long: bool) -> u32 {
    let by_user = privilege == Privilege::User;
    let honours_ro = by_user || state.cr0 & CR0_WP != 0;
    let data = access != Access::Execute;
    let ac_counts = privilege == Privilege::Supervisor;
    let smap = state.cr4 & CR4_SMAP != 0 && !(ac_counts && state.rflags & RFLAGS_AC != 0);
    let smep = state.cr4 & CR4_SMEP != 0;

    let denied = (by_user && !rights.user)
        || (access == Access::Write && !rights.writable && honours_ro)
        || (!data && rights.no_execute)
        || (!data && smep && rights.user && !by_user)
        || (data && smap && rights.user && !by_user);

    // PKRU has two bits per key: access disabled, write disabled.
    let key_bits = state.pkru >> (2 * rights.key);
    let keyed = long && state.cr4 & CR4_PKE != 0 && rights.user && data;
    let key_denies =
        keyed && (key_bits & 1 != 0 || key_bits & 2 != 0 && access == Access::Write && honours_ro);

    match (denied, key_denies) {
        (false, false) => 0,
        (_, true) => error::P | error::PK,
        (true, false) => error::P,
    }
}

/// An entry as read, and where to set its bits.
struct Step<P> {
    page: P,
    offset: usize,
    entry: u64,
}

/// Translates one address. Total over whatever the tables hold.
pub fn walk<M: GuestMemory>(
    state: &PagingState,
    memory: &M,
    gva: Gva,
    access: Access,
    privilege: Privilege,
    bits: AccessBits,
) -> Result<Walked, WalkError> {
    let Some(format) = Format::of(state) else {
        return Ok(Walked { gpa: Gpa::new(gva.raw() & 0xffff_ffff), page_shift: 32 });
    };
    let linear = linear_of(format, gva)?;
    for _ in 0..ATTEMPTS {
        let mut steps: [Option<Step<M::Page>>; 5] = [const { None }; 5];
        let walked =
            walk_once(state, memory, format, linear, access, privilege, &mut steps).map_err(|failure| {
                match failure {
                    Failure::Fault(code) => WalkError::PageFault(PageFault {
                        gva,
                        error_code: code | named(state, access, privilege),
                    }),
                    Failure::Memory(fault) => WalkError::Memory(fault),
                }
            })?;
        if bits == AccessBits::Keep || set_bits(format, &steps, access) {
            return Ok(walked);
        }
    }
    Err(WalkError::Unstable)
}

/// [`walk`] without leaving traces, when only the address counts.
pub fn translate<M: GuestMemory>(
    state: &PagingState,
    memory: &M,
    gva: Gva,
    access: Access,
    privilege: Privilege,
) -> Result<Gpa, WalkError> {
    walk(state, memory, gva, access, privilege, AccessBits::Keep).map(|walked| walked.gpa)
}

/// The bits of the address that are translated; in long mode it must be canonical.
fn linear_of(format: Format, gva: Gva) -> Result<u64, WalkError> {
    if !format.is_long() {
        return Ok(gva.raw() & 0xffff_ffff);
    }
    let unused = 64 - format.linear_bits;
    let extended = ((gva.raw() << unused) as i64 >> unused) as u64;
    if extended == gva.raw() { Ok(gva.raw()) } else { Err(WalkError::NotCanonical(gva)) }
}

/// The error-code bits that name the access.
fn named(state: &PagingState, access: Access, privilege: Privilege) -> u32 {
    let user = if privilege == Privilege::User { error::U } else { 0 };
    user | match access {
        Access::Read => 0,
        Access::Write => error::W,
        Access::Execute if state.reports_fetch() => error::ID,
        Access::Execute => 0,
    }
}

enum Failure {
    Fault(u32),
    Memory(GuestFault),
}

fn walk_once<M: GuestMemory>(
    state: &PagingState,
    memory: &M,
    format: Format,
    linear: u64,
    access: Access,
    privilege: Privilege,
    steps: &mut [Option<Step<M::Page>>; 5],
) -> Result<Walked, Failure> {
    let mut table = state.cr3 & format.cr3_mask;
    let mut rights = Rights { writable: true, user: true, no_execute: false, key: 0 };
    for level in (1..=format.levels).rev() {
        let shift = format.shift(level);
        let index = linear >> shift & ((1 << format.index_bits) - 1);
        // PAE's top table has four entries, and bits 31:30 are all that is left of the address.
        let at = Gpa::new(table + index * format.entry_bytes);
        let page = memory.pin(at.frame()).map_err(Failure::Memory)?;
        let entry = match format.entry_bytes {
            4 => u64::from(page.read_u32(at.page_offset())),
            _ => page.read_u64(at.page_offset()),
        };
        if entry & P == 0 {
            return Err(Failure::Fault(0));
        }
        let is_page = level == 1 || entry & PS != 0 && state.page_at(format, level);
        if entry & state.reserved(format, level, is_page) != 0 {
            return Err(Failure::Fault(error::P | error::RSV));
        }
        if !format.is_bare(level) {
            rights.writable &= entry & RW != 0;
            rights.user &= entry & US != 0;
            rights.no_execute |= entry & NX != 0;
        }
        steps[level as usize - 1] = Some(Step { page, offset: at.page_offset(), entry });
        if is_page {
            rights.key = (entry >> 59 & 0xf) as u32;
            return match violation(state, rights, access, privilege, format.is_long()) {
                0 => Ok(Walked {
                    gpa: Gpa::new(page_address(format, shift, entry) | linear & ((1 << shift) - 1)),
                    page_shift: shift,
                }),
                code => Err(Failure::Fault(code)),
            };
        }
        table = entry & ADDRESS;
    }
    // Level 1 is always a page; a format without levels does not exist.
    Err(Failure::Memory(GuestFault { gpa: Gpa::new(table), reason: FaultReason::NotMapped }))
}

/// The address in a leaf entry for a page of 2^`shift` bytes.
fn page_address(format: Format, shift: u32, entry: u64) -> u64 {
    let low = entry & ADDRESS & !((1 << shift) - 1);
    match format.levels == 2 && shift > 12 {
        // PSE-36.
        true => low | (entry >> 13 & 0xff) << 32,
        false => low,
    }
}

/// Sets accessed bits, and the leaf's dirty bit on a write; `false` if an entry has changed since it was
/// read.
fn set_bits<P: GuestPage>(format: Format, steps: &[Option<Step<P>>; 5], access: Access) -> bool {
    let lowest = steps.iter().position(Option::is_some);
    steps.iter().enumerate().rev().all(|(i, step)| {
        let Some(Step { page, offset, entry }) = step else { return true };
        if format.is_bare(i as u32 + 1) {
            return true;
        }
        let dirty = if Some(i) == lowest && access == Access::Write { DIRTY } else { 0 };
        let wanted = entry | ACCESSED | dirty;
        match format.entry_bytes {
            _ if wanted == *entry => true,
            4 => page.compare_exchange_u32(*offset, *entry as u32, wanted as u32).is_ok(),
            _ => page.compare_exchange_u64(*offset, *entry, wanted).is_ok(),
        }
    })
}

/// Copies from guest-linear memory, page by page. On an error a prefix of `out` is filled.
pub fn copy_in<M: GuestMemory>(
    state: &PagingState,
    memory: &M,
    gva: Gva,
    out: &mut [u8],
    access: Access,
    privilege: Privilege,
) -> Result<(), WalkError> {
    for (at, from, n) in page_chunks(Gpa::new(gva.raw()), out.len()) {
        let gva = linear_wrap(state, at.raw());
        let gpa = walk(state, memory, gva, access, privilege, AccessBits::Set)?.gpa;
        memory.read(gpa, &mut out[from..from + n])?;
    }
    Ok(())
}

/// Copies to guest-linear memory, page by page, honouring write protection. On an error a prefix has been
/// written.
pub fn copy_out<M: GuestMemory>(
    state: &PagingState,
    memory: &M,
    gva: Gva,
    data: &[u8],
    privilege: Privilege,
) -> Result<(), WalkError> {
    for (at, from, n) in page_chunks(Gpa::new(gva.raw()), data.len()) {
        let gva = linear_wrap(state, at.raw());
        let gpa = walk(state, memory, gva, Access::Write, privilege, AccessBits::Set)?.gpa;
        memory.write(gpa, &data[from..from + n])?;
    }
    Ok(())
}

/// Outside long mode, linear addresses wrap at 4 GiB.
fn linear_wrap(state: &PagingState, linear: u64) -> Gva {
    Gva::new(if state.efer & EFER_LMA != 0 { linear } else { linear & 0xffff_ffff })
}

#[cfg(test)]
mod tests;
