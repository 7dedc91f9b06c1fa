//! stub
pub mod core;
#[cfg(feature = "gateway")]
pub mod gateway;
