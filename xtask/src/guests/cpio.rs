//! Initial ramdisks: the "newc" archive, as Linux' Documentation/driver-api/early-userspace/buffer-format
//! describes it. Everything in an archive is a function of what was put in, so images are reproducible.
use std::collections::BTreeSet;

/// File type bits of the mode field, as in stat(2).
const DIR: u32 = 0o040_000;
const CHAR: u32 = 0o020_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An archive being written.
#[derive(Debug, Default)]
pub struct Archive {
    out: Vec<u8>,
    inode: u32,
    dirs: BTreeSet<String>,
}

struct Node<'a> {
    name: &'a str,
    mode: u32,
    device: (u32, u32),
    data: &'a [u8],
}

impl Archive {
    /// An empty archive.
    pub fn new() -> Archive {
        Archive::default()
    }

    /// A folder and those above it. `path` has no leading slash.
    pub fn dir(&mut self, path: &str) {
        let mut end = 0;
        while end < path.len() {
            end = path[end..].find('/').map_or(path.len(), |at| end + at);
            let name = &path[..end];
            if !name.is_empty() && self.dirs.insert(name.to_string()) {
                self.node(&Node { name, mode: DIR | 0o755, device: (0, 0), data: &[] });
            }
            end += 1;
        }
    }

    /// A file, and the folders above it.
    pub fn file(&mut self, path: &str, permissions: u32, data: &[u8]) {
        self.parents(path);
        self.node(&Node { name: path, mode: FILE | permissions, device: (0, 0), data });
    }

    /// A symbolic link, and the folders above it.
    pub fn link(&mut self, path: &str, to: &str) {
        self.parents(path);
        self.node(&Node { name: path, mode: LINK | 0o777, device: (0, 0), data: to.as_bytes() });
    }

    /// A character device: /init has a console only if the archive brings its node.
    pub fn char_device(&mut self, path: &str, major: u32, minor: u32) {
        self.parents(path);
        self.node(&Node { name: path, mode: CHAR | 0o600, device: (major, minor), data: &[] });
    }

    /// The archive with its trailer.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = u32::MAX;
        self.node(&Node { name: "TRAILER!!!", mode: 0, device: (0, 0), data: &[] });
        self.out
    }

    fn parents(&mut self, path: &str) {
        if let Some((dir, _)) = path.rsplit_once('/') {
            self.dir(dir);
        }
    }

    fn node(&mut self, node: &Node) {
        self.inode = self.inode.wrapping_add(1);
        let size = u32::try_from(node.data.len()).expect("a file of an initial ramdisk is below 4 GB");
        let name_size = node.name.len() as u32 + 1;
        let links = if node.mode & DIR == DIR { 2 } else { 1 };
        // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name size, check
        let (major, minor) = node.device;
        let fields = [self.inode, node.mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
        self.out.extend_from_slice(b"070701");
        for field in fields {
            self.out.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.out.extend_from_slice(node.name.as_bytes());
        self.out.push(0);
        self.pad();
        self.out.extend_from_slice(node.data);
        self.pad();
    }

    fn pad(&mut self) {
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive back: names, modes and data.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let (mut out, total) = (Vec::new(), bytes.len());
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |n: usize| {
                u32::from_str_radix(std::str::from_utf8(&bytes[6 + n * 8..][..8]).unwrap(), 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            let data = (110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert_eq!(total % 4, 0);
                return out;
            }
            out.push((name, mode, bytes[data..data + size].to_vec()));
            bytes = &bytes[data + size.next_multiple_of(4)..];
        }
    }

    #[test]
    fn folders_come_once_and_before_their_files() {
        let mut archive = Archive::new();
        archive.file("a/b/one", 0o755, b"first");
        archive.file("a/b/two", 0o644, b"");
        archive.link("a/link", "b/one");
        let nodes = read(&archive.finish());
        let names: Vec<_> = nodes.iter().map(|n| n.0.as_str()).collect();
        assert_eq!(names, ["a", "a/b", "a/b/one", "a/b/two", "a/link"]);
        assert_eq!((nodes[0].1, nodes[2].1, nodes[4].1), (0o40755, 0o100755, 0o120777));
        assert_eq!((nodes[2].2.as_slice(), nodes[4].2.as_slice()), (&b"first"[..], &b"b/one"[..]));
    }

    #[test]
    fn odd_sizes_are_padded() {
        let mut archive = Archive::new();
        archive.char_device("dev/console", 5, 1);
        archive.file("init", 0o755, &[7; 1001]);
        let bytes = archive.finish();
        assert_eq!(read(&bytes).len(), 3);
        assert_eq!(read(&bytes)[2].2.len(), 1001);
    }
}
