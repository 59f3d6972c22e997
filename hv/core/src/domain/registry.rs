//! All domains by id.

use super::Domain;
use crate::platform::{Arch, Lock};
use crate::vcpu::Vcpu;
use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use xen_abi::{DomId, Errno};

enum Entry<A: Arch> {
    /// Promised to a builder.
    Reserved,
    /// It exists. The vCPUs are owned here, and refer to the domain, not the other way round.
    Live(Arc<Domain<A>>, #[expect(dead_code, reason = "owns")] Vec<Arc<Vcpu<A>>>),
    /// Destroyed, but something still refers to it.
    Gone(Weak<Domain<A>>),
}

/// All domains by id.
pub struct Domains<A: Arch> {
    map: Lock<A, Map<A>>,
}

struct Map<A: Arch> {
    entries: BTreeMap<u16, Entry<A>>,
    next: u16,
}

impl<A: Arch> Domains<A> {
    pub(crate) fn new() -> Self {
        Self { map: Lock::<A, _>::new(Map { entries: BTreeMap::new(), next: 1 }) }
    }

    /// A free id, kept for a domain to come: [`crate::Machine::create_domain`] uses it up,
    /// [`Domains::release`] gives it back. Ids go round, and none is given again while anything refers
    /// to the domain that had it. `ENOSPC`: none is free.
    pub fn reserve(&self) -> Result<DomId, Errno> {
        let mut map = self.map.lock();
        map.entries.retain(|_, entry| !matches!(entry, Entry::Gone(domain) if domain.strong_count() == 0));
        let last = DomId::FIRST_RESERVED.0 - 1;
        for _ in 0..last {
            let id = map.next;
            map.next = if id >= last { 1 } else { id + 1 };
            if let alloc::collections::btree_map::Entry::Vacant(free) = map.entries.entry(id) {
                free.insert(Entry::Reserved);
                return Ok(DomId(id));
            }
        }
        Err(Errno::ENOSPC)
    }

    /// Keeps id 0 for the control domain. `EEXIST`: it is taken.
    pub fn reserve_dom0(&self) -> Result<DomId, Errno> {
        match self.map.lock().entries.entry(0) {
            alloc::collections::btree_map::Entry::Vacant(free) => {
                free.insert(Entry::Reserved);
                Ok(DomId::DOM0)
            }
            _ => Err(Errno::EEXIST),
        }
    }

    /// Gives back an id that was reserved and not used.
    pub fn release(&self, id: DomId) {
        let mut map = self.map.lock();
        if matches!(map.entries.get(&id.0), Some(Entry::Reserved)) {
            map.entries.remove(&id.0);
        }
    }

    /// Puts a domain at the id reserved for it. `EINVAL`: it was not.
    pub(crate) fn insert(&self, domain: &Arc<Domain<A>>, vcpus: Vec<Arc<Vcpu<A>>>) -> Result<(), Errno> {
        match self.map.lock().entries.get_mut(&domain.id().0) {
            Some(entry @ Entry::Reserved) => {
                *entry = Entry::Live(domain.clone(), vcpus);
                Ok(())
            }
            _ => Err(Errno::EINVAL),
        }
    }

    pub(crate) fn remove(&self, id: DomId) {
        let mut map = self.map.lock();
        let Some(entry) = map.entries.get_mut(&id.0) else { return };
        let Entry::Live(domain, _) = entry else { return };
        let gone = Entry::Gone(Arc::downgrade(domain));
        let removed = core::mem::replace(entry, gone);
        // Freeing a domain is long, and takes other locks.
        drop(map);
        drop(removed);
    }

    /// The domain of this id.
    pub fn get(&self, id: DomId) -> Option<Arc<Domain<A>>> {
        match self.map.lock().entries.get(&id.0)? {
            Entry::Live(domain, _) => Some(domain.clone()),
            _ => None,
        }
    }

    /// All domains, in the order of their ids.
    pub fn all(&self) -> Vec<Arc<Domain<A>>> {
        let map = self.map.lock();
        let live = map.entries.values().filter_map(|entry| match entry {
            Entry::Live(domain, _) => Some(domain.clone()),
            _ => None,
        });
        live.collect()
    }
}

impl<A: Arch> fmt::Debug for Domains<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all()).finish()
    }
}
