//! What the analysis must say about runs of known machines.

use super::synthetic::{BUCKET, Machine, Noise, OPTIMIZER, PARTS, REMAINDER, SLOWDOWN, WORK, World};
use super::{AnalyzeError, analyze};
use crate::record::{
    Analysis, Arm, Bucket, Collective, Device, EndReason, Finding, Grade, Interval, Origin, Outcome, RankFile,
    RunFiles, RunHead, Severity,
};

const ONE: World = World { ranks: 1, silicon: 1.0, straggler: 1.0, comm: 0.99 };
const TWO: World = World { ranks: 2, silicon: 0.98, straggler: 0.985, comm: 0.97 };
const FOUR: World = World { ranks: 4, silicon: 0.96, straggler: 0.97, comm: 0.99 };

/// Noise of a well-kept machine.
const CALM: Noise = Noise {
    variation: 0.002,
    correlation: 0.5,
    scatter: 0.002,
    drift: 0.01,
    early: false,
    warm_up: (0.3, 2.0),
    outliers: 0.005,
};

fn calm(worlds: &[World]) -> RunFiles {
    Machine { noise: CALM, ..Machine::quiet(worlds) }.run()
}

/// The same run on CPU ranks.
fn on_cpu(mut files: RunFiles) -> RunFiles {
    (files.plan.device, files.plan.grade) = (Device::Cpu, Grade::CpuRanks);
    heads(&mut files, |head| head.device = Device::Cpu);
    files
}

fn heads(files: &mut RunFiles, change: fn(&mut RunHead)) {
    files.trials.values_mut().flat_map(|ranks| ranks.values_mut()).for_each(|file| change(&mut file.head));
}

/// Each trial ends after so many steps, and so the plan wanted.
fn shorten(files: &mut RunFiles, steps: usize) {
    files.plan.config.steps = steps;
    for file in files.trials.values_mut().flat_map(|ranks| ranks.values_mut()) {
        file.head.config.steps = steps;
        file.steps.truncate(steps);
        file.end.as_mut().unwrap().steps = steps;
    }
}

fn close(found: f64, truth: f64, relative: f64) -> bool {
    (found - truth).abs() <= relative * truth.abs()
}

fn codes(analysis: &Analysis) -> Vec<&str> {
    analysis.flags.iter().map(|flag| flag.code.as_str()).collect()
}

fn finding(code: &str, severity: Severity) -> Finding {
    let [seen, expected, remedy] = ["rank 1 of launch-2_ddp-2 is gone", "two ranks", "look at it"].map(String::from);
    Finding { code: code.into(), severity, addresses: Vec::new(), seen, expected, remedy }
}

/// A rank file by trial and rank.
fn file<'a>(files: &'a mut RunFiles, trial: &str, rank: usize) -> &'a mut RankFile {
    files.trials.get_mut(trial).unwrap().get_mut(&rank).unwrap()
}

#[test]
fn without_noise_the_split_is_recovered_exactly() {
    let analysis = analyze(&Machine::quiet(&[ONE, TWO, FOUR]).run()).unwrap();
    assert_eq!(codes(&analysis), Vec::<&str>::new());
    assert_eq!(
        analysis.points.iter().map(|point| (point.world, point.graded)).collect::<Vec<_>>(),
        [(1, false), (2, true), (4, true)]
    );
    for (point, world) in analysis.points.iter().zip([ONE, TWO, FOUR]) {
        for (found, truth) in [
            (point.efficiency, world.efficiency()),
            (point.silicon, world.silicon),
            (point.straggler, world.straggler),
            (point.jitter, 1.0),
            (point.comm, world.comm),
        ] {
            assert!(close(found.estimate, truth, 1e-9), "N {}: {found:?} for {truth}", world.ranks);
            assert!(close(found.low, truth, 1e-6) && close(found.high, truth, 1e-6), "{found:?}");
        }
        assert_eq!(point.launches.len(), 5);
        assert_eq!(point.global_batch_tokens, WORK * world.ranks as u64);
        assert!(close(point.ddp_rate.0 / point.solo_rate.0, world.efficiency(), 1e-9));
        assert!(close(point.samples_per_s, point.ddp_rate.0 / 128.0, 1e-12));
    }
}

#[test]
fn factors_multiply_to_the_efficiency_under_noise() {
    let machine = Machine::quiet(&[TWO, FOUR]);
    let wild = Noise { variation: 0.03, correlation: 0.8, scatter: 0.015, ..CALM };
    for seed in 0..20 {
        let analysis = analyze(&Machine { noise: wild, seed, ..machine.clone() }.run()).unwrap();
        for point in &analysis.points {
            let product = point.silicon.estimate * point.straggler.estimate * point.comm.estimate;
            assert!(close(product, point.efficiency.estimate, 1e-12), "seed {seed}");
            assert!(point.jitter.estimate <= 1.0 && point.straggler.estimate <= point.jitter.estimate + 0.01);
            for launch in &point.launches {
                assert!(close(launch.silicon * launch.straggler * launch.comm, launch.efficiency, 1e-12));
            }
            let loss = point.loss;
            let sum = loss.exposed_s + loss.slowdown_s + loss.optimizer_s + loss.remainder_s;
            assert!((sum - loss.total_s).0.abs() < 1e-15, "{loss:?}");
            assert!(close(1.0 - loss.total_s / point.step_s, point.comm.estimate, 1e-12), "seed {seed}");
        }
    }
}

#[test]
fn the_loss_by_communication_is_explained() {
    let analysis = analyze(&Machine::quiet(&[ONE, TWO]).run()).unwrap();
    for point in &analysis.points {
        let loss = point.loss;
        let total = point.step_s.0 * (1.0 - point.comm.estimate);
        assert!(close(loss.total_s.0, total, 1e-9), "{loss:?}");
        assert!(close(loss.slowdown_s.0, SLOWDOWN * total, 1e-9), "{loss:?}");
        assert!(close(loss.optimizer_s.0, OPTIMIZER * total, 1e-9), "{loss:?}");
        assert!(close(loss.exposed_s.0, (1.0 - SLOWDOWN - OPTIMIZER - REMAINDER) * total, 1e-9), "{loss:?}");
        assert!(close(loss.remainder_s.0, REMAINDER * total, 1e-6), "{loss:?}");
        assert!(close(loss.remainder_share, loss.remainder_s.0 / point.step_s.0, 1e-12));
    }
}

#[test]
fn jitter_is_told_from_a_slow_rank() {
    let even = World { ranks: 2, silicon: 1.0, straggler: 1.0, comm: 1.0 };
    let mut files = Machine { heating: 0, ..Machine::quiet(&[even]) }.run();
    for (name, ranks) in &mut files.trials {
        if name.contains("together") {
            // every other step one rank takes a tenth longer, in turns: equal means, slowest 1.1 each time
            for (rank, file) in ranks {
                for step in &mut file.steps {
                    let slow = if (step.index + rank) % 2 == 0 { 1.1 } else { 1.0 };
                    step.step_s = step.step_s * slow;
                }
            }
        }
    }
    let point = &analyze(&files).unwrap().points[0];
    let slowest = 1.1 / 1.05;
    assert!(close(point.jitter.estimate, 1.0 / slowest, 0.01), "{:?}", point.jitter);
    assert!(close(point.straggler.estimate, point.jitter.estimate, 0.01), "{:?}", point.straggler);
}

#[test]
fn the_common_window_leaves_out_what_a_fast_rank_does_alone() {
    let slow = World { straggler: 0.8, silicon: 0.9, ..TWO };
    let analysis = analyze(&Machine::quiet(&[slow]).run()).unwrap();
    let point = &analysis.points[0];
    assert!(close(point.straggler.estimate, 0.8, 1e-6), "{:?}", point.straggler);
    // the fast rank is done early: the slow one's last steps do not count, nor the fast one's while the other is not
    // yet warm
    let alone: Vec<_> = analysis.dropped.iter().filter(|dropped| dropped.why.contains("in which all ranks")).collect();
    let of = |rank| alone.iter().filter(move |dropped| dropped.rank == Some(rank));
    assert_eq!((of(0).count(), of(1).count()), (5, 5), "{alone:?}");
    assert!(of(0).all(|dropped| dropped.steps > 10) && of(1).all(|dropped| dropped.steps < 5), "{alone:?}");
    let heating: usize =
        analysis.dropped.iter().filter(|dropped| dropped.why.contains("heating")).map(|d| d.steps).sum();
    assert_eq!(heating, 5 * 4 * (2 + 2 + 2));
}

#[test]
fn buckets_give_overlap_bandwidth_and_a_timeline() {
    let even = World { ranks: 2, silicon: 1.0, straggler: 1.0, comm: 0.9 };
    let machine = Machine { solo_s: vec![0.1; 2], ..Machine::quiet(&[even]) };
    let analysis = analyze(&machine.run()).unwrap();
    let point = &analysis.points[0];
    let lost = 0.1 / 0.9 - 0.1;
    let backward = PARTS[1] * 0.1 + SLOWDOWN * lost;
    let exposed = (1.0 - SLOWDOWN - OPTIMIZER - REMAINDER) * lost;
    let busy = 3.0 * backward / 8.0 + exposed;
    assert!(close(point.overlap.unwrap(), 3.0 * backward / 8.0 / busy, 1e-9), "{:?}", point.overlap);
    let bandwidth = 4.0 * BUCKET.0 as f64 / busy; // 2(N − 1)/N is 1 at N = 2
    assert!(close(point.bus_bandwidth.unwrap().0, bandwidth, 1e-9), "{:?}", point.bus_bandwidth);
    let timeline = analysis.timeline.unwrap();
    assert!(timeline.trial.ends_with("ddp-2") && (15..50).contains(&timeline.step), "{}", timeline.step);
    assert_eq!(timeline.lanes.len(), 2);
    assert!(timeline.lanes.iter().all(|lane| lane.buckets.len() == 4 && lane.start_s.0.abs() < 0.01));
    let phases = point.phases[&Arm::Ddp];
    assert!(close(phases.exposed_s.0, exposed, 1e-9) && close(phases.backward_s.0, backward, 1e-9));
    let distribution = &point.distribution[&Arm::Solo];
    assert_eq!((distribution.steps, distribution.bins.len()), (5 * 2 * 56, 40));
    assert_eq!(distribution.bins.iter().sum::<usize>(), distribution.steps);
}

#[test]
fn verdicts_follow_the_bounds() {
    let with = |comm| analyze(&calm(&[World { comm, ..TWO }])).unwrap().verdict;
    let pass = with(0.99);
    assert_eq!(pass.outcome, Outcome::Pass, "{pass:?}");
    assert!(pass.headline.starts_with("pass, at least 0.9: 0.9"), "{}", pass.headline);
    let fail = with(0.85);
    assert_eq!(fail.outcome, Outcome::Fail, "{fail:?}");
    assert!(fail.headline.starts_with("below 0.9: 0.8"), "{}", fail.headline);
    let open = with(0.9325);
    assert_eq!(open.outcome, Outcome::Inconclusive, "{open:?}");
    assert!(open.reasons.iter().any(|reason| reason.contains("0.9 lies inside")), "{:?}", open.reasons);
    assert!(open.launches_needed.is_none_or(|count| count > 0));
}

#[test]
fn one_world_size_below_fails_and_all_must_reach_to_pass() {
    let good = World { comm: 0.99, ..TWO };
    let bad = World { comm: 0.9, ..FOUR };
    let both = analyze(&calm(&[good, bad])).unwrap().verdict;
    assert_eq!(both.outcome, Outcome::Fail, "{both:?}");
    assert!(both.headline.contains("4 GPUs") && !both.headline.contains("2 GPUs"), "{}", both.headline);
    assert!(both.reasons.iter().any(|reason| reason.contains("corrected for 2 world sizes")), "{:?}", both.reasons);
}

#[test]
fn launches_that_would_settle_are_named() {
    let wide = Noise { scatter: 0.01, ..CALM };
    let near = World { ranks: 2, silicon: 1.0, straggler: 1.0, comm: 0.908 };
    let files = Machine { noise: wide, seed: 3, ..Machine::quiet(&[near]) }.run();
    let verdict = analyze(&files).unwrap().verdict;
    assert_eq!(verdict.outcome, Outcome::Inconclusive, "{verdict:?}");
    let more = verdict.launches_needed.unwrap();
    assert!((1..=200).contains(&more), "{more}");
    assert!(!verdict.reasons.iter().any(|reason| reason.contains("would not settle")), "{:?}", verdict.reasons);
}

#[test]
fn an_announced_extension_widens_the_interval() {
    let width = |extension| {
        let files = Machine { noise: CALM, extension, ..Machine::quiet(&[TWO]) }.run();
        let analysis = analyze(&files).unwrap();
        let Interval { low, high, .. } = analysis.points[0].efficiency;
        (high.ln() - low.ln(), analysis.verdict.reasons.iter().any(|reason| reason.contains("97.5 %")))
    };
    let (plain, extended) = (width(0), width(3));
    assert!(close(extended.0 / plain.0, 3.495_406 / 2.776_445, 1e-4), "{plain:?} {extended:?}");
    assert!(!plain.1 && extended.1);
}

#[test]
fn titles_stand_in_the_headline() {
    let mut files = calm(&[TWO]);
    files.plan.grade = Grade::Provisional;
    assert!(analyze(&files).unwrap().verdict.headline.starts_with("Provisional: "));
    // three launches are no qualification to sign
    let short = Machine { noise: CALM, launches: 3, ..Machine::quiet(&[TWO]) }.run();
    let analysis = analyze(&short).unwrap();
    assert!(short.plan.grade == Grade::Signed && analysis.grade == Grade::Provisional);
    assert!(analysis.verdict.headline.starts_with("Provisional: "), "{}", analysis.verdict.headline);
    // whatever the plan calls it: CPU ranks are CPU ranks
    for grade in [Grade::CpuRanks, Grade::Signed, Grade::Provisional] {
        let mut files = on_cpu(calm(&[World { comm: 0.99, ..TWO }]));
        files.plan.grade = grade;
        let verdict = analyze(&files).unwrap().verdict;
        assert_eq!(verdict.outcome, Outcome::Pass);
        let headline = verdict.headline;
        assert!(headline.starts_with("CPU ranks: says nothing about GPUs; "), "{headline}");
        assert!(!headline.contains("2 GPUs"), "{headline}");
    }
}

#[test]
fn what_is_no_qualification_is_not_graded() {
    let mut ungraded = calm(&[TWO]);
    ungraded.plan.grade = Grade::Ungraded;
    let mut shared = calm(&[TWO]);
    file(&mut shared, "launch-3_ddp-2", 1).head.origin = Origin::SharedGpu;
    for files in [ungraded, shared, calm(&[ONE])] {
        let analysis = analyze(&files).unwrap();
        assert_eq!(analysis.verdict.outcome, Outcome::NotGraded, "{:?}", analysis.verdict);
        assert!(analysis.points.iter().all(|point| !point.graded));
    }
}

#[test]
fn accidents_come_before_judgements_in_the_order_of_exit_codes() {
    let hang = finding("hang-in-step", Severity::Fault);
    let died = finding("rank-died", Severity::Fault);
    let interrupted = finding("interrupted", Severity::Warning);
    let note = finding("pcie-note", Severity::Warning);
    let rows: &[(&[&Finding], Outcome)] = &[
        (&[&died, &hang], Outcome::Hang),
        (&[&interrupted, &died], Outcome::Fault),
        (&[&interrupted], Outcome::Interrupted),
        (&[&note], Outcome::Pass),
    ];
    for (findings, outcome) in rows {
        let mut files = calm(&[World { comm: 0.99, ..TWO }]);
        files.findings = findings.iter().map(|finding| (*finding).clone()).collect();
        let analysis = analyze(&files).unwrap();
        assert_eq!(analysis.verdict.outcome, *outcome, "{:?}", analysis.verdict);
        assert!(analysis.findings.is_sorted_by_key(|finding| finding.severity));
    }
    let mut stopped = calm(&[TWO]);
    file(&mut stopped, "launch-5_ddp-2", 0).end.as_mut().unwrap().reason = EndReason::Interrupted;
    assert_eq!(analyze(&stopped).unwrap().verdict.outcome, Outcome::Interrupted);
}

#[test]
fn ranks_with_different_parameters_are_a_fault() {
    let mut files = calm(&[TWO]);
    file(&mut files, "launch-2_ddp-2", 1).end.as_mut().unwrap().parameters_sha256 = Some("00".repeat(32));
    let analysis = analyze(&files).unwrap();
    assert_eq!(analysis.verdict.outcome, Outcome::Fault);
    assert!(codes(&analysis).contains(&"not-synchronised"));
    // ranks that exchange nothing may differ
    let mut files = calm(&[TWO]);
    file(&mut files, "launch-2_together-2", 1).end.as_mut().unwrap().parameters_sha256 = Some("00".repeat(32));
    file(&mut files, "launch-2_together-2", 1).steps[7].grad_norm = 2.0;
    assert!(!codes(&analyze(&files).unwrap()).contains(&"not-synchronised"));
    // an interruption may have cut a sum
    let mut files = calm(&[TWO]);
    let end = file(&mut files, "launch-2_ddp-2", 1).end.as_mut().unwrap();
    (end.parameters_sha256, end.reason) = (Some("00".repeat(32)), EndReason::Interrupted);
    assert!(!codes(&analyze(&files).unwrap()).contains(&"not-synchronised"));
}

#[test]
fn ranks_that_summed_different_gradients_in_one_step_are_a_fault() {
    let mut files = calm(&[TWO]);
    file(&mut files, "launch-2_ddp-2", 1).steps[7].grad_norm *= 1.0 + 1e-6;
    let analysis = analyze(&files).unwrap();
    assert_eq!(analysis.verdict.outcome, Outcome::Fault);
    let flag = analysis.flags.iter().find(|flag| flag.code == "not-synchronised").unwrap();
    assert!(flag.text.contains("launch-2_ddp-2") && flag.text.contains("step 7"), "{}", flag.text);
    // cards of different size add in different orders
    let mut files = calm(&[TWO]);
    file(&mut files, "launch-2_ddp-2", 1).steps[7].grad_norm *= 1.0 + 1e-12;
    assert!(!codes(&analyze(&files).unwrap()).contains(&"not-synchronised"));
}

#[test]
fn ranks_that_held_different_parameters_after_a_step_are_a_fault_with_the_first() {
    let mut files = calm(&[TWO]);
    for (rank, late) in [(0, "11"), (1, "22")] {
        let steps = &mut file(&mut files, "launch-2_ddp-2", rank).steps;
        for (step, checksum) in [(4, "00"), (9, late), (14, late)] {
            steps[step].checksum = Some(checksum.repeat(8));
        }
    }
    let analysis = analyze(&files).unwrap();
    assert_eq!(analysis.verdict.outcome, Outcome::Fault);
    let flag = analysis.flags.iter().find(|flag| flag.code == "not-synchronised").unwrap();
    assert_eq!(flag.text, "the ranks of launch-2_ddp-2 held different parameters, first seen after step 9");
    // where one of them took none there is nothing to compare
    file(&mut files, "launch-2_ddp-2", 1).steps.iter_mut().for_each(|step| step.checksum = None);
    assert!(!codes(&analyze(&files).unwrap()).contains(&"not-synchronised"));
}

#[test]
fn weights_that_are_gathered_beside_the_next_forward_pass_are_hidden_and_cross_the_bus_once() {
    let mut files = calm(&[TWO]);
    let bandwidth = |files: &RunFiles| analyze(files).unwrap().points.last().unwrap().bus_bandwidth.unwrap().0;
    let overlap = |files: &RunFiles| analyze(files).unwrap().points.last().unwrap().overlap.unwrap();
    let (whole_bandwidth, whole_overlap) = (bandwidth(&files), overlap(&files));
    for file in files.trials.values_mut().flat_map(|ranks| ranks.values_mut()) {
        let RankFile { steps, buckets, .. } = file;
        let gathers: Vec<Bucket> = buckets
            .iter_mut()
            .map(|bucket| {
                bucket.collective = Collective::ReduceScatter;
                let end = steps[bucket.step].start_s + steps[bucket.step].step_s;
                let until = end + (bucket.end_s - bucket.start_s);
                Bucket { ready_s: end, start_s: end, end_s: until, collective: Collective::AllGather, ..bucket.clone() }
            })
            .collect();
        buckets.extend(gathers);
    }
    assert!(bandwidth(&files) < whole_bandwidth, "a sum that is scattered moves half");
    assert!(whole_overlap < overlap(&files), "what runs beside the next step is hidden");
}

/// Each row: the code of the flag, whether it blocks, and what makes it.
type Row = (&'static str, bool, fn(&mut RunFiles));

const SPOILT: &[Row] = &[
    ("missing-trial", true, |files| drop(files.trials.remove("launch-1_ddp-2"))),
    ("missing-rank", true, |files| drop(files.trials.get_mut("launch-1_ddp-2").unwrap().remove(&1))),
    ("missing-end", true, |files| file(files, "launch-1_ddp-2", 1).end = None),
    ("ended-early", true, |files| {
        file(files, "launch-1_ddp-2", 1).end.as_mut().unwrap().reason = EndReason::Stopped;
    }),
    ("steps-missing", true, |files| file(files, "launch-1_ddp-2", 1).steps.truncate(59)),
    ("short-run", true, |files| shorten(files, 8)),
    ("short-run", true, |files| shorten(files, 13)),
    ("unsettled", true, |files| {
        for step in &mut file(files, "launch-1_solo-share-0", 0).steps {
            step.step_s = step.step_s * (1.0 + 0.02 * step.index as f64);
        }
    }),
    ("stolen-time", true, |files| {
        file(files, "launch-1_solo-share-0", 0).end.as_mut().unwrap().stolen = Some(0.05);
    }),
    ("stolen-time-unknown", false, |files| {
        file(files, "launch-1_solo-share-0", 0).end.as_mut().unwrap().stolen = None;
    }),
    ("stolen-time-unknown", true, |files| {
        *files = on_cpu(files.clone());
        file(files, "launch-1_solo-share-0", 0).end.as_mut().unwrap().stolen = None;
    }),
    ("cpu-quota", true, |files| {
        *files = on_cpu(files.clone());
        files.findings = vec![finding("cpu-quota", Severity::Warning)];
    }),
    ("altered", true, |files| files.altered = ["a", "b", "c", "d", "e"].map(String::from).into()),
    ("launch-unrecorded", true, |files| files.launch_recorded = false),
    ("superlinear", true, |files| {
        for (_, ranks) in files.trials.iter_mut().filter(|(name, _)| name.contains("ddp-2")) {
            for step in ranks.values_mut().flat_map(|file| &mut file.steps) {
                step.step_s = step.step_s * 0.8;
            }
        }
    }),
    ("remainder", false, |files| {
        for (_, ranks) in files.trials.iter_mut().filter(|(name, _)| name.contains("ddp-2")) {
            for step in ranks.values_mut().flat_map(|file| &mut file.steps) {
                step.step_s = step.step_s * 1.04;
            }
        }
    }),
    ("bootstrap-disagrees", false, |files| {
        // steps vary wildly, launches not at all
        for (launch, step) in (1..=5).flat_map(|launch| (0..60).map(move |step| (launch, step))) {
            for share in 0..2 {
                let solo = &mut file(files, &format!("launch-{launch}_solo-share-{share}"), 0).steps[step];
                solo.step_s.0 = 0.1;
            }
            for rank in 0..2 {
                let ddp = &mut file(files, &format!("launch-{launch}_ddp-2"), rank).steps[step];
                ddp.step_s.0 = if step % 7 < 2 { 0.15 } else { 0.1 };
            }
        }
    }),
    ("unequal-hosts", true, |files| {
        file(files, "launch-1_ddp-2", 1).head.software.insert("kernel".into(), "6.13".into());
    }),
    ("unequal-hosts", true, |files| file(files, "launch-1_ddp-2", 1).head.rigscale = "0.0.9".into()),
    ("unequal-hosts", true, |files| file(files, "launch-1_ddp-2", 1).head.communicator = "shm".into()),
    ("unequal-device", true, |files| heads(files, |head| head.device = Device::Cpu)),
    ("unequal-training", true, |files| file(files, "launch-1_ddp-2", 1).head.config.batch = 4),
    ("unequal-training", true, |files| file(files, "launch-1_ddp-2", 1).head.config.learning_rate = 2e-3),
    ("unequal-training", true, |files| file(files, "launch-1_ddp-2", 1).head.config.bucket_bytes.0 += 1),
    ("unequal-training", true, |files| file(files, "launch-1_ddp-2", 1).head.config.seed = 2),
    ("no-exchange", true, |files| {
        heads(files, |head| head.communicator = "none".into());
    }),
    ("unequal-hosts", true, |files| {
        for rank in [0, 1] {
            let head = &mut file(files, "launch-1_ddp-2", rank).head;
            head.communicator = "nccl".into();
            head.software.insert("nccl".into(), format!("2.30.{rank}"));
        }
    }),
    ("undue-exchange", true, |files| file(files, "launch-1_together-2", 1).head.communicator = "nccl".into()),
    ("plan-incomplete", true, |files| files.plan.launches = 6),
    ("plan-incomplete", true, |files| files.plan.launches = 4),
    ("plan-incomplete", true, |files| (files.plan.launches, files.plan.extension) = (3, 1)),
    ("plan-incomplete", true, |files| files.plan.launches = u32::MAX),
    ("plan-incomplete", true, |files| files.plan.worlds = vec![1, 2, 4]),
    ("plan-incomplete", true, |files| {
        files.plan.trials.retain(|trial| trial.name != "launch-2_together-2");
        files.trials.remove("launch-2_together-2");
    }),
    ("unequal-shares", true, |files| file(files, "launch-1_ddp-2", 1).head.share.cpus = vec![7]),
    ("loss-not-finite", true, |files| file(files, "launch-1_ddp-2", 1).steps[30].loss = f64::NAN),
];

#[test]
fn every_flag_fires_and_a_healthy_run_has_none() {
    assert_eq!(codes(&analyze(&calm(&[TWO])).unwrap()), Vec::<&str>::new());
    for (code, blocks, spoil) in SPOILT {
        let mut files = calm(&[TWO]);
        spoil(&mut files);
        let analysis = analyze(&files).unwrap();
        let flag = analysis.flags.iter().find(|flag| flag.code == *code).unwrap_or_else(|| panic!("{code} is silent"));
        assert_eq!(flag.blocks, *blocks, "{flag:?}");
        if *blocks {
            assert_eq!(analysis.verdict.outcome, Outcome::Inconclusive, "{code}: {:?}", analysis.verdict);
            assert!(analysis.verdict.headline.contains(&flag.text), "{}", analysis.verdict.headline);
        }
    }
}

#[test]
fn a_lost_trial_takes_its_launch_along_and_is_listed() {
    let mut files = calm(&[TWO]);
    file(&mut files, "launch-2_together-2", 0).end = None;
    let analysis = analyze(&files).unwrap();
    assert_eq!(analysis.points[0].launches.iter().map(|launch| launch.launch).collect::<Vec<_>>(), [1, 3, 4, 5]);
    let lost = analysis.dropped.iter().find(|dropped| dropped.trial == "launch-2_together-2").unwrap();
    assert_eq!(lost.steps, 120);
    let unpaired: Vec<&str> =
        analysis.dropped.iter().filter(|dropped| dropped.why.contains("lacks")).map(|d| d.trial.as_str()).collect();
    assert_eq!(unpaired.len(), 3, "{unpaired:?}");
    // every step of every file either counts or is listed
    let written: usize = files.trials.values().flat_map(|ranks| ranks.values()).map(|file| file.steps.len()).sum();
    let counted: usize = analysis.points[0].distribution.values().map(|distribution| distribution.steps).sum();
    let dropped: usize = analysis.dropped.iter().map(|dropped| dropped.steps).sum();
    assert_eq!(counted + dropped, written);
}

#[test]
fn two_launches_and_one_launch_give_no_verdict() {
    for launches in [1, 2] {
        let files = Machine { noise: CALM, launches, ..Machine::quiet(&[World { comm: 0.99, ..TWO }]) }.run();
        let analysis = analyze(&files).unwrap();
        assert_eq!(analysis.verdict.outcome, Outcome::Inconclusive, "{:?}", analysis.verdict);
        assert_eq!(analysis.points[0].efficiency.is_known(), launches == 2);
        let text = serde_json::to_string(&analysis).unwrap();
        assert_eq!(serde_json::from_str::<Analysis>(&text).unwrap(), analysis);
    }
}

#[test]
fn nothing_that_ran_is_inconclusive_and_not_an_error() {
    let mut files = calm(&[TWO]);
    files.trials.clear();
    let analysis = analyze(&files).unwrap();
    assert_eq!((analysis.verdict.outcome, analysis.points.len()), (Outcome::Inconclusive, 0));
}

#[test]
fn one_folder_gives_the_same_bytes_each_time() {
    let files = calm(&[ONE, TWO, FOUR]);
    let text = |files| serde_json::to_string(&analyze(files).unwrap()).unwrap();
    assert_eq!(text(&files), text(&files.clone()));
}

#[test]
fn contradictions_are_errors_that_name_the_trial() {
    type Spoil = fn(&mut RunFiles);
    let rows: &[(Spoil, &str)] = &[
        (|files| files.plan.trials.clear(), "names no trial"),
        (|files| files.plan.target = f64::NAN, "an efficiency of NaN"),
        (|files| files.plan.trials[0].shares = vec![9], "uses share 9 of 2"),
        (|files| files.plan.trials[0].shares = vec![], "at least one"),
        (|files| files.plan.trials[1] = files.plan.trials[0].clone(), "stands there twice"),
        (|files| file(files, "launch-1_ddp-2", 1).head.rank = 0, "rank 1 of trial launch-1_ddp-2 says it is rank 0"),
        (|files| file(files, "launch-1_ddp-2", 1).steps[3].step_s.0 = 0.0, "step 3 of rank 1 in trial launch-1_ddp-2"),
        (|files| file(files, "launch-1_ddp-2", 1).steps[3].step_s.0 = 1e-320, "1e-320"),
        (|files| file(files, "launch-1_ddp-2", 1).steps[3].step_s.0 = 86_401.0, "no duration"),
        (|files| file(files, "launch-1_ddp-2", 1).steps[3].tokens.0 = 0, "tokens is 0"),
        (|files| file(files, "launch-1_ddp-2", 1).steps[3].tokens.0 = u64::MAX, "tokens is 18446744073709551615"),
        (|files| file(files, "launch-1_ddp-2", 1).steps[3].start_s.0 = 1e300, "start_s"),
        (|files| files.plan.heating_steps = usize::MAX, "field `heating_steps`"),
        (|files| files.plan.heating_steps = 60, "less than config.steps, which is 60"),
        (|files| files.plan.config.batch = usize::MAX, "config.batch · config.context · config.accumulate"),
        (|files| files.plan.config.accumulate = 0, "field `config.accumulate`"),
        (|files| files.plan.config.steps = usize::MAX, "below 2^53 tokens"),
        (|files| files.plan.config.weight_decay = f64::NAN, "field `config.weight_decay`"),
        (|files| files.plan.config.learning_rate = f64::NAN, "field `config.learning_rate`"),
        (|files| files.plan.config.clip_norm = Some(-1.0), "field `config.clip_norm`"),
        (|files| files.plan.flops_per_step = f64::INFINITY, "field `flops_per_step`"),
        (|files| files.plan.step_estimate_s.0 = -1.0, "field `step_estimate_s`"),
        (|files| files.plan.limits.stop_s.0 = f64::NAN, "field `limits.stop_s`"),
        (|files| file(files, "launch-1_ddp-2", 0).steps[3].forward_s.0 = f64::NAN, "a time is NaN"),
        (|files| file(files, "launch-1_ddp-2", 0).buckets[0].end_s.0 = f64::NAN, "bucket 0"),
    ];
    for (spoil, says) in rows {
        let mut files = calm(&[TWO]);
        spoil(&mut files);
        let error: AnalyzeError = analyze(&files).unwrap_err();
        assert!(error.to_string().contains(says), "{error} for {says}");
    }
}

#[test]
fn an_extension_that_ran_completes_the_plan() {
    let mut files = calm(&[TWO]);
    (files.plan.launches, files.plan.extension) = (3, 2);
    assert!(!codes(&analyze(&files).unwrap()).contains(&"plan-incomplete"));
}

#[test]
fn ten_counted_steps_can_be_judged() {
    let even = World { ranks: 2, silicon: 1.0, straggler: 1.0, comm: 0.97 };
    let machine = Machine { solo_s: vec![0.1; 2], ..Machine::quiet(&[even]) };
    for (steps, outcome) in [(14, Outcome::Pass), (13, Outcome::Inconclusive)] {
        let mut files = machine.run();
        shorten(&mut files, steps);
        let analysis = analyze(&files).unwrap();
        assert_eq!(analysis.verdict.outcome, outcome, "{steps} steps, 4 of them heating: {:?}", analysis.verdict);
        assert_eq!(analysis.verdict.headline.contains("--budget"), steps == 13, "{}", analysis.verdict.headline);
    }
}

#[test]
fn a_training_without_the_other_arms_is_not_graded() {
    let mut files = calm(&[TWO]);
    files.plan.grade = Grade::Ungraded;
    files.plan.launches = 1;
    files.plan.trials.retain(|trial| trial.name == "launch-1_ddp-2");
    files.trials.retain(|name, _| name == "launch-1_ddp-2");
    let analysis = analyze(&files).unwrap();
    assert_eq!(analysis.verdict.outcome, Outcome::NotGraded);
    assert!(!codes(&analysis).contains(&"plan-incomplete"), "{:?}", analysis.flags);
}

#[test]
fn a_rank_that_says_it_failed_is_a_fault_though_no_launch_says_why() {
    let mut files = calm(&[TWO]);
    file(&mut files, "launch-5_ddp-2", 0).end.as_mut().unwrap().reason = EndReason::Interrupted;
    file(&mut files, "launch-4_ddp-2", 1).end.as_mut().unwrap().reason = EndReason::Failed;
    let verdict = analyze(&files).unwrap().verdict;
    assert_eq!(verdict.outcome, Outcome::Fault, "{verdict:?}");
    assert!(verdict.headline.contains("rank 1 of launch-4_ddp-2"), "{}", verdict.headline);
}

#[test]
fn a_loss_that_nobody_knows_is_none() {
    let mut files = calm(&[TWO]);
    assert!(analyze(&files).unwrap().points[0].final_loss.is_some());
    for step in files.trials.values_mut().flat_map(|ranks| ranks.values_mut()).flat_map(|file| &mut file.steps) {
        step.loss = f64::NAN;
    }
    assert_eq!(analyze(&files).unwrap().points[0].final_loss, None);
}
