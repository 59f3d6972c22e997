//! Which crate may use which, from the manifests (DESIGN: "Arrows run one way").
use crate::layout::Layout;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const LEAVES: &[&str] = &["addr", "xen-abi"];
const LOGIC: &[&str] = &["addr", "xen-abi", "stage2"];
const HARDWARE: &[&str] = &["addr", "xen-abi", "stage2", "vvmx", "vsvm", "arm-nv", "boot", "hv-core"];

/// Each crate of ours by package name, what it may use, and whether it must be free of `unsafe` and of
/// crates that touch hardware.
const CRATES: &[(&str, &[&str], bool)] = &[
    ("addr", &[], true),
    ("xen-abi", &[], true),
    ("stage2", LEAVES, true),
    ("vvmx", LOGIC, true),
    ("vsvm", LOGIC, true),
    ("arm-nv", LOGIC, true),
    ("boot", LOGIC, true),
    ("hv-core", LOGIC, true),
    ("hv-x86", HARDWARE, false),
    ("hv-arm64", HARDWARE, false),
    (
        "testudo",
        &["addr", "xen-abi", "stage2", "vvmx", "vsvm", "arm-nv", "boot", "hv-core", "hv-x86", "hv-arm64"],
        false,
    ),
    // It unpacks kernels as Testudo does, and writes what `hv-core` reads: the table of symbols.
    ("xtask", &["boot", "hv-core"], true),
    // Guests know the ABI they speak, nothing of who serves it.
    ("testudo-init", &["xen-abi"], false),
    ("testudo-vmm", &["xen-abi"], false),
    ("svm-l1", &["xen-abi"], false),
];

/// Crates by others that execute privileged instructions or touch ports.
const TOUCHES_HARDWARE: &[&str] =
    &["x86", "x86_64", "raw-cpuid", "uart_16550", "aarch64-cpu", "safe-mmio", "arm-gic"];

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Manifest {
    package: Option<Package>,
    dependencies: BTreeMap<String, serde_json::Value>,
    dev_dependencies: BTreeMap<String, serde_json::Value>,
    build_dependencies: BTreeMap<String, serde_json::Value>,
    target: BTreeMap<String, Manifest>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
}

impl Manifest {
    /// The packages it uses in any way.
    fn uses(&self) -> Vec<String> {
        let tables = [&self.dependencies, &self.dev_dependencies, &self.build_dependencies];
        let renamed =
            |value: &serde_json::Value| value.get("package").and_then(|p| p.as_str()).map(String::from);
        let own =
            tables.into_iter().flatten().map(|(name, value)| renamed(value).unwrap_or_else(|| name.clone()));
        own.chain(self.target.values().flat_map(Manifest::uses)).collect()
    }
}

/// Checks every manifest and that pure crates forbid `unsafe`.
pub fn check(layout: &Layout, files: &[PathBuf]) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|f| f.ends_with("Cargo.toml")) {
        let text = std::fs::read_to_string(layout.root().join(file))?;
        let manifest: Manifest = basic_toml::from_str(&text).with_context(|| file.display().to_string())?;
        let Some(package) = &manifest.package else { continue };
        if file.starts_with("fuzz") {
            // Fuzz targets use what they fuzz.
            continue;
        }
        problems.extend(
            judge(&package.name, &manifest.uses()).into_iter().map(|p| format!("{}: {p}", file.display())),
        );
        problems.extend(forbids_unsafe(layout, file, &package.name));
    }
    Ok(problems)
}

fn judge(name: &str, uses: &[String]) -> Vec<String> {
    let Some((_, allowed, pure)) = CRATES.iter().find(|(n, _, _)| *n == name) else {
        return vec![format!("the crate `{name}` has no place in xtask's table of arrows")];
    };
    let ours = |dep: &str| CRATES.iter().any(|(n, _, _)| *n == dep);
    let mut problems = Vec::new();
    for dep in uses {
        if dep == name {
            continue;
        }
        if ours(dep) && !allowed.contains(&dep.as_str()) {
            problems.push(format!("`{name}` must not use `{dep}`: arrows run the other way"));
        }
        if *pure && TOUCHES_HARDWARE.contains(&dep.as_str()) {
            problems.push(format!("`{name}` is pure and must not use `{dep}`, which touches hardware"));
        }
    }
    problems
}

fn forbids_unsafe(layout: &Layout, manifest: &Path, name: &str) -> Option<String> {
    let pure = CRATES.iter().any(|(n, _, pure)| *n == name && *pure);
    let source = manifest.parent()?.join("src");
    let root = [source.join("lib.rs"), source.join("main.rs")]
        .into_iter()
        .find(|p| layout.root().join(p).is_file())?;
    let text = std::fs::read_to_string(layout.root().join(&root)).ok()?;
    let missing = pure && !text.contains("#![forbid(unsafe_code)]");
    missing.then(|| format!("{}: a pure crate says #![forbid(unsafe_code)]", root.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uses(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| s.to_string()).collect()
    }

    #[test]
    fn arrows_run_one_way() {
        assert!(judge("vsvm", &uses(&["addr", "stage2", "bitflags"])).is_empty());
        assert!(judge("vvmx", &uses(&["addr", "stage2"])).is_empty());
        assert_eq!(judge("vvmx", &uses(&["vsvm"])).len(), 1);
        assert_eq!(judge("hv-core", &uses(&["vsvm"])).len(), 1);
        assert_eq!(judge("stage2", &uses(&["hv-core"])).len(), 1);
        assert_eq!(judge("vsvm", &uses(&["x86"])).len(), 1);
        assert!(judge("hv-x86", &uses(&["x86", "hv-core", "vsvm"])).is_empty());
        assert_eq!(judge("new", &uses(&[])).len(), 1);
    }

    #[test]
    fn every_kind_of_dependency_counts() {
        let text = "[package]\nname = 'a'\n[dependencies]\nx.workspace = true\ny = { package = 'real', version = '1' }\n\
                    [dev-dependencies]\nd = '1'\n[target.'cfg(unix)'.dependencies]\nt = '1'\n";
        let manifest: Manifest = basic_toml::from_str(text).unwrap();
        assert_eq!(manifest.uses(), ["x", "real", "d", "t"]);
    }

    #[test]
    fn the_table_has_no_circle() {
        for (name, allowed, _) in CRATES {
            for dep in *allowed {
                let back = CRATES.iter().find(|(n, _, _)| n == dep).map(|(_, a, _)| a.contains(name));
                assert_eq!(back, Some(false), "{name} and {dep}");
            }
        }
    }
}
