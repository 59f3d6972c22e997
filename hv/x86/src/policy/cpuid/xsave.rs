//! Leaf 0Dh: which states there are, where they lie in the save area, and how large it is.

use super::Leaf;

/// States 0 (x87) and 1 (SSE) lie in the legacy area; with the header it has this many bytes.
const LEGACY_BYTES: u32 = 576;
const X87: u64 = 1;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
const AVX512: u64 = 0xe0;
const PKRU: u64 = 1 << 9;
/// The user states that make sense to a guest here; each needs what the switch code knows how to save.
const KNOWN: u64 = X87 | SSE | AVX | AVX512 | PKRU;
/// The highest state that is listed.
const STATES: usize = 13;
/// Sub-leaf 1 EAX: XSAVEOPT, XSAVEC, XGETBV with ECX=1, XSAVES.
const INSTRUCTIONS: u32 = 0xf;
/// Sub-leaf n ECX: aligned to 64 bytes in the compact form.
const ALIGNED: u32 = 1 << 1;

/// The offered part of the host's leaf 0Dh.
#[derive(Clone, Copy, Debug)]
pub(super) struct Xsave {
    xcr0: u64,
    instructions: u32,
    /// Sub-leaves from 2 up: size, offset, flags.
    states: [Leaf; STATES],
}

impl Xsave {
    pub(super) fn new(host: &impl Fn(u32, u32) -> Leaf, xcr0: u64) -> Self {
        let has_xsave = host(1, 0)[2] & super::features::XSAVE != 0;
        let [low, _, _, high] = if has_xsave { host(0xd, 0) } else { [0; 4] };
        let [instructions, ..] = if has_xsave { host(0xd, 1) } else { [0; 4] };
        let xcr0 = dependent(xcr0 & KNOWN & (u64::from(high) << 32 | u64::from(low)));
        let state = |i: usize| match xcr0 >> i & 1 {
            1 if i >= 2 => {
                let [size, offset, flags, _] = host(0xd, i as u32);
                [size, offset, flags & ALIGNED, 0]
            }
            _ => [0; 4],
        };
        let instructions = if xcr0 != 0 { instructions & INSTRUCTIONS } else { 0 };
        Self { xcr0, instructions, states: core::array::from_fn(state) }
    }

    pub(super) fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// What the guest reads, its XCR0 and XSS being these.
    pub(super) fn leaf(&self, subleaf: u32, xcr0: u64, xss: u64) -> Leaf {
        match subleaf {
            0 => [
                self.xcr0 as u32,
                self.standard_bytes(xcr0),
                self.standard_bytes(self.xcr0),
                (self.xcr0 >> 32) as u32,
            ],
            // No supervisor states: those would be shadow stacks and tracing, which are hidden.
            1 => [self.instructions, self.compact_bytes(xcr0 | xss), 0, 0],
            _ => *self.states.get(subleaf as usize).unwrap_or(&[0; 4]),
        }
    }

    /// Bytes of the standard form for these states.
    fn standard_bytes(&self, states: u64) -> u32 {
        self.of(states).map(|[size, offset, ..]| offset.saturating_add(*size)).fold(LEGACY_BYTES, u32::max)
    }

    /// Bytes of the compact form, the states one behind the other.
    fn compact_bytes(&self, states: u64) -> u32 {
        if self.instructions & 0b1010 == 0 {
            return 0;
        }
        self.of(states).fold(LEGACY_BYTES, |end, [size, _, flags, _]| {
            let start = if flags & ALIGNED != 0 { end.saturating_add(63) & !63 } else { end };
            start.saturating_add(*size)
        })
    }

    fn of(&self, states: u64) -> impl Iterator<Item = &Leaf> {
        self.states.iter().enumerate().filter(move |(i, _)| states >> i & 1 == 1).map(|(_, state)| state)
    }
}

/// Whether a value may be written to XCR0 (APM vol. 2, "Extended Control Register XCR0"): only offered states,
/// x87 always, AVX with SSE, AVX-512 whole and with AVX.
pub const fn xcr0_is_valid(value: u64, offered: u64) -> bool {
    let avx = value & AVX == 0 || value & SSE != 0;
    let avx512 = value & AVX512 == 0 || value & AVX512 == AVX512 && value & AVX != 0;
    value & !offered == 0 && value & X87 != 0 && avx && avx512
}

/// Takes away states that lack one they depend on.
fn dependent(mut states: u64) -> u64 {
    if states & (X87 | SSE) != X87 | SSE {
        return 0;
    }
    if states & AVX == 0 || states & AVX512 != AVX512 {
        states &= !AVX512;
    }
    states
}
