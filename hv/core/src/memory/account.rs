//! How many frames each owner has, and how many it may have.

use super::{Kind, Owner};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The most frames an owner may have, by what they are used as. Nothing until somebody says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// RAM, in frames ([`Kind::DomainRam`]): the domain's maximum memory.
    pub ram: u32,
    /// Translation tables, in frames ([`Kind::Table`]).
    pub tables: u32,
    /// Pages of ours for the domain, in frames ([`Kind::Shared`] and [`Kind::Hypervisor`] each).
    pub other: u32,
}

impl Limits {
    /// No limit.
    pub const NONE: Limits = Limits { ram: u32::MAX, tables: u32::MAX, other: u32::MAX };
}

/// How many frames an owner has, by what they are used as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// [`Kind::Hypervisor`].
    pub hypervisor: u32,
    /// [`Kind::DomainRam`].
    pub ram: u32,
    /// [`Kind::Table`].
    pub tables: u32,
    /// [`Kind::Shared`].
    pub shared: u32,
}

impl Usage {
    /// All kinds together.
    pub fn total(&self) -> u64 {
        [self.hypervisor, self.ram, self.tables, self.shared].into_iter().map(u64::from).sum()
    }
}

/// One owner's account. All-zero bytes are a valid account: nothing owned, nothing allowed.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Account {
    used: [AtomicU32; Kind::ALL.len()],
    limit: [AtomicU32; Kind::ALL.len()],
}

impl Account {
    pub(super) const fn unlimited() -> Self {
        Self {
            used: [const { AtomicU32::new(0) }; Kind::ALL.len()],
            limit: [const { AtomicU32::new(u32::MAX) }; Kind::ALL.len()],
        }
    }

    pub(super) fn set_limits(&self, limits: Limits) {
        for kind in Kind::ALL {
            let limit = match kind {
                Kind::DomainRam => limits.ram,
                Kind::Table => limits.tables,
                Kind::Hypervisor | Kind::Shared => limits.other,
            };
            self.limit[kind as usize].store(limit, Relaxed);
        }
    }

    /// Counts `frames` more, unless the limit is in the way.
    pub(super) fn charge(&self, kind: Kind, frames: u32) -> bool {
        let limit = self.limit[kind as usize].load(Relaxed);
        let more = |used: u32| used.checked_add(frames).filter(|&sum| sum <= limit);
        self.used[kind as usize].fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    pub(super) fn refund(&self, kind: Kind, frames: u32) {
        self.used[kind as usize].fetch_sub(frames, Relaxed);
    }

    pub(super) fn usage(&self) -> Usage {
        let used = |kind: Kind| self.used[kind as usize].load(Relaxed);
        Usage {
            hypervisor: used(Kind::Hypervisor),
            ram: used(Kind::DomainRam),
            tables: used(Kind::Table),
            shared: used(Kind::Shared),
        }
    }
}

/// The accounts of all owners: an array indexed by domain id, and our own.
#[derive(Debug)]
pub(super) struct Accounts<'t> {
    domains: &'t [Account],
    own: Account,
}

impl<'t> Accounts<'t> {
    pub(super) const fn new(domains: &'t [Account]) -> Self {
        Self { domains, own: Account::unlimited() }
    }
    /// The account of `owner`; `None` where no such domain can be.
    pub(super) fn of(&self, owner: Owner) -> Option<&Account> {
        match owner {
            Owner::HYPERVISOR => Some(&self.own),
            Owner(id) => self.domains.get(usize::from(id)),
        }
    }
}
