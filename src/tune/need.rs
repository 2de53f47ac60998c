//! What bandwidth a target needs, and what the measured step says that there is.

use crate::predict::{Alone as Known, Overlap, Ring, RingGraph, Solo, StepTime, Work};
use crate::record::{TrainConfig, TuneNeed};
use crate::units::{BytesPerSecond, Seconds};

use super::outlook::training;

/// Bandwidths that are looked at: from a modem to what no bus has.
const RANGE: (f64, f64) = (1e4, 1e14);

/// A rank alone, as it was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alone {
    /// Its forward pass, backward pass and the rest.
    pub phases: Solo,
    /// Ranks that exchange.
    pub ranks: usize,
}

/// The bus bandwidth that `target` needs with the buckets of `config`, and the one that explains `step`. Both come from the
/// model of a step ([`Work::step`]) with everything that the ranks lose laid to the exchange; none where the step is as
/// fast as that of a rank alone.
#[must_use]
pub fn need(alone: &Alone, config: &TrainConfig, step: Seconds, target: f64) -> Option<TuneNeed> {
    let Solo { forward, backward, optimizer } = alone.phases;
    let buckets = training(config, Known::Phases(alone.phases)).buckets();
    let work = Work { forward, backward, optimizer, accumulate: config.accumulate, buckets };
    let at = |bus: f64| -> StepTime {
        let graph = RingGraph { channels: 1, bandwidth: 1.0, fallback: false };
        let ring = Ring {
            ranks: alone.ranks,
            bus: BytesPerSecond(bus),
            latency: Seconds(0.0),
            transports: Vec::new(),
            limit: String::new(),
            limiting: None,
            graph,
            spread: 0.0,
        };
        work.step(&ring, &Overlap::default())
    };
    let given = crossing(|bus| at(bus).step <= step)?;
    let needed = crossing(|bus| target <= at(bus).efficiency());
    Some(TuneNeed { needed: needed.map(BytesPerSecond), given: BytesPerSecond(given) })
}

/// The least bandwidth that is enough, by bisection of its logarithm; none where not even the largest is.
fn crossing(enough: impl Fn(f64) -> bool) -> Option<f64> {
    if !enough(RANGE.1) {
        return None;
    }
    let (mut low, mut high) = (RANGE.0.ln(), RANGE.1.ln());
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if enough(middle.exp()) { high = middle } else { low = middle }
    }
    Some(high.exp())
}
