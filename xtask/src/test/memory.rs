//! What `--full` remembers between its runs: which rows passed, made of what.
use crate::layout::Layout;
use crate::qemu::Boot;
use crate::scenario::{Prepared, Scenario};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A row that passed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Passed {
    /// Of everything that was in the machine, and what was expected of it.
    print: u64,
    seconds: f64,
}

/// The rows that passed, kept in a file.
#[derive(Debug)]
pub struct Memory {
    file: PathBuf,
    rows: Mutex<BTreeMap<String, Passed>>,
    files: Mutex<BTreeMap<PathBuf, u64>>,
}

impl Memory {
    /// What is remembered; nothing if `restart`, or if the file is another xtask's.
    pub fn load(layout: &Layout, restart: bool) -> Memory {
        Memory::from_file(layout.target("test-logs/passed.json"), restart)
    }

    fn from_file(file: PathBuf, restart: bool) -> Memory {
        let text = if restart { String::new() } else { std::fs::read_to_string(&file).unwrap_or_default() };
        let rows = serde_json::from_str(&text).unwrap_or_default();
        if restart {
            // Not there, or not ours to remove: then the first note says so.
            let _ = std::fs::remove_file(&file);
        }
        Memory { file, rows: Mutex::new(rows), files: Mutex::default() }
    }

    /// How long the row took when it passed with just these parts.
    pub fn passed(&self, name: &str, print: u64) -> Option<f64> {
        let rows = self.rows.lock().unwrap_or_else(|e| e.into_inner());
        rows.get(name).filter(|row| row.print == print).map(|row| row.seconds)
    }

    /// Remembers that it did, or forgets it (`None`).
    pub fn note(&self, name: &str, print: u64, seconds: Option<f64>) -> Result<()> {
        let mut rows = self.rows.lock().unwrap_or_else(|e| e.into_inner());
        // Another xtask may have noted rows of its own.
        if let Ok(text) = std::fs::read_to_string(&self.file) {
            *rows = serde_json::from_str(&text).unwrap_or_default();
        }
        match seconds {
            Some(seconds) => rows.insert(name.to_string(), Passed { print, seconds }),
            None => rows.remove(name),
        };
        if let Some(dir) = self.file.parent() {
            std::fs::create_dir_all(dir)?;
        }
        // Whole or not at all: a run may be cut off at any time.
        let new = self.file.with_extension("new");
        std::fs::write(&new, serde_json::to_string_pretty(&*rows)?)?;
        std::fs::rename(&new, &self.file).with_context(|| self.file.display().to_string())
    }

    /// One number for all that goes into a row. Only its verdict is not a function of it.
    pub fn print(&self, scenario: &Scenario, prepared: &Prepared) -> Result<u64> {
        let mut hash = DefaultHasher::new();
        format!("{scenario:?} {:?} {:?}", prepared.config, prepared.machine.boot).hash(&mut hash);
        let domains = prepared.config.domains.iter();
        let mut files: Vec<&Path> = domains
            .flat_map(|d| std::iter::once(&d.kernel).chain(&d.ramdisk))
            .map(PathBuf::as_path)
            .collect();
        files.extend(prepared.hv.iter().map(|hv| hv.image.as_path()));
        if let Boot::Kernel { image, initrd, .. } = &prepared.machine.boot {
            files.push(image);
            files.extend(initrd.as_deref());
        }
        for file in files {
            self.file_print(file)?.hash(&mut hash);
        }
        Ok(hash.finish())
    }

    fn file_print(&self, path: &Path) -> Result<u64> {
        let mut files = self.files.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(print) = files.get(path) {
            return Ok(*print);
        }
        let mut hash = DefaultHasher::new();
        std::fs::read(path).with_context(|| path.display().to_string())?.hash(&mut hash);
        files.insert(path.to_path_buf(), hash.finish());
        Ok(hash.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passed_is_remembered_until_its_parts_change() {
        let file = std::env::temp_dir().join(format!("testudo-passed-{}.json", std::process::id()));
        let memory = Memory::from_file(file.clone(), true);
        memory.note("a/1", 7, Some(2.5)).unwrap();
        memory.note("b", 7, Some(1.0)).unwrap();
        memory.note("b", 7, None).unwrap();
        let again = Memory::from_file(file.clone(), false);
        memory.note("c", 9, Some(1.0)).unwrap();
        again.note("d", 9, Some(1.0)).unwrap();
        assert_eq!(Memory::from_file(file.clone(), false).passed("c", 9), Some(1.0), "two at once");
        assert_eq!((again.passed("a/1", 7), again.passed("a/1", 8)), (Some(2.5), None));
        assert_eq!(again.passed("b", 7), None);
        assert_eq!(Memory::from_file(file.clone(), true).passed("a/1", 7), None);
        assert!(!file.exists());
    }
}
