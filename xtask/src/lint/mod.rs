//! `xtask lint`: rules of the house that no compiler knows.
mod arrows;
mod text;

use crate::layout::Layout;
use crate::proc;
use anyhow::Result;
use std::path::PathBuf;
use std::process::Command;

/// Everything that breaks a rule, one line each.
pub fn problems(layout: &Layout) -> Result<Vec<String>> {
    let files = tracked(layout)?;
    let mut problems = arrows::check(layout, &files)?;
    problems.extend(text::check(layout, &files));
    Ok(problems)
}

/// `xtask lint`; true if nothing is wrong.
pub fn run(layout: &Layout, lengths: bool) -> Result<bool> {
    if lengths {
        for (file, lines) in text::lengths(layout, &tracked(layout)?).into_iter().take(20) {
            println!("{lines:>6}  {file}");
        }
    }
    let problems = problems(layout)?;
    for problem in &problems {
        println!("{problem}");
    }
    println!("{} problems", problems.len());
    Ok(problems.is_empty())
}

/// The repository's files, as paths from its root: what git tracks, and what is new and not ignored.
fn tracked(layout: &Layout) -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(layout.root());
    let list = proc::output(&mut git)?;
    Ok(list.lines().map(PathBuf::from).filter(|p| layout.root().join(p).is_file()).collect())
}
