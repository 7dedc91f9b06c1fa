//! Documents
mod cluster;
