//! Building our own guests: the workspace below `guests/`.
use crate::layout::Layout;
use crate::setup::Policy;
use crate::{lock, proc, toolchain, ui};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

/// The guests' programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `/init` of the Linux images.
    pub init: PathBuf,
    /// The monitor that runs in L1.
    pub vmm: PathBuf,
}

/// The Linux programs are for this target, whatever the host's default is.
const LINUX: &str = "x86_64-unknown-linux-gnu";

/// Builds the static Linux programs.
pub fn linux(layout: &Layout, policy: Policy) -> Result<Programs> {
    let _guard = lock::images(layout)?;
    ui::step("building the guests' Linux programs");
    let target = layout.target("guests");
    let mut cmd = Command::new(proc::which("cargo").context("no cargo in PATH")?);
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO", "RUSTC", "CARGO_BUILD_TARGET"] {
        cmd.env_remove(name);
    }
    cmd.args(["build", "--release", "--quiet", "--target", LINUX, "-p", "testudo-init", "-p", "testudo-vmm"]);
    if policy.offline {
        cmd.arg("--offline");
    }
    proc::run(cmd.env("CARGO_TARGET_DIR", &target).current_dir(layout.repo("guests")))?;
    let out = target.join(LINUX).join("release");
    Ok(Programs { init: out.join("init"), vmm: out.join("vmm") })
}

/// Builds the bare-metal L1 and gives its ELF file.
pub fn svm_l1(layout: &Layout, policy: Policy) -> Result<PathBuf> {
    let toolchain = toolchain::find(layout, policy)?;
    let _guard = lock::images(layout)?;
    ui::step("building the bare-metal L1");
    // The code model of the target's own `core`, in place of the folder's: with another, they don't link.
    // Its addresses are sign-extended 32 bits, which low memory satisfies as well.
    let mut cmd = toolchain.cargo(layout, "build", &["-Crelocation-model=static", "-Ccode-model=kernel"]);
    cmd.args(["--release", "--quiet"]).current_dir(layout.repo("guests/svm-l1"));
    if policy.offline {
        cmd.arg("--offline");
    }
    proc::run(&mut cmd)?;
    Ok(toolchain.target_dir(layout).join(toolchain::TARGET).join("release/svm-l1"))
}
