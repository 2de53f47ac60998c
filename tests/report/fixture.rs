//! Analyses for tests of the report: rich, hostile, and bare.

use std::collections::BTreeMap;

use rigscale::model::preset;
use rigscale::record::{
    Analysis, Arm, Bucket, Collective, CommLoss, DataSource, Device, Distribution, Dropped, EnergySource, Field,
    Finding, Flag, GpuLoad, GpuUnderLoad, Grade, Interval, Lane, LaunchPoint, Origin, Outcome, Phases, Point,
    Precision, SCHEMA, Severity, Share, SkippedWorld, ThrottleShare, Timeline, TrainConfig, TrialLoad, Verdict,
};
use rigscale::topology::ThrottleReasons;
use rigscale::units::{Bytes, BytesPerSecond, Celsius, Hertz, Joules, Seconds, Tokens, TokensPerSecond, Watts};

fn around(estimate: f64, half: f64) -> Interval {
    Interval { estimate, low: estimate - half, high: estimate + half * 0.9 }
}

fn field(key: &str, value: &str) -> Field {
    Field { key: key.into(), value: value.into() }
}

/// Mean phases of a step of about 120 ms; `slow` stretches compute, `exposed_s` is added.
fn phases(slow: f64, exposed_s: f64) -> Phases {
    Phases {
        forward_s: Seconds(0.0361 * slow),
        backward_s: Seconds(0.0702 * slow),
        exposed_s: Seconds(exposed_s),
        optimizer_s: Seconds(0.0093 * slow),
        other_s: Seconds(0.0006),
    }
}

fn total(phases: &Phases) -> f64 {
    [phases.forward_s, phases.backward_s, phases.exposed_s, phases.optimizer_s, phases.other_s]
        .iter()
        .map(|time| time.0)
        .sum()
}

/// A skewed hill of 40 bins around a mean step, with a few late steps.
fn distribution(mean: f64, spread: f64, late: f64) -> Distribution {
    let quantiles_s =
        [-1.6, -1.1, -0.5, -0.1, 0.5, 1.5, late].map(|deviations: f64| Seconds(mean + spread * deviations));
    let (least, most) = (quantiles_s[0].0, quantiles_s[6].0);
    let count = |bin: usize| {
        let at = (least + (most - least) * (bin as f64 + 0.5) / 40.0 - mean) / spread;
        let tail = if 0.0 < at { 0.9 } else { 0.6 };
        (420.0 * (-(at / tail).powi(2) / 2.0).exp()).round() as usize
    };
    let mut bins: Vec<usize> = (0..40).map(count).collect();
    bins[39] = bins[39].max(1);
    Distribution { steps: bins.iter().sum(), quantiles_s, bins }
}

/// One world size: what each factor of the split is, and the half width of the interval of efficiency.
pub(crate) struct Split {
    pub(crate) world: usize,
    pub(crate) silicon: f64,
    pub(crate) straggler: f64,
    pub(crate) comm: f64,
    pub(crate) half: f64,
}

pub(crate) fn point(split: &Split, launches: u32) -> Point {
    let (world, n) = (split.world, split.world as f64);
    let efficiency = split.silicon * split.straggler * split.comm;
    let solo = 4266.0 * n;
    let alone = phases(1.0, 0.0);
    let beside = phases(1.0 / (split.silicon * split.straggler), 0.0);
    let mut reduced = beside;
    let extra = total(&beside) * (1.0 / split.comm - 1.0);
    reduced.exposed_s = Seconds(extra * 0.8);
    reduced.backward_s = Seconds(beside.backward_s.0 + extra * 0.17);
    let step = total(&beside) + extra;
    let launch = |launch: u32| {
        let off = 1.0 + (f64::from(launch) - f64::from(launches + 1) / 2.0) * split.half * 0.3;
        LaunchPoint {
            launch,
            efficiency: efficiency * off,
            silicon: split.silicon,
            straggler: split.straggler,
            comm: split.comm * off,
            ddp_rate: TokensPerSecond(solo * efficiency * off),
            solo_rate: TokensPerSecond(solo),
        }
    };
    Point {
        world,
        graded: 1 < world,
        efficiency: around(efficiency, split.half),
        bootstrap: around(efficiency, split.half * 0.93),
        silicon: around(split.silicon, 0.004),
        straggler: around(split.straggler, 0.003),
        jitter: around(1.0 - (1.0 - split.straggler) * 0.7, 0.002),
        comm: around(split.comm, split.half * 0.7),
        loss: CommLoss {
            total_s: Seconds(extra),
            exposed_s: Seconds(extra * 0.8),
            slowdown_s: Seconds(extra * 0.15),
            optimizer_s: Seconds(extra * 0.02),
            remainder_s: Seconds(extra * 0.03),
            remainder_share: extra * 0.03 / step,
        },
        solo_rate: TokensPerSecond(solo),
        together_rate: TokensPerSecond(solo * split.silicon),
        free_rate: TokensPerSecond(solo * split.silicon * split.straggler),
        ddp_rate: TokensPerSecond(solo * efficiency),
        samples_per_s: solo * efficiency / 256.0,
        step_s: Seconds(step),
        overlap: (1 < world).then_some(0.81),
        bus_bandwidth: (1 < world).then_some(BytesPerSecond(3.42e9)),
        peak_memory_bytes: Bytes(412 << 20),
        global_batch_tokens: 512 * world as u64,
        final_loss: Some(5.218),
        gpu_power_w: None,
        tokens_per_joule: None,
        launches: (1..=launches).map(launch).collect(),
        phases: BTreeMap::from([(Arm::Solo, alone), (Arm::Together, beside), (Arm::Ddp, reduced)]),
        distribution: BTreeMap::from([
            (Arm::Solo, distribution(total(&alone), 0.0018, 4.0)),
            (Arm::Together, distribution(total(&beside), 0.0027, 6.0)),
            (Arm::Ddp, distribution(step, 0.0034, 21.0)),
        ]),
    }
}

/// One step of `ranks` ranks: each bucket waits for the one before it.
pub(crate) fn timeline(ranks: usize, buckets: usize) -> Timeline {
    let lane = |rank: usize| {
        let start = 0.0011 * rank as f64;
        let mut phases = phases(1.03 + 0.01 * rank as f64, 0.0);
        let (backward, until) = (start + phases.forward_s.0, start + phases.forward_s.0 + phases.backward_s.0);
        let mut free = 0.0f64;
        let bucket = |index: usize| {
            let ready = backward + phases.backward_s.0 * (index as f64 + 0.6) / buckets as f64;
            let begin = ready.max(free) + 0.0004;
            let end = begin + if index % 3 == 2 { 0.0162 } else { 0.0107 };
            free = end;
            let (ready_s, start_s, end_s) = (Seconds(ready), Seconds(begin), Seconds(end));
            Bucket {
                step: 42,
                index,
                bytes: Bytes(8 << 20),
                ready_s,
                start_s,
                end_s,
                collective: Collective::AllReduce,
            }
        };
        let buckets: Vec<Bucket> = (0..buckets).map(bucket).collect();
        let last = buckets.last().map_or(until, |bucket| bucket.end_s.0);
        phases.exposed_s = Seconds((last - until).max(0.0));
        Lane { rank, start_s: Seconds(start), phases, buckets }
    };
    Timeline { trial: "launch-3_ddp-4".into(), step: 42, lanes: (0..ranks).map(lane).collect() }
}

fn config() -> TrainConfig {
    TrainConfig {
        model: "llama-15m".into(),
        shape: preset("llama-15m").expect("a preset").shape,
        batch: 2,
        context: 256,
        accumulate: 1,
        recompute: false,
        deterministic: false,
        steps: 240,
        precision: Precision::F32,
        data: DataSource::Synthetic,
        seed: 1,
        learning_rate: 0.003,
        weight_decay: 0.1,
        clip_norm: Some(1.0),
        bucket_bytes: Bytes(8 << 20),
        first_bucket_bytes: Bytes(1 << 20),
        reduce_dtype: None,
        zero: 0,
        bucket_events_every: 16,
        checksum_every: 0,
    }
}

fn findings() -> Vec<Finding> {
    let finding = |code: &str, severity, address: &str, seen: &str, expected: &str, remedy: &str| Finding {
        code: code.into(),
        severity,
        addresses: vec![address.into()],
        seen: seen.into(),
        expected: expected.into(),
        remedy: remedy.into(),
    };
    vec![
        finding(
            "pcie-narrow-link",
            Severity::Warning,
            "0000:41:00.0",
            "current_link_width is 8 under load",
            "16, the maximum of both ends",
            "Reseat the card, then check the riser and the slot's bifurcation in the BIOS.",
        ),
        finding(
            "governor-not-performance",
            Severity::Note,
            "node 0",
            "scaling_governor is powersave on 32 CPUs",
            "performance while qualifying",
            "cpupower frequency-set -g performance",
        ),
    ]
}

/// A run with everything in it, as a good CPU machine would give it.
pub(crate) fn rich() -> Analysis {
    let splits = [
        Split { world: 1, silicon: 1.0, straggler: 1.0, comm: 0.997, half: 0.004 },
        Split { world: 2, silicon: 0.991, straggler: 0.993, comm: 0.978, half: 0.008 },
        Split { world: 4, silicon: 0.978, straggler: 0.984, comm: 0.959, half: 0.012 },
    ];
    let share = |index: usize| Share {
        index,
        cpus: vec![index * 4, index * 4 + 1, index * 4 + 2, index * 4 + 3],
        numa_node: Some(index as u32 / 2),
        gpu: None,
        threads: None,
    };
    Analysis {
        schema: SCHEMA,
        rigscale: "0.1.0".into(),
        run: "2026-11-23T16-57-00Z_workstation-16c".into(),
        created: "2026-11-23T16:57:00Z".parse().expect("a time stamp"),
        origin: Origin::Measured,
        device: Device::Cpu,
        grade: Grade::CpuRanks,
        verdict: Verdict {
            outcome: Outcome::Pass,
            headline: "Keeps 0.923 of perfect scaling at 4 ranks, target 0.90.".into(),
            reasons: vec![
                "At 2 ranks the interval 0.954 to 0.970 lies above the target.".into(),
                "At 4 ranks the interval 0.911 to 0.934 lies above the target.".into(),
                "Most of the loss at 4 ranks is communication: 5.3 ms of a step of 126 ms, 80 % of it exposed.".into(),
            ],
            launches_needed: None,
        },
        target: 0.9,
        points: splits.iter().map(|split| point(split, 5)).collect(),
        skipped: vec![SkippedWorld { world: 8, why: "16 cores hold 4 shares of 4 cores".into() }],
        flags: vec![Flag {
            code: "stolen-time".into(),
            blocks: false,
            text: "a hypervisor took 1.1 % of the CPU time of rank 3 in launch 2".into(),
        }],
        findings: findings(),
        dropped: vec![
            Dropped { trial: "launch-1_ddp-4".into(), rank: None, steps: 31, why: "heating".into() },
            Dropped {
                trial: "launch-2_solo-share-0".into(),
                rank: Some(0),
                steps: 3,
                why: "before the change point".into(),
            },
        ],
        identity: vec![
            field("Machine", "Example WS-16, board rev 1.2, BIOS 3.07"),
            field("CPU", "16 cores, 2 NUMA nodes, 64.0 GiB"),
            field("Kernel", "6.12.41"),
            field("rustc", "1.91.0"),
        ],
        fields: vec![field("Build", "B-1042"), field("Order", "PO 77/3"), field("Operator", "A. Technician")],
        config: config(),
        why: vec!["llama-15m is the smallest preset whose step is long against a barrier on this machine.".into()],
        gradient_bytes: Bytes(61_200_000),
        flops_per_step: 4.7e10,
        shares: (0..4).map(share).collect(),
        timeline: Some(timeline(4, 8)),
        gpus: Vec::new(),
    }
}

/// The same machine with GPUs and a bad link: below the target, with blocking flags and faults.
pub(crate) fn failing() -> Analysis {
    let splits = [
        Split { world: 1, silicon: 1.0, straggler: 1.0, comm: 0.999, half: 0.002 },
        Split { world: 2, silicon: 0.99, straggler: 0.99, comm: 0.915, half: 0.009 },
        Split { world: 4, silicon: 0.97, straggler: 0.98, comm: 0.86, half: 0.021 },
        Split { world: 8, silicon: 0.95, straggler: 0.96, comm: 0.80, half: 0.030 },
    ];
    let mut run = rich();
    run.run = "2026-11-24T09-12-00Z_workstation-8gpu".into();
    run.device = Device::Cuda;
    run.grade = Grade::Provisional;
    run.points = splits.iter().map(|split| point(split, 3)).collect();
    run.verdict.outcome = Outcome::Fail;
    run.verdict.headline = "Keeps 0.730 of perfect scaling at 8 GPUs, target 0.90.".into();
    run.flags.push(Flag { code: "throttling".into(), blocks: true, text: "power cap on 0000:41:00.0 for 12 s".into() });
    run.skipped[0].world = 16;
    run.findings[0].severity = Severity::Fault;
    run.shares.iter_mut().for_each(|share| share.gpu = Some(format!("0000:{:x}1:00.0", share.index + 1)));
    run.timeline = Some(timeline(2, 4));
    run.gpus = gpus();
    for point in run.points.iter_mut().skip(1) {
        point.gpu_power_w = Some(Watts(432.1 * point.world as f64));
        point.tokens_per_joule = Some(point.ddp_rate.0 / (432.1 * point.world as f64));
    }
    run
}

/// A card that told everything and is held, and one that told nothing.
fn gpus() -> Vec<GpuUnderLoad> {
    let held = |reason: &str, share| ThrottleShare { reason: reason.into(), share };
    let told = GpuLoad {
        window_s: Seconds(41.5),
        samples: 415,
        tokens: Tokens(177_000),
        power_w: Some(Watts(432.1)),
        energy_j: Some(Joules(432.1 * 41.5)),
        energy_from: Some(EnergySource::Counter),
        tokens_per_joule: Some(177_000.0 / (432.1 * 41.5)),
        sm_clock_hz: Some(Hertz(2.31e9)),
        sm_clock_min_hz: Some(Hertz(1.095e9)),
        temperature_max_c: Some(Celsius(88.0)),
        throttle_reasons: Some(ThrottleReasons::POWER_CAP | ThrottleReasons::THERMAL),
        throttle: vec![held("power cap", 0.93), held("thermal slowdown by software", 0.121)],
        slowdown_share: Some(0.121),
        pcie_gen_min: Some(4),
        pcie_width_min: Some(8),
        pcie_replays: Some(12),
        memory_max_bytes: Some(Bytes(61 << 30)),
    };
    let calm = GpuLoad {
        energy_from: Some(EnergySource::Power),
        throttle_reasons: Some(ThrottleReasons::NONE),
        throttle: Vec::new(),
        pcie_replays: Some(0),
        ..told.clone()
    };
    let silent = GpuLoad { window_s: told.window_s, tokens: told.tokens, ..GpuLoad::default() };
    let row = |arm, gpu: &str, load: GpuLoad| GpuUnderLoad {
        world: 2,
        arm,
        gpu: gpu.into(),
        trials: vec![TrialLoad { trial: "launch-1_ddp-2".into(), load: load.clone() }],
        load,
    };
    let [first, second] = ["0000:11:00.0", "0000:21:00.0"];
    vec![row(Arm::Together, first, calm), row(Arm::Ddp, first, told), row(Arm::Ddp, second, silent)]
}

/// Nothing was measured: every list is empty.
pub(crate) fn empty() -> Analysis {
    let mut run = rich();
    run.verdict = Verdict {
        outcome: Outcome::Hang,
        headline: "Rank 1 made no step for 60 s.".into(),
        reasons: vec![],
        launches_needed: None,
    };
    run.points.clear();
    run.skipped.clear();
    run.flags.clear();
    run.findings.clear();
    run.dropped.clear();
    run.identity.clear();
    run.fields.clear();
    run.why.clear();
    run.shares.clear();
    run.timeline = None;
    run
}

/// One share, one launch, nothing to grade, a step of no spread.
pub(crate) fn bare() -> Analysis {
    let mut run = empty();
    let mut only = point(&Split { world: 1, silicon: 1.0, straggler: 1.0, comm: 1.0, half: 0.0 }, 1);
    for times in only.distribution.values_mut() {
        *times = Distribution { steps: 1, quantiles_s: [Seconds(0.1162); 7], bins: vec![1] };
    }
    run.points = vec![only];
    run.verdict.outcome = Outcome::NotGraded;
    run.verdict.headline = "One share: nothing can be graded.".into();
    run
}

/// Text that is markup in one format or another, steers a terminal, and never ends.
pub(crate) const HOSTILE: &str = "<script>alert('x')</script>\"&amp;]]>|`*_[a](http://example.org)\u{1b}[2J\u{202e}\0\
     é漢字\nhttp://example.org/a_very_long_word_without_any_space_in_it_that_goes_on_and_on_and_on_and_on_and_on";

/// The failing run with hostile text wherever an analysis holds text.
pub(crate) fn hostile() -> Analysis {
    let text = || HOSTILE.to_owned();
    let mut run = failing();
    run.rigscale = text();
    run.run = text();
    run.verdict.headline = text();
    run.verdict.reasons = vec![text(), text()];
    run.skipped[0].why = text();
    run.flags.iter_mut().for_each(|flag| (flag.code, flag.text) = (text(), text()));
    for finding in &mut run.findings {
        finding.addresses = vec![text()];
        (finding.code, finding.seen, finding.expected, finding.remedy) = (text(), text(), text(), text());
    }
    run.dropped.iter_mut().for_each(|dropped| (dropped.trial, dropped.why) = (text(), text()));
    run.identity.iter_mut().chain(&mut run.fields).for_each(|line| (line.key, line.value) = (text(), text()));
    run.config.model = text();
    run.config.data = DataSource::File { path: text(), token_bytes: 2 };
    run.why = vec![text()];
    run.shares.iter_mut().for_each(|share| share.gpu = Some(text()));
    for row in &mut run.gpus {
        row.gpu = text();
        row.load.throttle.iter_mut().for_each(|held| held.reason = text());
    }
    if let Some(timeline) = &mut run.timeline {
        timeline.trial = text();
    }
    run
}
