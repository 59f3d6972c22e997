//! EVENTINJ and EXITINTINFO: one format for both.

/// An event as EVENTINJ and EXITINTINFO encode it (APM vol. 2, "Event Injection"). Any value is
/// representable; bits 30:12 are reserved and ignored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Event(pub u64);

/// Bits 10:8 of an [`Event`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// 0: external or virtual interrupt.
    Intr,
    /// 2: NMI.
    Nmi,
    /// 3: exception (fault or trap).
    Exception,
    /// 4: software interrupt, INTn.
    Soft,
    /// The others.
    Reserved(u8),
}

impl Event {
    /// No event.
    pub const NONE: Self = Self(0);
    /// Bit 31: there is an event.
    pub const VALID: u64 = 1 << 31;
    /// Bit 11: an error code is pushed.
    pub const ERROR_VALID: u64 = 1 << 11;
    /// The NMI.
    pub const NMI: Self = Self(Self::VALID | 2 << 8 | 2);

    /// An interrupt, pushed as if acknowledged with `vector`.
    pub const fn intr(vector: u8) -> Self {
        Self(Self::VALID | vector as u64)
    }
    /// A software interrupt.
    pub const fn soft(vector: u8) -> Self {
        Self(Self::VALID | 4 << 8 | vector as u64)
    }
    /// An exception; `error` is pushed if there is one.
    pub const fn exception(vector: u8, error: Option<u32>) -> Self {
        let base = Self::VALID | 3 << 8 | vector as u64;
        match error {
            Some(code) => Self(base | Self::ERROR_VALID | (code as u64) << 32),
            None => Self(base),
        }
    }
    /// Whether there is an event.
    #[inline]
    pub const fn is_valid(self) -> bool {
        self.0 & Self::VALID != 0
    }
    /// The vector.
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }
    /// What kind of event.
    pub const fn kind(self) -> EventKind {
        match (self.0 >> 8) as u8 & 7 {
            0 => EventKind::Intr,
            2 => EventKind::Nmi,
            3 => EventKind::Exception,
            4 => EventKind::Soft,
            n => EventKind::Reserved(n),
        }
    }
    /// The error code, if one is pushed.
    pub const fn error(self) -> Option<u32> {
        if self.0 & Self::ERROR_VALID != 0 { Some((self.0 >> 32) as u32) } else { None }
    }
    /// Whether delivery pushes the address of the next instruction: INTn, INT3 and INTO.
    pub const fn pushes_next_rip(self) -> bool {
        let soft = match self.kind() {
            EventKind::Soft => true,
            EventKind::Exception => matches!(self.vector(), 3 | 4),
            _ => false,
        };
        self.is_valid() && soft
    }
    /// The same bits with "valid" cleared, as the processor leaves EVENTINJ after an exit.
    pub const fn spent(self) -> Self {
        Self(self.0 & !Self::VALID)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_as_the_manual_lays_it_out() {
        let e = Event::exception(14, Some(0xabcd));
        assert_eq!(e.0, 0x0000_abcd_8000_0b0e);
        assert_eq!((e.kind(), e.vector(), e.error()), (EventKind::Exception, 14, Some(0xabcd)));
        assert_eq!(Event::NMI.0, 0x8000_0202);
        assert_eq!(Event::soft(0x80).0, 0x8000_0480);
        assert_eq!(Event(5 << 8).kind(), EventKind::Reserved(5));
        assert!(!e.spent().is_valid() && e.spent().vector() == 14);
    }
}
