//! `xtask run`: the whole machine, from nothing installed to L2's user space.
use crate::build_hv::{self, Hv, HvOptions};
use crate::interactive;
use crate::layout::Layout;
use crate::qemu::{Accel, Boot, Machine};
use crate::scenario::{DomainSpec, Scenario, Wanted, Workshop};
use crate::session::{End, Log, watch};
use crate::setup::Policy;
use crate::speech::Summary;
use crate::ui;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::time::Instant;

/// Options of `cargo xtask run` (and of `image`, which makes what `run` would boot).
#[derive(Debug, Clone, clap::Args)]
pub struct RunOptions {
    /// Kernel of the L1 guests: 6.1 or 6.12 (Debian's), or the path of a bzImage
    #[arg(long, default_value = "6.1", value_name = "VERSION|PATH")]
    pub kernel: String,
    /// Kernel of the L2 guests
    #[arg(long, default_value = "6.1", value_name = "VERSION|PATH")]
    pub l2_kernel: String,
    /// What the domains are: linux (KVM runs an L2 Linux in it), or svm-l1 (our bare-metal test hypervisor)
    #[arg(long, default_value = "linux", value_name = "linux|svm-l1")]
    pub guest: String,
    /// Number of L1 domains (l1, l1b, l1c ...)
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub l1s: u32,
    /// vCPUs of each L1
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub vcpus: u32,
    /// Memory of each L1 in MiB
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    pub memory: u32,
    /// L2 guests that each L1 starts at once
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub l2s: u32,
    /// vCPUs of each L2
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub l2_vcpus: u32,
    /// Memory of each L2 in MiB
    #[arg(long, default_value_t = 128, value_name = "MIB")]
    pub l2_memory: u32,
    /// Run L2 by Debian's QEMU instead of our small monitor
    #[arg(long)]
    pub l2_qemu: bool,
    /// L1's plan: steps of its /init (see guests/README.md)
    #[arg(long, default_value = "modules,info,l2", value_name = "STEPS")]
    pub plan: String,
    /// More words for each L1's command line
    #[arg(long, default_value = "", value_name = "WORDS")]
    pub cmdline: String,
    /// L1's console device
    #[arg(long, value_name = "DEVICE")]
    pub console: Option<String>,
    /// Words for Testudo's command line
    #[arg(long, default_value = "", value_name = "WORDS")]
    pub options: String,
    /// More words for each domain's module line
    #[arg(long, default_value = "nested=on", value_name = "WORDS")]
    pub domain_options: String,
    /// No Testudo: boot the first L1 directly on the emulated machine, for comparison
    #[arg(long)]
    pub bare: bool,
    /// QEMU's accelerator
    #[arg(long, value_enum, default_value = "tcg")]
    pub accel: Accel,
    /// QEMU's CPU model, such as max or EPYC-v4 (default: max; with --accel kvm: host)
    #[arg(long, value_name = "MODEL")]
    pub cpu: Option<String>,
    /// Physical CPUs of the machine
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub smp: u32,
    /// Memory of the machine in MiB (default: enough for the domains)
    #[arg(long, value_name = "MIB")]
    pub machine_memory: Option<u32>,
    /// UEFI firmware instead of BIOS
    #[arg(long)]
    pub uefi: bool,
    /// Count instructions: one is one nanosecond of the machine's time
    #[arg(long)]
    pub icount: bool,
    /// Wait for a debugger at this port (gdb target/testudo/testudo.debug -ex "target remote :PORT")
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "1234")]
    pub gdb: Option<u16>,
    /// Show GRUB's menu for so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "10", default_value_t = 0, hide_default_value = true)]
    pub menu: u32,
    /// Stay at L1's shell: every key goes to the machine; Ctrl-A three times switches the console's input,
    /// Ctrl-] three times leaves
    #[arg(long)]
    pub interactive: bool,
    /// Seconds until the run has failed
    #[arg(long, default_value_t = 900, value_name = "SECONDS")]
    pub timeout: u64,
    /// Only build and boot; end when the machine ends, expect nothing
    #[arg(long)]
    pub no_expect: bool,
    /// Words for QEMU
    #[arg(last = true, value_name = "QEMU WORDS")]
    pub qemu_words: Vec<String>,
    /// Options of the build.
    #[command(flatten)]
    pub build: BuildArgs,
}

/// How the hypervisor is built.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct BuildArgs {
    /// Build Testudo without optimisation, with debug assertions
    #[arg(long)]
    pub debug: bool,
    /// Cargo features of the hypervisor's crate, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub features: Vec<String>,
    /// Use what is there; touch no network
    #[arg(long)]
    pub offline: bool,
    /// Take this hypervisor image instead of building it
    #[arg(long, value_name = "PATH")]
    pub hv: Option<PathBuf>,
}

impl BuildArgs {
    /// For the functions that may fetch.
    pub fn policy(&self) -> Policy {
        Policy { offline: self.offline }
    }

    /// The hypervisor, built if it is not given.
    pub fn hv(&self, layout: &Layout) -> Result<Hv> {
        if let Some(image) = &self.hv {
            let image = std::fs::canonicalize(image)
                .with_context(|| format!("hypervisor image {}", image.display()))?;
            return Ok(Hv { debug: image.clone(), image });
        }
        build_hv::build(
            layout,
            &HvOptions { debug: self.debug, features: self.features.clone() },
            self.policy(),
        )
    }
}

impl RunOptions {
    /// Names of the domains.
    fn names(&self) -> Vec<String> {
        let letter = |n: u32| char::from_u32(u32::from(b'a') + n % 26).unwrap_or('x');
        (0..self.l1s).map(|n| if n == 0 { "l1".into() } else { format!("l1{}", letter(n)) }).collect()
    }

    fn check(&self) -> Result<()> {
        if self.l1s == 0 || self.l1s > 26 {
            bail!("--l1s {}: between 1 and 26", self.l1s);
        }
        if !["linux", "svm-l1"].contains(&self.guest.as_str()) {
            bail!("--guest {}: `linux` and `svm-l1` are known", self.guest);
        }
        if self.memory < 64 {
            bail!("--memory {}: an L1 needs at least 64 MiB", self.memory);
        }
        Ok(())
    }

    /// The command line of an L1, after its console.
    fn l1_cmdline(&self) -> String {
        if self.guest == "svm-l1" {
            return self.cmdline.clone();
        }
        let plan = if self.interactive { "modules,info,shell" } else { &self.plan };
        let vmm = if self.l2_qemu { " testudo.vmm=qemu" } else { "" };
        let words = format!(
            "testudo.l1={plan} testudo.count={} testudo.cpus={} testudo.memory={}M{vmm} {}",
            self.l2s, self.l2_vcpus, self.l2_memory, self.cmdline
        );
        words.trim_end().to_string()
    }

    /// Megabytes of the machine: the domains, Testudo, and the modules that GRUB loads.
    fn machine_memory(&self) -> u32 {
        let domains = self.l1s.saturating_mul(self.memory);
        self.machine_memory.unwrap_or(if self.bare { self.memory } else { domains.saturating_add(512) })
    }

    /// What must be heard.
    fn expected(&self) -> Vec<Wanted> {
        let mut lines = Vec::new();
        if self.no_expect {
            return lines;
        }
        let dom = |name: &str| if self.bare { String::new() } else { format!("({name})*") };
        for name in self.names().iter().take(if self.bare { 1 } else { usize::MAX }) {
            if self.guest == "svm-l1" {
                lines.push(Wanted::Once(format!("{} passed, 0 failed", dom(name))));
                continue;
            }
            if self.plan.split(',').any(|step| step == "l2") {
                lines.push(Wanted::Times(format!("{}@testudo l2 userland", dom(name)), self.l2s as usize));
            }
            lines.push(Wanted::Once(format!("{}@testudo l1 done ok", dom(name))));
        }
        lines
    }

    /// The scenario these options describe.
    pub fn scenario(&self) -> Result<Scenario> {
        self.check()?;
        let domain = self.names().into_iter().map(|name| DomainSpec {
            name,
            guest: self.guest.clone(),
            kernel: self.kernel.clone(),
            l2_kernel: self.l2_kernel.clone(),
            vcpus: self.vcpus,
            memory: self.memory,
            options: self.domain_options.clone(),
            console: self.console.clone().unwrap_or_default(),
            cmdline: self.l1_cmdline(),
            qemu: self.l2_qemu,
            unpacked: false,
            ramdisk: true,
        });
        Ok(Scenario {
            name: "run".into(),
            bare: self.bare,
            machine: self.machine(),
            options: self.options.clone(),
            domain: domain.collect(),
            expect: self.expected(),
            limit: self.timeout,
            menu: self.menu,
            ..Scenario::default()
        })
    }

    fn machine(&self) -> Machine {
        let usual = if self.accel == Accel::Kvm { "host" } else { "max" };
        Machine {
            cpu: self.cpu.clone().unwrap_or_else(|| usual.into()),
            smp: self.smp,
            memory: self.machine_memory(),
            accel: self.accel,
            uefi: self.uefi,
            icount: self.icount,
            gdb: self.gdb,
            boot: Boot::default(),
            extra: self.qemu_words.clone(),
        }
    }
}

/// `xtask run`; true if everything expected came.
pub fn run(layout: &Layout, options: &RunOptions) -> Result<bool> {
    let scenario = options.scenario()?;
    let prepared = scenario.prepare(&Workshop::new(layout, options.build.clone()), "testudo.iso")?;
    let mut cmd = prepared.machine.command(layout, options.build.policy())?;
    if let Some(port) = options.gdb {
        ui::step(&format!(
            "waiting for a debugger: gdb {} -ex 'target remote :{port}'",
            layout.show(&layout.out("testudo.debug"))
        ));
    }
    ui::step(&format!(
        "starting the machine: {} CPUs {}, {} MiB",
        prepared.machine.smp, prepared.machine.cpu, prepared.machine.memory
    ));
    if options.interactive {
        return interactive::run(&mut cmd);
    }
    let path = layout.out("run.log");
    let mut log = Log::create(&path, true)?;
    let mut summary = Summary::new(options.icount);
    let start = Instant::now();
    let end = watch(&mut cmd, &scenario.expectations(), |line, seconds| {
        log.line(line, seconds);
        summary.hear(line, seconds);
    })?;
    println!("\n{}", summary.table());
    let ok = end.ok() || (options.no_expect && matches!(end, End::Ended(_)));
    let verdict = if ok { ui::paint("32", "ok") } else { ui::paint("31", "FAILED") };
    println!(
        "{verdict}: {} ({:.1} s; log: {})",
        end.describe(),
        start.elapsed().as_secs_f64(),
        layout.show(&path)
    );
    Ok(ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunOptions,
    }

    fn options(words: &[&str]) -> RunOptions {
        Cli::parse_from(std::iter::once("x").chain(words.iter().copied())).run
    }

    #[test]
    fn each_l1_and_its_l2_must_report() {
        let scenario = options(&["--l1s", "2", "--l2s", "3"]).scenario().unwrap();
        let lines = scenario.expectations().lines;
        let lines: Vec<_> = lines.iter().map(|(l, n)| (l.as_str(), *n)).collect();
        assert_eq!(
            lines,
            [
                ("(l1)*@testudo l2 userland", 3),
                ("(l1)*@testudo l1 done ok", 1),
                ("(l1b)*@testudo l2 userland", 3),
                ("(l1b)*@testudo l1 done ok", 1)
            ]
        );
    }

    #[test]
    fn a_bare_run_expects_no_prefix() {
        let bare = options(&["--bare", "--l1s", "2"]).scenario().unwrap();
        assert_eq!(bare.expect.len(), 2);
        assert!(bare.expectations().lines.iter().all(|(l, _)| l.starts_with("@testudo")));
        assert_eq!(options(&["--l1s", "2", "--memory", "512"]).machine_memory(), 1536);
    }

    #[test]
    fn odd_numbers_are_refused() {
        assert!(options(&["--l1s", "0"]).scenario().is_err());
        assert!(options(&["--guest", "dos"]).scenario().is_err());
        assert!(options(&["--memory", "4294967295", "--l1s", "26"]).machine_memory() > 0);
    }
}
