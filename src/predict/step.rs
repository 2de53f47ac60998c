//! One training step: compute, the buckets that leave while the backward pass goes on, and what overlap does not hide.

use std::str::FromStr;

use serde::Serialize;

use crate::units::{Bytes, BytesPerSecond, Seconds};

use super::ring::Ring;

/// What one rank computes in an optimizer step, and what it hands over.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// Forward pass of one micro-step.
    pub forward: Seconds,
    /// Backward pass of one micro-step.
    pub backward: Seconds,
    /// Optimizer, gradient norm included.
    pub optimizer: Seconds,
    /// Micro-steps; only the last one's gradients travel.
    pub accumulate: usize,
    /// Buckets in the order in which they are filled.
    pub buckets: Vec<BucketWork>,
}

/// One bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BucketWork {
    /// Size.
    pub bytes: Bytes,
    /// Share of the backward pass after which its last gradient is written, 0 to 1.
    pub ready: f64,
}

/// What communication does to compute.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Overlap {
    /// Share of its speed that the backward pass loses while a bucket travels, 0 to 1.
    pub contention: f64,
    /// Bus bandwidth from which on nothing travels beside the backward pass; none: buckets leave as they fill. Below it,
    /// the first bucket leaves after `bus / closed_at` of the backward pass and the others crowd into what is left.
    pub closed_at: Option<BytesPerSecond>,
    /// Share of the step that is lost to waiting for the slowest rank.
    pub straggle: f64,
}

impl Default for Overlap {
    fn default() -> Self {
        Framework::Rigscale.overlap()
    }
}

/// Who trains: how buckets are laid beside the backward pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Framework {
    /// This program's own trainer: buckets leave as they fill, on a stream of high priority.
    #[default]
    Rigscale,
    /// DDP of apex in NGC containers 20.10 to 22.10, which the public rows of scaling were trained with.
    Apex,
}

impl Framework {
    /// Contention: the lowest believed, the most likely, the highest.
    ///
    /// rigscale: 0.19 is the mean that arXiv 2507.03114 measured, 0.4 its maximum; two H100s under rigscale lost 0.08
    /// staged (README, "Speed"). Apex: fitted to the rows that `scripts/bench-predict` scores.
    #[must_use]
    pub fn contention(self) -> [f64; 3] {
        match self {
            Self::Rigscale => [0.05, 0.19, 0.4],
            Self::Apex => [0.3, 0.45, 0.7],
        }
    }

    /// The most likely overlap. That the overlap of apex closes as the bus grows faster is seen in its rows: above some
    /// 14 GB/s all of a reduction is exposed, at 1 to 5 GB/s half of it. Why was not established; kernels of a stream
    /// without priority, which wait for compute that is already queued, would show it.
    #[must_use]
    pub fn overlap(self) -> Overlap {
        let closed_at = match self {
            Self::Rigscale => None,
            Self::Apex => Some(BytesPerSecond(15e9)),
        };
        Overlap { contention: self.contention()[1], closed_at, straggle: 0.002 }
    }

    /// Sizes of the first bucket and the others. rigscale: as its own flags default; apex: `message_size` of
    /// `apex/parallel/distributed.py`, ten million elements, whatever their size.
    #[must_use]
    pub fn buckets(self, element: Bytes) -> [Bytes; 2] {
        match self {
            Self::Rigscale => [Bytes::mebi(1.0), Bytes::mebi(25.0)],
            Self::Apex => [Bytes(10_000_000 * element.0); 2],
        }
    }

    /// Its name, as `--framework` takes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rigscale => "rigscale",
            Self::Apex => "apex",
        }
    }
}

impl FromStr for Framework {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Self::Rigscale, Self::Apex].into_iter().find(|one| one.name() == text);
        known.ok_or_else(|| format!("`{text}` is none of rigscale, apex"))
    }
}

/// One step in time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepTime {
    /// The whole step.
    #[serde(rename = "step_s")]
    pub step: Seconds,
    /// The same without other ranks.
    #[serde(rename = "alone_s")]
    pub alone: Seconds,
    /// Waiting for buckets after the backward pass.
    #[serde(rename = "exposed_s")]
    pub exposed: Seconds,
    /// How much longer the backward pass takes beside buckets.
    #[serde(rename = "slowdown_s")]
    pub slowdown: Seconds,
    /// Waiting for the slowest rank.
    #[serde(rename = "straggler_s")]
    pub straggler: Seconds,
    /// When each bucket is ready, begins and ends, in seconds after the backward pass of the last micro-step began.
    #[serde(rename = "buckets_s")]
    pub buckets: Vec<[Seconds; 3]>,
}

impl StepTime {
    /// Step alone over step together.
    #[must_use]
    pub fn efficiency(&self) -> f64 {
        self.alone / self.step
    }
}

impl Work {
    /// The step of one rank alone.
    #[must_use]
    pub fn alone(&self) -> Seconds {
        (self.forward + self.backward) * self.accumulate as f64 + self.optimizer
    }

    /// Bytes of all buckets.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        self.buckets.iter().map(|bucket| bucket.bytes).sum()
    }

    /// The step over a ring: buckets travel one after another, in order, each from when it is ready and the framework lets
    /// it go; while one travels the backward pass is slower.
    #[must_use]
    pub fn step(&self, ring: &Ring, overlap: &Overlap) -> StepTime {
        let alone = self.alone();
        if ring.ranks < 2 {
            let none = Seconds(0.0);
            return StepTime {
                step: alone,
                alone,
                exposed: none,
                slowdown: none,
                straggler: none,
                buckets: Vec::new(),
            };
        }
        let (end, buckets) = self.schedule(ring, overlap);
        let last = buckets.last().map_or(0.0, |[_, _, end]| end.0);
        let exposed = Seconds((last - end).max(0.0));
        let slowdown = Seconds(end) - self.backward;
        let straggler = alone * overlap.straggle;
        StepTime { step: alone + exposed + slowdown + straggler, alone, exposed, slowdown, straggler, buckets }
    }

    /// When the backward pass ends, and each bucket's moments.
    fn schedule(&self, ring: &Ring, overlap: &Overlap) -> (f64, Vec<[Seconds; 3]>) {
        let (whole, contention) = (self.backward.0, overlap.contention);
        let held = overlap.closed_at.map_or(0.0, |closed| (ring.bus / closed).min(1.0));
        let (mut now, mut done) = (0.0_f64, 0.0_f64); // on the clock, and of the backward pass
        let mut free = 0.0_f64; // when the last bucket begun ends
        let mut buckets = Vec::with_capacity(self.buckets.len());
        // compute until `target` of the backward pass is done; beside buckets until `free`
        let mut advance = |target: f64, now: &mut f64, free: f64| {
            if target <= done {
                return;
            }
            let beside = (free - *now).max(0.0);
            let gained = beside * (1.0 - contention);
            if target - done <= gained {
                *now += if contention < 1.0 { (target - done) / (1.0 - contention) } else { beside };
            } else {
                *now += beside + (target - done - gained);
            }
            done = target;
        };
        for bucket in &self.buckets {
            let leaves = held + (1.0 - held) * bucket.ready;
            advance((leaves * whole).clamp(0.0, whole), &mut now, free);
            let begin = now.max(free);
            let end = begin + ring.time(bucket.bytes).0;
            buckets.push([Seconds(now), Seconds(begin), Seconds(end)]);
            free = end;
        }
        advance(whole, &mut now, free);
        (now, buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::nccl::RingGraph;

    fn ring(ranks: usize, bus: f64, latency: f64) -> Ring {
        let graph = RingGraph { channels: 1, bandwidth: 1.0, fallback: false };
        let (bus, latency) = (BytesPerSecond(bus), Seconds(latency));
        Ring { ranks, bus, latency, transports: Vec::new(), limit: String::new(), limiting: None, graph, spread: 0.1 }
    }

    fn work(bytes: u64, ready: &[f64]) -> Work {
        let buckets = ready.iter().map(|ready| BucketWork { bytes: Bytes(bytes), ready: *ready }).collect();
        Work { forward: Seconds(1.0), backward: Seconds(2.0), optimizer: Seconds(0.5), accumulate: 1, buckets }
    }

    #[test]
    fn what_travels_behind_the_backward_pass_is_hidden_and_slows_it() {
        let ring = ring(2, 1e9, 0.0); // factor 1: 1 GB takes 1 s
        let free = Overlap { contention: 0.0, closed_at: None, straggle: 0.0 };
        let step = work(500_000_000, &[0.25, 1.0]).step(&ring, &free);
        assert_eq!((step.alone.0, step.exposed.0, step.slowdown.0), (3.5, 0.5, 0.0));
        assert_eq!(step.buckets[0], [Seconds(0.5), Seconds(0.5), Seconds(1.0)]);
        let half = Overlap { contention: 0.5, ..free };
        let step = work(500_000_000, &[0.25, 1.0]).step(&ring, &half);
        assert_eq!((step.exposed.0, step.slowdown.0, step.step.0), (0.5, 0.25, 4.25));
        let stalled = Overlap { contention: 1.0, ..free };
        let step = work(500_000_000, &[0.25, 1.0]).step(&ring, &stalled);
        assert_eq!((step.exposed.0, step.slowdown.0), (0.5, 0.5));
    }

    #[test]
    fn accumulation_hides_by_dilution_and_one_rank_exchanges_nothing() {
        let once = work(1_000_000_000, &[1.0]);
        let four = Work { accumulate: 4, ..once.clone() };
        let overlap = Overlap { contention: 0.5, closed_at: None, straggle: 0.0 };
        let (a, b) = (once.step(&ring(2, 1e9, 0.0), &overlap), four.step(&ring(2, 1e9, 0.0), &overlap));
        assert_eq!((a.exposed, b.exposed), (Seconds(1.0), Seconds(1.0)));
        assert!(a.efficiency() < b.efficiency());
        assert_eq!(once.step(&ring(1, 1e9, 0.0), &overlap).efficiency(), 1.0);
    }

    #[test]
    fn a_framework_that_holds_buckets_back_hides_less_on_a_faster_bus() {
        let overlap = Overlap { contention: 0.0, closed_at: Some(BytesPerSecond(2e9)), straggle: 0.0 };
        let at = |bus: f64| work(250_000_000, &[0.0, 0.5]).step(&ring(2, bus, 0.0), &overlap);
        // at half of that bandwidth the backward pass of 2 s is half gone when the first bucket leaves
        let half = at(1e9);
        assert_eq!(half.buckets.iter().map(|bucket| bucket[0].0).collect::<Vec<_>>(), [1.0, 1.5]);
        assert_eq!(half.exposed.0, 0.0);
        let closed = at(4e9);
        assert_eq!((closed.exposed.0, closed.buckets[0][1].0), (0.125, 2.0));
        let free = Overlap { closed_at: None, ..overlap };
        assert_eq!(work(250_000_000, &[0.0, 0.5]).step(&ring(2, 4e9, 0.0), &free).exposed.0, 0.0);
    }

    #[test]
    fn frameworks_read_by_name_and_their_contention_ascends() {
        for framework in [Framework::Rigscale, Framework::Apex] {
            assert_eq!(framework.name().parse(), Ok(framework));
            let [low, middle, high] = framework.contention();
            assert!(0.0 < low && low < middle && middle < high && high < 1.0);
        }
        assert!("torch".parse::<Framework>().unwrap_err().contains("apex"));
        assert_eq!(Framework::Apex.buckets(Bytes(4))[1], Bytes(40_000_000));
    }
}
