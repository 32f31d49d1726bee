//! Which address each Service has: a pure function of pools and Services.
//!
//! Knows no API client and no clock. What a Service holds is part of the input and stays: no edit of a
//! pool, of a selector or of another Service moves an address that was given out; what today's rules
//! would not give is kept and told. What is new goes by age, so that the order in which things are heard
//! of does not matter.

mod allocate;
mod pool;
mod range;
mod reason;
mod service;

pub use allocate::{Allocation, Assignment, Given, Inputs, PoolUse, Usage, allocate};
pub use pool::{Audience, Expression, Labels, NotFor, Operator, Overlap, Pool, Selector};
pub use range::{BadRange, Family, Range};
pub use reason::{Kept, Refusal, Unfit};
pub use service::{FamilyPolicy, Port, Service, ServiceName, Wishes};
