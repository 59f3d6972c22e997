//! `xtask setup`: finds or fetches every tool, and says which is used from where.
use crate::deb::apt::{Apt, Package};
use crate::deb::root::{self, Root};
use crate::guests::kernels;
use crate::layout::Layout;
use crate::tools::{self, Found, Source, TOOLS, Tool};
use crate::{lock, toolchain, ui};
use anyhow::{Result, bail};

/// How missing tools may be obtained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// Use what is there; touch no network.
    pub offline: bool,
}

/// The Debian release of this machine, or the one whose packages suit best.
pub fn host_release() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let code = text.lines().find_map(|l| l.strip_prefix("VERSION_CODENAME=")).unwrap_or("").trim_matches('"');
    if ["bookworm", "trixie", "forky", "sid"].contains(&code) { code.into() } else { "bookworm".into() }
}

/// A set of packages that is fetched together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// QEMU and its firmware.
    Qemu,
    /// GRUB's images and the ISO writers.
    Grub,
    /// A Rust toolchain with its library's sources, and a linker.
    Rust,
}

impl Group {
    fn packages(self) -> &'static [&'static str] {
        match self {
            Group::Qemu => &["qemu-system-x86", "seabios", "ovmf"],
            Group::Grub => &["grub-common", "grub-pc-bin", "grub-efi-amd64-bin", "xorriso", "mtools"],
            Group::Rust => &["rustc-web", "cargo-web", "rust-web-src", "lld"],
        }
    }

    fn title(self) -> &'static str {
        match self {
            Group::Qemu => "QEMU",
            Group::Grub => "GRUB and ISO tools",
            Group::Rust => "Debian's Rust toolchain",
        }
    }

    /// Bytes on disk: downloads kept in the cache and unpacked files.
    fn space(self) -> u64 {
        match self {
            Group::Qemu => 300_000_000,
            Group::Grub => 120_000_000,
            Group::Rust => 1_500_000_000,
        }
    }
}

/// The private root of tools.
pub fn tools_root(layout: &Layout) -> Root {
    Root::new(layout.tools("root"))
}

/// Fetches and unpacks a group into the tools' root.
pub fn install(layout: &Layout, group: Group, policy: Policy) -> Result<()> {
    if policy.offline {
        bail!("{} is not there, and --offline forbids to fetch it", group.title());
    }
    let _guard = lock::tools(layout)?;
    root::check_space(&layout.tools(""), group.space(), group.title())?;
    let apt = Apt::new(layout, &host_release())?;
    apt.update(false)?;
    let packages = match closure(&apt, group) {
        Err(_) => {
            // Old lists name files that the mirror has dropped.
            apt.update(true)?;
            closure(&apt, group)?
        }
        Ok(packages) => packages,
    };
    apt.download(group.title(), &packages)?;
    tools_root(layout).unpack(&apt, group.title(), &packages)
}

fn closure(apt: &Apt, group: Group) -> Result<Vec<Package>> {
    let mut packages = apt.closure(group.packages(), true)?;
    packages.retain(root::relevant);
    Ok(packages)
}

/// Finds `tool`, fetching it if need be.
pub fn require(layout: &Layout, tool: &Tool, policy: Policy) -> Result<Found> {
    let found = tools::find(layout, tool)?;
    if found.source != Source::Missing {
        return Ok(found);
    }
    install(layout, tool.group, policy).map_err(|e| missing(&[tool], Some(&e)))?;
    let found = tools::find(layout, tool)?;
    if found.source == Source::Missing {
        return Err(missing(&[tool], None));
    }
    Ok(found)
}

/// The message for tools that could not be had: which, why, and how to give their paths.
fn missing(tools: &[&Tool], why: Option<&anyhow::Error>) -> anyhow::Error {
    let mut text = String::from("a tool is missing:\n");
    for tool in tools {
        text += &format!(
            "  {:<22} {} (Debian package {}); give its path with {}=/path\n",
            tool.name, tool.purpose, tool.package, tool.env
        );
    }
    if let Some(why) = why {
        text += &format!("It could not be fetched: {why:#}\n");
    }
    text += "`cargo xtask setup --check` lists every tool.";
    anyhow::anyhow!(text)
}

/// `xtask setup`.
pub fn setup(layout: &Layout, check: bool, policy: Policy) -> Result<()> {
    if check {
        return show(layout);
    }
    let mut problems = Vec::new();
    for tool in TOOLS {
        if let Err(e) = require(layout, tool, policy) {
            problems.push(format!("{e:#}"));
        }
    }
    if let Err(e) = toolchain::find(layout, policy) {
        problems.push(format!("{e:#}"));
    }
    for kernel in kernels::KERNELS {
        if let Err(e) = kernels::kernel(layout, kernel, policy) {
            problems.push(format!("{e:#}"));
        }
    }
    if let Err(e) = kernels::busybox(layout, policy) {
        problems.push(format!("{e:#}"));
    }
    show(layout)?;
    if problems.is_empty() {
        return Ok(());
    }
    problems.dedup();
    bail!("setup is not complete:\n{}", problems.join("\n"))
}

/// One line of the table of `--check`.
fn row(name: &str, found: &Found) -> String {
    let colour = match found.source {
        Source::Missing => "31",
        Source::Private => "32",
        Source::System | Source::Given => "36",
    };
    let path = found.path.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
    let source = ui::paint(colour, &format!("{:<8}", found.source.name()));
    format!("{name:<22} {:<28} {source} {path}", found.version)
}

fn show(layout: &Layout) -> Result<()> {
    println!("{:<22} {:<28} {:<8} path", "tool", "version", "source");
    let mut missing = Vec::new();
    for tool in TOOLS {
        let found = tools::find(layout, tool)?;
        if found.source == Source::Missing {
            missing.push(tool);
        }
        println!("{}", row(tool.name, &found));
    }
    println!("{}", row("rust for bare metal", &toolchain::describe(layout)));
    for kernel in kernels::KERNELS {
        println!("{}", row(&format!("guest linux {}", kernel.version), &kernels::describe(layout, kernel)));
    }
    println!("{}", row("guest busybox", &kernels::describe_busybox(layout)));
    if !missing.is_empty() {
        println!("\nMissing tools are fetched by `cargo xtask setup`. To use your own:");
        for tool in missing {
            println!("  {}=/path/to/{}", tool.env, tool.name);
        }
    }
    Ok(())
}
