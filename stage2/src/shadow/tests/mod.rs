//! The cache against plain code and hostile TLBs.

mod cases;
mod laws;
mod reference;
mod world;
