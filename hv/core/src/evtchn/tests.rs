//! Event channels through the hypercall, as a guest sees them.

use crate::domain::{Domain, DomainConfig};
use crate::hypercall::{CallResult, Width};
use crate::platform::PcpuId;
use crate::testing::*;
use crate::vcpu::{Pending, VcpuId};
use addr::GuestPage;
use alloc::sync::Arc;
use alloc::vec::Vec;
use xen_abi::call::Call;
use xen_abi::evtchn::*;
use xen_abi::shared::{LAYOUT_32, LAYOUT_64};
use xen_abi::{DomId, Errno};

pub(super) const EVTCHN: Call = Call::EVENT_CHANNEL_OP;
pub(super) type Dom = Arc<Domain<Fake>>;

pub(super) fn op<T: zerocopy::IntoBytes + zerocopy::Immutable>(d: &Dom, op: EvtchnOp, arg: T) -> i64 {
    d.call_with(EVTCHN, op.0, arg)
}
pub(super) fn unbound(d: &Dom, remote: DomId) -> Result<u32, i64> {
    let arg = AllocUnbound { dom: DomId::SELF.0, remote_dom: remote.0, port: 0 };
    match op(d, EvtchnOp::ALLOC_UNBOUND, arg) {
        0 => Ok(d.get::<AllocUnbound>(ARG).port),
        error => Err(error),
    }
}
pub(super) fn interdomain(d: &Dom, remote: DomId, port: u32) -> Result<u32, i64> {
    let arg = BindInterdomain { remote_dom: remote.0, pad: 0, remote_port: port, local_port: 0 };
    match op(d, EvtchnOp::BIND_INTERDOMAIN, arg) {
        0 => Ok(d.get::<BindInterdomain>(ARG).local_port),
        error => Err(error),
    }
}
pub(super) fn virq(d: &Dom, virq: Virq, vcpu: u32) -> Result<u32, i64> {
    match op(d, EvtchnOp::BIND_VIRQ, BindVirq { virq: virq.0, vcpu, port: 0 }) {
        0 => Ok(d.get::<BindVirq>(ARG).port),
        error => Err(error),
    }
}
pub(super) fn ipi(d: &Dom, vcpu: u32) -> Result<u32, i64> {
    match op(d, EvtchnOp::BIND_IPI, BindIpi { vcpu, port: 0 }) {
        0 => Ok(d.get::<BindIpi>(ARG).port),
        error => Err(error),
    }
}
pub(super) fn port_op(d: &Dom, what: EvtchnOp, port: u32) -> i64 {
    op(d, what, PortArg { port })
}
pub(super) fn bind_vcpu(d: &Dom, port: u32, vcpu: u32) -> i64 {
    op(d, EvtchnOp::BIND_VCPU, BindVcpu { port, vcpu })
}
pub(super) fn status(d: &Dom, port: u32) -> (u32, u32, [u32; 2]) {
    let arg = Status { dom: DomId::SELF.0, pad: 0, port, status: 99, vcpu: 99, detail: [99; 2] };
    assert_eq!(op(d, EvtchnOp::STATUS, arg), 0);
    let got: Status = d.get(ARG);
    (got.status, got.vcpu, got.detail)
}

fn pending(d: &Dom, port: u32) -> bool {
    d.shared_info().read_u64(LAYOUT_64.evtchn_pending + port as usize / 64 * 8) & 1 << (port % 64) != 0
}
fn mask(d: &Dom, port: u32) {
    d.shared_info().fetch_or_u64(LAYOUT_64.evtchn_mask + port as usize / 64 * 8, 1 << (port % 64));
}
/// What a guest's upcall handler does on a vCPU: takes the upcall byte, the selector and the bits.
fn take_events(d: &Dom, vcpu: u32) -> Vec<u32> {
    let info = d.vcpu(VcpuId(vcpu)).unwrap().vcpu_info().unwrap();
    if info.page.swap_u8(info.offset, 0) == 0 {
        return Vec::new();
    }
    let selector = info.page.fetch_and_u64(info.offset + 8, 0);
    let mut ports = Vec::new();
    for word in (0..64).filter(|word| selector & 1 << word != 0) {
        let masked = d.shared_info().read_u64(LAYOUT_64.evtchn_mask + word * 8);
        let bits = d.shared_info().fetch_and_u64(LAYOUT_64.evtchn_pending + word * 8, masked) & !masked;
        ports.extend((0..64).filter(|bit| bits & 1 << bit != 0).map(|bit| word as u32 * 64 + bit));
    }
    ports
}

pub(super) fn two() -> (Dom, Dom) {
    let machine = machine(2);
    (domain(&machine, 2), domain(&machine, 2))
}

#[test]
fn the_lowest_free_port_is_taken_and_zero_never() {
    let d = domain(&machine(1), 1);
    let ports: Vec<_> = (0..3).map(|_| unbound(&d, DomId(7)).unwrap()).collect();
    assert_eq!(ports, [1, 2, 3]);
    assert_eq!(port_op(&d, EvtchnOp::CLOSE, 2), 0);
    assert_eq!(port_op(&d, EvtchnOp::CLOSE, 1), 0);
    assert_eq!([ipi(&d, 0), ipi(&d, 0), ipi(&d, 0)], [Ok(1), Ok(2), Ok(4)]);
}

#[test]
fn the_port_limit_is_enospc() {
    let config = DomainConfig { max_port: 70, ..DomainConfig::new("small", 1, 128) };
    let d = domain_with(&machine(1), config);
    for port in 1..=70 {
        assert_eq!(ipi(&d, 0), Ok(port));
    }
    for again in [ipi(&d, 0), unbound(&d, DomId(3)), virq(&d, Virq::TIMER, 0)] {
        assert_eq!(again, Err(Errno::ENOSPC.result()));
    }
    // A virtual interrupt that got no port can be bound later.
    assert_eq!(port_op(&d, EvtchnOp::CLOSE, 33), 0);
    assert_eq!(virq(&d, Virq::TIMER, 0), Ok(33));
}

#[test]
fn interdomain_sends_both_ways_and_is_pending_once_at_bind() {
    let (a, b) = two();
    let pa = unbound(&a, b.id()).unwrap();
    let pb = interdomain(&b, a.id(), pa).unwrap();
    assert_eq!(take_events(&b, 0), [pb], "made pending by the bind");
    assert_eq!(take_events(&a, 0), []);
    upcalls();
    assert_eq!(port_op(&a, EvtchnOp::SEND, pa), 0);
    assert_eq!(port_op(&a, EvtchnOp::SEND, pa), 0);
    assert_eq!(upcalls(), [(b.id().0, 0)], "one upcall for two sends");
    assert_eq!(take_events(&b, 0), [pb]);
    assert_eq!(port_op(&b, EvtchnOp::SEND, pb), 0);
    assert_eq!(take_events(&a, 0), [pa]);
    assert_eq!(status(&a, pa), (status::INTERDOMAIN, 0, [b.id().0.into(), pb]));
    assert_eq!(status(&b, pb), (status::INTERDOMAIN, 0, [a.id().0.into(), pa]));
}

#[test]
fn only_the_reserved_domain_binds_an_unbound_port_and_only_once() {
    let machine = machine(1);
    let (a, b, c) = (domain(&machine, 1), domain(&machine, 1), domain(&machine, 1));
    let pa = unbound(&a, b.id()).unwrap();
    let einval = Err(Errno::EINVAL.result());
    assert_eq!(interdomain(&c, a.id(), pa), einval);
    assert_eq!(interdomain(&b, a.id(), pa + 1), einval, "not allocated");
    assert_eq!(interdomain(&b, a.id(), 0), einval);
    assert_eq!(interdomain(&b, a.id(), u32::MAX), einval);
    assert_eq!(interdomain(&b, DomId(4000), pa), Err(Errno::ESRCH.result()));
    let pb = interdomain(&b, a.id(), pa).unwrap();
    assert_eq!(interdomain(&b, a.id(), pa), einval, "bound already");
    assert_eq!(pb, 1, "failed binds left no port behind");
    assert_eq!(ipi(&b, 0), Ok(2));
}

#[test]
fn closing_one_end_leaves_the_other_unbound_for_the_closer() {
    let (a, b) = two();
    let pa = unbound(&a, b.id()).unwrap();
    let pb = interdomain(&b, a.id(), pa).unwrap();
    assert_eq!(port_op(&b, EvtchnOp::CLOSE, pb), 0);
    assert!(!pending(&b, pb), "what was pending went with it");
    assert_eq!(status(&a, pa), (status::UNBOUND, 0, [b.id().0.into(), 0]));
    assert_eq!(status(&b, pb).0, status::CLOSED);
    assert_eq!(port_op(&a, EvtchnOp::SEND, pa), 0, "goes nowhere");
    assert_eq!(take_events(&b, 0), []);
    assert_eq!(interdomain(&b, a.id(), pa), Ok(pb));
    assert_eq!(port_op(&b, EvtchnOp::CLOSE, pb + 1), Errno::EINVAL.result());
    assert_eq!(port_op(&b, EvtchnOp::CLOSE, 0), Errno::EINVAL.result());
    assert_eq!(port_op(&b, EvtchnOp::CLOSE, u32::MAX), Errno::EINVAL.result());
}

#[test]
fn a_domain_can_talk_to_itself() {
    let d = domain(&machine(1), 1);
    let here = unbound(&d, DomId::SELF).unwrap();
    let there = interdomain(&d, DomId::SELF, here).unwrap();
    assert_eq!(take_events(&d, 0), [there]);
    assert_eq!(port_op(&d, EvtchnOp::SEND, there), 0);
    assert_eq!(take_events(&d, 0), [here]);
    assert_eq!(port_op(&d, EvtchnOp::CLOSE, here), 0);
    assert_eq!(status(&d, there).0, status::UNBOUND);
}

#[test]
fn virqs_follow_their_rules() {
    let d = domain(&machine(1), 2);
    let timer = virq(&d, Virq::TIMER, 1).unwrap();
    assert_eq!(virq(&d, Virq::TIMER, 1), Err(Errno::EEXIST.result()));
    assert_ne!(virq(&d, Virq::TIMER, 0).unwrap(), timer);
    assert_eq!(virq(&d, Virq::CONSOLE, 1), Err(Errno::EINVAL.result()));
    assert_eq!(virq(&d, Virq(24), 0), Err(Errno::EINVAL.result()));
    assert_eq!(virq(&d, Virq(u32::MAX), 0), Err(Errno::EINVAL.result()));
    assert_eq!(virq(&d, Virq::TIMER, 2), Err(Errno::ENOENT.result()));
    assert_eq!(status(&d, timer), (status::VIRQ, 1, [Virq::TIMER.0, 0]));
    assert_eq!(port_op(&d, EvtchnOp::SEND, timer), Errno::EINVAL.result());
    assert_eq!(bind_vcpu(&d, timer, 0), Errno::EINVAL.result());
    d.send_vcpu_virq(VcpuId(1), Virq::TIMER);
    assert_eq!((take_events(&d, 0), take_events(&d, 1)), (alloc::vec![], alloc::vec![timer]));
    // Global ones can move, and still be found and bound again afterwards.
    let console = virq(&d, Virq::CONSOLE, 0).unwrap();
    assert_eq!(bind_vcpu(&d, console, 1), 0);
    d.send_global_virq(Virq::CONSOLE);
    assert_eq!(take_events(&d, 1), [console]);
    assert_eq!(port_op(&d, EvtchnOp::CLOSE, console), 0);
    d.send_global_virq(Virq::CONSOLE);
    assert!(!pending(&d, console));
    assert_eq!(virq(&d, Virq::CONSOLE, 0), Ok(console));
    assert_eq!(port_op(&d, EvtchnOp::CLOSE, timer), 0);
    assert_eq!(virq(&d, Virq::TIMER, 1), Ok(timer));
}

#[test]
fn ipis_notify_their_vcpu_and_cannot_move() {
    let d = domain(&machine(1), 2);
    let port = ipi(&d, 1).unwrap();
    assert_eq!(ipi(&d, 2), Err(Errno::ENOENT.result()));
    assert_eq!(port_op(&d, EvtchnOp::SEND, port), 0);
    assert_eq!(take_events(&d, 1), [port]);
    assert_eq!(bind_vcpu(&d, port, 0), Errno::EINVAL.result());
    assert_eq!(bind_vcpu(&d, port, 9), Errno::ENOENT.result());
    assert_eq!(bind_vcpu(&d, port + 1, 0), Errno::EINVAL.result());
    assert_eq!(status(&d, port), (status::IPI, 1, [0, 0]));
}

#[test]
fn sending_on_what_cannot_be_sent_on_is_einval() {
    let d = domain(&machine(1), 1);
    for port in [0, 1, 1023, 1024, 4096, u32::MAX] {
        assert_eq!(port_op(&d, EvtchnOp::SEND, port), Errno::EINVAL.result(), "{port}");
        assert_eq!(port_op(&d, EvtchnOp::UNMASK, port), Errno::EINVAL.result(), "{port}");
    }
    let port = unbound(&d, DomId(9)).unwrap();
    assert_eq!(port_op(&d, EvtchnOp::SEND, port), 0, "unbound: nothing happens");
    assert!(!pending(&d, port));
}

#[test]
fn a_masked_port_becomes_pending_silently_and_speaks_when_unmasked() {
    let d = domain(&machine(1), 1);
    let port = ipi(&d, 0).unwrap();
    mask(&d, port);
    assert_eq!(port_op(&d, EvtchnOp::SEND, port), 0);
    assert!(pending(&d, port) && upcalls().is_empty());
    assert!(!d.vcpu(VcpuId(0)).unwrap().upcall_due());
    assert_eq!(port_op(&d, EvtchnOp::UNMASK, port), 0);
    assert_eq!(upcalls(), [(d.id().0, 0)]);
    assert_eq!(take_events(&d, 0), [port]);
    // Unmasking what is not pending is silent.
    mask(&d, port);
    assert_eq!(port_op(&d, EvtchnOp::UNMASK, port), 0);
    assert!(upcalls().is_empty());
}

#[test]
fn bind_vcpu_moves_later_events() {
    let (a, b) = two();
    let pa = unbound(&a, b.id()).unwrap();
    let pb = interdomain(&b, a.id(), pa).unwrap();
    take_events(&b, 0);
    assert_eq!(bind_vcpu(&b, pb, 1), 0);
    assert_eq!(port_op(&a, EvtchnOp::SEND, pa), 0);
    assert_eq!((take_events(&b, 0), take_events(&b, 1)), (alloc::vec![], alloc::vec![pb]));
}

#[test]
fn operations_on_others_need_privilege() {
    let machine = machine(1);
    let plain = domain(&machine, 1);
    let master =
        domain_with(&machine, DomainConfig { privileged: true, ..DomainConfig::new("dom0", 1, 128) });
    let on = |d: &Dom, dom: u16| {
        op(d, EvtchnOp::ALLOC_UNBOUND, AllocUnbound { dom, remote_dom: DomId::SELF.0, port: 0 })
    };
    assert_eq!(on(&plain, master.id().0), Errno::EPERM.result());
    assert_eq!(on(&plain, 999), Errno::ESRCH.result());
    assert_eq!(on(&master, plain.id().0), 0);
    assert_eq!(master.get::<AllocUnbound>(ARG).port, 1);
    assert_eq!(status(&plain, 1), (status::UNBOUND, 0, [master.id().0.into(), 0]));
    assert_eq!(op(&plain, EvtchnOp::RESET, Reset { dom: master.id().0 }), Errno::EPERM.result());
    plain.start();
    assert_eq!(op(&master, EvtchnOp::RESET, Reset { dom: plain.id().0 }), Errno::EINVAL.result());
    plain.pause();
    assert_eq!(op(&master, EvtchnOp::RESET, Reset { dom: plain.id().0 }), 0);
    assert_eq!(status(&plain, 1).0, status::CLOSED);
}

#[test]
fn reset_closes_everything_but_the_console() {
    let (a, b) = two();
    a.attach_console(addr::Frame::new(9)).unwrap();
    let pa = unbound(&a, b.id()).unwrap();
    interdomain(&b, a.id(), pa).unwrap();
    let timer = virq(&a, Virq::TIMER, 1).unwrap();
    assert_eq!(op(&a, EvtchnOp::RESET, Reset { dom: DomId::SELF.0 }), 0);
    assert_eq!(status(&a, pa).0, status::CLOSED);
    assert_eq!(status(&a, timer).0, status::CLOSED);
    assert_eq!(status(&a, 1).0, status::INTERDOMAIN, "the console goes on for the next kernel");
    assert_eq!(status(&b, 1), (status::UNBOUND, 0, [a.id().0.into(), 0]));
    assert_eq!(virq(&a, Virq::TIMER, 1), Ok(2));
}

#[test]
fn status_counts_up_from_zero_and_ends_at_the_last_bucket_in_use() {
    let d = domain(&machine(1), 1);
    let arg = |port| Status { dom: DomId::SELF.0, pad: 0, port, status: 0, vcpu: 0, detail: [0; 2] };
    ipi(&d, 0).unwrap();
    for port in [0, 2, 63] {
        assert_eq!(status(&d, port).0, status::CLOSED, "{port}");
    }
    for port in [64, 1024, u32::MAX] {
        assert_eq!(op(&d, EvtchnOp::STATUS, arg(port)), Errno::EINVAL.result(), "{port}");
    }
    assert_eq!(op(&d, EvtchnOp::STATUS, Status { dom: 999, ..arg(1) }), Errno::ESRCH.result());
}

#[test]
fn what_there_is_not_is_enosys_and_unreadable_arguments_are_efault() {
    let d = domain(&machine(1), 1);
    for number in [2, 15, 16, u32::MAX] {
        assert_eq!(op(&d, EvtchnOp(number), [0u64; 3]), Errno::ENOSYS.result(), "{number}");
    }
    for number in (0..=14).filter(|n| *n != 2) {
        assert_eq!(d.call(EVTCHN, &[number, 0xdead_0000_0000]), Errno::EFAULT.result(), "{number}");
    }
}

#[test]
fn a_long_reset_is_preempted_and_comes_to_its_end() {
    let d = domain_with(&machine(1), DomainConfig { max_port: 2000, ..DomainConfig::new("many", 1, 128) });
    (1..=2000).for_each(|port| assert_eq!(ipi(&d, 0), Ok(port)));
    d.put(ARG, Reset { dom: DomId::SELF.0 });
    assert_eq!(
        d.call(EVTCHN, &[EvtchnOp::RESET_CONT.0.into(), ARG]),
        Errno::EBUSY.result(),
        "none is under way"
    );
    let mut args = [u64::from(EvtchnOp::RESET.0), ARG, 0, 0, 0, 0];
    let mut rounds = 0;
    while let CallResult::Continue(next) = d.call_width(0, EVTCHN, &args, Width::Bits64) {
        // Another vCPU cannot begin one of its own.
        assert_eq!(op(&d, EvtchnOp::RESET, Reset { dom: DomId::SELF.0 }), Errno::EBUSY.result());
        (args, rounds) = (next, rounds + 1);
    }
    assert_eq!(rounds, 3);
    assert_eq!(status(&d, 1).0, status::CLOSED);
    assert_eq!(status(&d, 2000).0, status::CLOSED);
    // A port opened behind the reset's back makes it fail; the next one succeeds.
    (1..=600).for_each(|port| assert_eq!(ipi(&d, 0), Ok(port)));
    d.put(ARG, Reset { dom: DomId::SELF.0 });
    let args = [u64::from(EvtchnOp::RESET.0), ARG, 0, 0, 0, 0];
    let CallResult::Continue(next) = d.call_width(0, EVTCHN, &args, Width::Bits64) else { panic!("at once") };
    assert_eq!(ipi(&d, 0), Ok(1));
    d.put(ARG, Reset { dom: DomId::SELF.0 });
    let error = CallResult::Return(Errno::EAGAIN.result());
    let mut args = next;
    loop {
        match d.call_width(0, EVTCHN, &args, Width::Bits64) {
            CallResult::Continue(next) => args = next,
            other => break assert_eq!(other, error),
        }
    }
}

#[test]
fn channels_are_charged_as_they_are_made_and_refused_as_enomem() {
    use core::sync::atomic::Ordering::SeqCst;
    let d = domain_with(&machine(1), DomainConfig { max_port: 4095, ..DomainConfig::new("many", 1, 128) });
    let charged = || d.memory.charged.load(SeqCst);
    assert_eq!(charged(), 0);
    ipi(&d, 0).unwrap();
    let first = charged();
    (2..64).for_each(|port| assert_eq!(ipi(&d, 0), Ok(port)));
    assert_eq!(charged(), first, "the first bucket holds 63");
    ipi(&d, 0).unwrap();
    let bucket = charged() - first;
    assert!((1..=64 * 64).contains(&bucket), "{bucket} bytes for 64 channels");
    d.memory.may_charge.store(charged(), SeqCst);
    (65..128).for_each(|port| assert_eq!(ipi(&d, 0), Ok(port)));
    assert_eq!(ipi(&d, 0), Err(Errno::ENOMEM.result()));
    assert_eq!(unbound(&d, DomId(1)), Err(Errno::ENOMEM.result()));
    d.memory.may_charge.store(u64::MAX, SeqCst);
    assert_eq!(ipi(&d, 0), Ok(128));
}

#[test]
fn a_port_that_the_caller_cannot_be_told_is_given_back() {
    let d = domain(&machine(1), 1);
    // The argument can be read but not written as a whole: its last bytes lie in a hole.
    struct ReadOnly<'a>(Flat<'a>);
    impl crate::platform::CallIo for ReadOnly<'_> {
        fn copy_in(&mut self, gva: u64, out: &mut [u8]) -> Result<(), crate::platform::Fault> {
            self.0.copy_in(gva, out)
        }
        fn copy_out(&mut self, _: u64, _: &[u8]) -> Result<(), crate::platform::Fault> {
            Err(crate::platform::Fault)
        }
    }
    let vcpu = d.vcpu(VcpuId(0)).unwrap();
    d.put(ARG, BindIpi { vcpu: 0, port: 0 });
    let mut io = ReadOnly(Flat(&d.memory));
    let args = [EvtchnOp::BIND_IPI.0.into(), ARG, 0, 0, 0, 0];
    let result = crate::hypercall::dispatch(&vcpu, &mut io, EVTCHN.0, args, Width::Bits64);
    assert_eq!(result, CallResult::Return(Errno::EFAULT.result()));
    assert_eq!(ipi(&d, 0), Ok(1));
}

#[test]
fn death_closes_the_ports_and_frees_the_peer() {
    let (a, b) = two();
    let machine = a.machine().clone();
    let pa = unbound(&a, b.id()).unwrap();
    let _pb = interdomain(&b, a.id(), pa).unwrap();
    let id = b.id();
    machine.destroy(&b).unwrap();
    assert_eq!(status(&a, pa), (status::UNBOUND, 0, [id.0.into(), 0]));
    assert_eq!(port_op(&a, EvtchnOp::SEND, pa), 0);
    assert_eq!(Arc::strong_count(&b), 1, "nothing else holds it");
}

#[test]
fn a_32_bit_guest_has_its_own_layout_and_1024_ports() {
    let config = DomainConfig { max_port: 4095, ..DomainConfig::new("narrow", 1, 128) };
    let d = domain_with(&machine(1), config);
    d.latch_width(Width::Bits32);
    for port in 1..1024 {
        assert_eq!(ipi(&d, 0), Ok(port));
    }
    assert_eq!(ipi(&d, 0), Err(Errno::ENOSPC.result()));
    assert_eq!(port_op(&d, EvtchnOp::SEND, 1023), 0);
    let page = d.shared_info();
    assert_eq!(page.read_u32(LAYOUT_32.evtchn_pending + 31 * 4), 1 << 31);
    assert_eq!(page.read_u32(4), 1 << 31, "the selector of vCPU 0");
    assert_eq!(page.read_u8(0), 1);
    page.fetch_or_u32(LAYOUT_32.evtchn_mask, 1 << 5);
    assert_eq!(port_op(&d, EvtchnOp::SEND, 5), 0);
    assert_eq!(page.read_u32(4), 1 << 31, "masked");
    assert_eq!(port_op(&d, EvtchnOp::UNMASK, 5), 0);
    assert_eq!(page.read_u32(4), 1 << 31 | 1);
}

#[test]
fn a_wide_domain_has_4095_ports() {
    let config = DomainConfig { max_port: u32::MAX, ..DomainConfig::new("wide", 1, 128) };
    let d = domain_with(&machine(1), config);
    let mut last = 0;
    while let Ok(port) = ipi(&d, 0) {
        last = port;
    }
    assert_eq!(last, 4095);
    assert_eq!(port_op(&d, EvtchnOp::SEND, 4095), 0);
    assert_eq!(take_events(&d, 0), [4095]);
}

#[test]
fn an_event_wakes_its_vcpu_and_kicks_its_pcpu() {
    let (a, b) = two();
    let machine = a.machine().clone();
    b.start();
    let pa = unbound(&a, b.id()).unwrap();
    let pb = interdomain(&b, a.id(), pa).unwrap();
    HERE.set(1);
    let picked = machine.pick(PcpuId(1)).unwrap();
    assert!(picked.vcpu.take_pending().has(Pending::EVENT));
    take_events(&b, 0);
    HERE.set(0);
    KICKS.take();
    port_op(&a, EvtchnOp::SEND, pa);
    assert_eq!(KICKS.take(), [1], "it runs there");
    port_op(&a, EvtchnOp::SEND, pa);
    assert_eq!(KICKS.take(), [], "told already");
    assert!(picked.vcpu.take_pending().has(Pending::EVENT));
    take_events(&b, 0);
    picked.vcpu.arm();
    machine.put(PcpuId(1), &picked.vcpu, crate::sched::WhyPut::Blocked);
    assert!(machine.pick(PcpuId(1)).is_none());
    port_op(&a, EvtchnOp::SEND, pa);
    assert_eq!(KICKS.take(), [1], "its last pCPU idles");
    assert!(Arc::ptr_eq(&machine.pick(PcpuId(1)).unwrap().vcpu, &picked.vcpu));
    assert_eq!(take_events(&b, 0), [pb]);
}

/// Every event sent on one of many channels arrives, while other threads bind and close beside them.
#[test]
fn concurrent_senders_lose_nothing() {
    use core::sync::atomic::{AtomicBool, Ordering::SeqCst};
    let (a, b) = two();
    let pairs: Vec<_> = (0..2)
        .map(|_| {
            let pa = a.alloc_unbound(b.id()).unwrap();
            (pa, b.bind_interdomain(&a, pa).unwrap())
        })
        .collect();
    take_events(&b, 0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                let pa = a.alloc_unbound(b.id()).unwrap();
                let pb = b.bind_interdomain(&a, pa).unwrap();
                a.send(pa).unwrap();
                b.close(pb).unwrap();
                a.close(pa).unwrap();
                // Spin locks are not fair to threads that the host has preempted.
                std::thread::yield_now();
            }
        });
        for round in 0..2_000 {
            let (pa, pb) = pairs[round % 2];
            a.send(pa).unwrap();
            assert!(pending(&b, pb));
            assert!(take_events(&b, 0).contains(&pb), "round {round}");
        }
        stop.store(true, SeqCst);
    });
}
