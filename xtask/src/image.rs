//! `xtask image`: an ISO that GRUB boots by BIOS and by UEFI.
use crate::layout::Layout;
use crate::setup::{self, Policy};
use crate::{lock, proc, tools, ui};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// One domain of the boot configuration: a kernel module line and its ramdisk.
#[derive(Debug, Clone)]
pub struct Domain {
    /// Name on the console and in both module lines.
    pub name: String,
    /// The kernel's file on this machine.
    pub kernel: PathBuf,
    /// The initial ramdisk, if it has one.
    pub ramdisk: Option<PathBuf>,
    /// Words for Testudo: `vcpus=2 memory=1024M nested=on`.
    pub options: String,
    /// The kernel's own command line.
    pub cmdline: String,
}

/// What GRUB is told.
#[derive(Debug, Clone, Default)]
pub struct BootConfig {
    /// Testudo's command line.
    pub options: String,
    /// The domains in order.
    pub domains: Vec<Domain>,
    /// Seconds GRUB shows its menu; 0 boots at once.
    pub menu: u32,
}

/// Modules GRUB needs on either platform to read the ISO and boot us.
const MODULES: &[&str] = &[
    "iso9660",
    "part_gpt",
    "part_msdos",
    "fat",
    "normal",
    "configfile",
    "search",
    "search_fs_file",
    "multiboot2",
    "serial",
    "terminal",
    "echo",
    "test",
    "boot",
    "minicmd",
    "reboot",
    "halt",
    "ls",
    "cat",
    "sleep",
];

/// A word for grub.cfg: quoted when GRUB would read more into it.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || " -_=.,:/+@%".contains(c);
    if text.chars().all(plain) { text.to_string() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// The words of a command line, each quoted on its own.
fn quote_words(text: &str) -> String {
    text.split_whitespace().map(quote).collect::<Vec<_>>().join(" ")
}

/// The lines of the menu entry. `dir` is where the files are for GRUB; every distinct file has one name.
fn entry(config: &BootConfig, dir: &str, names: &Names) -> String {
    let mut text = format!("    multiboot2 {dir}/testudo {}\n", quote_words(&config.options));
    for domain in &config.domains {
        let (kernel, options) = (names.of(&domain.kernel), quote_words(&domain.options));
        text += &format!(
            "    module2 {dir}/{kernel} domain name={} {options} -- {}\n",
            domain.name,
            quote_words(&domain.cmdline)
        );
        if let Some(ramdisk) = &domain.ramdisk {
            text += &format!("    module2 {dir}/{} ramdisk name={}\n", names.of(ramdisk), domain.name);
        }
    }
    text.lines().map(|l| format!("{}\n", l.trim_end())).collect()
}

/// The names of the modules' files in /boot: the file's own name, numbered when two would clash.
#[derive(Debug, Default)]
struct Names(Vec<(PathBuf, String)>);

impl Names {
    fn new(config: &BootConfig) -> Names {
        let mut names = Names::default();
        let files = config.domains.iter().flat_map(|d| std::iter::once(&d.kernel).chain(&d.ramdisk));
        for file in files {
            if names.0.iter().any(|(path, _)| path == file) {
                continue;
            }
            let base = file
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .replace(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c), "_");
            let clashes = |name: &str| name == "testudo" || names.0.iter().any(|(_, n)| n == name);
            let mut name = base.clone();
            let mut n = 1;
            while clashes(&name) {
                n += 1;
                name = format!("{base}.{n}");
            }
            names.0.push((file.clone(), name));
        }
        names
    }

    fn of(&self, path: &Path) -> &str {
        self.0.iter().find(|(p, _)| p == path).map_or("", |(_, name)| name)
    }
}

/// The whole grub.cfg of the ISO.
pub fn grub_cfg(config: &BootConfig) -> String {
    let names = Names::new(config);
    let mut text = String::from(
        "serial --unit=0 --speed=115200\nterminal_input serial console\nterminal_output serial console\n",
    );
    let style = if config.menu == 0 { "hidden" } else { "menu" };
    text += &format!("set timeout_style={style}\nset timeout={}\nset default=0\n\n", config.menu);
    text += &format!("menuentry \"Testudo\" {{\n{}    boot\n}}\n", entry(config, "/boot", &names));
    text
}

/// What to add to a real machine's GRUB configuration (`/etc/grub.d/40_custom`, then `update-grub`).
pub fn stanza(config: &BootConfig) -> String {
    format!(
        "menuentry \"Testudo\" {{\n    insmod multiboot2\n{}}}\n",
        entry(config, "/boot", &Names::new(config))
    )
}

/// Writes the ISO with Testudo's image `hv`.
pub fn iso(layout: &Layout, hv: &Path, config: &BootConfig, path: &Path, policy: Policy) -> Result<()> {
    let find = |tool| setup::require(layout, tool, policy);
    let (mkimage, xorriso, mtools) =
        (find(&tools::GRUB_MKIMAGE)?, find(&tools::XORRISO)?, find(&tools::MTOOLS)?);
    let (bios, uefi) = (find(&tools::GRUB_BIOS)?, find(&tools::GRUB_UEFI)?);
    let _guard = lock::images(layout)?;
    let work = path.with_extension("work");
    let _ = std::fs::remove_dir_all(&work);
    std::fs::create_dir_all(work.join("iso/boot/grub"))?;
    std::fs::write(work.join("iso/boot/grub/grub.cfg"), grub_cfg(config))?;
    // The core image finds the ISO by this file, whatever the drive is called, and reads its configuration.
    std::fs::write(
        work.join("early.cfg"),
        "search --file --set=root /boot/testudo\nset prefix=($root)/boot/grub\n",
    )?;
    bios_image(mkimage.path(), bios.path(), &work)?;
    uefi_image(mkimage.path(), uefi.path(), mtools.path(), &work)?;
    let mut grafts = vec![format!("/boot/testudo={}", hv.display())];
    grafts.extend(Names::new(config).0.iter().map(|(file, name)| format!("/boot/{name}={}", file.display())));
    let new = work.join("testudo.iso");
    let mut cmd = Command::new(xorriso.path());
    cmd.args(["-as", "mkisofs", "-quiet", "-R", "-V", "TESTUDO", "-graft-points"]);
    cmd.args([
        "-b",
        "boot/grub/bios.img",
        "-no-emul-boot",
        "-boot-load-size",
        "4",
        "-boot-info-table",
        "--grub2-boot-info",
    ]);
    cmd.arg("--grub2-mbr").arg(bios.path().join("boot_hybrid.img"));
    cmd.args([
        "--efi-boot",
        "boot/grub/efi.img",
        "-efi-boot-part",
        "--efi-boot-image",
        "--protective-msdos-label",
    ]);
    cmd.arg("-o").arg(&new).arg(work.join("iso")).args(grafts);
    proc::output(&mut cmd)?;
    std::fs::rename(&new, path).with_context(|| format!("cannot write {}", path.display()))?;
    std::fs::remove_dir_all(&work)?;
    Ok(())
}

fn bios_image(mkimage: &Path, modules: &Path, work: &Path) -> Result<()> {
    let core = work.join("core.img");
    let mut cmd = Command::new(mkimage);
    cmd.arg("-d").arg(modules).args(["-O", "i386-pc", "-p", "/boot/grub", "-c"]).arg(work.join("early.cfg"));
    proc::output(cmd.arg("-o").arg(&core).args(["biosdisk"]).args(MODULES))?;
    let mut image =
        std::fs::read(modules.join("cdboot.img")).context("GRUB's BIOS modules have no cdboot.img")?;
    image.extend(std::fs::read(core)?);
    std::fs::write(work.join("iso/boot/grub/bios.img"), image)?;
    Ok(())
}

fn uefi_image(mkimage: &Path, modules: &Path, mtools: &Path, work: &Path) -> Result<()> {
    let program = work.join("bootx64.efi");
    let mut cmd = Command::new(mkimage);
    cmd.arg("-d")
        .arg(modules)
        .args(["-O", "x86_64-efi", "-p", "/boot/grub", "-c"])
        .arg(work.join("early.cfg"));
    proc::output(cmd.arg("-o").arg(&program).args(MODULES))?;
    let image = work.join("iso/boot/grub/efi.img");
    // A FAT of 2880 kB holds it with room to spare.
    std::fs::write(&image, vec![0; 2880 * 1024])?;
    let mtool = |args: &[&str]| {
        let mut cmd = Command::new(mtools);
        // The geometry of a raw image is no floppy's; mtools must not complain.
        cmd.env("MTOOLS_SKIP_CHECK", "1").args(["-c", args[0], "-i"]).arg(&image).args(&args[1..]);
        proc::output(&mut cmd)
    };
    mtool(&["mformat", "-f", "2880", "::"])?;
    mtool(&["mmd", "::/EFI", "::/EFI/BOOT"])?;
    mtool(&["mcopy", &program.display().to_string(), "::/EFI/BOOT/BOOTX64.EFI"])?;
    Ok(())
}

/// Says where the image is and how a real machine boots it.
pub fn explain(layout: &Layout, iso: &Path, hv: &Path, config: &BootConfig) {
    ui::step(&format!("{}: bootable by BIOS and UEFI, from CD or USB stick", layout.show(iso)));
    println!("For a machine with GRUB: copy {} and the modules to /boot, then add", layout.show(hv));
    println!("to /etc/grub.d/40_custom and run update-grub:\n\n{}", stanza(config));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(name: &str, kernel: &str, ramdisk: &str) -> Domain {
        Domain {
            name: name.into(),
            kernel: kernel.into(),
            ramdisk: Some(ramdisk.into()),
            options: "vcpus=2 nested=on".into(),
            cmdline: "console=hvc0 x=$y;z".into(),
        }
    }

    #[test]
    fn each_domain_has_its_lines_and_odd_words_are_quoted() {
        let config = BootConfig {
            options: "loglvl=all".into(),
            domains: vec![domain("l1", "/k/vmlinuz", "/k/initrd")],
            menu: 0,
        };
        let text = grub_cfg(&config);
        assert!(text.contains("multiboot2 /boot/testudo loglvl=all\n"));
        assert!(
            text.contains(
                "module2 /boot/vmlinuz domain name=l1 vcpus=2 nested=on -- console=hvc0 'x=$y;z'\n"
            )
        );
        assert!(text.contains("module2 /boot/initrd ramdisk name=l1\n"));
        assert!(text.contains("set timeout=0\n") && text.contains("hidden"));
    }

    #[test]
    fn files_of_one_name_get_different_names_and_shared_files_one() {
        let domains = vec![domain("a", "/1/vmlinuz", "/1/initrd"), domain("b", "/2/vmlinuz", "/1/initrd")];
        let names = Names::new(&BootConfig { domains, ..BootConfig::default() });
        let all: Vec<_> = names.0.iter().map(|(_, n)| n.as_str()).collect();
        assert_eq!(all, ["vmlinuz", "initrd", "vmlinuz.2"]);
    }
}
