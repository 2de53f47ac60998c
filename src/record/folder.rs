//! A run folder, read whole: plan, findings and every rank file.

use std::collections::BTreeMap;

use super::{Bucket, Field, Finding, Plan, RunEnd, RunHead, Step};

/// What a run folder holds, checked line by line.
#[derive(Debug, Clone, PartialEq)]
pub struct RunFiles {
    /// Name of the folder, without its parents.
    pub name: String,
    /// The plan that was carried out.
    pub plan: Plan,
    /// Findings of the probe and of the launches.
    pub findings: Vec<Finding>,
    /// Facts of machine and software for the sheet, from the topology.
    pub identity: Vec<Field>,
    /// Rank files by trial, by rank. A trial of the plan that never started is absent; a rank that left no
    /// file is absent.
    pub trials: BTreeMap<String, BTreeMap<usize, RankFile>>,
}

/// One rank file.
#[derive(Debug, Clone, PartialEq)]
pub struct RankFile {
    /// First line.
    pub head: RunHead,
    /// Steps in order, indices without gaps from 0.
    pub steps: Vec<Step>,
    /// Bucket events of sampled steps.
    pub buckets: Vec<Bucket>,
    /// Last line; none if the rank did not finish.
    pub end: Option<RunEnd>,
}
