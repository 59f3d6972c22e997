//! The FIFO ABI through the hypercall, as a guest sees it.

mod guest;
mod reference;

use crate::domain::DomainConfig;
use crate::evtchn::tests::*;
use crate::platform::DomainMemory;
use crate::testing::*;
use crate::vcpu::{Pending, VcpuId};
use addr::testing::HeapPage;
use addr::{Frame, GuestMemory, GuestPage};
use alloc::vec;
use core::cell::Cell;
use guest::*;
use xen_abi::evtchn::fifo::*;
use xen_abi::evtchn::*;
use xen_abi::shared::LAYOUT_64;
use xen_abi::{DomId, Errno};

fn wide(vcpus: u32) -> Dom {
    domain_with(&machine(2), DomainConfig { max_port: u32::MAX, ..DomainConfig::new("wide", vcpus, 128) })
}
/// A guest with this ABI, one page of words, all unmasked.
fn guest(vcpus: u32) -> FifoGuest {
    let mut guest = FifoGuest::new(&wide(vcpus));
    guest.grow(false);
    guest
}
fn send(d: &Dom, port: u32) {
    assert_eq!(port_op(d, EvtchnOp::SEND, port), 0);
}
/// A port that sends to one of the same domain that can be moved: (the one to send on, the one that hears).
fn pair(guest: &mut FifoGuest) -> (u32, u32) {
    let hears = unbound(&guest.d, DomId::SELF).unwrap();
    let sends = interdomain(&guest.d, DomId::SELF, hears).unwrap();
    assert_eq!(guest.drain(0), [sends], "pending once at bind");
    (sends, hears)
}

#[test]
fn init_control_checks_its_arguments_and_a_failed_first_one_changes_nothing() {
    let d = wide(2);
    assert_eq!(init_control(&d, 2, 9, 0), Errno::ENOENT.result());
    assert_eq!(init_control(&d, u32::MAX, 9, 0), Errno::ENOENT.result());
    for offset in [4, 4025, 4028, 4032, 4096, u32::MAX] {
        assert_eq!(init_control(&d, 0, 9, offset), Errno::EINVAL.result(), "{offset}");
    }
    for gfn in [RAM_PAGES, 1 << 40, u64::MAX] {
        assert_eq!(init_control(&d, 0, gfn, 0), Errno::EINVAL.result(), "{gfn:#x}");
    }
    d.memory.may_charge.store(0, core::sync::atomic::Ordering::SeqCst);
    assert_eq!(init_control(&d, 0, 9, 0), Errno::ENOMEM.result());
    d.memory.may_charge.store(u64::MAX, core::sync::atomic::Ordering::SeqCst);
    // Still 2-level.
    assert_eq!(expand(&d, 10), Errno::EOPNOTSUPP.result());
    let port = ipi(&d, 1).unwrap();
    assert_eq!(set_priority(&d, port, 3), Errno::ENOSYS.result());
    send(&d, port);
    assert_eq!(d.shared_info().read_u64(LAYOUT_64.evtchn_pending), 1 << port);
    // The last offset is right; the second time for a vCPU is not, the first for another is.
    assert_eq!(init_control(&d, 0, 9, 4024), 0);
    assert_eq!(init_control(&d, 0, 9, 0), Errno::EINVAL.result());
    assert_eq!(init_control(&d, 1, 9, 0), 0, "two in a page");
}

#[test]
fn the_array_has_128_pages_of_ram_at_most() {
    let mut guest = FifoGuest::new(&wide(1));
    assert_eq!(expand(&guest.d, RAM_PAGES), Errno::EINVAL.result());
    assert_eq!(expand(&guest.d, u64::MAX), Errno::EINVAL.result());
    (0..128).for_each(|_| guest.grow(true));
    assert_eq!(expand(&guest.d, 9), Errno::ENOSPC.result());
    assert_eq!(expand(&guest.d, u64::MAX), Errno::ENOSPC.result());
}

#[test]
fn priorities_are_checked() {
    let guest = guest(1);
    let port = ipi(&guest.d, 0).unwrap();
    assert_eq!(set_priority(&guest.d, port, 15), 0);
    assert_eq!(set_priority(&guest.d, port, 16), Errno::EINVAL.result());
    assert_eq!(set_priority(&guest.d, port, u32::MAX), Errno::EINVAL.result());
    assert_eq!(set_priority(&guest.d, port + 1, 1), Errno::EACCES.result(), "closed");
    for port in [0, 64, 131_072, u32::MAX] {
        assert_eq!(set_priority(&guest.d, port, 1), Errno::EINVAL.result(), "{port}");
    }
}

#[test]
fn order_is_by_priority_then_by_time() {
    let mut guest = guest(2);
    let d = guest.d.clone();
    let ports: vec::Vec<_> = (0..6).map(|_| ipi(&d, 1).unwrap()).collect();
    for (port, priority) in ports.iter().zip([7, 15, 0, 15, 7, 0]) {
        assert_eq!(set_priority(&d, *port, priority), 0);
    }
    upcalls();
    ports.iter().for_each(|port| send(&d, *port));
    let [a, b, c, e, f, g] = ports[..] else { unreachable!() };
    assert_eq!(guest.drain(1), [c, g, a, f, b, e]);
    assert_eq!(guest.drain(0), []);
    assert_eq!(upcalls(), [(d.id().0, 1)], "the upcall byte was not cleared in between");
    let info = d.vcpu(VcpuId(1)).unwrap().vcpu_info().unwrap();
    info.page.swap_u8(info.offset, 0);
    send(&d, a);
    assert_eq!(upcalls(), [(d.id().0, 1)]);
    assert_eq!(guest.drain(1), [a]);
}

#[test]
fn an_event_sent_twice_is_handled_once_and_again_when_sent_again() {
    let mut guest = guest(1);
    let d = guest.d.clone();
    let (a, b) = (ipi(&d, 0).unwrap(), ipi(&d, 0).unwrap());
    [a, b, a, b].into_iter().for_each(|port| send(&d, port));
    assert_eq!(guest.drain(0), [a, b]);
    send(&d, b);
    send(&d, a);
    assert_eq!(guest.drain(0), [b, a]);
}

#[test]
fn sent_again_between_consumption_and_handling_it_comes_again() {
    let mut guest = guest(1);
    let d = guest.d.clone();
    let port = ipi(&d, 0).unwrap();
    send(&d, port);
    assert_eq!(
        guest.take(0),
        Some((port, 7, true)),
        "unlinked, not handled: it is the tail of its queue still"
    );
    send(&d, port);
    assert_ne!(guest.word(port) & LINKED, 0);
    assert_eq!(guest.word(port) & LINK, 0, "not linked to itself");
    assert_eq!(guest.drain(0), [port]);
    assert_eq!(guest.drain(0), []);
}

#[test]
fn masked_events_wait_until_unmasked_in_memory_or_by_hypercall() {
    let mut guest = guest(1);
    let d = guest.d.clone();
    let port = ipi(&d, 0).unwrap();
    guest.mask(port);
    upcalls();
    send(&d, port);
    assert_eq!(guest.word(port), PENDING | MASKED, "not linked");
    assert!(upcalls().is_empty());
    guest.unmask(port);
    assert_eq!(upcalls().len(), 1);
    assert_eq!(guest.drain(0), [port]);
    // By hypercall alone, pending or not.
    guest.mask(port);
    assert_eq!(port_op(&d, EvtchnOp::UNMASK, port), 0);
    assert_eq!(guest.word(port), 0);
    guest.mask(port);
    send(&d, port);
    assert_eq!(port_op(&d, EvtchnOp::UNMASK, port), 0);
    assert_eq!(guest.drain(0), [port]);
    // Masked while linked: taken off and not handled, then unmasked.
    send(&d, port);
    guest.mask(port);
    assert_eq!(guest.drain(0), []);
    guest.unmask(port);
    assert_eq!(guest.drain(0), [port]);
}

#[test]
fn a_change_of_priority_or_vcpu_while_linked_counts_from_the_next_event_on() {
    let mut guest = guest(2);
    let d = guest.d.clone();
    let other = ipi(&d, 0).unwrap();
    let (sends, hears) = pair(&mut guest);
    send(&d, sends);
    assert_eq!(set_priority(&d, hears, 0), 0);
    assert_eq!(bind_vcpu(&d, hears, 1), 0);
    send(&d, sends);
    send(&d, other);
    assert_eq!(guest.drain(1), [], "it is on the old queue");
    assert_eq!(guest.drain(0), [hears, other]);
    send(&d, sends);
    assert_eq!(guest.take(1), Some((hears, 0, true)));
    guest.clear(hears, PENDING);
    // Back again, onto a queue that something is on, and whose tail it was long ago.
    assert_eq!((set_priority(&d, hears, 7), bind_vcpu(&d, hears, 0)), (0, 0));
    send(&d, other);
    send(&d, sends);
    assert_eq!(guest.drain(0), [other, hears]);
}

#[test]
fn a_queue_whose_tail_has_moved_elsewhere_begins_anew() {
    let mut guest = guest(2);
    let d = guest.d.clone();
    let other = ipi(&d, 0).unwrap();
    let (sends, hears) = pair(&mut guest);
    send(&d, sends);
    assert_eq!(guest.drain(0), [hears]);
    // The tail of vCPU 0's queue is `hears`, which is now linked on vCPU 1's.
    assert_eq!(bind_vcpu(&d, hears, 1), 0);
    send(&d, sends);
    send(&d, other);
    assert_eq!(guest.word(hears) & LINK, 0, "two queues would run into each other");
    assert_eq!(guest.drain(0), [other]);
    assert_eq!(guest.drain(1), [hears]);
}

#[test]
fn a_port_closed_while_linked_is_not_used_again_before_the_guest_took_it_off() {
    let mut guest = guest(1);
    let d = guest.d.clone();
    let (a, b, c) = (ipi(&d, 0).unwrap(), ipi(&d, 0).unwrap(), ipi(&d, 0).unwrap());
    [a, b, c].into_iter().for_each(|port| send(&d, port));
    assert_eq!(port_op(&d, EvtchnOp::CLOSE, a), 0);
    assert_eq!(port_op(&d, EvtchnOp::CLOSE, b), 0);
    assert_eq!(guest.word(b) & (PENDING | LINKED), LINKED);
    assert_eq!(ipi(&d, 0), Ok(c + 1));
    assert_eq!(guest.take(0), Some((a, 7, false)));
    assert_eq!(ipi(&d, 0), Ok(a), "free again");
    assert_eq!(guest.drain(0), [c]);
    assert_eq!(ipi(&d, 0), Ok(b));
    assert_eq!(status(&d, a).1, 0);
}

#[test]
fn reusing_a_closed_tail_elsewhere_does_not_mix_queues() {
    let mut guest = guest(2);
    let d = guest.d.clone();
    let (a, other) = (ipi(&d, 0).unwrap(), ipi(&d, 0).unwrap());
    send(&d, a);
    assert_eq!(guest.drain(0), [a]);
    assert_eq!(port_op(&d, EvtchnOp::CLOSE, a), 0);
    assert_eq!(ipi(&d, 1), Ok(a), "the same port for another vCPU");
    send(&d, a);
    send(&d, other);
    assert_eq!(guest.drain(0), [other]);
    assert_eq!(guest.drain(1), [a]);
}

#[test]
fn events_without_a_word_are_latched_until_the_array_has_it() {
    let d = wide(1);
    // Pending in the 2-level ABI, one of them closed before the change.
    let (a, b, c) = (ipi(&d, 0).unwrap(), ipi(&d, 0).unwrap(), ipi(&d, 0).unwrap());
    send(&d, b);
    d.shared_info().fetch_or_u64(LAYOUT_64.evtchn_pending, 1 << 40);
    let mut guest = FifoGuest::new(&d);
    assert_eq!(d.shared_info().read_u64(LAYOUT_64.evtchn_pending), 0, "carried over");
    send(&d, c);
    send(&d, c);
    assert_eq!(guest.d.port_pending(c), Ok(true));
    assert_eq!(port_op(&d, EvtchnOp::CLOSE, c), 0);
    assert_eq!(ipi(&d, 0), Ok(c));
    assert_eq!(guest.d.port_pending(c), Ok(false), "what was latched went with the port");
    guest.grow(false);
    assert_eq!(guest.drain(0), [b]);
    send(&d, a);
    assert_eq!(guest.drain(0), [a]);
    // Beyond the array: the second page raises what the first had no room for, and only that.
    (4..1100).for_each(|port| assert_eq!(ipi(&d, 0), Ok(port)));
    send(&d, 1024);
    send(&d, 1099);
    send(&d, 1099);
    guest.grow(false);
    assert_eq!(guest.drain(0), [1024, 1099]);
    // Masked from the start, as the guest makes them.
    (1100..2100).for_each(|port| assert_eq!(ipi(&d, 0), Ok(port)));
    send(&d, 2050);
    guest.grow(true);
    assert_eq!(guest.drain(0), []);
    guest.unmask(2050);
    assert_eq!(guest.drain(0), [2050]);
}

#[test]
fn events_for_a_vcpu_without_control_block_are_dropped() {
    let d = wide(2);
    d.memory.populate(Frame::new(0x1000), 0).unwrap();
    assert_eq!(init_control(&d, 0, 0x1000, 0), 0);
    let port = ipi(&d, 1).unwrap();
    assert_eq!(expand(&d, 9), 0);
    send(&d, port);
    let words = d.memory.pin(Frame::new(9)).unwrap();
    assert_eq!(words.read_u32(port as usize * 4), 0);
    assert!(!d.vcpu(VcpuId(1)).unwrap().upcall_due());
}

#[test]
fn a_poll_on_a_masked_port_ends() {
    let guest = guest(1);
    let d = guest.d.clone();
    let port = ipi(&d, 0).unwrap();
    guest.mask(port);
    let vcpu = d.vcpu(VcpuId(0)).unwrap();
    vcpu.begin_poll(port);
    send(&d, port);
    assert_eq!(vcpu.take_pending(), Pending::POLL);
    assert_eq!(d.port_pending(port), Ok(true));
    guest.clear(port, PENDING);
    assert_eq!(d.port_pending(port), Ok(false));
    assert_eq!(d.port_pending(131_071), Ok(false));
    assert_eq!(d.port_pending(131_072), Err(Errno::EINVAL));
}

#[test]
fn reset_goes_back_to_2_level_and_the_next_kernel_can_begin_anew() {
    let mut guest = guest(2);
    let d = guest.d.clone();
    d.attach_console(Frame::new(9)).unwrap();
    let port = ipi(&d, 1).unwrap();
    assert_eq!(set_priority(&d, port, 3), 0);
    send(&d, port);
    let page = d.memory.pin(Frame::new(0x2000)).unwrap();
    let held = page.clones();
    assert_eq!(op(&d, EvtchnOp::RESET, Reset { dom: DomId::SELF.0 }), 0);
    assert_eq!(page.clones(), held - 1, "the array is not held any more");
    assert_eq!(expand(&d, 9), Errno::EOPNOTSUPP.result());
    let port = ipi(&d, 1).unwrap();
    send(&d, port);
    assert_eq!(d.shared_info().read_u64(LAYOUT_64.evtchn_pending), 1 << port);
    d.raise_service(1);
    assert_eq!(d.shared_info().read_u64(LAYOUT_64.evtchn_pending), 1 << port | 1 << 1, "the console's, too");
    // The pages of old are the guest's own affair.
    d.memory.unmap(Frame::new(0x1000)).unwrap();
    d.memory.unmap(Frame::new(0x1001)).unwrap();
    d.memory.unmap(Frame::new(0x2000)).unwrap();
    guest = FifoGuest::new(&d);
    guest.grow(false);
    assert_eq!((guest.drain(0), guest.drain(1)), (vec![1], vec![port]), "carried over");
}

#[test]
fn between_domains_each_has_its_own_abi() {
    let machine = machine(1);
    let (a, b) = (domain(&machine, 1), domain(&machine, 1));
    let mut guest = FifoGuest::new(&b);
    guest.grow(false);
    let pa = unbound(&a, b.id()).unwrap();
    let pb = interdomain(&b, a.id(), pa).unwrap();
    assert_eq!(guest.drain(0), [pb]);
    send(&a, pa);
    send(&b, pb);
    assert_eq!(guest.drain(0), [pb]);
    assert_eq!(a.shared_info().read_u64(LAYOUT_64.evtchn_pending), 1 << pa);
    machine.destroy(&b).unwrap();
    assert_eq!(status(&a, pa), (status::UNBOUND, 0, [b.id().0.into(), 0]));
}

#[test]
fn the_limit_of_the_domain_holds_and_the_abi_ends_at_131071() {
    let d = domain_with(&machine(1), DomainConfig { max_port: 5000, ..DomainConfig::new("some", 1, 128) });
    let _guest = FifoGuest::new(&d);
    (1..=5000).for_each(|port| assert_eq!(ipi(&d, 0), Ok(port)));
    assert_eq!(ipi(&d, 0), Err(Errno::ENOSPC.result()));
}

/// A page that a guest changes while it is looked at: before each compare-exchange.
#[derive(Clone)]
struct Fighting<'a>(HeapPage, &'a Cell<u32>, u32);

impl GuestPage for Fighting<'_> {
    fn read_u8(&self, at: usize) -> u8 {
        self.0.read_u8(at)
    }
    fn read_u32(&self, at: usize) -> u32 {
        self.0.read_u32(at)
    }
    fn read_u64(&self, at: usize) -> u64 {
        self.0.read_u64(at)
    }
    fn write_u8(&self, at: usize, value: u8) {
        self.0.write_u8(at, value);
    }
    fn write_u32(&self, at: usize, value: u32) {
        self.0.write_u32(at, value);
    }
    fn write_u64(&self, at: usize, value: u64) {
        self.0.write_u64(at, value);
    }
    fn swap_u8(&self, at: usize, value: u8) -> u8 {
        self.0.swap_u8(at, value)
    }
    fn fetch_or_u64(&self, at: usize, bits: u64) -> u64 {
        self.0.fetch_or_u64(at, bits)
    }
    fn fetch_and_u64(&self, at: usize, bits: u64) -> u64 {
        self.0.fetch_and_u64(at, bits)
    }
    fn fetch_or_u32(&self, at: usize, bits: u32) -> u32 {
        self.0.fetch_or_u32(at, bits)
    }
    fn fetch_and_u32(&self, at: usize, bits: u32) -> u32 {
        self.0.fetch_and_u32(at, bits)
    }
    fn compare_exchange_u32(&self, at: usize, old: u32, new: u32) -> Result<u32, u32> {
        let round = self.1.replace(self.1.get() + 1);
        if round < self.2 {
            // PENDING and MASKED change in turn; the last change takes the port off the queue.
            let word = self.0.read_u32(at);
            self.0.write_u32(at, if round == 20 { word & !(LINKED | LINK) } else { word ^ PENDING });
        }
        self.0.compare_exchange_u32(at, old, new)
    }
    fn compare_exchange_u64(&self, at: usize, old: u64, new: u64) -> Result<u64, u64> {
        self.0.compare_exchange_u64(at, old, new)
    }
}

#[test]
fn linking_survives_what_a_guest_may_do_and_gives_up_on_what_it_may_not() {
    use super::pages::{Linked, Pages};
    let link = |before: u32, changes: u32, first: u32| {
        let (page, rounds) = (HeapPage::default(), Cell::new(first));
        page.write_u32(20, before);
        let pages = Pages::new(1);
        pages.push(Fighting(page.clone(), &rounds, changes));
        let outcome = pages.word(5).unwrap().link(9);
        (outcome, page.read_u32(20), rounds.get() - first)
    };
    assert_eq!(link(LINKED | PENDING, 0, 0), (Linked::Yes, LINKED | PENDING | 9, 1));
    assert_eq!(link(PENDING | 3, 0, 0), (Linked::Drained, PENDING | 3, 0));
    // One, and as many changes as there can be: it gets through, and BUSY is gone.
    assert_eq!(link(LINKED, 1, 0), (Linked::Yes, LINKED | PENDING | 9, 2));
    assert_eq!(link(LINKED, 4, 0), (Linked::Yes, LINKED | 9, 5));
    // Five are against the protocol: bounded, BUSY is gone, the queue is as it was.
    assert_eq!(link(LINKED | MASKED, u32::MAX, 0), (Linked::Fought, LINKED | MASKED | PENDING, 5));
    // Taken off between the look and the exchange.
    assert_eq!(link(LINKED | PENDING, 21, 20), (Linked::Drained, PENDING, 1));
    assert_eq!(link(LINKED | PENDING, 21, 19), (Linked::Drained, 0, 2));
}

/// Counts what one send does to the memory that guests share, and what a channel costs, for few and many channels.
#[test]
fn costs_do_not_grow_with_the_number_of_channels() {
    use core::sync::atomic::Ordering::SeqCst;
    let measure = |channels: u32| {
        let d = wide(1);
        let mut guest = FifoGuest::new(&d);
        (0..channels.div_ceil(1024).max(1)).for_each(|_| guest.grow(false));
        let before = d.memory.charged.load(SeqCst);
        (1..=channels).for_each(|port| assert_eq!(d.bind_ipi(0), Ok(port)));
        let bytes = d.memory.charged.load(SeqCst) - before;
        let mut most = 0;
        for port in (1..=channels).step_by(channels.div_ceil(500) as usize) {
            let before = addr::testing::accesses();
            d.send(port).unwrap();
            most = most.max(addr::testing::accesses() - before);
        }
        (most, bytes.div_ceil(u64::from(channels)))
    };
    let few = measure(10);
    for channels in [1000, 131_071] {
        let many = measure(channels);
        assert!(many.0 <= few.0 + 3, "{channels}: {many:?}, 10: {few:?}");
        assert!(many.1 <= 80, "{channels} channels: {} bytes each", many.1);
    }
    // PENDING, LINKED; then the tail's word read and exchanged, or the head, the ready bit and the upcall byte.
    assert_eq!(few.0, 5);
}

/// Threads send on, move and re-prioritise ports while another consumes: every event is handled, none twice.
#[test]
fn nothing_is_lost_or_doubled_under_load() {
    use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
    const PORTS: usize = 6;
    let mut guest = guest(2);
    let d = guest.d.clone();
    let pairs: vec::Vec<_> = (0..PORTS).map(|_| pair(&mut guest)).collect();
    let sent: [AtomicU32; PORTS] = Default::default();
    let handled: [AtomicU32; PORTS] = Default::default();
    let stop = AtomicBool::new(false);
    let guest = std::sync::Mutex::new(guest);
    let index = |port: u32| pairs.iter().position(|(_, hears)| *hears == port).unwrap();
    let drain = |vcpu: u32| {
        let got = guest.lock().unwrap().drain(vcpu);
        for port in got {
            handled[index(port)].fetch_add(1, SeqCst);
        }
    };
    std::thread::scope(|scope| {
        for half in 0..2 {
            let (pairs, sent, handled, d) = (&pairs, &sent, &handled, &d);
            scope.spawn(move || {
                for round in 0..3000 {
                    let n = half * PORTS / 2 + round % (PORTS / 2);
                    sent[n].fetch_add(1, SeqCst);
                    d.send(pairs[n].0).unwrap();
                    // One at a time on each port, so that each must be handled once.
                    while handled[n].load(SeqCst) != sent[n].load(SeqCst) {
                        std::thread::yield_now();
                    }
                }
            });
        }
        scope.spawn(|| {
            let mut round = 0u32;
            while !stop.load(SeqCst) {
                let hears = pairs[round as usize % PORTS].1;
                d.bind_vcpu(hears, round / 7 % 2).unwrap();
                d.set_priority(hears, round / 3 % 16).unwrap();
                round += 1;
                std::thread::yield_now();
            }
        });
        while sent.iter().map(|n| n.load(SeqCst)).sum::<u32>() < 6000
            || sent.iter().zip(&handled).any(|(a, b)| a.load(SeqCst) != b.load(SeqCst))
        {
            drain(0);
            drain(1);
            std::thread::yield_now();
        }
        stop.store(true, SeqCst);
    });
}
