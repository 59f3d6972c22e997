//! The one place from which this crate takes locks and atomics, so that a model checker can replace them.

pub(crate) use core::sync::atomic::{AtomicU64, Ordering};
pub(crate) use spin::Mutex;
