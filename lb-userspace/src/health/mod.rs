//! Active checks of backends: what a target must do to be up, and who asks it.
//!
//! `state` counts successes and failures, `probe` asks once, `runner` asks all targets for ever.
//! Nothing here decides what a verdict means: that is the plan's business.

pub mod probe;
pub mod runner;
pub mod state;
mod tls;

pub use probe::{Failure, Prober};
pub use runner::run;
pub use state::Streak;
