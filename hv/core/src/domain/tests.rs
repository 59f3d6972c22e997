//! The life of a domain.

use super::*;
use crate::platform::PcpuId;
use crate::sched::{Busy, WhyPut};
use crate::testing::*;
use addr::GuestPage;
use xen_abi::vcpu::RunState;

#[test]
fn a_domain_runs_from_its_start_to_its_shutdown() {
    let machine = machine(1);
    let d = domain(&machine, 2);
    assert_eq!(d.life(), Life::Building);
    d.vcpu(VcpuId(0)).unwrap().wake();
    assert!(machine.pick(PcpuId(0)).is_none(), "not while it is built");
    assert!(d.start() && !d.start());
    let picked = machine.pick(PcpuId(0)).unwrap();
    assert_eq!(picked.vcpu.id(), VcpuId(0));
    assert_eq!(picked.vcpu.runstate().state(), RunState::RUNNING);
    assert!(machine.domains.get(d.id()).is_some());
    assert!(d.shutdown(ShutdownReason::POWEROFF));
    assert!(picked.vcpu.pending().has(Pending::STOP));
    assert_eq!(TENDED.get(), 1);
}

#[test]
fn a_crash_stops_that_domain_only_and_only_once() {
    let machine = machine(2);
    let (a, b) = (domain(&machine, 1), domain(&machine, 1));
    a.start();
    b.start();
    a.crash(format_args!("triple fault at {:#x}", 0x1000));
    a.crash(format_args!("again"));
    assert_eq!(a.life(), Life::Shutdown(ShutdownReason::CRASH));
    assert_eq!(b.life(), Life::Running);
    assert!(Arc::ptr_eq(machine.pick(PcpuId(0)).unwrap().vcpu.domain(), &b));
    assert_eq!(machine.take_stopped().unwrap().action, Action::Destroy);
    assert!(machine.take_stopped().is_none());
}

#[test]
fn a_paused_domain_does_not_run_and_misses_nothing() {
    let machine = machine(1);
    let d = domain(&machine, 1);
    d.start();
    let vcpu = machine.pick(PcpuId(0)).unwrap().vcpu;
    d.pause();
    d.pause();
    assert!(!d.is_quiet() && vcpu.take_pending().has(Pending::STOP) && !vcpu.may_run());
    machine.put(PcpuId(0), &vcpu, WhyPut::Offline);
    assert!(d.is_quiet());
    vcpu.post(Pending::EVENT);
    d.unpause();
    assert!(machine.pick(PcpuId(0)).is_none(), "paused twice");
    d.unpause();
    assert!(machine.pick(PcpuId(0)).unwrap().vcpu.take_pending().has(Pending::EVENT));
    d.unpause();
    assert!(d.may_run(), "one too many changes nothing");
}

#[test]
fn unpausing_before_the_vcpu_has_left_its_pcpu_does_not_lose_it() {
    let machine = machine(1);
    let d = domain(&machine, 1);
    d.start();
    let vcpu = machine.pick(PcpuId(0)).unwrap().vcpu;
    d.pause();
    d.unpause();
    // Its pCPU acts late on what it saw.
    machine.put(PcpuId(0), &vcpu, WhyPut::Offline);
    assert!(machine.pick(PcpuId(0)).is_some());
}

#[test]
fn destroying_waits_for_the_pcpus_and_frees_the_id() {
    let machine = machine(1);
    let d = domain(&machine, 2);
    let id = d.id();
    d.start();
    let vcpu = machine.pick(PcpuId(0)).unwrap().vcpu;
    vcpu.set_timer(crate::time::TimerKind::Arch, Some(NOW.get() + 5));
    assert_eq!(machine.destroy(&d), Err(Busy));
    assert_eq!(d.life(), Life::Dying);
    let tended = TENDED.get();
    machine.put(PcpuId(0), &vcpu, WhyPut::Offline);
    assert_eq!(TENDED.get(), tended + 1, "now it can be");
    drop(vcpu);
    machine.destroy(&d).unwrap();
    assert!(machine.domains.get(id).is_none() && machine.next_deadline(PcpuId(0)).is_none());
    assert_eq!(Arc::strong_count(&d), 1);
    assert!(d.vcpu(VcpuId(0)).is_none());
    // The id is not given again while anything refers to the domain.
    let next: alloc::vec::Vec<_> =
        (0..DomId::FIRST_RESERVED.0 - 2).map(|_| machine.domains.reserve().unwrap()).collect();
    assert!(!next.contains(&id));
    assert_eq!(machine.domains.reserve(), Err(Errno::ENOSPC));
    drop(d);
    assert_eq!(machine.domains.reserve(), Ok(id));
}

#[test]
fn a_domain_that_cannot_be_made_gives_its_id_back() {
    let machine = machine(1);
    let id = machine.domains.reserve().unwrap();
    for vcpus in [0, DomainConfig::MAX_VCPUS + 1] {
        let config = DomainConfig::new("odd", vcpus, 1);
        let made = machine.create_domain(id, config, Memory::new(1), (), |_| ());
        assert_eq!(made.err(), Some(Errno::EINVAL));
    }
    let config = DomainConfig::new("late", 1, 1);
    let made = machine.create_domain(id, config, Memory::new(1), (), |_| ());
    assert_eq!(made.err(), Some(Errno::EINVAL), "the id is not reserved any more");
    assert_eq!(machine.domains.reserve_dom0(), Ok(DomId::DOM0));
    assert_eq!(machine.domains.reserve_dom0(), Err(Errno::EEXIST));
}

#[test]
fn the_clock_and_the_wallclock_are_there_from_the_start() {
    let d = domain(&machine(1), 2);
    let page = d.shared_info();
    assert_eq!(page.read_u32(LAYOUT_64.wc_sec), 1_700_000_000);
    assert_ne!(page.read_u32(64 + 32 + 24), 0, "vCPU 1 has its scale");
}
