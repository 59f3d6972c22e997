//! The general-purpose registers of a guest, in the order in which instructions encode them.

use iced_x86::Register;

/// The sixteen general-purpose registers: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct Gprs {
    /// The registers, indexed by their encoding.
    pub regs: [u64; 16],
}

impl Gprs {
    /// Index of rax.
    pub const RAX: usize = 0;
    /// Index of rcx.
    pub const RCX: usize = 1;
    /// Index of rdx.
    pub const RDX: usize = 2;
    /// Index of rbx.
    pub const RBX: usize = 3;
    /// Index of rsp.
    pub const RSP: usize = 4;
    /// Index of rbp.
    pub const RBP: usize = 5;
    /// Index of rsi.
    pub const RSI: usize = 6;
    /// Index of rdi.
    pub const RDI: usize = 7;

    /// All of `gpr`'s 64 bits.
    pub const fn get(&self, gpr: Gpr) -> u64 {
        self.regs[gpr.index()]
    }

    /// Sets all of `gpr`'s 64 bits.
    pub const fn set(&mut self, gpr: Gpr, value: u64) {
        self.regs[gpr.index()] = value;
    }

    /// edx:eax as one number, as RDMSR, WRMSR, XSETBV and RDTSC use it.
    pub const fn edx_eax(&self) -> u64 {
        (self.regs[Self::RDX] << 32) | (self.regs[Self::RAX] & 0xffff_ffff)
    }

    /// Sets edx:eax, upper halves cleared.
    pub const fn set_edx_eax(&mut self, value: u64) {
        self.regs[Self::RAX] = value & 0xffff_ffff;
        self.regs[Self::RDX] = value >> 32;
    }
}

/// The number of a general-purpose register; holding one proves that it is below 16.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gpr(u8);

impl Gpr {
    /// rax.
    pub const RAX: Self = Self(0);
    /// rdx.
    pub const RDX: Self = Self(2);

    /// The register whose encoding is the low four bits of `number`.
    pub const fn new(number: u8) -> Self {
        Self(number & 15)
    }

    /// Its index into [`Gprs::regs`].
    pub const fn index(self) -> usize {
        (self.0 & 15) as usize
    }
}

/// The width of an operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
    /// 64 bits.
    Qword,
}

impl Width {
    /// The width of that many bytes; `None` but for 1, 2, 4 and 8.
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            8 => Some(Self::Qword),
            _ => None,
        }
    }

    /// Its number of bytes.
    pub const fn bytes(self) -> u8 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }

    /// Its number of bits.
    pub const fn bits(self) -> u32 {
        self.bytes() as u32 * 8
    }

    /// A mask of its bits.
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// Its top bit.
    pub const fn sign(self) -> u64 {
        1 << (self.bits() - 1)
    }

    /// The low bits of `value`, sign-extended to 64.
    pub const fn sign_extend(self, value: u64) -> u64 {
        let unused = 64 - self.bits();
        (((value << unused) as i64) >> unused) as u64
    }
}

/// A general-purpose register as an operand: which, how wide, and whether it is one of AH, CH, DH, BH.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegOperand {
    gpr: Gpr,
    width: Width,
    high: bool,
}

impl RegOperand {
    /// The operand that a decoded register is; `None` if it isn't a general-purpose one.
    pub(super) fn from_iced(register: Register) -> Option<Self> {
        let full = register.full_register();
        if !register.is_gpr() {
            return None;
        }
        let gpr = Gpr::new(full.number() as u8);
        let width = Width::from_bytes(register.size())?;
        let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
        Some(Self { gpr, width, high })
    }

    /// The operand's width.
    pub const fn width(self) -> Width {
        self.width
    }

    /// The operand's value, zero-extended.
    pub const fn read(self, gprs: &Gprs) -> u64 {
        let value = gprs.get(self.gpr);
        if self.high { (value >> 8) & 0xff } else { value & self.width.mask() }
    }

    /// Writes the operand: 32-bit writes clear the upper half, narrower ones keep the rest.
    pub const fn write(self, gprs: &mut Gprs, value: u64) {
        let old = gprs.get(self.gpr);
        let new = match (self.high, self.width) {
            (true, _) => (old & !0xff00) | ((value & 0xff) << 8),
            (false, Width::Qword) => value,
            (false, Width::Dword) => value & 0xffff_ffff,
            (false, narrow) => (old & !narrow.mask()) | (value & narrow.mask()),
        };
        gprs.set(self.gpr, new);
    }
}
