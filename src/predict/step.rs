//! One training step: compute, the buckets that leave while the backward pass goes on, and what overlap does not hide.

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
    /// Share of the step that is lost to waiting for the slowest rank.
    pub straggle: f64,
}

/// Contention as the scaling rows of 2020 to 2022 show it, see [`Windowed`]; no rows of a newer framework are published.
/// 0.2 and 0.8 bound what is believed possible, for intervals.
pub const CONTENTION: [f64; 3] = [0.2, 0.5, 0.8];

impl Default for Overlap {
    fn default() -> Self {
        Self { contention: CONTENTION[1], straggle: Windowed::default().straggle }
    }
}

/// One step in time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepTime {
    /// The whole step.
    pub step: Seconds,
    /// The same without other ranks.
    pub alone: Seconds,
    /// Waiting for buckets after the backward pass.
    pub exposed: Seconds,
    /// How much longer the backward pass takes beside buckets.
    pub slowdown: Seconds,
    /// Waiting for the slowest rank.
    pub straggler: Seconds,
    /// When each bucket is ready, begins and ends, in seconds after the backward pass of the last micro-step began.
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

    /// The step over a ring: buckets travel one after another, in order, each from when it is ready; while one travels
    /// the backward pass is slower.
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
        let (end, buckets) = self.schedule(ring, overlap.contention);
        let last = buckets.last().map_or(0.0, |[_, _, end]| end.0);
        let exposed = Seconds((last - end).max(0.0));
        let slowdown = Seconds(end) - self.backward;
        let straggler = alone * overlap.straggle;
        StepTime { step: alone + exposed + slowdown + straggler, alone, exposed, slowdown, straggler, buckets }
    }

    /// When the backward pass ends, and each bucket's moments.
    fn schedule(&self, ring: &Ring, contention: f64) -> (f64, Vec<[Seconds; 3]>) {
        let whole = self.backward.0;
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
            advance((bucket.ready * whole).clamp(0.0, whole), &mut now, free);
            let begin = now.max(free);
            let end = begin + ring.time(bucket.bytes).0;
            buckets.push([Seconds(now), Seconds(begin), Seconds(end)]);
            free = end;
        }
        advance(whole, &mut now, free);
        (now, buckets)
    }
}

/// The overlap that the frameworks of the scaling rows (apex DDP and torch DDP in NGC 20.10 to 22.10) show, as a closed
/// form: of the communication time, what travels in a window of the step hides, but contention takes back its share. The
/// window closes as the bandwidth grows: fast rings leave little compute to hide behind. It is the limit of
/// [`Work::step`] for many buckets that are all ready when the window opens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Windowed {
    /// Window of a step over an idle ring, as a share of the step alone.
    pub window: f64,
    /// Bus bandwidth at which it is closed.
    pub closed_at: BytesPerSecond,
    /// Share of its speed that compute loses while buckets travel.
    pub contention: f64,
    /// Share of the step that is lost to the slowest rank.
    pub straggle: f64,
}

impl Default for Windowed {
    fn default() -> Self {
        Self { window: 0.7, closed_at: BytesPerSecond(10e9), contention: 0.5, straggle: 0.002 }
    }
}

impl Windowed {
    /// Efficiency of a step of `alone` that reduces `bytes` over `ring`.
    #[must_use]
    pub fn efficiency(&self, alone: Seconds, bytes: Bytes, ring: &Ring) -> f64 {
        let travel = ring.time(bytes);
        let open = self.window * (1.0 - ring.bus / self.closed_at).max(0.0);
        let exposed = (travel.0 - open * alone.0).max(self.contention * travel.0);
        alone.0 / (alone.0 * (1.0 + self.straggle) + exposed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::nccl::RingGraph;

    fn ring(ranks: usize, bus: f64, latency: f64) -> Ring {
        let graph = RingGraph { channels: 1, bandwidth: 1.0, fallback: false };
        let (bus, latency) = (BytesPerSecond(bus), Seconds(latency));
        Ring { ranks, bus, latency, transports: Vec::new(), limit: String::new(), graph, spread: 0.1 }
    }

    fn work(bytes: u64, ready: &[f64]) -> Work {
        let buckets = ready.iter().map(|ready| BucketWork { bytes: Bytes(bytes), ready: *ready }).collect();
        Work { forward: Seconds(1.0), backward: Seconds(2.0), optimizer: Seconds(0.5), accumulate: 1, buckets }
    }

    #[test]
    fn what_travels_behind_the_backward_pass_is_hidden_and_slows_it() {
        let ring = ring(2, 1e9, 0.0); // factor 1: 1 GB takes 1 s
        let free = Overlap { contention: 0.0, straggle: 0.0 };
        let step = work(500_000_000, &[0.25, 1.0]).step(&ring, &free);
        assert_eq!((step.alone.0, step.exposed.0, step.slowdown.0), (3.5, 0.5, 0.0));
        assert_eq!(step.buckets[0], [Seconds(0.5), Seconds(0.5), Seconds(1.0)]);
        let half = Overlap { contention: 0.5, straggle: 0.0 };
        let step = work(500_000_000, &[0.25, 1.0]).step(&ring, &half);
        assert_eq!((step.exposed.0, step.slowdown.0, step.step.0), (0.5, 0.25, 4.25));
        let stalled = Overlap { contention: 1.0, straggle: 0.0 };
        let step = work(500_000_000, &[0.25, 1.0]).step(&ring, &stalled);
        assert_eq!((step.exposed.0, step.slowdown.0), (0.5, 0.5));
    }

    #[test]
    fn accumulation_hides_by_dilution_and_one_rank_exchanges_nothing() {
        let once = work(1_000_000_000, &[1.0]);
        let four = Work { accumulate: 4, ..once.clone() };
        let overlap = Overlap { contention: 0.5, straggle: 0.0 };
        let (a, b) = (once.step(&ring(2, 1e9, 0.0), &overlap), four.step(&ring(2, 1e9, 0.0), &overlap));
        assert_eq!((a.exposed, b.exposed), (Seconds(1.0), Seconds(1.0)));
        assert!(a.efficiency() < b.efficiency());
        assert_eq!(once.step(&ring(1, 1e9, 0.0), &overlap).efficiency(), 1.0);
    }

    #[test]
    fn the_closed_form_is_the_limit_of_early_buckets() {
        let windowed = Windowed { closed_at: BytesPerSecond(1e30), straggle: 0.0, ..Windowed::default() };
        for bus in [0.2e9, 0.5e9, 1e9, 5e9] {
            let ring = ring(4, bus, 0.0);
            let bytes = Bytes(1_000_000_000);
            let alone = Seconds(2.0);
            let buckets = vec![BucketWork { bytes: Bytes(10_000_000), ready: 0.0 }; 100];
            let (forward, backward) = (alone * 0.3, alone * 0.7);
            let work = Work { forward, backward, optimizer: Seconds(0.0), accumulate: 1, buckets };
            let overlap = Overlap { contention: windowed.contention, straggle: 0.0 };
            let (events, closed) = (work.step(&ring, &overlap).efficiency(), windowed.efficiency(alone, bytes, &ring));
            assert!((events - closed).abs() < 1e-9, "{bus}: {events} and {closed}");
        }
    }
}
