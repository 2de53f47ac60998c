//! What bucket events say: overlap, bus bandwidth, the timeline of one step.

use std::collections::BTreeMap;

use crate::record::{Bucket, Collective, Lane, RankFile, Timeline};
use crate::units::{Bytes, BytesPerSecond, Seconds};

use super::Ran;
use super::point::phases_of;
use super::sample::Cell;

/// Reductions that took less than a nanosecond altogether, in seconds, show no bandwidth.
const BUSY_MIN: f64 = 1e-9;

/// The share of communication that ran beside the rank's own passes: of sums while the step's passes were not done, of
/// weights in the forward pass of the next step. None without bucket events, or with one rank.
pub(super) fn overlap(cell: &Cell<'_>) -> Option<f64> {
    let (mut hidden, mut total) = (0.0, 0.0);
    for (ran, file) in cell.samples.iter().flat_map(|sample| sample.ddp.files.iter().map(|file| (sample.ddp, file))) {
        for (step, buckets) in sampled(ran, file) {
            let step = &file.steps[step];
            let computed = (step.start_s + step.forward_s + step.backward_s).0;
            let ended = (step.start_s + step.step_s).0;
            let (gathers, sums): (Vec<&Bucket>, Vec<&Bucket>) =
                buckets.into_iter().partition(|bucket| bucket.collective == Collective::AllGather);
            for (start, end) in union(sums.iter().map(|bucket| (bucket.start_s.0, bucket.end_s.0))) {
                total += end - start;
                hidden += (computed.min(end) - start).max(0.0);
            }
            for (start, end) in union(gathers.iter().map(|bucket| (bucket.start_s.0, bucket.end_s.0))) {
                total += end - start;
                hidden += (end - start.max(ended)).max(0.0);
            }
        }
    }
    (cell.world > 1 && total > 0.0).then(|| hidden / total)
}

/// `2(N − 1)/N · bytes / time` (nccl-tests, doc/PERFORMANCE.md; half of that where a sum is scattered or parts are gathered)
/// over the time in which some bucket was being exchanged. An exchange begins when the last rank brings its bucket and ends
/// when the last rank has the result, so that waiting for a slow rank is not taken for a slow bus. None without bucket events, or with one rank.
pub(super) fn bus_bandwidth(cell: &Cell<'_>) -> Option<BytesPerSecond> {
    let (mut bytes, mut seconds) = (0.0, 0.0);
    for ran in cell.samples.iter().map(|sample| sample.ddp) {
        let mut reductions: BTreeMap<(usize, usize, Collective), Reduction> = BTreeMap::new();
        for bucket in ran.files.iter().flat_map(|file| sampled(ran, file)).flat_map(|(_, buckets)| buckets) {
            reductions.entry((bucket.step, bucket.index, bucket.collective)).or_default().join(bucket);
        }
        reductions.retain(|_, reduction| reduction.ranks == ran.files.len());
        let crossing = |((_, _, collective), reduction): (&(usize, usize, Collective), &Reduction)| {
            reduction.bytes.0 as f64 * if *collective == Collective::AllReduce { 2.0 } else { 1.0 }
        };
        bytes += reductions.iter().map(crossing).sum::<f64>();
        let spans = union(reductions.values().map(|reduction| (reduction.start, reduction.end)));
        seconds += spans.iter().map(|(start, end)| end - start).sum::<f64>();
    }
    let ranks = cell.world as f64;
    let measured = cell.world > 1 && seconds >= BUSY_MIN;
    measured.then(|| BytesPerSecond(bytes / seconds * ((ranks - 1.0) / ranks)))
}

/// One bucket's exchange, over ranks.
#[derive(Default)]
struct Reduction {
    bytes: Bytes,
    ranks: usize,
    start: f64,
    end: f64,
}

impl Reduction {
    fn join(&mut self, bucket: &Bucket) {
        let first = self.ranks == 0;
        self.start = if first { bucket.start_s.0 } else { self.start.max(bucket.start_s.0) };
        self.end = if first { bucket.end_s.0 } else { self.end.max(bucket.end_s.0) };
        self.bytes = self.bytes.max(bucket.bytes);
        self.ranks += 1;
    }
}

/// The buckets of one step in the middle of the cell's last ddp trial, for all its ranks; none unless every rank
/// recorded buckets of one and the same counted step.
pub(super) fn timeline(cell: &Cell<'_>) -> Option<Timeline> {
    let ran = cell.samples.iter().map(|sample| sample.ddp).max_by_key(|ran| ran.place)?;
    let by_rank: Vec<_> = ran.files.iter().map(|file| sampled(ran, file)).collect();
    let shared: Vec<usize> =
        by_rank.first()?.keys().copied().filter(|step| by_rank.iter().all(|steps| steps.contains_key(step))).collect();
    let at = *shared.get(shared.len() / 2)?;
    let begin = ran.files.iter().map(|file| file.steps[at].start_s.0).fold(f64::INFINITY, f64::min);
    let lane = |(rank, file): (usize, &&RankFile)| {
        let from_begin = |moment: Seconds| Seconds(moment.0 - begin);
        let relative = |bucket: &&Bucket| Bucket {
            ready_s: from_begin(bucket.ready_s),
            start_s: from_begin(bucket.start_s),
            end_s: from_begin(bucket.end_s),
            ..(*bucket).clone()
        };
        Lane {
            rank,
            start_s: from_begin(file.steps[at].start_s),
            phases: phases_of(&file.steps[at]),
            buckets: by_rank[rank][&at].iter().map(relative).collect(),
        }
    };
    let lanes = ran.files.iter().enumerate().map(lane).collect();
    Some(Timeline { trial: ran.trial.name.clone(), step: at, lanes })
}

/// A rank's bucket events by step, for the steps that count.
fn sampled<'a>(ran: &Ran<'_>, file: &'a RankFile) -> BTreeMap<usize, Vec<&'a Bucket>> {
    let mut steps: BTreeMap<usize, Vec<&Bucket>> = BTreeMap::new();
    for bucket in file.buckets.iter().filter(|bucket| ran.aligned.contains(&bucket.step)) {
        steps.entry(bucket.step).or_default().push(bucket);
    }
    steps
}

/// Spans merged where they touch or overlap, ascending. A span that ends before it begins is empty.
fn union(spans: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let mut spans: Vec<(f64, f64)> = spans.map(|(start, end)| (start, end.max(start))).collect();
    spans.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut merged: Vec<(f64, f64)> = Vec::new();
    for (start, end) in spans {
        match merged.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_merge_where_they_touch() {
        let spans = [(3.0, 4.0), (0.0, 1.0), (0.5, 2.0), (4.0, 5.0), (7.0, 6.0)];
        assert_eq!(union(spans.into_iter()), [(0.0, 2.0), (3.0, 5.0), (7.0, 7.0)]);
    }
}
