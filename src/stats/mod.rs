//! Medians, intervals and change points.
//! Knows numbers only; hides which quantile table or generator it uses.
//! Never drops a sample.

mod bootstrap;
mod change;
mod multiple;
mod pooled;
mod student;
mod summary;

pub use bootstrap::{Resampler, hierarchical};
pub use change::{Steady, steady_state};
pub use multiple::{bonferroni, holm};
pub use pooled::Pooled;
pub use student::LogRatios;
use summary::deviation;
pub use summary::{Sorted, mean, median};
