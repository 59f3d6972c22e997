//! What the machine supplies. Everything that `core` cannot know about hardware enters here.

use crate::domain::Domain;
use crate::sync::{Irq, IrqLock};
use crate::time::Clock;
use crate::vcpu::Vcpu;
use addr::{Frame, GuestFault, GuestMemory, GuestPhys};
use alloc::sync::Arc;
use core::fmt;
use xen_abi::Errno;
use xen_abi::vcpu::HvmContext;

/// A physical CPU, numbered from 0 without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PcpuId(pub u32);

impl PcpuId {
    /// As an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for PcpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pcpu{}", self.0)
    }
}

/// Why a page could not be put into, or taken from, a guest's physical map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// Out of memory, or above what the domain may have.
    NoMemory,
    /// The frame lies outside what the domain may use.
    BadFrame,
    /// The frame holds something that may not be replaced or removed.
    NotAllowed,
}

impl From<MapError> for Errno {
    fn from(error: MapError) -> Errno {
        match error {
            MapError::NoMemory => Errno::ENOMEM,
            MapError::BadFrame => Errno::EINVAL,
            MapError::NotAllowed => Errno::EPERM,
        }
    }
}

/// A domain's physical memory.
///
/// All methods may be called on any pCPU with no lock held and interrupts on; [`GuestMemory::pin`] also under a
/// domain's grant table lock. They pay their own TLB
/// debt before they return: afterwards no vCPU of the domain reaches what was there before.
pub trait DomainMemory: GuestMemory<Page: Send + Sync + 'static> + Send + Sync + 'static {
    /// A zeroed page that belongs to the hypervisor on the domain's account. It is freed when the last
    /// clone and the last mapping of it are gone. `None`: out of memory.
    fn new_page(&self) -> Option<Self::Page>;

    /// Maps a page of [`DomainMemory::new_page`] at `at`. Guest RAM that was there is freed.
    /// The page may be mapped at several frames.
    fn map_page(&self, at: Frame<GuestPhys>, page: &Self::Page) -> Result<(), MapError>;

    /// Makes `at` a hole. Guest RAM that was there is freed as soon as no one has it pinned.
    /// Already a hole: `BadFrame`. A page of [`DomainMemory::map_foreign`]: `NotAllowed`.
    fn unmap(&self, at: Frame<GuestPhys>) -> Result<(), MapError>;

    /// As [`DomainMemory::unmap`], but only if `page` is what is at `at`. Something else, or nothing: `BadFrame`.
    fn unmap_page(&self, at: Frame<GuestPhys>, page: &Self::Page) -> Result<(), MapError>;

    /// Maps `page`, which a domain has granted, at `at`; guest RAM that was there is freed. The guest reads it, and
    /// writes it if `writable`; [`GuestMemory::read`] and [`GuestMemory::write`] do as the guest can, but
    /// [`GuestMemory::pin`] refuses it, as nothing may outlive the mapping. Another such page there: `NotAllowed`.
    fn map_foreign(&self, at: Frame<GuestPhys>, page: &Self::Page, writable: bool) -> Result<(), MapError>;

    /// Undoes that: afterwards nobody reaches `page` through `at`. `NotAllowed`: it is not what is mapped there.
    fn unmap_foreign(&self, at: Frame<GuestPhys>, page: &Self::Page) -> Result<(), MapError>;

    /// Puts zeroed RAM at the `1 << order` frames from `at`, which is a multiple of that.
    /// All of them or none; frames that hold something: `NotAllowed`.
    fn populate(&self, at: Frame<GuestPhys>, order: u32) -> Result<(), MapError>;

    /// Highest frame that holds, or once held, something.
    fn max_frame(&self) -> Frame<GuestPhys>;

    /// Pages of RAM the domain has.
    fn pages(&self) -> u64;

    /// Counts `bytes` of the hypervisor's own memory, taken for the domain, against its account until its end.
    /// `false`: the account does not allow it, and nothing is counted. May be called with locks held.
    fn charge(&self, bytes: u64) -> bool;
}

/// The pinned page of a domain's memory.
pub type PageOf<A> = <<A as Arch>::Memory as GuestMemory>::Page;

/// A lock of the kind that `A` needs.
pub type Lock<A, T> = IrqLock<T, <A as Arch>::Irq>;

/// The machine. Functions without a receiver act on the pCPU they run on.
pub trait Arch: Sized + 'static {
    /// A domain's physical memory.
    type Memory: DomainMemory;
    /// What the architecture keeps for a domain.
    type DomainData: Send + Sync + 'static;
    /// What the architecture keeps for a vCPU and other pCPUs may touch (atomics and locks inside).
    type VcpuShared: Send + Sync + 'static;
    /// How interrupts are kept out of a critical section.
    type Irq: Irq;

    /// System time: ns since boot, monotonic and the same on all pCPUs.
    fn now() -> u64;

    /// UTC at system time 0, in ns since 1970-01-01.
    fn wallclock() -> u64;

    /// The pCPU this runs on.
    fn this_pcpu() -> PcpuId;

    /// Makes `pcpu` leave its guest or its idle state and test for work. Returns at once. May be called
    /// with interrupts off.
    fn kick(pcpu: PcpuId);

    /// A timer set on this pCPU is due at `deadline` (system time, ns), before any other of it: make
    /// sure that this pCPU then leaves its guest and calls [`crate::Machine::expire_timers`].
    fn arm_timer(deadline: u64);

    /// The clock as `vcpu` must see it: its own TSC value at a system time, and the scale between them.
    fn clock(vcpu: &Vcpu<Self>) -> Clock;

    /// An upcall became due for `vcpu`: if [`Vcpu::upcall_vector`] is set, raise it in the vCPU's
    /// interrupt controller as an edge. If not, and the domain's callback is a vector
    /// ([`Domain::callback`]), nothing is needed: the entry path tests [`Vcpu::upcall_due`].
    /// Any pCPU, interrupts possibly off; the vCPU is woken and kicked by the caller afterwards.
    fn set_upcall(vcpu: &Vcpu<Self>);

    /// The guest wrote to its console. `bytes` is at most 256 long; may hold anything.
    fn console_write(domain: &Domain<Self>, bytes: &[u8]);

    /// `VCPUOP_initialise`: checks `context` and makes it the state in which the vCPU, which is down and
    /// was never initialised, starts. `EINVAL` for a combination the CPU would refuse.
    fn initialise_vcpu(vcpu: &Arc<Vcpu<Self>>, context: &HvmContext) -> Result<(), Errno>;

    /// `XENVER_capabilities`: the kinds of guest, with a space after each.
    fn capabilities() -> &'static str;

    /// `domain` has stopped (it is in [`crate::Machine::take_stopped`] from now on), or a vCPU of a
    /// domain that is being destroyed has left its pCPU. Whoever tends domains should look.
    fn tend(domain: &Domain<Self>);
}

/// How hypercall handlers reach their caller's memory: by linear address, with the rights of the caller.
pub trait CallIo {
    /// Copies guest memory out. On a fault `out` may be partly written.
    fn copy_in(&mut self, gva: u64, out: &mut [u8]) -> Result<(), Fault>;
    /// Copies into guest memory. On a fault a prefix may have been written.
    fn copy_out(&mut self, gva: u64, data: &[u8]) -> Result<(), Fault>;
}

/// A linear address that the caller cannot reach so; the call answers -EFAULT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

impl From<Fault> for Errno {
    fn from(_: Fault) -> Errno {
        Errno::EFAULT
    }
}

impl From<GuestFault> for Fault {
    fn from(_: GuestFault) -> Fault {
        Fault
    }
}
