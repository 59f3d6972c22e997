//! A private apt: its own configuration, lists and empty package status below `target/tools/apt/RELEASE`,
//! nothing of the system's is changed and no root is needed.
use super::sources;
use crate::layout::Layout;
use crate::proc;
use crate::ui::{self, Progress};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

/// One package file as the archive offers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Package name.
    pub name: String,
    /// Version with its epoch.
    pub version: String,
    /// File name in the download cache, as apt writes it (`:` as `%3a`).
    pub file: String,
    /// Bytes to download.
    pub size: u64,
}

/// A private apt for one Debian release.
#[derive(Debug)]
pub struct Apt {
    dir: PathBuf,
    cache: PathBuf,
    release: String,
}

/// How old the package lists may be before they are fetched again.
const LISTS_MAX_AGE: Duration = Duration::from_secs(24 * 3600);

impl Apt {
    /// Prepares the configuration for `release` (`bookworm`, `trixie` …).
    ///
    /// # Errors
    /// When this machine has no apt or no Debian sources: the message says what to do instead.
    pub fn new(layout: &Layout, release: &str) -> Result<Apt> {
        if proc::which("apt-get").is_none() || proc::which("dpkg-deb").is_none() {
            bail!("this machine has no apt-get and dpkg-deb, so xtask can't fetch Debian packages");
        }
        let machine = sources::read_machine(Path::new("/etc/apt"));
        let entries = sources::for_release(&machine, release);
        if entries.is_empty() {
            bail!(
                "this machine's apt sources name no Debian archive, so xtask can't fetch packages of {release}"
            );
        }
        let apt = Apt {
            dir: layout.tools("apt").join(release),
            cache: layout.tools("cache"),
            release: release.to_string(),
        };
        for sub in ["lists/partial", "cache/archives/partial", "sources.d", "empty"] {
            std::fs::create_dir_all(apt.dir.join(sub))?;
        }
        std::fs::create_dir_all(&apt.cache)?;
        let text = sources::render(&entries);
        let file = apt.dir.join("sources.d/debian.sources");
        if std::fs::read_to_string(&file).ok().as_deref() != Some(&text) {
            std::fs::write(&file, text)?;
            let _ = std::fs::remove_file(apt.dir.join("updated"));
        }
        std::fs::write(apt.dir.join("status"), "")?;
        std::fs::write(apt.dir.join("apt.conf"), apt.configuration())?;
        Ok(apt)
    }

    /// The configuration file. apt reads it before anything else, and `Dir::Etc::parts` and `main` in it
    /// point to nothing, so no hook, pin or option of the system is inherited, but for how its network is
    /// reached.
    fn configuration(&self) -> String {
        let dir = self.dir.display();
        let mut text = format!(
            "Dir::State \"{dir}\";\nDir::State::status \"{dir}/status\";\nDir::State::lists \"{dir}/lists\";\n\
             Dir::Cache \"{dir}/cache\";\nDir::Etc::main \"/dev/null\";\nDir::Etc::parts \"{dir}/empty\";\n\
             Dir::Etc::sourcelist \"/dev/null\";\nDir::Etc::sourceparts \"{dir}/sources.d\";\n\
             Dir::Etc::preferences \"/dev/null\";\nDir::Etc::preferencesparts \"{dir}/empty\";\n\
             Dir::Log \"{dir}\";\nAPT::Architecture \"amd64\";\nAPT::Architectures \"amd64\";\n\
             APT::Install-Recommends \"false\";\nAPT::Install-Suggests \"false\";\nAPT::Sandbox::User \"root\";\n\
             Acquire::Languages \"none\";\nAcquire::Retries \"3\";\nAcquire::http::Timeout \"30\";\n\
             Debug::NoLocking \"true\";\nDpkg::Use-Pty \"false\";\n"
        );
        for (key, value) in inherited() {
            text += &format!("{key} \"{value}\";\n");
        }
        text
    }

    fn command(&self, program: &str) -> Command {
        let mut cmd = Command::new(program);
        cmd.env("APT_CONFIG", self.dir.join("apt.conf"))
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        cmd
    }

    /// Fetches the package lists, unless they are recent. A source that fails is no error by itself: the
    /// package that is missing because of it will be.
    pub fn update(&self, force: bool) -> Result<()> {
        let stamp = self.dir.join("updated");
        let age = stamp
            .metadata()
            .and_then(|m| m.modified())
            .ok()
            .and_then(|at| SystemTime::now().duration_since(at).ok());
        if !force && age.is_some_and(|age| age < LISTS_MAX_AGE) {
            return Ok(());
        }
        ui::step(&format!("fetching Debian's package lists of {} (10 MB)", self.release));
        let (ok, said) = proc::lines(self.command("apt-get").arg("update"), |_| {})?;
        // apt calls an update without network a success with warnings: what counts is whether there are lists.
        if !self.has_list(&self.release) {
            bail!(
                "cannot fetch the package lists of {} (no network, or the mirror lacks this release):\n{}",
                self.release,
                complaint(&said)
            );
        }
        if ok && !said.lines().any(|l| l.starts_with("Err:")) {
            std::fs::write(stamp, "")?;
        }
        Ok(())
    }

    /// Whether packages of a suite are listed.
    fn has_list(&self, suite: &str) -> bool {
        let lists = std::fs::read_dir(self.dir.join("lists")).into_iter().flatten().flatten();
        let mut names = lists.map(|f| f.file_name().to_string_lossy().into_owned());
        names.any(|f| f.contains(&format!("_{suite}_")) && f.contains("_Packages"))
    }

    /// `names` and everything they depend on, as the archive has it now. Backports are preferred if
    /// `backports`: newer emulators come from there.
    pub fn closure(&self, names: &[&str], backports: bool) -> Result<Vec<Package>> {
        let mut cmd = self.command("apt-get");
        if backports {
            // apt refuses a target release that no source offers.
            cmd.args(["-o", &format!("APT::Default-Release={}", self.backports_pin())]);
        }
        cmd.args(["--yes", "--print-uris", "--no-install-recommends", "install"]).args(names);
        let out = proc::output(&mut cmd)
            .with_context(|| format!("packages of {}: {}", self.release, names.join(", ")))?;
        Ok(out.lines().filter_map(parse_uri).collect())
    }

    fn backports_pin(&self) -> String {
        let name = format!("{}-backports", self.release);
        let offered = self.has_list(&name);
        if offered { name } else { self.release.clone() }
    }

    /// The package file that `name` means now: used for meta packages such as `linux-image-cloud-amd64`.
    pub fn depends(&self, name: &str) -> Result<Vec<String>> {
        let out = proc::output(self.command("apt-cache").args(["show", "--no-all-versions", name]))?;
        let line = out.lines().find_map(|l| l.strip_prefix("Depends: ")).unwrap_or("");
        Ok(line.split(',').filter_map(|d| d.split_whitespace().next()).map(String::from).collect())
    }

    /// Downloads what the cache lacks, with progress. apt checks each file's hash.
    pub fn download(&self, title: &str, packages: &[Package]) -> Result<()> {
        let missing: Vec<&Package> = packages.iter().filter(|p| !self.cached(p)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let sizes: BTreeMap<&str, u64> = missing.iter().map(|p| (p.name.as_str(), p.size)).collect();
        let mut progress = Progress::new(&format!("downloading {title}:"), sizes.values().sum());
        let mut cmd = self.command("apt-get");
        cmd.arg("download")
            .args(missing.iter().map(|p| format!("{}={}", p.name, p.version)))
            .current_dir(&self.cache);
        let mut current = 0;
        let (ok, said) = proc::lines(&mut cmd, |line| {
            // "Get:3 URI suite/component amd64 NAME amd64 VERSION [SIZE]": says what starts now.
            let name = line.strip_prefix("Get:").and_then(|l| l.split_whitespace().nth(4));
            if let Some(size) = name.and_then(|n| sizes.get(n)) {
                progress.add(std::mem::replace(&mut current, *size), name.unwrap_or(""));
            }
        })?;
        if !ok || missing.iter().any(|p| !self.cached(p)) {
            bail!("cannot download {title}:\n{}", complaint(&said));
        }
        progress.finish();
        Ok(())
    }

    /// Where the package file is once downloaded.
    pub fn file(&self, package: &Package) -> PathBuf {
        self.cache.join(&package.file)
    }

    fn cached(&self, package: &Package) -> bool {
        self.file(package).metadata().is_ok_and(|m| m.len() == package.size)
    }
}

/// How this machine reaches its mirrors: proxies, and whether dates are checked (frozen mirrors).
fn inherited() -> Vec<(String, String)> {
    let dump = proc::output(Command::new("apt-config").arg("dump")).unwrap_or_default();
    dump.lines().filter_map(parse_setting).filter(|(key, _)| is_network_setting(key)).collect()
}

fn parse_setting(line: &str) -> Option<(String, String)> {
    let (key, value) = line.split_once(' ')?;
    let value = value.strip_prefix('"')?.strip_suffix("\";")?;
    (!key.ends_with("::") && !value.is_empty()).then(|| (key.to_string(), value.to_string()))
}

fn is_network_setting(key: &str) -> bool {
    let key = key.to_lowercase();
    let protocol =
        ["acquire::http::", "acquire::https::", "acquire::ftp::"].iter().any(|p| key.starts_with(p));
    let named =
        ["acquire::check-valid-until", "acquire::check-date", "acquire::forceipv4", "acquire::forceipv6"];
    protocol || named.contains(&key.as_str())
}

/// `'URI' FILE SIZE [HASH]`, as `--print-uris` writes it.
fn parse_uri(line: &str) -> Option<Package> {
    let rest = line.strip_prefix('\'')?.split_once("' ")?.1;
    let mut words = rest.split_whitespace();
    let (file, size) = (words.next()?, words.next()?.parse().ok()?);
    let mut parts = file.strip_suffix(".deb")?.splitn(3, '_');
    let (name, version) = (parts.next()?.to_string(), parts.next()?.replace("%3a", ":"));
    Some(Package { name, version, file: file.to_string(), size })
}

/// What apt complained about, without its progress lines.
fn complaint(said: &str) -> String {
    let lines: Vec<&str> = said
        .lines()
        .filter(|l| l.starts_with("E:") || l.starts_with("W:") || l.starts_with("Err:"))
        .collect();
    if lines.is_empty() { proc::tail(said, 5) } else { proc::tail(&lines.join("\n"), 8) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_print_uris_line_names_the_package() {
        let line = "'http://m/pool/q.deb' qemu-system-x86_1%3a10.0.2+ds-2_amd64.deb 10176912 SHA256:00";
        let package = parse_uri(line).unwrap();
        assert_eq!((package.name.as_str(), package.version.as_str()), ("qemu-system-x86", "1:10.0.2+ds-2"));
        assert_eq!(package.size, 10176912);
        assert_eq!(parse_uri("Reading package lists..."), None);
    }

    #[test]
    fn only_the_way_to_the_network_is_inherited() {
        let dump = "Acquire::http::Proxy \"http://p:3128\";\nAcquire::Check-Valid-Until \"false\";\n\
                    APT::Update::Post-Invoke:: \"rm -f x\";\nAcquire::Languages:: \"none\";\nDir::Cache::pkgcache \"\";\n";
        let kept: Vec<_> =
            dump.lines().filter_map(parse_setting).filter(|(k, _)| is_network_setting(k)).collect();
        assert_eq!(kept.len(), 2);
        assert_eq!(kept[0], ("Acquire::http::Proxy".into(), "http://p:3128".into()));
    }
}
