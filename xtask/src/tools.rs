//! The programs and data files xtask uses: where each comes from, in order: given by environment variable,
//! good enough on the system, unpacked in the private root.
use crate::layout::Layout;
use crate::proc;
use crate::setup::{Group, tools_root};
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Where a tool comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// By an environment variable or option.
    Given,
    /// Installed on the machine.
    System,
    /// Unpacked below `target/tools`.
    Private,
    /// Not there yet.
    Missing,
}

impl Source {
    /// As the table of `setup --check` says it.
    pub fn name(self) -> &'static str {
        match self {
            Source::Given => "given",
            Source::System => "system",
            Source::Private => "private",
            Source::Missing => "missing",
        }
    }
}

/// A tool that was looked for.
#[derive(Debug, Clone)]
pub struct Found {
    /// Where it comes from.
    pub source: Source,
    /// Its version, or why it is not there.
    pub version: String,
    /// The program, file or folder.
    pub path: Option<PathBuf>,
}

impl Found {
    /// What is not there.
    pub fn missing() -> Found {
        Found { source: Source::Missing, version: "-".into(), path: None }
    }

    /// The path of a tool that `setup::require` gave.
    pub fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new("/nonexistent"))
    }
}

/// What kind of thing a tool is.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A program: the word by which it names itself when asked for its version, and the least good version.
    Program { says: &'static str, least: (u32, u32) },
    /// A file or folder, with its places on a system, each also looked for in the private root.
    Data { places: &'static [&'static str] },
}

/// One tool.
#[derive(Debug, Clone, Copy)]
pub struct Tool {
    /// Program's name, or a name for the data.
    pub name: &'static str,
    /// The environment variable that gives its path.
    pub env: &'static str,
    /// The Debian package it is in.
    pub package: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// What to fetch to have it.
    pub group: Group,
    /// How to look for it.
    pub kind: Kind,
}

/// The machine emulator. SVM with nested paging and virtual GIF is complete enough from QEMU 8 on.
pub const QEMU: Tool = Tool {
    name: "qemu-system-x86_64",
    env: "TESTUDO_QEMU",
    package: "qemu-system-x86",
    purpose: "the machine emulator",
    group: Group::Qemu,
    kind: Kind::Program { says: "QEMU", least: (8, 0) },
};

/// UEFI firmware for the emulated machine.
pub const OVMF: Tool = Tool {
    name: "ovmf",
    env: "TESTUDO_OVMF",
    package: "ovmf",
    purpose: "UEFI firmware (the folder with OVMF_CODE_4M.fd)",
    group: Group::Qemu,
    kind: Kind::Data { places: &["usr/share/OVMF/OVMF_CODE_4M.fd"] },
};

/// Makes GRUB's core images.
pub const GRUB_MKIMAGE: Tool = Tool {
    name: "grub-mkimage",
    env: "TESTUDO_GRUB_MKIMAGE",
    package: "grub-common",
    purpose: "makes GRUB images",
    group: Group::Grub,
    kind: Kind::Program { says: "GRUB", least: (2, 6) },
};

/// GRUB's modules for BIOS.
pub const GRUB_BIOS: Tool = Tool {
    name: "grub-i386-pc",
    env: "TESTUDO_GRUB_BIOS",
    package: "grub-pc-bin",
    purpose: "GRUB's modules for BIOS",
    group: Group::Grub,
    kind: Kind::Data { places: &["usr/lib/grub/i386-pc"] },
};

/// GRUB's modules for UEFI.
pub const GRUB_UEFI: Tool = Tool {
    name: "grub-x86_64-efi",
    env: "TESTUDO_GRUB_UEFI",
    package: "grub-efi-amd64-bin",
    purpose: "GRUB's modules for UEFI",
    group: Group::Grub,
    kind: Kind::Data { places: &["usr/lib/grub/x86_64-efi"] },
};

/// Writes the ISO.
pub const XORRISO: Tool = Tool {
    name: "xorriso",
    env: "TESTUDO_XORRISO",
    package: "xorriso",
    purpose: "writes ISO images",
    group: Group::Grub,
    kind: Kind::Program { says: "xorriso", least: (1, 4) },
};

/// Writes the FAT image of the ISO's EFI partition.
pub const MTOOLS: Tool = Tool {
    name: "mtools",
    env: "TESTUDO_MTOOLS",
    package: "mtools",
    purpose: "writes the FAT image for UEFI",
    group: Group::Grub,
    kind: Kind::Program { says: "mtools", least: (4, 0) },
};

/// Every tool that `setup` looks after, but the Rust toolchain and the guests.
pub const TOOLS: &[Tool] = &[QEMU, OVMF, GRUB_MKIMAGE, GRUB_BIOS, GRUB_UEFI, XORRISO, MTOOLS];

/// `--qemu PATH`, which goes before the variable.
static GIVEN_QEMU: OnceLock<PathBuf> = OnceLock::new();

/// Uses this QEMU.
pub fn give_qemu(path: PathBuf) {
    let _ = GIVEN_QEMU.set(path);
}

/// Looks for a tool without fetching anything.
///
/// # Errors
/// A path that was given by the tool's variable but can't be used.
pub fn find(layout: &Layout, tool: &Tool) -> Result<Found> {
    let option = if tool.name == QEMU.name { GIVEN_QEMU.get().cloned() } else { None };
    let variable = || std::env::var_os(tool.env).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(path) = option.or_else(variable) {
        return given(tool, path);
    }
    match tool.kind {
        Kind::Program { says, least } => {
            Ok(find_program(layout, tool.name, says, least)?.unwrap_or_else(Found::missing))
        }
        Kind::Data { places } => Ok(find_data(layout, tool, places)),
    }
}

fn given(tool: &Tool, path: PathBuf) -> Result<Found> {
    let version = match tool.kind {
        Kind::Program { says, .. } if proc::is_executable(&path) => ask_version(&path, says),
        Kind::Data { .. } if path.exists() => Some("-".into()),
        _ => None,
    };
    match version {
        Some(version) => Ok(Found { source: Source::Given, version, path: Some(path) }),
        None => bail!("{}={} can't be used as {} ({})", tool.env, path.display(), tool.name, tool.purpose),
    }
}

fn find_program(layout: &Layout, name: &str, says: &str, least: (u32, u32)) -> Result<Option<Found>> {
    let good = |path: PathBuf, source| {
        let version = ask_version(&path, says)?;
        (parse_version(&version)? >= least).then_some(Found { source, version, path: Some(path) })
    };
    if std::env::var_os("TESTUDO_NO_SYSTEM_TOOLS").is_none()
        && let Some(found) = proc::which(name).and_then(|path| good(path, Source::System))
    {
        return Ok(Some(found));
    }
    let root = tools_root(layout);
    let Some(program) = root.find(&[&format!("usr/bin/{name}"), &format!("usr/sbin/{name}")]) else {
        return Ok(None);
    };
    let starter = root.starter(&layout.tools("bin"), name, &program)?;
    Ok(good(starter, Source::Private))
}

fn find_data(layout: &Layout, tool: &Tool, places: &[&str]) -> Found {
    let root = tools_root(layout);
    let system = std::env::var_os("TESTUDO_NO_SYSTEM_TOOLS").is_none();
    let on_system = places.iter().map(|p| Path::new("/").join(p)).find(|p| system && p.exists());
    match on_system {
        Some(path) => Found { source: Source::System, version: "-".into(), path: Some(path) },
        None => match root.find(places) {
            Some(path) => {
                let version = root.packages().get(tool.package).cloned().unwrap_or_else(|| "-".into());
                Found { source: Source::Private, version, path: Some(path) }
            }
            None => Found::missing(),
        },
    }
}

/// What a program says about its version, if it is the program meant.
fn ask_version(path: &Path, says: &str) -> Option<String> {
    version_in(&proc::output(Command::new(path).arg("--version")).ok()?, says)
}

/// The first word that starts with a digit, in a text that has `says`.
fn version_in(text: &str, says: &str) -> Option<String> {
    let words = text.split(|c: char| c.is_whitespace() || "(),".contains(c));
    let version =
        words.map(|w| w.trim_end_matches('.')).find(|w| w.starts_with(|c: char| c.is_ascii_digit()))?;
    text.contains(says).then(|| version.to_string())
}

/// Major and minor number of a version.
pub fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next().flatten().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert_eq!(parse_version("10.0.2"), Some((10, 0)));
        assert_eq!(parse_version("2.06-13+deb12u2"), Some((2, 6)));
        assert_eq!(parse_version("1.96.0"), Some((1, 96)));
        assert_eq!(parse_version("v3"), None);
        assert!(parse_version("10.0") > parse_version("8.2"));
    }

    #[test]
    fn another_program_is_not_taken() {
        assert_eq!(
            version_in("QEMU emulator version 10.0.2 (Debian 1:10)", "QEMU").as_deref(),
            Some("10.0.2")
        );
        assert_eq!(
            version_in("grub-mkimage (GRUB) 2.12-1~bpo12+1", "GRUB").as_deref(),
            Some("2.12-1~bpo12+1")
        );
        assert_eq!(version_in("true (GNU coreutils) 9.1", "QEMU"), None);
    }

    #[test]
    fn each_tool_has_its_own_variable() {
        let mut names: Vec<_> = TOOLS.iter().map(|t| t.env).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), TOOLS.len());
        assert!(names.iter().all(|n| n.starts_with("TESTUDO_")));
    }
}
