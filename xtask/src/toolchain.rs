//! The Rust toolchain for bare metal: the machine's own if it has the target or its sources, otherwise
//! Debian's from the private root, which builds `core` itself.
use crate::layout::Layout;
use crate::proc;
use crate::setup::{self, Group, Policy, tools_root};
use crate::tools::{self, Found, Source};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The target the hypervisor and bare-metal guests are built for.
pub const TARGET: &str = "x86_64-unknown-none";

/// The least compiler version that builds the sources.
const LEAST: (u32, u32) = (1, 95);

/// How the bare-metal target is built.
#[derive(Debug, Clone)]
pub struct Toolchain {
    kind: Kind,
    cargo: PathBuf,
    rustc: PathBuf,
    linker: Option<PathBuf>,
    version: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The compiler has `core` for the target.
    Target,
    /// The compiler is the machine's, `core` is built from its sources.
    Sources,
    /// Debian's compiler in the private root; `core` is built from its sources.
    Debian,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Target => "rustup-target",
            Kind::Sources => "rust-src",
            Kind::Debian => "debian",
        }
    }
}

impl Toolchain {
    /// A `cargo SUBCOMMAND --target …` for bare metal with the compiler flags `flags`, in a target
    /// folder of its own (each kind of toolchain keeps its own, since their artifacts don't mix).
    pub fn cargo(&self, layout: &Layout, subcommand: &str, flags: &[&str]) -> Command {
        let mut cmd = Command::new(&self.cargo);
        // What rustup or an outer cargo set for the host's build must not reach this one.
        for name in [
            "RUSTUP_TOOLCHAIN",
            "CARGO",
            "RUSTC",
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC_WRAPPER",
            "CARGO_BUILD_TARGET",
        ] {
            cmd.env_remove(name);
        }
        cmd.env("RUSTC", &self.rustc).env("CARGO_TARGET_DIR", self.target_dir(layout));
        // RUSTFLAGS goes before every configuration file, and with --target it is for the target only.
        cmd.env("RUSTFLAGS", flags.join(" "));
        if let Some(linker) = &self.linker {
            cmd.env("CARGO_TARGET_X86_64_UNKNOWN_NONE_LINKER", linker);
        }
        cmd.args([subcommand, "--target", TARGET]);
        if self.kind != Kind::Target {
            cmd.env("RUSTC_BOOTSTRAP", "1");
            cmd.args([
                "-Zbuild-std=core,alloc,compiler_builtins",
                "-Zbuild-std-features=compiler-builtins-mem",
            ]);
        }
        cmd
    }

    /// Where its artifacts are.
    pub fn target_dir(&self, layout: &Layout) -> PathBuf {
        layout.target("hv").join(self.kind.name())
    }

    /// Whether `cargo clippy` works with it: Debian's has no clippy of the same version.
    pub fn has_clippy(&self) -> bool {
        self.kind == Kind::Target && self.rustc.with_file_name("cargo-clippy").exists()
    }

    /// One line for people.
    pub fn title(&self) -> String {
        format!("{} ({})", self.version, self.kind.name())
    }
}

/// Finds the toolchain, fetching Debian's if the machine's own can't build the target.
pub fn find(layout: &Layout, policy: Policy) -> Result<Toolchain> {
    let wanted = std::env::var("TESTUDO_TOOLCHAIN").unwrap_or_default();
    if !["", "rustup", "debian"].contains(&wanted.as_str()) {
        bail!("TESTUDO_TOOLCHAIN={wanted}: `rustup` and `debian` are known");
    }
    if wanted != "debian" {
        if let Some(toolchain) = machine(layout) {
            return Ok(toolchain);
        }
        let rustup = proc::which("rustup");
        if let (Some(rustup), false) = (rustup, policy.offline) {
            crate::ui::step("asking rustup for the target x86_64-unknown-none (at most 20 s)");
            let mut add = Command::new(rustup);
            add.args(["target", "add", TARGET]).current_dir(layout.root());
            if proc::quick(&mut add, Duration::from_secs(20))
                && let Some(toolchain) = machine(layout)
            {
                return Ok(toolchain);
            }
        }
    }
    if wanted == "rustup" {
        bail!("no toolchain of this machine has the target {TARGET} or the component rust-src");
    }
    if let Some(toolchain) = debian(layout)? {
        return Ok(toolchain);
    }
    setup::install(layout, Group::Rust, policy).map_err(|e| {
        anyhow::anyhow!(
            "no Rust toolchain for the target {TARGET}: neither `rustup target add {TARGET}` nor Debian's rustc-web \
             could be had.\n{e:#}"
        )
    })?;
    debian(layout)?.context("Debian's rustc-web was unpacked but does not start, or is older than 1.95")
}

/// What `find` would use, without fetching.
pub fn describe(layout: &Layout) -> Found {
    let wanted = std::env::var("TESTUDO_TOOLCHAIN").unwrap_or_default();
    let own = if wanted == "debian" { None } else { machine(layout) };
    let (toolchain, source) = match own {
        Some(toolchain) => (Some(toolchain), Source::System),
        None => (debian(layout).ok().flatten(), Source::Private),
    };
    match toolchain {
        Some(t) => Found { source, version: t.title(), path: Some(t.rustc) },
        None => Found::missing(),
    }
}

/// The machine's own toolchain, if it can build the target.
fn machine(layout: &Layout) -> Option<Toolchain> {
    let rustc = proc::which("rustc")?;
    let ask = |args: &[&str]| {
        // RUSTUP_TOOLCHAIN of an outer cargo names the host's build; the folder's own choice counts.
        let mut cmd = Command::new(&rustc);
        proc::output(cmd.args(args).current_dir(layout.root())).ok()
    };
    let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?.trim());
    let version = ask(&["--version"])?.split_whitespace().nth(1)?.to_string();
    if tools::parse_version(&version)? < LEAST {
        return None;
    }
    let bin = |name: &str| Some(sysroot.join("bin").join(name)).filter(|p| proc::is_executable(p));
    let (cargo, rustc) = (bin("cargo").or_else(|| proc::which("cargo"))?, bin("rustc").unwrap_or(rustc));
    let has_core = std::fs::read_dir(sysroot.join("lib/rustlib").join(TARGET).join("lib"))
        .is_ok_and(|files| files.flatten().any(|f| f.file_name().to_string_lossy().starts_with("libcore-")));
    let has_sources = sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists();
    let kind = match (has_core, has_sources) {
        (true, _) => Kind::Target,
        (false, true) => Kind::Sources,
        _ => return None,
    };
    Some(Toolchain { kind, cargo, rustc, linker: None, version })
}

/// Debian's toolchain in the private root, if it is there and starts.
fn debian(layout: &Layout) -> Result<Option<Toolchain>> {
    let root = tools_root(layout);
    let bin = layout.tools("bin/rust");
    let place = |name: &str, candidates: &[&str]| -> Result<Option<PathBuf>> {
        root.find(candidates).map(|program| root.starter(&bin, name, &program)).transpose()
    };
    let rustc = place("rustc", &["usr/lib/rust-web/bin/rustc", "usr/bin/rustc"])?;
    let cargo = place("cargo", &["usr/lib/rust-web/bin/cargo", "usr/bin/cargo"])?;
    let linker = place("ld.lld", &["usr/bin/ld.lld", "usr/bin/ld.lld-19", "usr/bin/ld.lld-14"])?;
    let (Some(rustc), Some(cargo), Some(linker)) = (rustc, cargo, linker) else { return Ok(None) };
    // The linker's folder comes first in PATH for build scripts that ask for it by name.
    let version = proc::output(Command::new(&rustc).arg("--version")).unwrap_or_default();
    let version = version.split_whitespace().nth(1).unwrap_or("").to_string();
    let good =
        tools::parse_version(&version).is_some_and(|v| v >= LEAST) && has_library(&root.dir().join("usr"));
    Ok(good.then_some(Toolchain { kind: Kind::Debian, cargo, rustc, linker: Some(linker), version }))
}

/// Whether the library's sources are where cargo looks for them.
fn has_library(usr: &Path) -> bool {
    usr.join("lib/rustlib/src/rust/library").exists() || usr.join("src").exists()
}
