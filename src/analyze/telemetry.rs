//! What the GPUs did while they trained: power, clocks, heat and what held them, in the windows that count.

use std::collections::{BTreeMap, BTreeSet};

use crate::record::{
    Arm, EnergySource, Flag, GpuFile, GpuLoad, GpuSample, GpuUnderLoad, Origin, Plan, Point, RunFiles, ThrottleShare,
    TrialLoad,
};
use crate::topology::ThrottleReasons;
use crate::units::{Bytes, Celsius, Hertz, Joules, Seconds, Tokens, Watts};

use super::Ran;
use super::flags::{and_more, flag};
use super::sample::Cell;

/// Samples further apart than so many intervals leave a gap that nobody saw. A driver that needs several intervals for
/// all GPUs of a large machine is slow, not silent.
const GAP_INTERVALS: f64 = 10.0;

/// A mean of less than this share of the window is none of the window.
const COVERED_MIN: f64 = 0.9;

/// Clocks held in more than this share of a trial's samples are flagged. The hardware also reports a slowdown for a
/// moment when clocks change (nvml.h), and halved clocks for 5 % of the time cost 2.5 % of the speed, a quarter of what
/// a target of 0.9 allows to be lost.
const HELD_SHARE_MAX: f64 = 0.05;

/// One sample alone is a moment, whatever its share.
const SLOWDOWN_SAMPLES_MIN: usize = 2;

/// What the GPUs of the trials that count did.
pub(super) struct Telemetry<'a> {
    seen: Vec<Seen<'a>>,
    /// GPUs of which it is not known whether their clocks were held.
    unknown: Vec<Unknown<'a>>,
}

/// One GPU in one trial.
struct Seen<'a> {
    ran: &'a Ran<'a>,
    gpu: &'a str,
    sums: Sums,
}

struct Unknown<'a> {
    trial: &'a str,
    gpu: &'a str,
    why: String,
}

/// The span of time that counts, in seconds since the trial's epoch, and the tokens trained in it.
#[derive(Clone, Copy)]
struct Window {
    begin: f64,
    end: f64,
    tokens: u64,
}

/// The telemetry of every trial that ran on GPUs.
pub(super) fn telemetry<'a>(files: &'a RunFiles, ran: &'a [Ran<'a>]) -> Telemetry<'a> {
    let mut telemetry = Telemetry { seen: Vec::new(), unknown: Vec::new() };
    // a predicted GPU has neither clocks nor heat
    for ran in ran.iter().filter(|ran| ran.files[0].head.origin != Origin::Simulated) {
        for (gpu, window) in windows(&files.plan, ran) {
            let trial = ran.trial.name.as_str();
            let why = match files.gpus.get(trial) {
                None => Some("there is no gpu.jsonl".to_owned()),
                Some(file) if file.head.epoch_s != ran.files[0].head.epoch_s => {
                    Some("gpu.jsonl counts its time from another moment than the ranks".to_owned())
                }
                Some(file) => {
                    telemetry.seen.push(Seen { ran, gpu, sums: Sums::of(file, gpu, window) });
                    reasons_lack(file, gpu, window)
                }
            };
            telemetry.unknown.extend(why.map(|why| Unknown { trial, gpu, why }));
        }
    }
    telemetry
}

/// The window of each GPU of a trial: that of its rank. Ranks that share a GPU share its window, from the first begin to
/// the last end.
fn windows<'a>(plan: &'a Plan, ran: &Ran<'_>) -> BTreeMap<&'a str, Window> {
    let mut windows: BTreeMap<&str, Window> = BTreeMap::new();
    for rank in ran.ranks() {
        let steps = ran.steps(rank);
        let gpu = plan.shares[ran.trial.shares[rank]].gpu.as_deref();
        let (Some(gpu), Some(first), Some(last)) = (gpu, steps.first(), steps.last()) else { continue };
        let (begin, end) = (first.start_s.0, (last.start_s + last.step_s).0);
        let window = windows.entry(gpu).or_insert(Window { begin, end, tokens: 0 });
        window.begin = window.begin.min(begin);
        window.end = window.end.max(end);
        window.tokens = window.tokens.saturating_add(steps.iter().map(|step| step.tokens.0).sum());
    }
    windows
}

/// Why it is not known whether a GPU's clocks were held; none if it is.
fn reasons_lack(file: &GpuFile, gpu: &str, window: Window) -> Option<String> {
    let told = series(file, gpu, |sample| sample.throttle_reasons.map(|reasons| reasons.0 as f64));
    let share = window.covered(&told, file.head.interval_s);
    if share >= COVERED_MIN {
        return None;
    }
    let about = |field: &Option<String>| field.as_deref().is_none_or(|field| field == "throttle_reasons");
    let absence = file.absences.iter().find(|absence| absence.gpu == gpu && about(&absence.field));
    Some(match absence {
        Some(absence) => absence.reason.to_string(),
        None => format!("samples cover {:.0} % of what counts", share * 100.0),
    })
}

/// One number of a GPU over time, where it was told.
fn series(file: &GpuFile, gpu: &str, of: impl Fn(&GpuSample) -> Option<f64>) -> Vec<(f64, f64)> {
    let samples = file.samples.iter().filter(|sample| sample.gpu == gpu);
    samples.filter_map(|sample| Some((sample.at_s.0, of(sample)?))).collect()
}

impl Window {
    fn length(&self) -> f64 {
        self.end - self.begin
    }

    fn holds(&self, moment: f64) -> bool {
        self.begin <= moment && moment <= self.end
    }

    /// The share of the window that `series` saw: all but the gaps.
    fn covered(&self, series: &[(f64, f64)], interval: Seconds) -> f64 {
        let inside = series.iter().map(|(at, _)| *at).filter(|at| self.holds(*at));
        let (mut last, mut unseen) = (self.begin, 0.0);
        for at in inside.chain([self.end]) {
            if at - last > GAP_INTERVALS * interval.0 {
                unseen += at - last;
            }
            last = at;
        }
        if self.length() > 0.0 { 1.0 - unseen / self.length() } else { 0.0 }
    }

    /// How fast a counter rises: its difference between the ends of the window over the time between them. None unless
    /// it rises; one that falls was reset.
    fn rise(&self, counter: &[(f64, f64)]) -> Option<f64> {
        let (begin, end) = self.ends(counter)?;
        let rises =
            counter.windows(2).filter(|pair| begin < pair[1].0 && pair[0].0 < end).all(|pair| pair[0].1 <= pair[1].1);
        let rate = (between(counter, end) - between(counter, begin)) / (end - begin);
        (rises && rate > 0.0).then_some(rate)
    }

    /// The mean of readings over time: the area under them, straight from one to the next.
    fn mean(&self, readings: &[(f64, f64)]) -> Option<f64> {
        let (begin, end) = self.ends(readings)?;
        let inner = readings.iter().copied().filter(|(at, _)| begin < *at && *at < end);
        let (mut last, mut area) = ((begin, between(readings, begin)), 0.0);
        for next in inner.chain([(end, between(readings, end))]) {
            area += (next.0 - last.0) * (next.1 + last.1) / 2.0;
            last = next;
        }
        Some(area / (end - begin))
    }

    /// The part of the window that `series` spans.
    fn ends(&self, series: &[(f64, f64)]) -> Option<(f64, f64)> {
        let (begin, end) = (self.begin.max(series.first()?.0), self.end.min(series.last()?.0));
        (begin < end).then_some((begin, end))
    }
}

/// The value at a moment inside the series, straight between its neighbours.
fn between(series: &[(f64, f64)], at: f64) -> f64 {
    let next = series.partition_point(|(moment, _)| *moment < at).clamp(1, series.len() - 1);
    let ((early, low), (late, high)) = (series[next - 1], series[next]);
    if late > early { low + (high - low) * (at - early) / (late - early) } else { high }
}

/// What can be added over trials.
#[derive(Debug, Clone, Default)]
struct Sums {
    window_s: f64,
    samples: usize,
    tokens: u64,
    energy: Option<(f64, EnergySource)>,
    /// Mean clock times the time for which it is known.
    clock: Option<f64>,
    clock_min: Option<f64>,
    temperature_max: Option<f64>,
    /// Samples that told reasons, and those of them with a slowdown.
    told: usize,
    slowed: usize,
    reasons: BTreeMap<u64, usize>,
    pcie_gen_min: Option<u32>,
    pcie_width_min: Option<u32>,
    pcie_replays: Option<u64>,
    memory_max: Option<u64>,
}

impl Sums {
    fn of(file: &GpuFile, gpu: &str, window: Window) -> Self {
        let inside: Vec<&GpuSample> =
            file.samples.iter().filter(|sample| sample.gpu == gpu && window.holds(sample.at_s.0)).collect();
        let covered = |series: &[(f64, f64)]| window.covered(series, file.head.interval_s) >= COVERED_MIN;
        let counter = series(file, gpu, |sample| sample.energy_j.map(|energy| energy.0));
        let power = series(file, gpu, |sample| sample.power_w.map(|power| power.0));
        let clock = series(file, gpu, |sample| sample.sm_clock_hz.map(|clock| clock.0));
        let counted = || Some((window.rise(&counter)?, EnergySource::Counter)).filter(|_| covered(&counter));
        let summed = || Some((window.mean(&power)?, EnergySource::Power)).filter(|_| covered(&power));
        let seen = |of: fn(&GpuSample) -> Option<f64>| inside.iter().copied().filter_map(of);
        let reasons = || inside.iter().filter_map(|sample| sample.throttle_reasons);
        let mut by_reason = BTreeMap::new();
        for reason in reasons().flat_map(|reasons| reasons.costly().each()) {
            *by_reason.entry(reason.0).or_default() += 1;
        }
        Self {
            window_s: window.length(),
            samples: inside.len(),
            tokens: window.tokens,
            energy: counted().or_else(summed).map(|(power, source)| (power * window.length(), source)),
            clock: window.mean(&clock).filter(|_| covered(&clock)).map(|mean| mean * window.length()),
            clock_min: seen(|sample| sample.sm_clock_hz.map(|clock| clock.0)).reduce(f64::min),
            temperature_max: seen(|sample| sample.temperature_c.map(|degrees| degrees.0)).reduce(f64::max),
            told: reasons().count(),
            slowed: reasons().filter(|reasons| !reasons.slowdown().is_none()).count(),
            reasons: by_reason,
            pcie_gen_min: inside.iter().filter_map(|sample| sample.pcie_gen).min(),
            pcie_width_min: inside.iter().filter_map(|sample| sample.pcie_width).min(),
            pcie_replays: replays(&inside),
            memory_max: inside.iter().filter_map(|sample| sample.memory_used_bytes).map(|bytes| bytes.0).max(),
        }
    }

    /// The sums of both. What one of them lacks, the whole lacks, but for what was ever seen.
    fn and(self, other: &Self) -> Self {
        fn both<T>(one: Option<T>, other: Option<T>, add: impl Fn(T, T) -> T) -> Option<T> {
            Some(add(one?, other?))
        }
        fn any<T: Copy>(one: Option<T>, other: Option<T>, pick: impl Fn(T, T) -> T) -> Option<T> {
            one.into_iter().chain(other).reduce(pick)
        }
        let mut reasons = self.reasons;
        for (reason, count) in &other.reasons {
            *reasons.entry(*reason).or_default() += count;
        }
        Self {
            window_s: self.window_s + other.window_s,
            samples: self.samples + other.samples,
            tokens: self.tokens.saturating_add(other.tokens),
            energy: both(self.energy, other.energy, |one, other| (one.0 + other.0, one.1.max(other.1))),
            clock: both(self.clock, other.clock, |one, other| one + other),
            clock_min: any(self.clock_min, other.clock_min, f64::min),
            temperature_max: any(self.temperature_max, other.temperature_max, f64::max),
            told: self.told + other.told,
            slowed: self.slowed + other.slowed,
            reasons,
            pcie_gen_min: any(self.pcie_gen_min, other.pcie_gen_min, u32::min),
            pcie_width_min: any(self.pcie_width_min, other.pcie_width_min, u32::min),
            pcie_replays: both(self.pcie_replays, other.pcie_replays, u64::saturating_add),
            memory_max: any(self.memory_max, other.memory_max, u64::max),
        }
    }

    fn load(&self) -> GpuLoad {
        let share = |count: usize| count as f64 / self.told as f64;
        let throttle = self.reasons.iter().map(|(reason, count)| ThrottleShare {
            reason: ThrottleReasons(*reason).names().concat(),
            share: share(*count),
        });
        let power = self.energy.filter(|_| self.window_s > 0.0).map(|(energy, _)| energy / self.window_s);
        GpuLoad {
            window_s: Seconds(self.window_s),
            samples: self.samples,
            tokens: Tokens(self.tokens),
            power_w: power.map(Watts),
            energy_j: self.energy.map(|(energy, _)| Joules(energy)),
            energy_from: self.energy.map(|(_, source)| source),
            tokens_per_joule: self.tokens_per_joule(),
            sm_clock_hz: self.clock.map(|clock| Hertz(clock / self.window_s)),
            sm_clock_min_hz: self.clock_min.map(Hertz),
            temperature_max_c: self.temperature_max.map(Celsius),
            throttle_reasons: (self.told > 0).then(|| self.all_reasons()),
            throttle: throttle.collect(),
            slowdown_share: (self.told > 0).then(|| share(self.slowed)),
            pcie_gen_min: self.pcie_gen_min,
            pcie_width_min: self.pcie_width_min,
            pcie_replays: self.pcie_replays,
            memory_max_bytes: self.memory_max.map(Bytes),
        }
    }

    fn all_reasons(&self) -> ThrottleReasons {
        ThrottleReasons(self.reasons.keys().fold(0, |all, reason| all | reason))
    }

    fn tokens_per_joule(&self) -> Option<f64> {
        // a microjoule is no energy to divide by
        self.energy.filter(|(energy, _)| *energy > 1e-6).map(|(energy, _)| self.tokens as f64 / energy)
    }
}

/// Packets sent again inside the window. A counter that falls was reset, and tells nothing.
fn replays(inside: &[&GpuSample]) -> Option<u64> {
    let counts: Vec<u32> = inside.iter().filter_map(|sample| sample.pcie_replays).collect();
    let rises = counts.windows(2).all(|pair| pair[0] <= pair[1]);
    let (first, last) = (counts.first()?, counts.last()?);
    rises.then(|| u64::from(last - first))
}

impl Telemetry<'_> {
    /// One row for each world size, arm and GPU.
    pub(super) fn rows(&self) -> Vec<GpuUnderLoad> {
        let mut rows: BTreeMap<(usize, Arm, &str), Vec<&Seen<'_>>> = BTreeMap::new();
        for seen in &self.seen {
            rows.entry((seen.ran.trial.shares.len(), seen.ran.trial.arm, seen.gpu)).or_default().push(seen);
        }
        let row = |((world, arm, gpu), all): ((usize, Arm, &str), Vec<&Seen<'_>>)| GpuUnderLoad {
            world,
            arm,
            gpu: gpu.into(),
            load: total(all.iter().map(|seen| &seen.sums)).load(),
            trials: all
                .iter()
                .map(|seen| TrialLoad { trial: seen.ran.trial.name.clone(), load: seen.sums.load() })
                .collect(),
        };
        rows.into_iter().map(row).collect()
    }

    /// Takes power and tokens per joule of all GPUs of the cell's ddp trials into its point.
    pub(super) fn complete(&self, cell: &Cell<'_>, point: &mut Point) {
        let ddp: Vec<&str> = cell.samples.iter().map(|sample| sample.ddp.trial.name.as_str()).collect();
        let seen: Vec<&Seen<'_>> =
            self.seen.iter().filter(|seen| ddp.contains(&seen.ran.trial.name.as_str())).collect();
        let all_told = ddp.iter().all(|trial| seen.iter().any(|seen| seen.ran.trial.name == *trial));
        let powers: Option<Vec<f64>> = seen.iter().map(|seen| Some(seen.sums.load().power_w?.0)).collect();
        let Some(powers) = powers.filter(|_| all_told && !ddp.is_empty()) else { return };
        point.gpu_power_w = Some(Watts(powers.iter().sum::<f64>() / ddp.len() as f64));
        point.tokens_per_joule = total(seen.iter().map(|seen| &seen.sums)).tokens_per_joule();
    }

    /// What held the clocks, and where nobody knows.
    pub(super) fn flags(&self, graded: &BTreeSet<&str>) -> Vec<Flag> {
        let gpus: BTreeSet<&str> = self.seen.iter().map(|seen| seen.gpu).collect();
        let throttled = gpus.into_iter().filter_map(|gpu| self.throttled(gpu, graded));
        throttled.chain(self.power_capped()).chain(self.unknown()).collect()
    }

    /// A rate at clocks that heat or a failing supply held says nothing of the machine in order.
    fn throttled(&self, gpu: &str, graded: &BTreeSet<&str>) -> Option<Flag> {
        let share = |sums: &Sums| sums.slowed as f64 / sums.told.max(1) as f64;
        let slowed = |sums: &Sums| sums.slowed >= SLOWDOWN_SAMPLES_MIN && share(sums) > HELD_SHARE_MAX;
        let all: Vec<&Seen<'_>> = self.seen.iter().filter(|seen| seen.gpu == gpu && slowed(&seen.sums)).collect();
        let worst = all.iter().max_by(|one, other| share(&one.sums).total_cmp(&share(&other.sums)))?;
        let reasons = total(all.iter().map(|seen| &seen.sums)).all_reasons().slowdown();
        let text = format!(
            "{gpu}: {} held the clocks in {:.0} % of the samples of {}",
            reasons.names().join(" and "),
            share(&worst.sums) * 100.0,
            and_more(&worst.ran.trial.name, all.len()),
        );
        Some(flag("throttled", all.iter().any(|seen| graded.contains(seen.ran.trial.name.as_str())), text))
    }

    /// Cards at full work reach their power limit: worth knowing, and part of what silicon costs.
    fn power_capped(&self) -> Option<Flag> {
        let count = |sums: &Sums| sums.reasons.get(&ThrottleReasons::POWER_CAP.0).copied().unwrap_or_default();
        let share = |sums: &Sums| count(sums) as f64 / sums.told.max(1) as f64;
        let all: Vec<&Seen<'_>> = self.seen.iter().filter(|seen| share(&seen.sums) > HELD_SHARE_MAX).collect();
        let worst = all.iter().max_by(|one, other| share(&one.sums).total_cmp(&share(&other.sums)))?;
        let gpus: BTreeSet<&str> = all.iter().map(|seen| seen.gpu).collect();
        let text = format!(
            "the power limit held the clocks of {} in up to {:.0} % of the samples of a trial ({})",
            and_more(worst.gpu, gpus.len()),
            share(&worst.sums) * 100.0,
            worst.ran.trial.name,
        );
        Some(flag("power-capped", false, text))
    }

    /// What is unknown is not fine.
    fn unknown(&self) -> Option<Flag> {
        let first = self.unknown.first()?;
        let gpus: BTreeSet<&str> = self.unknown.iter().map(|unknown| unknown.gpu).collect();
        let trials: BTreeSet<&str> = self.unknown.iter().map(|unknown| unknown.trial).collect();
        let text = format!(
            "whether heat or power held the clocks of {} in {} is not known: {}",
            and_more(first.gpu, gpus.len()),
            and_more(first.trial, trials.len()),
            first.why,
        );
        Some(flag("throttling-unknown", false, text))
    }
}

fn total<'a>(sums: impl Iterator<Item = &'a Sums>) -> Sums {
    sums.cloned().reduce(|all, one| all.and(&one)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::analyze;
    use super::super::synthetic::{Machine, WORK, World};
    use super::*;
    use crate::record::{Analysis, GpuAbsence, GpuHead, Outcome, SCHEMA, Trial};
    use crate::topology::{Missing, Why};

    const GPUS: [&str; 2] = ["0000:41:00.0", "0000:61:00.0"];

    /// Both cards run hot but well; the second counts no energy.
    fn calm(gpu: usize, at: f64) -> GpuSample {
        let power = [300.0, 200.0][gpu];
        GpuSample {
            at_s: Seconds(at),
            gpu: GPUS[gpu].into(),
            power_w: Some(Watts(power)),
            energy_j: (gpu == 0).then_some(Joules(1e6 + 310.0 * at)),
            temperature_c: Some(Celsius(65.0)),
            sm_clock_hz: Some(Hertz(2e9)),
            memory_clock_hz: Some(Hertz(1e10)),
            throttle_reasons: Some(ThrottleReasons::NONE),
            pcie_gen: Some(4),
            pcie_width: Some(16),
            pcie_replays: Some(7),
            memory_used_bytes: Some(Bytes(1 << 30)),
            busy: Some(1.0),
        }
    }

    /// Two GPUs of efficiency 0.95, watched ten times a second, with each sample as `sample` makes it of trial, GPU,
    /// moment and place in the file.
    fn watched(sample: impl Fn(&Trial, usize, f64, usize) -> GpuSample) -> RunFiles {
        let world = |ranks, comm| World { ranks, silicon: 1.0, straggler: 1.0, comm };
        let mut files = Machine::quiet(&[world(1, 1.0), world(2, 0.95)]).run();
        files.plan.shares.iter_mut().for_each(|share| share.gpu = Some(GPUS[share.index].into()));
        for trial in &files.plan.trials {
            for file in files.trials.get_mut(&trial.name).unwrap().values_mut() {
                file.head.share.gpu = Some(GPUS[file.head.share.index].into());
            }
            let last = files.trials[&trial.name][&0].steps.last().unwrap();
            let until = (last.start_s + last.step_s).0 + 0.3;
            let mut samples = Vec::new();
            for place in 0..(until * 10.0) as usize {
                samples.extend(trial.shares.iter().map(|gpu| sample(trial, *gpu, 0.1 * place as f64 + 0.03, place)));
            }
            let gpus = trial.shares.iter().map(|share| GPUS[*share].into()).collect();
            let head = GpuHead {
                schema: SCHEMA,
                rigscale: "0.1.0".into(),
                trial: trial.name.clone(),
                gpus,
                interval_s: Seconds(0.1),
                epoch_s: Seconds(0.0),
            };
            files.gpus.insert(trial.name.clone(), GpuFile { head, samples, absences: Vec::new() });
        }
        files
    }

    fn row(analysis: &Analysis, world: usize, arm: Arm, gpu: usize) -> &GpuUnderLoad {
        let is = |row: &&GpuUnderLoad| row.world == world && row.arm == arm && row.gpu == GPUS[gpu];
        analysis.gpus.iter().find(is).unwrap()
    }

    fn flag_of<'a>(analysis: &'a Analysis, code: &str) -> Option<(&'a str, bool)> {
        analysis.flags.iter().find(|flag| flag.code == code).map(|flag| (flag.text.as_str(), flag.blocks))
    }

    fn close(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 1e-9, "{found} is not {expected}");
    }

    #[test]
    fn power_energy_and_tokens_per_joule_are_those_of_the_window() {
        let analysis = analyze(&watched(|_, gpu, at, _| calm(gpu, at))).unwrap();
        assert_eq!(analysis.flags, []);
        let rows: Vec<_> = analysis.gpus.iter().map(|row| (row.world, row.arm, row.gpu.as_str())).collect();
        let [a, b] = GPUS;
        let expected =
            [(1, Arm::Solo, a), (1, Arm::Solo, b), (1, Arm::Ddp, a), (2, Arm::Together, a), (2, Arm::Together, b)];
        assert_eq!(rows[..5], expected);
        assert_eq!(rows[5..], [(2, Arm::Ddp, a), (2, Arm::Ddp, b)]);

        // by the card's counter, which is not what its readings say
        let GpuUnderLoad { load, trials, .. } = row(&analysis, 1, Arm::Solo, 0);
        assert_eq!((trials.len(), load.energy_from, load.samples), (5, Some(EnergySource::Counter), 5 * 56));
        close(load.window_s.0, 5.0 * 5.6);
        close(load.power_w.unwrap().0, 310.0);
        close(load.energy_j.unwrap().0, 310.0 * 28.0);
        close(load.tokens_per_joule.unwrap(), 56.0 * WORK as f64 / (310.0 * 5.6));
        close(trials[4].load.power_w.unwrap().0, 310.0);
        close(load.sm_clock_hz.unwrap().0, 2e9);
        assert_eq!(load.throttle_reasons, Some(ThrottleReasons::NONE));
        assert_eq!((load.pcie_gen_min, load.pcie_width_min, load.pcie_replays), (Some(4), Some(16), Some(0)));

        let load = &row(&analysis, 1, Arm::Solo, 1).load;
        assert_eq!(load.energy_from, Some(EnergySource::Power));
        close(load.power_w.unwrap().0, 200.0);

        let point = &analysis.points[1];
        close(point.gpu_power_w.unwrap().0, 510.0);
        close(point.tokens_per_joule.unwrap(), point.ddp_rate.0 / 510.0);
    }

    #[test]
    fn a_counter_that_stands_or_was_reset_gives_way_to_the_readings() {
        let counters: [fn(f64) -> f64; 2] = [|_| 5e6, |at| if at > 3.0 { at } else { 1e6 + at }];
        for counter in counters {
            let files = watched(|_, gpu, at, _| GpuSample { energy_j: Some(Joules(counter(at))), ..calm(gpu, at) });
            let analysis = analyze(&files).unwrap();
            let load = &row(&analysis, 2, Arm::Ddp, 0).load;
            assert_eq!(load.energy_from, Some(EnergySource::Power));
            close(load.power_w.unwrap().0, 300.0);
        }
        // neither: no number
        let analysis = analyze(&watched(|_, gpu, at, _| GpuSample { energy_j: None, power_w: None, ..calm(gpu, at) }));
        let analysis = analysis.unwrap();
        let load = &row(&analysis, 2, Arm::Ddp, 0).load;
        assert_eq!((load.power_w, load.energy_j, load.energy_from, load.tokens_per_joule), (None, None, None, None));
        assert_eq!((analysis.points[1].gpu_power_w, analysis.points[1].tokens_per_joule), (None, None));
    }

    #[test]
    fn what_happens_outside_of_the_window_does_not_count() {
        // 4 of 60 steps of 0.1 s heat, and the ranks are gone after 6 s
        let analysis = analyze(&watched(|trial, gpu, at, _| match trial.arm {
            Arm::Solo if !(0.4..=6.2).contains(&at) => GpuSample {
                temperature_c: Some(Celsius(99.0)),
                sm_clock_hz: Some(Hertz(1e8)),
                throttle_reasons: Some(ThrottleReasons::HARDWARE_THERMAL),
                pcie_gen: Some(1),
                pcie_replays: Some(u32::MAX),
                ..calm(gpu, at)
            },
            _ => calm(gpu, at),
        }))
        .unwrap();
        assert_eq!(analysis.flags, []);
        let load = &row(&analysis, 1, Arm::Solo, 0).load;
        assert_eq!((load.temperature_max_c, load.pcie_gen_min), (Some(Celsius(65.0)), Some(4)));
        assert_eq!((load.sm_clock_min_hz, load.pcie_replays), (Some(Hertz(2e9)), Some(0)));
    }

    /// A machine whose second GPU shows `reasons` in every `every`-th sample of one ddp trial.
    fn held(reasons: ThrottleReasons, every: usize) -> Analysis {
        let files = watched(|trial, gpu, at, place| {
            let seen = trial.name == "launch-2_ddp-2" && gpu == 1 && place.is_multiple_of(every);
            let reasons = if seen { reasons } else { ThrottleReasons::IDLE };
            GpuSample { throttle_reasons: Some(reasons), ..calm(gpu, at) }
        });
        analyze(&files).unwrap()
    }

    #[test]
    fn heat_forbids_a_verdict_and_names_the_gpu() {
        let analysis = held(ThrottleReasons::HARDWARE_THERMAL | ThrottleReasons::HARDWARE_SLOWDOWN, 5);
        let text = "0000:61:00.0: hardware slowdown and thermal slowdown by hardware held the clocks in 20 % of the \
                    samples of launch-2_ddp-2";
        assert_eq!(flag_of(&analysis, "throttled"), Some((text, true)));
        assert_eq!(analysis.verdict.outcome, Outcome::Inconclusive);
        let row = row(&analysis, 2, Arm::Ddp, 1);
        let worst = &row.trials[1];
        assert_eq!(worst.trial, "launch-2_ddp-2");
        assert!((worst.load.slowdown_share.unwrap() - 0.2).abs() < 0.01);
        assert!((row.load.slowdown_share.unwrap() - 0.04).abs() < 0.01, "over all five launches");
        let names: Vec<&str> = row.load.throttle.iter().map(|held| held.reason.as_str()).collect();
        assert_eq!(names, ["hardware slowdown", "thermal slowdown by hardware"], "idleness costs nothing");
    }

    #[test]
    fn a_moment_of_slowdown_and_a_power_cap_forbid_nothing() {
        let analysis = held(ThrottleReasons::HARDWARE_SLOWDOWN, 30);
        assert_eq!((analysis.flags.len(), analysis.verdict.outcome), (0, Outcome::Pass));
        assert!(row(&analysis, 2, Arm::Ddp, 1).load.slowdown_share.unwrap() > 0.0, "seen all the same");

        let analysis = held(ThrottleReasons::POWER_CAP, 1);
        let text =
            "the power limit held the clocks of 0000:61:00.0 in up to 100 % of the samples of a trial (launch-2_ddp-2)";
        assert_eq!(flag_of(&analysis, "power-capped"), Some((text, false)));
        assert_eq!((analysis.flags.len(), analysis.verdict.outcome), (1, Outcome::Pass));
    }

    #[test]
    fn what_nobody_watched_is_unknown_and_not_fine() {
        let unknown = |spoil: &dyn Fn(&mut GpuFile)| {
            let mut files = watched(|_, gpu, at, _| calm(gpu, at));
            spoil(files.gpus.get_mut("launch-2_ddp-2").unwrap());
            let analysis = analyze(&files).unwrap();
            assert_eq!(analysis.verdict.outcome, Outcome::Pass);
            flag_of(&analysis, "throttling-unknown").map(|(text, blocks)| (text.to_owned(), blocks)).unwrap()
        };
        let start = "whether heat or power held the clocks of 0000:41:00.0 and 1 more in launch-2_ddp-2 is not known: ";
        let nvml = |file: &mut GpuFile| {
            file.samples.clear();
            let reason = Missing::new(Why::Absent, "NVML: libnvidia-ml.so.1 cannot be loaded");
            let absent =
                |gpu: &str| GpuAbsence { at_s: Seconds(0.0), gpu: gpu.into(), field: None, reason: reason.clone() };
            file.absences = GPUS.map(absent).into();
        };
        let absent = format!("{start}absent: NVML: libnvidia-ml.so.1 cannot be loaded");
        assert_eq!(unknown(&nvml), (absent, false));
        let stuck = |file: &mut GpuFile| file.samples.retain(|sample| sample.at_s < Seconds(2.5));
        assert_eq!(unknown(&stuck), (format!("{start}samples cover 34 % of what counts"), false));
        let clock = |file: &mut GpuFile| file.head.epoch_s = Seconds(1.0);
        assert!(unknown(&clock).0.ends_with("from another moment than the ranks"));

        let mut files = watched(|_, gpu, at, _| calm(gpu, at));
        files.gpus.clear();
        let analysis = analyze(&files).unwrap();
        assert!(flag_of(&analysis, "throttling-unknown").unwrap().0.ends_with("there is no gpu.jsonl"));
        assert!(analysis.gpus.is_empty() && analysis.points[1].gpu_power_w.is_none());
    }

    #[test]
    fn means_that_cover_too_little_of_the_window_are_none() {
        let mut files = watched(|_, gpu, at, _| calm(gpu, at));
        let file = files.gpus.get_mut("launch-2_ddp-2").unwrap();
        file.samples.retain(|sample| sample.at_s < Seconds(2.5));
        let analysis = analyze(&files).unwrap();
        let row = row(&analysis, 2, Arm::Ddp, 0);
        let [whole, cut] = [0, 1].map(|trial| &row.trials[trial].load);
        assert_eq!((cut.power_w, cut.sm_clock_hz, cut.temperature_max_c), (None, None, Some(Celsius(65.0))));
        assert!(whole.power_w.is_some() && row.load.power_w.is_none(), "nothing is averaged away");
        assert_eq!(analysis.points[1].tokens_per_joule, None);
    }

    #[test]
    fn cpu_ranks_have_no_telemetry_and_no_flag_for_it() {
        let files = Machine::quiet(&[World { ranks: 2, silicon: 1.0, straggler: 1.0, comm: 0.95 }]).run();
        let analysis = analyze(&files).unwrap();
        assert!(analysis.gpus.is_empty() && analysis.flags.is_empty());
        let json = serde_json::to_string(&analysis).unwrap();
        assert!(!json.contains("\"gpus\"") && !json.contains("tokens_per_joule"));
    }

    #[test]
    fn a_series_of_no_or_one_or_equal_moments_has_no_mean() {
        let window = Window { begin: 0.0, end: 1.0, tokens: 1 };
        for series in [vec![], vec![(0.5, 1.0)], vec![(0.5, 1.0), (0.5, 2.0)], vec![(-2.0, 1.0), (-1.0, 1.0)]] {
            assert_eq!((window.mean(&series), window.rise(&series)), (None, None), "{series:?}");
        }
        close(window.mean(&[(-1.0, 0.0), (0.5, 3.0), (0.5, 1.0), (2.0, 1.0)]).unwrap(), 1.75);
        close(window.rise(&[(-1.0, 0.0), (3.0, 8.0)]).unwrap(), 2.0);
        assert_eq!(window.covered(&[], Seconds(0.01)), 0.0);
        close(window.covered(&[(0.0, 0.0), (0.05, 0.0), (0.1, 0.0)], Seconds(0.01)), 0.1);
    }
}
