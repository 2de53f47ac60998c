//! What the prediction says of a setting before anything is launched.

use crate::predict::{
    Alone, Board, Calibration, Exchange, Framework, NcclVersion, Overlap, P2p, Protocol, Ring, Training, Transport,
    ring, ring_latency,
};
use crate::record::{NcclSettings, Setting, TrainConfig};
use crate::units::{BytesPerSecond, Seconds};

use super::space::{Applied, apply};

/// The model of a machine and a training, asked about settings.
#[derive(Debug, Clone)]
pub struct Outlook {
    board: Board,
    config: TrainConfig,
    alone: Alone,
    nccl: NcclVersion,
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
        Self { board, config, alone, nccl }
    }

    /// The step with a setting; none where the setting or the machine is beyond the model.
    #[must_use]
    pub fn step(&self, setting: &Setting) -> Option<Seconds> {
        self.twisted(setting, &Twist::default())
    }

    /// Bus bandwidth that the machine should reach by itself.
    #[must_use]
    pub fn bus(&self) -> Option<BytesPerSecond> {
        let exchange = Exchange { nccl: self.nccl, ..Exchange::default() };
        ring(&self.board, &exchange, &Calibration::default()).ok().map(|ring| ring.bus)
    }

    /// The step on a machine that differs from the model.
    pub(super) fn twisted(&self, setting: &Setting, twist: &Twist) -> Option<Seconds> {
        let applied = apply(setting, &self.config, &NcclSettings::default()).ok()?;
        let exchange = exchange(&applied, self.nccl);
        let ring = ring(&self.board, &exchange, &Calibration::default()).ok()?;
        let blocks = applied.nccl.max_ctas.map_or(f64::from(ring.graph.channels * 2), f64::from);
        let ring = bent(&ring, &applied, twist, blocks);
        // a block that only crowds compute costs a twentieth of what communication costs it anyway
        let crowd = twist.fill.map_or(1.0, |fill| 1.0 + 0.05 * (blocks - fill).max(0.0));
        let overlap = Overlap { contention: (twist.contention * crowd).min(1.0), ..Overlap::default() };
        let training = training(&applied.config, self.alone);
        let forecast = crate::predict::forecast(&self.board, &training, &exchange, &Calibration::default()).ok()?;
        Some(forecast.work.step(&ring, &overlap).step)
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

/// The ring with a protocol, so many thread blocks, and what the machine makes of both.
fn bent(ring: &Ring, applied: &Applied, twist: &Twist, blocks: f64) -> Ring {
    let told = |name: &str| applied.nccl.environment.get(name).map(String::as_str);
    let staged = ring.has(Transport::Staged);
    let mut bus = ring.bus.0 * if staged { twist.staged } else { twist.peer };
    let mut latency = ring.latency.0;
    match told("NCCL_PROTO") {
        // half of what LL sends are flags (tuning.cc: busBw = min(llMaxBw, busBw / 2))
        Some("LL") => bus *= 0.5,
        Some("Simple") => {
            let of = |protocol| ring_latency(protocol, ring.ranks, 1).0;
            latency += of(Protocol::Simple) - of(Protocol::LL);
        }
        _ => {}
    }
    if told("NCCL_ALGO") == Some("Tree") {
        bus *= 0.5;
    }
    if let Some(fill) = twist.fill {
        bus *= (blocks / fill).min(1.0).sqrt();
    }
    Ring { bus: BytesPerSecond(bus), latency: Seconds(latency * twist.latency), ..ring.clone() }
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
