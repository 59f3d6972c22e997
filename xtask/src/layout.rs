//! Where things are: the repository and what xtask keeps below `target/`.
use std::path::{Path, PathBuf};

/// The folders xtask works in. Everything it writes is below `target/`.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Finds the repository: cargo says where this crate is when it runs us, otherwise we look upwards
    /// from the current folder for the workspace that has an `xtask`.
    pub fn find() -> anyhow::Result<Layout> {
        let from_cargo = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let start = match from_cargo {
            Some(dir) => dir,
            None => std::env::current_dir()?,
        };
        start
            .ancestors()
            .find(|dir| dir.join("xtask/Cargo.toml").is_file() && dir.join("Cargo.toml").is_file())
            .map(|dir| Layout { root: dir.to_path_buf() })
            .ok_or_else(|| {
                anyhow::anyhow!(
                    "run this inside the Testudo repository (no xtask/ found above {})",
                    start.display()
                )
            })
    }

    /// The repository.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path inside the repository.
    pub fn repo(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// A path below `target/`.
    pub fn target(&self, path: &str) -> PathBuf {
        self.root.join("target").join(path)
    }

    /// A path below the private tools' folder.
    pub fn tools(&self, path: &str) -> PathBuf {
        self.target("tools").join(path)
    }

    /// A path below the folder of finished images.
    pub fn out(&self, path: &str) -> PathBuf {
        self.target("testudo").join(path)
    }

    /// A path written for people: relative to the repository when it is inside it.
    pub fn show(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }
}
