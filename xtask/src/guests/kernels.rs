//! Linux kernels and busybox from Debian packages.
use crate::deb::apt::{Apt, Package};
use crate::deb::root::{self, Root};
use crate::layout::Layout;
use crate::lock;
use crate::setup::Policy;
use crate::tools::{Found, Source};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;

/// A kernel that Debian has.
#[derive(Debug, Clone, Copy)]
pub struct KernelName {
    /// The upstream series, as users name it.
    pub version: &'static str,
    /// The Debian release that has it.
    pub release: &'static str,
}

/// The kernels that are tested.
pub const KERNELS: &[KernelName] =
    &[KernelName { version: "6.1", release: "bookworm" }, KernelName { version: "6.12", release: "trixie" }];

/// Bytes on disk of one of them, with its modules.
pub const SPACE: u64 = 300_000_000;

/// Looks a kernel up by its series.
pub fn by_version(version: &str) -> Result<&'static KernelName> {
    let known = || KERNELS.iter().map(|k| k.version).collect::<Vec<_>>().join(", ");
    KERNELS.iter().find(|k| k.version == version).with_context(|| {
        format!("unknown guest kernel {version} (known: {}; or give a path to a bzImage)", known())
    })
}

/// Which configuration of Debian's kernel: `cloud` leaves out drivers of real machines.
fn flavour() -> &'static str {
    match std::env::var("TESTUDO_KERNEL_FLAVOUR").as_deref() {
        Ok("generic") => "amd64",
        _ => "cloud-amd64",
    }
}

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    /// Its modules' folder.
    pub modules: PathBuf,
    /// What `uname -r` says.
    pub release: String,
}

fn kernel_root(layout: &Layout, name: &KernelName) -> Root {
    Root::new(layout.tools("guests").join(format!("linux-{}-{}", name.version, flavour())))
}

/// The unpacked kernel `name`, fetched if need be.
pub fn kernel(layout: &Layout, name: &KernelName, policy: Policy) -> Result<Kernel> {
    let root = kernel_root(layout, name);
    if let Some(kernel) = find(&root) {
        return Ok(kernel);
    }
    let title = format!("guest kernel {}", name.version);
    if policy.offline {
        bail!("{title} is not there, and --offline forbids to fetch it; give a bzImage with --kernel PATH");
    }
    let _guard = lock::tools(layout)?;
    root::check_space(&layout.tools(""), SPACE, &title)?;
    let apt = Apt::new(layout, name.release)?;
    apt.update(false)?;
    let meta = format!("linux-image-{}", flavour());
    let package = image_package(&apt, &meta)
        .with_context(|| format!("{title} (Debian package {meta} of {})", name.release))?;
    apt.download(&title, std::slice::from_ref(&package))?;
    root.unpack(&apt, &title, &[package])?;
    find(&root).with_context(|| format!("{title}: the package has no /boot/vmlinuz"))
}

/// The package that the meta package stands for now.
fn image_package(apt: &Apt, meta: &str) -> Result<Package> {
    let names = apt.depends(meta)?;
    let name =
        names.iter().find(|n| n.starts_with("linux-image-")).context("the meta package names no kernel")?;
    let all = apt.closure(&[name], false)?;
    all.into_iter().find(|p| &p.name == name).context("the archive has no such package")
}

/// No kernel is larger than this.
const MAX_ELF: usize = 512 << 20;

/// The ELF file inside a kernel's image, as `target/testudo/NAME`.
pub fn unpacked(layout: &Layout, kernel: &Kernel, name: &str) -> Result<PathBuf> {
    let path = layout.out(name);
    let file = std::fs::read(&kernel.image).with_context(|| kernel.image.display().to_string())?;
    let elf = boot::bzimage::extract_elf(&file, MAX_ELF)
        .map_err(|e| anyhow::anyhow!("cannot unpack {}: {e}", kernel.image.display()))?;
    crate::build_hv::write_if_new(&path, &elf)?;
    Ok(path)
}

fn find(root: &Root) -> Option<Kernel> {
    let boot = std::fs::read_dir(root.dir().join("boot")).ok()?;
    let image = boot.flatten().map(|f| f.path()).find(|p| p.to_string_lossy().contains("/vmlinuz-"))?;
    let release = image.file_name()?.to_str()?.strip_prefix("vmlinuz-")?.to_string();
    let modules = root.find(&[&format!("lib/modules/{release}"), &format!("usr/lib/modules/{release}")])?;
    Some(Kernel { image, modules, release })
}

/// For `setup --check`.
pub fn describe(layout: &Layout, name: &KernelName) -> Found {
    let root = kernel_root(layout, name);
    match find(&root) {
        Some(kernel) => {
            let version = root.packages().into_values().next().unwrap_or_else(|| kernel.release.clone());
            Found { source: Source::Private, version, path: Some(kernel.image) }
        }
        None => Found::missing(),
    }
}

fn busybox_root(layout: &Layout) -> Root {
    Root::new(layout.tools("guests/busybox"))
}

/// A static busybox.
pub fn busybox(layout: &Layout, policy: Policy) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("TESTUDO_BUSYBOX").map(PathBuf::from) {
        return path.canonicalize().with_context(|| format!("TESTUDO_BUSYBOX={}", path.display()));
    }
    let root = busybox_root(layout);
    if let Some(file) = root.find(&["bin/busybox", "usr/bin/busybox"]) {
        return Ok(file);
    }
    if policy.offline {
        bail!(
            "busybox-static is not there, and --offline forbids to fetch it; give a static busybox with TESTUDO_BUSYBOX=/path"
        );
    }
    let _guard = lock::tools(layout)?;
    let apt = Apt::new(layout, &crate::setup::host_release())?;
    apt.update(false)?;
    let mut packages = apt.closure(&["busybox-static"], false)?;
    packages.retain(|p| p.name == "busybox-static");
    apt.download("busybox", &packages)?;
    root.unpack(&apt, "busybox", &packages)?;
    root.find(&["bin/busybox", "usr/bin/busybox"]).context("busybox-static has no busybox")
}

/// For `setup --check`.
pub fn describe_busybox(layout: &Layout) -> Found {
    if let Some(path) = std::env::var_os("TESTUDO_BUSYBOX").map(PathBuf::from) {
        return Found { source: Source::Given, version: "-".into(), path: Some(path) };
    }
    let root = busybox_root(layout);
    match root.find(&["bin/busybox", "usr/bin/busybox"]) {
        Some(path) => {
            let version = root.packages().into_values().next().unwrap_or_default();
            Found { source: Source::Private, version, path: Some(path) }
        }
        None => Found::missing(),
    }
}
