//! Active checks of backends: what a target must do to be up, who asks it, and whose word counts.
//!
//! `state` counts successes and failures, `probe` asks once; `assign` says who probes what, `word` how
//! members tell each other, `combine` what follows from all words; `runner` does it all for ever.
//! Nothing here decides what a verdict means: that is the plan's business.

pub mod assign;
pub mod combine;
pub mod probe;
pub mod runner;
pub mod state;
mod tls;
pub mod word;

pub use combine::Publication;
pub use probe::{Failure, Prober};
pub use runner::{Channels, Settings, run};
pub use state::Streak;
