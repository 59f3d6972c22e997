//! A small virtual machine monitor on `/dev/kvm`: the everyday VMM of an L1 Linux under Testudo, and the measuring
//! instrument for nested exits. `vmm boot` runs a Linux, `vmm bench` counts TSC ticks and L0's exits per operation.
//!
//! UNSAFETY: talks to the kernel (mmap, memory slots, signals) and executes RDTSC and CPUID; guest memory is only
//! touched through volatile copies in `memory`.

mod acpi;
mod args;
mod bench;
mod bench_code;
mod boot;
mod exits;
mod loader;
mod machine;
mod mark;
mod memory;
mod perf;
mod ports;
mod serial;

use args::Command;

/// Exit status for bad arguments and for a machine that could not be built.
pub const STATUS_SETUP: i32 = 2;

fn main() {
    mark::phase(mark::START);
    let argv: Vec<String> = std::env::args().skip(1).collect();
    let status = match args::parse(&argv) {
        Ok(Command::Boot(options)) => boot::run(&options),
        Ok(Command::Bench(options)) => bench::run(&options),
        Err(message) => Err(message),
    };
    std::process::exit(status.unwrap_or_else(|message| {
        eprintln!("vmm: {message}");
        STATUS_SETUP
    }));
}
