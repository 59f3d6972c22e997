//! MSR lists.

use super::*;
use crate::msr_list::{FailedAt, load, store};

fn list(entries: &[(u64, u64)]) -> HeapMemory {
    let mem = HeapMemory::with_pages(16);
    for (i, (head, value)) in entries.iter().enumerate() {
        mem.put_u64(Gpa::new(0x1ff0 + i as u64 * 16), *head);
        mem.put_u64(Gpa::new(0x1ff8 + i as u64 * 16), *value);
    }
    mem
}

#[test]
fn entries_before_a_bad_one_are_loaded() {
    for bad in [0xc000_0100, 0xc000_0101, 0x800, 0x8ff, 0x79, 0x8b, 0x9b, 1 << 32 | 0x174, 0x1234] {
        let mem = list(&[(0x174, 1), (0x175, 2), (bad, 3), (0x176, 4)]);
        let mut loaded = Vec::new();
        let wrmsr = |msr, value| {
            // 1234h is one that WRMSR refuses.
            let good = msr != 0x1234;
            if good {
                loaded.push((msr, value));
            }
            good
        };
        assert_eq!(load(&mem, Gpa::new(0x1ff0), 4, &caps(), wrmsr), Err(FailedAt(3)), "{bad:#x}");
        assert_eq!(loaded, [(0x174, 1), (0x175, 2)]);
    }
}

#[test]
fn values_are_stored_and_bad_entries_stop_it() {
    let mem = list(&[(0x10, 0), (0x174, 0), (0x9e, 0)]);
    let rdmsr = |msr: u32| Some(u64::from(msr) + 1);
    assert_eq!(store(&mem, Gpa::new(0x1ff0), 3, &caps(), rdmsr), Err(FailedAt(3)));
    assert_eq!(mem.read_u64(Gpa::new(0x1ff8)), Ok(0x11));
    assert_eq!(mem.read_u64(Gpa::new(0x2008)), Ok(0x175));
    assert_eq!(store(&mem, Gpa::new(0x1ff0), 1, &caps(), |_| None), Err(FailedAt(1)));
}

#[test]
fn no_list_is_long_and_none_needs_memory_to_fail() {
    let mem = HeapMemory::with_pages(16);
    let mut n = 0;
    let wrmsr = |_, _| {
        n += 1;
        true
    };
    assert_eq!(load(&mem, Gpa::new(0x1000), u32::MAX, &caps(), wrmsr), Err(FailedAt(513)));
    assert_eq!(n, 512);
    assert_eq!(load(&mem, Gpa::new(0x10_0000), 2, &caps(), |_, _| true), Err(FailedAt(1)));
    assert_eq!(load(&mem, Gpa::new(!15), u32::MAX, &caps(), |_, _| true), Err(FailedAt(1)));
    assert_eq!(load(&mem, Gpa::new(3), 0, &caps(), |_, _| false), Ok(()));
}
