//! Matrices: one scenario with lists of values stands for a row per combination.
use crate::scenario::{Scenario, Wanted};
use anyhow::{Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;

/// The lists by key. The keys' alphabetical order is the order of the values in the rows' names.
pub type Matrix = BTreeMap<String, Vec<Cell>>;

/// One value.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Cell {
    /// A count.
    Number(u32),
    /// A name.
    Text(String),
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cell::Number(n) => n.fmt(f),
            Cell::Text(t) => t.fmt(f),
        }
    }
}

/// The rows that `scenario` stands for; itself if it has no matrix.
pub fn expand(scenario: Scenario) -> Result<Vec<Scenario>> {
    let mut rows = vec![scenario];
    let matrix = std::mem::take(&mut rows[0].matrix);
    for (key, values) in &matrix {
        let mut next = Vec::new();
        for row in &rows {
            for value in values {
                let mut row = row.clone();
                row.name = format!("{}/{value}", row.name);
                let meant = substitute(&mut row, &format!("{{{key}}}"), &value.to_string());
                if !(apply(&mut row, key, value)? || meant) {
                    bail!("scenario {}: {key} of its matrix is no key, and {{{key}}} is nowhere", row.name);
                }
                next.push(row);
            }
        }
        if next.is_empty() {
            bail!("scenario {}: {key} of its matrix has no value", rows[0].name);
        }
        rows = next;
    }
    Ok(rows)
}

/// Sets what the key of the same name in a machine or domain sets; false if there is none.
fn apply(row: &mut Scenario, key: &str, value: &Cell) -> Result<bool> {
    let text = value.to_string();
    let number = || match value {
        Cell::Number(n) => Ok(*n),
        Cell::Text(t) => bail!("matrix: {key} = {t:?} must be a number"),
    };
    match key {
        "cpu" => row.machine.cpu = text,
        "smp" => row.machine.smp = number()?,
        "kernel" => row.domain.iter_mut().for_each(|d| d.kernel.clone_from(&text)),
        "l2_kernel" => row.domain.iter_mut().for_each(|d| d.l2_kernel.clone_from(&text)),
        "vcpus" => {
            let n = number()?;
            row.domain.iter_mut().for_each(|d| d.vcpus = n);
        }
        "memory" => {
            let n = number()?;
            row.domain.iter_mut().for_each(|d| d.memory = n);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Puts `value` wherever `mark` stands; whether it stood anywhere.
fn substitute(row: &mut Scenario, mark: &str, value: &str) -> bool {
    let texts = [&mut row.about, &mut row.options].into_iter();
    let expect = row.expect.iter_mut().map(|wanted| match wanted {
        Wanted::Once(line) | Wanted::Times(line, _) => line,
    });
    let domains = row.domain.iter_mut().flat_map(|d| [&mut d.cmdline, &mut d.options]);
    let mut found = false;
    for text in texts.chain(expect).chain(&mut row.forbid).chain(domains) {
        found |= text.contains(mark);
        *text = text.replace(mark, value);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Result<Vec<Scenario>> {
        Scenario::table(text)
    }

    #[test]
    fn every_combination_is_a_row() {
        let rows = table(
            "[[scenario]]\nname = 'a'\nexpect = ['cpus={vcpus} {x}', ['{kernel}', 2]]\n\
             matrix = { cpu = ['max', 'EPYC-v4'], kernel = ['6.12'], vcpus = [1, 2], x = ['y'] }\n[[scenario.domain]]\n",
        )
        .unwrap();
        let names: Vec<_> = rows.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["a/max/6.12/1/y", "a/max/6.12/2/y", "a/EPYC-v4/6.12/1/y", "a/EPYC-v4/6.12/2/y"]);
        let last = &rows[3];
        assert_eq!((last.machine.cpu.as_str(), last.domain[0].vcpus), ("EPYC-v4", 2));
        assert_eq!(last.domain[0].kernel, "6.12");
        assert_eq!(last.expect, [Wanted::Once("cpus=2 y".into()), Wanted::Times("6.12".into(), 2)]);
    }

    #[test]
    fn a_matrix_that_changes_nothing_is_refused() {
        let row =
            |matrix: &str| format!("[[scenario]]\nname = 'a'\nmatrix = {matrix}\n[[scenario.domain]]\n");
        assert!(table(&row("{ typo = [1] }")).is_err());
        assert!(table(&row("{ vcpus = ['two'] }")).is_err());
        assert!(table(&row("{ vcpus = [] }")).is_err());
    }
}
