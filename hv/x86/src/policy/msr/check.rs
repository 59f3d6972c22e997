//! Which values may be written. Each check gives the value to be kept, or #GP.

/// The write raises #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gp;

/// `value` if it has no bits outside `allowed`.
const fn within(value: u64, allowed: u64) -> Result<u64, Gp> {
    if value & !allowed == 0 { Ok(value) } else { Err(Gp) }
}

/// Whether `address` is canonical for linear addresses of `bits` (48 or 57).
pub const fn is_canonical(address: u64, bits: u8) -> bool {
    let unused = 64 - if bits == 57 { 57 } else { 48 };
    ((address << unused) as i64 >> unused) as u64 == address
}

/// A value for FS_BASE, GS_BASE, KERNEL_GS_BASE, LSTAR, CSTAR, SYSENTER_ESP or _EIP, when its write is
/// emulated (APM vol. 2, "Canonicalization and Consistency Checks").
pub const fn canonical(value: u64, bits: u8) -> Result<u64, Gp> {
    if is_canonical(value, bits) { Ok(value) } else { Err(Gp) }
}

/// Memory types that a PAT entry or an MTRR may name: UC 0, WC 1, WT 4, WP 5, WB 6; the PAT also UC- 7.
const fn is_memory_type(value: u64) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

/// Whether all eight bytes satisfy the predicate on memory types.
const fn all_types(value: u64, uc_minus: bool) -> bool {
    let mut i = 0;
    while i < 8 {
        let one = value >> (8 * i) & 0xff;
        if !(is_memory_type(one) || uc_minus && one == 7) {
            return false;
        }
        i += 1;
    }
    true
}

/// PAT (APM vol. 2, "Page-Attribute Table").
pub const fn pat(value: u64) -> Result<u64, Gp> {
    if all_types(value, true) { Ok(value) } else { Err(Gp) }
}

/// A fixed-range MTRR (APM vol. 2, "MTRR Type Field Encodings").
pub const fn mtrr_fixed(value: u64) -> Result<u64, Gp> {
    if all_types(value, false) { Ok(value) } else { Err(Gp) }
}

/// MTRR_DEF_TYPE: type 7:0, FE 10, E 11.
pub const fn mtrr_def_type(value: u64) -> Result<u64, Gp> {
    if is_memory_type(value & 0xff) { within(value, 0xcff) } else { Err(Gp) }
}

/// Bits `max_phys`-1..12.
const fn page_bits(max_phys: u8) -> u64 {
    let width = if max_phys < 32 || max_phys > 52 { 52 } else { max_phys };
    ((1 << width) - 1) & !0xfff
}

/// MTRR_PHYS_BASE: type 7:0, base from 12 up.
pub const fn mtrr_base(value: u64, max_phys: u8) -> Result<u64, Gp> {
    if is_memory_type(value & 0xff) { within(value, page_bits(max_phys) | 0xff) } else { Err(Gp) }
}

/// MTRR_PHYS_MASK: valid 11, mask from 12 up.
pub const fn mtrr_mask(value: u64, max_phys: u8) -> Result<u64, Gp> {
    within(value, page_bits(max_phys) | 1 << 11)
}

/// MCG_STATUS: RIPV, EIPV, MCIP.
pub const fn mcg_status(value: u64) -> Result<u64, Gp> {
    within(value, 7)
}

/// DEBUGCTL: LBR 0, BTF 1, and PB0-3 at 5:2, which drive pins that no virtual machine has and are kept.
pub const fn debugctl(value: u64) -> Result<u64, Gp> {
    within(value, 0x3f)
}

/// TSC_AUX: 32 bits.
pub const fn tsc_aux(value: u64) -> Result<u64, Gp> {
    within(value, 0xffff_ffff)
}

/// XSS: the supervisor states that the domain's CPUID offers.
pub const fn xss(value: u64, offered: u64) -> Result<u64, Gp> {
    within(value, offered)
}

/// SPEC_CTRL: the bits that the domain's CPUID offers; none of them means that there is no such register.
pub const fn spec_ctrl(value: u64, offered: u64) -> Result<u64, Gp> {
    if offered == 0 { Err(Gp) } else { within(value, offered) }
}

/// PRED_CMD: IBPB 0, SBPB 7, as the domain's CPUID offers.
pub const fn pred_cmd(value: u64, offered: u64) -> Result<u64, Gp> {
    if offered == 0 { Err(Gp) } else { within(value, offered) }
}

/// VIRT_SPEC_CTRL: SSBD 2. Other bits are ignored, as its specification has it.
pub const fn virt_spec_ctrl(value: u64, offered: bool) -> Result<u64, Gp> {
    if offered { Ok(value & 1 << 2) } else { Err(Gp) }
}

/// EFER bits (APM vol. 2, "Extended Feature Enable Register (EFER)").
pub mod efer_bits {
    /// SYSCALL.
    pub const SCE: u64 = 1 << 0;
    /// Long mode enable.
    pub const LME: u64 = 1 << 8;
    /// Long mode active: the CPU's.
    pub const LMA: u64 = 1 << 10;
    /// No-execute.
    pub const NXE: u64 = 1 << 11;
    /// SVM.
    pub const SVME: u64 = 1 << 12;
    /// Fast FXSAVE.
    pub const FFXSR: u64 = 1 << 14;
    /// Translation cache extension.
    pub const TCE: u64 = 1 << 15;
    /// Automatic IBRS.
    pub const AIBRSE: u64 = 1 << 21;
}

/// EFER. `old` is its value, `paging` CR0.PG, `offered` the bits that the domain's CPUID allows beside
/// LMA. LMA as written is ignored, as the CPU derives it.
pub const fn efer(value: u64, old: u64, paging: bool, offered: u64) -> Result<u64, Gp> {
    use efer_bits::{LMA, LME};
    let lme_changes = (value ^ old) & LME != 0;
    if value & !(offered | LMA) != 0 || paging && lme_changes {
        return Err(Gp);
    }
    Ok(value & !LMA | old & LMA)
}

/// The hypercall page: index in bits 11:0, of which only 0 exists.
pub const fn hypercall_page(value: u64) -> Result<u64, Gp> {
    if value & 0xfff == 0 { Ok(value) } else { Err(Gp) }
}
