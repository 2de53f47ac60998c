//! Machines that are known only by their model, bent by lot within what the model is known to be wrong by, and swept
//! instead of real ones.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::model::preset;
use crate::predict::{Alone, Board, Calibration, NcclVersion, PredictError, platform};
use crate::record::{
    Arm, DataSource, Device, Origin, Precision, Setting, TrainConfig, TuneConditions, TuneFile, TuneHead, TuneIdentity,
    TuneTrial,
};
use crate::units::{Bytes, Seconds};

use super::outlook::{Outlook, Twist};
use super::space::{Host, Space};

/// A time to a whole number of `unit` seconds: what a log need not hold. Divided, not multiplied, so that it is written in
/// few digits.
#[must_use]
pub fn rounded(time: Seconds, unit: f64) -> Seconds {
    let units = (1.0 / unit).round();
    Seconds((time.0 * units).round().max(1.0) / units)
}

/// A training on GPUs of a platform of `topologies/`.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// Name of the platform.
    pub platform: String,
    /// The platform with as many GPUs as there are ranks.
    pub board: Board,
    /// The training with everything left alone; its seed draws what the machine differs by from its model.
    pub config: TrainConfig,
}

impl Case {
    /// A training with the first so many seats of a platform filled.
    ///
    /// # Errors
    /// No platform has that name, or so many seats.
    pub fn new(name: &str, world: usize, config: TrainConfig) -> Result<Self, PredictError> {
        let board = platform(name)?;
        let too_many = |slots| PredictError::TooMany { asked: world, board: name.to_owned(), slots };
        let board = board.with_gpus(world).map_err(too_many)?;
        Ok(Self { platform: name.to_owned(), board, config })
    }

    /// The case that a head of [`Case::head`] tells, with the canonical training ([`canonical`]); none of a machine that was
    /// measured, or where the platform or the model is unknown here.
    #[must_use]
    pub fn of(head: &TuneHead) -> Option<Self> {
        let identity = &head.identity;
        let name = identity.topology_sha256.strip_prefix(SIMULATED)?.split(',').next()?;
        let config = canonical(&identity.model, identity.batch, identity.context, head.seed)?;
        Self::new(name, identity.world, TrainConfig { accumulate: identity.accumulate, ..config }).ok()
    }

    /// The model of the machine, which a search is given: what the machine is bent by is not in it.
    #[must_use]
    pub fn outlook(&self) -> Outlook {
        Outlook::new(self.board.clone(), self.config.clone(), Alone::Catalogue, NcclVersion::MODELLED)
    }

    /// A part of the space of settings with at least `size` of them.
    #[must_use]
    pub fn space(&self, size: usize, rounding: bool) -> Space {
        let seats = &self.board.seats;
        let peers = seats.iter().all(|seat| seat.peer.unwrap_or(seat.card.peer)) && !self.board.virtual_machine;
        let host = Host {
            device: Device::Cuda,
            nccl: Some(NcclVersion::MODELLED),
            world: seats.len(),
            share_gpu: false,
            peers: Some(peers),
            capability: seats.iter().map(|seat| seat.card.sm).min(),
            cpus: 1,
            all_cpus: seats.len(),
            config: self.config.clone(),
            set: BTreeMap::new(),
            ways: BTreeMap::new(),
            rounding,
        };
        Space::of(&host).thinned(size)
    }

    /// The head of a sweep.
    #[must_use]
    pub fn head(&self, space: &Space, now: jiff::Timestamp) -> TuneHead {
        let (config, world) = (&self.config, self.board.seats.len());
        let identity = TuneIdentity {
            nccl: Some(NcclVersion::MODELLED.to_string()),
            driver: None,
            topology_sha256: format!("{SIMULATED}{}, seed {}", self.platform, config.seed),
            device: Device::Cuda,
            model: config.model.clone(),
            world,
            batch: config.batch,
            context: config.context,
            accumulate: config.accumulate,
            share_gpu: false,
            conditions: TuneConditions::default(),
        };
        let title = format!("{} on {world} GPUs of {}, simulated", config.model, self.platform);
        TuneHead {
            knobs: space.knobs.clone(),
            left_out: space.left_out.clone(),
            seed: config.seed,
            sweep: true,
            ..TuneHead::begun(Origin::Simulated, title, identity, now)
        }
    }
}

/// What stands in for the hash of a machine that is simulated.
const SIMULATED: &str = "simulated: ";

/// The training of a simulated case with the flags' own values; none where no model has that name.
#[must_use]
pub fn canonical(model: &str, batch: usize, context: usize, seed: u64) -> Option<TrainConfig> {
    let preset = preset(model).ok()?;
    Some(TrainConfig {
        model: preset.name.into(),
        shape: preset.shape,
        batch,
        context,
        accumulate: 1,
        recompute: false,
        deterministic: false,
        steps: 0,
        precision: Precision::Bf16,
        data: DataSource::Synthetic,
        seed,
        learning_rate: 1e-3,
        weight_decay: 0.1,
        clip_norm: Some(1.0),
        bucket_bytes: Bytes::mebi(25.0),
        first_bucket_bytes: Bytes::mebi(1.0),
        reduce_dtype: None,
        zero: 0,
        bucket_events_every: 0,
        checksum_every: 0,
    })
}

/// A machine around a model.
#[derive(Debug, Clone)]
pub struct Simulated {
    outlook: Outlook,
    twist: Twist,
    random: ChaCha8Rng,
}

/// An even number of `low` to `high`.
fn even(random: &mut ChaCha8Rng, low: f64, high: f64) -> f64 {
    low + (high - low) * f64::from(random.next_u32()) / f64::from(u32::MAX)
}

/// Nearly normal with deviation 1: the sum of twelve even numbers.
fn normal(random: &mut ChaCha8Rng) -> f64 {
    (0..12).map(|_| even(random, -0.5, 0.5)).sum()
}

impl Simulated {
    /// A machine drawn by `seed`. Bus bandwidths spread as predicted ones do about published figures
    /// ([`Calibration`]); latency by 30 %, contention of 0.2 to 0.8 and 1 to 8 thread blocks that fill a link are what is
    /// believed possible.
    #[must_use]
    pub fn drawn(outlook: Outlook, seed: u64) -> Self {
        let calibration = Calibration::default();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let twist = Twist {
            peer: (calibration.spread_peer * normal(&mut random)).exp(),
            staged: (calibration.spread_staged * normal(&mut random)).exp(),
            latency: (0.3 * normal(&mut random)).exp(),
            contention: even(&mut random, 0.2, 0.8),
            fill: Some(even(&mut random, 0.0, 3.0).exp2()),
        };
        Self { outlook, twist, random }
    }

    /// The step of a setting without noise: what no launch tells. None where it is beyond the model.
    #[must_use]
    pub fn truth(&self, setting: &Setting) -> Option<Seconds> {
        self.outlook.twisted(setting, &self.twist)
    }

    /// A sweep over `space`: every setting once in each round, each launch scattering normally by `spread` in logarithms.
    #[must_use]
    pub fn sweep(&mut self, head: TuneHead, space: &Space, spread: f64, launches: u32) -> TuneFile {
        let mut file = TuneFile { head, trials: Vec::new() };
        let truths: Vec<(Setting, Seconds)> =
            space.grid().into_iter().filter_map(|setting| Some((setting.clone(), self.truth(&setting)?))).collect();
        for round in 1..=launches {
            for (setting, truth) in &truths {
                let step = *truth * (spread * normal(&mut self.random)).exp();
                file.trials.push(TuneTrial {
                    index: file.trials.len(),
                    setting: setting.clone(),
                    arm: Arm::Ddp,
                    stage: "sweep".into(),
                    round,
                    why: String::new(),
                    step_s: Some(rounded(step, 1e-6)),
                    wall_s: rounded(step * 20.0, 0.1),
                    finding: None,
                });
            }
        }
        file
    }
}
