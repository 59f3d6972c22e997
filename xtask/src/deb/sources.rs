//! The machine's apt sources: reading both formats, keeping Debian's entries, moving them to another suite.
//!
//! No mirror is named here: whoever runs xtask has already said where Debian's packages come from.
use std::collections::BTreeMap;
use std::path::Path;

/// One source of packages, as deb822 has it: every pair of URI and suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where: any URI that apt knows, also `mirror+file:`.
    pub uris: Vec<String>,
    /// Which suites of it, such as `bookworm`, `bookworm-security`.
    pub suites: Vec<String>,
    /// Such as `main`.
    pub components: Vec<String>,
    /// Other fields (`signed-by`, `trusted` …) by lower-case name: kept as they are.
    pub options: BTreeMap<String, String>,
}

/// Debian's releases whose packages we may ask for.
const CODENAMES: [&str; 6] = ["bullseye", "bookworm", "trixie", "forky", "sid", "duke"];

/// Reads the one-line format, sources.list(5). Lines that are no `deb` line are skipped.
pub fn parse_one_line(text: &str) -> Vec<Entry> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Entry> {
    let line = line.split('#').next()?.trim();
    let mut rest = line.strip_prefix("deb")?.strip_prefix(|c: char| c.is_whitespace())?.trim_start();
    let mut options = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('[') {
        let (bracket, after) = inner.split_once(']')?;
        for (key, value) in bracket.split_whitespace().filter_map(|word| word.split_once('=')) {
            let key = match key {
                "arch" => "architectures",
                other => other,
            };
            options.insert(key.to_lowercase(), value.replace(',', " "));
        }
        rest = after.trim_start();
    }
    let mut words = rest.split_whitespace().map(String::from);
    let (uri, suite) = (words.next()?, words.next()?);
    Some(Entry { uris: vec![uri], suites: vec![suite], components: words.collect(), options })
}

/// Reads the deb822 format, sources.list(5). Disabled stanzas and those without `deb` are skipped.
pub fn parse_deb822(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut fields: BTreeMap<String, String> = BTreeMap::new();
    let mut last = String::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        } else if line.trim().is_empty() {
            entries.extend(stanza(std::mem::take(&mut fields)));
        } else if line.starts_with([' ', '\t']) {
            // A continuation line, as in an inline Signed-By key.
            if let Some(value) = fields.get_mut(&last) {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((key, value)) = line.split_once(':') {
            last = key.trim().to_lowercase();
            fields.insert(last.clone(), value.trim().to_string());
        }
    }
    entries
}

fn stanza(mut fields: BTreeMap<String, String>) -> Option<Entry> {
    let mut list = |key: &str| -> Vec<String> {
        fields.remove(key).unwrap_or_default().split_whitespace().map(String::from).collect()
    };
    let (types, uris, suites, components) = (list("types"), list("uris"), list("suites"), list("components"));
    let enabled = !fields.remove("enabled").is_some_and(|v| v.eq_ignore_ascii_case("no"));
    let usable = enabled && types.iter().any(|t| t == "deb") && !uris.is_empty() && !suites.is_empty();
    usable.then_some(Entry { uris, suites, components, options: fields })
}

/// Reads every source the machine has below `etc` (normally `/etc/apt`).
pub fn read_machine(etc: &Path) -> Vec<Entry> {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let mut entries = parse_one_line(&read(&etc.join("sources.list")));
    let parts = std::fs::read_dir(etc.join("sources.list.d")).into_iter().flatten().flatten();
    let mut files: Vec<_> = parts.map(|f| f.path()).collect();
    files.sort();
    for file in files {
        match file.extension().and_then(|e| e.to_str()) {
            Some("list") => entries.extend(parse_one_line(&read(&file))),
            Some("sources") => entries.extend(parse_deb822(&read(&file))),
            _ => {}
        }
    }
    entries
}

/// What part of Debian a suite's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pocket {
    Main,
    Security,
}

fn pocket(suite: &str) -> Option<Pocket> {
    let suite = suite.trim_end_matches('/');
    let (name, rest) = suite.split_once(['-', '/']).unwrap_or((suite, ""));
    if !CODENAMES.contains(&name) && !["stable", "oldstable", "testing", "unstable"].contains(&name) {
        return None;
    }
    match rest {
        "" | "updates" if !suite.contains('/') => Some(Pocket::Main),
        "backports" | "proposed-updates" => Some(Pocket::Main),
        "security" | "updates" => Some(Pocket::Security),
        _ => None,
    }
}

/// Whether an entry is Debian's own archive: its suites are Debian's, it has `main`, no optical disc, and
/// its key, if it names one, is Debian's. Vendors that reuse the codename fail one of these.
fn is_debian(entry: &Entry) -> bool {
    let key = entry.options.get("signed-by").map(String::as_str).unwrap_or("");
    entry.components.iter().any(|c| c == "main")
        && entry.suites.iter().any(|s| pocket(s).is_some())
        && (key.is_empty() || key.contains("debian-archive") || key.contains("BEGIN PGP"))
        && entry.uris.iter().all(|u| !u.starts_with("cdrom:"))
}

/// The machine's Debian entries moved to `release`: `main` of it, its updates and backports from where the
/// main archive comes, its security updates from where those come. Empty if the machine has no Debian.
pub fn for_release(machine: &[Entry], release: &str) -> Vec<Entry> {
    let mut out: Vec<Entry> = Vec::new();
    for entry in machine.iter().filter(|e| is_debian(e)) {
        for kind in [Pocket::Main, Pocket::Security] {
            if !entry.suites.iter().any(|s| pocket(s) == Some(kind)) {
                continue;
            }
            let suites = match kind {
                Pocket::Main if release == "sid" => vec![release.to_string()],
                Pocket::Main => ["", "-updates", "-backports"].map(|s| format!("{release}{s}")).to_vec(),
                Pocket::Security => vec![format!("{release}-security")],
            };
            let mut options = entry.options.clone();
            options.retain(|key, _| {
                ["signed-by", "trusted", "check-valid-until", "check-date"].contains(&key.as_str())
            });
            let moved = Entry { uris: entry.uris.clone(), suites, components: vec!["main".into()], options };
            if !out.contains(&moved) {
                out.push(moved);
            }
        }
    }
    out
}

/// Writes entries in the deb822 format, for amd64 packages only.
pub fn render(entries: &[Entry]) -> String {
    let mut text = String::new();
    for entry in entries {
        text += &format!("Types: deb\nURIs: {}\nSuites: {}\n", entry.uris.join(" "), entry.suites.join(" "));
        text += &format!("Components: {}\nArchitectures: amd64\n", entry.components.join(" "));
        for (key, value) in &entry.options {
            text += &format!("{key}: {value}\n");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "Types: deb\n# a comment\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\
        Components: main contrib\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n\
        Types: deb deb-src\nURIs: http://mirror.example/debian-security\nSuites: bookworm-security\nComponents: main\n\n\
        Enabled: no\nTypes: deb\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\n\n\
        Types: deb\nURIs: http://node.example/node\nSuites: nodistro\nComponents: main\n";

    #[test]
    fn one_line_format_with_options() {
        let text = "# deb http://no bookworm main\ndeb [arch=amd64,i386 signed-by=/k/debian-archive-keyring.gpg] \
                    http://m/debian bookworm main contrib # note\ndeb-src http://m/debian bookworm main\n";
        let entries = parse_one_line(text);
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].suites, ["bookworm"]);
        assert_eq!(entries[0].components, ["main", "contrib"]);
        assert_eq!(entries[0].options["architectures"], "amd64 i386");
    }

    #[test]
    fn deb822_keeps_enabled_deb_stanzas() {
        let entries = parse_deb822(DEB822);
        let uris: Vec<_> = entries.iter().map(|e| e.uris[0].as_str()).collect();
        assert_eq!(
            uris,
            [
                "http://mirror.example/debian",
                "http://mirror.example/debian-security",
                "http://node.example/node"
            ]
        );
    }

    #[test]
    fn another_release_is_the_same_archive_with_the_suite_replaced() {
        let moved = for_release(&parse_deb822(DEB822), "trixie");
        assert_eq!(moved.len(), 2);
        assert_eq!(moved[0].suites, ["trixie", "trixie-updates", "trixie-backports"]);
        assert_eq!(moved[0].uris, ["http://mirror.example/debian"]);
        assert_eq!(moved[0].components, ["main"]);
        assert_eq!(moved[1].suites, ["trixie-security"]);
        assert_eq!(moved[1].uris, ["http://mirror.example/debian-security"]);
    }

    #[test]
    fn vendors_that_reuse_the_codename_are_left_out() {
        let vendors = "deb [signed-by=/k/vendor.gpg] http://a.example bookworm main\n\
                       deb http://b.example bookworm stable\ndeb http://c.example bookworm-pgdg main\n\
                       deb cdrom:[Debian] bookworm main\n";
        assert!(for_release(&parse_one_line(vendors), "bookworm").is_empty());
    }

    #[test]
    fn what_is_written_can_be_read_again() {
        let moved = for_release(&parse_deb822(DEB822), "bookworm");
        let again = parse_deb822(&render(&moved));
        assert_eq!(again.len(), moved.len());
        assert_eq!(again[0].options["signed-by"], "/usr/share/keyrings/debian-archive-keyring.gpg");
        assert_eq!(again[0].options["architectures"], "amd64");
    }
}
