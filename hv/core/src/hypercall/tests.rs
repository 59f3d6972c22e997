//! The hypercalls of a Linux PVH guest, and what a hostile one tries.

mod memory;

use super::{CallResult, Width, dispatch};
use crate::domain::{Action, Callback, Domain, DomainConfig, Life, MemoryRegion};
use crate::platform::{DomainMemory, PcpuId};
use crate::sched::WhyPut;
use crate::testing::*;
use crate::vcpu::{Pending, VcpuId};
use addr::{Frame, GuestMemory, GuestPage};
use alloc::sync::Arc;
use alloc::vec::Vec;
use memory::map;
use xen_abi::call::{Call, MulticallEntry, MulticallEntry32};
use xen_abi::evtchn::{BindVirq, EvtchnOp, Virq};
use xen_abi::grant::*;
use xen_abi::hvm::*;
use xen_abi::memory::*;
use xen_abi::sched::*;
use xen_abi::shared::{LAYOUT_32, LAYOUT_64};
use xen_abi::vcpu::*;
use xen_abi::version::{CompileInfo, FeatureInfo, VersionOp, feature};
use xen_abi::{DomId, Errno};

type Dom = Arc<Domain<Fake>>;
const SELF: u16 = DomId::SELF.0;

fn guest(vcpus: u32) -> Dom {
    domain(&machine(2), vcpus)
}
fn running(vcpus: u32) -> Dom {
    let d = guest(vcpus);
    d.start();
    d
}
fn vcpu_op(d: &Dom, op: VcpuOp, id: u32, arg: u64) -> i64 {
    d.call(Call::VCPU_OP, &[op.0.into(), id.into(), arg])
}

#[test]
fn unknown_calls_are_enosys() {
    let d = guest(1);
    for nr in [0, 7, 8, 16, 26, 33, 36, 41, 48, 63, 128, u32::MAX] {
        assert_eq!(d.call(Call(nr), &[0; 6]), Errno::ENOSYS.result(), "{nr}");
    }
    assert_eq!(d.call(Call::SCHED_OP, &[77]), Errno::ENOSYS.result());
    assert_eq!(d.call(Call::HVM_OP, &[77]), Errno::ENOSYS.result());
}

// ---- xen_version ---------------------------------------------------------------------------------------

fn version(d: &Dom, op: VersionOp, arg: u64) -> i64 {
    d.call(Call::XEN_VERSION, &[op.0.into(), arg])
}

#[test]
fn the_version_is_4_17_and_the_texts_end_with_zero() {
    let d = guest(1);
    assert_eq!(version(&d, VersionOp::VERSION, 0), 4 << 16 | 17);
    assert_eq!(version(&d, VersionOp::CAPABILITIES, ARG), 0);
    let text: [u8; 1024] = d.get(ARG);
    assert!(text.starts_with(b"hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 \0"));
    for (op, size) in [(VersionOp::EXTRAVERSION, 16), (VersionOp::CHANGESET, 64)] {
        d.put(ARG, [0xffu8; 128]);
        assert_eq!(version(&d, op, ARG), 0);
        let text: [u8; 128] = d.get(ARG);
        assert!(text[size - 1] == 0 && text[size] == 0xff, "{op:?} has {size} bytes");
    }
    assert_eq!(version(&d, VersionOp::COMPILE_INFO, ARG), 0);
    assert!(d.get::<CompileInfo>(ARG).compile_by.starts_with(b"testudo\0"));
    assert_eq!(version(&d, VersionOp::PAGESIZE, 0), 4096);
    assert_eq!(version(&d, VersionOp::PAGESIZE, ARG), Errno::EINVAL.result());
    assert_eq!(version(&d, VersionOp::BUILD_ID, 0), Errno::ENODATA.result());
    assert_eq!(version(&d, VersionOp(99), ARG), Errno::ENOSYS.result());
    assert_eq!(version(&d, VersionOp::CHANGESET, 0xffff_ffff_f000), Errno::EFAULT.result());
}

#[test]
fn features_are_those_of_a_pvh_guest() {
    let d = guest(1);
    d.put(ARG, FeatureInfo { submap_idx: 0, submap: 0 });
    assert_eq!(version(&d, VersionOp::GET_FEATURES, ARG), 0);
    let submap = d.get::<FeatureInfo>(ARG).submap;
    assert_eq!(submap, 1 << 0 | 1 << 2 | 1 << 8 | 1 << 9 | 1 << 13 | 1 << 16);
    assert_eq!(submap & (feature::DOM0 | feature::HVM_PIRQS), 0);
    d.put(ARG, FeatureInfo { submap_idx: 1, submap: 0 });
    assert_eq!(version(&d, VersionOp::GET_FEATURES, ARG), Errno::EINVAL.result());
}

#[test]
fn the_command_line_is_for_the_control_domain() {
    let machine = machine(1);
    let plain = domain(&machine, 1);
    let master =
        domain_with(&machine, DomainConfig { privileged: true, ..DomainConfig::new("dom0", 1, 128) });
    version(&plain, VersionOp::COMMANDLINE, ARG);
    assert!(!plain.get::<[u8; 1024]>(ARG).starts_with(b"dom0_mem"));
    version(&master, VersionOp::COMMANDLINE, ARG);
    assert!(master.get::<[u8; 1024]>(ARG).starts_with(b"dom0_mem=1G\0"));
}

#[test]
fn platform_parameters_are_a_long() {
    let d = guest(1);
    for (width, size) in [(Width::Bits64, 8), (Width::Bits32, 4)] {
        d.put(ARG, [0xffu8; 16]);
        d.call_width(0, Call::XEN_VERSION, &[VersionOp::PLATFORM_PARAMETERS.0.into(), ARG], width);
        let got: [u8; 16] = d.get(ARG);
        assert!(got[..size].iter().all(|&b| b == 0) && got[size] == 0xff);
    }
}

// ---- grant_table_op ------------------------------------------------------------------------------------

#[test]
fn linux_sets_up_its_grant_table() {
    let d = guest(1);
    let grant = |op: GrantOp, count: u64| d.call(Call::GRANT_TABLE_OP, &[op.0.into(), ARG, count]);
    d.put(ARG, SetVersion { version: 1 });
    assert_eq!(grant(GrantOp::SET_VERSION, 1), 0);
    d.put(ARG, SetVersion { version: 2 });
    assert_eq!(grant(GrantOp::SET_VERSION, 1), Errno::ENOSYS.result());
    d.put(ARG, SetVersion { version: 3 });
    assert_eq!(grant(GrantOp::SET_VERSION, 1), Errno::EINVAL.result());
    let query = QuerySize { dom: SELF, pad: 0, nr_frames: 0, max_nr_frames: 0, status: -1, pad2: 0 };
    d.put(ARG, query);
    assert_eq!(grant(GrantOp::QUERY_SIZE, 2), Errno::EINVAL.result());
    assert_eq!(grant(GrantOp::QUERY_SIZE, 1), 0);
    assert_eq!(d.get::<QuerySize>(ARG), QuerySize { max_nr_frames: 64, status: 0, ..query });
    // Frames are mapped from the highest index down.
    for i in (0..4).rev() {
        assert_eq!(map(&d, MapSpace::GRANT_TABLE, i, 0x100 + i), 0);
    }
    assert_eq!(map(&d, MapSpace::GRANT_TABLE, 64, 0x200), Errno::EINVAL.result());
    assert_eq!(map(&d, MapSpace::GRANT_TABLE, 1 << 31, 0x200), Errno::EINVAL.result());
    assert_eq!(map(&d, MapSpace::GRANT_TABLE, u64::MAX >> 1, 0x200), Errno::EINVAL.result());
    d.put(0x10_2008, 0x1234u64);
    assert_eq!(map(&d, MapSpace::GRANT_TABLE, 2, 0x300), 0);
    assert!(d.memory.is_hole(0x102));
    assert_eq!(d.get::<u64>(0x30_0008), 0x1234, "the same page elsewhere");
    d.put(ARG, query);
    grant(GrantOp::QUERY_SIZE, 1);
    assert_eq!(d.get::<QuerySize>(ARG).nr_frames, 4);
    let setup = SetupTable { dom: SELF, pad: 0, nr_frames: 5, status: -1, pad2: [0; 3], frame_list: 0x9000 };
    d.put(ARG, setup);
    assert_eq!(grant(GrantOp::SETUP_TABLE, 1), 0);
    assert_eq!(d.get::<SetupTable>(ARG).status, 0);
    assert_eq!(d.get::<[u64; 5]>(0x9000), [0x100, 0x101, 0x300, 0x103, u64::MAX]);
}

// ---- sched_op ------------------------------------------------------------------------------------------

#[test]
fn yield_and_block_are_the_architectures_to_do() {
    let d = running(1);
    d.shared_info().write_u8(1, 1);
    let call = |op: SchedOp| d.call_width(0, Call::SCHED_OP, &[op.0.into(), 0], Width::Bits64);
    assert_eq!(call(SchedOp::YIELD), CallResult::Yield(0));
    assert_eq!(call(SchedOp::BLOCK), CallResult::Block(0));
    assert_eq!(d.shared_info().read_u8(1), 0, "upcalls are unmasked");
    assert_eq!(call(SchedOp::PIN_OVERRIDE), CallResult::Return(Errno::EPERM.result()));
}

#[test]
fn shutdown_stops_the_domain_and_says_what_to_do() {
    for (reason, life, action) in [
        (0, ShutdownReason::POWEROFF, Action::Destroy),
        (1, ShutdownReason::REBOOT, Action::Rebuild),
        (3, ShutdownReason::CRASH, Action::Destroy),
        (77, ShutdownReason::CRASH, Action::Destroy),
        (u32::MAX, ShutdownReason::CRASH, Action::Destroy),
    ] {
        let d = running(1);
        let machine = d.machine().clone();
        d.put(ARG, reason);
        let args = [SchedOp::SHUTDOWN.0.into(), ARG];
        assert_eq!(d.call_width(0, Call::SCHED_OP, &args, Width::Bits64), CallResult::Stop(0));
        assert_eq!(d.life(), Life::Shutdown(life));
        assert!(machine.pick(PcpuId(0)).is_none());
        let stopped = machine.take_stopped().unwrap();
        assert!(Arc::ptr_eq(&stopped.domain, &d) && stopped.action == action);
        assert!(machine.take_stopped().is_none());
        assert!(!d.shutdown(ShutdownReason::POWEROFF), "once only");
    }
}

fn bind_timer(d: &Dom) -> u32 {
    let arg = BindVirq { virq: Virq::TIMER.0, vcpu: 0, port: 0 };
    assert_eq!(d.call_with(Call::EVENT_CHANNEL_OP, EvtchnOp::BIND_VIRQ.0, arg), 0);
    d.get::<BindVirq>(ARG).port
}

fn poll(d: &Dom, ports: &[u32], timeout: u64) -> CallResult {
    for (i, port) in ports.iter().enumerate() {
        d.put(0x9000 + 4 * i as u64, *port);
    }
    d.put(ARG, Poll { ports: 0x9000, nr_ports: ports.len() as u32, pad: 0, timeout });
    d.call_width(0, Call::SCHED_OP, &[SchedOp::POLL.0.into(), ARG], Width::Bits64)
}

#[test]
fn a_poll_ends_by_a_masked_event_by_its_timeout_or_at_once() {
    let d = running(1);
    let machine = d.machine().clone();
    let port = bind_timer(&d);
    // As spinlocks do: the port is masked, only pollers care.
    d.shared_info().fetch_or_u64(LAYOUT_64.evtchn_mask, 1 << port);
    let vcpu = machine.pick(PcpuId(0)).unwrap().vcpu;
    vcpu.take_pending();

    assert_eq!(poll(&d, &[port], 0), CallResult::Block(0));
    d.send_vcpu_virq(VcpuId(0), Virq::TIMER);
    assert_eq!(vcpu.take_pending(), Pending::POLL);
    assert_eq!(poll(&d, &[port], 0), CallResult::Return(0), "it is pending still");
    d.shared_info().fetch_and_u64(LAYOUT_64.evtchn_pending, 0);

    // Several ports, and a timeout.
    assert_eq!(poll(&d, &[5, port], NOW.get() + 500), CallResult::Block(0));
    vcpu.arm();
    machine.put(PcpuId(0), &vcpu, WhyPut::Blocked);
    assert!(machine.pick(PcpuId(0)).is_none());
    NOW.set(NOW.get() + 499);
    machine.expire_timers(PcpuId(0));
    assert!(machine.pick(PcpuId(0)).is_none());
    NOW.set(NOW.get() + 1);
    machine.expire_timers(PcpuId(0));
    assert!(Arc::ptr_eq(&machine.pick(PcpuId(0)).unwrap().vcpu, &vcpu));
    assert_eq!(vcpu.take_pending(), Pending::POLL);
    // It polls no longer: events are silent again.
    d.send_vcpu_virq(VcpuId(0), Virq::TIMER);
    assert_eq!(vcpu.take_pending(), Pending::NONE);
    d.shared_info().fetch_and_u64(LAYOUT_64.evtchn_pending, 0);
    // A timeout in the past is no sleep.
    assert_eq!(poll(&d, &[port], 1), CallResult::Block(0));
    assert!(vcpu.take_pending().has(Pending::POLL));
}

#[test]
fn bad_polls_are_einval_or_efault() {
    let d = running(1);
    let einval = CallResult::Return(Errno::EINVAL.result());
    assert_eq!(poll(&d, &[1; 129], 0), einval);
    assert_eq!(poll(&d, &[1024], 0), einval);
    assert_eq!(poll(&d, &[1, u32::MAX], 0), einval);
    d.put(ARG, Poll { ports: 0x1_0000_0000, nr_ports: 1, pad: 0, timeout: 0 });
    let args = [SchedOp::POLL.0.into(), ARG];
    let efault = CallResult::Return(Errno::EFAULT.result());
    assert_eq!(d.call_width(0, Call::SCHED_OP, &args, Width::Bits64), efault);
    // A 32-bit one with its timeout in halves.
    d.put(ARG, Poll32 { ports: 0x9000, nr_ports: 0, timeout: [NOW.get() as u32 + 9, 0] });
    assert_eq!(d.call_width(0, Call::SCHED_OP, &args, Width::Bits32), CallResult::Block(0));
    assert_eq!(d.machine().next_deadline(PcpuId(0)), Some(NOW.get() + 9));
}

// ---- vcpu_op -------------------------------------------------------------------------------------------

#[test]
fn bad_vcpus_are_enoent() {
    let d = running(2);
    for id in [2, u32::MAX] {
        assert_eq!(vcpu_op(&d, VcpuOp::IS_UP, id, 0), Errno::ENOENT.result());
    }
    assert_eq!(d.call(Call::VCPU_OP, &[3, 1 << 32, 0]), Errno::ENOENT.result());
    assert_eq!(vcpu_op(&d, VcpuOp(99), 0, 0), Errno::ENOSYS.result());
    assert_eq!(vcpu_op(&d, VcpuOp::GET_PHYSID, 0, ARG), Errno::EINVAL.result());
}

#[test]
fn a_vcpu_beyond_the_shared_info_needs_its_own_before_it_is_initialised() {
    let d = running(33);
    d.put(ARG, HvmContext { mode: 1, pad: 0, regs: [0; 120] });
    assert_eq!(vcpu_op(&d, VcpuOp::INITIALISE, 32, ARG), Errno::EINVAL.result());
    d.put(ARG, RegisterVcpuInfo { mfn: 4, offset: 0, rsvd: 0 });
    assert_eq!(vcpu_op(&d, VcpuOp::REGISTER_VCPU_INFO, 32, ARG), 0);
    d.put(ARG, HvmContext { mode: 1, pad: 0, regs: [0; 120] });
    assert_eq!(vcpu_op(&d, VcpuOp::INITIALISE, 32, ARG), 0);
    assert_eq!(vcpu_op(&d, VcpuOp::INITIALISE, 31, ARG), 0);
}

#[test]
fn a_vcpu_is_initialised_brought_up_and_taken_down() {
    let d = running(2);
    let machine = d.machine().clone();
    assert_eq!(vcpu_op(&d, VcpuOp::IS_UP, 0, 0), 1);
    assert_eq!(vcpu_op(&d, VcpuOp::IS_UP, 1, 0), 0);
    assert_eq!(vcpu_op(&d, VcpuOp::UP, 1, 0), Errno::EINVAL.result());
    d.put(ARG, HvmContext { mode: 9, pad: 0, regs: [0; 120] });
    assert_eq!(vcpu_op(&d, VcpuOp::INITIALISE, 1, ARG), Errno::EINVAL.result());
    d.put(ARG, HvmContext { mode: 1, pad: 0, regs: [0; 120] });
    assert_eq!(vcpu_op(&d, VcpuOp::INITIALISE, 1, ARG), 0);
    assert_eq!(vcpu_op(&d, VcpuOp::INITIALISE, 1, ARG), Errno::EEXIST.result());
    assert_eq!(vcpu_op(&d, VcpuOp::INITIALISE, 0, ARG), Errno::EEXIST.result());
    assert_eq!(vcpu_op(&d, VcpuOp::UP, 1, 0), 0);
    let picked = [machine.pick(PcpuId(0)).unwrap(), machine.pick(PcpuId(1)).unwrap()];
    assert_ne!(picked[0].vcpu.id(), picked[1].vcpu.id());
    let on1 = picked.iter().position(|p| p.vcpu.id().0 == 1).unwrap();
    // It goes down on another pCPU: that is told to look.
    HERE.set(1 - on1 as u32);
    KICKS.take();
    assert_eq!(vcpu_op(&d, VcpuOp::DOWN, 1, 0), 0);
    assert_eq!(KICKS.take(), [on1 as u32]);
    let one = &picked[on1].vcpu;
    assert!(one.take_pending().has(Pending::STOP) && !one.may_run());
    machine.put(PcpuId(on1 as u32), one, WhyPut::Offline);
    assert_eq!(one.runstate().state(), RunState::OFFLINE);
    one.post(Pending::EVENT);
    assert!(machine.pick(PcpuId(on1 as u32)).is_none(), "events do not raise the dead");
    assert_eq!(vcpu_op(&d, VcpuOp::UP, 1, 0), 0);
    assert!(machine.pick(PcpuId(on1 as u32)).unwrap().vcpu.take_pending().has(Pending::EVENT));
    vcpu_op(&d, VcpuOp::DOWN, 1, 0);
    // The last one going down is the power switch.
    let down = d.call_width(0, Call::VCPU_OP, &[VcpuOp::DOWN.0.into(), 0, 0], Width::Bits64);
    assert_eq!(down, CallResult::Stop(0));
    assert_eq!(d.life(), Life::Shutdown(ShutdownReason::POWEROFF));
}

#[test]
fn the_singleshot_timer_raises_the_timer_virq_once() {
    let d = running(2);
    let machine = d.machine().clone();
    let port = bind_timer(&d);
    let pending = || d.shared_info().fetch_and_u64(LAYOUT_64.evtchn_pending, 0) & 1 << port != 0;
    let set = |at: u64| {
        d.put(ARG, SetSingleshotTimer { timeout_abs_ns: at, flags: 0, pad: 0 });
        vcpu_op(&d, VcpuOp::SET_SINGLESHOT_TIMER, 0, ARG)
    };
    let now = NOW.get();
    assert_eq!(set(now + 100), 0);
    assert_eq!(ARMED.take(), Some(now + 100));
    assert_eq!(set(now + 50), 0);
    assert_eq!((ARMED.take(), machine.next_deadline(PcpuId(0))), (Some(now + 50), Some(now + 50)));
    NOW.set(now + 49);
    machine.expire_timers(PcpuId(0));
    assert!(!pending());
    NOW.set(now + 50);
    machine.expire_timers(PcpuId(0));
    assert!(pending() && machine.next_deadline(PcpuId(0)).is_none());
    // The past fires at once, whatever the flags.
    assert_eq!(set(now), 0);
    assert!(pending());
    assert_eq!(set(now + 1000), 0);
    assert_eq!(vcpu_op(&d, VcpuOp::STOP_SINGLESHOT_TIMER, 0, 0), 0);
    assert!(machine.next_deadline(PcpuId(0)).is_none());
    d.put(ARG, SetSingleshotTimer { timeout_abs_ns: now, flags: 0, pad: 0 });
    assert_eq!(vcpu_op(&d, VcpuOp::SET_SINGLESHOT_TIMER, 1, ARG), Errno::EINVAL.result());
    assert_eq!(vcpu_op(&d, VcpuOp::STOP_SINGLESHOT_TIMER, 1, 0), Errno::EINVAL.result());
}

#[test]
fn a_timer_moves_with_its_vcpu() {
    let d = running(1);
    let machine = d.machine().clone();
    let vcpu = d.vcpu(VcpuId(0)).unwrap();
    let now = NOW.get();
    vcpu.set_timer(crate::time::TimerKind::Arch, Some(now + 10));
    HERE.set(1);
    vcpu.set_timer(crate::time::TimerKind::Arch, Some(now + 20));
    assert_eq!(machine.next_deadline(PcpuId(0)), None);
    assert_eq!(machine.next_deadline(PcpuId(1)), Some(now + 20));
    NOW.set(now + 20);
    machine.expire_timers(PcpuId(1));
    assert!(vcpu.take_pending().has(Pending::TIMER));
}

#[test]
fn the_periodic_timer_repeats_and_skips_what_was_missed() {
    let d = running(1);
    let machine = d.machine().clone();
    let port = bind_timer(&d);
    let pending = || d.shared_info().fetch_and_u64(LAYOUT_64.evtchn_pending, 0) & 1 << port != 0;
    let start = NOW.get();
    d.put(ARG, SetPeriodicTimer { period_ns: 999_999 });
    assert_eq!(vcpu_op(&d, VcpuOp::SET_PERIODIC_TIMER, 0, ARG), Errno::EINVAL.result());
    d.put(ARG, SetPeriodicTimer { period_ns: u64::MAX });
    assert_eq!(vcpu_op(&d, VcpuOp::SET_PERIODIC_TIMER, 0, ARG), Errno::EINVAL.result());
    d.put(ARG, SetPeriodicTimer { period_ns: 1_000_000 });
    assert_eq!(vcpu_op(&d, VcpuOp::SET_PERIODIC_TIMER, 0, ARG), 0);
    for tick in 1..4 {
        NOW.set(start + tick * 1_000_000);
        machine.expire_timers(PcpuId(0));
        assert!(pending(), "tick {tick}");
    }
    NOW.set(start + 10_500_000);
    machine.expire_timers(PcpuId(0));
    assert!(pending());
    assert_eq!(machine.next_deadline(PcpuId(0)), Some(start + 11_000_000));
    assert_eq!(vcpu_op(&d, VcpuOp::STOP_PERIODIC_TIMER, 0, 0), 0);
    assert_eq!(machine.next_deadline(PcpuId(0)), None);
}

#[test]
fn set_timer_op_takes_its_time_in_two_halves_from_a_32_bit_caller() {
    let d = running(1);
    let now = NOW.get();
    let call = |args: &[u64], width| d.call_width(0, Call::SET_TIMER_OP, args, width);
    assert_eq!(call(&[now + 7], Width::Bits64), CallResult::Return(0));
    assert_eq!(d.machine().next_deadline(PcpuId(0)), Some(now + 7));
    call(&[now + 7, 2], Width::Bits32);
    assert_eq!(d.machine().next_deadline(PcpuId(0)), Some((2 << 32) + now + 7));
    call(&[u64::MAX], Width::Bits64);
    assert_eq!(d.machine().next_deadline(PcpuId(0)), Some(now + 100_000_000));
    call(&[0], Width::Bits64);
    assert_eq!(d.machine().next_deadline(PcpuId(0)), None);
}

#[test]
fn vcpu_info_moves_once_and_loses_no_event() {
    let d = running(2);
    let port = bind_timer(&d);
    d.send_vcpu_virq(VcpuId(0), Virq::TIMER);
    upcalls();
    d.shared_info().write_u8(1, 1);
    let register = |vcpu: u32, mfn: u64, offset: u32| {
        d.put(ARG, RegisterVcpuInfo { mfn, offset, rsvd: 0 });
        vcpu_op(&d, VcpuOp::REGISTER_VCPU_INFO, vcpu, ARG)
    };
    assert_eq!(register(0, 9, 4097 - 64), Errno::ENXIO.result());
    assert_eq!(register(0, 9, 4), Errno::ENXIO.result());
    assert_eq!(register(0, 9, u32::MAX - 7), Errno::ENXIO.result());
    assert_eq!(register(0, 9999, 0), Errno::EINVAL.result());
    assert_eq!(register(0, 9, 64), 0);
    let page = d.memory.pin(Frame::new(9)).unwrap();
    assert_eq!(page.read_u8(64), 1, "an upcall is due");
    assert_eq!(page.read_u8(65), 1, "the old contents came along");
    assert_eq!(page.read_u64(72), u64::MAX);
    assert_eq!(page.read_u32(64 + 32) % 2, 0);
    assert_ne!(page.read_u32(64 + 32 + 24), 0, "the clock is there");
    assert_eq!(upcalls(), [(d.id().0, 0)]);
    assert_eq!(register(0, 10, 0), Errno::EINVAL.result(), "once only");
    // Events go to the new place.
    page.write_u8(64, 0);
    page.write_u64(72, 0);
    d.shared_info().fetch_and_u64(LAYOUT_64.evtchn_pending, 0);
    d.send_vcpu_virq(VcpuId(0), Virq::TIMER);
    assert_eq!((page.read_u8(64), page.read_u64(72)), (1, 1 << (port / 64)));
    // Another vCPU's only while that is down.
    assert_eq!(register(1, 11, 0), 0);
    let other = guest(3);
    other.start();
    other.vcpu(VcpuId(2)).unwrap().bring_up();
    other.put(ARG, RegisterVcpuInfo { mfn: 9, offset: 0, rsvd: 0 });
    assert_eq!(vcpu_op(&other, VcpuOp::REGISTER_VCPU_INFO, 2, ARG), Errno::EINVAL.result());
}

#[test]
fn a_vcpu_beyond_the_shared_page_needs_its_vcpu_info_registered() {
    let d = running(34);
    let vcpu = d.vcpu(VcpuId(33)).unwrap();
    assert!(vcpu.vcpu_info().is_none() && !vcpu.upcall_due());
    let arg = BindVirq { virq: Virq::TIMER.0, vcpu: 33, port: 0 };
    assert_eq!(d.call_with(Call::EVENT_CHANNEL_OP, EvtchnOp::BIND_VIRQ.0, arg), 0);
    d.send_vcpu_virq(VcpuId(33), Virq::TIMER);
    assert_eq!(upcalls(), []);
    d.put(ARG, RegisterVcpuInfo { mfn: 9, offset: 0, rsvd: 0 });
    assert_eq!(vcpu_op(&d, VcpuOp::REGISTER_VCPU_INFO, 33, ARG), 0);
    assert_eq!(upcalls(), [(d.id().0, 33)], "the event that came too early is not lost");
    assert!(vcpu.upcall_due());
}

#[test]
fn runstate_areas_are_written_also_across_pages_and_for_both_widths() {
    let d = running(1);
    let machine = d.machine().clone();
    let vcpu = machine.pick(PcpuId(0)).unwrap().vcpu;
    let area = 0x9000 - 20;
    d.put(ARG, area);
    assert_eq!(vcpu_op(&d, VcpuOp::REGISTER_RUNSTATE_MEMORY_AREA, 0, ARG), 0);
    let got: RunstateInfo = d.get(area);
    assert_eq!(
        (got.state, got.state_entry_time),
        (RunState::RUNNING.0, vcpu.runstate().info().state_entry_time)
    );
    // Later it is brought up to date when the vCPU starts to run.
    NOW.set(NOW.get() + 1000);
    machine.put(PcpuId(0), &vcpu, WhyPut::SliceEnd);
    NOW.set(NOW.get() + 500);
    machine.pick(PcpuId(0)).unwrap();
    assert!(vcpu.take_pending().has(Pending::AREAS));
    d.call(Call::VM_ASSIST, &[0, 5]);
    vcpu.write_areas(&mut Flat(&d.memory));
    let got: RunstateInfo = d.get(area);
    assert_eq!(got.time[RunState::RUNNABLE.0 as usize] % 1000, 500);
    assert_eq!(got.state_entry_time & RUNSTATE_UPDATE, 0);
    // 32-bit: 44 bytes.
    d.put(ARG, 0x9100u32);
    d.put(0x9100 + 44, 0x5555_5555u32);
    let args = [VcpuOp::REGISTER_RUNSTATE_MEMORY_AREA.0.into(), 0, ARG];
    assert_eq!(d.call_width(0, Call::VCPU_OP, &args, Width::Bits32), CallResult::Return(0));
    let narrow: RunstateInfo32 = d.get(0x9100);
    assert_eq!(narrow.time[0][0], got.time[0] as u32);
    assert_eq!(d.get::<u32>(0x9100 + 44), 0x5555_5555);
    // An area in a hole is not an error, now or later.
    d.put(ARG, 0xdead_0000_0000u64);
    assert_eq!(vcpu_op(&d, VcpuOp::REGISTER_RUNSTATE_MEMORY_AREA, 0, ARG), 0);
    vcpu.write_areas(&mut Flat(&d.memory));
    NOW.set(NOW.get() + 7);
    assert_eq!(vcpu_op(&d, VcpuOp::GET_RUNSTATE_INFO, 0, ARG), 0);
    assert!(d.get::<RunstateInfo>(ARG).time[0] >= 1007);
}

#[test]
fn the_time_area_holds_the_clock() {
    let d = running(1);
    d.put(ARG, 0x9010u64);
    assert_eq!(vcpu_op(&d, VcpuOp::REGISTER_VCPU_TIME_MEMORY_AREA, 0, ARG), 0);
    assert_eq!(d.get::<u32>(0x9010), 2);
    assert_eq!(d.get::<u64>(0x9018), NOW.get());
}

#[test]
fn vm_assist_knows_one_thing() {
    let d = guest(1);
    assert_eq!(d.call(Call::VM_ASSIST, &[0, 5]), 0);
    assert!(d.runstate_update_flag());
    assert_eq!(d.call(Call::VM_ASSIST, &[1, 5]), 0);
    assert!(!d.runstate_update_flag());
    assert_eq!(d.call(Call::VM_ASSIST, &[0, 4]), Errno::EINVAL.result());
    assert_eq!(d.call(Call::VM_ASSIST, &[2, 5]), Errno::ENOSYS.result());
}

// ---- hvm_op --------------------------------------------------------------------------------------------

fn param(d: &Dom, op: HvmOp, index: u32, value: u64) -> i64 {
    d.call_with(Call::HVM_OP, op.0, Param { domid: SELF, pad: 0, index, value })
}

#[test]
fn parameters_follow_their_table() {
    let d = guest(1);
    let (eperm, einval) = (Errno::EPERM.result(), Errno::EINVAL.result());
    for (index, set, get) in [
        (0, 0, 0),
        (1, eperm, 0),
        (2, 0, 0),
        (5, eperm, eperm),
        (12, eperm, eperm),
        (15, 0, 0),
        (17, eperm, 0),
        (18, 0, 0),
        (19, 0, 0),
        (32, eperm, eperm),
        (34, 0, 0),
        (35, eperm, 0),
        (36, 0, 0),
        (37, 0, 0),
        (38, eperm, eperm),
        (4, einval, einval),
        (13, einval, einval),
        (23, einval, einval),
        (30, einval, einval),
        (39, einval, einval),
        (u32::MAX, einval, einval),
    ] {
        assert_eq!(param(&d, HvmOp::SET_PARAM, index, 0), set, "set {index}");
        assert_eq!(param(&d, HvmOp::GET_PARAM, index, 9), get, "get {index}");
        if get == 0 {
            assert_eq!(d.get::<Param>(ARG).value, 0);
        }
    }
    let other = Param { domid: 4711, pad: 0, index: 0, value: 0 };
    assert_eq!(d.call_with(Call::HVM_OP, 1, other), Errno::ESRCH.result());
}

#[test]
fn write_once_parameters_are_eexist() {
    let config = DomainConfig { privileged: true, ..DomainConfig::new("dom0", 1, 128) };
    let d = domain_with(&machine(1), config);
    assert_eq!(param(&d, HvmOp::SET_PARAM, 32, 5), 0);
    assert_eq!(param(&d, HvmOp::SET_PARAM, 32, 5), 0);
    assert_eq!(param(&d, HvmOp::SET_PARAM, 32, 6), Errno::EEXIST.result());
}

#[test]
fn the_callback_and_the_width_are_latched_together() {
    let d = guest(1);
    assert_eq!(d.callback(), Callback::None);
    assert_eq!(param(&d, HvmOp::SET_PARAM, 0, 2 << 56 | 0xf3), 0);
    assert_eq!((d.callback(), d.width()), (Callback::Vector(0xf3), Width::Bits64));
    d.put(ARG, Param { domid: SELF, pad: 0, index: 0, value: 1 });
    d.call_width(0, Call::HVM_OP, &[0, ARG], Width::Bits32);
    assert_eq!((d.callback(), d.width()), (Callback::Line(1), Width::Bits32));
    assert_eq!(d.shared_info().read_u32(LAYOUT_32.wc_sec), 1_700_000_000, "the wallclock is there, too");
}

#[test]
fn the_upcall_vector_is_16_or_more() {
    let d = guest(2);
    let set = |vcpu: u32, vector: u8| {
        let arg = UpcallVector { vcpu, vector, pad: [0; 3] };
        d.call_with(Call::HVM_OP, HvmOp::SET_EVTCHN_UPCALL_VECTOR.0, arg)
    };
    assert_eq!(set(0, 0), Errno::EINVAL.result());
    assert_eq!(set(0, 15), Errno::EINVAL.result());
    assert_eq!(set(2, 16), Errno::ENOENT.result());
    assert_eq!(set(1, 0xf3), 0);
    assert_eq!(d.vcpu(VcpuId(1)).unwrap().upcall_vector(), 0xf3);
    assert_eq!(upcalls(), []);
    d.shared_info().write_u8(64, 1);
    assert_eq!(set(1, 0xf4), 0);
    assert_eq!(upcalls(), [(d.id().0, 1)], "what is due already is told");
    assert_eq!(d.call(Call::HVM_OP, &[HvmOp::GET_TIME.0.into(), 0]), NOW.get() as i64);
    assert_eq!(d.call(Call::HVM_OP, &[HvmOp::PAGETABLE_DYING.0.into(), ARG]), Errno::ENOSYS.result());
}

// ---- console -------------------------------------------------------------------------------------------

#[test]
fn console_io_is_for_whom_it_is_allowed() {
    let machine = machine(1);
    let plain = domain(&machine, 1);
    let loud = domain_with(&machine, DomainConfig { console_io: true, ..DomainConfig::new("loud", 1, 128) });
    loud.put(0x9000, *b"hello");
    assert_eq!(plain.call(Call::CONSOLE_IO, &[0, 5, 0x9000]), Errno::EPERM.result());
    assert_eq!(loud.call(Call::CONSOLE_IO, &[1, 5, 0x9000]), Errno::EPERM.result());
    assert_eq!(loud.call(Call::CONSOLE_IO, &[0, 5, 0x9000]), 0);
    assert_eq!(CONSOLE.take(), b"hello");
    assert_eq!(loud.call(Call::CONSOLE_IO, &[0, u64::MAX, 0x9000]), Errno::E2BIG.result());
    assert_eq!(loud.call(Call::CONSOLE_IO, &[7, 0, 0]), Errno::ENOSYS.result());
    // Long writes come back for more.
    let first = loud.call_width(0, Call::CONSOLE_IO, &[0, 5000, 0], Width::Bits64);
    assert_eq!(first, CallResult::Continue([0, 904, 4096, 0, 0, 0]));
    assert_eq!(CONSOLE.take().len(), 4096);
    let efault = Errno::EFAULT.result();
    assert_eq!(loud.call(Call::CONSOLE_IO, &[0, 100, RAM_PAGES * 4096 - 10]), efault);
}

#[test]
fn the_pv_console_is_served_by_the_hypervisor() {
    use xen_abi::ring::console as ring;
    let d = running(1);
    d.attach_console(Frame::new(9)).unwrap();
    assert_eq!(param(&d, HvmOp::GET_PARAM, 17, 0), 0);
    assert_eq!(d.get::<Param>(ARG).value, 9);
    assert_eq!(param(&d, HvmOp::GET_PARAM, 18, 0), 0);
    let port = d.get::<Param>(ARG).value;
    let send = || d.call_with(Call::EVENT_CHANNEL_OP, EvtchnOp::SEND.0, port as u32);
    let page = d.memory.pin(Frame::new(9)).unwrap();
    let write = |from: u32, bytes: &[u8]| {
        for (i, b) in bytes.iter().enumerate() {
            let at = from.wrapping_add(i as u32) & (ring::OUT_SIZE - 1);
            page.write_u8(ring::OUT + at as usize, *b);
        }
        page.write_u32(ring::OUT_PROD, from.wrapping_add(bytes.len() as u32));
    };
    write(0, b"login: ");
    assert_eq!(send(), 0);
    assert_eq!(CONSOLE.take(), b"login: ");
    assert_eq!(page.read_u32(ring::OUT_CONS), 7);
    assert!(d.vcpu(VcpuId(0)).unwrap().upcall_due(), "there is room again");
    // Around the end of the indices, and a full ring.
    page.write_u32(ring::OUT_CONS, u32::MAX - 100);
    let full: Vec<u8> = (0..2048u32).map(|i| i as u8).collect();
    write(u32::MAX - 100, &full);
    assert_eq!(send(), 0);
    assert_eq!(CONSOLE.take(), full);
    // A producer that lies.
    page.write_u32(ring::OUT_PROD, page.read_u32(ring::OUT_CONS).wrapping_add(2049));
    assert_eq!(send(), 0);
    assert_eq!(CONSOLE.take(), b"");
    assert_eq!(page.read_u32(ring::OUT_CONS), page.read_u32(ring::OUT_PROD));
    // Input.
    assert_eq!(d.console_input(b"root\r"), 5);
    assert_eq!(page.read_u32(ring::IN_PROD), 5);
    assert_eq!(page.read_u8(ring::IN + 3), b't');
    assert_eq!(d.console_input(&[b'x'; 3000]), 1024 - 5);
    assert_eq!(d.console_input(b"y"), 0);
    page.write_u32(ring::IN_CONS, 999_999);
    d.console_input(b"z");
    // Closing it (kexec) leaves it to the next kernel.
    assert_eq!(d.call_with(Call::EVENT_CHANNEL_OP, EvtchnOp::CLOSE.0, port as u32), 0);
    write(page.read_u32(ring::OUT_CONS), b"again");
    assert_eq!(send(), 0);
    assert_eq!(CONSOLE.take(), b"again");
}

// ---- multicall -----------------------------------------------------------------------------------------

#[test]
fn a_multicall_stores_each_result() {
    let d = running(1);
    let entry = |op: u64, args: &[u64]| {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        MulticallEntry { op, result: 99, args: all }
    };
    let list = [
        entry(17, &[0, 0]),
        entry(1 << 32 | 17, &[0, 0]),
        entry(13, &[0x9000, 1]),
        entry(29, &[0]),
        entry(17, &[7, 0]),
    ];
    d.put(0x9000, list);
    let mut args = [0x9000, 5, 0, 0, 0, 0];
    while let CallResult::Continue(next) = d.call_width(0, Call::MULTICALL, &args, Width::Bits64) {
        args = next;
    }
    let got: [MulticallEntry; 5] = d.get(0x9000);
    let enosys = Errno::ENOSYS.result();
    assert_eq!(got.map(|e| e.result), [4 << 16 | 17, enosys, enosys, 0, 4096]);
    // 32-bit, ending in a call that blocks.
    let narrow = |op: u32, args: [u32; 6]| MulticallEntry32 { op, result: 99, args };
    d.put(0x9000, [narrow(17, [0; 6]), narrow(29, [1, 0, 0, 0, 0, 0])]);
    assert_eq!(d.call_width(0, Call::MULTICALL, &[0x9000, 2], Width::Bits32), CallResult::Block(0));
    assert_eq!(d.get::<[MulticallEntry32; 2]>(0x9000).map(|e| e.result), [4 << 16 | 17, 0]);
    let end = RAM_PAGES * 4096 - 8;
    assert_eq!(d.call(Call::MULTICALL, &[end, 1]), Errno::EFAULT.result());
}

#[test]
fn a_long_call_within_a_multicall_goes_on_where_it_was() {
    let config = DomainConfig { console_io: true, ..DomainConfig::new("loud", 1, 128) };
    let d = domain_with(&machine(1), config);
    d.put(0x9000, MulticallEntry { op: 18, result: 99, args: [0, 9000, 0, 0, 0, 0] });
    let mut args = [0x9000, 1, 0, 0, 0, 0];
    let mut rounds = 0;
    while let CallResult::Continue(next) = d.call_width(0, Call::MULTICALL, &args, Width::Bits64) {
        args = next;
        rounds += 1;
    }
    assert_eq!((rounds, CONSOLE.take().len()), (2, 9000));
    assert_eq!(d.get::<MulticallEntry>(0x9000).result, 0);
}

// ---- a hostile guest -----------------------------------------------------------------------------------

mod hostile {
    use super::*;
    use proptest::prelude::*;

    fn word() -> impl Strategy<Value = u64> {
        prop_oneof![
            0u64..40,
            Just(ARG),
            Just(0x9ffc),
            Just(DomId::SELF.0.into()),
            any::<u64>(),
            (0u32..64).prop_map(|bit| 1u64 << bit),
            Just(u64::MAX),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// Whatever a guest passes in registers and memory: every call ends, none panics.
        #[test]
        fn no_call_panics_or_runs_on(
            calls in proptest::collection::vec(
                (0u64..45, proptest::array::uniform6(word()), proptest::array::uniform8(word()), any::<bool>()),
                1..40,
            ),
        ) {
            let config = DomainConfig { console_io: true, ..DomainConfig::new("evil", 2, 256) };
            let d = domain_with(&machine(2), config);
            d.attach_console(Frame::new(9)).unwrap();
            d.start();
            for (nr, mut args, memory, wide) in calls {
                if d.memory.pin(Frame::new(3)).is_ok() {
                    d.put(ARG, memory);
                }
                if args[1] > 1000 && nr % 3 != 0 {
                    args[1] = ARG;
                }
                let width = if wide { Width::Bits64 } else { Width::Bits32 };
                let vcpu = d.vcpu(VcpuId(0)).unwrap();
                for _ in 0..50 {
                    match dispatch(&vcpu, &mut Flat(&d.memory), nr as u32, args, width) {
                        CallResult::Continue(next) => args = next,
                        _ => break,
                    }
                }
                NOW.set(NOW.get() + 1_000_000);
                d.machine().expire_timers(PcpuId(0));
            }
        }
    }
}
