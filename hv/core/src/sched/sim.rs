//! A simulated machine: loads of different kinds on a few pCPUs for some seconds, to see who got what
//! and who waited how long.

use super::*;
use crate::sync::NoIrq;
use alloc::collections::BTreeMap;
use core::sync::atomic::AtomicU64;

const MS: u64 = 1_000_000;

/// What a simulated vCPU does: runs for `burst`, then sleeps for `sleep`; a sleep of 0 is a busy loop.
#[derive(Clone, Copy)]
struct Load {
    weight: u32,
    affinity: Affinity,
    burst: u64,
    sleep: u64,
    /// Its domain, by number, and that domain's cap in percent.
    cap: Option<(usize, u32)>,
}

const fn busy(weight: u32) -> Load {
    Load { weight, affinity: Affinity::ALL, burst: u64::MAX, sleep: 0, cap: None }
}

const fn sleeper(burst: u64, sleep: u64) -> Load {
    Load { weight: 256, affinity: Affinity::ALL, burst, sleep, cap: None }
}

struct Sim {
    unit: Unit,
    load: Load,
    left: AtomicU64,
    woken_at: AtomicU64,
    latencies: IrqLock<Vec<u64>, NoIrq>,
}

impl Schedulable for Sim {
    fn unit(&self) -> &Unit {
        &self.unit
    }
    fn woken(&self, _: u64) {}
}

struct Outcome {
    ran: Vec<u64>,
    /// Sorted, per load.
    latencies: Vec<Vec<u64>>,
    idle: u64,
}

/// Discrete events: ends of slices, bursts and sleeps.
fn simulate(pcpus: u32, loads: &[Load], duration: u64) -> Outcome {
    let tunables = Tunables::default();
    let sched = Scheduler::<Sim, NoIrq>::new(pcpus, Box::new(Credit::new(&tunables)), tunables);
    let mut budgets: BTreeMap<usize, Arc<Budget>> = BTreeMap::new();
    let mut budget_of = |load: &Load| {
        let (domain, percent) = load.cap?;
        let sharers = loads.iter().filter(|other| other.cap == load.cap).count() as u32;
        let new = || Arc::new(Budget::new(percent, sharers, tunables.period).unwrap());
        Some(budgets.entry(domain).or_insert_with(new).clone())
    };
    let sims: Vec<Arc<Sim>> = loads
        .iter()
        .map(|&load| {
            let sim = Arc::new(Sim {
                unit: Unit::new(load.weight, load.affinity).within(budget_of(&load)),
                load,
                left: AtomicU64::new(load.burst),
                woken_at: AtomicU64::new(0),
                latencies: IrqLock::new(Vec::new()),
            });
            sched.add(&sim);
            sim
        })
        .collect();
    let mut sleeping: BTreeMap<(u64, usize), ()> = (0..sims.len()).map(|i| ((i as u64, i), ())).collect();
    let mut running: Vec<Option<(Picked<Sim>, u64)>> = (0..pcpus).map(|_| None).collect();
    let mut now = 0;
    let mut idle = 0;
    while now < duration {
        while let Some((&(at, i), ())) = sleeping.first_key_value()
            && at <= now
        {
            sleeping.pop_first();
            sims[i].woken_at.store(now, SeqCst);
            sched.wake(&sims[i], now);
        }
        for pcpu in 0..pcpus {
            let id = PcpuId(pcpu);
            if let Some((picked, since)) = &running[pcpu as usize] {
                let sim = picked.vcpu.clone();
                let left = sim.left.load(SeqCst).saturating_sub(now - since);
                let why = if left == 0 {
                    WhyPut::Blocked
                } else if now >= picked.slice_end {
                    WhyPut::SliceEnd
                } else if sched.resched_wanted(id) {
                    WhyPut::Preempted
                } else {
                    continue;
                };
                sim.left.store(if left == 0 { sim.load.burst } else { left }, SeqCst);
                sim.unit.arm();
                sched.put(id, &sim, now, why);
                if why == WhyPut::Blocked {
                    let i = sims.iter().position(|other| Arc::ptr_eq(other, &sim)).unwrap();
                    sleeping.insert((now + sim.load.sleep, i), ());
                }
                running[pcpu as usize] = None;
            }
        }
        for pcpu in 0..pcpus {
            if running[pcpu as usize].is_none() {
                running[pcpu as usize] = sched.pick(PcpuId(pcpu), now).map(|picked| {
                    let woken = picked.vcpu.woken_at.swap(u64::MAX, SeqCst);
                    if woken != u64::MAX {
                        picked.vcpu.latencies.lock().push(now - woken);
                    }
                    (picked, now)
                });
            }
        }
        // The next moment at which anything happens; preemption is acted on at once.
        let ends = running.iter().enumerate().flat_map(|(pcpu, slot)| {
            slot.as_ref().map(|(picked, since)| {
                let burst = since.saturating_add(picked.vcpu.left.load(SeqCst));
                if sched.resched_wanted(PcpuId(pcpu as u32)) { now + 1 } else { picked.slice_end.min(burst) }
            })
        });
        let wakes = sleeping.keys().next().map(|(at, _)| *at);
        // An idle pCPU sleeps until its timer, which `Machine::pick` sets so.
        let idle_pcpus = (0..pcpus).filter(|&pcpu| running[pcpu as usize].is_none());
        let refills = idle_pcpus.filter_map(|pcpu| sched.next_refill(PcpuId(pcpu), now));
        let next = ends.chain(wakes).chain(refills).min().unwrap_or(duration).max(now + 1);
        idle += running.iter().filter(|slot| slot.is_none()).count() as u64 * (next - now);
        now = next;
    }
    let latencies = sims.iter().map(|sim| {
        let mut all = core::mem::take(&mut *sim.latencies.lock());
        all.sort_unstable();
        all
    });
    Outcome { ran: sims.iter().map(|sim| sim.unit.ran()).collect(), latencies: latencies.collect(), idle }
}

/// Asserts that each got its part of `total` to within `percent`.
fn assert_shares(outcome: &Outcome, total: u64, parts: &[f64], percent: f64) {
    let sum: f64 = parts.iter().sum();
    for (i, (&ran, part)) in outcome.ran.iter().zip(parts).enumerate() {
        let fair = total as f64 * part / sum;
        let off = (ran as f64 - fair).abs() / fair * 100.0;
        assert!(off <= percent, "load {i}: {ran} instead of {fair}, {off:.1} % off; all: {:?}", outcome.ran);
    }
}

const LONG: u64 = 6_000 * MS;

#[test]
fn equal_weights_share_equally_also_when_they_do_not_fit_the_pcpus() {
    for (vcpus, pcpus) in [(2, 1), (3, 2), (5, 2), (4, 3), (16, 4), (7, 5)] {
        let outcome = simulate(pcpus, &alloc::vec![busy(256); vcpus], LONG);
        assert_shares(&outcome, LONG * u64::from(pcpus), &alloc::vec![1.0; vcpus], 3.0);
        assert!(outcome.idle <= MS, "{vcpus} on {pcpus}: idle for {}", outcome.idle);
    }
}

#[test]
fn weights_are_kept() {
    assert_shares(&simulate(1, &[busy(256), busy(512), busy(1024)], LONG), LONG, &[1.0, 2.0, 4.0], 3.0);
    let four = [busy(128), busy(128), busy(256), busy(256)];
    assert_shares(&simulate(2, &four, LONG), 2 * LONG, &[1.0, 1.0, 2.0, 2.0], 3.0);
}

#[test]
fn a_weight_beyond_one_pcpu_leaves_the_rest_in_proportion() {
    // The first cannot use more than one pCPU; the others share the second one by weight.
    let outcome = simulate(2, &[busy(10_000), busy(100), busy(200)], LONG);
    assert_shares(&outcome, 2 * LONG, &[3.0, 1.0, 2.0], 4.0);
}

#[test]
fn what_a_sleeper_leaves_is_shared_in_proportion() {
    // It uses a tenth although it might use a quarter.
    let outcome = simulate(1, &[sleeper(MS, 9 * MS), busy(256), busy(512)], LONG);
    assert!(outcome.ran[0] > LONG / 10 * 95 / 100);
    let rest = LONG - outcome.ran[0];
    let busy = Outcome { ran: outcome.ran[1..].to_vec(), latencies: Vec::new(), idle: 0 };
    assert_shares(&busy, rest, &[1.0, 2.0], 4.0);
}

#[test]
fn a_sleeper_gets_the_pcpu_soon_when_it_wakes() {
    let mut loads = alloc::vec![busy(256); 6];
    loads.push(sleeper(MS / 5, 4 * MS));
    let outcome = simulate(2, &loads, LONG);
    let latencies = &outcome.latencies[6];
    assert!(latencies.len() > 1000);
    let (median, p99) = (latencies[latencies.len() / 2], latencies[latencies.len() * 99 / 100]);
    assert!(median <= MS / 10, "median {median}");
    assert!(p99 <= 2 * MS, "99 % {p99}");
}

#[test]
fn nobody_starves_beside_those_who_wake_all_the_time() {
    // Ten that sleep shortly and often ask for more than there is, beside one that only computes.
    let mut loads = alloc::vec![sleeper(MS / 2, MS / 2); 10];
    loads.push(busy(256));
    let outcome = simulate(1, &loads, LONG);
    let fair = LONG / 11;
    assert!(outcome.ran[10] >= fair * 9 / 10, "{:?}", outcome.ran);
}

#[test]
fn pinned_vcpus_stay_and_the_others_make_room() {
    let pinned = Load { affinity: Affinity::NONE.with(PcpuId(0)), ..busy(256) };
    let outcome = simulate(2, &[pinned, busy(256), busy(256)], LONG);
    assert_shares(&outcome, 2 * LONG, &[1.0, 1.0, 1.0], 3.0);
}

/// A busy loop in capped domain `domain`.
const fn capped(domain: usize, percent: u32, weight: u32) -> Load {
    Load { cap: Some((domain, percent)), ..busy(weight) }
}

#[test]
fn a_cap_holds_on_an_idle_machine() {
    for (percent, vcpus, pcpus) in [(50, 1, 1), (10, 1, 2), (1, 1, 1), (150, 2, 2), (50, 4, 2), (40, 3, 4)] {
        let outcome = simulate(pcpus, &alloc::vec![capped(0, percent, 256); vcpus], LONG);
        let used: u64 = outcome.ran.iter().sum();
        let allowed = LONG * u64::from(percent) / 100;
        // Not more, but for a run that the end cuts off; and nothing of it is kept back.
        assert!(used <= allowed + 30 * MS, "{percent} % of {vcpus} vCPUs: {used} of {allowed}");
        assert!(used >= allowed * 95 / 100, "{percent} % of {vcpus} vCPUs: {used} of {allowed}");
    }
}

#[test]
fn what_a_capped_domain_leaves_goes_to_the_others_by_weight() {
    let outcome = simulate(1, &[capped(0, 20, 4096), busy(256), busy(512)], LONG);
    assert!(outcome.ran[0] <= LONG * 21 / 100 && outcome.ran[0] >= LONG * 19 / 100, "{:?}", outcome.ran);
    let rest = Outcome { ran: outcome.ran[1..].to_vec(), latencies: Vec::new(), idle: 0 };
    assert_shares(&rest, LONG - outcome.ran[0], &[1.0, 2.0], 4.0);
    assert!(outcome.idle <= MS);
}

#[test]
fn a_cap_above_its_share_changes_nothing() {
    let outcome = simulate(1, &[capped(0, 90, 256), busy(256)], LONG);
    assert_shares(&outcome, LONG, &[1.0, 1.0], 3.0);
}

#[test]
fn a_cap_is_the_domains_not_each_vcpus() {
    let loads = [capped(0, 60, 256), capped(0, 60, 256), capped(1, 60, 256), busy(256)];
    let outcome = simulate(4, &loads, LONG);
    let of = |range: core::ops::Range<usize>| outcome.ran[range].iter().sum::<u64>();
    for (used, allowed) in [(of(0..2), 60), (of(2..3), 60), (of(3..4), 100)] {
        let allowed = LONG * allowed / 100;
        assert!(used <= allowed + 30 * MS && used >= allowed * 95 / 100, "{:?}", outcome.ran);
    }
}
