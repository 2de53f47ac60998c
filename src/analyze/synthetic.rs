//! Runs of machines whose efficiency is known, with the noise of real ones.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::model::preset;
use crate::record::{
    Arm, Bucket, Collective, DataSource, Device, EndReason, Grade, Limits, NcclSettings, Origin, Plan, Precision,
    RankFile, RunEnd, RunFiles, RunHead, SCHEMA, Share, Step, TrainConfig, Trial,
};
use crate::units::{Bytes, Seconds, Tokens};

/// Tokens that each rank trains on in one step.
pub(crate) const WORK: u64 = 1024;

/// Size of each of the four buckets.
pub(crate) const BUCKET: Bytes = Bytes(4 << 20);

/// Of a step without exchange: forward, backward, optimizer; the rest is other.
pub(crate) const PARTS: [f64; 3] = [0.31, 0.62, 0.05];

/// Of the loss by communication: slow-down of forward and backward, of the optimizer, and what nothing explains.
pub(crate) const SLOWDOWN: f64 = 0.25;
pub(crate) const OPTIMIZER: f64 = 0.1;
pub(crate) const REMAINDER: f64 = 0.02;

/// A machine and what was asked of it.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) worlds: Vec<World>,
    /// Solo step of each share, in seconds.
    pub(crate) solo_s: Vec<f64>,
    pub(crate) launches: u32,
    pub(crate) extension: u32,
    pub(crate) steps: usize,
    pub(crate) heating: usize,
    pub(crate) noise: Noise,
    /// Trials are shuffled over the whole session, not inside each launch.
    pub(crate) shuffled: bool,
    pub(crate) seed: u64,
}

/// The true split at one world size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct World {
    pub(crate) ranks: usize,
    pub(crate) silicon: f64,
    pub(crate) straggler: f64,
    pub(crate) comm: f64,
}

impl World {
    pub(crate) fn efficiency(&self) -> f64 {
        self.silicon * self.straggler * self.comm
    }
}

/// What keeps a machine from repeating itself.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Noise {
    /// Standard deviation of a step over its mean, inside a trial.
    pub(crate) variation: f64,
    /// Correlation of neighbouring steps.
    pub(crate) correlation: f64,
    /// Standard deviation of a trial's level, as a share.
    pub(crate) scatter: f64,
    /// By how much the machine is slower at the end of the session.
    pub(crate) drift: f64,
    /// The drift happens in the first fifth of the session instead of evenly.
    pub(crate) early: bool,
    /// By how much the first step of each trial is slower, and after how many steps a third of it is left.
    pub(crate) warm_up: (f64, f64),
    /// Chance of a step half as long again.
    pub(crate) outliers: f64,
}

impl Machine {
    /// A quiet machine: 5 launches of 60 steps, 4 of them heating.
    pub(crate) fn quiet(worlds: &[World]) -> Self {
        let shares = worlds.iter().map(|world| world.ranks).max().unwrap_or(1);
        Self {
            worlds: worlds.to_vec(),
            solo_s: (0..shares).map(|share| 0.1 + 0.001 * share as f64).collect(),
            launches: 5,
            extension: 0,
            steps: 60,
            heating: 4,
            noise: Noise::default(),
            shuffled: false,
            seed: 1,
        }
    }

    /// The run folder that this machine would leave.
    pub(crate) fn run(&self) -> RunFiles {
        let mut random = Random(ChaCha8Rng::seed_from_u64(self.seed));
        let plan = self.plan(&mut random);
        let count = plan.trials.len() as f64;
        let trials = plan
            .trials
            .iter()
            .enumerate()
            .map(|(place, trial)| {
                let when = (place as f64 + 0.5) / count;
                let shape = if self.noise.early { 1.0 - (-when / 0.1).exp() } else { when };
                let level = (1.0 + self.noise.drift * shape) * (self.noise.scatter * random.normal()).exp();
                (trial.name.clone(), self.trial(&plan, trial, level, &mut random))
            })
            .collect();
        RunFiles {
            name: "synthetic".into(),
            plan,
            findings: Vec::new(),
            identity: Vec::new(),
            trials,
            gpus: BTreeMap::new(),
            altered: Vec::new(),
            launch_recorded: true,
        }
    }

    fn plan(&self, random: &mut Random) -> Plan {
        let mut trials = Vec::new();
        for launch in 1..=self.launches {
            let mut arms = vec![];
            let shares = self.worlds.iter().map(|world| world.ranks).max().unwrap_or(1);
            arms.extend((0..shares).map(|share| (Arm::Solo, vec![share], format!("solo-share-{share}"))));
            for ranks in self.worlds.iter().map(|world| world.ranks) {
                if ranks > 1 {
                    arms.push((Arm::Together, (0..ranks).collect(), format!("together-{ranks}")));
                }
                arms.push((Arm::Ddp, (0..ranks).collect(), format!("ddp-{ranks}")));
            }
            // order at random inside the launch: drift then falls on each arm alike, and little of it inside a pair
            random.shuffle(&mut arms);
            trials.extend(arms.into_iter().map(|(arm, shares, name)| Trial {
                name: format!("launch-{launch}_{name}"),
                launch,
                arm,
                shares,
            }));
        }
        if self.shuffled {
            random.shuffle(&mut trials);
        }
        plan(self, trials)
    }

    fn trial(&self, plan: &Plan, trial: &Trial, level: f64, random: &mut Random) -> BTreeMap<usize, RankFile> {
        let means = self.means(trial);
        let mut shared = None;
        let mut files = BTreeMap::new();
        for (rank, mean) in means.into_iter().enumerate() {
            // ranks that exchange gradients are in step: one noise for all
            let factors = match trial.arm {
                Arm::Ddp => shared.get_or_insert_with(|| self.factors(level, random)).clone(),
                Arm::Solo | Arm::Together => self.factors(level, random),
            };
            files.insert(rank, rank_file(plan, trial, rank, &mean, &factors));
        }
        files
    }

    /// Mean phases of a step on each rank: forward, backward, exposed, optimizer, other, in seconds.
    fn means(&self, trial: &Trial) -> Vec<[f64; 5]> {
        let alone = |step_s: f64| {
            let [forward, backward, optimizer] = PARTS.map(|part| part * step_s);
            [forward, backward, 0.0, optimizer, step_s - forward - backward - optimizer]
        };
        if trial.arm == Arm::Solo {
            return vec![alone(self.solo_s[trial.shares[0]])];
        }
        let of_trial = |world: &&World| world.ranks == trial.shares.len();
        let world = *self.worlds.iter().find(of_trial).expect("a trial has as many shares as one of the worlds");
        let count = world.ranks as f64;
        let solo_rate: f64 = trial.shares.iter().map(|share| 1.0 / self.solo_s[*share]).sum();
        // rank 0 is the slow one: rates 1/slow + (N − 1)/fast = silicon · S, and N/slow = straggler · silicon · S
        let slow_s = count / (world.straggler * world.silicon * solo_rate);
        let fast_s = (count - 1.0) / (world.silicon * solo_rate - 1.0 / slow_s);
        let free_s = |rank: usize| if rank == 0 { slow_s } else { fast_s };
        if trial.arm == Arm::Together {
            return (0..world.ranks).map(|rank| alone(free_s(rank))).collect();
        }
        let step_s = count / (world.efficiency() * solo_rate);
        let lost_s = step_s - slow_s;
        let ddp = |rank: usize| {
            let [forward, backward, _, optimizer, other] = alone(if count > 1.0 { free_s(rank) } else { slow_s });
            let (backward, optimizer) = (backward + SLOWDOWN * lost_s, optimizer + OPTIMIZER * lost_s);
            let other = other + REMAINDER * lost_s;
            [forward, backward, step_s - forward - backward - optimizer - other, optimizer, other]
        };
        (0..world.ranks).map(ddp).collect()
    }

    /// The noise of one rank in one trial, step by step; 1 on average once warm.
    fn factors(&self, level: f64, random: &mut Random) -> Vec<f64> {
        let noise = self.noise;
        let fresh = (1.0 - noise.correlation * noise.correlation).sqrt();
        let mut wander = random.normal();
        (0..self.steps)
            .map(|step| {
                wander = noise.correlation * wander + fresh * random.normal();
                let warm = 1.0 + noise.warm_up.0 * (-(step as f64) / noise.warm_up.1.max(1e-9)).exp();
                let slow = if random.unit() < noise.outliers { 1.5 } else { 1.0 };
                level * warm * slow * (1.0 + noise.variation * wander).max(0.5)
            })
            .collect()
    }
}

/// Numbers from a seed.
pub(crate) struct Random(pub(crate) ChaCha8Rng);

impl Random {
    /// At least 0 and below 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    pub(crate) fn below(&mut self, count: usize) -> usize {
        (self.unit() * count as f64) as usize
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }

    /// Standard normal (Box and Muller, 1958).
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

fn rank_file(plan: &Plan, trial: &Trial, rank: usize, mean: &[f64; 5], factors: &[f64]) -> RankFile {
    let mut start_s = 0.0;
    let mut steps = Vec::with_capacity(factors.len());
    let mut buckets = Vec::new();
    for (index, factor) in factors.iter().enumerate() {
        let [forward, backward, exposed, optimizer, other] = mean.map(|phase| phase * factor);
        let step_s = forward + backward + exposed + optimizer + other;
        if trial.arm == Arm::Ddp && index % 10 == 5 {
            let computed = start_s + forward + backward;
            for bucket in 0..4 {
                let ready = start_s + forward + backward * (bucket + 1) as f64 / 4.0;
                let end = if bucket == 3 { computed + exposed } else { ready + backward / 8.0 };
                let [ready_s, start_s, end_s] = [ready, ready, end].map(Seconds);
                buckets.push(Bucket {
                    step: index,
                    index: bucket,
                    bytes: BUCKET,
                    ready_s,
                    start_s,
                    end_s,
                    collective: Collective::AllReduce,
                });
            }
        }
        steps.push(Step {
            index,
            tokens: Tokens(WORK),
            start_s: Seconds(start_s),
            step_s: Seconds(step_s),
            forward_s: Seconds(forward),
            backward_s: Seconds(backward),
            exposed_s: Seconds(exposed),
            optimizer_s: Seconds(optimizer),
            loss: 7.0 / (1.0 + 0.01 * index as f64),
            grad_norm: 1.0,
            checksum: None,
        });
        start_s += step_s;
    }
    let end = RunEnd {
        reason: EndReason::Completed,
        steps: steps.len(),
        parameters_sha256: Some("5a".repeat(32)),
        peak_memory_bytes: Bytes(100 << 20),
        stolen: Some(0.001),
    };
    RankFile { head: head(plan, trial, rank), steps, buckets, end: Some(end) }
}

fn head(plan: &Plan, trial: &Trial, rank: usize) -> RunHead {
    RunHead {
        schema: SCHEMA,
        rigscale: plan.rigscale.clone(),
        trial: trial.name.clone(),
        origin: Origin::Measured,
        device: plan.device,
        arm: trial.arm,
        launch: trial.launch,
        world: trial.shares.len(),
        rank,
        share: plan.shares[trial.shares[rank]].clone(),
        communicator: match trial.arm {
            Arm::Ddp if trial.shares.len() > 1 => "nccl".into(),
            Arm::Ddp => "solo".into(),
            Arm::Solo | Arm::Together => "none".into(),
        },
        started: jiff::Timestamp::UNIX_EPOCH,
        epoch_s: Seconds(0.0),
        config: plan.config.clone(),
        software: [("kernel".into(), "6.12".into())].into(),
        nccl: NcclSettings::default(),
        transport: None,
    }
}

fn plan(machine: &Machine, trials: Vec<Trial>) -> Plan {
    let shape = preset("llama-tiny").unwrap().shape;
    Plan {
        schema: SCHEMA,
        rigscale: env!("CARGO_PKG_VERSION").into(),
        created: jiff::Timestamp::UNIX_EPOCH,
        device: Device::Cuda,
        grade: Grade::Signed,
        target: 0.9,
        worlds: machine.worlds.iter().map(|world| world.ranks).collect(),
        skipped: Vec::new(),
        shares: (0..machine.solo_s.len())
            .map(|index| Share { index, cpus: vec![index], numa_node: None, gpu: None, threads: None })
            .collect(),
        config: config(shape, machine.steps),
        why: Vec::new(),
        gradient_bytes: Bytes(4 * BUCKET.0),
        flops_per_step: shape.flops_per_token(128) * WORK as f64,
        step_estimate_s: Seconds(machine.solo_s[0]),
        launches: machine.launches,
        extension: machine.extension,
        heating_steps: machine.heating,
        order_seed: machine.seed,
        trials,
        limits: Limits { meet_s: Seconds(60.0), step_s: Seconds(60.0), trial_s: Seconds(600.0), stop_s: Seconds(2.0) },
        nccl: NcclSettings::default(),
        share_gpu: false,
        fields: Vec::new(),
        tuned: None,
    }
}

fn config(shape: crate::model::Shape, steps: usize) -> TrainConfig {
    TrainConfig {
        model: "llama-tiny".into(),
        shape,
        batch: 8,
        context: 128,
        recompute: false,
        deterministic: false,
        accumulate: 1,
        steps,
        precision: Precision::F32,
        data: DataSource::Synthetic,
        seed: 1,
        learning_rate: 1e-3,
        weight_decay: 0.1,
        clip_norm: Some(1.0),
        bucket_bytes: BUCKET,
        first_bucket_bytes: BUCKET,
        reduce_dtype: None,
        zero: 0,
        bucket_events_every: 10,
        checksum_every: 0,
    }
}
