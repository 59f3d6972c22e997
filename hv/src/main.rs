//! Testudo's composition root.
#![cfg_attr(target_os = "none", no_std, no_main)]

// UNSAFETY: declares the global allocator and the panic handler, which only a binary can.
#[cfg(target_os = "none")]
mod bare {
    #[global_allocator]
    static HEAP: hv_x86::mm::heap::Heap = hv_x86::mm::heap::new();

    #[panic_handler]
    fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
        hv_x86::report::panic(info)
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("testudo runs on bare metal: `cargo xtask build` makes the image, `cargo xtask run` boots it");
    std::process::exit(1);
}
