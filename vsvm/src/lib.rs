//! Nested SVM as a pure state machine: check, merge, route, sync, reflect.
#![no_std]
#![forbid(unsafe_code)]

pub mod layout;
