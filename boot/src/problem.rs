//! What is wrong with what the user wrote, said so that the user can mend it.

use alloc::string::String;
use core::fmt;

/// How bad a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The word was ignored; all else is as written.
    Warning,
    /// What was asked for is not done: an option keeps its default, a domain is not created.
    Error,
}

/// Where a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The hypervisor's command line; `word` counts from 1.
    CommandLine {
        /// Position of the culprit among the words, from 1.
        word: usize,
    },
    /// The line of a boot module; modules count from 1, as the user counts `module2` lines.
    Module {
        /// Position of the line among the module lines, from 1.
        line: usize,
    },
}

/// One thing wrong in a configuration, with its place, the culprit and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// Where it is.
    pub place: Place,
    /// The word at fault, as the user wrote it; empty where something is missing.
    pub culprit: String,
    /// What is wrong.
    pub what: String,
    /// What would be right.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::CommandLine { word } => write!(f, "command line, word {word}")?,
            Place::Module { line } => write!(f, "module {line}")?,
        }
        if !self.culprit.is_empty() {
            write!(f, ", `{}`", self.culprit)?;
        }
        write!(f, ": {}", self.what)?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}
