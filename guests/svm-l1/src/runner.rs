//! Runs the cases, prints one line for each, counts.

use core::fmt::{self, Write};

use crate::{arena, cpu, say};

/// A short text.
#[derive(Clone, Copy)]
pub struct Text {
    bytes: [u8; 118],
    length: u8,
}

impl Text {
    /// Format, cutting off what does not fit.
    pub fn new(args: fmt::Arguments<'_>) -> Text {
        let mut text = Text { bytes: [0; 118], length: 0 };
        // Cutting off is the only failure.
        let _ = text.write_fmt(args);
        text
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.length.into()]).unwrap_or("?")
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            *self.bytes.get_mut(usize::from(self.length)).ok_or(fmt::Error)? = byte;
            self.length += 1;
        }
        Ok(())
    }
}

/// Why a case did not pass.
#[derive(Debug)]
pub enum Bad {
    /// It failed.
    Failed(Text),
    /// The machine lacks what it needs.
    Skipped(&'static str),
}

/// Result of a case.
pub type Outcome = Result<(), Bad>;

/// Fail with a message unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::runner::Bad::Failed($crate::runner::Text::new(format_args!($($message)+))));
        }
    };
}

/// Fail unless both are equal; prints them in hexadecimal without a prefix.
#[macro_export]
macro_rules! check_eq {
    ($what:expr, $is:expr, $should:expr) => {{
        let (is, should) = ($is, $should);
        $crate::check!(is == should, "{}: {is:x?} instead of {should:x?}", $what);
    }};
}

/// Fail unless the exit code is that one. TCG stores only 32 bits of VMEXIT_INVALID; bare, both forms pass.
#[macro_export]
macro_rules! check_exit {
    ($l2:expr, $code:expr, $should:expr) => {{
        let (is, should): (u64, u64) = ($code, $should);
        let same = is == should || $crate::cpu::bare_tcg() && is == should & 0xffff_ffff;
        let (rip, info1, info2) = (
            $l2.vmcb.get($crate::vmcb::RIP),
            $l2.vmcb.get($crate::vmcb::INFO1),
            $l2.vmcb.get($crate::vmcb::INFO2),
        );
        $crate::check!(
            same,
            "exit {is:#x} instead of {should:#x}, rip {rip:#x} info1 {info1:#x} info2 {info2:#x}"
        );
    }};
}

/// Excuses of the emulator that hold also under a hypervisor: the processor never tells it.
const OUT_OF_REACH: &[&str] = &[
    "non-canonical addresses fault as #PF",
    "the intercept does not see INT3",
    "the intercept does not see double faults",
    "error codes count gates as 16 bytes",
    "equal priority counts as higher",
    "the shadow does not hold V_IRQ at VMRUN",
    "V_IRQ does not look at V_GIF",
    "VMRUN does not arm breakpoints",
    "INVD exits as WBINVD",
];

/// Tallies and the filter.
#[derive(Debug)]
pub struct Runner<'a> {
    only: &'a str,
    bare_tcg: bool,
    on_tcg: bool,
    passed: u32,
    failed: u32,
    lax: u32,
    skipped: u32,
}

impl<'a> Runner<'a> {
    /// Run only cases whose names start with `only`. `on_tcg`: the emulator is beneath, with or without a hypervisor
    /// between.
    pub fn new(only: &'a str, on_tcg: bool) -> Runner<'a> {
        Runner { only, bare_tcg: cpu::bare_tcg(), on_tcg, passed: 0, failed: 0, lax: 0, skipped: 0 }
    }

    /// Run one case. `tcg`: why the emulator's own SVM is known to fail it (bare runs take any
    /// as an excuse, others only those that no hypervisor can mend).
    pub fn case(&mut self, group: &str, name: &str, tcg: Option<&str>, case: impl FnOnce() -> Outcome) {
        let full = Text::new(format_args!("{group}.{name}"));
        if !full.as_str().starts_with(self.only) {
            return;
        }
        arena::reset();
        cpu::wrmsr(cpu::EFER, cpu::rdmsr(cpu::EFER) | cpu::SVME);
        cpu::wrmsr(cpu::VM_HSAVE_PA, arena::page());
        let outcome = case();
        // A test may have loaded a task register of its own.
        crate::trap::init(0);
        cpu::cli();
        cpu::wrmsr(cpu::EFER, cpu::rdmsr(cpu::EFER) | cpu::SVME);
        cpu::stgi();
        match outcome {
            Ok(()) => {
                self.passed += 1;
                say!("test {full:?} ... ok");
            }
            Err(Bad::Skipped(why)) => {
                self.skipped += 1;
                say!("test {full:?} ... skipped {why}");
            }
            Err(Bad::Failed(_)) if tcg.is_some_and(|excuse| self.accepts(excuse)) => {
                self.lax += 1;
                say!("test {full:?} ... lax {}", tcg.unwrap_or_default());
            }
            Err(Bad::Failed(why)) => {
                self.failed += 1;
                say!("test {full:?} ... FAILED {why:?}");
            }
        }
    }

    fn accepts(&self, excuse: &str) -> bool {
        self.bare_tcg || self.on_tcg && OUT_OF_REACH.contains(&excuse)
    }

    /// Print the tallies; whether nothing failed.
    pub fn finish(&self) -> bool {
        say!("{} passed, {} failed, {} lax, {} skipped", self.passed, self.failed, self.lax, self.skipped);
        self.failed == 0 && self.passed > 0
    }
}
