//! The table of options.

use super::value::{self, Fault, Value};
use super::{Crash, Options, Trace, Tsc, UnknownNmi};
use crate::words::{integer, size};
use alloc::string::String;
use core::fmt::{self, Write};

/// One row of the table of options.
#[derive(Clone, Copy)]
pub struct OptionDoc {
    /// The name before `=`.
    pub name: &'static str,
    /// How it is written.
    pub form: &'static str,
    /// What holds if the option is absent; in parentheses where that is no value one could write.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
    apply: fn(&mut Options, Value<'_>) -> Result<(), Fault>,
}

impl fmt::Debug for OptionDoc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OptionDoc({})", self.form)
    }
}

impl OptionDoc {
    pub(super) fn apply(&self, options: &mut Options, value: Value<'_>) -> Result<(), Fault> {
        (self.apply)(options, value)
    }
}

macro_rules! options {
    ($($name:literal $form:literal, $default:literal, $meaning:literal,
       |$options:ident, $value:ident| $apply:expr;)*) => {
        static OPTIONS: &[OptionDoc] = &[$(OptionDoc {
            name: $name,
            form: $form,
            default: $default,
            meaning: $meaning,
            apply: |$options, $value| $apply,
        }),*];
    };
}

const NO_DOM0: Result<(), Fault> = Err(Fault::NoEffect("there is no dom0 yet, so this does nothing"));

options! {
    "badpage" "badpage=<frame>[-<frame>][,...]", "(none)",
    "Host frames (addresses shifted right by 12) that are not to be used because the RAM there is bad.",
    |o, v| v.text(|text| value::list(text, value::range)).map(|list| o.badpage.extend(list));

    "com1" "com1=<baud>|auto[,DPS[,<io-base>[,<irq>]]]", "115200,8n1,0x3f8,4",
    "The first serial port. The speed is 115200 divided by a whole number. DPS is data bits (5-8), parity (n, o, e, m, s) and stop bits (1, 2). `auto` \
     keeps the speed that firmware set; interrupt 0 polls. Pairs (`baud=`, `data-bits=`, `parity=`, \
     `stop-bits=`, `io-base=`, `irq=`) may follow, separated by commas.",
    |o, v| v.text(|text| value::serial(text, o.com1)).map(|com1| o.com1 = com1);

    "com2" "com2=<baud>|auto[,DPS[,<io-base>[,<irq>]]]", "115200,8n1,0x2f8,3",
    "The second serial port, as `com1`.",
    |o, v| v.text(|text| value::serial(text, o.com2)).map(|com2| o.com2 = com2);

    "console" "console=com1|com2|vga[,...] or console=none", "com1,vga",
    "Where the console appears: on all that are named. Input is taken from every serial port named.",
    |o, v| v.text(value::console).map(|list| o.console = list);

    "conswitch" "conswitch=<letter>[x]", "a",
    "Ctrl and this letter, three times, moves console input between the hypervisor and the domains. With \
     a trailing `x` input starts at the hypervisor instead of the first domain.",
    |o, v| v.text(value::conswitch).map(|key| o.conswitch = key);

    "crash-key" "crash-key=panic|page-fault|stack-overflow|closed-gif", "panic",
    "In what way the key `C` makes the hypervisor fail, to try its report out: a panic, a write to nowhere, \
     recursion without end, or a panic with GIF=0.",
    |o, v| v.one_of(&[
        ("panic", Crash::Panic), ("page-fault", Crash::PageFault), ("stack-overflow", Crash::StackOverflow),
        ("closed-gif", Crash::ClosedGif),
    ]).map(|how| o.crash_key = how);

    "dom0_max_vcpus" "dom0_max_vcpus=<most> or dom0_max_vcpus=<least>-<most>", "(one per CPU)",
    "Number of dom0's vCPUs. Recognised, but there is no dom0 yet.",
    |o, v| v.text(value::vcpu_range).and_then(|range| {
        o.dom0_max_vcpus = Some(range);
        NO_DOM0
    });

    "dom0_mem" "dom0_mem=[min:<size>][,max:<size>][,<size>]", "(all but a reserve)",
    "Dom0's memory; a bare number counts KiB. Recognised, but there is no dom0 yet.",
    |o, v| v.text(value::dom0_memory).and_then(|memory| {
        o.dom0_mem = memory;
        NO_DOM0
    });

    "guest_loglvl" "guest_loglvl=<level>[/<rate-limited level>]", "none/warning",
    "Which messages caused by guests are logged; levels as for `loglvl`, and each group of guests has a limit of its \
     own.",
    |o, v| v.text(value::log_levels).map(|levels| o.guest_loglvl = levels);

    "loglvl" "loglvl=<level>[/<rate-limited level>]", "info",
    "Which of the hypervisor's messages are logged: `none`, `error`, `warning`, `info`, `debug` or `all`. \
     Those above the first level, up to the second, are rate-limited: ten at once, and one more every 5 seconds. \
     Why the machine stops, and answers to keys, are always shown.",
    |o, v| v.text(value::log_levels).map(|levels| o.loglvl = levels);

    "maxcpus" "maxcpus=<number>", "(all)",
    "The most CPUs to use.",
    |o, v| v.text(|text| u32::try_from(integer(text)?).ok().filter(|n| *n > 0)).map(|n| o.maxcpus = Some(n));

    "mem" "mem=<size>", "0",
    "RAM above this address is not used; 0 is no limit. A size has a suffix `B`, `K`, `M`, `G` or `T`; a \
     bare number counts KiB.",
    |o, v| v.text(size).map(|bytes| o.mem = (bytes != 0).then_some(bytes));

    "nmi" "nmi=ignore|dom0|fatal", "fatal",
    "What to do with an NMI of the hardware: a system error on PCI, an I/O channel check, or one of unknown origin. \
     `fatal` stops the machine with a report, `dom0` (which does not exist yet) logs it, `ignore` does nothing.",
    |o, v| v.one_of(&[
        ("ignore", UnknownNmi::Ignore), ("dom0", UnknownNmi::Dom0), ("fatal", UnknownNmi::Fatal),
    ]).and_then(|nmi| {
        o.nmi = nmi;
        if nmi == UnknownNmi::Dom0 {
            return Err(Fault::NoEffect("there is no dom0 yet to tell: such an NMI is logged"));
        }
        Ok(())
    });

    "noreboot" "noreboot[=<boolean>]", "no",
    "Do not restart the machine after a fatal error.",
    |o, v| v.boolean().map(|on| o.noreboot = on);

    "reboot" "reboot=acpi|cf9|Power|kbd|triple|no[,warm|cold]", "(what the machine offers)",
    "How to restart the machine: by ACPI's reset register, by port CF9h (`Power`: with a power cycle), by the keyboard \
     controller, or by a triple fault. What does nothing is followed by the others, in this order but for `Power`. `no` \
     is `noreboot`; `warm` asks firmware to skip its memory test. Xen's abbreviations (`a`, `p`, `P`, `k`, `t`, `n`, \
     `w`, `c`) and its `pci` for `cf9` work too; its `efi` and `xen` do not exist.",
    |o, v| value::reboot(v).map(|reboot| o.reboot = reboot);

    "sched" "sched=credit", "credit",
    "The scheduler. There is one: shares by weight, with caps.",
    |o, v| value::scheduler(v).map(|sched| o.sched = sched);

    "spec-ctrl" "spec-ctrl=<item>[,...]", "(by CPU)",
    "Mitigations of speculative side channels, in Xen's items (`no`, `ibrs=<boolean>`, ...).",
    |o, v| v.text(|text| value::list(text, |item| (!item.is_empty()).then(|| String::from(item))))
        .map(|items| o.spec_ctrl = items);

    "trace" "trace=off|exits|all", "exits",
    "What each CPU records of its last events: nothing; exits, hypercalls, changes of the vCPU and the log; or \
     also every entry with what it injects, nested entries, reflected exits and flushes.",
    |o, v| v.one_of(&[("off", Trace::Off), ("exits", Trace::Exits), ("all", Trace::All)])
        .map(|trace| o.trace = trace);

    "tsc" "tsc=unstable|skewed|stable:socket", "(measured)",
    "How far the time stamp counters can be trusted.",
    |o, v| v.one_of(&[
        ("unstable", Tsc::Unstable), ("skewed", Tsc::Skewed), ("stable:socket", Tsc::StableSocket),
    ]).map(|tsc| o.tsc = Some(tsc));

    "watchdog" "watchdog[=force|<boolean>]", "no",
    "Stop with a report if a CPU makes no progress.",
    |o, v| value::watchdog(v).map(|watchdog| o.watchdog = watchdog);

    "x2apic" "x2apic[=<boolean>]", "yes",
    "Use x2APIC mode where the machine has it.",
    |o, v| v.boolean().map(|on| o.x2apic = on);
}

/// Every option there is, in the order of their names.
pub fn option_table() -> &'static [OptionDoc] {
    OPTIONS
}

/// The table as Markdown, for the documentation.
pub fn option_markdown() -> String {
    let mut out = String::from("| option | default | meaning |\n|---|---|---|\n");
    for option in OPTIONS {
        // A `|` ends a cell, even in code.
        let form = option.form.replace('|', "\\|");
        let default = option.default;
        let default = if default.starts_with('(') { default.into() } else { alloc::format!("`{default}`") };
        let _ = writeln!(out, "| `{form}` | {default} | {} |", option.meaning);
    }
    out
}

/// The option of this name; `-` and `_` are the same.
pub(super) fn find(name: &str) -> Option<&'static OptionDoc> {
    let plain = |c| if c == b'_' { b'-' } else { c };
    OPTIONS.iter().find(|option| option.name.bytes().map(plain).eq(name.bytes().map(plain)))
}
