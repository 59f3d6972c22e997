//! A few ports by which a guest of `vmm boot --counters` reads how often *it* has left for the kernel beneath: the
//! same numbers that Testudo gives by CPUID.
//!
//! | port | written | read |
//! |---|---|---|
//! | 620h | 1: count from now on (all from 0); 0: stop | `T` |
//! | 624h–627h | exit code, low byte first; the last byte takes the count | |
//! | 628h–62Fh | | the count, low byte first |

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::exits::CODES;
use crate::perf::Perf;

/// First port.
pub const FIRST: u16 = 0x620;
/// Last port.
pub const LAST: u16 = 0x62f;
const CODE: u16 = 0x624;
const COUNT: u16 = 0x628;
const MAGIC: u8 = b'T';

/// The side of the monitor. One per vCPU thread: the kernel counts by thread.
#[derive(Debug, Default)]
pub struct Server {
    perf: Option<Perf>,
    code: [u8; 4],
    count: [u8; 8],
}

impl Server {
    /// The guest writes `value` to `port`.
    ///
    /// # Errors
    /// The kernel can't count.
    pub fn write(&mut self, port: u16, value: u8) -> Result<(), String> {
        match port {
            FIRST => {
                self.perf = if value == 1 { Some(Perf::open(&CODES.map(|(code, _)| code))?) } else { None }
            }
            CODE..COUNT => {
                self.code[usize::from(port - CODE)] = value;
                if port == COUNT - 1 {
                    let code = u32::from_le_bytes(self.code);
                    let read = self.perf.as_ref().and_then(|perf| perf.read(code).ok());
                    self.count = read.unwrap_or(0).to_le_bytes();
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The guest reads `port`.
    pub fn read(&self, port: u16) -> u8 {
        match port {
            FIRST => MAGIC,
            COUNT..=LAST => self.count[usize::from(port - COUNT)],
            _ => 0xff,
        }
    }
}

/// The side of the guest.
#[derive(Debug)]
pub struct Client(File);

impl Client {
    /// Finds the ports, and has the monitor count.
    ///
    /// # Errors
    /// There is no such monitor beneath.
    pub fn open() -> Result<Client, String> {
        let ports = File::options().read(true).write(true).open("/dev/port");
        let client = Client(ports.map_err(|e| format!("/dev/port: {e}"))?);
        if client.bytes::<1>(FIRST)? != [MAGIC] {
            return Err("exits by ports: no `vmm boot --counters` beneath".into());
        }
        client.0.write_all_at(&[1], FIRST.into()).map_err(|e| format!("/dev/port: {e}"))?;
        Ok(client)
    }

    /// The count of exit code `code`.
    ///
    /// # Errors
    /// The kernel keeps its ports from us.
    pub fn read(&self, code: u32) -> Result<u64, String> {
        self.0.write_all_at(&code.to_le_bytes(), CODE.into()).map_err(|e| format!("/dev/port: {e}"))?;
        Ok(u64::from_le_bytes(self.bytes(COUNT)?))
    }

    fn bytes<const N: usize>(&self, port: u16) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.0.read_exact_at(&mut bytes, port.into()).map_err(|e| format!("/dev/port: {e}"))?;
        Ok(bytes)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Whoever measures time next shall not pay for counting; there is nobody to tell of a failure.
        let _ = self.0.write_all_at(&[0], FIRST.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_a_counting_kernel_says_nothing_counted() {
        let mut server = Server::default();
        for port in FIRST..=LAST {
            server.write(port, if port == FIRST { 0 } else { 0x72 }).expect("no kernel is asked");
        }
        assert_eq!(server.read(FIRST), b'T');
        assert_eq!((COUNT..=LAST).map(|p| server.read(p)).collect::<Vec<_>>(), [0; 8]);
        assert_eq!(server.read(CODE), 0xff);
    }
}
