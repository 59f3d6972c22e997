//! The part of a virtual APIC that every CPU may touch: requests on their way in, and the address that
//! senders match.
//!
//! The protocol is that of posted interrupts: a sender sets its request, then sets `outstanding`; the one
//! that changes `outstanding` from clear to set owes the target a kick. The owner clears `outstanding`
//! first and collects afterwards, so a request is either collected or followed by a kick, never lost.

use hv_core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::dest::{Addressing, MODEL_FLAT, Mode};
use super::icr::{DeliveryMode, Ipi};

const NMI_COUNT: u32 = 0b11; // saturates at 2: one being handled, one latched behind it
const NMI_MAX: u32 = 2;
const INIT: u32 = 1 << 8;
const SIPI: u32 = 1 << 9;
const ILLEGAL_VECTOR: u32 = 1 << 10;
const SIPI_VECTOR_SHIFT: u32 = 16;

/// The first vector that an interrupt may have; below are the exceptions and reserved ones.
pub(super) const FIRST_LEGAL_VECTOR: u8 = 16;

/// What any CPU may do to a virtual APIC.
///
/// Methods that return `bool` say whether the target must be *kicked*: made to run
/// [`Vlapic::sync`](super::Vlapic::sync) before it next enters the guest or goes on sleeping.
#[derive(Debug)]
#[repr(align(64))]
pub struct VlapicShared {
    pir: [AtomicU64; 4],
    level: [AtomicU64; 4],
    events: AtomicU32,
    addressing: AtomicU32,
    outstanding: AtomicBool,
    id: u32,
}

/// INIT and start-up messages that arrived, in their order: INIT first.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Startup {
    /// Reset the vCPU and let it wait for a start-up message.
    pub init: bool,
    /// Start at page `sipi` (CS base `sipi << 12`), if then waiting for start-up; else to be ignored.
    pub sipi: Option<u8>,
}

impl Startup {
    /// Whether nothing arrived.
    pub const fn is_none(&self) -> bool {
        !self.init && self.sipi.is_none()
    }
}

/// Requests taken out of a [`VlapicShared`].
#[derive(Debug)]
pub(super) struct Collected {
    pub requests: [u64; 4],
    pub level: [u64; 4],
    pub nmis: u8,
    pub illegal_vector: bool,
    pub startup: Startup,
}

impl VlapicShared {
    /// The shared part of an APIC just reset: xAPIC mode, software-disabled.
    pub fn new(id: u32) -> Self {
        Self {
            pir: core::array::from_fn(|_| AtomicU64::new(0)),
            level: core::array::from_fn(|_| AtomicU64::new(0)),
            events: AtomicU32::new(0),
            addressing: AtomicU32::new(pack(&Addressing {
                id,
                mode: Mode::Xapic,
                ldr: 0,
                model: MODEL_FLAT,
                accepting: false,
                priority: 0,
            })),
            outstanding: AtomicBool::new(false),
            id,
        }
    }

    /// The 32-bit APIC id.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// The address to match destinations against, as last published by the owner.
    pub fn addressing(&self) -> Addressing {
        unpack(self.id, self.addressing.load(Ordering::Relaxed))
    }

    /// Requests an edge-triggered interrupt. A disabled APIC drops it, as the hardware does.
    #[must_use = "the target must be kicked"]
    pub fn post(&self, vector: u8) -> bool {
        self.request(vector, false)
    }

    /// Requests a level-triggered interrupt: its end will be reported as `Effect::Eoi`.
    #[must_use = "the target must be kicked"]
    pub fn post_level(&self, vector: u8) -> bool {
        self.request(vector, true)
    }

    fn request(&self, vector: u8, level: bool) -> bool {
        if self.addressing.load(Ordering::Relaxed) & ACCEPTING == 0 {
            return false;
        }
        if vector < FIRST_LEGAL_VECTOR {
            self.events.fetch_or(ILLEGAL_VECTOR, Ordering::AcqRel);
            return self.raise();
        }
        let (word, bit) = (usize::from(vector >> 6), 1u64 << (vector & 63));
        // The trigger mode goes first: whoever sees the request sees it too.
        let was_level = self.level[word].load(Ordering::Relaxed) & bit != 0;
        match (level, was_level) {
            (true, false) => _ = self.level[word].fetch_or(bit, Ordering::Relaxed),
            (false, true) => _ = self.level[word].fetch_and(!bit, Ordering::Relaxed),
            _ => {}
        }
        self.pir[word].fetch_or(bit, Ordering::AcqRel);
        self.raise()
    }

    /// Requests an NMI; at most two are remembered.
    #[must_use = "the target must be kicked"]
    pub fn post_nmi(&self) -> bool {
        self.change_events(|events| if events & NMI_COUNT < NMI_MAX { events + 1 } else { events })
    }

    /// Requests INIT. It cancels a start-up message that was not taken yet.
    #[must_use = "the target must be kicked"]
    pub fn post_init(&self) -> bool {
        self.change_events(|events| (events | INIT) & !SIPI)
    }

    /// Requests start-up at page `vector`. The first one counts, as the others find the vCPU running.
    #[must_use = "the target must be kicked"]
    pub fn post_sipi(&self, vector: u8) -> bool {
        self.change_events(|events| {
            if events & SIPI != 0 {
                return events;
            }
            events & 0xffff | SIPI | (u32::from(vector) << SIPI_VECTOR_SHIFT)
        })
    }

    /// Gives this APIC a message that [`resolve`](super::resolve) found to be for it.
    #[must_use = "the target must be kicked"]
    pub fn deliver(&self, ipi: &Ipi) -> bool {
        if matches!(self.addressing().mode, Mode::Disabled) {
            return false;
        }
        match ipi.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => self.request(ipi.vector, ipi.level),
            DeliveryMode::Nmi => self.post_nmi(),
            DeliveryMode::Init => self.post_init(),
            DeliveryMode::Startup => self.post_sipi(ipi.vector),
            DeliveryMode::Smi | DeliveryMode::RemoteRead | DeliveryMode::ExtInt => false,
        }
    }

    /// Whether something waits to be collected: test it after announcing to sleep, before sleeping.
    pub fn has_outstanding(&self) -> bool {
        self.outstanding.load(Ordering::SeqCst)
    }

    fn change_events(&self, change: impl Fn(u32) -> u32) -> bool {
        let update = |events| Some(change(events));
        _ = self.events.fetch_update(Ordering::AcqRel, Ordering::Relaxed, update);
        self.raise()
    }

    /// Always a read-modify-write, even if already set: the collector's swap then synchronises with every
    /// sender before it, not only with the first. SeqCst pairs with the sleeper's announcement.
    fn raise(&self) -> bool {
        !self.outstanding.swap(true, Ordering::SeqCst)
    }

    /// Takes all requests; `None` if there are none, which is the common case and costs one load.
    #[inline]
    pub(super) fn collect(&self) -> Option<Collected> {
        if !self.outstanding.load(Ordering::Relaxed) {
            return None;
        }
        self.outstanding.swap(false, Ordering::SeqCst);
        let mut requests = [0; 4];
        let mut level = [0; 4];
        for word in 0..4 {
            if self.pir[word].load(Ordering::Relaxed) != 0 {
                requests[word] = self.pir[word].swap(0, Ordering::AcqRel);
                level[word] = self.level[word].load(Ordering::Relaxed);
            }
        }
        let events = match self.events.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.events.swap(0, Ordering::AcqRel),
        };
        Some(Collected {
            requests,
            level,
            nmis: (events & NMI_COUNT) as u8,
            illegal_vector: events & ILLEGAL_VECTOR != 0,
            startup: Startup {
                init: events & INIT != 0,
                sipi: (events & SIPI != 0).then_some((events >> SIPI_VECTOR_SHIFT) as u8),
            },
        })
    }

    /// Shows senders the owner's address.
    pub(super) fn publish(&self, packed: u32) {
        self.addressing.store(packed, Ordering::Relaxed);
    }
}

const ACCEPTING: u32 = 1 << 14;

/// An address in 32 bits: ldr 7:0, model 11:8, mode 13:12, accepting 14, priority 23:16.
pub(super) const fn pack(cpu: &Addressing) -> u32 {
    let mode = match cpu.mode {
        Mode::Disabled => 0,
        Mode::Xapic => 1,
        Mode::X2apic => 2,
    };
    cpu.ldr as u32
        | (cpu.model as u32 & 0xf) << 8
        | mode << 12
        | if cpu.accepting { ACCEPTING } else { 0 }
        | (cpu.priority as u32) << 16
}

const fn unpack(id: u32, packed: u32) -> Addressing {
    Addressing {
        id,
        mode: match (packed >> 12) & 3 {
            1 => Mode::Xapic,
            2 => Mode::X2apic,
            _ => Mode::Disabled,
        },
        ldr: packed as u8,
        model: (packed >> 8) as u8 & 0xf,
        accepting: packed & ACCEPTING != 0,
        priority: (packed >> 16) as u8,
    }
}
