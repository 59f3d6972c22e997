//! Kernel modules: finding those that are wanted and those they need, in loading order.
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A module ready for the initial ramdisk.
#[derive(Debug, Clone)]
pub struct Module {
    /// Its name as `lsmod` shows it.
    pub name: String,
    /// Its file's name without compression, such as `kvm-amd.ko`.
    pub file: String,
    /// The uncompressed object.
    pub data: Vec<u8>,
}

/// `wanted` and everything they depend on, each after what it needs. What a kernel has built in, or does
/// not have at all, is left out when it is only wanted by us; a dependency must be there.
pub fn collect(dir: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    index(dir, &mut files)?;
    let mut out = Vec::new();
    for name in wanted {
        if files.contains_key(*name) {
            add(&files, name, &mut out, 0)?;
        }
    }
    Ok(out)
}

fn add(files: &BTreeMap<String, PathBuf>, name: &str, out: &mut Vec<Module>, depth: usize) -> Result<()> {
    if out.iter().any(|m| m.name == name) {
        return Ok(());
    }
    if depth > 32 {
        bail!("the modules of this kernel depend on each other in a circle at {name}");
    }
    let file = files.get(name).with_context(|| format!("the kernel's package has no module {name}"))?;
    let data = read(file).with_context(|| format!("module {}", file.display()))?;
    for need in depends(&data) {
        add(files, &need, out, depth + 1)?;
    }
    let base = file.file_name().unwrap_or_default().to_string_lossy();
    out.push(Module { name: name.to_string(), file: base.trim_end_matches(".xz").to_string(), data });
    Ok(())
}

fn index(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            index(&path, files)?;
            continue;
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some((stem, "" | ".xz")) = file.split_once(".ko") {
            // A module's file may have `-` where its name has `_`.
            files.insert(stem.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(file)?;
    if file.extension().is_some_and(|e| e == "xz") {
        let mut out = Vec::new();
        lzma_rs::xz_decompress(&mut bytes.as_slice(), &mut out)
            .map_err(|e| anyhow::anyhow!("bad xz data: {e:?}"))?;
        return Ok(out);
    }
    Ok(bytes)
}

/// What a module says in `.modinfo` that it needs (`depends=a,b`): NUL-terminated `key=value` strings.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|w| w == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|&b| b == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|n| !n.is_empty()).map(|n| n.replace('-', "_")).collect()
}

/// Removes an appended signature (Linux, Documentation/admin-guide/module-signing): the kernel then skips
/// checking it, which under an emulator takes longer than everything else in loading.
pub fn without_signature(module: &[u8]) -> &[u8] {
    const MAGIC: &[u8] = b"~Module signature appended~\n";
    let Some(body) = module.strip_suffix(MAGIC) else { return module };
    // The twelve bytes before the magic end with the signature's size, big endian.
    let Some((rest, info)) = body.split_at_checked(body.len().wrapping_sub(12)) else { return module };
    let size = u32::from_be_bytes([info[8], info[9], info[10], info[11]]) as usize;
    rest.len().checked_sub(size).map_or(module, |end| &rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_are_read_from_modinfo() {
        assert_eq!(depends(b"x\0license=GPL\0depends=kvm,ccp-x\0name=kvm_amd\0"), ["kvm", "ccp_x"]);
        assert!(depends(b"x\0depends=\0").is_empty());
        assert!(depends(b"nothing").is_empty());
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let dir = std::env::temp_dir().join(format!("testudo-modules-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("sub")).unwrap();
        std::fs::write(dir.join("kvm-amd.ko"), b"\0depends=kvm\0").unwrap();
        std::fs::write(dir.join("sub/kvm.ko"), b"\0depends=irqbypass\0").unwrap();
        std::fs::write(dir.join("sub/irqbypass.ko"), b"\0depends=\0").unwrap();
        let files: Vec<_> =
            collect(&dir, &["kvm_amd", "built_in"]).unwrap().into_iter().map(|m| m.file).collect();
        assert_eq!(files, ["irqbypass.ko", "kvm.ko", "kvm-amd.ko"]);
        std::fs::remove_file(dir.join("sub/irqbypass.ko")).unwrap();
        assert!(collect(&dir, &["kvm_amd"]).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn signatures_are_cut_off() {
        let mut signed = b"module".to_vec();
        signed.extend([9; 5]);
        signed.extend([0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
        signed.extend(b"~Module signature appended~\n");
        assert_eq!(without_signature(&signed), b"module");
        assert_eq!(without_signature(b"module"), b"module");
        assert_eq!(without_signature(b"x~Module signature appended~\n"), b"x~Module signature appended~\n");
    }
}
