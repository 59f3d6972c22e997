//! What the documentation says of the command lines is what the parsers accept.
//!
//! The table of options in `docs/boot-options.md` is generated. To write it anew:
//! `TESTUDO_WRITE_DOCS=1 cargo test -p boot --test docs`.

use boot::cmdline;
use boot::modules::{self, Limits};
use std::path::PathBuf;

const BEGIN: &str = "<!-- generated: options -->\n";
const END: &str = "<!-- end -->\n";

fn page() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/boot-options.md")
}

fn text() -> String {
    std::fs::read_to_string(page()).expect("docs/boot-options.md is there")
}

/// What stands before the generated table, the table, and what stands behind.
fn parts(text: &str) -> (&str, &str, &str) {
    let (before, rest) = text.split_once(BEGIN).expect("the page marks where the table begins");
    let (table, after) = rest.split_once(END).expect("the page marks where the table ends");
    (before, table, after)
}

#[test]
fn the_option_table_is_the_generated_one() {
    let text = text();
    let (before, table, after) = parts(&text);
    let generated = cmdline::option_markdown();
    if std::env::var_os("TESTUDO_WRITE_DOCS").is_some() {
        let new = format!("{before}{BEGIN}{generated}{END}{after}");
        std::fs::write(page(), new).expect("the page can be written");
        return;
    }
    assert_eq!(
        table, generated,
        "docs/boot-options.md is out of date: run `TESTUDO_WRITE_DOCS=1 cargo test -p boot --test docs`"
    );
}

/// The words behind `command` on each line of the page's code blocks that begins with it.
fn examples<'a>(text: &'a str, command: &str) -> Vec<&'a str> {
    let lines = text.lines().map(str::trim);
    lines.filter_map(|line| line.strip_prefix(command)?.strip_prefix(' ')).collect()
}

#[test]
fn the_examples_of_module_lines_mean_something() {
    let text = text();
    // GRUB passes what stands behind the file's name.
    let lines: Vec<_> =
        examples(&text, "module2").iter().map(|line| line.split_once(' ').unwrap_or(("", "")).1).collect();
    assert!(lines.len() >= 3, "{lines:?}");
    let (domains, problems) = modules::parse(&lines, &Limits { max_vcpus: 128, max_memory: 1 << 40 });
    assert_eq!(problems, []);
    assert!(domains.iter().any(|domain| domain.nested && domain.ramdisk.is_some()));
}

#[test]
fn the_examples_of_the_command_line_have_no_fault() {
    let text = text();
    let lines = examples(&text, "multiboot2");
    assert!(!lines.is_empty());
    for line in lines {
        assert_eq!(cmdline::parse(line).1, [], "{line}");
    }
}

#[test]
fn every_setting_of_a_domain_stands_in_its_table() {
    let text = text();
    let (_, table) = text.split_once("## Settings of a domain").expect("the page has that section");
    let rows: Vec<_> = table.lines().filter_map(|line| line.strip_prefix("| `")).collect();
    let written: Vec<_> = rows.iter().filter_map(|row| row.split(['=', '`', '[']).next()).collect();
    // The parser knows what the page names: of a setting that it does not know it says so.
    for name in &written {
        let (_, problems) =
            modules::parse(&[format!("domain {name}")], &Limits { max_vcpus: 1, max_memory: 1 << 30 });
        assert!(!problems.iter().any(|p| p.what.contains("no such setting")), "{name}");
    }
    // And the page names what a line can say.
    for name in ["name", "vcpus", "memory", "nested", "console", "type", "cpus", "weight", "cap", "on_crash"]
    {
        assert!(written.contains(&name), "{name} is missing");
    }
}
