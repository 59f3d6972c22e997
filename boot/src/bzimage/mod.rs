//! Linux boot images and compressed kernels: which kind a module is, and the ELF inside it.
//!
//! A PVH guest starts from the kernel's ELF file. Distributions ship it compressed inside a bzImage whose
//! setup header says where (Linux, Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header"); a
//! module may also be plain ELF, or ELF compressed with gzip or one of the other formats.
//!
//! The unpacked size is known beforehand wherever Linux's build makes the file (its last four bytes), so
//! the output is one buffer of that size, and every decoder that can uses it as its window, too.

mod decode;

use crate::bytes::{u8_at, u16_at, u32_at};
use crate::elf::is_elf;
use alloc::borrow::Cow;
use alloc::vec::Vec;
use core::fmt;

/// How a payload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// gzip (RFC 1952).
    Gzip,
    /// The .xz file format.
    Xz,
    /// Zstandard (RFC 8878).
    Zstd,
    /// LZ4 in its legacy frames, as Linux uses it.
    Lz4,
    /// LZ4 in its newer frames; not supported.
    Lz4Frame,
    /// bzip2; not supported.
    Bzip2,
    /// The old .lzma file format; not supported.
    Lzma,
    /// LZO; not supported.
    Lzo,
}

impl Format {
    /// First bytes of each (Linux, lib/decompress.c, knows the same list).
    const MAGIC: [(&'static [u8], Self); 8] = [
        (&[0x1f, 0x8b], Self::Gzip),
        (&[0xfd, b'7', b'z', b'X', b'Z', 0], Self::Xz),
        (&[0x28, 0xb5, 0x2f, 0xfd], Self::Zstd),
        (&[0x02, 0x21, 0x4c, 0x18], Self::Lz4),
        (&[0x04, 0x22, 0x4d, 0x18], Self::Lz4Frame),
        (b"BZh", Self::Bzip2),
        (&[0x5d, 0, 0], Self::Lzma),
        (&[0x89, b'L', b'Z', b'O', 0], Self::Lzo),
    ];

    fn detect(bytes: &[u8]) -> Option<Self> {
        Self::MAGIC.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, format)| *format)
    }

    /// Its usual name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "LZ4",
            Self::Lz4Frame => "LZ4 (frame format)",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "LZMA",
            Self::Lzo => "LZO",
        }
    }

    /// Whether it can be unpacked.
    pub const fn is_supported(self) -> bool {
        matches!(self, Self::Gzip | Self::Xz | Self::Zstd | Self::Lz4)
    }
}

/// What a module is, by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A Linux bzImage.
    BzImage,
    /// ELF.
    Elf,
    /// A compressed file.
    Compressed(Format),
    /// Something else; its first bytes, zero-padded.
    Unknown([u8; 8]),
}

/// Why no ELF could be had from a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtractError {
    /// Neither ELF nor bzImage; the first bytes.
    NotAKernel([u8; 8]),
    /// A bzImage of a boot protocol before 2.08, which doesn't say where the payload is.
    OldProtocol(u16),
    /// The setup header points outside the image.
    Truncated,
    /// A compression that is not supported.
    Unsupported(Format),
    /// The compressed data are damaged.
    Corrupt(Format),
    /// The ELF is larger than allowed.
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// No memory for the output.
    OutOfMemory {
        /// How much was wanted, in bytes.
        bytes: usize,
    },
    /// What was compressed is not ELF; its first bytes.
    NotElfInside([u8; 8]),
}

impl fmt::Display for ExtractError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAKernel(first) => {
                write!(f, "not a kernel: neither ELF nor bzImage; first bytes {first:02x?}")
            }
            Self::OldProtocol(version) => write!(
                f,
                "a bzImage of boot protocol {}.{:02}, too old: 2.08 (Linux 2.6.26) is needed",
                version >> 8,
                version & 0xff
            ),
            Self::Truncated => f.write_str("a bzImage that is cut short"),
            Self::Unsupported(format) => write!(
                f,
                "the kernel is compressed with {}, which is not supported; gzip, xz, zstd and LZ4 are",
                format.name()
            ),
            Self::Corrupt(format) => write!(f, "the kernel's {} data are damaged", format.name()),
            Self::TooLarge { limit } => write!(f, "the unpacked kernel is larger than {} MiB", limit >> 20),
            Self::OutOfMemory { bytes } => write!(f, "no memory to unpack {} MiB of kernel", bytes >> 20),
            Self::NotElfInside(first) => {
                write!(f, "the compressed file is no ELF kernel; first bytes {first:02x?}")
            }
        }
    }
}

impl core::error::Error for ExtractError {}

/// What kind of file this is.
pub fn detect(image: &[u8]) -> Kind {
    if is_elf(image) {
        Kind::Elf
    } else if u16_at(image, 0x1fe) == Some(0xaa55) && image.get(0x202..0x206) == Some(b"HdrS") {
        Kind::BzImage
    } else if let Some(format) = Format::detect(image) {
        Kind::Compressed(format)
    } else {
        Kind::Unknown(first_bytes(image))
    }
}

fn first_bytes(image: &[u8]) -> [u8; 8] {
    let mut first = [0; 8];
    first.iter_mut().zip(image).for_each(|(to, from)| *to = *from);
    first
}

/// A kernel inside a module, perhaps compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload<'a> {
    /// The bytes, without the size that Linux's build appends.
    pub bytes: &'a [u8],
    /// Its compression; `None` for plain ELF.
    pub format: Option<Format>,
    /// Bytes after unpacking, where the file says so. Not to be trusted.
    pub unpacked: Option<usize>,
}

/// Finds the kernel inside a module.
pub fn payload(image: &[u8]) -> Result<Payload<'_>, ExtractError> {
    match detect(image) {
        Kind::Elf => Ok(Payload { bytes: image, format: None, unpacked: Some(image.len()) }),
        Kind::BzImage => bzimage_payload(image),
        Kind::Compressed(format) => {
            // Only gzip files end with their size; the others may say it elsewhere or not at all.
            let unpacked = if format == Format::Gzip { last_word(image) } else { None };
            Ok(Payload { bytes: image, format: Some(format), unpacked })
        }
        Kind::Unknown(first) => Err(ExtractError::NotAKernel(first)),
    }
}

/// The last four bytes as a size.
fn last_word(bytes: &[u8]) -> Option<usize> {
    u32_at(bytes, bytes.len().checked_sub(4)?).map(|size| size as usize)
}

fn bzimage_payload(image: &[u8]) -> Result<Payload<'_>, ExtractError> {
    let version = u16_at(image, 0x206).ok_or(ExtractError::Truncated)?;
    if version < 0x208 {
        return Err(ExtractError::OldProtocol(version));
    }
    // setup_sects counts 512-byte sectors behind the boot sector; zero means four.
    let sectors = match u8_at(image, 0x1f1) {
        Some(0) | None => 4,
        Some(sectors) => usize::from(sectors),
    };
    let protected = (sectors + 1) * 512;
    let find = || {
        let start = protected.checked_add(u32_at(image, 0x248)? as usize)?;
        let end = start.checked_add(u32_at(image, 0x24c)? as usize)?;
        image.get(start..end)
    };
    let bytes = find().ok_or(ExtractError::Truncated)?;
    if is_elf(bytes) {
        return Ok(Payload { bytes, format: None, unpacked: Some(bytes.len()) });
    }
    let format = Format::detect(bytes).ok_or(ExtractError::NotElfInside(first_bytes(bytes)))?;
    let unpacked = last_word(bytes);
    // A gzip file ends with its size anyway; to the others the build appends it.
    let own = if format == Format::Gzip { bytes.len() } else { bytes.len().saturating_sub(4) };
    Ok(Payload { bytes: &bytes[..own], format: Some(format), unpacked })
}

impl<'a> Payload<'a> {
    /// Unpacks into `out` and says how many bytes were written; plain ELF is copied.
    ///
    /// # Errors
    /// [`ExtractError::TooLarge`] if `out` is too small; `Unsupported`, `Corrupt`.
    pub fn unpack_into(&self, out: &mut [u8]) -> Result<usize, ExtractError> {
        match self.format {
            None => {
                let limit = out.len();
                let to = out.get_mut(..self.bytes.len()).ok_or(ExtractError::TooLarge { limit })?;
                to.copy_from_slice(self.bytes);
                Ok(self.bytes.len())
            }
            Some(format) => decode::into(format, self.bytes, out),
        }
    }

    /// Unpacks to at most `limit` bytes; plain ELF is not copied.
    pub fn unpack(&self, limit: usize) -> Result<Cow<'a, [u8]>, ExtractError> {
        let too_large = ExtractError::TooLarge { limit };
        let Some(format) = self.format else {
            return if self.bytes.len() <= limit { Ok(Cow::Borrowed(self.bytes)) } else { Err(too_large) };
        };
        if !format.is_supported() {
            return Err(ExtractError::Unsupported(format));
        }
        if let Some(promised) = self.unpacked {
            let mut out = if promised <= limit { zeroed(promised)? } else { return Err(too_large) };
            return match self.unpack_into(&mut out) {
                Ok(bytes) if bytes == promised => Ok(Cow::Owned(out)),
                // More or less than it said of itself.
                Ok(_) | Err(ExtractError::TooLarge { .. }) => Err(ExtractError::Corrupt(format)),
                Err(error) => Err(error),
            };
        }
        // Without a size: try sizes, each twice the last, which in all costs at most one unpacking more.
        let mut size = self.bytes.len().saturating_mul(4).min(limit);
        loop {
            let mut out = zeroed(size)?;
            match self.unpack_into(&mut out) {
                Ok(bytes) => {
                    out.truncate(bytes);
                    return Ok(Cow::Owned(out));
                }
                Err(ExtractError::TooLarge { .. }) if size < limit => {
                    size = size.saturating_mul(2).clamp(1, limit);
                }
                Err(ExtractError::TooLarge { .. }) => return Err(too_large),
                Err(error) => return Err(error),
            }
        }
    }
}

fn zeroed(bytes: usize) -> Result<Vec<u8>, ExtractError> {
    let mut out = Vec::new();
    out.try_reserve_exact(bytes).map_err(|_| ExtractError::OutOfMemory { bytes })?;
    out.resize(bytes, 0);
    Ok(out)
}

/// The ELF in `image`: itself if it is ELF, else unpacked. At most `limit` bytes.
pub fn extract_elf(image: &[u8], limit: usize) -> Result<Cow<'_, [u8]>, ExtractError> {
    let elf = payload(image)?.unpack(limit)?;
    if is_elf(&elf) { Ok(elf) } else { Err(ExtractError::NotElfInside(first_bytes(&elf))) }
}

#[cfg(test)]
mod tests;
