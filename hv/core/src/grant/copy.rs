//! Copying between pages, granted or one's own.

use super::entry::Use;
use crate::domain::Domain;
use crate::platform::{Arch, PageOf};
use addr::{Frame, GuestMemory, GuestPage, PAGE_SIZE};
use alloc::sync::Arc;
use xen_abi::DomId;
use xen_abi::grant::{COPY_DEST_GREF, COPY_SOURCE_GREF, Copy, CopyEnd, GrantStatus};

/// An end of a copy, held until it is dropped.
struct Held<A: Arch> {
    page: PageOf<A>,
    grant: Option<(Arc<Domain<A>>, u32, bool)>,
}

impl<A: Arch> Drop for Held<A> {
    fn drop(&mut self) {
        if let Some((domain, gref, readonly)) = &self.grant {
            domain.end_use(*gref, *readonly);
        }
    }
}

impl<A: Arch> Domain<A> {
    /// One element of `GNTTABOP_copy`.
    pub(crate) fn copy_grant(self: &Arc<Self>, op: &Copy) -> Result<(), GrantStatus> {
        let (from, to) = (op.flags & COPY_SOURCE_GREF != 0, op.flags & COPY_DEST_GREF != 0);
        let source = self.end_domain(&op.source, from)?;
        let dest = self.end_domain(&op.dest, to)?;
        let source = self.hold(source, &op.source, from, true)?;
        let dest = self.hold(dest, &op.dest, to, false)?;
        let fits = |end: &CopyEnd| u64::from(end.offset) + u64::from(op.len) <= PAGE_SIZE;
        if !fits(&op.source) || !fits(&op.dest) {
            return Err(GrantStatus::BAD_COPY_ARG);
        }
        let (from, to) = (usize::from(op.source.offset), usize::from(op.dest.offset));
        copy_bytes(&source.page, from, &dest.page, to, op.len.into());
        Ok(())
    }

    /// Whose page an end is. Frames can be named of oneself only.
    fn end_domain(self: &Arc<Self>, end: &CopyEnd, is_gref: bool) -> Result<Arc<Domain<A>>, GrantStatus> {
        let id = DomId(end.domid);
        match id {
            DomId::SELF => Ok(self.clone()),
            _ if !is_gref => Err(GrantStatus::PERMISSION_DENIED),
            _ => self.granter(id),
        }
    }

    fn hold(
        &self,
        domain: Arc<Domain<A>>,
        end: &CopyEnd,
        is_gref: bool,
        readonly: bool,
    ) -> Result<Held<A>, GrantStatus> {
        if is_gref {
            // A reference has 32 bits; what is above them in the union is not looked at.
            let gref = end.what as u32;
            let page = domain.use_grant(gref, Use { by: self.id(), readonly, map: false })?;
            return Ok(Held { page, grant: Some((domain, gref, readonly)) });
        }
        let frame = if end.what < 1 << 40 { end.what } else { 1 << 40 };
        let page = domain.memory.pin(Frame::new(frame)).map_err(|_| GrantStatus::BAD_PAGE)?;
        Ok(Held { page, grant: None })
    }
}

/// Copies `len` bytes, by words where both ends allow it.
fn copy_bytes<P: GuestPage>(from: &P, from_at: usize, to: &P, to_at: usize, len: usize) {
    let words = if (from_at | to_at).is_multiple_of(8) { len / 8 } else { 0 };
    for word in 0..words {
        to.write_u64(to_at + word * 8, from.read_u64(from_at + word * 8));
    }
    for byte in words * 8..len {
        to.write_u8(to_at + byte, from.read_u8(from_at + byte));
    }
}
