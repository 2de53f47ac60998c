//! Medians, intervals and change points.
//! Knows numbers only; hides which quantile table or generator it uses.
//! Never drops a sample.

mod bootstrap;
mod change;
mod multiple;
mod student;
mod summary;

pub use bootstrap::{Resampler, hierarchical};
pub use change::{Steady, change_points, steady_state};
pub use multiple::{bonferroni, holm};
pub use student::LogRatios;
pub use summary::{Sorted, deviation, mean, median};
