//! The VMCB as the processor reads it, with the manual's names.
//!
//! Source of every offset and bit: APM vol. 2, appendix B "Layout of VMCB"; of the exit codes: appendix C
//! "SVM Intercept Exit Codes". The hardware back end uses [`Vmcb`] for vmcb01 and vmcb02. A vmcb12 is
//! never one of these: it is memory that L1 may change at any time and is read field by field
//! ([`crate::vmcb12`]).

mod bits;
mod code;
mod event;

pub use bits::*;
pub use code::{ExitCode, Intercept, Intercepts};
pub use event::{Event, EventKind};

use bitflags::bitflags;
use core::mem::{offset_of, size_of};

/// A segment register, or (base and limit only) GDTR and IDTR.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Descriptor bits 55:52 and 47:40, packed to 12 bits.
    pub attrib: u16,
    /// Limit in bytes (already scaled by the granularity).
    pub limit: u32,
    /// Base, a linear address.
    pub base: u64,
}

/// The control area: bytes 000h–3FFh of a VMCB.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct Control {
    /// 000h–017h: the six intercept words.
    pub intercepts: Intercepts,
    /// Reserved.
    pub reserved_018: [u32; 9],
    /// 03Ch PAUSE_FILTER_THRESHOLD, in cycles.
    pub pause_filter_threshold: u16,
    /// 03Eh PAUSE_FILTER_COUNT.
    pub pause_filter_count: u16,
    /// 040h IOPM_BASE_PA: 12 KiB, bits 11:0 ignored.
    pub iopm_base_pa: u64,
    /// 048h MSRPM_BASE_PA: 8 KiB, bits 11:0 ignored.
    pub msrpm_base_pa: u64,
    /// 050h TSC_OFFSET, added to the (scaled) TSC.
    pub tsc_offset: u64,
    /// 058h guest ASID.
    pub asid: u32,
    /// 05Ch TLB_CONTROL: see [`tlb_control`].
    pub tlb_control: u8,
    /// 05Dh: RAP controls of newer processors; kept 0.
    pub reserved_05d: [u8; 3],
    /// 060h: virtual interrupt control, see [`int_ctl`].
    pub int_ctl: u64,
    /// 068h: see [`int_state`].
    pub int_state: u64,
    /// 070h EXITCODE, 64 bits, see [`ExitCode`].
    pub exit_code: u64,
    /// 078h EXITINFO1.
    pub exit_info_1: u64,
    /// 080h EXITINFO2.
    pub exit_info_2: u64,
    /// 088h EXITINTINFO, see [`Event`].
    pub exit_int_info: u64,
    /// 090h: nested paging, SEV, GMET; see [`misc_ctl`].
    pub misc_ctl: u64,
    /// 098h AVIC APIC_BAR.
    pub avic_apic_bar: u64,
    /// 0A0h guest-physical address of the GHCB (SEV-ES).
    pub ghcb_pa: u64,
    /// 0A8h EVENTINJ, see [`Event`].
    pub event_inj: u64,
    /// 0B0h N_CR3: root of the nested page tables, a host physical address.
    pub n_cr3: u64,
    /// 0B8h: LBR virtualization and virtual VMLOAD/VMSAVE; see [`misc_ctl2`].
    pub misc_ctl2: u64,
    /// 0C0h VMCB clean bits: a set bit promises that the group is unchanged. See [`Clean`].
    pub vmcb_clean: u32,
    /// Reserved.
    pub reserved_0c4: u32,
    /// 0C8h nRIP: address of the next instruction, on exits that have one; also what a soft injection pushes.
    pub nrip: u64,
    /// 0D0h number of guest instruction bytes fetched, 0–15.
    pub insn_len: u8,
    /// 0D1h guest instruction bytes.
    pub insn_bytes: [u8; 15],
    /// 0E0h AVIC APIC_BACKING_PAGE.
    pub avic_backing_page: u64,
    /// Reserved.
    pub reserved_0e8: u64,
    /// 0F0h AVIC logical table.
    pub avic_logical_table: u64,
    /// 0F8h AVIC physical table.
    pub avic_physical_table: u64,
    /// Reserved.
    pub reserved_100: u64,
    /// 108h VMSA pointer (SEV-ES).
    pub vmsa_pa: u64,
    /// 110h VMGEXIT_RAX (SEV-ES).
    pub vmgexit_rax: u64,
    /// 118h VMGEXIT_CPL (SEV-ES), low byte.
    pub vmgexit_cpl: u64,
    /// 120h bus lock threshold counter, low 16 bits.
    pub bus_lock_counter: u64,
    /// Reserved, and fields of SEV-SNP.
    pub reserved_128: [u64; 87],
    /// 3E0h: for the hypervisor's own use (Hyper-V's enlightenments live here in a vmcb12).
    pub host_use: [u64; 4],
}

/// The state-save area: bytes 400h–FFFh of a VMCB. Offsets below are from its start.
#[repr(C)]
#[derive(Clone, Debug)]
pub struct SaveArea {
    /// 000h.
    pub es: Segment,
    /// 010h.
    pub cs: Segment,
    /// 020h.
    pub ss: Segment,
    /// 030h.
    pub ds: Segment,
    /// 040h, VMLOAD/VMSAVE state.
    pub fs: Segment,
    /// 050h, VMLOAD/VMSAVE state.
    pub gs: Segment,
    /// 060h.
    pub gdtr: Segment,
    /// 070h, VMLOAD/VMSAVE state.
    pub ldtr: Segment,
    /// 080h.
    pub idtr: Segment,
    /// 090h, VMLOAD/VMSAVE state.
    pub tr: Segment,
    /// Reserved (shadow stack pointers of SEV-ES).
    pub reserved_0a0: [u8; 43],
    /// 0CBh current privilege level.
    pub cpl: u8,
    /// Reserved.
    pub reserved_0cc: u32,
    /// 0D0h.
    pub efer: u64,
    /// Reserved, and virtualized performance counters.
    pub reserved_0d8: [u64; 14],
    /// 148h.
    pub cr4: u64,
    /// 150h.
    pub cr3: u64,
    /// 158h.
    pub cr0: u64,
    /// 160h.
    pub dr7: u64,
    /// 168h.
    pub dr6: u64,
    /// 170h.
    pub rflags: u64,
    /// 178h.
    pub rip: u64,
    /// Reserved, and virtualized performance counters.
    pub reserved_180: [u64; 11],
    /// 1D8h.
    pub rsp: u64,
    /// 1E0h.
    pub s_cet: u64,
    /// 1E8h.
    pub ssp: u64,
    /// 1F0h ISST_ADDR.
    pub isst_addr: u64,
    /// 1F8h.
    pub rax: u64,
    /// 200h, VMLOAD/VMSAVE state.
    pub star: u64,
    /// 208h, VMLOAD/VMSAVE state.
    pub lstar: u64,
    /// 210h, VMLOAD/VMSAVE state.
    pub cstar: u64,
    /// 218h, VMLOAD/VMSAVE state.
    pub sfmask: u64,
    /// 220h, VMLOAD/VMSAVE state.
    pub kernel_gs_base: u64,
    /// 228h, VMLOAD/VMSAVE state.
    pub sysenter_cs: u64,
    /// 230h, VMLOAD/VMSAVE state.
    pub sysenter_esp: u64,
    /// 238h, VMLOAD/VMSAVE state.
    pub sysenter_eip: u64,
    /// 240h.
    pub cr2: u64,
    /// Reserved.
    pub reserved_248: [u64; 4],
    /// 268h guest PAT, used with nested paging only.
    pub g_pat: u64,
    /// 270h DEBUGCTL, used with LBR virtualization only (as are the next four).
    pub dbgctl: u64,
    /// 278h.
    pub br_from: u64,
    /// 280h.
    pub br_to: u64,
    /// 288h.
    pub last_excp_from: u64,
    /// 290h.
    pub last_excp_to: u64,
    /// 298h.
    pub dbgextncfg: u64,
    /// Reserved.
    pub reserved_2a0: [u64; 8],
    /// 2E0h.
    pub spec_ctrl: u64,
    /// Reserved, LBR stack, IBS.
    pub reserved_2e8: [u64; 291],
}

/// One VMCB: exactly one page.
#[repr(C, align(4096))]
#[derive(Clone, Debug)]
pub struct Vmcb {
    /// What the guest may do and how it is entered.
    pub control: Control,
    /// The guest's registers.
    pub save: SaveArea,
}

impl Vmcb {
    /// A VMCB of all zeros: nothing intercepted, every clean bit 0. Not enterable as it is.
    pub const fn new() -> Self {
        Self { control: Control::new(), save: SaveArea::new() }
    }
}

impl Default for Vmcb {
    fn default() -> Self {
        Self::new()
    }
}

impl Control {
    /// All zeros.
    pub const fn new() -> Self {
        Self {
            intercepts: Intercepts([0; 6]),
            reserved_018: [0; 9],
            pause_filter_threshold: 0,
            pause_filter_count: 0,
            iopm_base_pa: 0,
            msrpm_base_pa: 0,
            tsc_offset: 0,
            asid: 0,
            tlb_control: 0,
            reserved_05d: [0; 3],
            int_ctl: 0,
            int_state: 0,
            exit_code: 0,
            exit_info_1: 0,
            exit_info_2: 0,
            exit_int_info: 0,
            misc_ctl: 0,
            avic_apic_bar: 0,
            ghcb_pa: 0,
            event_inj: 0,
            n_cr3: 0,
            misc_ctl2: 0,
            vmcb_clean: 0,
            reserved_0c4: 0,
            nrip: 0,
            insn_len: 0,
            insn_bytes: [0; 15],
            avic_backing_page: 0,
            reserved_0e8: 0,
            avic_logical_table: 0,
            avic_physical_table: 0,
            reserved_100: 0,
            vmsa_pa: 0,
            vmgexit_rax: 0,
            vmgexit_cpl: 0,
            bus_lock_counter: 0,
            reserved_128: [0; 87],
            host_use: [0; 4],
        }
    }

    /// Withdraws the promise that `groups` are unchanged. Whoever writes a field of a clean group calls this.
    #[inline]
    pub fn mark_dirty(&mut self, groups: Clean) {
        self.vmcb_clean &= !groups.bits();
    }

    /// Promises that nothing has changed since the entry just made. Only for the VMCB that this
    /// processor ran last from this address, and only where the processor has clean bits.
    #[inline]
    pub fn mark_all_clean(&mut self) {
        self.vmcb_clean = Clean::all().bits();
    }
}

impl Default for Control {
    fn default() -> Self {
        Self::new()
    }
}

impl SaveArea {
    /// All zeros.
    pub const fn new() -> Self {
        const S: Segment = Segment { selector: 0, attrib: 0, limit: 0, base: 0 };
        Self {
            es: S,
            cs: S,
            ss: S,
            ds: S,
            fs: S,
            gs: S,
            gdtr: S,
            ldtr: S,
            idtr: S,
            tr: S,
            reserved_0a0: [0; 43],
            cpl: 0,
            reserved_0cc: 0,
            efer: 0,
            reserved_0d8: [0; 14],
            cr4: 0,
            cr3: 0,
            cr0: 0,
            dr7: 0,
            dr6: 0,
            rflags: 0,
            rip: 0,
            reserved_180: [0; 11],
            rsp: 0,
            s_cet: 0,
            ssp: 0,
            isst_addr: 0,
            rax: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            cr2: 0,
            reserved_248: [0; 4],
            g_pat: 0,
            dbgctl: 0,
            br_from: 0,
            br_to: 0,
            last_excp_from: 0,
            last_excp_to: 0,
            dbgextncfg: 0,
            reserved_2a0: [0; 8],
            spec_ctrl: 0,
            reserved_2e8: [0; 291],
        }
    }
}

impl Default for SaveArea {
    fn default() -> Self {
        Self::new()
    }
}

bitflags! {
    /// Groups of the VMCB clean field (APM vol. 2, "VMCB Clean Bits"). As the clean field itself a set bit
    /// means *unchanged*; as an argument or a dirty set it just names groups.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Clean: u32 {
        /// Intercepts, TSC offset, pause filter.
        const I = 1 << 0;
        /// IOPM_BASE_PA, MSRPM_BASE_PA.
        const PERM = 1 << 1;
        /// ASID.
        const ASID = 1 << 2;
        /// The virtual interrupt control at 060h–067h.
        const TPR = 1 << 3;
        /// Nested paging: N_CR3, G_PAT.
        const NP = 1 << 4;
        /// CR0, CR3, CR4, EFER.
        const CRX = 1 << 5;
        /// DR6, DR7.
        const DRX = 1 << 6;
        /// GDTR, IDTR.
        const DT = 1 << 7;
        /// ES, CS, SS, DS and CPL.
        const SEG = 1 << 8;
        /// CR2.
        const CR2 = 1 << 9;
        /// DEBUGCTL and the last branch registers.
        const LBR = 1 << 10;
        /// AVIC addresses.
        const AVIC = 1 << 11;
        /// S_CET, SSP, ISST_ADDR.
        const CET = 1 << 12;
    }
}

macro_rules! at {
    ($ty:ty: $($field:ident $offset:literal),* $(,)?) => {
        $(const _: () = assert!(offset_of!($ty, $field) == $offset);)*
    };
}

at!(Segment: selector 0, attrib 2, limit 4, base 8);
at!(Control:
    intercepts 0x000, reserved_018 0x018, pause_filter_threshold 0x03c, pause_filter_count 0x03e,
    iopm_base_pa 0x040, msrpm_base_pa 0x048, tsc_offset 0x050, asid 0x058, tlb_control 0x05c,
    reserved_05d 0x05d, int_ctl 0x060, int_state 0x068, exit_code 0x070, exit_info_1 0x078,
    exit_info_2 0x080, exit_int_info 0x088, misc_ctl 0x090, avic_apic_bar 0x098, ghcb_pa 0x0a0,
    event_inj 0x0a8, n_cr3 0x0b0, misc_ctl2 0x0b8, vmcb_clean 0x0c0, reserved_0c4 0x0c4, nrip 0x0c8,
    insn_len 0x0d0, insn_bytes 0x0d1, avic_backing_page 0x0e0, reserved_0e8 0x0e8,
    avic_logical_table 0x0f0, avic_physical_table 0x0f8, reserved_100 0x100, vmsa_pa 0x108,
    vmgexit_rax 0x110, vmgexit_cpl 0x118, bus_lock_counter 0x120, reserved_128 0x128, host_use 0x3e0,
);
at!(SaveArea:
    es 0x000, cs 0x010, ss 0x020, ds 0x030, fs 0x040, gs 0x050, gdtr 0x060, ldtr 0x070, idtr 0x080,
    tr 0x090, reserved_0a0 0x0a0, cpl 0x0cb, reserved_0cc 0x0cc, efer 0x0d0, reserved_0d8 0x0d8,
    cr4 0x148, cr3 0x150, cr0 0x158, dr7 0x160, dr6 0x168, rflags 0x170, rip 0x178,
    reserved_180 0x180, rsp 0x1d8, s_cet 0x1e0, ssp 0x1e8, isst_addr 0x1f0, rax 0x1f8, star 0x200,
    lstar 0x208, cstar 0x210, sfmask 0x218, kernel_gs_base 0x220, sysenter_cs 0x228,
    sysenter_esp 0x230, sysenter_eip 0x238, cr2 0x240, reserved_248 0x248, g_pat 0x268, dbgctl 0x270,
    br_from 0x278, br_to 0x280, last_excp_from 0x288, last_excp_to 0x290, dbgextncfg 0x298,
    reserved_2a0 0x2a0, spec_ctrl 0x2e0, reserved_2e8 0x2e8,
);
at!(Vmcb: control 0, save 0x400);
const _: () = assert!(size_of::<Segment>() == 16);
const _: () = assert!(size_of::<Control>() == 0x400);
const _: () = assert!(size_of::<SaveArea>() == 0xc00);
const _: () = assert!(size_of::<Vmcb>() == 4096 && align_of::<Vmcb>() == 4096);
