//! `xtask bench`: what operations of a nested guest cost, with Testudo and with KVM as L0 on the same emulated
//! machine. Time is counted in instructions (QEMU's `-icount`), so a run repeats to the digit.
mod rows;
mod table;

use crate::guests::{initrd, kernels, programs};
use crate::layout::Layout;
use crate::qemu::{Boot, Machine};
use crate::run::BuildArgs;
use crate::scenario::{DomainSpec, Scenario, Wanted, Workshop};
use crate::session::{Log, watch};
use crate::ui;
use anyhow::{Context, Result, bail};
use rows::{Heard, RUNS, Run};
use std::path::PathBuf;

/// Options of `cargo xtask bench`.
///
/// The exit status is 1 if a run failed, or if a number of Testudo's is above its `must` in the last table. These are
/// instructions, exits and bytes, counted on an emulated machine: how fast this one is has no part in them.
#[derive(Debug, Clone, clap::Args)]
pub struct BenchOptions {
    /// Write the rows to this file, as a list of {platform, l0, level, mode, operation, ticks_median, ticks_min,
    /// l0_exits}
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Which runs: kvm-one-level, kvm, testudo, svm-l1, svm-l1-bare
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "kvm-one-level,kvm,testudo,svm-l1,svm-l1-bare",
        value_name = "LIST"
    )]
    pub l0: Vec<String>,
    /// Kernel of L1, and of L0 where KVM is L0
    #[arg(long, default_value = "6.1", value_name = "VERSION|PATH")]
    pub kernel: String,
    /// Operations (see guests/README.md); default: all
    #[arg(long, value_name = "LIST")]
    pub ops: Option<String>,
    /// Rounds of each operation
    #[arg(long, default_value_t = 500, value_name = "N")]
    pub rounds: u32,
    /// QEMU's CPU model
    #[arg(long, default_value = "max", value_name = "MODEL")]
    pub cpu: String,
    /// More words for the command line of the Linux whose KVM is L0; without mitigations it is at its fastest
    #[arg(long, default_value = "mitigations=off", value_name = "WORDS")]
    pub l0_cmdline: String,
    /// Words for Testudo's command line
    #[arg(long, default_value = "", value_name = "WORDS")]
    pub options: String,
    /// Seconds for each run
    #[arg(long, default_value_t = 900, value_name = "SECONDS")]
    pub timeout: u64,
    /// How the hypervisor is built.
    #[command(flatten)]
    pub build: BuildArgs,
}

/// `xtask bench`; true if every run gave rows and no `must` was missed.
pub fn run(layout: &Layout, options: &BenchOptions) -> Result<bool> {
    let shop = Workshop::new(layout, options.build.clone());
    let mut heard = Heard::new(format!("qemu-tcg-{}-icount", options.cpu));
    let mut good = true;
    for name in &options.l0 {
        let run = RUNS.iter().find(|r| r.name == name).with_context(|| {
            format!("--l0 {name}: known are {}", RUNS.iter().map(|r| r.name).collect::<Vec<_>>().join(", "))
        })?;
        good &= measure(&shop, options, run, &mut heard)?;
    }
    let (verdicts, met) = table::verdicts(&heard);
    print!("{}{verdicts}", table::text(&heard));
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_vec_pretty(&heard.for_file())?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if heard.rows.is_empty() {
        bail!("nothing was measured");
    }
    Ok(good && met)
}

/// One run; whether it came to its end.
fn measure(shop: &Workshop, options: &BenchOptions, run: &Run, heard: &mut Heard) -> Result<bool> {
    let scenario = options.scenario(run);
    let machine = match run.name {
        "kvm" => options.kvm_machine(shop)?,
        _ => {
            let prepared = scenario.prepare(shop, "bench.iso")?;
            if let Some(hv) = &prepared.hv {
                let size = hv.image.metadata()?.len().div_ceil(1024);
                heard.facts.insert((run.name.into(), "image_kb".into()), size);
            }
            prepared.machine
        }
    };
    ui::step(&format!("measuring {}: {}", run.name, run.about));
    let mut log = Log::create(&shop.layout.target("bench-logs").join(format!("{}.log", run.name)), false)?;
    let before = heard.rows.len();
    let mut cmd = machine.command(shop.layout, options.build.policy())?;
    let end = watch(&mut cmd, &scenario.expectations(), |line, seconds| {
        log.line(line, seconds);
        heard.hear(line, run);
    })?;
    let good = end.ok() && heard.rows.len() != before;
    if !good {
        ui::step(&format!("{} FAILED: {} (target/bench-logs/{}.log)", run.name, end.describe(), run.name));
    }
    Ok(good)
}

/// Memory of the machine in MiB. On so much, Testudo's own is measured.
const MACHINE_MEMORY: u32 = 4096;
/// Memory of L1 in MiB, under either L0.
const L1_MEMORY: u32 = 768;

impl BenchOptions {
    /// What Linux as L1 does; `exits`: who counts L0's.
    fn words(&self, steps: &str, exits: &str) -> String {
        let ops = self.ops.as_ref().map(|o| format!(" testudo.ops={o}")).unwrap_or_default();
        let rounds = self.rounds;
        format!(
            "quiet testudo.l1={steps} testudo.rounds={rounds} testudo.exits={exits} testudo.l2args=quiet{ops}"
        )
    }

    /// What svm-l1 does.
    fn svm_words(&self, exits: &str) -> String {
        let exits = if exits.is_empty() { String::new() } else { format!(" exits={exits}") };
        format!("bench rounds={}{exits}", self.rounds)
    }

    fn scenario(&self, run: &Run) -> Scenario {
        let testudo = run.l0 == "testudo";
        let cmdline = match run.name {
            "svm-l1" => self.svm_words("cpuid"),
            "svm-l1-bare" => self.svm_words(""),
            "kvm-one-level" => self.words("modules,info,bench", "perf"),
            _ => self.words("modules,info,bench,l2", "cpuid"),
        };
        let domain = DomainSpec {
            guest: if run.is_svm() { "svm-l1" } else { "linux" }.into(),
            kernel: self.kernel.clone(),
            l2_kernel: self.kernel.clone(),
            memory: L1_MEMORY,
            options: "nested=on counters=on".into(),
            cmdline,
            ..DomainSpec::default()
        };
        let last_of_svm = "bench: vmrun_vmexit_clean".to_string();
        let done = "@testudo l1 done ok".to_string();
        let lines = match run.name {
            "kvm" => vec![done, last_of_svm],
            _ if run.is_svm() => vec![last_of_svm],
            _ => vec![done],
        };
        Scenario {
            name: run.name.into(),
            bare: !testudo,
            machine: self.machine(),
            options: self.options.clone(),
            domain: vec![domain],
            expect: lines.into_iter().map(Wanted::Once).collect(),
            limit: self.timeout,
            ..Scenario::default()
        }
    }

    fn machine(&self) -> Machine {
        Machine { cpu: self.cpu.clone(), smp: 1, memory: MACHINE_MEMORY, icount: true, ..Machine::default() }
    }

    /// Linux on the bare machine, whose KVM runs the same L1 image, then svm-l1.
    fn kvm_machine(&self, shop: &Workshop) -> Result<Machine> {
        let l1 = DomainSpec {
            kernel: self.kernel.clone(),
            l2_kernel: self.kernel.clone(),
            ..DomainSpec::default()
        };
        let files = shop.guest(&l1)?;
        let kernel = shop.kernel(&self.kernel)?;
        let words = self.words("modules,info,bench,l2", "ports");
        let image = initrd::L0 {
            programs: &shop.programs()?,
            busybox: &kernels::busybox(shop.layout, shop.build.policy())?,
            kernel: &kernel,
            l1_kernel: &files.kernel,
            l1_initrd: files.ramdisk.as_deref().context("L1 has no ramdisk")?,
            l1_memory: L1_MEMORY,
            cmdline: &format!("console=ttyS0 panic=-1 nokaslr {words}"),
            svm_l1: &programs::svm_l1(shop.layout, shop.build.policy())?,
            svm_cmdline: &self.svm_words("ports"),
        };
        let initrd = image.write(shop.layout, "initrd-l0-kvm")?;
        let cmdline = format!("console=ttyS0 panic=-1 nokaslr quiet {}", self.l0_cmdline);
        Ok(Machine {
            boot: Boot::Kernel { image: kernel.image, initrd: Some(initrd), cmdline },
            ..self.machine()
        })
    }
}
