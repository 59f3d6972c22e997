//! The mechanism: waking, blocking, stealing, preempting.

use super::*;
use crate::sync::NoIrq;
use alloc::vec;
use core::sync::atomic::AtomicU32;

#[derive(Debug)]
struct Task {
    unit: Unit,
    woken: AtomicU32,
}

impl Schedulable for Task {
    fn unit(&self) -> &Unit {
        &self.unit
    }
    fn woken(&self, _: u64) {
        self.woken.fetch_add(1, SeqCst);
    }
}

type Sched = Scheduler<Task, NoIrq>;

fn sched(pcpus: u32) -> Sched {
    let tunables = Tunables::default();
    Scheduler::new(pcpus, Box::new(Credit::new(&tunables)), tunables)
}

fn task(sched: &Sched, affinity: Affinity) -> Arc<Task> {
    let task = Arc::new(Task { unit: Unit::new(256, affinity), woken: AtomicU32::new(0) });
    sched.add(&task);
    task
}

const P0: PcpuId = PcpuId(0);
const P1: PcpuId = PcpuId(1);
const MS: u64 = 1_000_000;

#[test]
fn a_wake_up_between_the_test_and_the_block_is_not_lost() {
    let sched = sched(1);
    let t = task(&sched, Affinity::ALL);
    assert_eq!(sched.wake(&t, 0), Some(P0));
    assert!(Arc::ptr_eq(&sched.pick(P0, 0).unwrap().vcpu, &t));
    t.unit.arm();
    assert_eq!(sched.wake(&t, 1), Some(P0), "it runs there: kick it");
    sched.put(P0, &t, 2, WhyPut::Blocked);
    assert_eq!(t.woken.load(SeqCst), 2, "its account says runnable, not blocked");
    assert!(sched.pick(P0, 3).is_some());
    // A wake-up before arming is the caller's to notice: it was consumed with its reason.
    sched.wake(&t, 4);
    t.unit.arm();
    sched.put(P0, &t, 5, WhyPut::Blocked);
    assert!(sched.pick(P0, 6).is_none());
    assert_eq!(t.unit.place(), Place::Blocked);
}

#[test]
fn waking_twice_queues_once() {
    let sched = sched(1);
    let t = task(&sched, Affinity::ALL);
    sched.wake(&t, 0);
    assert_eq!(sched.wake(&t, 0), None);
    assert_eq!((sched.waiting(P0), t.woken.load(SeqCst)), (1, 1));
}

#[test]
fn an_idle_pcpu_takes_what_waits_for_a_busy_one() {
    let sched = sched(2);
    let (a, b) = (task(&sched, Affinity::ALL), task(&sched, Affinity::ALL));
    sched.wake(&a, 0);
    sched.pick(P0, 0).unwrap();
    assert_eq!(sched.wake(&b, 0), Some(P1), "the idle one is kicked");
    let picked = sched.pick(P1, 0).unwrap();
    assert!(Arc::ptr_eq(&picked.vcpu, &b) && picked.migrated);
    sched.put(P1, &b, MS, WhyPut::SliceEnd);
    // P0 blocks `a`, and now finds `b` in the other queue.
    sched.put(P0, &a, MS, WhyPut::Blocked);
    assert!(Arc::ptr_eq(&sched.pick(P0, MS).unwrap().vcpu, &b));
    assert!(sched.pick(P1, MS).is_none());
}

#[test]
fn an_idle_pcpu_is_told_when_more_than_one_waits_elsewhere() {
    let sched = sched(2);
    let (a, b) = (task(&sched, Affinity::ALL), task(&sched, Affinity::NONE.with(P0)));
    sched.wake(&a, 0);
    sched.pick(P0, 0).unwrap();
    assert_eq!(sched.wake(&b, 0), None);
    b.unit.set_affinity(Affinity::ALL);
    assert_eq!(sched.put(P0, &a, MS, WhyPut::SliceEnd), Some(P1));
    assert!(sched.pick(P1, MS).is_some() && sched.pick(P0, MS).is_some());
}

#[test]
fn hard_affinity_is_kept_by_waking_and_by_stealing() {
    let sched = sched(2);
    let only1 = Affinity::NONE.with(P1);
    let t = task(&sched, only1);
    assert_eq!(sched.wake(&t, 0), Some(P1));
    assert!(sched.pick(P0, 0).is_none(), "P0 is idle and must not take it");
    sched.pick(P1, 0).unwrap();
    // Moved while it runs: it goes over when it is put.
    t.unit.set_affinity(Affinity::NONE.with(P0));
    assert_eq!(sched.put(P1, &t, MS, WhyPut::SliceEnd), Some(P0));
    assert!(sched.pick(P1, MS).is_none());
    assert!(sched.pick(P0, MS).is_some());
}

#[test]
fn an_affinity_to_no_pcpu_does_not_lose_the_vcpu() {
    let sched = sched(2);
    let t = task(&sched, Affinity::NONE);
    sched.wake(&t, 0);
    assert!(sched.pick(P1, 0).or_else(|| sched.pick(P0, 0)).is_some());
}

#[test]
fn a_sleeper_preempts_who_has_run_and_a_runner_does_not() {
    let sched = sched(1);
    let (a, b) = (task(&sched, Affinity::ALL), task(&sched, Affinity::ALL));
    sched.wake(&a, 0);
    sched.pick(P0, 0).unwrap();
    // Not far enough ahead yet.
    assert_eq!(sched.wake(&b, MS / 2), None);
    assert!(!sched.resched_wanted(P0));
    sched.put(P0, &a, 5 * MS, WhyPut::SliceEnd);
    assert!(Arc::ptr_eq(&sched.pick(P0, 5 * MS).unwrap().vcpu, &b));
    sched.put(P0, &b, 6 * MS, WhyPut::Blocked);
    sched.pick(P0, 6 * MS).unwrap();
    assert_eq!(sched.wake(&b, 8 * MS), Some(P0));
    assert!(sched.resched_wanted(P0));
    sched.put(P0, &a, 8 * MS, WhyPut::Preempted);
    assert!(Arc::ptr_eq(&sched.pick(P0, 8 * MS).unwrap().vcpu, &b));
    assert!(!sched.resched_wanted(P0));
}

#[test]
fn who_yields_goes_behind_the_others_once() {
    let sched = sched(1);
    let tasks = [task(&sched, Affinity::ALL), task(&sched, Affinity::ALL)];
    for t in &tasks {
        sched.wake(t, 0);
    }
    let first = sched.pick(P0, 0).unwrap().vcpu;
    sched.put(P0, &first, 0, WhyPut::Yield);
    let second = sched.pick(P0, 0).unwrap().vcpu;
    assert!(!Arc::ptr_eq(&first, &second));
    sched.put(P0, &second, 20 * MS, WhyPut::SliceEnd);
    assert!(Arc::ptr_eq(&sched.pick(P0, 20 * MS).unwrap().vcpu, &first));
    // Alone, a yield changes nothing.
    sched.put(P0, &first, 20 * MS, WhyPut::Yield);
    sched.remove(&second).unwrap();
    assert!(Arc::ptr_eq(&sched.pick(P0, 20 * MS).unwrap().vcpu, &first));
}

#[test]
fn only_what_runs_cannot_be_removed() {
    let sched = sched(1);
    let t = task(&sched, Affinity::ALL);
    sched.wake(&t, 0);
    sched.pick(P0, 0).unwrap();
    assert_eq!(sched.remove(&t), Err(Busy));
    sched.put(P0, &t, 1, WhyPut::SliceEnd);
    assert_eq!(sched.remove(&t), Ok(()));
    assert!(sched.pick(P0, 2).is_none());
    assert_eq!(sched.waiting(P0), 0);
}

#[test]
fn who_waits_behind_one_whose_slice_is_over_makes_its_pcpu_look() {
    let sched = sched(1);
    let (a, b) = (task(&sched, Affinity::ALL), task(&sched, Affinity::ALL));
    a.unit.add_credit(100 * MS as i64, 100 * MS as i64);
    sched.wake(&a, 0);
    let picked = sched.pick(P0, 0).unwrap();
    // Within its slice the timer will tell.
    assert_eq!(sched.wake(&b, 1), None);
    assert!(!sched.slice_over(P0, &a, picked.slice_end, picked.slice_end - 1));
    assert!(sched.slice_over(P0, &a, picked.slice_end, picked.slice_end));
    sched.remove(&b).unwrap();
    assert!(!sched.slice_over(P0, &a, picked.slice_end, 2 * picked.slice_end), "alone it goes on");
    let c = task(&sched, Affinity::ALL);
    assert_eq!(sched.wake(&c, 2 * picked.slice_end), Some(P0));
    assert!(!sched.resched_wanted(P0), "it is not ahead, its turn has come");
}

#[test]
fn what_has_used_up_its_budget_waits_for_the_next_period() {
    let sched = sched(1);
    let budget = Arc::new(Budget::new(10, 1, sched.period()).unwrap());
    let unit = Unit::new(256, Affinity::ALL).within(Some(budget));
    let t = Arc::new(Task { unit, woken: AtomicU32::new(0) });
    sched.add(&t);
    sched.wake(&t, 0);
    let picked = sched.pick(P0, 0).unwrap();
    assert_eq!(picked.slice_end, 3 * MS, "its slice ends with its time");
    assert!(sched.slice_over(P0, &t, picked.slice_end, 3 * MS), "also with nobody else there");
    sched.put(P0, &t, 3 * MS, WhyPut::SliceEnd);
    assert!(sched.pick(P0, 3 * MS).is_none());
    assert_eq!(sched.next_refill(P0, 3 * MS), Some(30 * MS));
    assert!(sched.pick(P0, 30 * MS).is_some());
    assert_eq!(sched.next_refill(P0, 30 * MS), None, "nothing waits");
}

#[test]
fn round_robin_ignores_weights() {
    let sched = Sched::new(1, Box::new(RoundRobin), Tunables::default());
    let tasks = [task(&sched, Affinity::ALL), task(&sched, Affinity::ALL), task(&sched, Affinity::ALL)];
    tasks[0].unit.set_weight(10_000);
    for t in &tasks {
        sched.wake(t, 0);
    }
    let mut order = vec![];
    for i in 0..6 {
        let picked = sched.pick(P0, i * 10 * MS).unwrap().vcpu;
        order.push(tasks.iter().position(|t| Arc::ptr_eq(t, &picked)).unwrap());
        sched.put(P0, &picked, (i + 1) * 10 * MS, WhyPut::SliceEnd);
    }
    assert_eq!(order, [0, 1, 2, 0, 1, 2]);
}

/// Real threads as pCPUs, and one that wakes: every wake-up is answered.
#[test]
fn concurrent_wakers_and_pcpus_lose_nothing() {
    use std::thread;
    struct Job {
        unit: Unit,
        posted: AtomicU64,
        done: AtomicU64,
    }
    impl Schedulable for Job {
        fn unit(&self) -> &Unit {
            &self.unit
        }
        fn woken(&self, _: u64) {}
    }
    const ROUNDS: u64 = 5_000;
    let tunables = Tunables::default();
    let sched = Scheduler::<Job, NoIrq>::new(2, Box::new(Credit::new(&tunables)), tunables);
    let jobs: Vec<Arc<Job>> = (0..3)
        .map(|_| {
            let unit = Unit::new(256, Affinity::ALL);
            let job = Arc::new(Job { unit, posted: AtomicU64::new(0), done: AtomicU64::new(0) });
            sched.add(&job);
            job
        })
        .collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for pcpu in [P0, P1] {
            let (sched, stop) = (&sched, &stop);
            scope.spawn(move || {
                let mut now = 0;
                while !stop.load(SeqCst) {
                    now += 1000;
                    let Some(picked) = sched.pick(pcpu, now) else {
                        thread::yield_now();
                        continue;
                    };
                    let job = picked.vcpu;
                    job.done.fetch_add(job.posted.swap(0, SeqCst), SeqCst);
                    job.unit.arm();
                    let why = if job.posted.load(SeqCst) == 0 { WhyPut::Blocked } else { WhyPut::SliceEnd };
                    sched.put(pcpu, &job, now + 500, why);
                }
            });
        }
        for _ in 0..ROUNDS {
            for job in &jobs {
                job.posted.fetch_add(1, SeqCst);
                sched.wake(job, 0);
            }
        }
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while jobs.iter().any(|job| job.done.load(SeqCst) != ROUNDS) {
            assert!(std::time::Instant::now() < deadline, "a wake-up was lost");
            thread::yield_now();
        }
        stop.store(true, SeqCst);
    });
}
