//! What is in the initial ramdisks: see guests/README.md for the files `/init` looks for.
use super::cpio::Archive;
use super::kernels::Kernel;
use super::modules::{self, without_signature};
use super::programs::Programs;
use crate::build_hv::write_if_new;
use crate::layout::Layout;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// The modules an L1 needs to be a hypervisor.
const L1_MODULES: &[&str] = &["irqbypass", "kvm", "ccp", "kvm_amd"];

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Folders and nodes each image has before /init mounts anything.
fn base() -> Archive {
    let mut archive = Archive::new();
    for dir in ["dev", "proc", "sys", "tmp", "run", "etc", "bin"] {
        archive.dir(dir);
    }
    archive.char_device("dev/console", 5, 1);
    archive.char_device("dev/null", 1, 3);
    archive
}

/// L2's image: `/init` alone.
pub fn l2(programs: &Programs) -> Result<Vec<u8>> {
    let mut archive = base();
    archive.file("init", 0o755, &read(&programs.init)?);
    Ok(archive.finish())
}

/// What goes into an L1's image.
#[derive(Debug)]
pub struct L1<'a> {
    /// Our programs.
    pub programs: &'a Programs,
    /// The static busybox, for a shell.
    pub busybox: &'a Path,
    /// The kernel L1 itself runs: its modules are packed.
    pub kernel: &'a Kernel,
    /// The kernel of the L2.
    pub l2_kernel: &'a Path,
    /// Files and links of a larger monitor, as (path in the image, file on this machine).
    pub extra: &'a [(String, PathBuf)],
}

impl L1<'_> {
    /// Packs the image.
    pub fn pack(&self) -> Result<Vec<u8>> {
        let mut archive = base();
        archive.file("init", 0o755, &read(&self.programs.init)?);
        archive.file("vmm", 0o755, &read(&self.programs.vmm)?);
        archive.file("bin/busybox", 0o755, &read(self.busybox)?);
        archive.link("bin/sh", "busybox");
        let mut order = String::new();
        for module in modules::collect(&self.kernel.modules, L1_MODULES)? {
            archive.file(&format!("modules/{}", module.file), 0o644, without_signature(&module.data));
            order += &format!("{}\n", module.file);
        }
        archive.file("modules/order", 0o644, order.as_bytes());
        archive.file("l2/kernel", 0o644, &read(self.l2_kernel)?);
        archive.file("l2/initrd", 0o644, &l2(self.programs)?);
        for (path, file) in self.extra {
            archive.file(path, 0o755, &read(file)?);
        }
        Ok(archive.finish())
    }

    /// Packs the image into `target/testudo/NAME` unless it is there already.
    pub fn write(&self, layout: &Layout, name: &str) -> Result<PathBuf> {
        let path = layout.out(name);
        write_if_new(&path, &self.pack()?)?;
        Ok(path)
    }
}
