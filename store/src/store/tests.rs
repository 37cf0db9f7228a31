//! The store as a caller sees it.
