//! What weir's tests share. Nothing here is used by the product.
//!
//! - [`lab`]: hosts, switch and router as network namespaces
//! - [`traffic`]: servers and clients that run inside them

pub mod lab;
pub mod traffic;
