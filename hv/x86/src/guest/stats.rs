//! A domain's exit counters, for people and for tools.

use crate::guest::arch::{self, COUNTERS, X86};
use hv_core::domain::Domain;
use hv_core::trace::Level;

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
            let count: u64 = domain.vcpus().map(|v| v.shared.counters.get(level, index)).sum();
            if count != 0 {
                let reason = arch::code_of(index);
                log::info!("@stat dom={} level={number} reason={reason} count={count}", domain.name());
            }
        }
    }
}
