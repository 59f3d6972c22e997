//! The operations of the FIFO ABI, and the way from the 2-level ABI to it and back.

use super::{Control, Fifo, Pages, Place};
use crate::domain::Domain;
use crate::evtchn::{Config, Raised, State};
use crate::platform::{Arch, DomainMemory, PageOf};
use crate::sync::atomic::Ordering::SeqCst;
use addr::{Frame, GuestMemory, GuestPhys, PAGE_SIZE};
use alloc::sync::Arc;
use xen_abi::Errno;
use xen_abi::evtchn::fifo::{CONTROL_SIZE, LINKED, MAX_PAGES, PENDING, PRIORITIES, WORDS_PER_PAGE};

impl<A: Arch> Domain<A> {
    /// `EVTCHNOP_init_control`: gives a vCPU its control block; the first one makes the domain leave the 2-level ABI.
    /// `ENOENT`: no such vCPU; `EINVAL`: a bad offset, no RAM at `frame`, or the vCPU has one; `ENOMEM`.
    pub(crate) fn init_control(&self, vcpu: u32, frame: Frame<GuestPhys>, offset: u32) -> Result<(), Errno> {
        self.check_vcpu(vcpu)?;
        if offset > PAGE_SIZE as u32 - CONTROL_SIZE || !offset.is_multiple_of(8) {
            return Err(Errno::EINVAL);
        }
        let page = self.memory.pin(frame).map_err(|_| Errno::EINVAL)?;
        let control = Control { page, offset: offset as usize };
        let mut config = self.evtchn.config.lock();
        if let Some(pages) = &config.fifo {
            if pages.control(vcpu).is_some() {
                return Err(Errno::EINVAL);
            }
            pages.set_control(vcpu, control);
            return Ok(());
        }
        self.charge_fifo(&mut config)?;
        let pages = Arc::new(Pages::new(self.config().vcpus));
        pages.set_control(vcpu, control);
        config.fifo = Some(pages.clone());
        self.evtchn.channels().for_each(|(_, channel)| channel.place.forget());
        self.evtchn.fifo.start(self.config().vcpus, &pages);
        // Who still raised the 2-level way looks whether that was right, after setting the bit: one of us takes it.
        for (port, channel) in self.evtchn.channels() {
            if self.take_pending_bit(port) && !matches!(*channel.state.lock(), State::Free) {
                channel.place.latched.store(true, SeqCst);
            }
        }
        Ok(())
    }

    /// The memory of the FIFO ABI is charged once: a reset gives none of it back.
    fn charge_fifo(&self, config: &mut Config<PageOf<A>>) -> Result<(), Errno> {
        if !config.fifo_charged {
            let vcpus = self.config().vcpus;
            let bytes = Fifo::<PageOf<A>, A::Irq>::bytes(vcpus) + Pages::<PageOf<A>>::bytes(vcpus);
            if !self.memory.charge(bytes) {
                return Err(Errno::ENOMEM);
            }
            config.fifo_charged = true;
        }
        Ok(())
    }

    /// `EVTCHNOP_expand_array`: appends a page of event words, and raises what is latched for them. `EOPNOTSUPP`: the
    /// domain uses the 2-level ABI; `ENOSPC`: the array is complete; `EINVAL`: no RAM at `frame`.
    pub(crate) fn expand_array(&self, frame: Frame<GuestPhys>) -> Result<(), Errno> {
        let page = self.memory.pin(frame);
        let first = {
            let config = self.evtchn.config.lock();
            let pages = config.fifo.as_ref().ok_or(Errno::EOPNOTSUPP)?;
            let slot = pages.len();
            if slot >= MAX_PAGES {
                return Err(Errno::ENOSPC);
            }
            pages.push(page.map_err(|_| Errno::EINVAL)?);
            slot * WORDS_PER_PAGE
        };
        for (port, channel) in self.evtchn.channels_from(first).take(WORDS_PER_PAGE as usize) {
            if channel.place.latched.load(SeqCst) {
                self.raise_if(port, |state| {
                    !matches!(state, State::Free) && channel.place.latched.swap(false, SeqCst)
                });
            }
        }
        Ok(())
    }

    /// `EVTCHNOP_set_priority`, for later events. `EINVAL`: no such port or priority; `ENOSYS`: the domain uses the
    /// 2-level ABI; `EACCES`: the port is not open.
    pub(crate) fn set_priority(&self, port: u32, priority: u32) -> Result<(), Errno> {
        let channel = self.evtchn.channel(port).ok_or(Errno::EINVAL)?;
        let _config = self.evtchn.config.lock();
        if !self.evtchn.fifo.on() {
            return Err(Errno::ENOSYS);
        }
        if matches!(*channel.state.lock(), State::Free) {
            return Err(Errno::EACCES);
        }
        if priority >= PRIORITIES {
            return Err(Errno::EINVAL);
        }
        channel.place.priority.store(priority, SeqCst);
        Ok(())
    }

    /// Raises `port` in the ABI that the domain uses. Under the lock of the channel or of its peer.
    pub(in crate::evtchn) fn raise_port(&self, port: u32, place: &Place) -> Raised {
        if self.evtchn.fifo.on()
            && let Some(raised) = self.evtchn.fifo.raise(port, place)
        {
            return raised;
        }
        let raised = self.raise_bits(port, place);
        // The domain may have changed over since we looked. It took the bit with it if it saw it.
        if raised.pending && self.evtchn.fifo.on() && self.take_pending_bit(port) {
            return self.evtchn.fifo.raise(port, place).unwrap_or(raised);
        }
        raised
    }
}

/// Back to the 2-level ABI: `config` is the domain's, locked. Returns what to drop once it is not.
pub(in crate::evtchn) fn leave<A: Arch>(
    domain: &Domain<A>,
    config: &mut Config<PageOf<A>>,
) -> Option<Arc<Pages<PageOf<A>>>> {
    let pages = config.fifo.take()?;
    domain.evtchn.fifo.stop();
    domain.evtchn.channels().for_each(|(_, channel)| channel.place.forget());
    Some(pages)
}

/// Whether the guest may still find `port` on a queue, though it is closed: it cannot be used for anything else.
pub(in crate::evtchn) fn busy<A: Arch>(config: &Config<PageOf<A>>, port: u32) -> bool {
    let word = config.fifo.as_ref().and_then(|pages| pages.word(port));
    word.is_some_and(|word| word.read() & LINKED != 0)
}

/// Drops what is pending on a port that is being closed. The guest takes it off its queue and ignores it.
pub(in crate::evtchn) fn clear_pending<A: Arch>(config: &Config<PageOf<A>>, port: u32, place: &Place) {
    if let Some(pages) = &config.fifo {
        place.latched.store(false, SeqCst);
        if let Some(word) = pages.word(port) {
            word.clear(PENDING);
        }
    }
}
