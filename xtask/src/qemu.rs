//! The emulated machine: from what the user asked for to QEMU's command line.
use crate::layout::Layout;
use crate::setup::{self, Policy, tools_root};
use crate::tools::{self, Source};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What executes the machine's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// QEMU's emulator, which has SVM: works everywhere.
    Tcg,
    /// The host's KVM with nested virtualization.
    Kvm,
}

/// What the machine starts.
#[derive(Debug, Clone)]
pub enum Boot {
    /// A bootable ISO, by the firmware and GRUB.
    Iso(PathBuf),
    /// A kernel that QEMU itself loads: no Testudo.
    Kernel {
        /// A bzImage, or an ELF file with a PVH note.
        image: PathBuf,
        /// Its initial ramdisk.
        initrd: Option<PathBuf>,
        /// Its command line.
        cmdline: String,
    },
}

/// An emulated machine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Machine {
    /// QEMU's CPU model.
    pub cpu: String,
    /// Physical CPUs.
    pub smp: u32,
    /// Memory in MiB.
    pub memory: u32,
    /// What executes it.
    pub accel: Accel,
    /// UEFI instead of BIOS.
    pub uefi: bool,
    /// Count instructions: one is one nanosecond of virtual time.
    pub icount: bool,
    /// Wait for a debugger at this TCP port.
    pub gdb: Option<u16>,
    /// What it starts: set when it is built.
    #[serde(skip)]
    pub boot: Boot,
    /// More words for QEMU.
    pub extra: Vec<String>,
}

impl Default for Boot {
    fn default() -> Boot {
        Boot::Iso(PathBuf::new())
    }
}

impl Default for Machine {
    fn default() -> Machine {
        Machine {
            cpu: "max".into(),
            smp: 2,
            memory: 2048,
            accel: Accel::Tcg,
            uefi: false,
            icount: false,
            gdb: None,
            boot: Boot::default(),
            extra: Vec::new(),
        }
    }
}

impl Machine {
    /// QEMU's command for this machine, with the serial line on standard input and output.
    pub fn command(&self, layout: &Layout, policy: Policy) -> Result<Command> {
        let qemu = setup::require(layout, &tools::QEMU, policy)?;
        let mut cmd = match crate::proc::which("setpriv") {
            // The machine ends with xtask, even if that is killed.
            Some(setpriv) => {
                let mut cmd = Command::new(setpriv);
                cmd.args(["--pdeathsig", "KILL", "--"]).arg(qemu.path());
                cmd
            }
            None => Command::new(qemu.path()),
        };
        if qemu.source == Source::Private {
            let share = tools_root(layout).dir().join("usr/share");
            for dir in ["qemu", "seabios", "ipxe/qemu"] {
                cmd.arg("-L").arg(share.join(dir));
            }
            cmd.env("QEMU_MODULE_DIR", tools_root(layout).dir().join("usr/lib/x86_64-linux-gnu/qemu"));
        }
        if self.uefi {
            let code = setup::require(layout, &tools::OVMF, policy)?;
            cmd.args([
                "-drive",
                &format!("if=pflash,format=raw,unit=0,readonly=on,file={}", option_path(code.path())?),
            ]);
            let vars = code.path().with_file_name("OVMF_VARS_4M.fd");
            let own = layout.out(&format!("ovmf-vars-{}.fd", std::process::id()));
            std::fs::copy(&vars, &own).with_context(|| format!("cannot copy {}", vars.display()))?;
            cmd.args(["-drive", &format!("if=pflash,format=raw,unit=1,file={}", option_path(&own)?)]);
        }
        cmd.args(self.words());
        Ok(cmd)
    }

    /// Everything but firmware and where QEMU is.
    fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        let mut add = |new: &[&str]| words.extend(new.iter().map(|w| w.to_string()));
        add(&["-machine", "q35", "-nodefaults", "-display", "none", "-no-reboot", "-cpu", &self.cpu]);
        add(&["-smp", &self.smp.to_string(), "-m", &format!("{}M", self.memory)]);
        match self.accel {
            Accel::Kvm => add(&["-accel", "kvm"]),
            // Counting instructions needs one thread for all CPUs.
            Accel::Tcg if self.icount => {
                add(&["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"])
            }
            Accel::Tcg => add(&["-accel", "tcg"]),
        }
        // The serial line is the machine's only console. Neither the multiplexer's Ctrl-A nor Ctrl-C is QEMU's.
        add(&["-chardev", "stdio,id=serial,mux=off,signal=off", "-serial", "chardev:serial"]);
        add(&["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
        if let Some(port) = self.gdb {
            add(&["-gdb", &format!("tcp:127.0.0.1:{port}"), "-S"]);
        }
        match &self.boot {
            Boot::Iso(iso) => add(&[
                "-drive",
                &format!("if=none,id=cd,media=cdrom,readonly=on,format=raw,file={}", iso.display()),
                "-device",
                "ide-cd,drive=cd,bootindex=0",
            ]),
            Boot::Kernel { image, initrd, cmdline } => {
                add(&["-kernel", &image.display().to_string(), "-append", cmdline]);
                if let Some(initrd) = initrd {
                    add(&["-initrd", &initrd.display().to_string()]);
                }
            }
        }
        words.extend(self.extra.iter().cloned());
        words
    }

    /// Says early what QEMU would say late.
    pub fn check(&self) -> Result<()> {
        if self.accel == Accel::Kvm {
            if !Path::new("/dev/kvm").exists() {
                bail!("--accel kvm: this machine has no /dev/kvm; use --accel tcg");
            }
            let nested = ["kvm_amd", "kvm_intel"].iter().any(|m| {
                let value =
                    std::fs::read_to_string(format!("/sys/module/{m}/parameters/nested")).unwrap_or_default();
                matches!(value.trim(), "1" | "Y")
            });
            if !nested {
                bail!(
                    "--accel kvm: the host's KVM has nested=0 (load kvm_amd with nested=1), or use --accel tcg"
                );
            }
            if self.icount {
                bail!("--icount counts emulated instructions: it needs --accel tcg");
            }
        }
        if self.smp == 0 || self.smp > 255 {
            bail!("--smp {}: between 1 and 255", self.smp);
        }
        Ok(())
    }
}

/// A path inside a comma-separated option of QEMU.
fn option_path(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("QEMU can't take the path {}", path.display()))?;
    Ok(text.replace(',', ",,"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(words: &[String], pair: [&str; 2]) -> bool {
        words.windows(2).any(|w| w[0] == pair[0] && w[1] == pair[1])
    }

    #[test]
    fn the_console_leaves_every_key_to_the_guest() {
        let words = Machine::default().words();
        assert!(has(&words, ["-chardev", "stdio,id=serial,mux=off,signal=off"]));
        assert!(!words.iter().any(|w| w == "-icount" || w == "-gdb" || w == "-kernel"));
    }

    #[test]
    fn counting_instructions_uses_one_thread() {
        let words = Machine { icount: true, gdb: Some(1234), ..Machine::default() }.words();
        assert!(
            has(&words, ["-accel", "tcg,thread=single"]) && has(&words, ["-icount", "shift=0,sleep=off"])
        );
        assert!(has(&words, ["-gdb", "tcp:127.0.0.1:1234"]));
    }

    #[test]
    fn impossible_machines_are_refused() {
        assert!(Machine { smp: 0, ..Machine::default() }.check().is_err());
        assert!(Machine::default().check().is_ok());
    }
}
