//! The copies of its runstate and its clock that a guest keeps at *linear* addresses of its own. They
//! can be written only while its page tables are at hand, that is on the vCPU's own pCPU: they are
//! brought up to date each time it is about to run ([`super::Pending::AREAS`]).

use super::Vcpu;
use crate::hypercall::Width;
use crate::platform::{Arch, CallIo, Fault};
use xen_abi::vcpu::{RUNSTATE_UPDATE, RunstateInfo, RunstateInfo32};
use zerocopy::IntoBytes;

/// Where the guest wants what, in the layout of which width.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Areas {
    runstate: Option<(u64, Width)>,
    time: Option<u64>,
}

impl Areas {
    pub(super) fn any(&self) -> bool {
        self.runstate.is_some() || self.time.is_some()
    }
}

impl<A: Arch> Vcpu<A> {
    /// Registers the runstate area; address 0 stops it.
    pub(crate) fn set_runstate_area(&self, gva: u64, width: Width) {
        self.areas.lock().runstate = (gva != 0).then_some((gva, width));
    }
    /// Registers the time area; address 0 stops it.
    pub(crate) fn set_time_area(&self, gva: u64) {
        self.areas.lock().time = (gva != 0).then_some(gva);
    }

    /// Writes the guest's runstate and time areas. Own pCPU, about to enter the guest, when
    /// [`super::Pending::AREAS`] was taken. `io` reaches the guest's kernel memory (the guest's own
    /// regime, never that of a guest below it). An area that cannot be written is left stale: the guest
    /// unmapped it.
    pub fn write_areas(&self, io: &mut dyn CallIo) {
        let areas = *self.areas.lock();
        if let Some((gva, width)) = areas.runstate {
            let marked = self.domain().runstate_update_flag();
            let _ = write_runstate(io, gva, width, marked, &self.runstate().info());
        }
        if let Some(gva) = areas.time {
            let _ = write_clock(io, gva, &A::clock(self));
        }
    }
}

fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

/// Writes a runstate area; `marked`: with bit 63 of the entry time set meanwhile.
pub(crate) fn write_runstate(
    io: &mut dyn CallIo,
    gva: u64,
    width: Width,
    marked: bool,
    info: &RunstateInfo,
) -> Result<(), Fault> {
    let entry_time_at = match width {
        Width::Bits64 => core::mem::offset_of!(RunstateInfo, state_entry_time),
        Width::Bits32 => core::mem::offset_of!(RunstateInfo32, state_entry_time),
    };
    let entry_time = gva.wrapping_add(entry_time_at as u64);
    let mut info = *info;
    if marked {
        info.state_entry_time |= RUNSTATE_UPDATE;
        io.copy_out(entry_time, &info.state_entry_time.to_le_bytes())?;
    }
    match width {
        Width::Bits64 => io.copy_out(gva, info.as_bytes())?,
        Width::Bits32 => {
            let narrow = RunstateInfo32 {
                state: info.state,
                state_entry_time: halves(info.state_entry_time),
                time: info.time.map(halves),
            };
            io.copy_out(gva, narrow.as_bytes())?;
        }
    }
    if marked {
        info.state_entry_time &= !RUNSTATE_UPDATE;
        io.copy_out(entry_time, &info.state_entry_time.to_le_bytes())?;
    }
    Ok(())
}

/// Writes a time area: like the clock in a vcpu_info, its version is odd meanwhile.
fn write_clock(io: &mut dyn CallIo, gva: u64, clock: &crate::time::Clock) -> Result<(), Fault> {
    let mut old = [0; 4];
    io.copy_in(gva, &mut old)?;
    let version = u32::from_le_bytes(old) & !1;
    io.copy_out(gva, &version.wrapping_add(1).to_le_bytes())?;
    io.copy_out(gva, &clock.bytes(version.wrapping_add(1)))?;
    io.copy_out(gva, &version.wrapping_add(2).to_le_bytes())
}
