//! Where the [`Intent`](crate::model::Intent) comes from. Sources report what is asked for and
//! decide nothing about it.

pub mod file;
