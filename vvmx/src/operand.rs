//! Operands of VMX instructions from what the exit says of them.
//! SDM vol. 3, "VM-Exit Instruction-Information Field" (tables for INVEPT, INVVPID, VMCLEAR, VMPTRLD, VMPTRST,
//! VMXON, VMREAD, VMWRITE), "Exit Qualification" for the displacement.

use crate::insn::Fault;
use addr::Gva;

/// The VM-exit instruction-information field of a VMX instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InsnInfo(pub u32);

/// Where the first operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A general-purpose register, 0 to 15 as instructions encode them.
    Register(u8),
    /// Memory.
    Memory(Memory),
}

/// A memory operand before its address is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// 0 to 5: ES, CS, SS, DS, FS, GS.
    pub segment: u8,
    /// Base register.
    pub base: Option<u8>,
    /// Index register and log2 of its scale.
    pub index: Option<(u8, u8)>,
    /// Address bits: 16, 32 or 64.
    pub address_bits: u8,
}

impl InsnInfo {
    /// Where the first operand is. VMREAD and VMWRITE alone can have it in a register.
    pub fn place(self, may_be_register: bool) -> Place {
        let w = self.0;
        if may_be_register && w & 1 << 10 != 0 {
            return Place::Register((w >> 3 & 15) as u8);
        }
        Place::Memory(Memory {
            segment: (w >> 15 & 7) as u8,
            base: (w & 1 << 27 == 0).then_some((w >> 23 & 15) as u8),
            index: (w & 1 << 22 == 0).then_some(((w >> 18 & 15) as u8, (w & 3) as u8)),
            address_bits: match w >> 7 & 7 {
                0 => 16,
                1 => 32,
                _ => 64,
            },
        })
    }
    /// The register with the second operand: the field of VMREAD and VMWRITE, the type of INVEPT and
    /// INVVPID.
    pub fn register2(self) -> u8 {
        (self.0 >> 28) as u8
    }
}

/// A segment register, as far as an address needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SegmentView {
    /// Base.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
    /// Access rights as the VMCS has them.
    pub rights: u32,
}

/// What the instruction does with its memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The exit qualification: the displacement.
    pub displacement: u64,
    /// Bytes.
    pub bytes: u64,
    /// It writes.
    pub write: bool,
}

/// Linear address of the operand at `memory`; `long`: in 64-bit mode. `register` gives a general-purpose register, `canonical`
/// says whether an address is. The page walk is the caller's.
///
/// # Errors
/// #GP(0), or #SS(0) for the stack segment: SDM vol. 3, "Limit Checking", "Type Checking", and "Canonical
/// Addressing" in 64-bit mode (vol. 1).
pub fn linear(
    memory: &Memory,
    access: Access,
    long: bool,
    segment: &SegmentView,
    register: impl Fn(u8) -> u64,
    canonical: impl Fn(u64) -> bool,
) -> Result<Gva, Fault> {
    let fault = if memory.segment == 2 { Fault::Stack } else { Fault::GeneralProtection };
    let index = memory.index.map_or(0, |(index, scale)| register(index) << scale);
    let offset = access.displacement.wrapping_add(memory.base.map_or(0, &register)).wrapping_add(index);
    let offset = match memory.address_bits {
        16 => offset & 0xffff,
        32 => offset & 0xffff_ffff,
        _ => offset,
    };
    let last = access.bytes.saturating_sub(1);
    if long {
        let base = if memory.segment >= 4 { segment.base } else { 0 };
        let start = offset.wrapping_add(base);
        let inside = canonical(start) && canonical(start.wrapping_add(last));
        return if inside { Ok(Gva::new(start)) } else { Err(fault) };
    }
    let (offset, last) = (offset & 0xffff_ffff, (offset & 0xffff_ffff) + last);
    let unusable = segment.rights & 1 << 16 != 0;
    let code = segment.rights & 8 != 0;
    // Bit 1: readable in code, writable in data. Code is never writable.
    let denied = match (code, access.write) {
        (true, true) => true,
        (true, false) | (false, true) => segment.rights & 2 == 0,
        (false, false) => false,
    };
    let limit = u64::from(segment.limit);
    let expands_down = !code && segment.rights & 4 != 0;
    let outside = if expands_down {
        let top = if segment.rights & 1 << 14 != 0 { 0xffff_ffff } else { 0xffff };
        offset <= limit || last > top
    } else {
        last > limit
    };
    if unusable || denied || outside {
        return Err(fault);
    }
    Ok(Gva::new(segment.base.wrapping_add(offset) & 0xffff_ffff))
}
