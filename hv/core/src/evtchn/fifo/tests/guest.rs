//! A guest's side of the FIFO ABI, as Linux has it.

use crate::domain::Domain;
use crate::evtchn::tests::{op, port_op};
use crate::platform::DomainMemory;
use crate::testing::*;
use addr::testing::HeapPage;
use addr::{Frame, GuestMemory, GuestPage};
use alloc::sync::Arc;
use alloc::vec::Vec;
use xen_abi::evtchn::fifo::*;
use xen_abi::evtchn::{EvtchnOp, ExpandArray, InitControl, SetPriority};

/// Where the control blocks and the array are put.
const CONTROL: u64 = 0x1000;
const ARRAY: u64 = 0x2000;
/// Offset of the control blocks in their pages.
pub const OFFSET: u32 = 4096 - CONTROL_SIZE;

pub fn init_control(d: &Arc<Domain<Fake>>, vcpu: u32, gfn: u64, offset: u32) -> i64 {
    let arg = InitControl { control_gfn: gfn, offset, vcpu, link_bits: 0, pad: [0; 7] };
    op(d, EvtchnOp::INIT_CONTROL, arg)
}
pub fn expand(d: &Arc<Domain<Fake>>, gfn: u64) -> i64 {
    op(d, EvtchnOp::EXPAND_ARRAY, ExpandArray { array_gfn: gfn })
}
pub fn set_priority(d: &Arc<Domain<Fake>>, port: u32, priority: u32) -> i64 {
    op(d, EvtchnOp::SET_PRIORITY, SetPriority { port, priority })
}

/// What one vCPU knows of its queues.
struct Cpu {
    control: HeapPage,
    ready: u32,
    heads: [u32; 16],
}

pub struct FifoGuest {
    pub d: Arc<Domain<Fake>>,
    cpus: Vec<Cpu>,
    array: Vec<HeapPage>,
}

impl FifoGuest {
    /// Sets the ABI up on all vCPUs, without an array.
    pub fn new(d: &Arc<Domain<Fake>>) -> Self {
        let cpu = |vcpu: u32| {
            let frame = CONTROL + u64::from(vcpu);
            d.memory.populate(Frame::new(frame), 0).unwrap();
            assert_eq!(init_control(d, vcpu, frame, OFFSET), 0);
            assert_eq!(d.get::<InitControl>(ARG).link_bits, 17);
            let control = d.memory.pin(Frame::new(frame)).unwrap();
            Cpu { control, ready: 0, heads: [0; 16] }
        };
        Self { d: d.clone(), cpus: (0..d.config().vcpus).map(cpu).collect(), array: Vec::new() }
    }

    /// Adds a page of words, all masked if `masked`.
    pub fn grow(&mut self, masked: bool) {
        let frame = ARRAY + self.array.len() as u64;
        self.d.memory.populate(Frame::new(frame), 0).unwrap();
        let page = self.d.memory.pin(Frame::new(frame)).unwrap();
        (0..1024).for_each(|word| page.write_u32(word * 4, if masked { MASKED } else { 0 }));
        self.array.push(page);
        assert_eq!(expand(&self.d, frame), 0);
    }

    fn at(&self, port: u32) -> (&HeapPage, usize) {
        (&self.array[(port / 1024) as usize], (port % 1024) as usize * 4)
    }
    pub fn word(&self, port: u32) -> u32 {
        let (page, at) = self.at(port);
        page.read_u32(at)
    }
    pub fn set(&self, port: u32, bits: u32) {
        let (page, at) = self.at(port);
        page.fetch_or_u32(at, bits);
    }
    pub fn clear(&self, port: u32, bits: u32) -> u32 {
        let (page, at) = self.at(port);
        page.fetch_and_u32(at, !bits)
    }
    pub fn mask(&self, port: u32) {
        self.set(port, MASKED);
    }
    /// Unmasks in memory, and asks for what is pending.
    pub fn unmask(&self, port: u32) {
        let (page, at) = self.at(port);
        loop {
            let seen = page.read_u32(at) & !BUSY;
            if page.compare_exchange_u32(at, seen, seen & !MASKED).is_ok() {
                if seen & PENDING != 0 {
                    assert_eq!(port_op(&self.d, EvtchnOp::UNMASK, port), 0);
                }
                return;
            }
        }
    }

    /// Takes the next port off the queues of a vCPU: (port, priority, whether there was something to handle).
    pub fn take(&mut self, vcpu: u32) -> Option<(u32, u32, bool)> {
        let cpu = &mut self.cpus[vcpu as usize];
        let base = OFFSET as usize;
        let page = &cpu.control;
        let news = page.fetch_and_u32(base + READY, 0);
        cpu.ready |= news;
        let priority = (0..16).find(|q| cpu.ready & 1 << q != 0)?;
        let head = &mut cpu.heads[priority as usize];
        if *head == 0 {
            *head = page.read_u32(base + HEAD + priority as usize * 4);
        }
        let port = *head;
        let (page, at) = (&self.array[(port / 1024) as usize], (port % 1024) as usize * 4);
        *head = page.fetch_and_u32(at, !(LINKED | LINK)) & LINK;
        if *head == 0 {
            cpu.ready &= !(1 << priority);
        }
        let word = page.read_u32(at);
        Some((port, priority, word & PENDING != 0 && word & MASKED == 0))
    }

    /// Handles all events of a vCPU.
    pub fn drain(&mut self, vcpu: u32) -> Vec<u32> {
        let mut handled = Vec::new();
        while let Some((port, _, due)) = self.take(vcpu) {
            if due {
                self.clear(port, PENDING);
                handled.push(port);
            }
        }
        handled
    }
}
