//! The command line.

use std::path::PathBuf;

use crate::exits::Source;

/// What to do.
#[derive(Debug)]
pub enum Command {
    /// Boot a Linux.
    Boot(Boot),
    /// Measure exits.
    Bench(Bench),
}

/// Options of `vmm boot`.
#[derive(Debug)]
pub struct Boot {
    /// ELF vmlinux with a PVH note, or bzImage.
    pub kernel: PathBuf,
    /// Initial RAM file system.
    pub initrd: Option<PathBuf>,
    /// RAM in bytes.
    pub memory: u64,
    /// Number of vCPUs, 1 to 64.
    pub cpus: u32,
    /// Kernel command line.
    pub cmdline: String,
    /// Put before each line of guest output.
    pub prefix: String,
    /// So many reboots are carried out; one more ends the program.
    pub reboots: u32,
    /// Whether a triple fault is a way to reboot (`reboot=t`) rather than a crash.
    pub triple_fault_reboots: bool,
    /// Give up after so many seconds.
    pub timeout: Option<u64>,
    /// Feed standard input to the guest's serial port.
    pub stdin: bool,
    /// Let the guest read how often it exits ([`crate::ports`]).
    pub counters: bool,
}

/// Options of `vmm bench`.
#[derive(Debug)]
pub struct Bench {
    /// Names of operations, in order; empty: all.
    pub ops: Vec<String>,
    /// Rounds per operation.
    pub rounds: usize,
    /// Who counts L0's exits, if anybody.
    pub exits: Option<Source>,
}

const USAGE: &str = "usage: vmm boot --kernel F [--initrd F] [--memory 128M] [--cpus N] [--cmdline S] [--prefix S] \
    [--reboots N] [--triple-fault crash|reboot] [--timeout S] [--stdin] [--counters] | vmm bench [--ops a,b] [--rounds N] \
    [--exits cpuid|ports|perf]";

/// Parse the arguments after the program's name.
///
/// # Errors
/// A sentence for the user.
pub fn parse(argv: &[String]) -> Result<Command, String> {
    let (verb, rest) = argv.split_first().ok_or(USAGE)?;
    match verb.as_str() {
        "boot" => parse_boot(rest).map(Command::Boot),
        "bench" => parse_bench(rest).map(Command::Bench),
        _ => Err(USAGE.into()),
    }
}

fn parse_boot(argv: &[String]) -> Result<Boot, String> {
    let mut kernel = None;
    let mut boot = Boot {
        kernel: PathBuf::new(),
        initrd: None,
        memory: 128 << 20,
        cpus: 1,
        cmdline: "console=ttyS0".into(),
        prefix: String::new(),
        reboots: 0,
        triple_fault_reboots: false,
        timeout: None,
        stdin: false,
        counters: false,
    };
    let mut words = argv.iter();
    while let Some(option) = words.next() {
        if option == "--stdin" {
            boot.stdin = true;
            continue;
        }
        if option == "--counters" {
            boot.counters = true;
            continue;
        }
        let value = words.next().ok_or_else(|| format!("{option} needs a value"))?;
        match option.as_str() {
            "--kernel" => kernel = Some(value.into()),
            "--initrd" => boot.initrd = Some(value.into()),
            "--memory" => boot.memory = bytes(value)?,
            "--cpus" => boot.cpus = number(value)?,
            "--cmdline" => boot.cmdline.clone_from(value),
            "--prefix" => boot.prefix.clone_from(value),
            "--reboots" => boot.reboots = number(value)?,
            "--triple-fault" => boot.triple_fault_reboots = value == "reboot",
            "--timeout" => boot.timeout = Some(number(value)?),
            _ => return Err(format!("unknown option {option}\n{USAGE}")),
        }
    }
    boot.kernel = kernel.ok_or("--kernel is needed")?;
    if !(1..=64).contains(&boot.cpus) {
        return Err("--cpus must be 1 to 64".into());
    }
    if !(16 << 20..=64 << 30).contains(&boot.memory) || !boot.memory.is_multiple_of(4096) {
        return Err("--memory must be whole pages, 16M to 64G".into());
    }
    if boot.cmdline.len() >= 2048 || boot.cmdline.contains('\0') {
        return Err("--cmdline is longer than 2047 bytes, or has a NUL".into());
    }
    Ok(boot)
}

fn parse_bench(argv: &[String]) -> Result<Bench, String> {
    let mut bench = Bench { ops: Vec::new(), rounds: 500, exits: None };
    for pair in argv.chunks(2) {
        match pair {
            [o, v] if o == "--ops" => bench.ops = v.split(',').map(Into::into).collect(),
            [o, v] if o == "--rounds" => bench.rounds = number(v)?,
            [o, v] if o == "--exits" => {
                let source = Source::parse(v).ok_or_else(|| format!("--exits {v}: cpuid, ports or perf"))?;
                bench.exits = Some(source);
            }
            _ => return Err(format!("bad option {}\n{USAGE}", pair[0])),
        }
    }
    if !(1..=10_000).contains(&bench.rounds) {
        return Err("--rounds must be 1 to 10000".into());
    }
    Ok(bench)
}

fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word}: not a number in range"))
}

fn bytes(word: &str) -> Result<u64, String> {
    let (digits, shift) = match word.as_bytes().last() {
        Some(b'K' | b'k') => (&word[..word.len() - 1], 10),
        Some(b'M' | b'm') => (&word[..word.len() - 1], 20),
        Some(b'G' | b'g') => (&word[..word.len() - 1], 30),
        _ => (word, 0),
    };
    number::<u64>(digits)?.checked_shl(shift).ok_or_else(|| format!("{word}: too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(Into::into).collect()
    }

    #[test]
    fn sizes_take_suffixes() {
        assert_eq!(bytes("128M"), Ok(128 << 20));
        assert_eq!(bytes("1G"), Ok(1 << 30));
        assert_eq!(bytes("4096"), Ok(4096));
        assert!(bytes("M").is_err() && bytes("").is_err() && bytes("-1K").is_err());
    }

    #[test]
    fn boot_needs_a_kernel_and_sane_numbers() {
        assert!(parse(&words("boot --cpus 2")).is_err());
        assert!(parse(&words("boot --kernel k --cpus 0")).is_err());
        assert!(parse(&words("boot --kernel k --memory 1M")).is_err());
        let Ok(Command::Boot(b)) = parse(&words("boot --kernel k --cpus 2 --stdin --triple-fault reboot"))
        else {
            panic!("did not parse")
        };
        assert!(b.cpus == 2 && b.stdin && b.triple_fault_reboots && b.memory == 128 << 20);
    }

    #[test]
    fn bench_takes_a_list() {
        let Ok(Command::Bench(b)) = parse(&words("bench --ops cpuid,pio --rounds 7 --exits ports")) else {
            panic!("did not parse")
        };
        assert_eq!((b.ops, b.rounds), (vec!["cpuid".to_string(), "pio".to_string()], 7));
        assert_eq!(b.exits, Some(Source::Ports));
        assert!(parse(&words("bench --ops")).is_err() && parse(&words("bench --exits x")).is_err());
    }
}
