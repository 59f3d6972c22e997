//! A folder that packages are unpacked into, with a note of which, and starters for the programs in it.
use super::apt::{Apt, Package};
use crate::{proc, ui};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A private root of unpacked packages.
#[derive(Debug, Clone)]
pub struct Root {
    dir: PathBuf,
}

/// Packages that a closure over an empty status names but that no tool here needs: what configures a
/// system, and the C toolchain (the host's `cc` is needed to build xtask itself, so it is there).
const SKIPPED: &[&str] = &[
    "adduser",
    "binutils",
    "cpp",
    "debconf",
    "dmsetup",
    "dpkg",
    "gcc",
    "init-system-helpers",
    "initramfs-tools",
    "kmod",
    "klibc-utils",
    "libc-dev-bin",
    "libc6-dev",
    "libcrypt-dev",
    "libgcc-12-dev",
    "libgprofng0",
    "libklibc",
    "libnsl-dev",
    "libpam-modules",
    "libpam-modules-bin",
    "libpam-runtime",
    "libtirpc-dev",
    "linux-base",
    "linux-libc-dev",
    "login",
    "mount",
    "passwd",
    "perl-base",
    "rpcsvc-proto",
    "systemd",
    "tar",
    "udev",
    "cpio",
];

/// As `SKIPPED`, for packages whose names carry versions.
const SKIPPED_PREFIXES: &[&str] =
    &["binutils-", "cpp-", "gcc-", "libasan", "libtsan", "liblsan", "libubsan", "libgcc-1"];

/// What of a closure is unpacked.
pub fn relevant(package: &Package) -> bool {
    let name = package.name.as_str();
    // The base package of the compiler is only documentation, but harmless; the rest of gcc is large.
    !SKIPPED.contains(&name) && !SKIPPED_PREFIXES.iter().any(|p| name.starts_with(p))
}

impl Root {
    /// The root in `dir`, which need not exist yet.
    pub fn new(dir: PathBuf) -> Root {
        Root { dir }
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What is unpacked: package name to version.
    pub fn packages(&self) -> BTreeMap<String, String> {
        let text = std::fs::read(self.note()).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn note(&self) -> PathBuf {
        self.dir.join(".packages.json")
    }

    /// Unpacks what is not there in this version.
    pub fn unpack(&self, apt: &Apt, title: &str, packages: &[Package]) -> Result<()> {
        let mut have = self.packages();
        let new: Vec<&Package> = packages.iter().filter(|p| have.get(&p.name) != Some(&p.version)).collect();
        if new.is_empty() {
            return Ok(());
        }
        std::fs::create_dir_all(&self.dir)?;
        let mut progress =
            ui::Progress::new(&format!("unpacking {title}:"), new.iter().map(|p| p.size).sum());
        for package in new {
            progress.add(0, &package.name);
            proc::output(Command::new("dpkg-deb").arg("-x").arg(apt.file(package)).arg(&self.dir))?;
            progress.add(package.size, &package.name);
            have.insert(package.name.clone(), package.version.clone());
            // After each package, so that an interrupted setup goes on where it stopped.
            std::fs::write(self.note(), serde_json::to_vec_pretty(&have)?)?;
        }
        progress.finish();
        Ok(())
    }

    /// The first of `candidates` (paths in the root) that exists.
    pub fn find(&self, candidates: &[&str]) -> Option<PathBuf> {
        candidates.iter().map(|c| self.dir.join(c)).find(|p| p.exists())
    }

    /// The folders of shared libraries.
    pub fn library_path(&self) -> String {
        let lib = "lib/x86_64-linux-gnu";
        let dirs = [
            format!("usr/{lib}"),
            lib.to_string(),
            format!("usr/{lib}/pulseaudio"),
            "usr/lib/llvm-14/lib".into(),
        ];
        let dirs = dirs.iter().map(|d| self.dir.join(d)).filter(|d| d.is_dir());
        dirs.map(|d| d.display().to_string()).collect::<Vec<_>>().join(":")
    }

    /// The loader of the root's own C library.
    pub fn loader(&self) -> Result<PathBuf> {
        let name = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
        self.find(&[&format!("usr/{name}"), name]).context("the private root has no loader (libc6)")
    }

    /// Writes a starter for `program` into `bin` and gives its path. The root's own loader starts it, so
    /// neither the host's C library nor an LD_LIBRARY_PATH that its children would inherit is involved.
    pub fn starter(&self, bin: &Path, name: &str, program: &Path) -> Result<PathBuf> {
        let loader = self
            .find(&[
                "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
                "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
            ])
            .context("the private root has no loader (libc6)")?;
        let script = format!(
            "#!/bin/sh\nGCONV_PATH={} exec {} --library-path {} --argv0 \"$0\" {} \"$@\"\n",
            quote(&self.dir.join("usr/lib/x86_64-linux-gnu/gconv").display().to_string()),
            quote(&loader.display().to_string()),
            quote(&self.library_path()),
            quote(&program.display().to_string()),
        );
        let file = bin.join(name);
        if std::fs::read_to_string(&file).ok().as_deref() != Some(&script) {
            std::fs::create_dir_all(bin)?;
            // Another xtask may be starting the tool now: replace the file, don't write into it.
            let new = bin.join(format!(".{name}.{}", std::process::id()));
            std::fs::write(&new, script)?;
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755))?;
            std::fs::rename(&new, &file)?;
        }
        Ok(file)
    }
}

/// A word for a POSIX shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Fails early when the file system of `dir` has less than `need` bytes left.
pub fn check_space(dir: &Path, need: u64, what: &str) -> Result<()> {
    let existing = dir.ancestors().find(|d| d.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(existing)
        .with_context(|| format!("cannot ask for free space of {}", existing.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < need {
        bail!(
            "too little disk space for {what}: {} needed, {} free in {}\n  \
             Free some space, or put the repository's `target` folder (it may be a symbolic link) on a larger disk.",
            ui::size(need),
            ui::size(free),
            existing.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str) -> Package {
        Package { name: name.into(), version: "1".into(), file: format!("{name}_1_all.deb"), size: 1 }
    }

    #[test]
    fn libraries_stay_and_the_system_goes() {
        for name in ["libc6", "libgcc-s1", "libllvm22", "qemu-system-x86", "libgcrypt20", "libcpu-features"] {
            assert!(relevant(&package(name)), "{name}");
        }
        for name in ["dpkg", "gcc-12", "cpp-12", "binutils-common", "libgcc-12-dev", "perl-base"] {
            assert!(!relevant(&package(name)), "{name}");
        }
    }

    #[test]
    fn too_little_space_is_said_with_both_numbers() {
        let err = check_space(Path::new("/nonexistent/below"), u64::MAX, "tools").unwrap_err().to_string();
        assert!(err.contains("needed") && err.contains("free"), "{err}");
        check_space(Path::new("/"), 0, "nothing").unwrap();
    }

    #[test]
    fn shell_words_are_safe() {
        assert_eq!(quote("it's"), "'it'\\''s'");
    }
}
