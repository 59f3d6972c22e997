//! What is in the initial ramdisks: see guests/README.md for the files `/init` looks for.
use super::cpio::Archive;
use super::kernels::Kernel;
use super::modules::{self, without_signature};
use super::programs::Programs;
use crate::build_hv::write_if_new;
use crate::layout::Layout;
use crate::proc;
use crate::setup::{self, Group, Policy, tools_root};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The modules an L1 needs to be a hypervisor.
const L1_MODULES: &[&str] = &["irqbypass", "kvm", "ccp", "kvm_amd"];
/// The modules an L2 needs for the disk and the network of its QEMU.
const L2_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "virtio_net"];

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

/// Modules, what they need, and the order to load them in.
fn add_modules(archive: &mut Archive, kernel: &Kernel, wanted: &[&str]) -> Result<()> {
    let mut order = String::new();
    for module in modules::collect(&kernel.modules, wanted)? {
        archive.file(&format!("modules/{}", module.file), 0o644, without_signature(&module.data));
        order += &format!("{}\n", module.file);
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    Ok(())
}

/// L2's image.
fn l2(programs: &Programs, busybox: &Path, kernel: &Kernel) -> Result<Vec<u8>> {
    let mut archive = base();
    archive.file("init", 0o755, &read(&programs.init)?);
    archive.file("bin/busybox", 0o755, &read(busybox)?);
    archive.link("bin/sh", "busybox");
    add_modules(&mut archive, kernel, L2_MODULES)?;
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
    /// The kernels of its L2, each with the name of its folder; the first is the default.
    pub l2_kernels: &'a [(String, Kernel)],
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
        add_modules(&mut archive, self.kernel, L1_MODULES)?;
        archive.dir("l2");
        let mut order = String::new();
        for (name, kernel) in self.l2_kernels {
            archive.file(&format!("l2/{name}/kernel"), 0o644, &read(&kernel.image)?);
            archive.file(&format!("l2/{name}/initrd"), 0o644, &l2(self.programs, self.busybox, kernel)?);
            order += &format!("{name}\n");
        }
        archive.file("l2/order", 0o644, order.as_bytes());
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

/// A Linux whose KVM is L0, for comparison: it loads KVM, runs one L1 after the other with our monitor, and powers
/// off.
#[derive(Debug)]
pub struct L0<'a> {
    /// Our programs.
    pub programs: &'a Programs,
    /// The static busybox, which runs the script.
    pub busybox: &'a Path,
    /// The kernel of L0: its modules are packed.
    pub kernel: &'a Kernel,
    /// L1's kernel.
    pub l1_kernel: &'a Path,
    /// L1's whole image.
    pub l1_initrd: &'a Path,
    /// L1's memory in MiB.
    pub l1_memory: u32,
    /// L1's command line.
    pub cmdline: &'a str,
    /// The bare-metal L1.
    pub svm_l1: &'a Path,
    /// Its command line.
    pub svm_cmdline: &'a str,
}

impl L0<'_> {
    /// Packs the image into `target/testudo/NAME`.
    pub fn write(&self, layout: &Layout, name: &str) -> Result<PathBuf> {
        let mut archive = base();
        archive.file("init", 0o755, self.script().as_bytes());
        archive.file("bin/busybox", 0o755, &read(self.busybox)?);
        archive.file("vmm", 0o755, &read(&self.programs.vmm)?);
        add_modules(&mut archive, self.kernel, L1_MODULES)?;
        archive.file("l1/kernel", 0o644, &read(self.l1_kernel)?);
        archive.file("l1/initrd", 0o644, &read(self.l1_initrd)?);
        archive.file("l1/svm-l1", 0o644, &read(self.svm_l1)?);
        let path = layout.out(name);
        write_if_new(&path, &archive.finish())?;
        Ok(path)
    }

    fn script(&self) -> String {
        let quoted = |words: &str| format!("'{}'", words.replace('\'', "'\\''"));
        let vmm = "/vmm boot --counters --cpus 1 --timeout 3600";
        format!(
            "#!/bin/busybox sh\nb=/bin/busybox\n$b mount -t proc proc /proc\n$b mount -t sysfs sys /sys\n\
             $b mount -t devtmpfs dev /dev\nwhile read m; do $b insmod /modules/$m; done < /modules/order\n\
             {vmm} --kernel /l1/kernel --initrd /l1/initrd --memory {}M --prefix '(l1) ' --cmdline {}\n\
             {vmm} --kernel /l1/svm-l1 --memory 64M --prefix '(svm) ' --cmdline {}\n$b poweroff -f\n",
            self.l1_memory,
            quoted(self.cmdline),
            quoted(self.svm_cmdline)
        )
    }
}

/// Debian's QEMU with its libraries and firmware, as (path in an image, file here). It comes from the private
/// root, whatever the machine's own QEMU is.
pub fn debian_qemu(layout: &Layout, policy: Policy) -> Result<Vec<(String, PathBuf)>> {
    let root = tools_root(layout);
    let program = "usr/bin/qemu-system-x86_64";
    if root.find(&[program]).is_none() {
        setup::install(layout, Group::Qemu, policy)?;
    }
    let binary = root.find(&[program]).context("Debian's qemu-system-x86 has no qemu-system-x86_64")?;
    let loader = root.loader()?;
    let mut list = Command::new(&loader);
    list.args(["--library-path", &root.library_path(), "--list"]).arg(&binary);
    let libraries = proc::output(&mut list)?;
    let mut files = vec![(program.to_string(), binary), ("lib64/ld-linux-x86-64.so.2".to_string(), loader)];
    files.extend(libraries.lines().filter_map(library));
    // What a PC without graphics loads: the firmware, and the option ROMs that start a kernel.
    for name in [
        "seabios/bios-256k.bin",
        "qemu/bios-256k.bin",
        "qemu/kvmvapic.bin",
        "qemu/linuxboot_dma.bin",
        "qemu/pvh.bin",
    ] {
        if let Some(file) = root.find(&[
            &format!("usr/share/{name}"),
            &format!("usr/share/seabios/{}", name.rsplit('/').next().unwrap_or(name)),
        ]) {
            files.push((format!("usr/share/{name}"), file));
        }
    }
    Ok(files)
}

/// `libx.so.1 => /path/libx.so.1 (0x…)`, as the loader lists it, to its place in the image.
fn library(line: &str) -> Option<(String, PathBuf)> {
    let (name, rest) = line.trim().split_once(" => ")?;
    let path = PathBuf::from(rest.rsplit_once(" (")?.0);
    let name = name.rsplit('/').next()?;
    (!name.starts_with("ld-linux")).then(|| (format!("lib/x86_64-linux-gnu/{name}"), path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaders_list_gives_places_in_the_image() {
        let (place, path) = library("\tlibz.so.1 => /r/usr/lib/libz.so.1 (0x00007f)").unwrap();
        assert_eq!(
            (place.as_str(), path.to_str().unwrap()),
            ("lib/x86_64-linux-gnu/libz.so.1", "/r/usr/lib/libz.so.1")
        );
        assert!(library("\tlinux-vdso.so.1 (0x00007ff)").is_none());
    }
}
