//! A prediction as the run folder that such a machine would leave: three arms, several launches, steps and buckets.

use std::collections::BTreeMap;

use crate::model::{MemoryDemand, MemoryPlan};
use crate::record::{
    Arm, Bucket, Collective, DataSource, Device, EndReason, Field, Finding, Grade, Limits, NcclSettings, Origin, Plan,
    RankFile, RunEnd, RunFiles, RunHead, SCHEMA, Share, Step, TrainConfig, Transport as Way, Trial,
};
use crate::stats::LogRatios;
use crate::units::{Seconds, Tokens};

use super::board::Board;
use super::forecast::{Forecast, Training};
use super::nccl::Transport;
use super::ring::{Exchange, P2p};
use super::step::{Framework, Overlap, StepTime};

/// Launches of each arm.
pub const LAUNCHES: u32 = 5;

/// A simulated run of more ranks is refused: it would be files that nobody reads.
pub const RANKS_MAX: usize = 128;

/// Steps of each trial: a multiple of the usual numbers of ranks, so that each of them is the slowest equally often.
const STEPS: usize = 48;

/// Buckets are written every so many steps.
const BUCKET_EVENTS_EVERY: usize = 12;

/// Expected values of five ordered draws from a normal distribution (Blom, "Statistical estimates and transformed
/// beta-variables", 1958), scaled to a standard deviation of 1, in an order without a trend.
const SCORES: [f64; LAUNCHES as usize] = [0.0, 1.303, -0.549, -1.303, 0.549];

/// Ends of a 95 % interval over those of a 90 % interval, under a normal distribution.
const TO_95: f64 = 1.960 / 1.645;

/// The widest scatter of the logarithm of the bus bandwidth over launches.
const SCATTER_MAX: f64 = 4.0;

/// What is simulated: one machine, one training, its forecasts by number of GPUs.
#[derive(Debug, Clone, Copy)]
pub struct Simulation<'a> {
    /// Name of the preset.
    pub model: &'a str,
    /// The training.
    pub training: &'a Training,
    /// How gradients travel.
    pub exchange: &'a Exchange,
    /// The machine with as many GPUs as each forecast has in a host, and the forecast; the largest last, which fills every
    /// slot that a smaller one does.
    pub worlds: &'a [(Board, Forecast)],
    /// What communication does to compute, as in the forecasts.
    pub overlap: Overlap,
    /// Efficiency that is wanted.
    pub target: f64,
    /// Time of the plan.
    pub created: jiff::Timestamp,
}

/// One world size, ready to be written.
struct World<'a> {
    forecast: &'a Forecast,
    /// GPUs of a host.
    gpus: usize,
    /// Shares in use, by rank.
    shares: Vec<usize>,
    /// The step of each launch.
    launches: Vec<StepTime>,
}

impl Simulation<'_> {
    /// The run. The geometric mean of its efficiencies is the forecast, and their 95 % interval is as wide as the
    /// forecast's: launches are the same machine with a faster or slower bus, so that their scatter is doubt about the
    /// model, not noise of a machine. Losses, gradient norms and parameters are not simulated.
    ///
    /// # Panics
    /// Without a world.
    #[must_use]
    pub fn run(&self) -> RunFiles {
        let (largest, _) = self.worlds.last().expect("a simulation has a world");
        let worlds: Vec<World<'_>> = self.worlds.iter().map(|(board, forecast)| self.world(board, forecast)).collect();
        let plan = self.plan(largest, &worlds);
        let trials = plan.trials.iter().map(|trial| (trial.name.clone(), self.trial(&plan, trial, &worlds))).collect();
        RunFiles {
            name: plan.fields[0].value.clone(),
            plan,
            findings: self.findings(),
            identity: Vec::new(),
            trials,
            gpus: BTreeMap::new(),
            altered: Vec::new(),
            launch_recorded: true,
        }
    }

    /// Hazards, each once, as findings that the analysis shows.
    fn findings(&self) -> Vec<Finding> {
        let mut findings: Vec<Finding> = Vec::new();
        for hazard in self.worlds.iter().flat_map(|(_, forecast)| &forecast.hazards) {
            if findings.iter().all(|finding| finding.code != hazard.code) {
                findings.push(hazard.finding());
            }
        }
        findings
    }

    fn hosts(&self) -> usize {
        self.exchange.hosts.max(1)
    }

    fn world<'a>(&self, board: &Board, forecast: &'a Forecast) -> World<'a> {
        let most = self.worlds.iter().map(|(board, _)| board.seats.len()).max().unwrap_or(1);
        let gpus = board.seats.len();
        let (largest, _) = self.worlds.last().expect("a simulation has a world");
        let place = |node: usize| largest.seats.iter().position(|seat| seat.node == node).unwrap_or(0);
        let places: Vec<usize> = board.seats.iter().map(|seat| place(seat.node)).collect();
        let shares = (0..self.hosts()).flat_map(|host| places.iter().map(move |seat| host * most + seat)).collect();
        World { forecast, gpus, shares, launches: scattered(forecast, &self.overlap) }
    }

    fn plan(&self, largest: &Board, worlds: &[World<'_>]) -> Plan {
        let training = self.training;
        let shares: Vec<Share> = (0..self.hosts())
            .flat_map(|host| largest.seats.iter().map(move |seat| (host, seat)))
            .enumerate()
            .map(|(index, (host, seat))| {
                let slot = &largest.nodes[seat.node].name;
                let gpu = if self.hosts() == 1 { slot.clone() } else { format!("host-{host}/{slot}") };
                Share { index, cpus: Vec::new(), numa_node: None, gpu: Some(gpu), threads: None }
            })
            .collect();
        let tokens = (training.batch * training.context * training.accumulate) as f64;
        Plan {
            schema: SCHEMA,
            rigscale: env!("CARGO_PKG_VERSION").into(),
            created: self.created,
            device: Device::Cuda,
            grade: Grade::Ungraded,
            target: self.target,
            worlds: worlds.iter().map(|world| world.shares.len()).collect(),
            skipped: Vec::new(),
            trials: trials(shares.len(), worlds),
            shares,
            config: self.config(),
            nccl: NcclSettings::default(),
            share_gpu: false,
            why: self.why(worlds),
            gradient_bytes: worlds[0].forecast.gradient_bytes,
            flops_per_step: training.shape.flops_per_token(training.context) * tokens,
            step_estimate_s: worlds[0].forecast.ideal,
            launches: LAUNCHES,
            extension: 0,
            heating_steps: 0,
            order_seed: 0,
            limits: Limits {
                meet_s: Seconds(60.0),
                step_s: Seconds(60.0),
                trial_s: Seconds(600.0),
                stop_s: Seconds(2.0),
            },
            fields: self.fields(largest),
            tuned: None,
        }
    }

    fn config(&self) -> TrainConfig {
        let training = self.training;
        TrainConfig {
            model: self.model.into(),
            shape: training.shape,
            batch: training.batch,
            context: training.context,
            accumulate: training.accumulate,
            recompute: training.recompute,
            deterministic: false,
            steps: STEPS,
            precision: training.precision,
            data: DataSource::Synthetic,
            seed: 0,
            learning_rate: 0.0,
            weight_decay: 0.0,
            clip_norm: None,
            bucket_bytes: training.bucket,
            first_bucket_bytes: training.first_bucket,
            reduce_dtype: training.reduced,
            zero: 0,
            bucket_events_every: BUCKET_EVENTS_EVERY,
            checksum_every: 0,
        }
    }

    fn why(&self, worlds: &[World<'_>]) -> Vec<String> {
        let mut why = vec![
            "Predicted: no hardware took part, and nothing was trained, so that no loss is known.".to_owned(),
            format!(
                "The {LAUNCHES} launches stand for the prediction's own doubt: each has a faster or slower bus, so that \
                 their interval is the predicted one. They are no repetitions of a measurement."
            ),
        ];
        let limited = worlds.iter().filter(|world| 1 < world.shares.len());
        why.extend(
            limited.map(|world| format!("Limit at {} GPUs: {}.", world.shares.len(), world.forecast.ring.limit)),
        );
        why
    }

    /// The platform first, which also names the run; then what the prediction assumed.
    fn fields(&self, board: &Board) -> Vec<Field> {
        let field = |key: &str, value: String| Field { key: key.into(), value };
        let mut fields = vec![
            field("platform", board.name.clone()),
            field("machine", board.title.clone()),
            field("card", board.seats[0].card.name.clone()),
        ];
        if self.training.framework != Framework::Rigscale {
            fields.push(field("framework", self.training.framework.name().to_owned()));
        }
        if self.exchange.p2p != P2p::Auto {
            fields.push(field("P2P", format!("{:?}", self.exchange.p2p).to_lowercase()));
        }
        if let (Some(network), true) = (self.exchange.network, 1 < self.hosts()) {
            let text = format!("{} hosts, {} each way, latency {}", self.hosts(), network.rate, network.latency);
            fields.push(field("network", text));
        }
        fields
    }

    fn trial(&self, plan: &Plan, trial: &Trial, worlds: &[World<'_>]) -> BTreeMap<usize, RankFile> {
        let own = |world: &&World<'_>| match trial.arm {
            Arm::Solo => world.shares.contains(&trial.shares[0]),
            _ => world.shares == trial.shares,
        };
        let world = worlds.iter().rev().find(own).expect("a trial belongs to a world");
        let ranks = 0..trial.shares.len();
        ranks.map(|rank| (rank, self.rank(plan, trial, rank, world))).collect()
    }

    fn rank(&self, plan: &Plan, trial: &Trial, rank: usize, world: &World<'_>) -> RankFile {
        let seat = |rank: usize| match trial.arm {
            Arm::Solo => world.shares.iter().position(|share| *share == trial.shares[0]).unwrap_or(0) % world.gpus,
            _ => rank % world.gpus,
        };
        let own = world.forecast.solo[seat(rank)] / world.forecast.time.alone;
        let together = &world.launches[trial.launch as usize - 1];
        let mut file =
            RankFile { head: self.head(plan, trial, rank, world), steps: Vec::new(), buckets: Vec::new(), end: None };
        let mut start = Seconds(0.0);
        for index in 0..STEPS {
            let jitter = if trial.arm == Arm::Solo { Seconds(0.0) } else { jitter(world, rank, index) };
            let step = self.step(world, trial, (index, start), own, jitter);
            if trial.arm == Arm::Ddp && index % BUCKET_EVENTS_EVERY == 0 {
                file.buckets.extend(buckets(world, together, &step, jitter));
            }
            start += step.step_s;
            file.steps.push(step);
        }
        let training = self.training;
        let demand = MemoryDemand {
            batch: training.batch,
            context: training.context,
            recompute: training.recompute,
            widens: false,
            sharers: 1,
        };
        file.end = Some(RunEnd {
            reason: EndReason::Completed,
            steps: STEPS,
            parameters_sha256: None,
            peak_memory_bytes: MemoryPlan::on_cuda(&training.shape, demand).total_bytes,
            stolen: Some(0.0),
        });
        file
    }

    /// One step of a rank whose card takes `own` times as long as the slowest, and `jitter` longer in this step.
    fn step(
        &self,
        world: &World<'_>,
        trial: &Trial,
        (index, start_s): (usize, Seconds),
        own: f64,
        jitter: Seconds,
    ) -> Step {
        let (work, training) = (&world.forecast.work, self.training);
        let micro_steps = work.accumulate as f64;
        let exchanged = trial.arm == Arm::Ddp && 1 < trial.shares.len();
        let time = exchanged.then(|| &world.launches[trial.launch as usize - 1]);
        let slowdown = time.map_or(Seconds(0.0), |time| time.slowdown);
        let forward_s = work.forward * micro_steps * own + jitter;
        let backward_s = work.backward * micro_steps * own + slowdown;
        let optimizer_s = work.optimizer * own;
        let busy = forward_s + backward_s + optimizer_s;
        let step_s = time.map_or(busy, |time| time.step);
        Step {
            index,
            tokens: Tokens((training.batch * training.context * training.accumulate) as u64),
            start_s,
            step_s,
            forward_s,
            backward_s,
            exposed_s: Seconds((step_s - busy).0.max(0.0)),
            optimizer_s,
            loss: 0.0,
            grad_norm: 0.0,
            checksum: None,
        }
    }

    fn head(&self, plan: &Plan, trial: &Trial, rank: usize, world: &World<'_>) -> RunHead {
        let ranks = trial.shares.len();
        let exchanged = trial.arm == Arm::Ddp && 1 < ranks;
        let communicator = match trial.arm {
            Arm::Ddp if exchanged => "nccl",
            Arm::Ddp => "solo",
            Arm::Solo | Arm::Together => "none",
        };
        let ring = &world.forecast.ring;
        let way = || Way {
            channels: Some(ring.graph.channels * 2),
            ring: (0..ranks).collect(),
            via: [((rank + 1) % ranks, words(ring.transports[rank % ring.transports.len()]).to_owned())].into(),
            search: None,
            environment: BTreeMap::new(),
        };
        RunHead {
            schema: SCHEMA,
            rigscale: plan.rigscale.clone(),
            trial: trial.name.clone(),
            origin: Origin::Simulated,
            device: plan.device,
            arm: trial.arm,
            launch: trial.launch,
            world: ranks,
            rank,
            share: plan.shares[trial.shares[rank]].clone(),
            communicator: communicator.into(),
            started: plan.created,
            epoch_s: Seconds(0.0),
            config: plan.config.clone(),
            software: [("nccl".to_owned(), self.exchange.nccl.to_string())].into(),
            nccl: plan.nccl.clone(),
            transport: exchanged.then(way),
        }
    }
}

/// A transport in the words of NCCL's log.
fn words(transport: Transport) -> &'static str {
    match transport {
        Transport::Nvlink | Transport::Peer => "P2P",
        Transport::Staged => "SHM",
        Transport::Network => "NET",
    }
}

/// Every trial of every launch: each share alone, then each world together and with gradients exchanged.
fn trials(shares: usize, worlds: &[World<'_>]) -> Vec<Trial> {
    let mut trials = Vec::new();
    for launch in 1..=LAUNCHES {
        let mut add = |arm, shares: &[usize], what: String| {
            trials.push(Trial { name: format!("launch-{launch}_{what}"), launch, arm, shares: shares.to_vec() });
        };
        (0..shares).for_each(|share| add(Arm::Solo, &[share], format!("solo-share-{share}")));
        for world in worlds {
            let ranks = world.shares.len();
            if 1 < ranks {
                add(Arm::Together, &world.shares, format!("together-{ranks}"));
            }
            add(Arm::Ddp, &world.shares, format!("ddp-{ranks}"));
        }
    }
    trials
}

/// How much longer than its mean a step of a rank takes. In each step one of the slowest cards is late by the predicted
/// straggling, in turn, and the others make up for it, so that no card is slower on average.
fn jitter(world: &World<'_>, rank: usize, step: usize) -> Seconds {
    let slowest = world.forecast.time.alone;
    let solo = |rank: usize| world.forecast.solo[rank % world.gpus];
    if solo(rank) < slowest {
        return Seconds(0.0);
    }
    let late = world.forecast.time.straggler;
    let slow: Vec<usize> = (0..world.shares.len()).filter(|rank| slowest <= solo(*rank)).collect();
    let place = slow.iter().position(|one| *one == rank);
    match place == Some(step % slow.len()) {
        true => late,
        false => late * (-1.0 / (slow.len() as f64 - 1.0)),
    }
}

/// The buckets of a step. They move when the last rank brings them, which is late by the predicted straggling.
fn buckets(world: &World<'_>, together: &StepTime, step: &Step, jitter: Seconds) -> Vec<Bucket> {
    let work = &world.forecast.work;
    let before = work.forward * work.accumulate as f64 + work.backward * (work.accumulate as f64 - 1.0);
    let last = step.start_s + before + world.forecast.time.straggler;
    let bucket = |(index, ([ready, start, end], bucket)): (usize, (&[Seconds; 3], &super::BucketWork))| {
        let (start_s, end_s) = (last + *start, last + *end);
        let ready = Seconds((step.start_s + before + jitter + *ready).0.min(start_s.0));
        let collective = Collective::AllReduce;
        Bucket { step: step.index, index, bytes: bucket.bytes, collective, ready_s: ready, start_s, end_s }
    };
    together.buckets.iter().zip(&work.buckets).enumerate().map(bucket).collect()
}

/// The step of each launch: the bus bandwidth scatters so that the efficiencies have the forecast's geometric mean and,
/// over launches, an interval as wide as the forecast's.
fn scattered(forecast: &Forecast, overlap: &Overlap) -> Vec<StepTime> {
    let efficiency = forecast.efficiency;
    let launches = |scatter: f64, shift: f64| -> Vec<StepTime> {
        let bus = |score: &f64| forecast.ring.at(forecast.ring.bus * (shift + scatter * score).exp());
        SCORES.iter().map(|score| forecast.work.step(&bus(score), overlap)).collect()
    };
    if forecast.world < 2 {
        return launches(0.0, 0.0);
    }
    let ratios =
        |steps: &[StepTime]| LogRatios::of(&steps.iter().map(|time| forecast.ideal / time.step).collect::<Vec<_>>());
    let centred = |scatter: f64| {
        let shift = root((-SCATTER_MAX, SCATTER_MAX), |shift| {
            ratios(&launches(scatter, shift)).estimate() - efficiency.estimate
        });
        launches(scatter, shift)
    };
    let low = efficiency.low.max(efficiency.estimate * 0.01);
    let wanted = (efficiency.high / low).ln() * TO_95;
    let width = |steps: &[StepTime]| ratios(steps).interval(0.95).map_or(0.0, |(low, high)| (high / low).ln());
    centred(root((0.0, SCATTER_MAX), |scatter| width(&centred(scatter)) - wanted))
}

/// Where a rising function crosses 0, by bisection; an end of the range where it does not.
fn root((mut low, mut high): (f64, f64), rising: impl Fn(f64) -> f64) -> f64 {
    for _ in 0..40 {
        let middle = f64::midpoint(low, high);
        if rising(middle) < 0.0 { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}
