//! `EVTCHNOP_reset`: all ports are closed and the domain is back at the 2-level ABI.

use super::fifo;
use crate::domain::Domain;
use crate::platform::Arch;
use alloc::sync::Arc;
use xen_abi::Errno;

/// Ports that one call closes.
const BUDGET: usize = 512;

impl<A: Arch> Domain<A> {
    /// Closes as many ports as one call may, from the first on or (`resume`) from where the reset under way is;
    /// `true`: that was all. `EBUSY`: a reset is under way, or (`resume`) none is; `EAGAIN`: the guest has opened
    /// ports behind its back.
    pub(crate) fn reset_ports(self: &Arc<Self>, resume: bool) -> Result<bool, Errno> {
        let first = {
            let mut config = self.evtchn.config.lock();
            match (resume, config.reset_at) {
                (false, 0) => config.reset_at = 1,
                (true, 1..) => {}
                _ => return Err(Errno::EBUSY),
            }
            config.reset_at
        };
        let mut budget = BUDGET;
        for (port, _) in self.evtchn.channels_from(first) {
            if budget == 0 {
                self.evtchn.config.lock().reset_at = port;
                return Ok(false);
            }
            budget -= 1;
            // A port that is not open is fine here, and those of services stay.
            let _ = self.close_port(port, false);
        }
        let left = {
            let mut config = self.evtchn.config.lock();
            config.reset_at = 0;
            if config.open != 0 {
                return Err(Errno::EAGAIN);
            }
            fifo::leave(self, &mut config)
        };
        drop(left);
        Ok(true)
    }
}
