//! The module lines: which boot module is whose kernel, ramdisk or further payload.
//!
//! ```text
//! module2 /boot/vmlinuz domain name=l1 vcpus=2 memory=1024M nested=on -- console=hvc0 root=/dev/vda
//! module2 /boot/initrd  ramdisk name=l1
//! module2 /boot/payload module name=l1 -- whatever the payload's string is
//! ```
//!
//! GRUB passes everything behind the file's name. A first word `placeholder`, or one that looks like a
//! path (as loaders give it that do pass the name), is skipped. What follows `--` is the kernel's command
//! line, verbatim. The order of lines is free, except that further modules keep theirs.
//!
//! A domain with anything wrong in its line is not created: a guest that starts with less (or more) than
//! was asked for is a worse surprise than one that does not start. Other domains are not affected.

mod keys;

use crate::words::{self, Word};
use crate::{Place, Problem, Severity};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Least memory of a domain, in bytes.
pub const MIN_MEMORY: u64 = 16 << 20;
/// Highest event-channel port that can be: of the FIFO ABI.
pub const MAX_EVENT_CHANNELS: u32 = (1 << 17) - 1;
/// Most frames of a grant table: what 32 bits of `add_to_physmap` and 2 MiB of memory can hold comfortably.
pub const MAX_GRANT_FRAMES: u32 = 512;
/// Most frames of handles for grants: a million mappings.
pub const MAX_MAPTRACK_FRAMES: u32 = 4096;
/// Longest name of a domain, in bytes.
pub const MAX_NAME: usize = 64;

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
    /// Its name: 1 to [`MAX_NAME`] letters, digits, `-`, `_`, `.`, `+`, beginning with a letter or digit.
    pub name: String,
    /// Number of vCPUs, at least 1 (the default).
    pub vcpus: u32,
    /// Bytes of RAM, a multiple of 4 KiB, at least [`MIN_MEMORY`].
    pub memory: u64,
    /// Whether it sees virtualization extensions; off by default.
    pub nested: bool,
    /// Whether it may read its own exit counters by CPUID; off by default.
    pub counters: bool,
    /// Kind of guest.
    pub kind: GuestType,
    /// pCPUs it may run on, as inclusive ranges; empty (the default) for all.
    pub cpus: Vec<(u32, u32)>,
    /// Share of CPU time under contention, 1..=65535; 256 is the default.
    pub weight: u16,
    /// Most CPU time, in percent of one pCPU; 0 (the default) is no limit.
    pub cap: u16,
    /// Whether its console appears on ours; on by default.
    pub console: bool,
    /// Highest event-channel port it may have, 1..=[`MAX_EVENT_CHANNELS`]; 1023 is the default.
    pub max_event_channels: u32,
    /// Frames of its grant table at most, 1..=[`MAX_GRANT_FRAMES`]; 64 is the default.
    pub max_grant_frames: u32,
    /// Frames of 256 handles each for grants that it maps at most, 0..=[`MAX_MAPTRACK_FRAMES`]; 1024 is the default.
    pub max_maptrack_frames: u32,
    /// What to do when it crashes; destroy by default.
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

/// Reads the module lines in their order; `lines[i]` is the string of boot module `i`. A bad line gives
/// problems and does not stop the others. Domains come in the order of their kernels.
pub fn parse<S: AsRef<str>>(lines: &[S], limits: &Limits) -> (Vec<DomainConfig>, Vec<Problem>) {
    let mut setup = Setup { limits, domains: Vec::new(), refused: Vec::new(), problems: Vec::new() };
    let mut attachments = Vec::new();
    for (module, line) in lines.iter().enumerate() {
        setup.line(module, line.as_ref(), &mut attachments);
    }
    for attachment in attachments {
        setup.attach(attachment);
    }
    setup.problems.sort_by_key(|problem| match problem.place {
        Place::Module { line } => line,
        Place::CommandLine { .. } => 0,
    });
    (setup.domains, setup.problems)
}

/// What a line's first word says that the module is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Domain,
    Ramdisk,
    Module,
    Dom0,
}

const ROLES: [(&str, Role); 4] =
    [("domain", Role::Domain), ("ramdisk", Role::Ramdisk), ("module", Role::Module), ("dom0", Role::Dom0)];

/// A ramdisk or further module, to be given to its domain once all domains are known.
struct Attachment {
    module: usize,
    role: Role,
    name: String,
    cmdline: String,
}

struct Setup<'a> {
    limits: &'a Limits,
    domains: Vec<DomainConfig>,
    /// Names of domains that are not created, lest their ramdisks be called orphans.
    refused: Vec<String>,
    problems: Vec<Problem>,
}

impl Setup<'_> {
    fn problem(&mut self, severity: Severity, module: usize, culprit: &str, what: String, remedy: String) {
        let place = Place::Module { line: module + 1 };
        self.problems.push(Problem { severity, place, culprit: culprit.into(), what, remedy });
    }

    fn error(&mut self, module: usize, culprit: &str, what: impl ToString, remedy: impl ToString) {
        self.problem(Severity::Error, module, culprit, what.to_string(), remedy.to_string());
    }

    fn line(&mut self, module: usize, line: &str, attachments: &mut Vec<Attachment>) {
        let (words, tail) = words::split(line);
        let skip = usize::from(words.first().is_some_and(|first| words::is_file_name(&first.text)));
        let words = &words[skip..];
        let Some(first) = words.first() else {
            let remedy = "begin it with `domain name=... memory=...` or `ramdisk name=...`";
            return self.error(module, "", "nothing says what this module is", remedy);
        };
        let role = ROLES.iter().find(|(name, _)| *name == first.text).map(|(_, role)| *role);
        match role {
            Some(Role::Domain) => self.domain(module, &words[1..], tail),
            Some(Role::Dom0) => self.error(
                module,
                &first.text,
                "there is no dom0 yet",
                "start this kernel as `domain name=... memory=...`",
            ),
            Some(role) => attachments.extend(self.attachment(module, role, &words[1..], tail)),
            None => {
                let names = ROLES.iter().map(|(name, _)| *name);
                let remedy = match words::nearest(&first.text, names) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "begin the line with `domain` or `ramdisk`".into(),
                };
                self.error(module, &first.text, "not a kind of module", remedy);
            }
        }
    }

    fn domain(&mut self, module: usize, words: &[Word], tail: Option<&str>) {
        let mut draft = DomainConfig {
            name: String::new(),
            vcpus: 1,
            memory: 0,
            nested: false,
            counters: false,
            kind: GuestType::Pvh,
            cpus: Vec::new(),
            weight: 256,
            cap: 0,
            console: true,
            max_event_channels: 1023,
            max_grant_frames: 64,
            max_maptrack_frames: 1024,
            on_crash: OnCrash::Destroy,
            kernel: module,
            ramdisk: None,
            modules: Vec::new(),
            cmdline: tail.unwrap_or_default().into(),
        };
        let before = self.problems.len();
        let mut strangers = 0;
        for word in words {
            match keys::apply(&mut draft, word, self.limits) {
                Ok(()) => {}
                Err(keys::Fault::Stranger) => {
                    strangers += 1;
                    // Without a `--` they are all kernel options, and saying so once is enough.
                    if tail.is_some() || strangers == 1 {
                        let remedy = "kernel options stand behind a `--`";
                        self.error(module, &word.text, "a domain has no such setting", remedy);
                    }
                }
                Err(keys::Fault::Bad { what, remedy }) => self.error(module, &word.text, what, remedy),
            }
        }
        let said = |key: &str| words.iter().any(|word| word.text.starts_with(key));
        if !said("name=") {
            self.error(module, "", "the domain has no name", "add `name=<name>`");
        }
        if !said("memory=") {
            self.error(module, "", "nothing says how much memory the domain has", "add `memory=<n>M`");
        }
        let taken = self.domains.iter().any(|other| other.name == draft.name);
        if taken && !draft.name.is_empty() {
            let (culprit, what) = (format!("name={}", draft.name), "another domain has this name");
            return self.error(module, &culprit, what, "give each domain a name of its own");
        }
        if self.problems.len() > before {
            self.refused.push(draft.name);
        } else {
            self.domains.push(draft);
        }
    }

    /// Reads a ramdisk's or further module's line: nothing but `name=`.
    fn attachment(
        &mut self,
        module: usize,
        role: Role,
        words: &[Word],
        tail: Option<&str>,
    ) -> Option<Attachment> {
        let mut name = None;
        for word in words {
            match word.text.strip_prefix("name=") {
                Some(text) => name = Some(text),
                None => {
                    let remedy = "the only setting of such a line is `name=<domain>`";
                    self.error(module, &word.text, "not understood here", remedy);
                    return None;
                }
            }
        }
        let Some(name) = name else {
            self.error(module, "", "nothing says whose this module is", "add `name=<domain>`");
            return None;
        };
        let cmdline = tail.unwrap_or_default();
        if role == Role::Ramdisk && !cmdline.is_empty() {
            let what = "a ramdisk has no command line; ignored".into();
            let remedy = "put kernel options behind the `--` of the domain's line".into();
            self.problem(Severity::Warning, module, "--", what, remedy);
        }
        Some(Attachment { module, role, name: name.into(), cmdline: cmdline.into() })
    }

    fn attach(&mut self, attachment: Attachment) {
        let Attachment { module, role, name, cmdline } = attachment;
        let Some(domain) = self.domains.iter_mut().find(|domain| domain.name == name) else {
            if !self.refused.contains(&name) {
                let names = self.domains.iter().map(|domain| domain.name.as_str());
                let remedy = match words::nearest(&name, names) {
                    Some(near) => format!("did you mean `name={near}`?"),
                    None => format!("add a module line `domain name={name} ...`"),
                };
                self.error(module, &format!("name={name}"), "there is no domain of this name", remedy);
            }
            return;
        };
        if role == Role::Module {
            domain.modules.push(ExtraModule { module, cmdline });
        } else if let Some(first) = domain.ramdisk {
            let what = format!("the domain has a ramdisk already, module {}", first + 1);
            let remedy = "join them into one file, or pass this one as `module`";
            self.error(module, &format!("name={name}"), what, remedy);
        } else {
            domain.ramdisk = Some(module);
        }
    }
}

#[cfg(test)]
mod tests;
