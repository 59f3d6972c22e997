//! Testudo's composition root.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("testudo runs on bare metal: `cargo xtask build` makes the image, `cargo xtask run` boots it");
    std::process::exit(1);
}
