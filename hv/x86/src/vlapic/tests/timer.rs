//! The timer's rules, by table.

use super::*;

const TIMER: u32 = 0xd1;
const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 2 << 17;
const MASKED: u32 = 1 << 16;

fn at(ns: u64) -> At {
    At(1_000_000 + ns)
}

fn ns(ns: u64) -> Option<Deadline> {
    Some(Deadline::Ns(1_000_000 + ns))
}

fn write_at(apic: &mut Vlapic, reg: Reg, value: u32, time: At) -> Effect {
    apic.mmio_write(u16::from(reg.0) * 16, 4, u64::from(value), &time)
}

fn count_at(apic: &mut Vlapic, time: At) -> u32 {
    apic.mmio_read(u16::from(Reg::TIMER_CURRENT.0) * 16, 4, &time) as u32
}

/// An APIC whose timer entry is `lvt`, divisor 1.
fn timer(lvt: u32) -> Vlapic {
    let (mut apic, _) = xapic(0);
    assert_eq!(write(&mut apic, Reg::LVT_TIMER, lvt), Effect::TimerChanged);
    assert_eq!(write(&mut apic, Reg::TIMER_DIVIDE, 0xb), Effect::TimerChanged);
    apic
}

fn start(apic: &mut Vlapic, count: u32) {
    assert_eq!(write(apic, Reg::TIMER_INITIAL, count), Effect::TimerChanged);
}

#[test]
fn one_shot_fires_once() {
    let mut apic = timer(TIMER);
    assert_eq!(apic.next_deadline(), None);
    start(&mut apic, 5000);
    assert_eq!(apic.next_deadline(), ns(5000));
    for (time, count) in [(0, 5000), (1, 4999), (4999, 1), (5000, 0), (9000, 0)] {
        assert_eq!(count_at(&mut apic, at(time)), count);
    }
    assert!(!apic.expire(&at(4999)));
    assert!(apic.expire(&at(5000)));
    assert!(apic.is_requested(0xd1));
    assert_eq!(apic.next_deadline(), None);
    assert!(!apic.expire(&at(50_000)));
    assert_eq!(read(&mut apic, Reg::TIMER_INITIAL), 5000);
}

#[test]
fn divisors() {
    for (code, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (0xa, 128), (0xb, 1)] {
        let mut apic = timer(TIMER);
        _ = write(&mut apic, Reg::TIMER_DIVIDE, code | 0xfff4);
        assert_eq!(read(&mut apic, Reg::TIMER_DIVIDE), code);
        start(&mut apic, 1000);
        assert_eq!(apic.next_deadline(), ns(1000 * divisor));
        assert_eq!(count_at(&mut apic, at(divisor - 1)), 1000);
        assert_eq!(count_at(&mut apic, at(divisor)), 999);
    }
}

#[test]
fn periodic_keeps_its_phase_and_merges_missed_periods() {
    let mut apic = timer(TIMER | PERIODIC);
    start(&mut apic, 20_000);
    assert!(apic.expire(&at(20_100)));
    assert_eq!(apic.next_deadline(), ns(40_000));
    assert_eq!(count_at(&mut apic, at(30_000)), 10_000);
    assert!(apic.ack(0xd1));
    assert!(apic.expire(&at(107_000)));
    assert_eq!(apic.next_deadline(), ns(120_000));
    assert!(!apic.expire(&at(107_001)));
    // The count goes on although nobody served the expiry.
    assert_eq!(count_at(&mut apic, at(120_000)), 20_000);
    assert_eq!(count_at(&mut apic, at(145_000)), 15_000);
}

#[test]
fn periods_have_a_floor() {
    let mut apic = timer(TIMER | PERIODIC);
    start(&mut apic, 1);
    assert_eq!(apic.next_deadline(), ns(MIN_PERIOD_NS));
    assert_eq!(count_at(&mut apic, at(10)), 1);
    assert!(apic.expire(&at(MIN_PERIOD_NS)));
    assert_eq!(apic.next_deadline(), ns(2 * MIN_PERIOD_NS));
}

#[test]
fn writing_zero_stops() {
    for mode in [0, PERIODIC] {
        let mut apic = timer(TIMER | mode);
        start(&mut apic, 50_000);
        start(&mut apic, 0);
        assert_eq!(apic.next_deadline(), None);
        assert!(!apic.expire(&at(1_000_000)));
        assert_eq!(count_at(&mut apic, at(1)), 0);
    }
}

#[test]
fn a_masked_timer_counts_silently() {
    let mut apic = timer(TIMER | MASKED);
    start(&mut apic, 5000);
    assert_eq!(apic.next_deadline(), None);
    assert_eq!(count_at(&mut apic, at(2000)), 3000);
    assert_eq!(write_at(&mut apic, Reg::LVT_TIMER, TIMER, at(2000)), Effect::TimerChanged);
    assert_eq!(apic.next_deadline(), ns(5000), "unmasked in time");
    // Unmasked too late: what passed under the mask stays silent.
    let mut apic = timer(TIMER | MASKED);
    start(&mut apic, 5000);
    _ = write_at(&mut apic, Reg::LVT_TIMER, TIMER, at(6000));
    assert!(!apic.expire(&at(6000)) && !apic.is_requested(0xd1));
    // And masked too late: it fired before.
    let mut apic = timer(TIMER);
    start(&mut apic, 5000);
    _ = write_at(&mut apic, Reg::LVT_TIMER, TIMER | MASKED, at(6000));
    assert!(apic.is_requested(0xd1));
}

#[test]
fn changing_the_divisor_keeps_the_count() {
    let mut apic = timer(TIMER);
    start(&mut apic, 5000);
    _ = write_at(&mut apic, Reg::TIMER_DIVIDE, 0, at(1000));
    assert_eq!(count_at(&mut apic, at(1000)), 4000);
    assert_eq!(apic.next_deadline(), ns(9000));
}

#[test]
fn one_shot_and_periodic_change_without_restart() {
    let mut apic = timer(TIMER);
    start(&mut apic, 30_000);
    _ = write_at(&mut apic, Reg::LVT_TIMER, TIMER | PERIODIC, at(10_000));
    assert_eq!(apic.next_deadline(), ns(30_000));
    assert!(apic.expire(&at(30_000)));
    assert_eq!(apic.next_deadline(), ns(60_000));
    _ = write_at(&mut apic, Reg::LVT_TIMER, TIMER, at(40_000));
    assert!(apic.expire(&at(60_000)));
    assert_eq!(apic.next_deadline(), None);
}

#[test]
fn tsc_deadline() {
    let mut apic = timer(TIMER | DEADLINE);
    let tsc = at(5000).guest_tsc();
    assert_eq!(apic.wrmsr(MSR_TSC_DEADLINE, tsc, &T0), Ok(Effect::TimerChanged));
    assert_eq!(apic.next_deadline(), Some(Deadline::Tsc(tsc)));
    assert_eq!(apic.rdmsr(MSR_TSC_DEADLINE, &at(4999)), Ok(tsc));
    start(&mut apic, 100); // ignored in this mode
    assert_eq!(apic.next_deadline(), Some(Deadline::Tsc(tsc)));
    assert_eq!(read(&mut apic, Reg::TIMER_INITIAL), 0);
    assert_eq!(count_at(&mut apic, at(0)), 0);
    assert!(!apic.expire(&at(4999)));
    assert!(apic.expire(&at(5000)) && apic.is_requested(0xd1));
    assert_eq!(apic.rdmsr(MSR_TSC_DEADLINE, &at(5000)), Ok(0), "disarmed by firing");
    // 0 disarms, the past fires at once.
    assert!(apic.wrmsr(MSR_TSC_DEADLINE, tsc, &T0).is_ok());
    assert!(apic.wrmsr(MSR_TSC_DEADLINE, 0, &T0).is_ok());
    assert_eq!(apic.next_deadline(), None);
    assert!(apic.ack(0xd1));
    assert!(apic.wrmsr(MSR_TSC_DEADLINE, 1, &T0).is_ok());
    assert!(apic.expire(&T0) && apic.is_requested(0xd1));
}

#[test]
fn a_masked_deadline_passes_silently() {
    let mut apic = timer(TIMER | DEADLINE | MASKED);
    let tsc = at(5000).guest_tsc();
    assert!(apic.wrmsr(MSR_TSC_DEADLINE, tsc, &T0).is_ok());
    assert_eq!(apic.next_deadline(), None);
    assert_eq!(apic.rdmsr(MSR_TSC_DEADLINE, &at(6000)), Ok(0));
    assert!(!apic.is_requested(0xd1));
}

#[test]
fn the_deadline_msr_is_dead_in_other_modes_and_mode_changes_disarm() {
    let mut apic = timer(TIMER);
    assert!(apic.wrmsr(MSR_TSC_DEADLINE, 1, &T0).is_ok());
    assert_eq!(apic.rdmsr(MSR_TSC_DEADLINE, &T0), Ok(0));
    assert_eq!(apic.next_deadline(), None);
    start(&mut apic, 5000);
    _ = write(&mut apic, Reg::LVT_TIMER, TIMER | DEADLINE);
    assert_eq!(apic.next_deadline(), None);
    assert_eq!(read(&mut apic, Reg::TIMER_INITIAL), 0);
    assert!(apic.wrmsr(MSR_TSC_DEADLINE, u64::MAX, &T0).is_ok());
    assert_eq!(apic.next_deadline(), Some(Deadline::Tsc(u64::MAX)));
    _ = write(&mut apic, Reg::LVT_TIMER, TIMER | PERIODIC);
    assert_eq!(apic.next_deadline(), None);
    start(&mut apic, 50_000);
    _ = write(&mut apic, Reg::LVT_TIMER, TIMER | PERIODIC | DEADLINE); // reserved mode
    assert_eq!(apic.next_deadline(), None);
}

#[test]
fn software_disable_masks_a_running_timer() {
    let mut apic = timer(TIMER);
    start(&mut apic, 5000);
    assert_eq!(write(&mut apic, Reg::SVR, 0xff), Effect::TimerChanged);
    assert_eq!(apic.next_deadline(), None);
    assert_eq!(count_at(&mut apic, at(1000)), 4000, "it still counts");
}

#[test]
fn the_end_of_time_is_no_overflow() {
    let end = At(u64::MAX / 3);
    for mode in [0, PERIODIC, DEADLINE] {
        let mut apic = timer(TIMER | mode);
        _ = write_at(&mut apic, Reg::TIMER_DIVIDE, 0xa, end);
        _ = write_at(&mut apic, Reg::TIMER_INITIAL, u32::MAX, end);
        _ = apic.wrmsr(MSR_TSC_DEADLINE, u64::MAX, &end);
        _ = apic.expire(&end);
        _ = write_at(&mut apic, Reg::TIMER_DIVIDE, 0xb, end);
        _ = count_at(&mut apic, end);
    }
}
