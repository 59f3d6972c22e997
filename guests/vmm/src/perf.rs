//! Exits of this thread's guests, counted by the kernel's trace point `kvm:kvm_exit` (Linux:
//! include/uapi/linux/perf_event.h; Documentation/trace/events.rst). Closed as long as nobody counts, as it costs time.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd};

use crate::exits::TOTAL;

/// `struct perf_event_attr`, version 0 (64 bytes), of which a counting trace point needs three fields.
#[repr(C)]
#[derive(Default)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    rest: [u64; 6],
}

const _: () = assert!(size_of::<Attr>() == 64);

/// `PERF_TYPE_TRACEPOINT`.
const TRACEPOINT: u32 = 2;
/// `PERF_EVENT_IOC_SET_FILTER`: `_IOW('$', 6, char *)`.
const SET_FILTER: libc::c_ulong = 0x4008_2406;
const TRACEFS: &std::ffi::CStr = c"/sys/kernel/tracing";

/// Open counters: a selector (an exit code, or [`TOTAL`]) and its file.
#[derive(Debug)]
pub struct Perf(Vec<(u32, File)>);

impl Perf {
    /// Counts exits of the calling thread from now on: by each of `codes`, and all.
    ///
    /// # Errors
    /// The kernel has no such trace point, or refuses.
    pub fn open(codes: &[u32]) -> Result<Perf, String> {
        let id = id()?;
        codes
            .iter()
            .chain([&TOTAL])
            .map(|code| Ok((*code, event(id, *code)?)))
            .collect::<Result<_, _>>()
            .map(Perf)
    }

    /// How many so far.
    ///
    /// # Errors
    /// No such counter.
    pub fn read(&self, selector: u32) -> Result<u64, String> {
        let (_, file) = self.0.iter().find(|(code, _)| *code == selector).ok_or("no such counter")?;
        let mut value = [0; 8];
        let mut file = file;
        file.read_exact(&mut value).map_err(|e| format!("perf event: {e}"))?;
        Ok(u64::from_le_bytes(value))
    }
}

/// The trace point's number. Mounts tracefs if nobody has.
fn id() -> Result<u64, String> {
    let path = format!("{}/events/kvm/kvm_exit/id", TRACEFS.to_string_lossy());
    if !std::path::Path::new(&path).exists() {
        let kind = c"tracefs";
        // SAFETY: three strings that end in NUL and outlive the call. Failing shows in the next step.
        unsafe { libc::mount(kind.as_ptr(), TRACEFS.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    }
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    text.trim().parse().map_err(|_| format!("{path}: not a number"))
}

fn event(id: u64, code: u32) -> Result<File, String> {
    let failed =
        |what: &str| format!("perf event for exit {code:#x}: {what}: {}", std::io::Error::last_os_error());
    let attr = Attr { kind: TRACEPOINT, size: size_of::<Attr>() as u32, config: id, ..Attr::default() };
    // SAFETY: reads one structure of the size it states; this thread, any CPU, no group.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attr, 0, -1, -1, 0) };
    let Some(fd) = i32::try_from(fd).ok().filter(|fd| *fd >= 0) else { return Err(failed("open")) };
    // SAFETY: a fresh descriptor that nobody else owns.
    let file = unsafe { File::from_raw_fd(fd) };
    if code != TOTAL {
        let filter = std::ffi::CString::new(format!("exit_reason=={code}")).map_err(|e| e.to_string())?;
        // SAFETY: a string that ends in NUL and outlives the call.
        if unsafe { libc::ioctl(file.as_raw_fd(), SET_FILTER, filter.as_ptr()) } != 0 {
            return Err(failed("filter"));
        }
    }
    Ok(file)
}
