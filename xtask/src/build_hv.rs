//! `xtask build`: the hypervisor's image.
use crate::layout::Layout;
use crate::setup::Policy;
use crate::{elf, lock, proc, toolchain, ui};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

/// How the hypervisor is built.
#[derive(Debug, Clone, Default)]
pub struct HvOptions {
    /// Without optimisation, with debug assertions.
    pub debug: bool,
    /// Cargo features of the `hv` crate.
    pub features: Vec<String>,
}

/// The files of a built hypervisor.
#[derive(Debug, Clone)]
pub struct Hv {
    /// What is copied to /boot.
    pub image: PathBuf,
    /// As it was linked, with symbols and debug information, for a debugger.
    pub debug: PathBuf,
}

/// The linker script of the image, from the repository's root, unless the crate's build script gives it.
const LINK_SCRIPT: &str = "hv/x86/link.ld";

/// How the image is compiled: linked at its fixed address in the upper half, with frame pointers for traces.
pub const FLAGS: &[&str] =
    &["-Crelocation-model=static", "-Ccode-model=kernel", "-Cforce-frame-pointers=yes"];

/// Builds the hypervisor into `target/testudo`.
pub fn build(layout: &Layout, options: &HvOptions, policy: Policy) -> Result<Hv> {
    let toolchain = toolchain::find(layout, policy)?;
    let _guard = lock::images(layout)?;
    let id = build_id(layout);
    ui::step(&format!("building testudo {id} with rustc {}", toolchain.title()));
    let mut flags = FLAGS.to_vec();
    let script = format!("-Clink-arg=-T{LINK_SCRIPT}");
    if layout.repo(LINK_SCRIPT).is_file() && !layout.repo("hv/build.rs").is_file() {
        flags.push(&script);
    }
    let mut cmd = toolchain.cargo(layout, "build", &flags);
    cmd.args(["--package", "testudo"]).current_dir(layout.root()).env("TESTUDO_BUILD_ID", &id);
    let profile = if options.debug { "debug" } else { "release" };
    if !options.debug {
        cmd.arg("--release");
    }
    if !options.features.is_empty() {
        cmd.arg("--features").arg(options.features.join(","));
    }
    if policy.offline {
        cmd.arg("--offline");
    }
    proc::run(&mut cmd)?;
    let built = toolchain.target_dir(layout).join(toolchain::TARGET).join(profile).join("testudo");
    let bytes = std::fs::read(&built).with_context(|| format!("cargo left no {}", built.display()))?;
    let hv = Hv { image: layout.out("testudo"), debug: layout.out("testudo.debug") };
    let (stripped, names) = elf::strip(&bytes).context("the linked image is no usable ELF")?;
    let sizes = (stripped.len() as u64, bytes.len() as u64);
    write_if_new(&hv.image, &stripped)?;
    write_if_new(&hv.debug, &bytes)?;
    ui::step(&format!(
        "{} ({}, {names} names; for a debugger: {}, {})",
        layout.show(&hv.image),
        ui::size(sizes.0),
        layout.show(&hv.debug),
        ui::size(sizes.1)
    ));
    Ok(hv)
}

/// Replaces a file when its contents differ, so that what depends on it is rebuilt only then.
pub fn write_if_new(path: &std::path::Path, bytes: &[u8]) -> Result<bool> {
    if std::fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let new = path.with_extension(format!("new{}", std::process::id()));
    std::fs::write(&new, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    std::fs::rename(&new, path)?;
    Ok(true)
}

/// What this build is called: version and commit, with `+` when sources differ from it.
fn build_id(layout: &Layout) -> String {
    let git = |args: &[&str]| proc::output(Command::new("git").args(args).current_dir(layout.root())).ok();
    let version = env!("CARGO_PKG_VERSION");
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return version.to_string() };
    let sources = ["hv", "stage2", "vsvm", "vvmx", "boot", "Cargo.toml", "Cargo.lock"];
    let dirty = git(&[["status", "--porcelain", "--"].as_slice(), &sources].concat())
        .is_some_and(|s| !s.trim().is_empty());
    format!("{version}-{}{}", commit.trim(), if dirty { "+" } else { "" })
}
