//! Debian packages without installing any: the machine's own sources, a private apt, a private root.
pub mod apt;
pub mod root;
pub mod sources;
