//! `grant_table_op` (`public/grant_table.h`), version 1 tables.

use crate::macros::{layout, numbers};

numbers! {
    /// Sub-operation of `grant_table_op`.
    GrantOp: u32 {
        /// Map a granted page.
        MAP_GRANT_REF = 0;
        /// Unmap it.
        UNMAP_GRANT_REF = 1;
        /// Grow the table and list its frames.
        SETUP_TABLE = 2;
        /// Write the table to the log.
        DUMP_TABLE = 3;
        /// Give a page away.
        TRANSFER = 4;
        /// Copy between pages.
        COPY = 5;
        /// Size of the table.
        QUERY_SIZE = 6;
        /// Unmap, putting another page there.
        UNMAP_AND_REPLACE = 7;
        /// Choose the version.
        SET_VERSION = 8;
        /// List the status frames.
        GET_STATUS_FRAMES = 9;
        /// Ask for the version.
        GET_VERSION = 10;
        /// Exchange two entries.
        SWAP_GRANT_REF = 11;
        /// Clean or invalidate caches.
        CACHE_FLUSH = 12;
    }
}

numbers! {
    /// Outcome for one element of a call.
    GrantStatus: i16 {
        /// Done.
        OKAY = 0;
        /// Anything else.
        GENERAL_ERROR = -1;
        /// No such domain.
        BAD_DOMAIN = -2;
        /// No such grant.
        BAD_GNTREF = -3;
        /// No such handle.
        BAD_HANDLE = -4;
        /// Bad address to map at.
        BAD_VIRT_ADDR = -5;
        /// Bad device address.
        BAD_DEV_ADDR = -6;
        /// No room in the IOMMU.
        NO_DEVICE_SPACE = -7;
        /// Not allowed.
        PERMISSION_DENIED = -8;
        /// Not a page of that domain.
        BAD_PAGE = -9;
        /// Bad offsets or lengths.
        BAD_COPY_ARG = -10;
        /// Frame too high for the table.
        ADDRESS_TOO_BIG = -11;
        /// Try again.
        EAGAIN = -12;
        /// No room in the table.
        NO_SPACE = -13;
    }
}

/// Bytes of a version 1 entry.
pub const ENTRY_V1_SIZE: usize = 8;
/// Version 1 entries in a frame of the table.
pub const ENTRIES_PER_FRAME: u32 = 512;
/// Entries 0 to 7 belong to the tools.
pub const RESERVED_ENTRIES: usize = 8;

/// The first 32 bits of a version 1 entry: flags, then the domain that may use it from bit 16 up. The next 32 bits
/// are the frame.
pub mod entry {
    /// What kind of grant it is.
    pub const TYPE: u32 = 3;
    /// [`TYPE`]: the frame may be mapped and copied.
    pub const PERMIT_ACCESS: u32 = 1;
    /// For reading only.
    pub const READONLY: u32 = 1 << 2;
    /// It is in use for reading; the hypervisor's.
    pub const READING: u32 = 1 << 3;
    /// It is in use for writing; the hypervisor's.
    pub const WRITING: u32 = 1 << 4;
    /// How it must be cached (PWT, PCD, PAT).
    pub const CACHE: u32 = 7 << 5;
    /// Part of a page; version 2 only.
    pub const SUB_PAGE: u32 = 1 << 8;
    /// Where the domain is.
    pub const DOMID_SHIFT: u32 = 16;
}

/// [`MapGrantRef::flags`].
pub mod map_flags {
    /// For devices.
    pub const DEVICE_MAP: u32 = 1 << 0;
    /// For the CPU.
    pub const HOST_MAP: u32 = 1 << 1;
    /// For reading only.
    pub const READONLY: u32 = 1 << 2;
    /// For user space (PV).
    pub const APPLICATION_MAP: u32 = 1 << 3;
    /// The address is that of a page-table entry (PV).
    pub const CONTAINS_PTE: u32 = 1 << 4;
}

layout! {
    /// One element of `MAP_GRANT_REF`.
    MapGrantRef: 32 {
        /// Where to.
        host_addr @ 0: u64,
        /// How.
        flags @ 8: u32,
        /// Which grant.
        gref @ 12: u32,
        /// Whose.
        dom @ 16: u16,
        /// A [`GrantStatus`], out.
        status @ 18: i16,
        /// For unmapping, out.
        handle @ 20: u32,
        /// For devices, out.
        dev_bus_addr @ 24: u64,
    }
    /// One element of `UNMAP_GRANT_REF`.
    UnmapGrantRef: 24 {
        /// Where it is.
        host_addr @ 0: u64,
        /// For devices.
        dev_bus_addr @ 8: u64,
        /// From the map.
        handle @ 16: u32,
        /// A [`GrantStatus`], out.
        status @ 20: i16,
        /// Nothing.
        pad @ 22: u16,
    }
    /// Argument of `SETUP_TABLE`.
    SetupTable: 24 {
        /// Whose.
        dom @ 0: u16,
        /// Nothing.
        pad @ 2: u16,
        /// Frames wanted.
        nr_frames @ 4: u32,
        /// A [`GrantStatus`], out.
        status @ 8: i16,
        /// Nothing.
        pad2 @ 10: [u16; 3],
        /// Where the list of frames goes.
        frame_list @ 16: u64,
    }
    /// Argument of `QUERY_SIZE`.
    QuerySize: 16 {
        /// Whose.
        dom @ 0: u16,
        /// Nothing.
        pad @ 2: u16,
        /// Frames now, out.
        nr_frames @ 4: u32,
        /// Frames at most, out.
        max_nr_frames @ 8: u32,
        /// A [`GrantStatus`], out.
        status @ 12: i16,
        /// Nothing.
        pad2 @ 14: u16,
    }
    /// One end of a copy.
    CopyEnd: 16 {
        /// A grant or a frame, by the flags.
        what @ 0: u64,
        /// Whose.
        domid @ 8: u16,
        /// Offset in the page.
        offset @ 10: u16,
        /// Nothing.
        pad @ 12: u32,
    }
    /// One element of `COPY`.
    Copy: 40 {
        /// From.
        source @ 0: CopyEnd,
        /// To.
        dest @ 16: CopyEnd,
        /// Bytes.
        len @ 32: u16,
        /// [`COPY_SOURCE_GREF`], [`COPY_DEST_GREF`].
        flags @ 34: u16,
        /// A [`GrantStatus`], out.
        status @ 36: i16,
        /// Nothing.
        pad @ 38: u16,
    }
    /// One end of a copy in the layout of a 32-bit guest.
    CopyEnd32: 8 {
        /// A grant or a frame, by the flags.
        what @ 0: u32,
        /// Whose.
        domid @ 4: u16,
        /// Offset in the page.
        offset @ 6: u16,
    }
    /// One element of `COPY` in the layout of a 32-bit guest.
    Copy32: 24 {
        /// From.
        source @ 0: CopyEnd32,
        /// To.
        dest @ 8: CopyEnd32,
        /// Bytes.
        len @ 16: u16,
        /// [`COPY_SOURCE_GREF`], [`COPY_DEST_GREF`].
        flags @ 18: u16,
        /// A [`GrantStatus`], out.
        status @ 20: i16,
        /// Nothing.
        pad @ 22: u16,
    }
    /// One element of `SWAP_GRANT_REF`.
    SwapGrantRef: 12 {
        /// One entry.
        ref_a @ 0: u32,
        /// The other.
        ref_b @ 4: u32,
        /// A [`GrantStatus`], out.
        status @ 8: i16,
        /// Nothing.
        pad @ 10: u16,
    }
    /// Argument of `SET_VERSION`.
    SetVersion: 4 {
        /// Wanted in, chosen out.
        version @ 0: u32,
    }
    /// Argument of `GET_VERSION`.
    GetVersion: 8 {
        /// Whose.
        dom @ 0: u16,
        /// Nothing.
        pad @ 2: u16,
        /// Its version, out.
        version @ 4: u32,
    }
}

/// [`Copy::flags`]: the source is a grant.
pub const COPY_SOURCE_GREF: u16 = 1;
/// [`Copy::flags`]: the destination is a grant.
pub const COPY_DEST_GREF: u16 = 2;
