//! stub
pub(crate) mod authority;
pub(crate) mod socket;
