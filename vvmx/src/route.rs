//! Whose an exit from L2 is: one table over all basic exit reasons, and what its entries mean.
//!
//! L0 first takes what it wants for itself; then L1's controls decide. What nobody knows is L1's: handled by
//! L0, an unknown exit would let L2 act as L1. What L1 does not ask for L0 handles *as L2*: with L2's
//! registers, its composed TSC, and after another look at L1's controls for everything that an emulated
//! instruction touches (CVE-2020-2732).

use crate::bitmap::{IoAccess, Maps12, io_exits, msr_exits};
use crate::bits::{pin, primary, reg::*, secondary};
use crate::code::{Reason, intr};
use crate::field::{Field, Vmcs};
use crate::vmcs12::{Checked12, Vmcs12};

/// An exit from L2, read once from vmcs02.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Exit {
    /// The exit-reason field.
    pub reason: u32,
    /// Exit qualification.
    pub qualification: u64,
    /// Interruption information.
    pub intr_info: u32,
    /// Interruption error code.
    pub intr_error: u32,
    /// IDT-vectoring information.
    pub idt_info: u32,
    /// IDT-vectoring error code.
    pub idt_error: u32,
    /// Instruction length, bytes.
    pub insn_length: u32,
    /// Instruction information.
    pub insn_info: u32,
    /// Guest-linear address.
    pub linear: u64,
    /// Guest-physical address: L2's.
    pub physical: u64,
    /// The register that the instruction reads, the back end's to fill in: source of MOV to CR, ECX of RDMSR
    /// and WRMSR (the index, whatever the instruction's form), EDX:EAX AND XSS for XSAVES and XRSTORS, the
    /// encoding that VMREAD or VMWRITE names.
    pub operand: u64,
}

impl Exit {
    /// Reads what the exit's reason makes meaningful. [`Exit::operand`] is left 0.
    pub fn read(vmcs: &mut impl Vmcs) -> Self {
        let mut get32 = |field| vmcs.read(field) as u32;
        let mut exit = Self {
            reason: get32(Field::EXIT_REASON),
            idt_info: get32(Field::IDT_VECTORING_INFO),
            insn_length: get32(Field::EXIT_INSN_LENGTH),
            insn_info: get32(Field::EXIT_INSN_INFO),
            ..Self::default()
        };
        let reason = exit.basic();
        if matches!(reason, Reason::EXCEPTION_NMI | Reason::EXTERNAL_INTERRUPT) {
            exit.intr_info = get32(Field::EXIT_INTR_INFO);
            exit.intr_error = get32(Field::EXIT_INTR_ERROR_CODE);
        }
        if intr::valid(exit.idt_info) {
            exit.idt_error = get32(Field::IDT_VECTORING_ERROR_CODE);
        }
        exit.qualification = vmcs.read(Field::EXIT_QUALIFICATION);
        exit.linear = vmcs.read(Field::GUEST_LINEAR_ADDRESS);
        if matches!(reason, Reason::EPT_VIOLATION | Reason::EPT_MISCONFIGURATION) {
            exit.physical = vmcs.read(Field::GUEST_PHYSICAL_ADDRESS);
        }
        exit
    }
    /// The basic exit reason.
    #[inline]
    pub fn basic(&self) -> Reason {
        Reason::from_field(self.reason)
    }
}

/// The owner of an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// L0 handles it; L1 never hears of it.
    L0,
    /// Reflect it to L1.
    L1,
    /// L0 first; it may then have something for L1. Interrupts and NMIs: service the machine's, then ask
    /// [`crate::events::next`]. EPT: walk L1's tables, then fix, or reflect what the walk found. Preemption
    /// timer: reflect if L1's deadline has passed. VMFUNC: switch, or reflect. VMREAD and VMWRITE:
    /// [`crate::state::shadow_access`].
    Both,
}

/// What L0 wants for reasons of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct L0Wants {
    /// Exceptions that are L0's even if L1 wants them (a debugger's #DB and #BP). #MC is L0's first always.
    pub exceptions: u32,
    /// This very #PF is L0's.
    pub page_fault: bool,
}

/// How the owner of an exit is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// L1, always: nothing of L0's makes it happen, or nobody knows it.
    L1,
    /// L0, always.
    L0,
    /// L0 first.
    Both,
    /// L1 iff one of these primary controls is set.
    Primary(u32),
    /// L1 iff one of these secondary controls is set.
    Secondary(u32),
    Exception,
    ControlRegister,
    Io,
    Msr(bool),
    Pause,
    Invpcid,
    Xss,
    Ept,
    Shadowed,
}

/// Reasons up to here have a place in the table.
const KNOWN: usize = 96;

static RULES: [Rule; KNOWN] = {
    let mut rules = [Rule::L1; KNOWN];
    let table: &[(Reason, Rule)] = &[
        (Reason::EXCEPTION_NMI, Rule::Exception),
        (Reason::EXTERNAL_INTERRUPT, Rule::Both),
        // A machine without an SMM monitor takes these below us.
        (Reason::IO_SMI, Rule::L0),
        (Reason::OTHER_SMI, Rule::L0),
        (Reason::INTERRUPT_WINDOW, Rule::Primary(primary::INTERRUPT_WINDOW)),
        (Reason::NMI_WINDOW, Rule::Primary(primary::NMI_WINDOW)),
        (Reason::HLT, Rule::Primary(primary::HLT)),
        (Reason::INVLPG, Rule::Primary(primary::INVLPG)),
        (Reason::RDPMC, Rule::Primary(primary::RDPMC)),
        (Reason::RDTSC, Rule::Primary(primary::RDTSC)),
        (Reason::RDTSCP, Rule::Primary(primary::RDTSC)),
        (Reason::VMREAD, Rule::Shadowed),
        (Reason::VMWRITE, Rule::Shadowed),
        (Reason::CR_ACCESS, Rule::ControlRegister),
        (Reason::DR_ACCESS, Rule::Primary(primary::MOV_DR)),
        (Reason::IO, Rule::Io),
        (Reason::RDMSR, Rule::Msr(false)),
        (Reason::WRMSR, Rule::Msr(true)),
        (Reason::RDMSR_IMM, Rule::Msr(false)),
        (Reason::WRMSR_IMM, Rule::Msr(true)),
        // The processor refused vmcs02: our checks should have. L0 logs it before L1 hears of it.
        (Reason::INVALID_GUEST_STATE, Rule::L0),
        (Reason::MSR_LOADING, Rule::L0),
        (Reason::MACHINE_CHECK_ENTRY, Rule::L0),
        (Reason::MWAIT, Rule::Primary(primary::MWAIT)),
        (Reason::MONITOR, Rule::Primary(primary::MONITOR)),
        (Reason::MONITOR_TRAP, Rule::Primary(primary::MONITOR_TRAP)),
        (Reason::PAUSE, Rule::Pause),
        (Reason::TPR_BELOW_THRESHOLD, Rule::Primary(primary::TPR_SHADOW)),
        (Reason::APIC_ACCESS, Rule::Secondary(secondary::APIC_ACCESS)),
        (Reason::GDTR_IDTR, Rule::Secondary(secondary::DESCRIPTOR_TABLE)),
        (Reason::LDTR_TR, Rule::Secondary(secondary::DESCRIPTOR_TABLE)),
        (Reason::EPT_VIOLATION, Rule::Ept),
        (Reason::EPT_MISCONFIGURATION, Rule::Ept),
        (Reason::PREEMPTION_TIMER, Rule::Both),
        (Reason::WBINVD, Rule::Secondary(secondary::WBINVD)),
        (Reason::RDRAND, Rule::Secondary(secondary::RDRAND)),
        (Reason::RDSEED, Rule::Secondary(secondary::RDSEED)),
        (Reason::INVPCID, Rule::Invpcid),
        (Reason::VMFUNC, Rule::Both),
        (Reason::PML_FULL, Rule::L0),
        (Reason::XSAVES, Rule::Xss),
        (Reason::XRSTORS, Rule::Xss),
        (Reason::UMWAIT, Rule::Primary(primary::RDTSC)),
        (Reason::TPAUSE, Rule::Primary(primary::RDTSC)),
        // Never offered: L0's own, if it uses them.
        (Reason::BUS_LOCK, Rule::L0),
        (Reason::NOTIFY, Rule::L0),
    ];
    let mut at = 0;
    while at < table.len() {
        rules[table[at].0.0 as usize] = table[at].1;
        at += 1;
    }
    rules
};

#[inline]
fn rule(reason: Reason) -> Rule {
    RULES.get(usize::from(reason.0)).copied().unwrap_or(Rule::L1)
}

/// Whose exit it is. `maps` is asked only for accesses that L1's controls send there.
#[inline]
pub fn route(exit: &Exit, c12: &Checked12, wants: &L0Wants, maps: &impl Maps12) -> Route {
    let reason = exit.basic();
    if exit.reason & Reason::ENTRY_FAILURE != 0 {
        return Route::L0;
    }
    let theirs = match rule(reason) {
        Rule::L1 => true,
        Rule::L0 => false,
        Rule::Both => return Route::Both,
        Rule::Exception => return exception(exit, c12, wants),
        Rule::Ept if c12.ept() => return Route::Both,
        Rule::Ept => false,
        Rule::Shadowed if c12.secondary(secondary::VMCS_SHADOWING) => return Route::Both,
        Rule::Shadowed => true,
        Rule::Primary(bits) => c12.get32(Field::PRIMARY_CONTROLS) & bits != 0,
        Rule::Secondary(bits) => c12.secondary_word() & bits != 0,
        Rule::ControlRegister => cr_exits(c12, exit.qualification, exit.operand),
        Rule::Io => io_exits(c12, maps, IoAccess::from_qualification(exit.qualification)),
        Rule::Msr(write) => msr_exits(c12, maps, exit.operand as u32, write),
        Rule::Pause => c12.primary(primary::PAUSE) || c12.secondary(secondary::PAUSE_LOOP),
        Rule::Invpcid => c12.secondary(secondary::INVPCID) && c12.primary(primary::INVLPG),
        Rule::Xss => exit.operand & c12.get(Field::XSS_EXITING_BITMAP) != 0,
    };
    if theirs { Route::L1 } else { Route::L0 }
}

/// Reason 0. An NMI is the machine's: L0 services it, then it may be L1's. #MC likewise.
fn exception(exit: &Exit, c12: &Checked12, wants: &L0Wants) -> Route {
    const PF: u8 = 14;
    const MC: u8 = 18;
    let vector = intr::vector(exit.intr_info);
    if intr::is_nmi(exit.intr_info) || vector == MC {
        return Route::Both;
    }
    let ours = wants.exceptions >> (vector & 31) & 1 != 0 || vector == PF && wants.page_fault;
    if !ours && exception_exits(c12, vector, exit.intr_error) { Route::L1 } else { Route::L0 }
}

/// Whether L1 wants an exception of L2's (one that happened, or one that L0 is about to inject). For #PF the
/// error code decides whether the bit in the bitmap means what it says or the opposite. SDM vol. 3,
/// "Exception Bitmap".
pub fn exception_exits(v: &Vmcs12, vector: u8, error: u32) -> bool {
    let bit = v.get32(Field::EXCEPTION_BITMAP) >> (vector & 31) & 1 != 0;
    if vector != 14 {
        return bit;
    }
    let matches = error & v.get32(Field::PFEC_MASK) == v.get32(Field::PFEC_MATCH);
    bit == matches
}

/// Whether L1 wants an NMI of L2's.
pub fn nmi_exits(v: &Vmcs12) -> bool {
    v.pin(pin::NMI)
}

/// Whether L1 wants a control-register access of L2's. `source` is the register moved to a CR. SDM vol. 3,
/// "Exit Qualification for Control-Register Accesses", "Guest/Host Masks and Read Shadows for CR0 and CR4".
pub fn cr_exits(v: &Vmcs12, qualification: u64, source: u64) -> bool {
    let q = qualification;
    let (mask, shadow) = (v.get(Field::CR0_MASK), v.get(Field::CR0_SHADOW));
    match (q >> 4 & 3, q & 15) {
        // MOV to CR
        (0, 0) => (source ^ shadow) & mask != 0,
        (0, 3) => v.primary(primary::CR3_LOAD) && !is_cr3_target(v, source),
        (0, 4) => (source ^ v.get(Field::CR4_SHADOW)) & v.get(Field::CR4_MASK) != 0,
        (0, 8) => v.primary(primary::CR8_LOAD),
        // MOV from CR
        (1, 3) => v.primary(primary::CR3_STORE),
        (1, 8) => v.primary(primary::CR8_STORE),
        // CLTS
        (2, _) => mask & shadow & CR0_TS != 0,
        // LMSW, which sets PE but never clears it.
        (3, _) => {
            let source = q >> 16 & 0xffff;
            let sets_pe = mask & source & !shadow & CR0_PE != 0;
            sets_pe || (source ^ shadow) & mask & (CR0_MP | CR0_EM | CR0_TS) != 0
        }
        _ => true,
    }
}

fn is_cr3_target(v: &Vmcs12, value: u64) -> bool {
    let count = v.get(Field::CR3_TARGET_COUNT).min(4) as u8;
    (0..count).any(|i| v.get(Field::CR3_TARGET_0.step(i)) == value)
}
