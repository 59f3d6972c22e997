//! Network traffic of an L2: an echo server in L1, which QEMU's user network shows to its guest at the gateway's
//! address, and the guest's end of it.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::sys::Verdict;

const PORT: u16 = 7;
/// What QEMU's user network gives its first guest, and where it shows the host's own services.
const GUEST: &str = "10.0.2.15";
const GATEWAY: &str = "10.0.2.2";
/// Bytes per round.
const CHUNK: usize = 64 << 10;

fn interface(words: &[&str]) -> Verdict {
    let status = Command::new("/bin/busybox").arg("ifconfig").args(words).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("ifconfig {}: {status}", words.join(" "))),
        Err(e) => Err(format!("/bin/busybox: {e}")),
    }
}

/// Start the echo server, unless it is there.
///
/// # Errors
/// No loopback interface, or no port.
pub fn serve() -> Verdict {
    interface(&["lo", "127.0.0.1", "up"])?;
    let listener = match TcpListener::bind(("127.0.0.1", PORT)) {
        Err(e) if e.kind() == ErrorKind::AddrInUse => return Ok(()),
        other => other.map_err(|e| format!("port {PORT}: {e}"))?,
    };
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A guest that ends in the middle of its traffic ends its echo.
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    Ok(())
}

/// Send and get back data for `duration`; gives the number of bytes that made the round.
///
/// # Errors
/// No network, or other data came back.
pub fn echo(duration: Duration) -> Result<u64, String> {
    interface(&["eth0", GUEST, "netmask", "255.255.255.0", "up"])?;
    let fail = |e: std::io::Error| format!("network: {e}");
    let until = Instant::now() + duration;
    let mut stream = TcpStream::connect((GATEWAY, PORT)).map_err(fail)?;
    // A lost interrupt shall be a failure, not a wait without end.
    stream.set_read_timeout(Some(Duration::from_secs(60))).map_err(fail)?;
    let mut bytes = 0;
    while bytes == 0 || Instant::now() < until {
        let sent: Vec<u8> = (0..CHUNK as u64).map(|i| (i ^ bytes >> 8).wrapping_mul(0x9d) as u8).collect();
        let mut writer = stream.try_clone().map_err(fail)?;
        let mut back = vec![0; CHUNK];
        std::thread::scope(|scope| {
            let send = scope.spawn(|| writer.write_all(&sent));
            stream.read_exact(&mut back).map_err(fail)?;
            send.join().map_err(|_| "network: the sender died")?.map_err(fail)
        })?;
        if back != sent {
            return Err("network: other data came back".into());
        }
        bytes += CHUNK as u64;
    }
    Ok(bytes)
}
