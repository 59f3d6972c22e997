//! The VMCB by offsets (APM vol. 2, appendix B "Layout of VMCB") and exit codes (appendix C).

/// A VMCB page. All accesses are volatile: the CPU below and the second vCPU write to it too.
#[derive(Debug, Clone, Copy)]
pub struct Vmcb(pub u64);

/// A field: offset and width in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field(pub u64, pub u8);

macro_rules! fields {
    ($($name:ident $offset:literal $width:literal;)*) => {$(
        #[doc = concat!("Offset ", stringify!($offset), ".")]
        pub const $name: Field = Field($offset, $width);
    )*};
}

fields! {
    CR_INTERCEPTS  0x000 4;
    DR_INTERCEPTS  0x004 4;
    EXC_INTERCEPTS 0x008 4;
    MISC1          0x00c 4;
    MISC2          0x010 4;
    IOPM           0x040 8;
    MSRPM          0x048 8;
    TSC_OFFSET     0x050 8;
    ASID           0x058 4;
    TLB_CONTROL    0x05c 1;
    INT_CTL        0x060 4;
    INT_VECTOR     0x064 4;
    INT_SHADOW     0x068 8;
    EXIT_CODE      0x070 8;
    INFO1          0x078 8;
    INFO2          0x080 8;
    EXITINTINFO    0x088 8;
    MISC_CTL       0x090 8;
    EVENTINJ       0x0a8 8;
    NCR3           0x0b0 8;
    MISC_CTL2      0x0b8 8;
    CLEAN          0x0c0 4;
    NRIP           0x0c8 8;
    INSN_LEN       0x0d0 1;
    INSN_BYTES     0x0d1 8;
    ES             0x400 8;
    CS             0x410 8;
    SS             0x420 8;
    DS             0x430 8;
    FS             0x440 8;
    GS             0x450 8;
    GDTR           0x460 8;
    LDTR           0x470 8;
    IDTR           0x480 8;
    TR             0x490 8;
    CPL            0x4cb 1;
    EFER           0x4d0 8;
    CR4            0x548 8;
    CR3            0x550 8;
    CR0            0x558 8;
    DR7            0x560 8;
    DR6            0x568 8;
    RFLAGS         0x570 8;
    RIP            0x578 8;
    RSP            0x5d8 8;
    RAX            0x5f8 8;
    STAR           0x600 8;
    LSTAR          0x608 8;
    CSTAR          0x610 8;
    SFMASK         0x618 8;
    KERNEL_GS      0x620 8;
    SYSENTER_CS    0x628 8;
    SYSENTER_ESP   0x630 8;
    SYSENTER_EIP   0x638 8;
    CR2            0x640 8;
    G_PAT          0x668 8;
}

impl Vmcb {
    /// Read a field.
    pub fn get(self, f: Field) -> u64 {
        let at = self.0 + f.0;
        // SAFETY: offsets lie within the page, which the owner of the address gave us.
        unsafe {
            match f.1 {
                1 => u64::from((at as *const u8).read_volatile()),
                2 => u64::from((at as *const u16).read_volatile()),
                4 => u64::from((at as *const u32).read_volatile()),
                _ => (at as *const u64).read_unaligned(),
            }
        }
    }

    /// Write a field.
    pub fn set(self, f: Field, value: u64) {
        let at = self.0 + f.0;
        // SAFETY: as for `get`.
        unsafe {
            match f.1 {
                1 => (at as *mut u8).write_volatile(value as u8),
                2 => (at as *mut u16).write_volatile(value as u16),
                4 => (at as *mut u32).write_volatile(value as u32),
                _ => (at as *mut u64).write_unaligned(value),
            }
        }
    }

    /// Set bits of a field.
    pub fn or(self, f: Field, bits: u64) {
        self.set(f, self.get(f) | bits);
    }

    /// Clear bits of a field.
    pub fn clear(self, f: Field, bits: u64) {
        self.set(f, self.get(f) & !bits);
    }

    /// Write a segment register: attributes in the VMCB's packed form.
    pub fn segment(self, f: Field, selector: u16, attributes: u16, limit: u32, base: u64) {
        self.set(f, u64::from(selector) | u64::from(attributes) << 16 | u64::from(limit) << 32);
        self.set(Field(f.0 + 8, 8), base);
    }
}

/// Exit codes, and bits of MISC1 and MISC2: bit n of MISC1 leads to 60h + n, of MISC2 to 80h + n.
pub mod exit {
    macro_rules! codes {
        ($($name:ident $code:literal;)*) => {$(
            #[doc = concat!("VMEXIT_", stringify!($name), ".")]
            pub const $name: u64 = $code;
        )*};
    }
    codes! {
        INTR 0x60; NMI 0x61; VINTR 0x64; CR0_SEL 0x65; CPUID 0x72; HLT 0x78; IOIO 0x7b; MSR 0x7c; SHUTDOWN 0x7f;
        VMMCALL 0x81; NPF 0x400; INVALID 0xffff_ffff_ffff_ffff;
    }
}

/// INT_CTL bits.
pub mod int_ctl {
    /// A virtual interrupt is pending.
    pub const V_IRQ: u64 = 1 << 8;
    /// Virtual GIF.
    pub const V_GIF: u64 = 1 << 9;
    /// Priority of the virtual interrupt, shifted.
    pub const PRIO_SHIFT: u32 = 16;
    /// Ignore the task priority.
    pub const IGN_TPR: u64 = 1 << 20;
    /// Virtualize interrupt masking.
    pub const MASKING: u64 = 1 << 24;
    /// Enable the virtual GIF.
    pub const V_GIF_ENABLE: u64 = 1 << 25;
}
