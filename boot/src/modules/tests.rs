use super::*;
use proptest::prelude::*;

const LIMITS: Limits = Limits { max_vcpus: 128, max_memory: 64 << 30 };

fn good(lines: &[&str]) -> Vec<DomainConfig> {
    let (domains, problems) = parse(lines, &LIMITS);
    assert_eq!(problems, [], "{lines:?}");
    domains
}

/// The text of each problem; no domain may come of these lines.
fn bad(lines: &[&str]) -> Vec<String> {
    let (domains, problems) = parse(lines, &LIMITS);
    assert_eq!(domains, [], "{lines:?}");
    problems.iter().map(Problem::to_string).collect()
}

#[test]
fn a_domain_with_everything() {
    let domains = good(&[
        "ramdisk name=l1",
        "placeholder domain name=l1 vcpus=2 memory=1024M nested=on type=pvh cpus=0-3,6 weight=512 cap=150 \
         console=off on_crash=restart counters=on max_event_channels=131071 max_grant_frames=512 \
         max_maptrack_frames=0 -- console=hvc0  \"a b\" -- x",
        "module name=l1 -- first",
        "/boot/other module name=l1",
    ]);
    assert_eq!(
        domains,
        [DomainConfig {
            name: "l1".into(),
            vcpus: 2,
            memory: 1 << 30,
            nested: true,
            counters: true,
            kind: GuestType::Pvh,
            cpus: Vec::from([(0, 3), (6, 6)]),
            weight: 512,
            cap: 150,
            console: false,
            max_event_channels: 131_071,
            max_grant_frames: 512,
            max_maptrack_frames: 0,
            on_crash: OnCrash::Restart,
            kernel: 1,
            ramdisk: Some(0),
            modules: Vec::from([
                ExtraModule { module: 2, cmdline: "first".into() },
                ExtraModule { module: 3, cmdline: "".into() },
            ]),
            cmdline: "console=hvc0  \"a b\" -- x".into(),
        }]
    );
}

#[test]
fn a_domain_with_the_least() {
    let domains = good(&["domain name=a memory=16M"]);
    let d = &domains[0];
    assert_eq!((d.vcpus, d.memory, d.nested, d.weight, d.cap), (1, MIN_MEMORY, false, 256, 0));
    assert_eq!((d.max_event_channels, d.max_grant_frames, d.max_maptrack_frames), (1023, 64, 1024));
    assert_eq!((d.console, d.on_crash, d.ramdisk, d.cmdline.as_str()), (true, OnCrash::Destroy, None, ""));
    assert!(!d.counters);
}

#[test]
fn spellings() {
    assert!(good(&["domain name=a memory=1G nested"])[0].nested);
    assert!(!good(&["domain name=a memory=1G nested=on no-nested"])[0].nested);
    assert_eq!(good(&["domain 'name=a' memory=\"1G\" --"])[0].memory, 1 << 30);
    assert_eq!(good(&["domain name=a memory=16387K"])[0].memory, 16384 << 10, "whole pages");
    assert_eq!(good(&["domain name=a memory=1G cpus=all"])[0].cpus, []);
    let name = "a".repeat(MAX_NAME);
    assert_eq!(good(&[&format!("domain name={name} memory=1G")])[0].name, name);
}

#[test]
fn problems_name_line_word_and_remedy() {
    for (line, want) in [
        (
            "domain name=a memory=1G vcpus=0",
            "module 1, `vcpus=0`: out of range; write a number from 1 to 128",
        ),
        (
            "domain name=a memory=1G vcpus=1000",
            "module 1, `vcpus=1000`: out of range; write a number from 1 to 128",
        ),
        (
            "domain name=a memory=1G vcpus=two",
            "module 1, `vcpus=two`: not a number; write a number from 1 to 128",
        ),
        (
            "domain name=a memory=15M",
            "module 1, `memory=15M`: too little memory; a domain needs at least 16M",
        ),
        (
            "domain name=a memory=1024",
            "module 1, `memory=1024`: too little memory; a domain needs at least 16M, and a bare number \
             counts KiB: did you mean `memory=1024M`?",
        ),
        (
            "domain name=a memory=lots",
            "module 1, `memory=lots`: not a size; write a number and `M` or `G`, such as `memory=1024M`",
        ),
        (
            "domain name=a memory=65G",
            "module 1, `memory=65G`: too much memory; a domain can have at most 65536M",
        ),
        (
            "domain name=a memroy=1G memory=1G",
            "module 1, `memroy=1G`: a domain has no such setting; did you mean `memory=1G`?",
        ),
        (
            "domain name=a memory=1G root=/dev/vda ro quiet",
            "module 1, `root=/dev/vda`: a domain has no such setting; kernel options stand behind a `--`",
        ),
        ("domain memory=1G", "module 1: the domain has no name; add `name=<name>`"),
        ("domain name=a", "module 1: nothing says how much memory the domain has; add `memory=<n>M`"),
        (
            "domain name=a/b memory=1G",
            "module 1, `name=a/b`: a name with characters that names don't have; use letters, digits, `-`, \
             `_`, `.`, `+`, with a letter or digit first",
        ),
        ("domain name= memory=1G", "module 1, `name=`: a name of a wrong length; use 1 to 64 characters"),
        ("domain name=a memory=1G vcpus", "module 1, `vcpus`: no value; write `vcpus=...`"),
        (
            "domain name=a memory=1G type=hvm",
            "module 1, `type=hvm`: not one of the possible values; write `pvh`",
        ),
        (
            "domain name=a memory=1G max_event_channels=131072",
            "module 1, `max_event_channels=131072`: out of range; write a number from 1 to 131071",
        ),
        (
            "domain name=a memory=1G on_crash=cry",
            "module 1, `on_crash=cry`: not one of the possible values; write `destroy` or `restart`",
        ),
        (
            "domain name=a memory=1G cpus=3-1",
            "module 1, `cpus=3-1`: not a list of CPUs; write it like `cpus=0-3,6` or `cpus=all`",
        ),
        (
            "domain name=a memory=1G nested=perhaps",
            "module 1, `nested=perhaps`: neither on nor off; write `on` or `off`",
        ),
        (
            "domain name=a memory=1G nested=\"on -- x",
            "module 1, `nested=on -- x`: a quotation that does not end; add the missing quotation mark",
        ),
        (
            "dom0 root=/dev/sda",
            "module 1, `dom0`: there is no dom0 yet; start this kernel as `domain name=... memory=...`",
        ),
        ("domian name=a", "module 1, `domian`: not a kind of module; did you mean `domain`?"),
        (
            "console=hvc0",
            "module 1, `console=hvc0`: not a kind of module; begin the line with `domain` or `ramdisk`",
        ),
        (
            "/boot/vmlinuz",
            "module 1: nothing says what this module is; begin it with `domain name=... memory=...` or `ramdisk \
             name=...`",
        ),
        ("ramdisk", "module 1: nothing says whose this module is; add `name=<domain>`"),
        (
            "ramdisk name=x",
            "module 1, `name=x`: there is no domain of this name; add a module line `domain name=x ...`",
        ),
        (
            "ramdisk name=x size=3",
            "module 1, `size=3`: not understood here; the only setting of such a line is `name=<domain>`",
        ),
    ] {
        assert_eq!(bad(&[line]), [want], "{line}");
    }
}

#[test]
fn a_bad_line_does_not_stop_the_others() {
    let (domains, problems) = parse(
        &[
            "domain name=a memory=1G",
            "domain name=b memory=1G vcpus=0",
            "ramdisk name=b",
            "nonsense",
            "domain name=a memory=2G",
            "domain name=c memory=1G",
            "ramdisk name=c",
            "ramdisk name=c",
            "ramdisk name=cc",
            "ramdisk name=a -- what",
        ],
        &LIMITS,
    );
    let got: Vec<_> = domains.iter().map(|d| (d.name.as_str(), d.kernel, d.ramdisk)).collect();
    assert_eq!(got, [("a", 0, Some(9)), ("c", 5, Some(6))]);
    assert_eq!(domains[0].memory, 1 << 30, "the first of one name stands");
    let places: Vec<_> = problems.iter().map(|p| (p.place, p.severity)).collect();
    let at = |line, severity| (Place::Module { line }, severity);
    // Nothing for module 3: that domain's own line has been complained of.
    assert_eq!(
        places,
        [
            at(2, Severity::Error),
            at(4, Severity::Error),
            at(5, Severity::Error),
            at(8, Severity::Error),
            at(9, Severity::Error),
            at(10, Severity::Warning),
        ]
    );
    assert_eq!(
        problems[2].to_string(),
        "module 5, `name=a`: another domain has this name; give each domain a name of its own"
    );
    assert!(problems[3].what.contains("module 7"));
    assert_eq!(problems[4].remedy, "did you mean `name=c`?");
}

#[test]
fn every_stranger_is_named_once_the_line_has_its_double_dash() {
    assert_eq!(bad(&["domain name=a memory=1G foo=1 bar=2 -- quiet"]).len(), 2);
}

proptest! {
    #[test]
    fn no_line_panics(lines in prop::collection::vec(any::<String>(), 0..4)) {
        parse(&lines, &LIMITS);
    }

    #[test]
    fn what_comes_out_is_within_the_limits(
        lines in prop::collection::vec(
            "(domain|ramdisk|module|dom0)( (name=[ab]|vcpus=[0-9]{1,3}|memory=[0-9]{1,5}[MG]?|nested|cpus=[0-9-]{1,4}|-- x)){0,6}",
            0..5,
        )
    ) {
        let (domains, _) = parse(&lines, &LIMITS);
        for (i, domain) in domains.iter().enumerate() {
            prop_assert!((1..=LIMITS.max_vcpus).contains(&domain.vcpus));
            prop_assert!((MIN_MEMORY..=LIMITS.max_memory).contains(&domain.memory));
            prop_assert!(domains[..i].iter().all(|other| other.name != domain.name));
        }
    }
}
