//! Running L2 guests: by our own monitor, or by Debian's QEMU with a disk and a network.

use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::words::Words;
use crate::{load, net, sys};

const VMM: &str = "/vmm";
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// Names of the L2 images below `/l2`; the first is the default.
const ORDER: &str = "/l2/order";
/// Bytes of the disk that QEMU gives its L2.
const DISK: u64 = 64 << 20;

/// `testudo.repeat` rounds of `testudo.count` guests at once; `step` names them in what is printed.
///
/// # Errors
/// The first failure.
pub fn run(words: &Words, step: &str) -> sys::Verdict {
    let count = words.number("testudo.count", 1);
    let mut verdict = Ok(());
    for round in 1..=words.number("testudo.repeat", 1) {
        let results: Vec<sys::Verdict> = std::thread::scope(|scope| {
            let guest = |index| move || Guest { words, step, round, index, count }.run();
            let guests: Vec<_> = (1..=count).map(|index| scope.spawn(guest(index))).collect();
            guests.into_iter().map(|g| g.join().unwrap_or_else(|_| Err("guest thread died".into()))).collect()
        });
        verdict = results.into_iter().fold(verdict, Result::and);
    }
    verdict
}

/// One life of one L2.
struct Guest<'a> {
    words: &'a Words,
    step: &'a str,
    round: u64,
    index: u64,
    count: u64,
}

impl Guest<'_> {
    fn run(&self) -> sys::Verdict {
        let vmm = self.words.get("testudo.vmm").unwrap_or("vmm");
        let about = format!(
            "step={} npt={} round={} index={}",
            self.step,
            sys::line("/sys/module/kvm_amd/parameters/npt"),
            self.round,
            self.index
        );
        let files = self.files()?;
        println!("@testudo l1 l2 start {about} vmm={vmm}");
        let begin = Instant::now();
        let end = match vmm {
            "vmm" => self.by_vmm(&files),
            "qemu" => self.by_qemu(&files),
            _ => Err(format!("unknown vmm {vmm}")),
        };
        let (verdict, seconds) = (if end.is_ok() { "ok" } else { "failed" }, begin.elapsed().as_secs_f64());
        println!("@testudo l1 l2 end {about} {verdict} seconds={seconds:.1}");
        end.map_err(|why| format!("l2 of {}: {why}", self.step))
    }

    /// The folder of L2's kernel and initial ramdisk.
    fn files(&self) -> Result<String, String> {
        let order = sys::line(ORDER);
        let wanted = self.words.get("testudo.kernel");
        let found = order.split_whitespace().find(|name| wanted.is_none_or(|w| w == *name));
        found.map(|name| format!("/l2/{name}")).ok_or_else(|| {
            format!("the image has no L2 kernel {} (it has: {order})", wanted.unwrap_or_default())
        })
    }

    fn mode(&self) -> &str {
        self.words.get("testudo.l2").unwrap_or("hello")
    }

    fn prefix(&self) -> String {
        if self.count == 1 { "(l2) ".to_string() } else { format!("(l2.{}) ", self.index) }
    }

    fn timeout(&self) -> u64 {
        self.words.number("testudo.timeout", 300).saturating_mul(self.words.number("testudo.patience", 1))
    }

    fn cmdline(&self) -> String {
        let extra = self.words.get("testudo.l2args").unwrap_or_default().replace(',', " ");
        let mut line = format!("console=ttyS0 panic=-1 testudo.l2={} {extra}", self.mode());
        // What has limits of its own in L1 has the same ones in L2.
        for name in ["watchdog_thresh", "rcupdate.rcu_cpu_stall_timeout", "testudo.patience"] {
            if let Some(value) = self.words.get(name) {
                line += &format!(" {name}={value}");
            }
        }
        line
    }

    fn by_vmm(&self, files: &str) -> sys::Verdict {
        let reboots = self.words.get("testudo.reboots").unwrap_or("2");
        let mut command = Command::new(VMM);
        command.args([
            "boot",
            "--kernel",
            &format!("{files}/kernel"),
            "--initrd",
            &format!("{files}/initrd"),
        ]);
        command.args(["--memory", self.words.get("testudo.memory").unwrap_or("128M")]);
        command.args(["--cpus", self.words.get("testudo.cpus").unwrap_or("1")]);
        command.args(["--cmdline", &self.cmdline(), "--prefix", &self.prefix()]);
        command.args(["--timeout", &self.timeout().to_string()]);
        command.args(["--reboots", if self.mode() == "reboot" { reboots } else { "0" }]);
        if self.mode() == "shell" {
            command.arg("--stdin");
        }
        let status = command.status().map_err(|e| format!("{VMM}: {e}"))?.code().unwrap_or(-1);
        // An L2 whose task is to reboot always does; the VMM says so when it has had enough.
        let good = if self.mode() == "reboot" { 3 } else { 0 };
        if status == good { Ok(()) } else { Err(format!("vmm's status {status}")) }
    }

    /// QEMU's own status says nothing about the guest; the L2's last line does.
    fn by_qemu(&self, files: &str) -> sys::Verdict {
        net::serve()?;
        let disk = format!("/tmp/disk-{}", self.index);
        scratch(&disk).map_err(|e| format!("{disk}: {e}"))?;
        let mut command = Command::new(QEMU);
        command.args(["-accel", "kvm", "-cpu", "host", "-nographic", "-nodefaults", "-serial", "stdio"]);
        command.args(["-m", self.words.get("testudo.memory").unwrap_or("128M")]);
        command.args(["-smp", self.words.get("testudo.cpus").unwrap_or("1")]);
        command.args(["-drive", &format!("file={disk},if=virtio,format=raw")]);
        command.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
        command.args(["-kernel", &format!("{files}/kernel"), "-initrd", &format!("{files}/initrd")]);
        command.args(["-no-reboot", "-append", &format!("{} testudo.devices", self.cmdline())]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let child = command.spawn().map_err(|e| format!("{QEMU}: {e}"))?;
        self.listen(child)
    }

    /// Hand the machine's lines on, until it ends or its time is over.
    fn listen(&self, mut child: Child) -> sys::Verdict {
        let output = child.stdout.take().ok_or("no output of QEMU")?;
        let (ended, end) = channel();
        let timeout = Duration::from_secs(self.timeout());
        std::thread::scope(|scope| {
            let keeper = scope.spawn(move || {
                let late = end.recv_timeout(timeout).is_err();
                if late {
                    // It may just have ended by itself.
                    let _ = child.kill();
                }
                (late, child.wait())
            });
            let mut done = false;
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                done |= line.starts_with("@testudo l2 done ok");
                println!("{}{}", self.prefix(), line.trim_end_matches('\r'));
            }
            // The keeper may have stopped listening.
            let _ = ended.send(());
            match keeper.join() {
                Ok((true, _)) => Err(format!("not done after {} s", timeout.as_secs())),
                Ok((false, Ok(status))) if done && status.success() => Ok(()),
                Ok((false, status)) => Err(format!("done={done}, QEMU: {status:?}")),
                Err(_) => Err("QEMU's keeper died".into()),
            }
        })
    }
}

/// A disk that L2 may overwrite.
fn scratch(path: &str) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.set_len(DISK)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(load::SCRATCH_MARK)
}
