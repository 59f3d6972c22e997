//! The decompressors, each writing straight into the caller's buffer.
//!
//! | format | crate | window | judged |
//! |---|---|---|---|
//! | gzip | miniz_oxide | the output | no unsafe; the usual choice |
//! | LZ4 | lz4_flex | the output | no unsafe with `safe-decode` |
//! | xz | lzma-rust2 | its own, at most [`XZ_MEMORY`] | no unsafe without `optimization`; knows the x86 filter |
//! | zstd | ruzstd | its own, see `zstd_memory` | unsafe in its ring buffer; no other is pure Rust and no_std |

use super::{ExtractError, Format};
use crate::bytes::{u8_at, u16_at, u32_at};
use alloc::boxed::Box;
use alloc::vec::Vec;
use lzma_rust2::{Action, Status, XzStream};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use ruzstd::io::Read;

/// Most memory that xz may use beside the output, in KiB. Linux's build asks for dictionaries of 32 MiB,
/// lately 128 MiB.
const XZ_MEMORY: u32 = 160 << 10;
/// Largest zstd window, in bytes: what `zstd -22 --ultra`, which Linux's build uses, asks for. The memory
/// really used follows the content.
const ZSTD_WINDOW: u64 = 128 << 20;
/// Bytes of a block of LZ4's legacy format before compression.
const LZ4_BLOCK: usize = 8 << 20;

/// Unpacks `input` into `out`.
pub(super) fn into(format: Format, input: &[u8], out: &mut [u8]) -> Result<usize, ExtractError> {
    match format {
        Format::Gzip => gzip(input, out),
        Format::Xz => xz(input, out),
        Format::Zstd => zstd(input, out),
        Format::Lz4 => lz4(input, out),
        Format::Lz4Frame | Format::Bzip2 | Format::Lzma | Format::Lzo => {
            Err(ExtractError::Unsupported(format))
        }
    }
}

fn gzip(input: &[u8], out: &mut [u8]) -> Result<usize, ExtractError> {
    const CORRUPT: ExtractError = ExtractError::Corrupt(Format::Gzip);
    let body = input.get(gzip_header(input).ok_or(CORRUPT)?..).ok_or(CORRUPT)?;
    let mut state = Box::<DecompressorOxide>::default();
    let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (status, read, written) = decompress(&mut state, body, out, 0, flags);
    match status {
        TINFLStatus::Done => {}
        TINFLStatus::HasMoreOutput => return Err(ExtractError::TooLarge { limit: out.len() }),
        _ => return Err(CORRUPT),
    }
    let unpacked = out.get(..written).ok_or(CORRUPT)?;
    let (crc, size) = u32_at(body, read).zip(u32_at(body, read.saturating_add(4))).ok_or(CORRUPT)?;
    // ISIZE is the size modulo 2^32.
    if crc == crc32fast::hash(unpacked) && size == written as u32 { Ok(written) } else { Err(CORRUPT) }
}

/// Length of the header (RFC 1952, 2.3).
fn gzip_header(input: &[u8]) -> Option<usize> {
    const DEFLATE: u8 = 8;
    const HEADER_CRC: u8 = 2;
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    if u8_at(input, 2)? != DEFLATE {
        return None;
    }
    let flags = u8_at(input, 3)?;
    let mut at = 10;
    if flags & EXTRA != 0 {
        at += 2 + usize::from(u16_at(input, at)?);
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            at += input.get(at..)?.iter().position(|byte| *byte == 0)? + 1;
        }
    }
    if flags & HEADER_CRC != 0 {
        at += 2;
    }
    Some(at)
}

/// LZ4's legacy format: blocks, each with its compressed size, of 8 MiB unpacked but for the last.
fn lz4(input: &[u8], out: &mut [u8]) -> Result<usize, ExtractError> {
    const CORRUPT: ExtractError = ExtractError::Corrupt(Format::Lz4);
    let too_large = ExtractError::TooLarge { limit: out.len() };
    let magic = u32_at(input, 0);
    let (mut at, mut written) = (4, 0);
    while at < input.len() {
        let size = u32_at(input, at).ok_or(CORRUPT)?;
        at += 4;
        // Files may be joined, so the magic may come again in place of a size.
        if Some(size) == magic {
            continue;
        }
        let block = input.get(at..).and_then(|rest| rest.get(..size as usize)).ok_or(CORRUPT)?;
        at += block.len();
        let room = &mut out[written..];
        let whole = room.len() >= LZ4_BLOCK;
        let room = if whole { &mut room[..LZ4_BLOCK] } else { room };
        written += match lz4_flex::block::decompress_into(block, room) {
            Ok(bytes) => bytes,
            Err(lz4_flex::block::DecompressError::OutputTooSmall { .. }) if !whole => return Err(too_large),
            Err(_) => return Err(CORRUPT),
        };
    }
    Ok(written)
}

fn xz(input: &[u8], out: &mut [u8]) -> Result<usize, ExtractError> {
    const CORRUPT: ExtractError = ExtractError::Corrupt(Format::Xz);
    let mut stream = XzStream::new_mem_limit(false, XZ_MEMORY);
    let (mut read, mut written) = (0, 0);
    loop {
        let (from, to) = (&input[read..], &mut out[written..]);
        // The error's type depends on whether some crate of the build turned on `std`: it is not looked at.
        let step = stream.process(from, to, Action::Finish).map_err(|_| match stream.memory_usage() {
            Some(wanted) if wanted > XZ_MEMORY => {
                ExtractError::OutOfMemory { bytes: (wanted as usize) << 10 }
            }
            _ => CORRUPT,
        })?;
        // Sizes that a decoder reports are its word only.
        read = input.len().min(read + step.bytes_consumed);
        written = out.len().min(written + step.bytes_produced);
        if step.status == Status::StreamEnd {
            return Ok(written);
        }
        if step.bytes_consumed == 0 && step.bytes_produced == 0 {
            return Err(if written == out.len() {
                ExtractError::TooLarge { limit: written }
            } else {
                CORRUPT
            });
        }
    }
}

fn zstd(input: &[u8], out: &mut [u8]) -> Result<usize, ExtractError> {
    /// Bytes to decode before the output is drained.
    const STEP: usize = 1 << 20;
    const CORRUPT: ExtractError = ExtractError::Corrupt(Format::Zstd);
    let too_large = ExtractError::TooLarge { limit: out.len() };
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(ZSTD_WINDOW);
    let mut input = input;
    decoder.init(&mut input).map_err(|_| CORRUPT)?;
    zstd_memory(out.len())?;
    let (mut written, mut decoded) = (0, 0);
    loop {
        let step = BlockDecodingStrategy::UptoBytes(STEP);
        let finished = decoder.decode_blocks(&mut input, step).map_err(|_| CORRUPT)?;
        let bytes = decoder.read(&mut out[written..]).map_err(|_| CORRUPT)?;
        written = out.len().min(written + bytes);
        if finished {
            return if decoder.can_collect() == 0 { Ok(written) } else { Err(too_large) };
        }
        // Most of what was decoded may still be in the window: count it, or a small file could fill that.
        decoded += STEP;
        if decoded > out.len() {
            return Err(too_large);
        }
    }
}

/// Makes sure that ruzstd will find the memory for its window, as it panics where there is none: the ring
/// buffer doubles as content comes in, with old and new there at once, and holds no more than the window
/// or the content, whichever is less, and a step.
fn zstd_memory(content: usize) -> Result<(), ExtractError> {
    let ring = content.min(ZSTD_WINDOW as usize).next_power_of_two() + (2 << 20);
    let bytes = ring + ring / 2;
    let mut probe = Vec::<u8>::new();
    probe.try_reserve_exact(bytes).map_err(|_| ExtractError::OutOfMemory { bytes })
}
