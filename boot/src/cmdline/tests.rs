use super::*;
use alloc::string::ToString;
use alloc::vec;
use proptest::prelude::*;

/// The options of a line without problems.
fn good(line: &str) -> Options {
    let (options, problems) = parse(line);
    assert_eq!(problems, [], "{line}");
    options
}

/// The only problem of a line, which must leave the defaults alone.
fn bad(line: &str) -> Problem {
    let (options, mut problems) = parse(line);
    assert_eq!(options, Options::default(), "{line}");
    assert_eq!(problems.len(), 1, "{line}: {problems:?}");
    problems.remove(0)
}

#[test]
fn the_documented_defaults_are_the_defaults() {
    for option in option_table() {
        assert!(option.form.starts_with(option.name), "{option:?}");
        if !option.default.starts_with('(') {
            let line = format!("{}={}", option.name, option.default);
            assert_eq!(good(&line), Options::default(), "{line}");
        }
    }
    assert!(option_table().is_sorted_by_key(|option| option.name));
}

#[test]
fn markdown_has_a_row_of_three_cells_for_each_option() {
    let text = option_markdown();
    let rows: Vec<_> = text.lines().skip(2).collect();
    assert_eq!(rows.len(), option_table().len());
    for row in rows {
        let cells = row.replace("\\|", "");
        assert_eq!(cells.matches('|').count(), 4, "{row}");
    }
}

#[test]
fn booleans_in_all_of_xens_forms() {
    for (word, want) in [
        ("noreboot", true),
        ("no-noreboot", false),
        ("noreboot=1", true),
        ("noreboot=0", false),
        ("noreboot=yes", true),
        ("noreboot=no", false),
        ("noreboot=on", true),
        ("noreboot=off", false),
        ("noreboot=true", true),
        ("noreboot=false", false),
        ("noreboot=enable", true),
        ("noreboot=disable", false),
    ] {
        assert_eq!(good(word).noreboot, want, "{word}");
    }
    assert!(!good("noreboot noreboot=off").noreboot, "the last word wins");
    assert!(!good("no-x2apic").x2apic);
    let problem = bad("noreboot=maybe");
    assert_eq!(problem.severity, Severity::Error);
    assert_eq!(
        problem.to_string(),
        "command line, word 1, `noreboot=maybe`: `noreboot` cannot be set so; write `noreboot[=<boolean>]`"
    );
    // A stacked negation is undefined in Xen; here it is refused.
    assert!(bad("no-noreboot=1").what.contains("unknown"));
}

#[test]
fn serial_ports() {
    assert_eq!(good("com1=9600").com1, Serial { baud: Some(9600), ..Serial::COM1 });
    assert_eq!(good("com2=auto").com2, Serial { baud: None, ..Serial::COM2 });
    assert_eq!(
        good("com1=57600,7e2,0x2e8,0").com1,
        Serial {
            baud: Some(57600),
            data_bits: 7,
            parity: Parity::Even,
            stop_bits: 2,
            io_base: 0x2e8,
            irq: 0
        }
    );
    assert_eq!(good("com1=115200,,,10").com1, Serial { irq: 10, ..Serial::COM1 });
    assert_eq!(
        good("com1=baud=9600,parity=o,io-base=0x100").com1,
        Serial { baud: Some(9600), parity: Parity::Odd, io_base: 0x100, ..Serial::COM1 }
    );
    for word in [
        "com1",
        "com1=fast",
        "com1=0",
        "com1=230400",
        "com1=56000",
        "com1=1",
        "com1=9600,9n1",
        "com1=9600,8x1",
        "com1=9600,8n12",
        "com1=9600,8ü1",
        "com1=9600,8n1,0x10000",
        "com1=9600,8n1,0x3f8,256",
        "com1=9600,8n1,0x3f8,4,5",
        "com1=dev=pci",
        "no-com1",
    ] {
        assert_eq!(bad(word).severity, Severity::Error, "{word}");
    }
}

#[test]
fn levels_consoles_and_keys() {
    use LogLevel as L;
    assert_eq!(good("loglvl=all").loglvl, LogLevels { always: L::Debug, limited: L::Debug });
    assert_eq!(
        good("guest_loglvl=error/info").guest_loglvl,
        LogLevels { always: L::Error, limited: L::Info }
    );
    assert_eq!(good("guest-loglvl=info/none").guest_loglvl.limited, L::Info, "never below the first");
    assert_eq!(good("console=com2,vga").console, [ConsoleDevice::Com2, ConsoleDevice::Vga]);
    assert_eq!(good("console=none").console, []);
    let key = good("conswitch=bx").conswitch;
    assert_eq!((key.control(), key.to_domain), (2, false));
    for word in ["loglvl=loud", "loglvl=", "console=com3", "console=com1,", "conswitch=A", "conswitch=ay"] {
        assert_eq!(bad(word).severity, Severity::Error, "{word}");
    }
}

#[test]
fn the_other_options() {
    let o = good(
        "sched=credit maxcpus=4 mem=2G tsc=stable:socket watchdog=force spec-ctrl=no-xen,ibrs=1 nmi=ignore \
         reboot=a,warm badpage=0x12345,16-32 badpage=7",
    );
    assert_eq!((o.sched, o.maxcpus, o.mem), (Scheduler::Credit, Some(4), Some(2 << 30)));
    assert_eq!((o.tsc, o.watchdog, o.nmi), (Some(Tsc::StableSocket), Watchdog::Force, UnknownNmi::Ignore));
    assert_eq!(o.spec_ctrl, ["no-xen", "ibrs=1"]);
    assert_eq!(o.reboot, Reboot { method: Some(RebootMethod::Acpi), warm: true, never: false });
    assert_eq!(o.badpage, [(0x12345, 0x12345), (16, 32), (7, 7)]);
    assert_eq!(good("watchdog").watchdog, Watchdog::On);
    assert_eq!(good("mem=4096").mem, Some(4 << 20), "a bare size counts KiB");
    for word in
        ["maxcpus=0", "maxcpus=x", "mem=2X", "badpage=5-3", "reboot=soon", "tsc=", "sched", "spec-ctrl=,"]
    {
        assert_eq!(bad(word).severity, Severity::Error, "{word}");
    }
}

#[test]
fn every_way_to_restart_that_there_is_and_no_other() {
    use RebootMethod as M;
    let rows = [
        ("t", "triple", M::Triple),
        ("k", "kbd", M::Keyboard),
        ("a", "acpi", M::Acpi),
        ("p", "cf9", M::Cf9),
        ("pci", "pci", M::Cf9),
        ("P", "Power", M::Cf9Power),
    ];
    for (short, long, method) in rows {
        for word in [short, long] {
            assert_eq!(good(&format!("reboot={word}")).reboot.method, Some(method), "{word}");
        }
    }
    assert_eq!(good("reboot=no").reboot, Reboot { never: true, ..Reboot::default() });
    assert!(!good("reboot=w,c").reboot.warm, "the last word wins");
    for word in ["reboot=efi", "reboot=x", "reboot=a,e"] {
        let problem = bad(word);
        assert!(problem.what.contains("EFI") && problem.remedy.contains("`cf9`"), "{problem}");
    }
}

#[test]
fn other_schedulers_and_a_dom0_to_tell_are_missed_aloud() {
    for word in ["sched=credit2", "sched=null", "sched=rtds", "sched=arinc653"] {
        let problem = bad(word);
        assert_eq!(problem.severity, Severity::Error);
        assert!(problem.remedy.contains("`credit`"), "{problem}");
    }
    assert!(bad("sched=fair").remedy.contains("sched=credit"));
    let (options, problems) = parse("nmi=dom0");
    assert_eq!((options.nmi, problems[0].severity), (UnknownNmi::Dom0, Severity::Warning));
}

#[test]
fn dom0_options_are_known_but_idle() {
    let (options, problems) = parse("dom0_mem=1G,max:2G dom0_max_vcpus=2-4");
    assert_eq!(options.dom0_mem, Dom0Memory { size: Some(1 << 30), min: None, max: Some(2 << 30) });
    assert_eq!(options.dom0_max_vcpus, Some((2, 4)));
    assert!(problems.iter().all(|p| p.severity == Severity::Warning && p.what.contains("no dom0")));
    assert_eq!(problems.len(), 2);
    assert_eq!(bad("dom0_mem=half").severity, Severity::Error);
    assert_eq!(bad("dom0_max_vcpus=0-1").severity, Severity::Error);
}

#[test]
fn unknown_words_are_named_with_their_place_and_the_nearest_option() {
    let (options, problems) = parse("placeholder console=com1 loglevl=all  zzz");
    assert_eq!(options.console, vec![ConsoleDevice::Com1]);
    assert_eq!(
        problems[0].to_string(),
        "command line, word 3, `loglevl=all`: unknown option, ignored; did you mean `loglvl`?"
    );
    assert_eq!(problems[1].to_string(), "command line, word 4, `zzz`: unknown option, ignored");
    assert_eq!(bad("noreboot2=1").severity, Severity::Warning);
}

#[test]
fn file_names_quotes_and_the_rest() {
    assert_eq!(good("/boot/testudo noreboot"), good("noreboot"));
    assert_eq!(good("\"noreboot\""), good("noreboot"));
    assert_eq!(good(""), Options::default());
    assert!(bad("noreboot=\"yes").what.contains("quotation"));
    assert_eq!(bad("-- root=/dev/vda").culprit, "--");
    assert_eq!(good("noreboot --"), good("noreboot"));
}

proptest! {
    #[test]
    fn no_line_panics(line in any::<String>()) {
        parse(&line);
    }

    #[test]
    fn no_value_panics(which in 0usize..19, value in "[-0-9a-zA-Z,:/=xGM]{0,16}") {
        let name = option_table()[which].name;
        let (_, problems) = parse(&format!("{name}={value}"));
        prop_assert!(problems.len() <= 1);
    }
}
