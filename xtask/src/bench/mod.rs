//! `xtask bench`: what operations of a nested guest cost, with Testudo and with KVM as L0 on the same emulated
//! machine. Time is counted in instructions (QEMU's `-icount`), so a run repeats to the digit.
use crate::guests::{initrd, kernels};
use crate::layout::Layout;
use crate::qemu::{Boot, Machine};
use crate::run::BuildArgs;
use crate::scenario::{DomainSpec, Scenario, Wanted, Workshop};
use crate::session::{Log, watch};
use crate::speech::Line;
use crate::ui;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::path::PathBuf;

/// Options of `cargo xtask bench`.
#[derive(Debug, Clone, clap::Args)]
pub struct BenchOptions {
    /// Write the rows to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Which runs: testudo, kvm, kvm-one-level, svm-l1, svm-l1-bare
    #[arg(long, value_delimiter = ',', default_value = "kvm-one-level,kvm,testudo", value_name = "LIST")]
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

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The machine.
    pub platform: String,
    /// Who is L0: `testudo`, `kvm`, or `none` (the bare emulator).
    pub l0: String,
    /// Where the operation was executed: 2 is a guest of L0's guest.
    pub level: u32,
    /// Which operation.
    pub operation: String,
    /// TSC ticks of a round trip, the pair of RDTSC included.
    pub ticks_median: u64,
    /// The best round.
    pub ticks_min: u64,
    /// World switches of L0 for one operation, where L0 counts them.
    pub l0_exits: Option<f64>,
}

/// A kind of run.
#[derive(Debug, Clone, Copy)]
struct Run {
    name: &'static str,
    l0: &'static str,
    /// Level of the bench's guest.
    level: u32,
}

const RUNS: &[Run] = &[
    Run { name: "kvm-one-level", l0: "kvm", level: 1 },
    Run { name: "kvm", l0: "kvm", level: 2 },
    Run { name: "testudo", l0: "testudo", level: 2 },
    Run { name: "svm-l1-bare", l0: "none", level: 1 },
    Run { name: "svm-l1", l0: "testudo", level: 2 },
];

/// A line `bench: OP min=N median=N p99=N rounds=N [l0_exits=X]`.
fn parse(line: &Line, run: &Run, platform: &str) -> Option<Row> {
    let rest = line.text.strip_prefix("bench: ")?;
    let (operation, rest) = rest.split_once(' ')?;
    let get = |key: &str| rest.split_whitespace().find_map(|w| w.strip_prefix(key)?.strip_prefix('='));
    // CPUID in L1's own user space happens one level up.
    let level = if operation == "user_cpuid" { run.level - 1 } else { run.level };
    Some(Row {
        platform: platform.into(),
        l0: run.l0.into(),
        level,
        operation: operation.into(),
        ticks_median: get("median")?.parse().ok()?,
        ticks_min: get("min")?.parse().ok()?,
        l0_exits: get("l0_exits").and_then(|x| x.parse().ok()),
    })
}

/// `xtask bench`; true if every run gave rows.
pub fn run(layout: &Layout, options: &BenchOptions) -> Result<bool> {
    let shop = Workshop::new(layout, options.build.clone());
    let platform = format!("qemu-tcg-{}-icount", options.cpu);
    let (mut rows, mut good) = (Vec::new(), true);
    for name in &options.l0 {
        let run = RUNS.iter().find(|r| r.name == name).with_context(|| {
            format!("--l0 {name}: known are {}", RUNS.iter().map(|r| r.name).collect::<Vec<_>>().join(", "))
        })?;
        let scenario = options.scenario(run);
        let machine = match run.name {
            "kvm" => options.kvm_machine(&shop)?,
            _ => scenario.prepare(&shop, "bench.iso")?.machine,
        };
        ui::step(&format!("measuring {name}"));
        let mut log = Log::create(&layout.target("bench-logs").join(format!("{name}.log")), false)?;
        let before = rows.len();
        let mut cmd = machine.command(layout, options.build.policy())?;
        let end = watch(&mut cmd, &scenario.expectations(), |line, seconds| {
            log.line(line, seconds);
            rows.extend(parse(line, run, &platform));
        })?;
        if !end.ok() || rows.len() == before {
            good = false;
            ui::step(&format!("{name} FAILED: {} (target/bench-logs/{name}.log)", end.describe()));
        }
    }
    print!("{}", table(&rows));
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_vec_pretty(&rows)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if rows.is_empty() {
        bail!("nothing was measured");
    }
    Ok(good)
}

impl BenchOptions {
    /// L1's own words.
    fn words(&self, steps: &str) -> String {
        let ops = self.ops.as_ref().map(|o| format!(" testudo.ops={o}")).unwrap_or_default();
        format!("testudo.l1={steps} testudo.rounds={}{ops}", self.rounds)
    }

    fn scenario(&self, run: &Run) -> Scenario {
        let bare_metal = run.name.starts_with("svm-l1");
        let domain = DomainSpec {
            guest: if bare_metal { "svm-l1" } else { "linux" }.into(),
            kernel: self.kernel.clone(),
            l2_kernel: self.kernel.clone(),
            cmdline: if bare_metal { "bench".into() } else { self.words("modules,info,bench") },
            ..DomainSpec::default()
        };
        Scenario {
            name: run.name.into(),
            bare: run.l0 != "testudo",
            machine: self.machine(),
            options: self.options.clone(),
            domain: vec![domain],
            expect: vec![Wanted::Once(if bare_metal { "bench: " } else { "@testudo l1 done ok" }.into())],
            limit: self.timeout,
            ..Scenario::default()
        }
    }

    fn machine(&self) -> Machine {
        Machine { cpu: self.cpu.clone(), smp: 1, memory: 2048, icount: true, ..Machine::default() }
    }

    /// Linux on the bare machine, whose KVM runs the same L1 image.
    fn kvm_machine(&self, shop: &Workshop) -> Result<Machine> {
        let l1 = DomainSpec {
            kernel: self.kernel.clone(),
            l2_kernel: self.kernel.clone(),
            ..DomainSpec::default()
        };
        let files = shop.guest(&l1)?;
        let kernel = shop.kernel(&self.kernel)?;
        let cmdline = format!("console=ttyS0 panic=-1 nokaslr {}", self.words("modules,info,bench"));
        let image = initrd::L0 {
            programs: &shop.programs()?,
            busybox: &kernels::busybox(shop.layout, shop.build.policy())?,
            kernel: &kernel,
            l1_kernel: &files.kernel,
            l1_initrd: files.ramdisk.as_deref().context("L1 has no ramdisk")?,
            cmdline: &cmdline,
        };
        let initrd = image.write(shop.layout, "initrd-l0-kvm")?;
        let cmdline = format!("console=ttyS0 panic=-1 nokaslr {}", self.l0_cmdline);
        Ok(Machine {
            boot: Boot::Kernel { image: kernel.image, initrd: Some(initrd), cmdline },
            ..self.machine()
        })
    }
}

/// One line per operation, one column per L0 and level.
fn table(rows: &[Row]) -> String {
    let mut columns: Vec<(&str, u32)> = rows.iter().map(|r| (r.l0.as_str(), r.level)).collect();
    columns.sort();
    columns.dedup();
    let mut operations: Vec<&str> = Vec::new();
    for row in rows {
        if !operations.contains(&row.operation.as_str()) {
            operations.push(&row.operation);
        }
    }
    let mut text = format!("{:<16}", "ticks: median");
    for (l0, level) in &columns {
        text += &format!(" {:>18}", format!("{l0}, level {level}"));
    }
    text.push('\n');
    for operation in operations {
        text += &format!("{operation:<16}");
        for (l0, level) in &columns {
            let row = rows.iter().find(|r| r.operation == operation && r.l0 == *l0 && r.level == *level);
            let cell = row.map(|r| r.ticks_median.to_string()).unwrap_or_default();
            text += &format!(" {cell:>18}");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const L2: Run = Run { name: "testudo", l0: "testudo", level: 2 };

    #[test]
    fn rows_are_read_from_the_guests_lines() {
        let line = Line::parse(b"(l1) bench: cpuid min=2000 median=2114 p99=3000 rounds=500");
        let row = parse(&line, &L2, "p").unwrap();
        assert_eq!(
            (row.operation.as_str(), row.level, row.ticks_median, row.ticks_min),
            ("cpuid", 2, 2114, 2000)
        );
        assert_eq!(row.l0_exits, None);
        let user = Line::parse(b"(l1) bench: user_cpuid min=1 median=2 p99=3 rounds=5 l0_exits=1.0");
        let row = parse(&user, &L2, "p").unwrap();
        assert_eq!((row.level, row.l0_exits), (1, Some(1.0)));
        assert_eq!(parse(&Line::parse(b"bench: broken median=x"), &L2, "p"), None);
    }

    #[test]
    fn the_table_has_a_column_per_level() {
        let row = |l0: &str, level, operation: &str, ticks_median| Row {
            platform: "p".into(),
            l0: l0.into(),
            level,
            operation: operation.into(),
            ticks_median,
            ticks_min: 1,
            l0_exits: None,
        };
        let text = table(&[
            row("kvm", 2, "cpuid", 29383),
            row("testudo", 2, "cpuid", 9000),
            row("kvm", 1, "hlt", 7),
        ]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].ends_with("kvm, level 1       kvm, level 2   testudo, level 2"));
        assert!(lines[1].contains("29383") && lines[1].ends_with("9000"));
        assert!(lines[2].ends_with(" 7"));
    }
}
