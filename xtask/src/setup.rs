//! `xtask setup`: finds or fetches every tool, and says which is used from where.
use crate::deb::apt::{Apt, Package};
use crate::deb::root::{self, Root};
use crate::guests::kernels::{self, KernelName};
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
    install(layout, tool.group, policy).map_err(|e| cannot(&[help(tool)], &e))?;
    let found = tools::find(layout, tool)?;
    if found.source == Source::Missing {
        bail!("{} was fetched but does not work here; give its path with {}=/path", tool.name, tool.env);
    }
    Ok(found)
}

/// What a chore needs, so that it can be checked before any slow step.
#[derive(Debug, Default)]
pub struct Needs<'a> {
    /// Tools.
    pub tools: Vec<&'a Tool>,
    /// Debian's kernels.
    pub kernels: Vec<&'a KernelName>,
    /// A static busybox.
    pub busybox: bool,
    /// A toolchain for bare metal.
    pub toolchain: bool,
}

/// Something missing: how much disk it takes when fetched, and the line that says how to do without.
type Missing = (u64, String);

fn help(tool: &Tool) -> String {
    let what = if matches!(tool.kind, tools::Kind::Program { .. }) { tool.name } else { "folder" };
    format!("{:<20} {} (Debian: {}): {}=/path/to/{what}", tool.name, tool.purpose, tool.package, tool.env)
}

fn missing(layout: &Layout, needs: &Needs) -> Result<Vec<Missing>> {
    let mut all = Vec::new();
    let mut groups: Vec<Group> = Vec::new();
    for tool in &needs.tools {
        if tools::find(layout, tool)?.source == Source::Missing {
            let space = if groups.contains(&tool.group) { 0 } else { tool.group.space() };
            groups.push(tool.group);
            all.push((space, help(tool)));
        }
    }
    for kernel in &needs.kernels {
        if kernels::describe(layout, kernel).source == Source::Missing {
            let line = format!(
                "{:<20} guest kernel: --kernel /path/to/vmlinuz, TESTUDO_MODULES=/path/to/its/modules",
                format!("linux {}", kernel.version)
            );
            all.push((kernels::SPACE, line));
        }
    }
    if needs.busybox && kernels::describe_busybox(layout).source == Source::Missing {
        all.push((
            10_000_000,
            format!("{:<20} a static busybox for L1's shell: TESTUDO_BUSYBOX=/path/to/busybox", "busybox"),
        ));
    }
    if needs.toolchain && toolchain::describe(layout).source == Source::Missing {
        let line = format!(
            "{:<20} Rust for bare metal (Debian: rustc-web): rustup target add {}",
            "rustc",
            toolchain::TARGET
        );
        all.push((Group::Rust.space(), line));
    }
    Ok(all)
}

/// Checks, before anything slow, that what is missing can be fetched: disk space, apt, permission.
pub fn preflight(layout: &Layout, needs: &Needs, policy: Policy) -> Result<()> {
    let missing = missing(layout, needs)?;
    let lines: Vec<String> = missing.iter().map(|(_, line)| line.clone()).collect();
    let fetched: u64 = missing.iter().map(|(space, _)| space).sum();
    // A toolchain of rustup's is asked for before Debian's, so its absence is no reason to give up yet.
    let by_apt = missing.iter().any(|(_, line)| !line.starts_with("rustc "));
    if !lines.is_empty() && policy.offline {
        return Err(cannot(&lines, &anyhow::anyhow!("--offline forbids to fetch anything")));
    }
    if by_apt {
        let _guard = lock::tools(layout)?;
        Apt::new(layout, &host_release())
            .and_then(|apt| apt.update(false))
            .map_err(|e| cannot(&lines, &e))?;
    }
    root::check_space(&layout.target(""), fetched + BUILD_SPACE, "tools, guests and build")
}

/// Bytes that builds and images take.
const BUILD_SPACE: u64 = 1_000_000_000;

/// The message for what could not be had: what, why, and how to do without.
fn cannot(lines: &[String], why: &anyhow::Error) -> anyhow::Error {
    let list: String = lines.iter().map(|l| format!("  {l}\n")).collect();
    anyhow::anyhow!(
        "something is missing:\n{list}and can't be fetched: {why:#}\n\
         Install it, or give its path as shown. `cargo xtask setup --check` lists every tool."
    )
}

/// `xtask setup`.
pub fn setup(layout: &Layout, check: bool, policy: Policy) -> Result<()> {
    if check {
        return show(layout);
    }
    let needs = Needs {
        tools: TOOLS.iter().collect(),
        kernels: kernels::KERNELS.iter().collect(),
        busybox: true,
        toolchain: true,
    };
    preflight(layout, &needs, policy)?;
    for tool in TOOLS {
        require(layout, tool, policy)?;
    }
    toolchain::find(layout, policy)?;
    for kernel in kernels::KERNELS {
        kernels::kernel(layout, kernel, policy)?;
    }
    kernels::busybox(layout, policy)?;
    show(layout)
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
