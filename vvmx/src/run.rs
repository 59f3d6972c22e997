//! VM entry and exit as L1 sees them: the order of things, over the whole state of a vCPU.
//!
//! SDM vol. 3, "Basic VM-Entry Checks", VMLAUNCH/VMRESUME's operation; "Transfers": nothing changes before all
//! checks that end in VMfail have passed, and nothing needs unwinding where a later one fails.

use crate::caps::Caps;
use crate::check::{Refusal, Seen};
use crate::code::{InsnError, Reason};
use crate::field::{Field, Vmcs};
use crate::insn::Failure;
use crate::merge::Mirror;
use crate::reflect::{self, HostState, Outside};
use crate::route::Exit;
use crate::state::{Nested, Vmcs02s};
use crate::vmcs12::Cached12;
use addr::GuestMemory;

/// The instruction that enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// VMLAUNCH.
    Launch,
    /// VMRESUME.
    Resume,
}

/// Why L1 does not get its L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoEntry {
    /// The instruction fails.
    Fail(Failure, Option<Refusal>),
    /// An exit: guest state is bad. L1 goes on in its host state, by [`Nested::fail_entry`].
    Exit(Refusal),
}

/// An accepted entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Which vmcs02 to merge into, and run.
    pub slot: usize,
    /// For [`crate::merge::merge`].
    pub pdptes: Option<[u64; 4]>,
}

impl<const N: usize> Nested<N> {
    /// VMLAUNCH or VMRESUME, when [`crate::insn::check`] let it pass. `long` says whether L1 is in IA-32e mode,
    /// `mov_ss` whether MOV SS blocks events. On success the vmcs12 is checked; the back end goes on with its
    /// MSR-load list (in L2's context), [`crate::merge::merge`], and [`Nested::accept`].
    ///
    /// # Errors
    /// What L1 gets instead. Nothing has changed then.
    pub fn enter(
        &mut self,
        entry: Entry,
        mov_ss: bool,
        long: bool,
        mem: &impl GuestMemory,
        hw: &mut impl Vmcs02s,
        caps: &Caps,
    ) -> Result<Accepted, NoEntry> {
        let fail = |error| NoEntry::Fail(Failure::Valid(error), None);
        let (slot, c12) = self.current_mut().ok_or(NoEntry::Fail(Failure::Invalid, None))?;
        if c12.shadow {
            return Err(NoEntry::Fail(Failure::Invalid, None));
        }
        if mov_ss {
            return Err(fail(InsnError::BlockedByMovSs));
        }
        match (entry, c12.launched) {
            (Entry::Launch, true) => return Err(fail(InsnError::VmlaunchNotClear)),
            (Entry::Resume, false) => return Err(fail(InsnError::VmresumeNotLaunched)),
            _ => {}
        }
        if c12.check_needs_rare(caps, long) {
            reflect::sync_rare(c12, |field| hw.read(slot, field));
        }
        let seen = Seen::gather(c12, mem, caps);
        match c12.check(caps, &seen, long) {
            Ok(()) => Ok(Accepted { slot, pdptes: seen.pdptes }),
            Err(refusal) => Err(match refusal.error() {
                Some(error) => NoEntry::Fail(Failure::Valid(error), Some(refusal)),
                None => NoEntry::Exit(refusal),
            }),
        }
    }

    /// Hands the checked vmcs12 of an accepted entry and the mirror of its vmcs02 to `f`, which calls
    /// [`crate::merge::merge`]. False if they are gone, which nothing between the two can cause.
    pub fn merge(&mut self, accepted: &Accepted, f: impl FnOnce(&mut Cached12, &mut Mirror)) -> bool {
        let slot = self.slot_mut(accepted.slot);
        let Some(c12) = slot.c12.as_mut().filter(|c12| c12.checked().is_some()) else { return false };
        f(c12, &mut slot.mirror);
        true
    }

    /// vmcs02 is merged: L2 is the vCPU's running level. VMLAUNCH makes the VMCS launched.
    pub fn accept(&mut self, accepted: &Accepted) {
        if let Some((_, c12)) = self.current_mut() {
            c12.launched = true;
        }
        self.entered(accepted.slot);
    }

    /// The entry fails as an exit: on guest state, or (`reason` MSR_LOADING, qualification the 1-based index) on
    /// its MSR list. Gives L1's host state as [`reflect::load_host`] does; the exit's MSR-load list is still
    /// to be done, its store list is not.
    pub fn fail_entry(
        &mut self,
        reason: Reason,
        qualification: u64,
        efer: u64,
        put01: impl FnMut(Field, u64),
    ) -> Option<HostState> {
        let (_, c12) = self.current_mut()?;
        reflect::record_failure(c12, reason, qualification);
        Some(reflect::load_host(c12.fields(), efer, None, put01))
    }

    /// Leaves L2 with `exit`. vmcs02 is the processor's current VMCS; `put01` keeps what is to be written to
    /// vmcs01. MSR lists (store in L2's context, then load in L1's) are the back end's, around this.
    ///
    /// `None` if L2 does not run, or has been accepted but never entered: then an exit would lose what L1
    /// asked to inject, and the vCPU must enter once first.
    pub fn leave(
        &mut self,
        exit: &Exit,
        efer: u64,
        caps: &Caps,
        out: &Outside,
        vmcs02: &mut impl Vmcs,
        put01: impl FnMut(Field, u64),
    ) -> Option<HostState> {
        let active = self.active().filter(|a| !a.run_pending)?;
        let slot = self.slot_mut(active.slot);
        let c12 = slot.c12.as_mut()?;
        reflect::sync(c12, caps, out, &mut slot.mirror, vmcs02);
        reflect::record(c12, exit);
        let host = reflect::load_host(c12.fields(), efer, Some(exit), put01);
        self.left();
        Some(host)
    }
}
