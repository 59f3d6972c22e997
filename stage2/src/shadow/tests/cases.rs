//! Single cases: one per rule.
