//! How long a vCPU was in which state.

use xen_abi::vcpu::{RunState, RunstateInfo};

/// The account of one vCPU.
#[derive(Clone, Copy, Debug)]
pub struct Runstate {
    state: RunState,
    since: u64,
    time: [u64; 4],
}

impl Runstate {
    /// Offline since `now`.
    pub const fn new(now: u64) -> Self {
        Self { state: RunState::OFFLINE, since: now, time: [0; 4] }
    }
    /// The state.
    pub const fn state(&self) -> RunState {
        self.state
    }
    /// Enters `state` at `now`.
    pub fn enter(&mut self, state: RunState, now: u64) {
        if let Some(slot) = self.time.get_mut(self.state.0 as usize) {
            *slot = slot.saturating_add(now.saturating_sub(self.since));
        }
        self.state = state;
        self.since = self.since.max(now);
    }
    /// As the guest sees it: the time in the present state is counted up to when it began.
    pub fn info(&self) -> RunstateInfo {
        RunstateInfo { state: self.state.0, pad: 0, state_entry_time: self.since, time: self.time }
    }
    /// As `VCPUOP_get_runstate_info` answers: the time in the present state is counted up to `now`.
    pub fn info_at(&self, now: u64) -> RunstateInfo {
        let mut info = self.info();
        if let Some(slot) = info.time.get_mut(self.state.0 as usize) {
            *slot = slot.saturating_add(now.saturating_sub(self.since));
        }
        info
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_add_up_to_the_time_since_creation() {
        let mut runstate = Runstate::new(100);
        runstate.enter(RunState::RUNNABLE, 150);
        runstate.enter(RunState::RUNNING, 170);
        runstate.enter(RunState::BLOCKED, 200);
        assert_eq!(runstate.info().time, [30, 20, 0, 50]);
        assert_eq!(runstate.info_at(260).time, [30, 20, 60, 50]);
        // A clock read before the last change does not take time away.
        runstate.enter(RunState::RUNNING, 190);
        assert_eq!(runstate.info().state_entry_time, 200);
        assert_eq!(runstate.info_at(210).time, [40, 20, 0, 50]);
    }
}
