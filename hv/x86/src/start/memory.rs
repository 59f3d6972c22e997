//! Memory from the loader's map: what is RAM, what is taken, and the switch to Testudo's own tables.

use crate::mm::{
    frames::{self, Reserved},
    host,
};
use addr::{Frame, HostPhys, Hpa, PAGE_SIZE, PageSize, Range};
use alloc::vec::Vec;
use boot::E820Type;
use boot::multiboot2::BootInfo;
use hv_core::memory::Reason;

/// Least RAM below 4 GiB that Testudo starts with.
const LEAST: u64 = 64 << 20;

/// Sets up frames and Testudo's own page tables. Returns a page below 1 MiB for starting other CPUs.
pub fn init(boot: &BootInfo, info: Hpa, info_bytes: u64) -> Option<Frame<HostPhys>> {
    let map = boot.memory_map();
    for region in &map {
        log::debug!("memory {:#014x}-{:#014x} {:?}", region.start, region.end, region.kind);
    }
    let ranges = |kind: E820Type| -> Vec<Range<HostPhys>> {
        map.iter().filter(|r| r.kind == kind).filter_map(|r| Range::new(r.start, r.bytes())).collect()
    };
    let ram = below(ranges(E820Type::RAM), super::config::options().mem);
    let total: u64 = ram.iter().map(Range::bytes).sum();
    log::info!("{} MiB of RAM", total >> 20);
    if total < LEAST {
        super::refuse(&alloc::format!(
            "{} MiB of RAM: Testudo needs at least {} MiB",
            total >> 20,
            LEAST >> 20
        ));
    }
    let taken = reserved(boot, info, info_bytes);
    let trampoline = low_page(&ram, &taken);
    let mut all = taken;
    for (first, last) in &super::config::options().badpage {
        let bytes = (last.saturating_sub(*first) + 1) * PAGE_SIZE;
        all.push(entry((Hpa::new(first * PAGE_SIZE), bytes, Reason::Bad)));
    }
    // The first page holds the interrupt vectors of firmware that may still be called (SMM, reset paths).
    all.extend([(Hpa::ZERO, PAGE_SIZE, Reason::Firmware)].map(entry));
    all.extend(trampoline.map(|page| entry((page.start(), PAGE_SIZE, Reason::BootTable))));
    if let Err(error) = frames::init(&ram, &all) {
        super::refuse(&alloc::format!(
            "no {} KiB in one piece below 4 GiB for the frame table",
            error.need >> 10
        ));
    }
    let mut cached = ram;
    cached.extend(ranges(E820Type::ACPI));
    host::init(&cached);
    trampoline
}

/// `mem=`: RAM above `limit` is not used.
fn below(ram: Vec<Range<HostPhys>>, limit: Option<u64>) -> Vec<Range<HostPhys>> {
    let Some(limit) = limit else { return ram };
    let cut =
        |r: Range<HostPhys>| Range::new(r.start(), r.end().raw().min(limit).checked_sub(r.start().raw())?);
    ram.into_iter().filter_map(cut).collect()
}

fn entry((start, bytes, reason): (Hpa, u64, Reason)) -> Reserved {
    let start = start.align_down(PageSize::Size4K);
    let range = Range::new(start, bytes).expect("a range that the loader reported lies below 2^52");
    Reserved { range, reason }
}

/// What lies in RAM already: Testudo, the modules, the loader's information.
fn reserved(boot: &BootInfo, info: Hpa, info_bytes: u64) -> Vec<Reserved> {
    let image = host::image_extent();
    let mut taken = Vec::from([
        entry((image.start(), image.bytes(), Reason::Image)),
        entry((info, info_bytes + (info.page_offset() as u64), Reason::BootTable)),
    ]);
    for module in &boot.modules {
        taken.push(entry((module.start, module.bytes(), Reason::Module)));
    }
    taken
}

/// A free page of conventional memory. The highest, as firmware data lie at the bottom.
fn low_page(ram: &[Range<HostPhys>], taken: &[Reserved]) -> Option<Frame<HostPhys>> {
    (0x10..0xa0).rev().map(Frame::<HostPhys>::new).find(|page| {
        let range = Range::new(page.start(), PAGE_SIZE);
        range.is_some_and(|range| {
            ram.iter().any(|r| r.start() <= range.start() && range.end() <= r.end())
                && !taken.iter().any(|t| t.range.overlaps(&range))
        })
    })
}
