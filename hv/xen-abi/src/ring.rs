//! The console ring (`public/io/console.h`) and the xenstore ring (`public/io/xs_wire.h`), as offsets
//! within their page.

/// The console ring. The input is what the guest reads.
pub mod console {
    /// Input bytes.
    pub const IN: usize = 0;
    /// Size of the input; a power of two.
    pub const IN_SIZE: u32 = 1024;
    /// Output bytes.
    pub const OUT: usize = 1024;
    /// Size of the output; a power of two.
    pub const OUT_SIZE: u32 = 2048;
    /// u32: input consumed, by the guest. Indices run freely.
    pub const IN_CONS: usize = 3072;
    /// u32: input produced, by the backend.
    pub const IN_PROD: usize = 3076;
    /// u32: output consumed, by the backend.
    pub const OUT_CONS: usize = 3080;
    /// u32: output produced, by the guest.
    pub const OUT_PROD: usize = 3084;
}
