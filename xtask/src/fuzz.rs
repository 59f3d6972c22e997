//! `xtask fuzz`: the targets of `fuzz/`, with libFuzzer, on a stable toolchain.
use crate::layout::Layout;
use crate::{proc, ui};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::path::Path;
use std::process::Command;

/// Options of `cargo xtask fuzz`.
#[derive(Debug, Clone, clap::Args)]
pub struct FuzzOptions {
    /// Targets to run (default: all)
    #[arg(value_name = "TARGET")]
    pub targets: Vec<String>,
    /// List the targets and end
    #[arg(long)]
    pub list: bool,
    /// Seconds for each target
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub seconds: u32,
}

/// What makes the compiler report coverage to libFuzzer, as cargo-fuzz passes it.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// With `--target`, build scripts are free of the instrumentation.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The targets, from the manifest.
fn targets(layout: &Layout) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Manifest {
        bin: Vec<Bin>,
    }
    #[derive(Deserialize)]
    struct Bin {
        name: String,
    }
    let path = layout.repo("fuzz/Cargo.toml");
    let text = std::fs::read_to_string(&path).with_context(|| layout.show(&path))?;
    let manifest: Manifest = basic_toml::from_str(&text)?;
    Ok(manifest.bin.into_iter().map(|b| b.name).collect())
}

/// `xtask fuzz`; true if no target found anything.
pub fn run(layout: &Layout, options: &FuzzOptions) -> Result<bool> {
    let all = targets(layout)?;
    if options.list {
        println!("{}", all.join("\n"));
        return Ok(true);
    }
    if let Some(unknown) = options.targets.iter().find(|t| !all.contains(t)) {
        bail!("no fuzz target {unknown} (known: {})", all.join(", "));
    }
    let chosen = if options.targets.is_empty() { &all } else { &options.targets };
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--release", "--target", TARGET]).current_dir(layout.repo("fuzz"));
    for name in chosen {
        cargo.args(["--bin", name]);
    }
    ui::step("building the fuzz targets");
    proc::run(
        cargo.env("CARGO_TARGET_DIR", layout.target("fuzz")).env("RUSTFLAGS", FLAGS).env_remove("CARGO"),
    )?;
    let mut good = true;
    for name in chosen {
        good &= one(layout, name, options.seconds)?;
    }
    Ok(good)
}

fn one(layout: &Layout, name: &str, seconds: u32) -> Result<bool> {
    let (corpus, artifacts) =
        (layout.repo("fuzz/corpus").join(name), layout.repo("fuzz/artifacts").join(name));
    std::fs::create_dir_all(&corpus)?;
    std::fs::create_dir_all(&artifacts)?;
    ui::step(&format!("fuzzing {name} for {seconds} s"));
    let mut cmd = Command::new(layout.target("fuzz").join(TARGET).join("release").join(name));
    cmd.arg(format!("-max_total_time={seconds}")).args([
        "-max_len=8192",
        "-timeout=10",
        "-rss_limit_mb=2048",
    ]);
    cmd.arg("-print_final_stats=1").arg(format!("-artifact_prefix={}/", artifacts.display())).arg(&corpus);
    let (ok, said) = proc::lines(&mut cmd, |_| {})?;
    if ok {
        let stat = |key: &str| {
            said.lines()
                .find_map(|l| l.strip_prefix(&format!("stat::{key}:")))
                .unwrap_or("")
                .trim()
                .to_string()
        };
        println!(
            "{:<16} ok: {} runs, {} inputs kept",
            name,
            stat("number_of_executed_units"),
            count(&corpus)
        );
    } else {
        println!("{name:<16} FAILED:\n{}\ninput: below {}", proc::tail(&said, 30), layout.show(&artifacts));
    }
    Ok(ok)
}

fn count(dir: &Path) -> usize {
    std::fs::read_dir(dir).map(|d| d.count()).unwrap_or(0)
}
