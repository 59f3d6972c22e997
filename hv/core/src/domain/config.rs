//! What a domain is made from.

use crate::sched::Affinity;
use alloc::string::String;
use alloc::vec::Vec;
use xen_abi::memory::E820Type;
use xen_abi::sched::ShutdownReason;

/// What to do with a domain that has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Destroy it.
    Destroy,
    /// Destroy it and build it anew from the same configuration.
    Rebuild,
    /// Keep it for inspection.
    Preserve,
}

/// A record of the memory map that a guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRegion {
    /// First guest-physical address.
    pub start: u64,
    /// Bytes.
    pub bytes: u64,
    /// What is there.
    pub kind: E820Type,
}

/// What a domain is made from. It does not change afterwards.
#[derive(Clone, Debug)]
pub struct DomainConfig {
    /// Its name, for people.
    pub name: String,
    /// Number of vCPUs, 1 to [`DomainConfig::MAX_VCPUS`].
    pub vcpus: u32,
    /// Share of the machine relative to other domains' vCPUs; 256 is usual.
    pub weight: u32,
    /// Most CPU time that its vCPUs may use together, in percent of one pCPU; 0 for no limit.
    pub cap: u32,
    /// pCPUs its vCPUs may run on.
    pub affinity: Affinity,
    /// Most pages of RAM it may have.
    pub max_pages: u64,
    /// Its memory map, as `XENMEM_memory_map` answers.
    pub memory_map: Vec<MemoryRegion>,
    /// Highest event-channel port.
    pub max_port: u32,
    /// Most frames of its grant table.
    pub max_grant_frames: u32,
    /// Grants of others that it may map, in units of 256.
    pub max_maptrack_frames: u32,
    /// Whether it is the control domain and may act on others.
    pub privileged: bool,
    /// Whether `console_io` writes are taken although it is not privileged.
    pub console_io: bool,
    /// When it powers off.
    pub on_poweroff: Action,
    /// When it asks to be started again.
    pub on_reboot: Action,
    /// When it crashes or its watchdog runs out.
    pub on_crash: Action,
    /// Its UUID.
    pub uuid: [u8; 16],
}

impl DomainConfig {
    /// Most vCPUs of a domain: APIC ids (twice the vCPU's number) then fit in a byte.
    pub const MAX_VCPUS: u32 = 128;

    /// The usual configuration for a domain of this name and size.
    pub fn new(name: impl Into<String>, vcpus: u32, max_pages: u64) -> Self {
        Self {
            name: name.into(),
            vcpus,
            weight: 256,
            cap: 0,
            affinity: Affinity::ALL,
            max_pages,
            memory_map: Vec::new(),
            max_port: 1023,
            max_grant_frames: 64,
            max_maptrack_frames: 1024,
            privileged: false,
            console_io: false,
            on_poweroff: Action::Destroy,
            on_reboot: Action::Rebuild,
            on_crash: Action::Destroy,
            uuid: [0; 16],
        }
    }

    /// What to do after a stop for this reason.
    pub fn action(&self, reason: ShutdownReason) -> Action {
        match reason {
            ShutdownReason::POWEROFF | ShutdownReason::SUSPEND => self.on_poweroff,
            ShutdownReason::REBOOT | ShutdownReason::SOFT_RESET => self.on_reboot,
            _ => self.on_crash,
        }
    }
}
