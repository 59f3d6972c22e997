//! A machine for host tests: its clock, its pCPU and its record of kicks are per test thread.

use crate::domain::{Domain, DomainConfig};
use crate::hypercall::{CallResult, Width, dispatch};
use crate::machine::{Machine, SystemInfo};
use crate::platform::{Arch, CallIo, DomainMemory, Fault, MapError, PcpuId};
use crate::sched::{Credit, Tunables};
use crate::sync::NoIrq;
use crate::time::{Clock, TscScale};
use crate::vcpu::{Vcpu, VcpuId};
use addr::testing::HeapPage;
use addr::{FaultReason, Frame, Gpa, GuestFault, GuestMemory, GuestPage, GuestPhys, page_chunks};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use std::cell::{Cell, RefCell};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread_local;
use xen_abi::Errno;
use xen_abi::call::Call;
use xen_abi::vcpu::HvmContext;
use zerocopy::{FromBytes, Immutable, IntoBytes};

thread_local! {
    pub static NOW: Cell<u64> = const { Cell::new(1_000) };
    pub static HERE: Cell<u32> = const { Cell::new(0) };
    pub static KICKS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    pub static UPCALLS: RefCell<Vec<(u16, u32)>> = const { RefCell::new(Vec::new()) };
    pub static CONSOLE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    pub static ARMED: Cell<Option<u64>> = const { Cell::new(None) };
    pub static TENDED: Cell<u32> = const { Cell::new(0) };
}

/// What a page is to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Ram,
    /// The hypervisor's.
    Special,
    /// Granted by another.
    Foreign {
        writable: bool,
    },
}

/// Guest memory of heap pages at chosen frames, with a limit.
#[derive(Debug)]
pub struct Memory {
    pages: Mutex<BTreeMap<u64, (HeapPage, Held)>>,
    limit: usize,
    /// Bytes charged, and how many there may be.
    pub charged: AtomicU64,
    pub may_charge: AtomicU64,
}

impl Memory {
    /// `ram` pages from zero.
    pub fn new(ram: u64) -> Self {
        let pages = (0..ram).map(|n| (n, (HeapPage::default(), Held::Ram))).collect();
        Self {
            pages: Mutex::new(pages),
            limit: 1 << 16,
            charged: AtomicU64::new(0),
            may_charge: AtomicU64::new(u64::MAX),
        }
    }
    /// A page to be used at once and not kept.
    fn hold(&self, frame: Frame<GuestPhys>, write: bool) -> Result<HeapPage, GuestFault> {
        self.pin(frame).or_else(|fault| match self.pages.lock().unwrap().get(&frame.number()) {
            Some((page, Held::Foreign { writable })) if *writable || !write => Ok(page.clone()),
            _ => Err(fault),
        })
    }
    fn put(&self, at: Frame<GuestPhys>, page: &HeapPage, held: Held) -> Result<(), MapError> {
        if at.number() >= 1 << 40 {
            return Err(MapError::BadFrame);
        }
        let mut pages = self.pages.lock().unwrap();
        if matches!(pages.get(&at.number()), Some((_, Held::Foreign { .. }))) {
            return Err(MapError::NotAllowed);
        }
        pages.insert(at.number(), (page.clone(), held));
        Ok(())
    }
    pub fn is_hole(&self, frame: u64) -> bool {
        !self.pages.lock().unwrap().contains_key(&frame)
    }
}

impl GuestMemory for Memory {
    type Page = HeapPage;
    fn pin(&self, frame: Frame<GuestPhys>) -> Result<HeapPage, GuestFault> {
        let fault = GuestFault { gpa: frame.start(), reason: FaultReason::NotMapped };
        match self.pages.lock().unwrap().get(&frame.number()) {
            Some((_, Held::Foreign { .. })) => Err(GuestFault { reason: FaultReason::Permission, ..fault }),
            Some((page, _)) => Ok(page.clone()),
            None => Err(fault),
        }
    }
    fn read(&self, gpa: Gpa, out: &mut [u8]) -> Result<(), GuestFault> {
        for (at, from, n) in page_chunks(gpa, out.len()) {
            let page = self.hold(at.frame(), false)?;
            (0..n).for_each(|i| out[from + i] = page.read_u8(at.page_offset() + i));
        }
        Ok(())
    }
    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), GuestFault> {
        for (at, from, n) in page_chunks(gpa, data.len()) {
            let page = self.hold(at.frame(), true)?;
            (0..n).for_each(|i| page.write_u8(at.page_offset() + i, data[from + i]));
        }
        Ok(())
    }
}

impl DomainMemory for Memory {
    fn new_page(&self) -> Option<HeapPage> {
        Some(HeapPage::default())
    }
    fn map_page(&self, at: Frame<GuestPhys>, page: &HeapPage) -> Result<(), MapError> {
        self.put(at, page, Held::Special)
    }
    fn map_foreign(&self, at: Frame<GuestPhys>, page: &HeapPage, writable: bool) -> Result<(), MapError> {
        self.put(at, page, Held::Foreign { writable })
    }
    fn unmap_foreign(&self, at: Frame<GuestPhys>, page: &HeapPage) -> Result<(), MapError> {
        let mut pages = self.pages.lock().unwrap();
        match pages.get(&at.number()) {
            Some((found, Held::Foreign { .. })) if found.same(page) => {
                pages.remove(&at.number());
                Ok(())
            }
            _ => Err(MapError::NotAllowed),
        }
    }
    fn unmap(&self, at: Frame<GuestPhys>) -> Result<(), MapError> {
        let mut pages = self.pages.lock().unwrap();
        match pages.get(&at.number()) {
            None => Err(MapError::BadFrame),
            Some((_, Held::Foreign { .. })) => Err(MapError::NotAllowed),
            Some(_) => {
                pages.remove(&at.number());
                Ok(())
            }
        }
    }
    fn unmap_page(&self, at: Frame<GuestPhys>, page: &HeapPage) -> Result<(), MapError> {
        let mut pages = self.pages.lock().unwrap();
        match pages.get(&at.number()) {
            Some((_, Held::Foreign { .. })) => Err(MapError::NotAllowed),
            Some((there, _)) if there.same(page) => {
                pages.remove(&at.number());
                Ok(())
            }
            _ => Err(MapError::BadFrame),
        }
    }
    fn populate(&self, at: Frame<GuestPhys>, order: u32) -> Result<(), MapError> {
        let mut pages = self.pages.lock().unwrap();
        let frames = at.number()..at.number() + (1 << order);
        if frames.clone().any(|n| pages.contains_key(&n)) {
            return Err(MapError::NotAllowed);
        }
        if pages.len() + (1 << order) > self.limit {
            return Err(MapError::NoMemory);
        }
        frames.for_each(|n| drop(pages.insert(n, (HeapPage::default(), Held::Ram))));
        Ok(())
    }
    fn max_frame(&self) -> Frame<GuestPhys> {
        Frame::new(self.pages.lock().unwrap().last_key_value().map_or(0, |(n, _)| *n))
    }
    fn pages(&self) -> u64 {
        self.pages.lock().unwrap().values().filter(|(_, held)| *held == Held::Ram).count() as u64
    }
    fn charge(&self, bytes: u64) -> bool {
        let limit = self.may_charge.load(SeqCst);
        let more = |old: u64| (old + bytes <= limit).then_some(old + bytes);
        self.charged.fetch_update(SeqCst, SeqCst, more).is_ok()
    }
}

/// The machine of the tests. Its TSC runs at 1 GHz.
#[derive(Debug)]
pub struct Fake;

impl Arch for Fake {
    type Memory = Memory;
    type DomainData = ();
    type VcpuShared = ();
    type Irq = NoIrq;

    fn now() -> u64 {
        NOW.get()
    }
    fn wallclock() -> u64 {
        1_700_000_000_000_000_000
    }
    fn this_pcpu() -> PcpuId {
        PcpuId(HERE.get())
    }
    fn kick(pcpu: PcpuId) {
        KICKS.with_borrow_mut(|kicks| kicks.push(pcpu.0));
    }
    fn arm_timer(deadline: u64) {
        ARMED.set(Some(deadline));
    }
    fn clock(_: &Vcpu<Self>) -> Clock {
        let now = Self::now();
        Clock { tsc: now, system_time: now, scale: TscScale::from_khz(1_000_000), stable: true }
    }
    fn set_upcall(vcpu: &Vcpu<Self>) {
        UPCALLS.with_borrow_mut(|upcalls| upcalls.push((vcpu.domain().id().0, vcpu.id().0)));
    }
    fn console_write(_: &Domain<Self>, bytes: &[u8]) {
        CONSOLE.with_borrow_mut(|console| console.extend_from_slice(bytes));
    }
    fn initialise_vcpu(_: &Arc<Vcpu<Self>>, context: &HvmContext) -> Result<(), Errno> {
        if context.mode > 1 { Err(Errno::EINVAL) } else { Ok(()) }
    }
    fn capabilities() -> &'static str {
        "hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 "
    }
    fn tend(_: &Domain<Self>) {
        TENDED.set(TENDED.get() + 1);
    }
}

/// A guest whose linear addresses are its physical ones.
pub struct Flat<'a>(pub &'a Memory);

impl CallIo for Flat<'_> {
    fn copy_in(&mut self, gva: u64, out: &mut [u8]) -> Result<(), Fault> {
        Ok(self.0.read(Gpa::new(gva), out)?)
    }
    fn copy_out(&mut self, gva: u64, data: &[u8]) -> Result<(), Fault> {
        Ok(self.0.write(Gpa::new(gva), data)?)
    }
}

pub fn machine(pcpus: u32) -> Arc<Machine<Fake>> {
    let tunables = Tunables::default();
    let info = SystemInfo { command_line: "dom0_mem=1G".into(), ..Default::default() };
    Machine::new(pcpus, Box::new(Credit::new(&tunables)), tunables, info)
}

pub const RAM_PAGES: u64 = 64;

pub fn domain_with(machine: &Arc<Machine<Fake>>, config: DomainConfig) -> Arc<Domain<Fake>> {
    let id = machine.domains.reserve().unwrap();
    machine.create_domain(id, config, Memory::new(RAM_PAGES), (), |_| ()).unwrap()
}

pub fn domain(machine: &Arc<Machine<Fake>>, vcpus: u32) -> Arc<Domain<Fake>> {
    domain_with(machine, DomainConfig::new("l1", vcpus, 128))
}

/// Where the tests put arguments.
pub const ARG: u64 = 0x3000;

pub trait Guest {
    fn call_width(&self, vcpu: u32, call: Call, args: &[u64], width: Width) -> CallResult;

    /// A hypercall of a 64-bit guest on vCPU 0 that returns.
    fn call(&self, call: Call, args: &[u64]) -> i64 {
        self.call_on(0, call, args)
    }
    fn call_on(&self, vcpu: u32, call: Call, args: &[u64]) -> i64 {
        match self.call_width(vcpu, call, args, Width::Bits64) {
            CallResult::Return(value) => value,
            other => panic!("{other:?}"),
        }
    }
    fn put<T: IntoBytes + Immutable>(&self, at: u64, value: T);
    fn get<T: FromBytes + IntoBytes>(&self, at: u64) -> T;
    /// A hypercall with a structure as its argument.
    fn call_with<T: IntoBytes + Immutable>(&self, call: Call, op: u32, arg: T) -> i64 {
        self.put(ARG, arg);
        self.call(call, &[op.into(), ARG])
    }
}

impl Guest for Arc<Domain<Fake>> {
    fn call_width(&self, vcpu: u32, call: Call, args: &[u64], width: Width) -> CallResult {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        let vcpu = self.vcpu(VcpuId(vcpu)).unwrap();
        dispatch(&vcpu, &mut Flat(&self.memory), call.0, all, width)
    }
    fn put<T: IntoBytes + Immutable>(&self, at: u64, value: T) {
        self.memory.write(Gpa::new(at), value.as_bytes()).unwrap();
    }
    fn get<T: FromBytes + IntoBytes>(&self, at: u64) -> T {
        let mut value = T::new_zeroed();
        self.memory.read(Gpa::new(at), value.as_mut_bytes()).unwrap();
        value
    }
}

pub fn upcalls() -> Vec<(u16, u32)> {
    UPCALLS.take()
}
