//! Rules on the text of files: lengths, left-over notes, paths of somebody's machine.
use crate::layout::Layout;
use std::path::{Path, PathBuf};

/// Lines above which a source file must be split.
const LONGEST: usize = 1000;

/// What no tracked file holds, with the reason. Each is written in two halves so that this file passes.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("TO", "DO:", "notes of unfinished work belong in the tracker"),
    ("FIX", "ME", "notes of unfinished work belong in the tracker"),
    ("/ho", "me/", "a path of one machine"),
    ("/ro", "ot/", "a path of one machine"),
    ("/wo", "rk/", "a path of one machine"),
];

/// Checks text files.
pub fn check(layout: &Layout, files: &[PathBuf]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|f| is_text(f)) {
        let Ok(text) = std::fs::read_to_string(layout.root().join(file)) else { continue };
        problems.extend(judge(&file.display().to_string(), &text));
    }
    problems
}

fn judge(name: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for (a, b, why) in FORBIDDEN {
            if line.contains(&format!("{a}{b}")) {
                problems.push(format!("{name}:{}: `{a}{b}`: {why}", number + 1));
            }
        }
    }
    let lines = text.lines().count();
    if name.ends_with(".rs") && lines > LONGEST {
        problems.push(format!("{name}: {lines} lines: split it"));
    }
    problems
}

fn is_text(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let extension = file.extension().unwrap_or_default().to_string_lossy();
    ["rs", "s", "S", "ld", "md", "toml", "sh", "cfg"].contains(&extension.as_ref()) || name == "run"
}

/// Source files by number of lines, longest first.
pub fn lengths(layout: &Layout, files: &[PathBuf]) -> Vec<(String, usize)> {
    let sources = files.iter().filter(|f| f.extension().is_some_and(|e| e == "rs"));
    let mut all: Vec<_> = sources
        .filter_map(|f| {
            Some((
                f.display().to_string(),
                std::fs::read_to_string(layout.root().join(f)).ok()?.lines().count(),
            ))
        })
        .collect();
    all.sort_by_key(|(name, lines)| (std::cmp::Reverse(*lines), name.clone()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn left_overs_are_found_with_their_line() {
        let text = format!("fine\n// {}{} later\n", "TO", "DO:");
        assert_eq!(judge("a.rs", &text).len(), 1);
        assert!(judge("a.rs", &text)[0].starts_with("a.rs:2:"));
        assert!(judge("a.rs", "see /sys/kernel and /usr/share").is_empty());
    }

    #[test]
    fn very_long_files_are_found() {
        assert_eq!(judge("a.rs", &"x\n".repeat(LONGEST + 1)).len(), 1);
        assert!(judge("a.md", &"x\n".repeat(LONGEST + 1)).is_empty());
    }
}
