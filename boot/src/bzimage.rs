//! Linux boot images and compressed kernels.
#![allow(clippy::todo)]
use alloc::borrow::Cow;

/// How a payload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// RFC 1952.
    Gzip,
    /// The .xz format.
    Xz,
    /// RFC 8878.
    Zstd,
    /// LZ4's legacy frames, as Linux uses them.
    Lz4Legacy,
    /// Refused.
    Bzip2,
    /// Refused.
    Lzma,
    /// Refused.
    Lzo,
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
    /// What was compressed is not ELF; its first bytes.
    NotElfInside([u8; 8]),
}

/// What kind of file this is.
pub fn detect(_image: &[u8]) -> Kind {
    todo!()
}

/// The ELF in `image`: itself if it is ELF, else unpacked. At most `limit` bytes.
pub fn extract_elf(_image: &[u8], _limit: usize) -> Result<Cow<'_, [u8]>, ExtractError> {
    todo!()
}
