//! Mapping others' pages, and unmapping them.

use super::entry::Use;
use super::maptrack::Mapping;
use crate::domain::{Domain, Life};
use crate::platform::{Arch, DomainMemory, PageOf};
use addr::{Frame, GuestMemory, PAGE_SHIFT};
use alloc::sync::Arc;
use xen_abi::DomId;
use xen_abi::grant::{GrantStatus, MapGrantRef, UnmapGrantRef, map_flags};

impl<A: Arch> Domain<A> {
    /// A domain whose grants may be used.
    pub(super) fn granter(&self, id: DomId) -> Result<Arc<Domain<A>>, GrantStatus> {
        let domain = self.machine().domains.get(id).ok_or(GrantStatus::BAD_DOMAIN)?;
        if domain.life() == Life::Dying { Err(GrantStatus::BAD_DOMAIN) } else { Ok(domain) }
    }

    /// Takes a grant of this domain's into use.
    pub(super) fn use_grant(&self, gref: u32, how: Use) -> Result<PageOf<A>, GrantStatus> {
        let pin = |frame| self.memory.pin(frame).ok();
        let charge = |bytes| self.memory.charge(bytes);
        self.grants.lock().acquire(gref, how, pin, charge)
    }

    /// Ends that use.
    pub(super) fn end_use(&self, gref: u32, readonly: bool) {
        let unpinned = self.grants.lock().release(gref, readonly);
        drop(unpinned);
    }

    /// One element of `GNTTABOP_map_grant_ref`: (handle, bus address).
    ///
    /// ABI: the bus address is the guest-physical one, which is what a device of the guest behind an IOMMU would use;
    /// Xen tells the machine address.
    pub(crate) fn map_grant(self: &Arc<Self>, op: &MapGrantRef) -> Result<(u32, u64), GrantStatus> {
        if op.flags & (map_flags::DEVICE_MAP | map_flags::HOST_MAP) == 0 {
            return Err(GrantStatus::BAD_GNTREF);
        }
        if op.flags & (map_flags::DEVICE_MAP | map_flags::APPLICATION_MAP | map_flags::CONTAINS_PTE) != 0 {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        let granter = self.granter(DomId(op.dom))?;
        let reserved = self.maptrack.lock().reserve(|bytes| self.memory.charge(bytes));
        let handle = reserved.ok_or(GrantStatus::NO_SPACE)?;
        let mapped = self.map_at(granter, op).and_then(|mapping| {
            let put = self.maptrack.lock().put(handle, mapping);
            put.map_err(|mapping| {
                self.undo(mapping);
                GrantStatus::GENERAL_ERROR
            })
        });
        match mapped {
            Ok(()) => Ok((handle, op.host_addr >> PAGE_SHIFT << PAGE_SHIFT)),
            Err(status) => {
                self.maptrack.lock().free(handle);
                Err(status)
            }
        }
    }

    fn map_at(&self, granter: Arc<Domain<A>>, op: &MapGrantRef) -> Result<Mapping<A>, GrantStatus> {
        let readonly = op.flags & map_flags::READONLY != 0;
        let page = granter.use_grant(op.gref, Use { by: self.id(), readonly, map: true })?;
        let at = Frame::new(op.host_addr >> PAGE_SHIFT);
        // Only plain host mappings of ordinary memory can be had by address.
        let plain = op.flags & !map_flags::READONLY == map_flags::HOST_MAP;
        let odd = !plain || granter.grants.lock().odd_cache(op.gref);
        if odd || self.memory.map_foreign(at, &page, !readonly).is_err() {
            granter.end_use(op.gref, readonly);
            return Err(GrantStatus::GENERAL_ERROR);
        }
        Ok(Mapping { granter, gref: op.gref, at, readonly, page })
    }

    /// One element of `GNTTABOP_unmap_grant_ref`.
    ///
    /// ABI: the address must be the one that this handle was mapped at; Xen takes any at which the same page is.
    pub(crate) fn unmap_grant(&self, op: &UnmapGrantRef) -> Result<(), GrantStatus> {
        let mapping = self.maptrack.lock().take(op.handle).ok_or(GrantStatus::BAD_HANDLE)?;
        let at = mapping.at;
        let bus_ok = op.dev_bus_addr == 0 || op.dev_bus_addr == at.start().raw();
        let result = if !bus_ok {
            Err(GrantStatus::GENERAL_ERROR)
        } else if op.host_addr == 0 {
            // Nothing is asked for, and done.
            Ok(())
        } else if op.host_addr >> PAGE_SHIFT != at.number()
            || self.memory.unmap_foreign(at, &mapping.page).is_err()
        {
            Err(GrantStatus::GENERAL_ERROR)
        } else {
            mapping.end();
            self.maptrack.lock().free(op.handle);
            return Ok(());
        };
        // It stays. A domain that is dying meanwhile has left this one to us.
        let put = self.maptrack.lock().put(op.handle, mapping);
        if let Err(mapping) = put {
            self.undo(mapping);
        }
        result
    }

    /// Unmaps what cannot stay, whatever the guest has done with the address.
    fn undo(&self, mapping: Mapping<A>) {
        let _ = self.memory.unmap_foreign(mapping.at, &mapping.page);
        mapping.end();
    }

    /// The domain is dying: it gives everything back that it has mapped of others.
    pub(crate) fn unmap_all_grants(&self) {
        let handles = self.maptrack.lock().close();
        for handle in 0..handles as u32 {
            let mapping = self.maptrack.lock().take(handle);
            if let Some(mapping) = mapping {
                self.undo(mapping);
            }
        }
    }
}

impl<A: Arch> Mapping<A> {
    /// Nobody reaches the page through this mapping any more.
    fn end(self) {
        let Mapping { granter, gref, readonly, page, .. } = self;
        drop(page);
        granter.end_use(gref, readonly);
    }
}
