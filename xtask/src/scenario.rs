//! What boots, as data: a machine, Testudo's options, its domains, and what must be heard. `run` makes one
//! from its options; the system tests are a table of them in `tests/scenarios.toml`.
use crate::build_hv::Hv;
use crate::guests::initrd::{self, L1};
use crate::guests::kernels::{self, Kernel};
use crate::guests::programs::{self, Programs};
use crate::image::{self, BootConfig, Domain};
use crate::judge::{Agree, Numbers, Pace};
use crate::layout::Layout;
use crate::matrix::{self, Matrix};
use crate::qemu::{Boot, Machine};
use crate::run::BuildArgs;
use crate::session::Expect;
use crate::setup::{self, Needs};
use crate::tools;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

/// One whole machine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scenario {
    /// Its name, also of its files. A slash stands before each value that a matrix gave it.
    pub name: String,
    /// Lists of values, of which each combination is a row of its own (`matrix::expand`).
    pub matrix: Matrix,
    /// What it shows, for `--list`.
    pub about: String,
    /// Run only with `--full`.
    pub full: bool,
    /// No Testudo: QEMU loads the first domain's kernel itself.
    pub bare: bool,
    /// The machine.
    pub machine: Machine,
    /// Testudo's command line.
    pub options: String,
    /// The domains, in the order of their module lines.
    pub domain: Vec<DomainSpec>,
    /// What must be heard (`speech::matches`), each with how often: `["pattern", 3]`, or just a pattern.
    pub expect: Vec<Wanted>,
    /// What must not be heard, besides what no run may say.
    pub forbid: Vec<String>,
    /// Leave out these of what no run may say (a test of a guest's own panic).
    pub allow: Vec<String>,
    /// Pairs: whenever the first is heard, the second is typed.
    pub press: Vec<(String, String)>,
    /// Once all was heard the machine must be silent, and still there.
    pub halts: bool,
    /// Numbers that must agree.
    pub agree: Vec<Agree>,
    /// Guests' clocks against ours.
    pub pace: Vec<Pace>,
    /// Seconds.
    pub limit: u64,
    /// Seconds GRUB shows its menu.
    pub menu: u32,
}

impl Default for Scenario {
    fn default() -> Scenario {
        Scenario {
            name: String::new(),
            matrix: Matrix::new(),
            about: String::new(),
            full: false,
            bare: false,
            machine: Machine::default(),
            options: String::new(),
            domain: Vec::new(),
            expect: Vec::new(),
            forbid: Vec::new(),
            allow: Vec::new(),
            press: Vec::new(),
            halts: false,
            agree: Vec::new(),
            pace: Vec::new(),
            limit: 120,
            menu: 0,
        }
    }
}

/// An expected line.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Wanted {
    /// At least once.
    Once(String),
    /// At least so often.
    Times(String, usize),
}

/// One domain.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DomainSpec {
    /// Its name on the console.
    pub name: String,
    /// `linux` (with an image that can run L2), `svm-l1`, or `none` (a kernel by path with no ramdisk).
    pub guest: String,
    /// Kernel of the domain: a Debian series or a path.
    pub kernel: String,
    /// Kernels of its L2, separated by commas; the first is the default.
    pub l2_kernel: String,
    /// Give domain and L2 their kernels' ELF files instead of the compressed images: Testudo needs memory to unpack
    /// those, and L2 a third of its time to start.
    pub unpacked: bool,
    /// vCPUs.
    pub vcpus: u32,
    /// MiB.
    pub memory: u32,
    /// More words of the module line.
    pub options: String,
    /// Linux' console device; empty: what suits the machine.
    pub console: String,
    /// Whole command line after the console: `testudo.l1=…` words for Linux.
    pub cmdline: String,
    /// Put Debian's QEMU into the image, as the monitor of L2.
    pub qemu: bool,
    /// Give it its ramdisk.
    pub ramdisk: bool,
}

impl Default for DomainSpec {
    fn default() -> DomainSpec {
        DomainSpec {
            name: "l1".into(),
            guest: "linux".into(),
            kernel: "6.1".into(),
            l2_kernel: "6.1".into(),
            unpacked: false,
            vcpus: 1,
            memory: 768,
            options: "nested=on".into(),
            console: String::new(),
            cmdline: "testudo.l1=modules,info,l2".into(),
            qemu: false,
            ramdisk: true,
        }
    }
}

/// What no run may say: GRUB's ways to stop, a guest's, and ours.
const FORBIDDEN: &[&str] = &[
    "you need to load the kernel first",
    "Failed to boot both",
    "grub rescue>",
    "@testudo l1 done failed",
    "Kernel panic",
    "(testudo)*panic",
    "(testudo) PANIC",
    "(testudo) backtrace",
    "BUG: ",
];

impl Scenario {
    /// Reads a table of scenarios.
    pub fn table(text: &str) -> Result<Vec<Scenario>> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            scenario: Vec<Scenario>,
        }
        let table: Table = basic_toml::from_str(text)?;
        let mut rows: Vec<Scenario> = Vec::new();
        for (index, scenario) in table.scenario.into_iter().enumerate() {
            let again = rows.iter().any(|s| s.name.split('/').next() == Some(&scenario.name));
            if scenario.name.is_empty() || scenario.domain.is_empty() && scenario.bare || again {
                bail!(
                    "scenario {} ({:?}) has no name, no domain, or another's name",
                    index + 1,
                    scenario.name
                );
            }
            for row in matrix::expand(scenario)? {
                row.machine.check().with_context(|| row.name.clone())?;
                rows.push(row);
            }
        }
        Ok(rows)
    }

    /// What must and must not be heard.
    pub fn expectations(&self) -> Expect {
        let lines = self.expect.iter().map(|wanted| match wanted {
            Wanted::Once(line) => (line.clone(), 1),
            Wanted::Times(line, n) => (line.clone(), *n),
        });
        let general = FORBIDDEN.iter().map(|f| f.to_string()).filter(|f| !self.allow.contains(f));
        Expect {
            lines: lines.collect(),
            forbidden: general.chain(self.forbid.iter().cloned()).collect(),
            limit: Duration::from_secs(self.limit),
            press: self.press.clone(),
            halts: self.halts,
            numbers: Numbers { agree: self.agree.clone(), pace: self.pace.clone() },
        }
    }

    /// What must be there to prepare and boot it.
    pub fn needs(&self) -> Result<Needs<'static>> {
        let mut needs = Needs { tools: vec![&tools::QEMU], ..Needs::default() };
        if self.machine.uefi {
            needs.tools.push(&tools::OVMF);
        }
        if !self.bare {
            needs.tools.extend([
                &tools::GRUB_MKIMAGE,
                &tools::GRUB_BIOS,
                &tools::GRUB_UEFI,
                &tools::XORRISO,
                &tools::MTOOLS,
            ]);
        }
        needs.toolchain = !self.bare || self.domain.iter().any(|d| d.guest == "svm-l1");
        for domain in self.domain.iter().filter(|d| d.guest == "linux") {
            needs.busybox = true;
            let names = domain.l2_kernels().chain([domain.kernel.as_str()]);
            for name in names.filter(|n| !n.contains('/')) {
                needs.kernels.push(kernels::by_version(name)?);
            }
        }
        needs.kernels.sort_by_key(|k| k.version);
        needs.kernels.dedup_by_key(|k| k.version);
        Ok(needs)
    }

    /// Builds what this scenario needs and gives the machine that boots it. The ISO is `target/testudo/ISO`.
    pub fn prepare(&self, shop: &Workshop, iso: &str) -> Result<Prepared> {
        let mut prepared = self.assemble(shop)?;
        if let Some(hv) = &prepared.hv {
            let iso = shop.layout.out(iso);
            image::iso(shop.layout, &hv.image, &prepared.config, &iso, shop.build.policy())?;
            prepared.machine.boot = Boot::Iso(iso);
        }
        Ok(prepared)
    }

    /// Builds what it needs, but no medium to boot from.
    pub fn assemble(&self, shop: &Workshop) -> Result<Prepared> {
        let mut machine = self.machine.clone();
        machine.check()?;
        setup::preflight(shop.layout, &self.needs()?, shop.build.policy())?;
        let files = self.domain.iter().map(|d| shop.guest(d)).collect::<Result<Vec<_>>>()?;
        if self.bare {
            let (domain, files) =
                self.domain.iter().zip(files).next().context("a bare machine needs a guest")?;
            machine.boot = Boot::Kernel {
                image: files.kernel,
                initrd: files.ramdisk,
                cmdline: domain.words(true, shop.patience),
            };
            return Ok(Prepared { machine, hv: None, config: BootConfig::default() });
        }
        let hv = shop.hv()?;
        let domains = self.domain.iter().zip(files).map(|(domain, files)| Domain {
            name: domain.name.clone(),
            kernel: files.kernel,
            ramdisk: files.ramdisk.filter(|_| domain.ramdisk),
            options: format!("vcpus={} memory={}M {}", domain.vcpus, domain.memory, domain.options),
            cmdline: domain.words(false, shop.patience),
        });
        let config =
            BootConfig { options: self.options.clone(), domains: domains.collect(), menu: self.menu };
        Ok(Prepared { machine, hv: Some(hv), config })
    }
}

impl DomainSpec {
    /// The names of its L2's kernels.
    fn l2_kernels(&self) -> impl Iterator<Item = &str> {
        self.l2_kernel.split(',').map(str::trim).filter(|n| !n.is_empty())
    }

    /// The kernel's command line. With more patience than usual, Linux and our `/init` have it, too.
    fn words(&self, bare: bool, patience: u32) -> String {
        if self.guest != "linux" {
            return self.cmdline.clone();
        }
        let console = match (self.console.as_str(), bare) {
            ("", true) => "ttyS0",
            ("", false) => "hvc0",
            (console, _) => console,
        };
        let patient = if patience > 1 {
            // Linux' limits: Documentation/admin-guide/kernel-parameters.
            let (lockup, stall) = ((10 * patience).min(60), (21 * patience).min(300));
            format!(
                " watchdog_thresh={lockup} rcupdate.rcu_cpu_stall_timeout={stall} testudo.patience={patience}"
            )
        } else {
            String::new()
        };
        format!("console={console} panic=-1 nokaslr {}{patient}", self.cmdline)
    }
}

/// Everything that is built for a scenario.
#[derive(Debug)]
pub struct Prepared {
    /// What boots.
    pub machine: Machine,
    /// The hypervisor, unless the scenario is bare.
    pub hv: Option<Hv>,
    /// GRUB's configuration.
    pub config: BootConfig,
}

/// The files of one domain.
#[derive(Debug, Clone)]
pub struct GuestFiles {
    /// bzImage or ELF.
    pub kernel: PathBuf,
    /// Its initial ramdisk.
    pub ramdisk: Option<PathBuf>,
}

/// Builds each thing once, however many scenarios want it, from any thread.
#[derive(Debug)]
pub struct Workshop<'a> {
    /// Where everything is.
    pub layout: &'a Layout,
    /// How it is built.
    pub build: BuildArgs,
    /// So many times as long as usual may everything take.
    pub patience: u32,
    hv: Mutex<Option<Hv>>,
    programs: Mutex<Option<Programs>>,
    guests: Mutex<BTreeMap<String, GuestFiles>>,
}

impl<'a> Workshop<'a> {
    /// A workshop in which nothing is built yet.
    pub fn new(layout: &'a Layout, build: BuildArgs) -> Workshop<'a> {
        Workshop {
            layout,
            build,
            patience: 1,
            hv: Mutex::default(),
            programs: Mutex::default(),
            guests: Mutex::default(),
        }
    }

    /// The hypervisor.
    pub fn hv(&self) -> Result<Hv> {
        once(&self.hv, || self.build.hv(self.layout))
    }

    /// The guests' Linux programs.
    pub fn programs(&self) -> Result<Programs> {
        once(&self.programs, || programs::linux(self.layout, self.build.policy()))
    }

    /// The files of a domain.
    pub fn guest(&self, domain: &DomainSpec) -> Result<GuestFiles> {
        let key = format!(
            "{} {} {} {} {}",
            domain.guest, domain.kernel, domain.unpacked, domain.l2_kernel, domain.qemu
        );
        let mut guests = self.guests.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(files) = guests.get(&key) {
            return Ok(files.clone());
        }
        let files = match domain.guest.as_str() {
            "linux" => self.linux(domain)?,
            "svm-l1" => {
                GuestFiles { kernel: programs::svm_l1(self.layout, self.build.policy())?, ramdisk: None }
            }
            // A relative path is one in the repository.
            "none" => {
                let kernel = self.layout.repo(&domain.kernel);
                let kernel = std::fs::canonicalize(&kernel).with_context(|| self.layout.show(&kernel))?;
                GuestFiles { kernel, ramdisk: None }
            }
            other => bail!("unknown guest {other} (known: linux, svm-l1, none)"),
        };
        guests.insert(key, files.clone());
        Ok(files)
    }

    fn linux(&self, domain: &DomainSpec) -> Result<GuestFiles> {
        let policy = self.build.policy();
        let kernel = self.form(domain, &domain.kernel)?;
        let l2_kernels: Vec<(String, Kernel)> = domain
            .l2_kernels()
            .map(|name| Ok((short(name).to_string(), self.form(domain, name)?)))
            .collect::<Result<_>>()?;
        let busybox = kernels::busybox(self.layout, policy)?;
        let programs = self.programs()?;
        let extra = if domain.qemu { initrd::debian_qemu(self.layout, policy)? } else { Vec::new() };
        let image = L1 {
            programs: &programs,
            busybox: &busybox,
            kernel: &kernel,
            l2_kernels: &l2_kernels,
            extra: &extra,
        };
        let monitor = if domain.qemu { "-qemu" } else { "" };
        let l2_names: Vec<&str> = l2_kernels.iter().map(|(name, _)| name.as_str()).collect();
        let form = if domain.unpacked { "-elf" } else { "" };
        let name = format!("initrd-l1-{}-l2-{}{form}{monitor}", short(&domain.kernel), l2_names.join("-"));
        let ramdisk = image.write(self.layout, &name)?;
        Ok(GuestFiles { kernel: kernel.image, ramdisk: Some(ramdisk) })
    }

    /// A kernel in the form in which the domain wants it.
    fn form(&self, domain: &DomainSpec, name: &str) -> Result<Kernel> {
        let kernel = self.kernel(name)?;
        if !domain.unpacked {
            return Ok(kernel);
        }
        let image = kernels::unpacked(self.layout, &kernel, &format!("vmlinux-{}", short(name)))?;
        Ok(Kernel { image, ..kernel })
    }

    /// A kernel by Debian's series or by path.
    pub fn kernel(&self, name: &str) -> Result<Kernel> {
        if !name.contains('/') {
            return kernels::kernel(self.layout, kernels::by_version(name)?, self.build.policy());
        }
        let image = std::fs::canonicalize(name).with_context(|| format!("guest kernel {name}"))?;
        let given = std::env::var_os("TESTUDO_MODULES").map(PathBuf::from);
        let modules = given.or_else(|| installed_modules(&image)).with_context(|| {
            format!(
                "the modules of {name} are not in /lib/modules; give their folder with TESTUDO_MODULES=/path"
            )
        })?;
        Ok(Kernel { image, modules, release: name.to_string() })
    }
}

fn installed_modules(image: &Path) -> Option<PathBuf> {
    let release = image.file_name()?.to_str()?.strip_prefix("vmlinuz-")?;
    Some(PathBuf::from("/lib/modules").join(release)).filter(|p| p.is_dir())
}

/// A kernel's name inside a file name.
fn short(kernel: &str) -> &str {
    kernel.rsplit('/').next().unwrap_or(kernel)
}

fn once<T: Clone>(slot: &Mutex<Option<T>>, make: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut slot = slot.lock().unwrap_or_else(|e| e.into_inner());
    if let Some(made) = slot.as_ref() {
        return Ok(made.clone());
    }
    let made = make()?;
    *slot = Some(made.clone());
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_in_the_repository_is_good() {
        let text = include_str!("../../tests/scenarios.toml");
        let table = Scenario::table(text).unwrap();
        assert!(!table.is_empty());
        for scenario in table {
            assert!(
                !scenario.expect.is_empty() && !scenario.about.is_empty(),
                "{} expects nothing",
                scenario.name
            );
            assert!(scenario.limit <= 1800, "{}", scenario.name);
        }
    }

    #[test]
    fn misspelt_keys_and_doubled_names_are_refused() {
        assert!(Scenario::table("[[scenario]]\nname = 'a'\nlimitt = 3\n").is_err());
        let twice = "[[scenario]]\nname = 'a'\n[[scenario]]\nname = 'a'\n";
        assert!(Scenario::table(twice).is_err());
    }

    #[test]
    fn a_scenario_may_allow_a_guests_panic() {
        let text = "[[scenario]]\nname = 'a'\nallow = ['Kernel panic']\nexpect = ['x', ['y', 2]]\nforbid = ['z']\n\
                    machine = { smp = 4, cpu = 'EPYC-v4' }\n[[scenario.domain]]\nvcpus = 3\n";
        let scenario = &Scenario::table(text).unwrap()[0];
        let expect = scenario.expectations();
        assert_eq!(expect.lines, [("x".into(), 1), ("y".into(), 2)]);
        assert!(!expect.forbidden.contains(&"Kernel panic".into()) && expect.forbidden.contains(&"z".into()));
        assert_eq!((scenario.machine.smp, scenario.machine.memory), (4, 2048));
        assert_eq!(scenario.domain[0].vcpus, 3);
    }
}
