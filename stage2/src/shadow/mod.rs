//! The cache of `s2_02` roots of a domain.
