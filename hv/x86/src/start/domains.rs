//! The domains of the boot modules: building them, and what becomes of them.

use crate::guest::arch::{X86, machine};
use crate::guest::builder::{self, Recipe};
use crate::guest::stats;
use crate::power;
use alloc::sync::Arc;
use alloc::vec::Vec;
use boot::modules::{self, Limits};
use boot::multiboot2::BootInfo;
use hv_core::domain::{Action, Domain, DomainConfig};
use spin::Mutex;

static RECIPES: Mutex<Vec<Recipe>> = Mutex::new(Vec::new());

/// Builds and starts every domain that the module lines describe.
pub fn build_all(boot: &BootInfo) {
    let lines: Vec<_> = boot.modules.iter().map(|m| m.cmdline.as_str()).collect();
    let free = crate::mm::frames::frames().stats().free * addr::PAGE_SIZE;
    let limits = Limits { max_vcpus: DomainConfig::MAX_VCPUS, max_memory: free };
    let (configs, problems) = modules::parse(&lines, &limits);
    super::config::log(&problems);
    let modules = Arc::new(boot.modules.clone());
    for config in configs {
        let recipe = Recipe { config, modules: modules.clone() };
        if let Err(failure) = builder::build(&recipe) {
            log::error!("domain {}: {failure}", recipe.config.name);
            continue;
        }
        RECIPES.lock().push(recipe);
    }
    if machine().domains.all().is_empty() {
        super::refuse(
            "no domain could be started: give modules like `module2 /boot/vmlinuz domain name=l1 memory=1G -- ...`",
        );
    }
    crate::keys::memory();
}

/// Looks at the domains that have stopped. On the boot CPU, with no lock held.
pub fn tend() {
    while let Some(stopped) = machine().take_stopped() {
        end(&stopped.domain, stopped.action);
    }
    let mut pending = PENDING.lock();
    let waiting = core::mem::take(&mut *pending);
    drop(pending);
    for (domain, action) in waiting {
        end(&domain, action);
    }
    if machine().domains.all().is_empty() && PENDING.lock().is_empty() {
        log::info!("the last domain has ended");
        crate::keys::memory();
        crate::console::flush();
        power::off();
    }
}

/// Domains to be ended whose vCPUs are still on their CPUs.
static PENDING: Mutex<Vec<(Arc<Domain<X86>>, Action)>> = Mutex::new(Vec::new());

fn end(domain: &Arc<Domain<X86>>, action: Action) {
    if action == Action::Preserve {
        return;
    }
    if !PENDING.lock().iter().any(|(other, _)| Arc::ptr_eq(other, domain)) && domain.is_quiet() {
        stats::print(domain);
    }
    if machine().destroy(domain).is_err() {
        PENDING.lock().push((domain.clone(), action));
        return;
    }
    crate::console::remove_domain(domain);
    if action == Action::Rebuild {
        let recipe = RECIPES.lock().iter().find(|r| r.config.name == domain.name()).cloned();
        if let Some(recipe) = recipe
            && let Err(failure) = builder::build(&recipe)
        {
            log::error!("domain {}: {failure}", recipe.config.name);
        }
    }
}
