//! The software walk of a nested page table that L1 wrote (NPT12, EPT12): L2's physical addresses to L1's.
//!
//! NPT12 has the format of ordinary page tables as L1's own control registers chose it at VMRUN, and is
//! walked as user accesses, whatever L2's privilege. AMD64 APM vol. 2, "Nested Paging" (nested table walk,
//! nested versus guest page faults) and "Page Translation and Protection".
//!
//! L1 may change its tables at any time: each entry is read once and judged by that value.

mod format;
#[cfg(test)]
mod tests;

pub use format::{Entry12, Leaf12, Next12, Paging12, Shape};

use addr::{Frame, Gpa, GuestFault, GuestMemory, GuestPage, GuestPhys, Ngpa, PageSize};

use crate::Perms;

/// EXITINFO1 of `VMEXIT_NPF`. AMD64 APM vol. 2, "Nested versus Guest Page Faults, Fault Ordering".
pub mod info1 {
    /// The page was present.
    pub const P: u64 = 1 << 0;
    /// The access was a write.
    pub const W: u64 = 1 << 1;
    /// The access was a user's: all nested walks are.
    pub const U: u64 = 1 << 2;
    /// A reserved bit was set in an entry.
    pub const RSV: u64 = 1 << 3;
    /// The access was an instruction fetch.
    pub const ID: u64 = 1 << 4;
    /// The fault is on the final guest-physical address.
    pub const FINAL: u64 = 1 << 32;
    /// The fault is on a page of the guest's page tables.
    pub const TABLE: u64 = 1 << 33;
}

/// The exit qualification of an EPT violation, as far as it speaks of the access and of L1's tables. SDM vol. 3,
/// "Exit Qualification for EPT Violations".
pub mod qualification {
    /// A data read.
    pub const READ: u64 = 1 << 0;
    /// A data write, or, with accessed and dirty flags, an access to L2's page tables.
    pub const WRITE: u64 = 1 << 1;
    /// An instruction fetch.
    pub const FETCH: u64 = 1 << 2;
    /// Shift of the rights (R, W, X) that all entries of the walk leave; 0 where one is not present.
    pub const RIGHTS: u32 = 3;
    /// The guest-linear address is valid.
    pub const LINEAR: u64 = 1 << 7;
    /// The access was to the translated linear address, not to L2's page tables. Counts with [`LINEAR`] only.
    pub const FINAL: u64 = 1 << 8;
}

/// An access of L2's to its physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// It writes.
    pub write: bool,
    /// It fetches an instruction.
    pub fetch: bool,
    /// It is the hardware's own access to L2's page tables.
    pub table_walk: bool,
}

impl Access {
    /// A data read.
    pub const READ: Self = Self { write: false, fetch: false, table_walk: false };
    /// A data write.
    pub const WRITE: Self = Self { write: true, ..Self::READ };
    /// An instruction fetch.
    pub const FETCH: Self = Self { fetch: true, ..Self::READ };

    /// The access that the hardware's EXITINFO1 describes. Only what it says of the access is used: P and
    /// RSV speak of `s2_02`. An access to a page table is never a fetch, even when it serves one.
    pub const fn from_info1(info: u64) -> Self {
        let table_walk = info & info1::TABLE != 0;
        Self { write: info & info1::W != 0, fetch: info & info1::ID != 0 && !table_walk, table_walk }
    }
    /// The access that the exit qualification of an EPT violation on `s2_02` describes.
    pub const fn from_qualification(q: u64) -> Self {
        let table_walk = q & (qualification::LINEAR | qualification::FINAL) == qualification::LINEAR;
        Self { write: q & qualification::WRITE != 0, fetch: q & qualification::FETCH != 0, table_walk }
    }
    /// The rights it needs.
    pub const fn needs(self) -> Perms {
        let bits = Perms::R.bits()
            | if self.write { Perms::W.bits() } else { 0 }
            | if self.fetch { Perms::X.bits() } else { 0 };
        Perms::from_bits(bits)
    }
}

/// Where a walk starts: `nCR3` or EPTP, without the bits that its format ignores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Root12 {
    base: Gpa,
    paging: Paging12,
}

impl Root12 {
    /// From `nCR3` as L1 wrote it. Bits that the format ignores are dropped here, once: PAE's directory
    /// pointer table is 32-byte aligned, so bits 4:0 must not shift its four entries out of the page
    /// (CVE-2024-50115); the other formats start at a page.
    pub const fn new(ncr3: u64, paging: Paging12) -> Self {
        let mask = match paging.shape() {
            Shape::TwoLevel => 0xffff_f000,
            Shape::Pae => 0xffff_ffe0,
            Shape::FourLevel | Shape::FiveLevel | Shape::Ept => 0x000f_ffff_ffff_f000,
        };
        Self { base: Gpa::new(ncr3 & mask), paging }
    }
    /// Address of the first entry of the top table.
    pub const fn base(&self) -> Gpa {
        self.base
    }
    /// The format.
    pub const fn paging(&self) -> &Paging12 {
        &self.paging
    }
}

/// One entry that a walk used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit {
    /// The table page.
    pub frame: Frame<GuestPhys>,
    /// Offset of the entry, bytes.
    pub offset: u16,
    /// Level of the table, 1 is the lowest.
    pub level: u8,
    /// The entry, with the accessed and dirty bits that the walk set.
    pub raw: u64,
    /// The rights it gives, apart from those above and below it.
    pub perms: Perms,
    /// Whether the walk ended here.
    pub leaf: bool,
}

/// What a walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// L1's physical address of the byte.
    pub gpa: Gpa,
    /// Size of the page (a 4 MiB page counts as two of 2 MiB).
    pub size: PageSize,
    /// Rights of the whole walk.
    pub perms: Perms,
    /// Whether the leaf's dirty bit is set: while it is not, the first write must be seen.
    pub dirty: bool,
    visits: [Visit; 5],
    depth: u8,
}

impl Mapped {
    /// The entries used, top first.
    pub fn visits(&self) -> &[Visit] {
        &self.visits[..usize::from(self.depth).min(5)]
    }
    /// The entry used at `level`.
    pub fn at_level(&self, level: u8) -> Option<&Visit> {
        let top = self.visits[0].level;
        self.visits().get(usize::from(top.checked_sub(level)?))
    }
}

/// A nested page fault, EPT violation or EPT misconfiguration that belongs to L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// EXITINFO2, or the guest-physical address of the exit: the L2-physical address.
    pub ngpa: Ngpa,
    /// Computed from the walk, never the hardware's about `s2_02`. NPT: EXITINFO1 (bits as in [`info1`]). EPT:
    /// the exit qualification (bits as in [`qualification`]), without those that only hardware knows.
    pub info1: u64,
    /// EPT: an entry is misconfigured.
    pub misconfigured: bool,
}

/// Why a walk gave no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// L1's tables do not allow the access.
    Violation(Violation),
    /// L1 kept changing the entries under the walk. Let L2 run again: the access faults again.
    Busy,
}

/// Whether a walk leaves marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// Set accessed and dirty bits, as the hardware does for an access that is made.
    Set,
    /// Leave L1's tables as they are: to look an address up.
    Leave,
}

/// How often a walk starts again because an entry changed between its reading and its marking.
const ATTEMPTS: usize = 4;

/// Walks L1's tables for `access` to `ngpa`.
///
/// # Errors
/// [`WalkError::Violation`] to reflect to L1; [`WalkError::Busy`] only with [`Marks::Set`].
pub fn walk<M: GuestMemory>(
    mem: &M,
    root: &Root12,
    ngpa: Ngpa,
    access: Access,
    marks: Marks,
) -> Result<Mapped, WalkError> {
    for _ in 0..ATTEMPTS {
        let (pages, mut mapped) = read_entries(mem, root, ngpa, access)?;
        if marks == Marks::Leave || set_marks(root, &pages, &mut mapped, access.write) {
            return Ok(mapped);
        }
    }
    Err(WalkError::Busy)
}

type Pages<P> = [Option<P>; 5];

/// Reads each entry once, top down, and judges the walk.
fn read_entries<M: GuestMemory>(
    mem: &M,
    root: &Root12,
    ngpa: Ngpa,
    access: Access,
) -> Result<(Pages<M::Page>, Mapped), WalkError> {
    let paging = &root.paging;
    let fault = |found: u64, left| WalkError::Violation(violation(paging, ngpa, access, found, left));
    let none = Visit { frame: Frame::new(0), offset: 0, level: 0, raw: 0, perms: Perms::NONE, leaf: false };
    let mut mapped = Mapped {
        gpa: Gpa::ZERO,
        size: PageSize::Size4K,
        perms: Perms::RWX,
        dirty: false,
        visits: [none; 5],
        depth: 0,
    };
    let mut pages = [const { None }; 5];
    if ngpa.raw() >> paging.input_bits() != 0 {
        return Err(fault(0, Perms::NONE));
    }
    let (mut base, mut user) = (root.base, true);
    for (i, level) in (1..=paging.levels()).rev().enumerate() {
        let offset = base.page_offset() + paging.entry_offset(ngpa, level);
        let frame = base.frame();
        // A table where there is no memory: on the bare machine the bus answers all ones, so reserved
        // bits are set.
        let page = mem.pin(frame).map_err(|GuestFault { .. }| fault(info1::P | info1::RSV, Perms::NONE))?;
        let raw = paging.read(&page, offset);
        let visit = Visit { frame, offset: offset as u16, level, raw, ..none };
        let (perms, leaf) = match paging.decode(raw, level, ngpa.raw() & (1 << 21) != 0) {
            Entry12::Empty => return Err(fault(0, Perms::NONE)),
            Entry12::Reserved => return Err(fault(info1::P | info1::RSV, Perms::NONE)),
            Entry12::Table(next) => {
                base = next.frame.start();
                user &= next.user;
                (next.perms, None)
            }
            Entry12::Leaf(leaf) => {
                user &= leaf.user;
                (leaf.perms, Some(leaf))
            }
        };
        mapped.perms = mapped.perms & perms;
        if let (Some(place), Some(pin)) = (mapped.visits.get_mut(i), pages.get_mut(i)) {
            *place = Visit { perms, leaf: leaf.is_some(), ..visit };
            *pin = Some(page);
            mapped.depth = i as u8 + 1;
        }
        if let Some(leaf) = leaf {
            if !user || !mapped.perms.contains(paging.needs(access)) {
                return Err(fault(info1::P, mapped.perms));
            }
            let within = ngpa.raw() & (leaf.size.bytes() - 1);
            (mapped.gpa, mapped.size) = (leaf.gpa.wrapping_add(within), leaf.size);
            mapped.dirty = leaf.dirty;
            break;
        }
    }
    Ok((pages, mapped))
}

/// Sets the accessed bits, and the leaf's dirty bit on a write, where they are not set yet. False if an
/// entry had changed: what has been set so far is what a walk that then failed may leave.
fn set_marks<P: GuestPage>(root: &Root12, pages: &Pages<P>, mapped: &mut Mapped, write: bool) -> bool {
    let last = usize::from(mapped.depth) - 1;
    for (i, (visit, page)) in mapped.visits.iter_mut().zip(pages).enumerate() {
        let Some(page) = page else { break };
        let marked = root.paging.marked(visit.raw, visit.level, write && i == last);
        if marked != visit.raw {
            if !root.paging.compare_exchange(page, usize::from(visit.offset), visit.raw, marked) {
                return false;
            }
            visit.raw = marked;
        }
    }
    mapped.dirty |= write;
    true
}

/// `found`: P and RSV as the walk found them; `left`: the rights that all entries leave. ID is reported only
/// where L1's own regime has a use for it. APM vol. 2, "Page-Fault Exception (#PF)".
fn violation(paging: &Paging12, ngpa: Ngpa, access: Access, found: u64, left: Perms) -> Violation {
    let on = |condition, bit| if condition { bit } else { 0 };
    if paging.is_ept() {
        let reads = !access.fetch && (!access.write || access.table_walk);
        let info1 = on(reads, qualification::READ)
            | on(access.write, qualification::WRITE)
            | on(access.fetch, qualification::FETCH)
            | u64::from(left.bits()) << qualification::RIGHTS;
        return Violation { ngpa, info1, misconfigured: found & info1::RSV != 0 };
    }
    let info1 = found
        | info1::U
        | on(access.write, info1::W)
        | on(access.fetch && paging.reports_fetch(), info1::ID)
        | if access.table_walk { info1::TABLE } else { info1::FINAL };
    Violation { ngpa, info1, misconfigured: false }
}
