//! Every chore of the project is a subcommand.
#![forbid(unsafe_code)]

mod bench;
mod build_hv;
mod deb;
mod elf;
mod fuzz;
mod guests;
mod image;
mod interactive;
mod judge;
mod layout;
mod lint;
mod lock;
mod matrix;
mod proc;
mod qemu;
mod run;
mod scenario;
mod session;
mod setup;
mod speech;
mod test;
mod toolchain;
mod tools;
mod ui;

use anyhow::Result;
use bench::BenchOptions;
use clap::{Parser, Subcommand};
use fuzz::FuzzOptions;
use layout::Layout;
use run::{BuildArgs, RunOptions};
use setup::Policy;
use std::path::PathBuf;
use std::process::ExitCode;
use test::TestOptions;

/// Testudo's chores.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", version, arg_required_else_help = true)]
struct Cli {
    /// The QEMU to use (also TESTUDO_QEMU)
    #[arg(long, global = true, value_name = "PATH")]
    qemu: Option<PathBuf>,
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Find or fetch every tool and guest package; nothing is installed on the system
    Setup {
        /// Only list each tool with version and source
        #[arg(long)]
        check: bool,
        /// Use what is there; touch no network
        #[arg(long)]
        offline: bool,
    },
    /// Build the hypervisor and the guests
    Build {
        /// What to build (default: all)
        #[arg(value_parser = ["hv", "guests"])]
        parts: Vec<String>,
        #[command(flatten)]
        build: BuildArgs,
    },
    /// Make a bootable ISO, and the files and the GRUB stanza for a real machine
    Image(#[command(flatten)] RunOptions),
    /// Build everything, boot the whole machine in QEMU and show it
    Run(#[command(flatten)] RunOptions),
    /// Run formatting, lints, host tests and system tests
    Test(#[command(flatten)] TestOptions),
    /// Measure what operations of nested guests cost, with Testudo and with KVM as L0
    Bench(#[command(flatten)] BenchOptions),
    /// Run fuzz targets
    Fuzz(#[command(flatten)] FuzzOptions),
    /// Everything: formatting, lints, all tests, a short run of each fuzz target, sizes
    Ci(#[command(flatten)] TestOptions),
    /// Check the rules of the house that no compiler knows
    Lint {
        /// Also list the longest source files
        #[arg(long)]
        lengths: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = Layout::find().and_then(|layout| chore(&layout, cli));
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{}: {e:#}", ui::paint("31", "error"));
            ExitCode::FAILURE
        }
    }
}

fn chore(layout: &Layout, cli: Cli) -> Result<bool> {
    if let Some(path) = cli.qemu {
        tools::give_qemu(path);
    }
    match cli.chore {
        Chore::Setup { check, offline } => setup::setup(layout, check, Policy { offline }).map(|()| true),
        Chore::Build { parts, build } => {
            let all = parts.is_empty();
            if all || parts.iter().any(|p| p == "hv") {
                build.hv(layout)?;
            }
            if all || parts.iter().any(|p| p == "guests") {
                guests::programs::linux(layout, build.policy())?;
                guests::programs::svm_l1(layout, build.policy())?;
            }
            Ok(true)
        }
        Chore::Image(options) => {
            let shop = scenario::Workshop::new(layout, options.build.clone());
            let prepared = options.scenario()?.prepare(&shop, "testudo.iso")?;
            match (&prepared.hv, &prepared.machine.boot) {
                (Some(hv), qemu::Boot::Iso(iso)) => image::explain(layout, iso, &hv.image, &prepared.config),
                _ => anyhow::bail!("`image --bare` makes no image"),
            }
            Ok(true)
        }
        Chore::Run(options) => run::run(layout, &options),
        Chore::Test(options) => test::run(layout, &options),
        Chore::Bench(options) => bench::run(layout, &options),
        Chore::Fuzz(options) => fuzz::run(layout, &options),
        Chore::Ci(options) => ci(layout, options),
        Chore::Lint { lengths } => lint::run(layout, lengths),
    }
}

/// All of it. Fuzzing and sizes come first, so that the last line is the tests' summary.
fn ci(layout: &Layout, options: TestOptions) -> Result<bool> {
    let fuzzed = fuzz::run(layout, &FuzzOptions { targets: Vec::new(), list: false, seconds: 20 })?;
    let hv = options.build.hv(layout)?;
    println!("size of the image: {}", ui::size(hv.image.metadata()?.len()));
    let tested = test::run(layout, &TestOptions { full: true, ..options })?;
    if !fuzzed {
        ui::step("a fuzz target failed: see above");
    }
    Ok(fuzzed && tested)
}
