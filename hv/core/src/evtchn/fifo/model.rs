//! The protocol of the FIFO ABI under every interleaving of raises with the guest's side:
//! `RUSTFLAGS="--cfg loom" cargo test -p hv-core --release loom_fifo`.
//!
//! The words, the control block, the locks and what channels remember are the checker's, so that it can stop a
//! thread at each access. At the end of each run the guest takes what it was told of, and then nothing that is
//! pending and unmasked may be left: neither off the queues, nor on a queue of which the guest does not know.

use super::{Control, Fifo, Pages, Place};
use crate::sync::NoIrq;
use addr::GuestPage;
use alloc::sync::Arc;
use alloc::vec::Vec;
use loom::sync::atomic::{AtomicU32, Ordering::SeqCst};
use loom::thread;
use xen_abi::evtchn::fifo::*;

/// The words at the start of a page; nothing looks further.
#[derive(Clone, Debug)]
struct Page(Arc<Vec<AtomicU32>>);

impl Page {
    fn new(words: usize) -> Self {
        Self(Arc::new((0..words).map(|_| AtomicU32::new(0)).collect()))
    }
    fn at(&self, offset: usize) -> &AtomicU32 {
        &self.0[offset / 4]
    }
}

impl GuestPage for Page {
    fn read_u8(&self, _: usize) -> u8 {
        unreachable!("the protocol has only words")
    }
    fn read_u32(&self, offset: usize) -> u32 {
        self.at(offset).load(SeqCst)
    }
    fn read_u64(&self, _: usize) -> u64 {
        unreachable!()
    }
    fn write_u8(&self, _: usize, _: u8) {
        unreachable!()
    }
    fn write_u32(&self, offset: usize, value: u32) {
        self.at(offset).store(value, SeqCst);
    }
    fn write_u64(&self, _: usize, _: u64) {
        unreachable!()
    }
    fn swap_u8(&self, _: usize, _: u8) -> u8 {
        unreachable!()
    }
    fn fetch_or_u64(&self, _: usize, _: u64) -> u64 {
        unreachable!()
    }
    fn fetch_and_u64(&self, _: usize, _: u64) -> u64 {
        unreachable!()
    }
    fn fetch_or_u32(&self, offset: usize, bits: u32) -> u32 {
        self.at(offset).fetch_or(bits, SeqCst)
    }
    fn fetch_and_u32(&self, offset: usize, bits: u32) -> u32 {
        self.at(offset).fetch_and(bits, SeqCst)
    }
    fn compare_exchange_u32(&self, offset: usize, old: u32, new: u32) -> Result<u32, u32> {
        self.at(offset).compare_exchange(old, new, SeqCst, SeqCst)
    }
    fn compare_exchange_u64(&self, _: usize, _: u64, _: u64) -> Result<u64, u64> {
        unreachable!()
    }
}

/// A domain with ports 1 to 3 and as many vCPUs as need be.
struct World {
    fifo: Fifo<Page, NoIrq>,
    pages: Arc<Pages<Page>>,
    words: Page,
    controls: Vec<Page>,
    /// Index: port.
    places: Vec<Place>,
    /// Upcalls of each vCPU that were asked for.
    upcalls: Vec<AtomicU32>,
    /// How often each port was handled.
    handled: Vec<AtomicU32>,
}

impl World {
    fn new(vcpus: u32, with_array: bool) -> Arc<Self> {
        let world = World {
            fifo: Fifo::new(),
            pages: Arc::new(Pages::new(vcpus)),
            words: Page::new(4),
            controls: (0..vcpus).map(|_| Page::new(18)).collect(),
            places: (0..4).map(|_| Place::new()).collect(),
            upcalls: (0..vcpus).map(|_| AtomicU32::new(0)).collect(),
            handled: (0..4).map(|_| AtomicU32::new(0)).collect(),
        };
        for (vcpu, page) in world.controls.iter().enumerate() {
            world.pages.set_control(vcpu as u32, Control { page: page.clone(), offset: 0 });
        }
        if with_array {
            world.pages.push(world.words.clone());
        }
        world.fifo.start(vcpus, &world.pages);
        Arc::new(world)
    }

    fn raise(&self, port: u32) {
        let raised = self.fifo.raise(port, &self.places[port as usize]).unwrap();
        if let Some(vcpu) = raised.upcall {
            self.upcalls[vcpu.index()].fetch_add(1, SeqCst);
        }
    }
    fn unmask_call(&self, port: u32) {
        let raised = self.fifo.unmask(port, &self.places[port as usize]).unwrap();
        if let Some(vcpu) = raised.upcall {
            self.upcalls[vcpu.index()].fetch_add(1, SeqCst);
        }
    }
    fn word(&self, port: u32) -> &AtomicU32 {
        &self.words.0[port as usize]
    }
    /// The guest unmasks: it waits while BUSY is set.
    fn unmask(&self, port: u32) {
        loop {
            let seen = self.word(port).load(SeqCst);
            if seen & BUSY == 0
                && self.word(port).compare_exchange(seen, seen & !MASKED, SeqCst, SeqCst).is_ok()
            {
                if seen & PENDING != 0 {
                    self.unmask_call(port);
                }
                return;
            }
            thread::yield_now();
        }
    }
}

/// What a vCPU of the guest keeps to itself.
#[derive(Default)]
struct Cpu {
    heads: [u32; 16],
}

impl Cpu {
    /// The upcall handler of the guest, as long as it finds something.
    fn upcall(&mut self, world: &World, vcpu: usize) {
        if world.upcalls[vcpu].swap(0, SeqCst) == 0 {
            return;
        }
        let control = &world.controls[vcpu];
        let mut ready = control.at(READY).swap(0, SeqCst);
        while ready != 0 {
            let queue = ready.trailing_zeros() as usize;
            let head = &mut self.heads[queue];
            if *head == 0 {
                *head = control.at(HEAD + queue * 4).load(SeqCst);
            }
            let port = *head;
            assert!((1..4).contains(&port), "the guest is led to port {port}");
            *head = world.word(port).fetch_and(!(LINKED | LINK), SeqCst) & LINK;
            if *head == 0 {
                ready &= !(1 << queue);
            }
            let word = world.word(port).load(SeqCst);
            if word & (PENDING | MASKED) == PENDING {
                world.word(port).fetch_and(!PENDING, SeqCst);
                world.handled[port as usize].fetch_add(1, SeqCst);
            }
            ready |= control.at(READY).swap(0, SeqCst);
        }
    }
}

/// All has been said: the guest acts on what it was told, and nothing may be left.
fn settle(world: &World, cpus: &mut [Cpu]) {
    for (vcpu, cpu) in cpus.iter_mut().enumerate() {
        cpu.upcall(world, vcpu);
    }
    for port in 1..4 {
        let word = world.word(port).load(SeqCst);
        assert_eq!(word & BUSY, 0, "port {port}");
        assert!(word & MASKED != 0 || word & PENDING == 0, "port {port} is lost: {word:#x}");
        assert_eq!(word & LINKED, 0, "port {port} is on a queue that nobody looks at");
        assert!(!world.places[port as usize].latched.load(SeqCst), "port {port} is latched");
    }
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // Every schedule with that many involuntary switches: the protocol's known races need two.
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn loom_fifo_two_raisers_and_the_guest() {
    check(|| {
        let world = World::new(1, true);
        let raisers: Vec<_> = [1, 2]
            .map(|port| {
                let world = world.clone();
                thread::spawn(move || world.raise(port))
            })
            .into_iter()
            .collect();
        let mut cpu = [Cpu::default()];
        cpu[0].upcall(&world, 0);
        raisers.into_iter().for_each(|raiser| raiser.join().unwrap());
        settle(&world, &mut cpu);
        assert_eq!([1, 2].map(|port: usize| world.handled[port].load(SeqCst)), [1, 1]);
    });
}

#[test]
fn loom_fifo_the_tail_is_taken_off_while_another_is_linked_to_it() {
    check(|| {
        let world = World::new(1, true);
        world.raise(1);
        let raiser = {
            let world = world.clone();
            thread::spawn(move || {
                world.raise(2);
                world.raise(1);
            })
        };
        let mut cpu = [Cpu::default()];
        cpu[0].upcall(&world, 0);
        raiser.join().unwrap();
        settle(&world, &mut cpu);
        assert_eq!(world.handled[2].load(SeqCst), 1);
        assert!((1..=2).contains(&world.handled[1].load(SeqCst)));
    });
}

#[test]
fn loom_fifo_masking_and_unmasking_the_tail_while_another_is_linked_to_it() {
    check(|| {
        let world = World::new(1, true);
        world.raise(1);
        let raiser = {
            let world = world.clone();
            thread::spawn(move || world.raise(2))
        };
        world.word(1).fetch_or(MASKED, SeqCst);
        let mut cpu = [Cpu::default()];
        cpu[0].upcall(&world, 0);
        world.unmask(1);
        raiser.join().unwrap();
        settle(&world, &mut cpu);
        assert_eq!([1, 2].map(|port: usize| world.handled[port].load(SeqCst)), [1, 1]);
    });
}

#[test]
fn loom_fifo_raised_while_the_guest_unmasks() {
    check(|| {
        let world = World::new(1, true);
        world.word(1).store(MASKED, SeqCst);
        let raiser = {
            let world = world.clone();
            thread::spawn(move || world.raise(1))
        };
        let caller = {
            let world = world.clone();
            thread::spawn(move || world.unmask_call(1))
        };
        let mut cpu = [Cpu::default()];
        cpu[0].upcall(&world, 0);
        raiser.join().unwrap();
        caller.join().unwrap();
        settle(&world, &mut cpu);
        assert_eq!(world.handled[1].load(SeqCst), 1);
    });
}

#[test]
fn loom_fifo_a_port_moves_while_it_is_raised_twice() {
    check(|| {
        let world = World::new(2, true);
        world.raise(1);
        world.raise(2);
        let mover = {
            let world = world.clone();
            thread::spawn(move || {
                world.places[1].notify.store(1, SeqCst);
                world.raise(1);
            })
        };
        let raiser = {
            let world = world.clone();
            thread::spawn(move || world.raise(1))
        };
        let mut cpus = [Cpu::default(), Cpu::default()];
        cpus[0].upcall(&world, 0);
        mover.join().unwrap();
        raiser.join().unwrap();
        world.raise(3);
        settle(&world, &mut cpus);
        assert_eq!([2, 3].map(|port: usize| world.handled[port].load(SeqCst)), [1, 1]);
        assert!((1..=3).contains(&world.handled[1].load(SeqCst)));
    });
}

#[test]
fn loom_fifo_two_ports_change_places() {
    check(|| {
        let world = World::new(1, true);
        world.raise(1);
        let mut cpu = [Cpu::default()];
        cpu[0].upcall(&world, 0);
        world.places[2].last.store(3, SeqCst);
        // Each goes where the other was last.
        let swap = |port: usize, priority: u32| {
            let world = world.clone();
            thread::spawn(move || {
                world.places[port].priority.store(priority, SeqCst);
                world.raise(port as u32);
            })
        };
        let both = [swap(1, 3), swap(2, 7)];
        both.into_iter().for_each(|one| one.join().unwrap());
        settle(&world, &mut cpu);
        assert_eq!([1, 2].map(|port: usize| world.handled[port].load(SeqCst)), [2, 1]);
    });
}

#[test]
fn loom_fifo_the_array_grows_while_an_event_is_latched() {
    check(|| {
        let world = World::new(1, false);
        let raiser = {
            let world = world.clone();
            thread::spawn(move || world.raise(1))
        };
        // As `expand_array` does it.
        world.pages.push(world.words.clone());
        if world.places[1].latched.swap(false, SeqCst) {
            world.raise(1);
        }
        raiser.join().unwrap();
        settle(&world, &mut [Cpu::default()]);
        assert_eq!(world.handled[1].load(SeqCst), 1);
    });
}

#[test]
fn loom_fifo_the_abi_ends_while_an_event_is_raised() {
    check(|| {
        let world = World::new(1, true);
        let raiser = {
            let world = world.clone();
            thread::spawn(move || world.fifo.raise(1, &world.places[1]).is_some())
        };
        world.fifo.stop();
        let after = world.word(1).load(SeqCst);
        let raised = raiser.join().unwrap();
        assert_eq!(world.word(1).load(SeqCst), after, "the pages are used after the end");
        assert_eq!(raised, after & PENDING != 0);
    });
}
