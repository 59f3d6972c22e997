//! Memory and TLBs for tests, as hostile as the architecture allows.
