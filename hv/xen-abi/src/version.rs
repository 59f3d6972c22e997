//! `xen_version` (`public/version.h`, `public/features.h`).

use crate::macros::{layout, numbers};

numbers! {
    /// Sub-operation of `xen_version`.
    VersionOp: u32 {
        /// Major << 16 | minor.
        VERSION = 0;
        /// What follows the minor, 16 bytes of text.
        EXTRAVERSION = 1;
        /// Compiler, by, domain, date.
        COMPILE_INFO = 2;
        /// Kinds of guest, 1024 bytes of text.
        CAPABILITIES = 3;
        /// Changeset, 64 bytes of text.
        CHANGESET = 4;
        /// Lowest address of the hypervisor.
        PLATFORM_PARAMETERS = 5;
        /// Feature bits.
        GET_FEATURES = 6;
        /// Page size.
        PAGESIZE = 7;
        /// The domain's UUID.
        GUEST_HANDLE = 8;
        /// The hypervisor's command line, 1024 bytes of text.
        COMMANDLINE = 9;
        /// The hypervisor's build id.
        BUILD_ID = 10;
    }
}

layout! {
    /// Argument of `GET_FEATURES`.
    FeatureInfo: 8 {
        /// Which 32 features, in.
        submap_idx @ 0: u32,
        /// Their bits, out.
        submap @ 4: u32,
    }
    /// Answer of `COMPILE_INFO`.
    CompileInfo: 144 {
        /// Compiler.
        compiler @ 0: [u8; 64],
        /// Who built it.
        compile_by @ 64: [u8; 16],
        /// Where.
        compile_domain @ 80: [u8; 32],
        /// When.
        compile_date @ 112: [u8; 32],
    }
}

/// Bits of feature submap 0.
pub mod feature {
    /// Page tables may be written (always so for HVM).
    pub const WRITABLE_PAGE_TABLES: u32 = 1 << 0;
    /// Guest frames are guest-physical.
    pub const AUTO_TRANSLATED_PHYSMAP: u32 = 1 << 2;
    /// Events can come as a vector.
    pub const HVM_CALLBACK_VECTOR: u32 = 1 << 8;
    /// The PV clock is safe for HVM guests.
    pub const HVM_SAFE_PVCLOCK: u32 = 1 << 9;
    /// Events can be bound to pirqs.
    pub const HVM_PIRQS: u32 = 1 << 10;
    /// The caller is the control domain.
    pub const DOM0: u32 = 1 << 11;
    /// `memory_op` knows virtual NUMA nodes.
    pub const MEMORY_OP_VNODE: u32 = 1 << 13;
    /// Guest frames are not machine frames.
    pub const NOT_DIRECT_MAPPED: u32 = 1 << 16;
}
