//! `memory_op` (`public/memory.h`).

use crate::macros::{layout, numbers};

numbers! {
    /// Sub-operation: the low [`MEMOP_BITS`] bits of the command.
    MemoryOp: u32 {
        /// Give memory to the domain, anywhere (PV).
        INCREASE_RESERVATION = 0;
        /// Take memory from the domain.
        DECREASE_RESERVATION = 1;
        /// Highest machine page.
        MAXIMUM_RAM_PAGE = 2;
        /// Pages the domain has.
        CURRENT_RESERVATION = 3;
        /// Pages the domain may have.
        MAXIMUM_RESERVATION = 4;
        /// Give memory at chosen frames.
        POPULATE_PHYSMAP = 6;
        /// Put a special page at a frame.
        ADD_TO_PHYSMAP = 7;
        /// The guest's memory map.
        MEMORY_MAP = 9;
        /// The machine's memory map.
        MACHINE_MEMORY_MAP = 10;
        /// Set a guest's memory map.
        SET_MEMORY_MAP = 13;
        /// Highest guest frame.
        MAXIMUM_GPFN = 14;
        /// Make a frame a hole.
        REMOVE_FROM_PHYSMAP = 15;
        /// `ADD_TO_PHYSMAP` for several frames.
        ADD_TO_PHYSMAP_BATCH = 23;
    }
}

/// Bits of the command that hold the operation; above them a preempted call keeps its progress.
pub const MEMOP_BITS: u32 = 6;
/// Highest page order a reservation may name (`MAX_ORDER` of the 1 GiB extent).
pub const MAX_EXTENT_ORDER: u32 = 18;

numbers! {
    /// What `ADD_TO_PHYSMAP` puts into the map.
    MapSpace: u32 {
        /// The shared info page.
        SHARED_INFO = 0;
        /// A grant table frame.
        GRANT_TABLE = 1;
        /// Move a frame.
        GMFN = 2;
        /// Move a range of frames.
        GMFN_RANGE = 3;
        /// A frame of another domain.
        GMFN_FOREIGN = 4;
        /// Device memory.
        DEV_MMIO = 5;
    }
}

/// In the index of [`MapSpace::GRANT_TABLE`]: a status frame of a version 2 table.
pub const MAPIDX_GRANT_TABLE_STATUS: u64 = 1 << 31;

layout! {
    /// Argument of the reservation calls.
    Reservation: 32 {
        /// Address of the list of frames.
        extent_start @ 0: u64,
        /// Extents in the list.
        nr_extents @ 8: u64,
        /// log2 of the pages of an extent.
        extent_order @ 16: u32,
        /// Placement.
        mem_flags @ 20: u32,
        /// Whose.
        domid @ 24: u16,
        /// Nothing.
        pad @ 26: [u16; 3],
    }
    /// Argument of the reservation calls, 32-bit.
    Reservation32: 20 {
        /// Address of the list of frames.
        extent_start @ 0: u32,
        /// Extents in the list.
        nr_extents @ 4: u32,
        /// log2 of the pages of an extent.
        extent_order @ 8: u32,
        /// Placement.
        mem_flags @ 12: u32,
        /// Whose.
        domid @ 16: u16,
        /// Nothing.
        pad @ 18: u16,
    }
    /// Argument of `ADD_TO_PHYSMAP`.
    AddToPhysmap: 24 {
        /// Whose map.
        domid @ 0: u16,
        /// Pages ([`MapSpace::GMFN_RANGE`] only).
        size @ 2: u16,
        /// A [`MapSpace`].
        space @ 4: u32,
        /// Which page of the space.
        idx @ 8: u64,
        /// Where to.
        gpfn @ 16: u64,
    }
    /// Argument of `ADD_TO_PHYSMAP`, 32-bit.
    AddToPhysmap32: 16 {
        /// Whose map.
        domid @ 0: u16,
        /// Pages ([`MapSpace::GMFN_RANGE`] only).
        size @ 2: u16,
        /// A [`MapSpace`].
        space @ 4: u32,
        /// Which page of the space.
        idx @ 8: u32,
        /// Where to.
        gpfn @ 12: u32,
    }
    /// Argument of `REMOVE_FROM_PHYSMAP`.
    RemoveFromPhysmap: 16 {
        /// Whose map.
        domid @ 0: u16,
        /// Nothing.
        pad @ 2: [u16; 3],
        /// Which frame.
        gpfn @ 8: u64,
    }
    /// Argument of `REMOVE_FROM_PHYSMAP`, 32-bit.
    RemoveFromPhysmap32: 8 {
        /// Whose map.
        domid @ 0: u16,
        /// Nothing.
        pad @ 2: u16,
        /// Which frame.
        gpfn @ 4: u32,
    }
    /// Argument of `MEMORY_MAP`.
    MemoryMap: 16 {
        /// Entries: room in, filled out.
        nr_entries @ 0: u32,
        /// Nothing.
        pad @ 4: u32,
        /// Address of the entries.
        buffer @ 8: u64,
    }
    /// Argument of `MEMORY_MAP`, 32-bit.
    MemoryMap32: 8 {
        /// Entries: room in, filled out.
        nr_entries @ 0: u32,
        /// Address of the entries.
        buffer @ 4: u32,
    }
}

/// Bytes of an e820 record: address, length, type, packed.
pub const E820_ENTRY_SIZE: usize = 20;

numbers! {
    /// Type of an e820 record.
    E820Type: u32 {
        /// RAM.
        RAM = 1;
        /// Reserved.
        RESERVED = 2;
        /// ACPI tables, reclaimable.
        ACPI = 3;
        /// ACPI non-volatile storage.
        NVS = 4;
        /// Unusable.
        UNUSABLE = 5;
    }
}
