//! The last bytes of our own log, for `dmesg` and the panic handler.

use alloc::vec;
use alloc::vec::Vec;

/// A ring of bytes with a running count, so that a reader can go on where it stopped.
#[derive(Debug)]
pub struct LogRing {
    bytes: Vec<u8>,
    /// Bytes ever written; the next goes to this, modulo the length.
    written: u64,
}

impl LogRing {
    /// A ring of `size` bytes (at least one), allocated here once.
    pub fn new(size: usize) -> Self {
        Self { bytes: vec![0; size.max(1)], written: 0 }
    }

    /// Appends, overwriting the oldest.
    pub fn push(&mut self, text: &[u8]) {
        let size = self.bytes.len();
        // Of a text larger than the ring only the end would stay.
        let skipped = text.len().saturating_sub(size);
        self.written += skipped as u64;
        for part in text[skipped..].chunks(size) {
            let at = (self.written % size as u64) as usize;
            let first = part.len().min(size - at);
            self.bytes[at..at + first].copy_from_slice(&part[..first]);
            self.bytes[..part.len() - first].copy_from_slice(&part[first..]);
            self.written += part.len() as u64;
        }
    }

    /// How many bytes were ever written: the position behind the last.
    pub fn end(&self) -> u64 {
        self.written
    }

    /// The last `n` bytes (or as many as there are), in two parts.
    pub fn tail(&self, n: usize) -> (&[u8], &[u8]) {
        let size = self.bytes.len();
        let n = n.min(size).min(usize::try_from(self.written).unwrap_or(size));
        let end = (self.written % size as u64) as usize;
        match end.checked_sub(n) {
            Some(start) => (&self.bytes[start..end], &[]),
            None => (&self.bytes[size - (n - end)..], &self.bytes[..end]),
        }
    }

    /// Copies out from position `from` (or the oldest byte still there); returns how many bytes, and the
    /// position to go on from.
    pub fn read(&self, from: u64, out: &mut [u8]) -> (usize, u64) {
        let oldest = self.written.saturating_sub(self.bytes.len() as u64);
        let from = from.clamp(oldest, self.written);
        let (a, b) = self.tail((self.written - from) as usize);
        let n = out.len().min(a.len() + b.len());
        out.iter_mut().zip(a.iter().chain(b)).for_each(|(to, &byte)| *to = byte);
        (n, from + n as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(ring: &LogRing, n: usize) -> Vec<u8> {
        let (a, b) = ring.tail(n);
        [a, b].concat()
    }

    #[test]
    fn keeps_the_last_bytes() {
        let mut ring = LogRing::new(8);
        assert_eq!(tail(&ring, 8), b"");
        ring.push(b"abcde");
        assert_eq!((tail(&ring, 99), tail(&ring, 2)), (b"abcde".to_vec(), b"de".to_vec()));
        ring.push(b"fghij");
        assert_eq!((tail(&ring, 99), tail(&ring, 3)), (b"cdefghij".to_vec(), b"hij".to_vec()));
        ring.push(b"0123456789");
        assert_eq!((tail(&ring, 99), ring.end()), (b"23456789".to_vec(), 20));
    }

    #[test]
    fn a_reader_goes_on_where_it_stopped() {
        let mut ring = LogRing::new(8);
        ring.push(b"abcdef");
        let mut out = [0; 4];
        assert_eq!(ring.read(0, &mut out), (4, 4));
        assert_eq!(&out, b"abcd");
        ring.push(b"ghijkl");
        assert_eq!(ring.read(4, &mut out), (4, 8));
        assert_eq!(&out, b"efgh");
        ring.push(b"mnopqr");
        assert_eq!(ring.read(8, &mut out), (4, 14), "two bytes were overwritten");
        assert_eq!(&out, b"klmn");
        assert_eq!(ring.read(u64::MAX, &mut out), (0, 18));
    }
}
