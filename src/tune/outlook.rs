//! What the prediction says of a setting before anything is launched.

use crate::predict::{
    Alone, Board, BucketWork, Calibration, Exchange, Framework, NcclVersion, Overlap, P2p, Protocol, Ring, Training,
    Transport, Work, forecast, ring, ring_latency,
};
use crate::record::{NcclSettings, Setting, TrainConfig};
use crate::units::{Bytes, BytesPerSecond, Seconds};

use super::space::{Applied, apply};

/// The model of a machine and a training, asked about settings.
#[derive(Debug, Clone)]
pub struct Outlook {
    board: Board,
    config: TrainConfig,
    alone: Alone,
    nccl: NcclVersion,
    told: NcclSettings,
}

/// In what a machine differs from its model. The model itself is all neutral.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Twist {
    /// Factor of the bus bandwidth between peers.
    pub(super) peer: f64,
    /// The same through host memory.
    pub(super) staged: f64,
    /// Factor of the latency.
    pub(super) latency: f64,
    /// Share of its speed that compute loses beside a bucket.
    pub(super) contention: f64,
    /// Thread blocks that fill the link; with fewer its rate falls as their root, more only crowd compute. None: it does not
    /// matter. Where NCCL's 2 to 4 are too few, 8 gave 1.7 times the rate (local-inference-lab/rtx6kpro, nccl-tuning.md).
    pub(super) fill: Option<f64>,
}

impl Default for Twist {
    fn default() -> Self {
        Self { peer: 1.0, staged: 1.0, latency: 1.0, contention: Overlap::default().contention, fill: None }
    }
}

impl Outlook {
    /// The model of `board`, whose GPUs are the ranks, and of a training with everything left alone.
    #[must_use]
    pub fn new(board: Board, config: TrainConfig, alone: Alone, nccl: NcclVersion) -> Self {
        Self { board, config, alone, nccl, told: NcclSettings::default() }
    }

    /// The same where NCCL is told this in every launch.
    #[must_use]
    pub fn told(self, told: NcclSettings) -> Self {
        Self { told, ..self }
    }

    /// The step with a setting; none where the setting or the machine is beyond the model.
    #[must_use]
    pub fn step(&self, setting: &Setting) -> Option<Seconds> {
        self.twisted(setting, &Twist::default())
    }

    /// Whether the training fits the memory of the GPUs, as far as the model knows.
    #[must_use]
    pub fn fits(&self) -> bool {
        let exchange = Exchange { nccl: self.nccl, ..Exchange::default() };
        let forecast = forecast(&self.board, &training(&self.config, self.alone), &exchange, &Calibration::default());
        forecast.is_ok_and(|forecast| forecast.hazards.iter().all(|hazard| hazard.code != "does-not-fit"))
    }

    /// Bus bandwidth that the machine should reach by itself.
    #[must_use]
    pub fn bus(&self) -> Option<BytesPerSecond> {
        let exchange = Exchange { nccl: self.nccl, ..Exchange::default() };
        ring(&self.board, &exchange, &Calibration::default()).ok().map(|ring| ring.bus)
    }

    /// The step on a machine that differs from the model.
    pub(super) fn twisted(&self, setting: &Setting, twist: &Twist) -> Option<Seconds> {
        let applied = apply(setting, &self.config, &self.told).ok()?;
        let exchange = exchange(&applied, self.nccl);
        let training = training(&applied.config, self.alone);
        let forecast = forecast(&self.board, &training, &exchange, &Calibration::default()).ok()?;
        let blocks = applied.nccl.max_ctas.map_or(f64::from(forecast.ring.graph.channels * 2), f64::from);
        let sm = self.board.seats.iter().map(|seat| seat.card.sm).min().unwrap_or(0);
        let ring = bent(&forecast.ring, twist, blocks);
        let way = |bytes| Way::of(&applied, &forecast.ring, bytes, sm).time(&ring, bytes, twist.latency);
        // a bucket as the bytes that take as long on a ring without latency
        let buckets = forecast.work.buckets.iter().map(|bucket| BucketWork {
            bytes: Bytes((way(bucket.bytes).0 * ring.bus.0 / ring.factor()) as u64),
            ready: bucket.ready,
        });
        let work = Work { buckets: buckets.collect(), ..forecast.work.clone() };
        // a block that only crowds compute costs a twentieth of what communication costs it anyway
        let crowd = twist.fill.map_or(1.0, |fill| 1.0 + 0.05 * (blocks - fill).max(0.0));
        let overlap = Overlap { contention: (twist.contention * crowd).min(1.0), ..Overlap::default() };
        Some(work.step(&Ring { latency: Seconds(0.0), ..ring }, &overlap).step)
    }
}

/// What a setting tells NCCL, as far as the model knows it.
fn exchange(applied: &Applied, nccl: NcclVersion) -> Exchange {
    let told = |name: &str| applied.nccl.environment.get(name).map(String::as_str);
    let p2p = match (told("NCCL_P2P_DISABLE"), told("NCCL_P2P_LEVEL")) {
        (Some("1"), _) => P2p::Off,
        (_, Some("PHB" | "SYS")) => P2p::On,
        _ => P2p::Auto,
    };
    Exchange { nccl, p2p, min_channels: applied.nccl.min_ctas, ..Exchange::default() }
}

/// The ring with so many thread blocks, on a machine that differs from the model. NCCL's fallback to simple order is
/// narrow by its channels already, which the prediction knows.
fn bent(ring: &Ring, twist: &Twist, blocks: f64) -> Ring {
    let factor = if ring.has(Transport::Staged) { twist.staged } else { twist.peer };
    let fill = twist.fill.filter(|_| !ring.graph.fallback);
    ring.at(ring.bus * factor * fill.map_or(1.0, |fill| (blocks / fill).min(1.0).sqrt()))
}

/// Share of a bus that a tree takes for its all-reduce, before its steps are counted (`tuning.cc`: `busBw * .92`).
const TREE_SHARE: f64 = 0.92;

/// What LL leaves a ring and a tree (`tuning.cc`: `busBw * .5`, `busBw / 3.8`): half of what it sends are flags.
const LL_SHARES: [f64; 2] = [0.5, 1.0 / 3.8];

/// Latency of a tree beside that of a ring with LL, for each of its `2 (n − 1)` hops and once, LL and Simple, in seconds
/// (`tuning.cc`: `hwLat` and `baseLat`; on one host a tree is a chain up and down).
const TREE_HOPS_S: [(f64, f64); 2] = [(0.0, 0.2e-6), (3.0e-6, 1.8e-6)];

/// How one bucket travels.
#[derive(Debug, Clone, Copy)]
struct Way {
    tree: bool,
    protocol: Protocol,
}

impl Way {
    /// As NCCL chooses for a bucket by its own estimate of the ring, unless the setting says it. Between the GPUs of one
    /// host NCCL takes a tree only where it is told to.
    fn of(applied: &Applied, ring: &Ring, bytes: Bytes, sm: u32) -> Self {
        let told = |name: &str| applied.nccl.environment.get(name).map(String::as_str);
        let tree = told("NCCL_ALGO") == Some("Tree");
        let believed = |protocol| match tree {
            false => ring.graph.believes(protocol, bytes, ring.ranks, sm),
            true => {
                let latency = ring_latency(Protocol::LL, ring.ranks, 1);
                Self { tree, protocol }.time(&Ring { latency, ..ring.at(ring.graph.bus()) }, bytes, 1.0)
            }
        };
        let protocol = match told("NCCL_PROTO") {
            Some("LL") => Protocol::LL,
            Some("Simple") => Protocol::Simple,
            _ if believed(Protocol::LL) < believed(Protocol::Simple) => Protocol::LL,
            _ => Protocol::Simple,
        };
        Self { tree, protocol }
    }

    /// How long an all-reduce takes on a ring whose bus bandwidth is that of Simple and whose latency that of LL.
    fn time(self, ring: &Ring, bytes: Bytes, latency: f64) -> Seconds {
        let (ranks, at) = (ring.ranks as f64, self.protocol as usize);
        let rings = |protocol| ring_latency(protocol, ring.ranks, 1).0;
        let (share, more) = match self.tree {
            false => (1.0, rings(self.protocol) - rings(Protocol::LL)),
            true => (TREE_SHARE * (ranks - 1.0) / ranks, 2.0 * (ranks - 1.0) * TREE_HOPS_S[at].0 + TREE_HOPS_S[at].1),
        };
        let share = if self.protocol == Protocol::LL { share * LL_SHARES[usize::from(self.tree)] } else { share };
        let waits = (ring.latency.0 + more) * latency;
        Seconds(waits + bytes.0 as f64 * ring.factor() / (ring.bus.0 * share))
    }
}

/// A training in the words of the prediction.
pub(super) fn training(config: &TrainConfig, alone: Alone) -> Training {
    Training {
        framework: Framework::Rigscale,
        shape: config.shape,
        batch: config.batch,
        context: config.context,
        accumulate: config.accumulate,
        bucket: config.bucket_bytes,
        first_bucket: config.first_bucket_bytes,
        precision: config.reduce_dtype.unwrap_or(config.precision),
        alone,
        reduced: None,
        recompute: config.recompute,
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulated::canonical;
    use super::*;
    use crate::predict::platform;

    #[test]
    fn each_bucket_goes_the_way_that_nccl_believes_fastest_unless_told() {
        let board = platform("asrock-romed8-2t").unwrap().with_gpus(4).unwrap();
        let ring = ring(&board, &Exchange::default(), &Calibration::default()).unwrap();
        let config = canonical("llama-125m", 1, 1024, 1).unwrap();
        let way = |words: &[(&str, &str)], bytes: u64| {
            let setting = words.iter().fold(Setting::default(), |all, (knob, choice)| all.with(knob, choice));
            let applied = apply(&setting, &config, &NcclSettings::default()).unwrap();
            Way::of(&applied, &ring, Bytes(bytes), 89)
        };
        let (small, large) = (64 << 10, 25 << 20);
        let time = |way: Way, bytes: u64| way.time(&ring, Bytes(bytes), 1.0);
        for bytes in [small, large] {
            let [free, low, simple] = [&[][..], &[("protocol", "NCCL_PROTO=LL")], &[("protocol", "NCCL_PROTO=Simple")]]
                .map(|words| time(way(words, bytes), bytes));
            assert_eq!(free, if low < simple { low } else { simple }, "{bytes}");
            assert_eq!(bytes == small, low < simple, "{bytes}: LL is for small buckets");
        }
        // what a ring takes for large messages is what its bus bandwidth says
        assert!((time(way(&[], large), large) / ring.time(Bytes(large)) - 1.0).abs() < 0.05);
        let tree = way(&[("algorithm", "NCCL_ALGO=Tree")], large);
        assert!(tree.tree && time(way(&[], large), large) < time(tree, large));
    }
}
