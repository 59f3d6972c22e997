//! Load: CPU hogs, memory traffic and files.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crate::sys::{self, Verdict};

/// Size of the file that is written and read back.
const FILE: usize = 4 << 20;

/// What a disk begins with that may be overwritten.
pub const SCRATCH_MARK: &[u8] = b"testudo-scratch";

/// Burn CPUs, memory and files for `duration`; checks that what was written is read back.
///
/// # Errors
/// Data came back changed, or a write failed.
pub fn run(duration: Duration, level: &str) -> Verdict {
    let until = Instant::now() + duration;
    let (spins, path, verdict) = std::thread::scope(|scope| {
        let hogs: Vec<_> = (0..sys::cpus()).map(|i| scope.spawn(move || hog(i as u64, until))).collect();
        let path = target();
        let disk = scope.spawn({
            let path = path.clone();
            move || disk(&path, until)
        });
        let spins: Result<u64, String> =
            hogs.into_iter().map(|h| h.join().unwrap_or_else(|_| Err("hog died".into()))).sum();
        (spins, path, disk.join().unwrap_or_else(|_| Err("disk load died".into())))
    });
    let (spins, written) = (spins?, verdict?);
    println!(
        "@testudo {level} load ok seconds={} spins={spins} written_kb={} disk={path}",
        duration.as_secs(),
        written >> 10
    );
    Ok(())
}

/// Fill a buffer from a generator and check it, again and again.
fn hog(seed: u64, until: Instant) -> Result<u64, String> {
    let mut buffer = vec![0u64; 128 << 10];
    let mut rounds = 0;
    while Instant::now() < until {
        let mut x = seed + rounds + 1;
        let mut next = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x
        };
        buffer.iter_mut().for_each(|w| *w = next());
        let sum = buffer.iter().fold(0u64, |s, w| s.wrapping_add(*w));
        let mut x2 = seed + rounds + 1;
        let again = (0..buffer.len()).fold(0u64, |s, _| {
            x2 ^= x2 << 13;
            x2 ^= x2 >> 7;
            x2 ^= x2 << 17;
            s.wrapping_add(x2)
        });
        if std::hint::black_box(sum) != again {
            return Err("memory changed under load".into());
        }
        rounds += 1;
    }
    Ok(rounds)
}

/// The first block device that may be overwritten (a test image's disk is marked by its name), else a file in RAM.
fn target() -> String {
    let disks = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    for disk in disks {
        let path = format!("/dev/{}", disk.file_name().to_string_lossy());
        let mut head = [0; SCRATCH_MARK.len()];
        if File::open(&path).and_then(|mut f| f.read_exact(&mut head)).is_ok() && head == SCRATCH_MARK {
            return path;
        }
    }
    "/tmp/load".into()
}

/// Write to the disk or file, and read back what arrived there, not what the kernel still has in memory.
fn disk(path: &str, until: Instant) -> Result<u64, String> {
    let fail = |e: std::io::Error| format!("{path}: {e}");
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(fail)?;
    let (mut written, mut round) = (0u64, 0u8);
    while Instant::now() < until {
        let data = vec![round; FILE];
        // The first block keeps the mark.
        file.seek(SeekFrom::Start(4096)).and_then(|_| file.write_all(&data)).map_err(fail)?;
        file.sync_all().map_err(fail)?;
        // SAFETY: an advice about an open file of ours; a kernel that does not take it reads from its cache.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        let mut back = vec![!round; FILE];
        file.seek(SeekFrom::Start(4096)).and_then(|_| file.read_exact(&mut back)).map_err(fail)?;
        if back != data {
            return Err(format!("{path}: data changed"));
        }
        written += FILE as u64;
        round = round.wrapping_add(1);
    }
    Ok(written)
}
