//! Checks that need no machine: formatting, lints, documentation, unit tests, and that everything builds.
use super::{Verdict, log_path};
use crate::build_hv;
use crate::guests::programs;
use crate::layout::Layout;
use crate::run::BuildArgs;
use crate::{lint, proc, toolchain};
use anyhow::Result;
use std::path::Path;
use std::process::Command;

/// One check.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    run: fn(&Layout, &BuildArgs) -> Result<Step>,
}

/// What a check is made of.
enum Step {
    /// Programs to run in order.
    Commands(Vec<Command>),
    /// Problems found by ourselves.
    Problems(Vec<String>),
    /// Not possible here.
    Skip(String),
}

/// The checks, cheapest first.
pub const CHECKS: &[Check] = &[
    Check { name: "fmt", about: "sources are formatted", run: fmt },
    Check {
        name: "arrows",
        about: "rules of the house: which crate uses which, no unsafe in pure crates, text",
        run: arrows,
    },
    Check { name: "unit", about: "unit and property tests on the host", run: unit },
    Check { name: "clippy", about: "clippy on the host's crates, no warnings", run: clippy },
    Check { name: "doc", about: "documentation builds without warnings", run: doc },
    Check { name: "build-hv", about: "the hypervisor's image builds for bare metal", run: build_image },
    Check { name: "clippy-bare", about: "clippy on the image for bare metal, no warnings", run: clippy_bare },
    Check { name: "build-guests", about: "the guests build; clippy on them, no warnings", run: build_guests },
];

impl Check {
    /// Runs it, with what it says in its log.
    pub fn run(&self, layout: &Layout, build: &BuildArgs) -> Verdict {
        let path = log_path(layout, self.name);
        match (self.run)(layout, build).and_then(|step| carry_out(step, &path)) {
            Ok(verdict) => verdict,
            Err(e) => {
                let _ = write(&path, &format!("{e:#}\n"));
                Verdict::Failed("see its log".into())
            }
        }
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    Ok(std::fs::write(path, text)?)
}

fn carry_out(step: Step, log: &Path) -> Result<Verdict> {
    match step {
        Step::Skip(why) => Ok(Verdict::Skipped(why)),
        Step::Problems(problems) => {
            write(log, &(problems.join("\n") + "\n"))?;
            Ok(if problems.is_empty() {
                Verdict::Passed
            } else {
                Verdict::Failed(format!("{} problems", problems.len()))
            })
        }
        Step::Commands(commands) => {
            let mut said = String::new();
            for mut cmd in commands {
                said += &format!("$ {}\n", proc::show(&cmd));
                let (ok, text) = proc::lines(&mut cmd, |_| {})?;
                said += &text;
                if !ok {
                    write(log, &said)?;
                    return Ok(Verdict::Failed(format!("`{}`", short(&cmd))));
                }
            }
            write(log, &said)?;
            Ok(Verdict::Passed)
        }
    }
}

/// A command without its arguments' tail, for one line.
fn short(cmd: &Command) -> String {
    proc::show(cmd)
        .split_whitespace()
        .map(|w| w.rsplit('/').next().unwrap_or(w))
        .take(5)
        .collect::<Vec<_>>()
        .join(" ")
}

fn cargo(layout: &Layout, dir: &str, words: &[&str]) -> Command {
    let mut cmd = Command::new("cargo");
    cmd.args(words).current_dir(layout.repo(dir)).env("CARGO_TERM_COLOR", "never").env_remove("CARGO");
    cmd
}

fn has_component(layout: &Layout, name: &str) -> bool {
    proc::output(&mut cargo(layout, ".", &[name, "--version"])).is_ok()
}

fn fmt(layout: &Layout, _: &BuildArgs) -> Result<Step> {
    if !has_component(layout, "fmt") {
        return Ok(Step::Skip("rustfmt is not installed".into()));
    }
    let words = ["fmt", "--all", "--", "--check", "--color", "never"];
    Ok(Step::Commands(vec![cargo(layout, ".", &words), cargo(layout, "guests", &words)]))
}

fn arrows(layout: &Layout, _: &BuildArgs) -> Result<Step> {
    Ok(Step::Problems(lint::problems(layout)?))
}

fn unit(layout: &Layout, _: &BuildArgs) -> Result<Step> {
    // nextest runs no documentation tests.
    Ok(Step::Commands(if has_component(layout, "nextest") {
        let words = ["nextest", "run", "--config-file", "tests/nextest.toml"];
        vec![limited(cargo(layout, ".", &words)), limited(cargo(layout, ".", &["test", "--doc", "--quiet"]))]
    } else {
        vec![limited(cargo(layout, ".", &["test", "--no-fail-fast", "--quiet"]))]
    }))
}

/// The same command, ended after an hour: a test that hangs must not stop the rows after it.
fn limited(cmd: Command) -> Command {
    let Some(timeout) = proc::which("timeout") else { return cmd };
    let mut outer = Command::new(timeout);
    outer.args(["--foreground", "--kill-after=30", "1h"]).arg(cmd.get_program()).args(cmd.get_args());
    if let Some(dir) = cmd.get_current_dir() {
        outer.current_dir(dir);
    }
    for (name, value) in cmd.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

fn clippy(layout: &Layout, _: &BuildArgs) -> Result<Step> {
    if !has_component(layout, "clippy") {
        return Ok(Step::Skip("clippy is not installed".into()));
    }
    Ok(Step::Commands(vec![cargo(
        layout,
        ".",
        &["clippy", "--quiet", "--all-targets", "--", "-D", "warnings"],
    )]))
}

fn clippy_bare(layout: &Layout, build: &BuildArgs) -> Result<Step> {
    let toolchain = toolchain::find(layout, build.policy())?;
    if !toolchain.has_clippy() {
        return Ok(Step::Skip(format!("the toolchain {} has no clippy", toolchain.title())));
    }
    let mut cmd = toolchain.cargo(layout, "clippy", build_hv::FLAGS);
    cmd.args(["--quiet", "--release", "--package", "testudo", "--package", "hv-x86", "--", "-D", "warnings"]);
    cmd.current_dir(layout.root()).env("CARGO_TERM_COLOR", "never");
    Ok(Step::Commands(vec![cmd]))
}

fn doc(layout: &Layout, _: &BuildArgs) -> Result<Step> {
    let mut cmd = cargo(layout, ".", &["doc", "--no-deps", "--quiet"]);
    cmd.env("RUSTDOCFLAGS", "-D warnings");
    Ok(Step::Commands(vec![cmd]))
}

fn build_image(layout: &Layout, build: &BuildArgs) -> Result<Step> {
    build.hv(layout)?;
    Ok(Step::Problems(Vec::new()))
}

fn build_guests(layout: &Layout, build: &BuildArgs) -> Result<Step> {
    programs::linux(layout, build.policy())?;
    programs::svm_l1(layout, build.policy())?;
    if !has_component(layout, "clippy") {
        return Ok(Step::Problems(Vec::new()));
    }
    let mut cmd = cargo(layout, "guests", &["clippy", "--quiet", "--release", "--", "-D", "warnings"]);
    cmd.env("CARGO_TARGET_DIR", layout.target("guests"));
    Ok(Step::Commands(vec![cmd]))
}
