//! The module lines: which module is whose kernel, ramdisk or payload.
#![allow(clippy::todo)]
use crate::Problem;
use alloc::string::String;
use alloc::vec::Vec;

/// Least memory of a domain, in bytes.
pub const MIN_MEMORY: u64 = 16 << 20;

/// What the caller can bear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most vCPUs of one domain.
    pub max_vcpus: u32,
    /// Most memory of one domain, in bytes.
    pub max_memory: u64,
}

/// The kind of guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestType {
    /// A PVH guest.
    Pvh,
}

/// What to do when a guest crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCrash {
    /// Take it down.
    Destroy,
    /// Start it again.
    Restart,
}

/// A further module of a domain, handed to its kernel behind the ramdisk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraModule {
    /// Index among the boot modules, from 0.
    pub module: usize,
    /// Its string.
    pub cmdline: String,
}

/// A domain to create at boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainConfig {
    /// Its name: 1 to 64 letters, digits, `-`, `_`, `.`, `+`.
    pub name: String,
    /// Number of vCPUs, at least 1.
    pub vcpus: u32,
    /// Bytes of RAM, a multiple of 4 KiB.
    pub memory: u64,
    /// Whether it sees virtualization extensions.
    pub nested: bool,
    /// Kind of guest.
    pub kind: GuestType,
    /// pCPUs it may run on, as inclusive ranges; empty for all.
    pub cpus: Vec<(u32, u32)>,
    /// Share of CPU time under contention, 1..=65535; 256 is the ordinary one.
    pub weight: u16,
    /// Most CPU time, in percent of one pCPU; 0 is no limit.
    pub cap: u16,
    /// Whether its console appears on ours.
    pub console: bool,
    /// What to do when it crashes.
    pub on_crash: OnCrash,
    /// Index of the kernel among the boot modules, from 0.
    pub kernel: usize,
    /// Index of the initial ramdisk.
    pub ramdisk: Option<usize>,
    /// Further modules in the order of their lines.
    pub modules: Vec<ExtraModule>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// Reads the module lines in their order. A bad line gives a problem and does not stop the others.
pub fn parse<S: AsRef<str>>(_lines: &[S], _limits: &Limits) -> (Vec<DomainConfig>, Vec<Problem>) {
    todo!()
}
