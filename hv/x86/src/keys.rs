//! Testudo's own key menu.

use crate::console::Line;
use crate::guest::{arch, stats};
use crate::smp;
use hv_core::console::Console;
use hv_core::sched::{Place, Schedulable};

/// Registers all commands. Xen's letters where Xen has the command.
pub fn register(console: &mut Console<Line>) {
    console.register_key(b'q', "domains and their vCPUs", |_| domains());
    console.register_key(b'e', "exit counters by domain, level and reason", |_| counters());
    console.register_key(b'd', "registers of all vCPUs that are not running", |_| registers());
    console.register_key(b'm', "memory in use", |_| memory());
    console.register_key(b'T', "the last events of each CPU", |_| events());
    console.register_key(b'C', "crash: Testudo fails on purpose, with a full report", |_| {
        crate::report::crash::now(crate::start::config::options().crash_key)
    });
    console.register_key(b'N', "raise an NMI on this CPU", |_| {
        crate::apic::send_nmi(crate::apic::id());
    });
    console.register_key(b'R', "restart the machine", |_| crate::power::reboot());
    console.register_key(b'P', "turn the machine off", |_| crate::power::off());
}

fn domains() {
    for domain in arch::machine().domains.all() {
        log::info!(
            "domain {} {:?}: {:?}, {} MiB",
            domain.id().0,
            domain.name(),
            domain.life(),
            hv_core::platform::DomainMemory::pages(&domain.memory) >> 8
        );
        for vcpu in domain.vcpus() {
            let place = match vcpu.unit().place() {
                Place::Running(pcpu) => alloc::format!("running on {pcpu}"),
                other => alloc::format!("{other:?}"),
            };
            log::info!("  {}: {place}, {}", vcpu.id(), if vcpu.is_up() { "up" } else { "down" });
        }
    }
}

/// Events of each CPU that the key shows.
const EVENTS: usize = 32;

fn events() {
    let now = crate::cpu::instr::rdtsc();
    for cpu in smp::cpus() {
        crate::trace::tail(
            cpu,
            EVENTS,
            now,
            &mut |line| log::info!(target: crate::trace::UNTRACED, "{line}"),
        );
    }
}

fn counters() {
    for domain in arch::machine().domains.all() {
        stats::print(&domain);
    }
}

fn registers() {
    for domain in arch::machine().domains.all() {
        for vcpu in domain.vcpus() {
            let Some(state) = vcpu.shared.state.try_lock() else {
                log::info!("{} {}: running", domain.name(), vcpu.id());
                continue;
            };
            if let Some(state) = state.as_ref() {
                let save = &state.cur().save;
                log::info!(
                    "{} {}: rip {:#x} rsp {:#x} rflags {:#x} cr0 {:#x} cr3 {:#x} cr4 {:#x} cs {:#x}",
                    domain.name(),
                    vcpu.id(),
                    save.rip,
                    save.rsp,
                    save.rflags,
                    save.cr0,
                    save.cr3,
                    save.cr4,
                    save.cs.selector
                );
            }
        }
    }
}

/// Logs what memory is used for, in KiB.
pub fn memory() {
    let uses = crate::mm::frames::uses();
    log::info!(
        "@memory total_kb={} free_kb={} domains_kb={} modules_kb={} testudo_kb={} image_and_tables_kb={} cpus={}",
        uses.total * 4,
        uses.free * 4,
        uses.domains * 4,
        uses.modules * 4,
        uses.own * 4,
        uses.fixed * 4,
        smp::count()
    );
}
