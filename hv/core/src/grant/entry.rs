//! Version 1 entries as they lie in the memory that the guest shares with us: flags and domain in the first 32 bits,
//! the frame in the next.

use addr::GuestPage;
use xen_abi::DomId;
use xen_abi::grant::entry::*;
use xen_abi::grant::{ENTRY_V1_SIZE, GrantStatus};

/// How often the guest may change an entry while it is taken into use.
const TRIES: u32 = 5;

/// What an entry is taken into use for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Use {
    /// By whom.
    pub(super) by: DomId,
    /// For reading only.
    pub(super) readonly: bool,
    /// To be mapped (else copied once).
    pub(super) map: bool,
}

fn at(index: usize) -> usize {
    index * ENTRY_V1_SIZE
}

/// Marks entry `index` of `page` as in use. `again`: it is in use already, for the same domain, and what it says now
/// does not count. `GENERAL_ERROR`: it does not grant that, or the guest does not leave it alone.
pub(super) fn mark<P: GuestPage>(page: &P, index: usize, how: Use, again: bool) -> Result<(), GrantStatus> {
    let kind = if how.map { TYPE | SUB_PAGE } else { TYPE };
    let mut seen = page.read_u32(at(index));
    for _ in 0..TRIES {
        let granted = seen & kind == PERMIT_ACCESS && seen >> DOMID_SHIFT == how.by.0.into();
        if !(again || granted) || !how.readonly && seen & READONLY != 0 {
            break;
        }
        let bits = if how.readonly { READING } else { READING | WRITING };
        match page.compare_exchange_u32(at(index), seen, seen | bits) {
            Ok(_) => return Ok(()),
            Err(found) => seen = found,
        }
    }
    Err(GrantStatus::GENERAL_ERROR)
}

/// Takes bits of use away.
pub(super) fn unmark<P: GuestPage>(page: &P, index: usize, bits: u32) {
    if bits != 0 {
        page.fetch_and_u32(at(index), !bits);
    }
}

/// The frame that entry `index` names.
pub(super) fn frame<P: GuestPage>(page: &P, index: usize) -> u32 {
    page.read_u32(at(index) + 4)
}

/// Whether entry `index` asks for a memory type other than the usual.
pub(super) fn odd_cache<P: GuestPage>(page: &P, index: usize) -> bool {
    page.read_u32(at(index)) & CACHE != 0
}

/// Exchanges two entries. A guest that writes them meanwhile gets what it deserves.
pub(super) fn swap<P: GuestPage>(a: (&P, usize), b: (&P, usize)) {
    let (old_a, old_b) = (a.0.read_u64(at(a.1)), b.0.read_u64(at(b.1)));
    a.0.write_u64(at(a.1), old_b);
    b.0.write_u64(at(b.1), old_a);
}
