//! Exit codes and intercept bits: for codes below 0C0h they are one numbering.

use core::fmt;
use core::ops::{BitAnd, BitOr, Not};

/// An exit code (EXITCODE, 64 bits). Any value is representable, also ones no processor has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExitCode(pub u64);

/// A thing that can be intercepted: bit `n % 32` of intercept word `n / 32`, where `n` is also the exit
/// code it gives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Intercept(u8);

/// Number of intercept words.
const WORDS: usize = 6;
/// Codes below this one have an intercept bit.
const CODES: u64 = WORDS as u64 * 32;

impl Intercept {
    /// The intercept that leads to the exit `code`; `None` if that exit has no bit of its own.
    #[inline]
    pub const fn of(code: ExitCode) -> Option<Self> {
        if code.0 < CODES { Some(Self(code.0 as u8)) } else { None }
    }
    /// The exit code it leads to.
    pub const fn code(self) -> ExitCode {
        ExitCode(self.0 as u64)
    }
    /// Which of the six words.
    #[inline]
    pub const fn word(self) -> usize {
        (self.0 / 32) as usize
    }
    /// Its bit within the word.
    #[inline]
    pub const fn mask(self) -> u32 {
        1 << (self.0 % 32)
    }
    /// Reads of CR`n`.
    pub const fn cr_read(n: u8) -> Self {
        Self(n & 15)
    }
    /// Writes of CR`n`.
    pub const fn cr_write(n: u8) -> Self {
        Self(0x10 | (n & 15))
    }
    /// Reads of DR`n`.
    pub const fn dr_read(n: u8) -> Self {
        Self(0x20 | (n & 15))
    }
    /// Writes of DR`n`.
    pub const fn dr_write(n: u8) -> Self {
        Self(0x30 | (n & 15))
    }
    /// The exception `vector`, modulo 32.
    pub const fn exception(vector: u8) -> Self {
        Self(0x40 | (vector & 31))
    }
}

/// The six intercept words: CR, DR, exceptions, then the three miscellaneous ones.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Intercepts(pub [u32; WORDS]);

impl Intercepts {
    /// Nothing.
    pub const NONE: Self = Self([0; WORDS]);
    /// Index of the control register word: reads in bits 15:0, writes in 31:16.
    pub const CR: usize = 0;
    /// Index of the debug register word.
    pub const DR: usize = 1;
    /// Index of the exception word.
    pub const EXCEPTION: usize = 2;
    /// Index of the word at 00Ch.
    pub const MISC1: usize = 3;
    /// Index of the word at 010h.
    pub const MISC2: usize = 4;
    /// Index of the word at 014h.
    pub const MISC3: usize = 5;

    /// Exactly the intercepts listed.
    pub const fn of(list: &[Intercept]) -> Self {
        let mut words = [0; WORDS];
        let mut i = 0;
        while i < list.len() {
            words[list[i].word()] |= list[i].mask();
            i += 1;
        }
        Self(words)
    }
    /// Whether `what` is intercepted.
    #[inline]
    pub const fn has(&self, what: Intercept) -> bool {
        self.0[what.word()] & what.mask() != 0
    }
    /// Whether all of `other` is.
    pub fn contains(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).all(|(mine, theirs)| theirs & !mine == 0)
    }
    /// Adds `what`.
    #[inline]
    pub const fn set(&mut self, what: Intercept) {
        self.0[what.word()] |= what.mask();
    }
    /// Takes `what` away.
    #[inline]
    pub const fn clear(&mut self, what: Intercept) {
        self.0[what.word()] &= !what.mask();
    }
    /// Whether any read of a control register is intercepted.
    #[inline]
    pub const fn any_cr_read(&self) -> bool {
        self.0[Self::CR] & 0xffff != 0
    }
}

impl BitOr for Intercepts {
    type Output = Self;
    #[inline]
    fn bitor(self, other: Self) -> Self {
        Self(core::array::from_fn(|i| self.0[i] | other.0[i]))
    }
}
impl BitAnd for Intercepts {
    type Output = Self;
    #[inline]
    fn bitand(self, other: Self) -> Self {
        Self(core::array::from_fn(|i| self.0[i] & other.0[i]))
    }
}
impl Not for Intercepts {
    type Output = Self;
    #[inline]
    fn not(self) -> Self {
        Self(self.0.map(|w| !w))
    }
}

macro_rules! codes {
    ($($name:ident = $code:literal $doc:literal;)*) => {
        impl ExitCode {
            $(#[doc = $doc] pub const $name: Self = Self($code);)*
        }
        impl Intercept {
            $(#[doc = concat!("Intercept of: ", $doc)] pub const $name: Self = Self($code);)*
        }
        /// Names of the codes above, for [`fmt::Display`].
        const NAMES: &[(u64, &str)] = &[$(($code, stringify!($name))),*];
    };
}

// APM vol. 2, appendix C "SVM Intercept Exit Codes", and appendix B for the bits.
codes! {
    INTR = 0x60 "Physical maskable interrupt.";
    NMI = 0x61 "Physical NMI.";
    SMI = 0x62 "Physical SMI.";
    INIT = 0x63 "Physical INIT.";
    VINTR = 0x64 "Virtual interrupt about to be taken.";
    CR0_SEL_WRITE = 0x65 "CR0 write that changes other bits than TS and MP.";
    IDTR_READ = 0x66 "SIDT.";
    GDTR_READ = 0x67 "SGDT.";
    LDTR_READ = 0x68 "SLDT.";
    TR_READ = 0x69 "STR.";
    IDTR_WRITE = 0x6a "LIDT.";
    GDTR_WRITE = 0x6b "LGDT.";
    LDTR_WRITE = 0x6c "LLDT.";
    TR_WRITE = 0x6d "LTR.";
    RDTSC = 0x6e "RDTSC.";
    RDPMC = 0x6f "RDPMC.";
    PUSHF = 0x70 "PUSHF.";
    POPF = 0x71 "POPF.";
    CPUID = 0x72 "CPUID.";
    RSM = 0x73 "RSM.";
    IRET = 0x74 "IRET.";
    SWINT = 0x75 "INTn.";
    INVD = 0x76 "INVD.";
    PAUSE = 0x77 "PAUSE.";
    HLT = 0x78 "HLT.";
    INVLPG = 0x79 "INVLPG.";
    INVLPGA = 0x7a "INVLPGA.";
    IOIO = 0x7b "Port access, filtered by the IOPM.";
    MSR = 0x7c "RDMSR or WRMSR, filtered by the MSRPM.";
    TASK_SWITCH = 0x7d "Task switch.";
    FERR_FREEZE = 0x7e "FP legacy handling freeze.";
    SHUTDOWN = 0x7f "Shutdown (triple fault).";
    VMRUN = 0x80 "VMRUN.";
    VMMCALL = 0x81 "VMMCALL.";
    VMLOAD = 0x82 "VMLOAD.";
    VMSAVE = 0x83 "VMSAVE.";
    STGI = 0x84 "STGI.";
    CLGI = 0x85 "CLGI.";
    SKINIT = 0x86 "SKINIT.";
    RDTSCP = 0x87 "RDTSCP.";
    ICEBP = 0x88 "ICEBP (INT1).";
    WBINVD = 0x89 "WBINVD or WBNOINVD.";
    MONITOR = 0x8a "MONITOR or MONITORX.";
    MWAIT = 0x8b "MWAIT or MWAITX.";
    MWAIT_CONDITIONAL = 0x8c "MWAIT or MWAITX with the monitor armed.";
    XSETBV = 0x8d "XSETBV.";
    RDPRU = 0x8e "RDPRU.";
    EFER_WRITE_TRAP = 0x8f "EFER written (after the instruction).";
    INVLPGB = 0xa0 "INVLPGB.";
    INVLPGB_ILLEGAL = 0xa1 "Illegally specified INVLPGB.";
    INVPCID = 0xa2 "INVPCID.";
    MCOMMIT = 0xa3 "MCOMMIT.";
    TLBSYNC = 0xa4 "TLBSYNC.";
    BUSLOCK = 0xa5 "Bus lock threshold reached.";
    IDLE_HLT = 0xa6 "HLT with no virtual interrupt pending.";
}

impl ExitCode {
    /// Nested page fault. Information 1 is the error code, information 2 the guest-physical address.
    pub const NPF: Self = Self(0x400);
    /// AVIC: an IPI that the hardware could not deliver.
    pub const AVIC_INCOMPLETE_IPI: Self = Self(0x401);
    /// AVIC: an access that is not accelerated.
    pub const AVIC_NOACCEL: Self = Self(0x402);
    /// VMGEXIT of a SEV-ES guest.
    pub const VMGEXIT: Self = Self(0x403);
    /// First code of the range that hardware never uses and hypervisors may.
    pub const SOFTWARE: Self = Self(0xf000_0000);
    /// Invalid guest state in the VMCB.
    pub const INVALID: Self = Self(u64::MAX);
    /// The busy bit of an encrypted VMSA was set.
    pub const BUSY: Self = Self(u64::MAX - 1);
    /// The sibling thread was not idle, as this guest demands.
    pub const IDLE_REQUIRED: Self = Self(u64::MAX - 2);
    /// Invalid performance counter state.
    pub const INVALID_PMC: Self = Self(u64::MAX - 3);

    /// The code of an exit from hardware, repaired: QEMU TCG writes the negative codes as 32 bits.
    #[inline]
    pub const fn from_hardware(raw: u64) -> Self {
        if raw >> 4 == 0x0fff_ffff { Self(raw as u32 as i32 as i64 as u64) } else { Self(raw) }
    }
    /// Read of CR`n`.
    pub const fn cr_read(n: u8) -> Self {
        Intercept::cr_read(n).code()
    }
    /// Write of CR`n`.
    pub const fn cr_write(n: u8) -> Self {
        Intercept::cr_write(n).code()
    }
    /// The exception `vector`, modulo 32.
    pub const fn exception(vector: u8) -> Self {
        Intercept::exception(vector).code()
    }

    /// The vector, if the exit is an intercepted exception.
    #[inline]
    pub const fn exception_vector(self) -> Option<u8> {
        match self.0 {
            0x40..0x60 => Some((self.0 - 0x40) as u8),
            _ => None,
        }
    }
}

impl fmt::Display for ExitCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n @ 0x00..=0x0f => write!(f, "CR{n}_READ"),
            n @ 0x10..=0x1f => write!(f, "CR{}_WRITE", n - 0x10),
            n @ 0x20..=0x2f => write!(f, "DR{}_READ", n - 0x20),
            n @ 0x30..=0x3f => write!(f, "DR{}_WRITE", n - 0x30),
            n @ 0x40..=0x5f => write!(f, "EXCP{}", n - 0x40),
            n @ 0x90..=0x9f => write!(f, "CR{}_WRITE_TRAP", n - 0x90),
            0x400 => f.write_str("NPF"),
            0x401 => f.write_str("AVIC_INCOMPLETE_IPI"),
            0x402 => f.write_str("AVIC_NOACCEL"),
            0x403 => f.write_str("VMGEXIT"),
            u64::MAX => f.write_str("INVALID"),
            n if n == Self::BUSY.0 => f.write_str("BUSY"),
            n if n == Self::IDLE_REQUIRED.0 => f.write_str("IDLE_REQUIRED"),
            n if n == Self::INVALID_PMC.0 => f.write_str("INVALID_PMC"),
            n => match NAMES.iter().find(|(code, _)| *code == n) {
                Some((_, name)) => f.write_str(name),
                None => write!(f, "EXIT({n:#x})"),
            },
        }
    }
}

impl fmt::Debug for ExitCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_code_is_the_number_of_its_bit() {
        // APM vol. 2, appendix B: spot checks across the words.
        assert_eq!((Intercept::CPUID.word(), Intercept::CPUID.mask()), (Intercepts::MISC1, 1 << 18));
        assert_eq!((Intercept::SHUTDOWN.word(), Intercept::SHUTDOWN.mask()), (Intercepts::MISC1, 1 << 31));
        assert_eq!((Intercept::VMRUN.word(), Intercept::VMRUN.mask()), (Intercepts::MISC2, 1));
        assert_eq!((Intercept::XSETBV.word(), Intercept::XSETBV.mask()), (Intercepts::MISC2, 1 << 13));
        assert_eq!((Intercept::INVPCID.word(), Intercept::INVPCID.mask()), (Intercepts::MISC3, 1 << 2));
        assert_eq!(Intercept::cr_write(4).mask(), 1 << 20);
        assert_eq!(Intercept::of(ExitCode::NPF), None);
    }

    #[test]
    fn names_are_unique_and_unknown_codes_print() {
        for (i, (code, name)) in NAMES.iter().enumerate() {
            assert_eq!(ExitCode(*code).to_string(), *name);
            assert!(NAMES[i + 1..].iter().all(|(c, n)| c > code && n != name));
        }
        assert_eq!(ExitCode(0x1234).to_string(), "EXIT(0x1234)");
        assert_eq!(ExitCode::exception(14).to_string(), "EXCP14");
        assert_eq!(ExitCode::exception(31).exception_vector(), Some(31));
        assert_eq!(ExitCode(0x3f).exception_vector(), None);
        assert_eq!(ExitCode::INTR.exception_vector(), None);
    }

    #[test]
    fn a_32_bit_invalid_is_widened_and_nothing_else() {
        assert_eq!(ExitCode::from_hardware(0xffff_ffff), ExitCode::INVALID);
        assert_eq!(ExitCode::from_hardware(0xffff_fffe), ExitCode::BUSY);
        assert_eq!(ExitCode::from_hardware(0xf000_0000), ExitCode::SOFTWARE);
        assert_eq!(ExitCode::from_hardware(u64::MAX), ExitCode::INVALID);
    }
}
