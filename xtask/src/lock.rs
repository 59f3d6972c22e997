//! One xtask at a time changes what is shared below `target/`.
use crate::layout::Layout;
use crate::ui;
use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;

/// Holds a lock until dropped.
#[derive(Debug)]
#[must_use]
pub struct Guard(#[expect(dead_code, reason = "closing the file releases the lock")] File);

/// The lock on the private tools and guests' packages.
pub fn tools(layout: &Layout) -> Result<Guard> {
    take(layout, "tools/.lock", "another xtask is fetching tools")
}

/// The lock on `target/testudo`.
pub fn images(layout: &Layout) -> Result<Guard> {
    take(layout, "testudo/.lock", "another xtask is building images")
}

fn take(layout: &Layout, path: &str, wait: &str) -> Result<Guard> {
    let path = layout.target(path);
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        ui::step(&format!("waiting: {wait}"));
        flock(&file, FlockOperation::LockExclusive)?;
    }
    Ok(Guard(file))
}
