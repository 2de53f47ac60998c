//! Medians, intervals and change points.
//! Knows numbers only; hides which quantile table or generator it uses.
//! Never drops a sample.
