//! The PV console (`public/io/console.h`), with the hypervisor itself as its backend: a guest has a
//! console without a dom0.
//!
//! Both indices run freely; what the guest writes into its own is not trusted: more than the ring holds
//! counts as an empty ring.

use super::Domain;
use crate::evtchn::Service;
use crate::platform::{Arch, PageOf};
use addr::{Frame, GuestMemory, GuestPage, GuestPhys};
use alloc::sync::Arc;
use core::sync::atomic::{Ordering::SeqCst, fence};
use xen_abi::Errno;
use xen_abi::hvm::HvmParam;
use xen_abi::ring::console as ring;

/// The ring page of a guest.
#[derive(Clone, Debug)]
pub struct ConsoleRing<P> {
    page: P,
    port: u32,
}

/// Bytes passed on at a time.
const CHUNK: usize = 256;

impl<P: GuestPage> ConsoleRing<P> {
    /// Takes what the guest wrote, at most one chunk.
    fn take_output(&self, chunk: &mut [u8; CHUNK]) -> usize {
        let cons = self.page.read_u32(ring::OUT_CONS);
        let prod = self.page.read_u32(ring::OUT_PROD);
        // The bytes were written before the index that covers them.
        fence(SeqCst);
        let waiting = prod.wrapping_sub(cons);
        if waiting > ring::OUT_SIZE {
            self.page.write_u32(ring::OUT_CONS, prod);
            return 0;
        }
        let n = (waiting as usize).min(CHUNK);
        for (i, byte) in chunk[..n].iter_mut().enumerate() {
            let at = cons.wrapping_add(i as u32) & (ring::OUT_SIZE - 1);
            *byte = self.page.read_u8(ring::OUT + at as usize);
        }
        fence(SeqCst);
        self.page.write_u32(ring::OUT_CONS, cons.wrapping_add(n as u32));
        n
    }

    /// Gives the guest input; returns how many bytes had room.
    fn give_input(&self, bytes: &[u8]) -> usize {
        let cons = self.page.read_u32(ring::IN_CONS);
        let prod = self.page.read_u32(ring::IN_PROD);
        fence(SeqCst);
        let room = ring::IN_SIZE.saturating_sub(prod.wrapping_sub(cons)) as usize;
        let n = room.min(bytes.len());
        for (i, byte) in bytes[..n].iter().enumerate() {
            let at = prod.wrapping_add(i as u32) & (ring::IN_SIZE - 1);
            self.page.write_u8(ring::IN + at as usize, *byte);
        }
        fence(SeqCst);
        self.page.write_u32(ring::IN_PROD, prod.wrapping_add(n as u32));
        n
    }
}

impl<A: Arch> Domain<A> {
    /// Gives the guest a PV console in the RAM page at `frame`: its parameters are set and its port is
    /// open. For the builder, before the domain starts. `EFAULT`: no RAM there.
    pub fn attach_console(&self, frame: Frame<GuestPhys>) -> Result<(), Errno> {
        let page: PageOf<A> = self.memory.pin(frame).map_err(|_| Errno::EFAULT)?;
        let port = self.open_service(Service::Console)?;
        *self.console.lock() = Some(ConsoleRing { page, port });
        self.set_param(HvmParam::CONSOLE_PFN, frame.number());
        self.set_param(HvmParam::CONSOLE_EVTCHN, port.into());
        Ok(())
    }

    /// The guest says that there is output. Bounded by what the ring holds.
    pub(crate) fn drain_console(self: &Arc<Self>) {
        let Some(console) = self.console.lock().clone() else { return };
        let mut any = false;
        for _ in 0..(ring::OUT_SIZE as usize).div_ceil(CHUNK) {
            let mut chunk = [0; CHUNK];
            let n = console.take_output(&mut chunk);
            if n == 0 {
                break;
            }
            any = true;
            A::console_write(self, &chunk[..n]);
        }
        if any {
            // A writer may wait for room.
            self.raise_service(console.port);
        }
    }

    /// Types `bytes` into the guest's PV console; returns how many it had room for (0 without console).
    /// One caller at a time.
    pub fn console_input(self: &Arc<Self>, bytes: &[u8]) -> usize {
        let Some(console) = self.console.lock().clone() else { return 0 };
        let n = console.give_input(bytes);
        if n > 0 {
            self.raise_service(console.port);
        }
        n
    }
}
