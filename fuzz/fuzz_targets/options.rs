//! Command lines of any content give options and problems; a domain that is accepted is within the limits.
#![no_main]
use boot::modules::Limits;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let _ = boot::cmdline::parse(&text);
    let lines: Vec<&str> = text.lines().collect();
    let limits = Limits { max_vcpus: 64, max_memory: 1 << 34 };
    let (domains, _) = boot::modules::parse(&lines, &limits);
    for (index, domain) in domains.iter().enumerate() {
        assert!((1..=limits.max_vcpus).contains(&domain.vcpus), "{domain:?}");
        assert!(domain.memory <= limits.max_memory && domain.memory % 4096 == 0, "{domain:?}");
        assert!(domain.kernel < lines.len() && domain.ramdisk.is_none_or(|r| r < lines.len()), "{domain:?}");
        assert!(domains[..index].iter().all(|d| d.name != domain.name), "two domains of one name");
    }
});
