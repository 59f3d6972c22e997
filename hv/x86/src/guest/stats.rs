//! A domain's exit counters, for people and for tools.
//!
//! A domain with `counters=on` may read its own by CPUID, from any privilege level, so that a program can count the
//! exits of what it measures. Reading costs an exit (a CPUID, and counted as one), counting costs nothing more than
//! it always does. The leaves lie outside of every range that a vendor or a hypervisor defines:
//!
//! | leaf | gives |
//! |---|---|
//! | 4F4E_4D80h | EAX: the last of these leaves; EBX, ECX, EDX: `TestudoExits` |
//! | 4F4E_4D81h, ECX = exit code | EAX, EBX: exits of L1 by this code, low and high half; ECX, EDX: of its L2s |
//! | 4F4E_4D81h, ECX = FFFF_FFFEh | the same, by all codes together |
//!
//! Counts are of all vCPUs together. Codes are those of AMD APM vol. 2, appendix C "SVM Intercept Exit Codes", bits
//! 31:0; those without a counter of their own share one, which any of them reads.

use crate::guest::arch::{self, COUNTERS, X86};
use crate::policy::cpuid::Leaf;
use hv_core::console::gate;
use hv_core::domain::Domain;
use hv_core::trace::Level;
use vsvm::layout::ExitCode;

/// The first leaf.
const BASE: u32 = 0x4f4e_4d80;
/// The sub-leaf of all codes together. As an exit code it has no counter of its own.
const ALL: u32 = u32::MAX - 1;
/// EBX, ECX, EDX of the first leaf.
const SIGNATURE: [u8; 12] = *b"TestudoExits";

/// Exits of `level` that counter `index` has counted, of all vCPUs.
fn count(domain: &Domain<X86>, level: Level, index: usize) -> u64 {
    domain.vcpus().map(|v| v.shared.counters.get(level, index)).fold(0, u64::wrapping_add)
}

/// Logs what the domain's L2s leave behind, and one line per level and reason: `@stat dom=l1 level=1 reason=CPUID count=123`.
pub fn print(domain: &Domain<X86>) {
    if let Some(shadow) = domain.memory.shadow() {
        let stats = shadow.stats();
        log::info!(
            "domain {}: nested tables: {} pages, {} roots, {} held",
            domain.name(),
            stats.pages,
            stats.roots,
            stats.held
        );
    }
    for (level, number) in [(Level::L1, 1), (Level::L2, 2)] {
        for index in 0..COUNTERS {
            let count = count(domain, level, index);
            if count != 0 {
                let reason = arch::code_of(index);
                log::info!(target: gate::life(), "@stat dom={} level={number} reason={reason} count={count}", domain.name());
            }
        }
    }
}

/// What CPUID leaf `leaf` gives, if it is one of the counters' and `domain` may read them.
#[cold]
pub fn cpuid(domain: &Domain<X86>, leaf: u32, subleaf: u32) -> Option<Leaf> {
    domain.arch.counters.then_some(())?;
    leaf_of(leaf, subleaf, |level, index| count(domain, level, index))
}

fn leaf_of(leaf: u32, subleaf: u32, count: impl Fn(Level, usize) -> u64) -> Option<Leaf> {
    match leaf.wrapping_sub(BASE) {
        0 => {
            let [b, c, d] = [0, 4, 8].map(|at| {
                u32::from_le_bytes([SIGNATURE[at], SIGNATURE[at + 1], SIGNATURE[at + 2], SIGNATURE[at + 3]])
            });
            Some([BASE + 1, b, c, d])
        }
        1 if subleaf == ALL => {
            let [l1, l2] = [Level::L1, Level::L2]
                .map(|level| (0..COUNTERS).map(|index| count(level, index)).fold(0, u64::wrapping_add));
            Some([l1 as u32, (l1 >> 32) as u32, l2 as u32, (l2 >> 32) as u32])
        }
        1 => {
            // The register holds half of a code whose negative values are sign-extended.
            let index = arch::counter_of(ExitCode(i64::from(subleaf as i32) as u64));
            let [l1, l2] = [Level::L1, Level::L2].map(|level| count(level, index));
            Some([l1 as u32, (l1 >> 32) as u32, l2 as u32, (l2 >> 32) as u32])
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn each_code_reads_its_own_counter() {
        let count = |level: Level, index: usize| (level as u64 + 1) << 32 | index as u64;
        let index_of = |code: u32| {
            let [a, b, c, d] = leaf_of(BASE + 1, code, count).unwrap();
            assert_eq!((a, b, d), (c, 1, 2), "{code:#x}");
            a as usize
        };
        for code in [ExitCode::CPUID, ExitCode::VMRUN, ExitCode::NPF, ExitCode::INTR] {
            assert_eq!(index_of(code.0 as u32), arch::counter_of(code));
        }
        assert_eq!(index_of(u32::MAX), arch::counter_of(ExitCode::INVALID));
        assert_eq!(index_of(0x1234_5678), COUNTERS - 1, "unknown codes share a counter");
        let all = leaf_of(BASE + 1, ALL, |level, _| 1 + level as u64).unwrap();
        assert_eq!(all, [COUNTERS as u32, 0, 2 * COUNTERS as u32, 0]);
    }

    #[test]
    fn the_leaves_say_who_they_are_and_end() {
        let [last, b, c, d] = leaf_of(BASE, 7, |_, _| 0).unwrap();
        let name: Vec<u8> = [b, c, d].into_iter().flat_map(u32::to_le_bytes).collect();
        assert_eq!((last, name.as_slice()), (BASE + 1, &b"TestudoExits"[..]));
        for leaf in [0, BASE - 1, BASE + 2, 0x4000_0000, u32::MAX] {
            assert_eq!(leaf_of(leaf, 0, |_, _| 1), None, "{leaf:#x}");
        }
    }
}
