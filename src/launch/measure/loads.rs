//! Links and counters of GPUs, and links above them, while others copy: asked of the driver and of the kernel on a thread
//! that may hang and delays nobody.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::device::{LinkSample, Nvml};
use crate::record::{CounterLine, ErrorCounter, LinkLine, LoadLine, UplinkLine};
use crate::topology::{Generation, Lanes, Missing, PciAddress, Phase, Reading, ThrottleReasons, Topology, Why, Width};

use super::uplinks::{Uplink, Uplinks};

/// From one question to the next.
const INTERVAL: Duration = Duration::from_millis(20);

/// A driver that has not answered for so long is not waited for.
const FIRST_LIMIT: Duration = Duration::from_secs(2);

/// A GPU that computes or copies is in P0 to P3; from P5 on (video, display, idle) it slows its link down by design.
const AWAKE_P_STATE_MAX: u32 = 4;

/// What was seen of a link: of a GPU's own all of it, of one above GPUs only the lanes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen {
    /// When it was first looked at.
    first: Option<Lanes>,
    /// NVML's replay counter when it was first read, and now.
    replays: Option<(u64, u64)>,
    /// Memory errors that could not be corrected, likewise.
    memory_errors: Option<(Reading<u64>, Reading<u64>)>,
    /// While the GPU copied and was awake, or a GPU below copied.
    loaded: Loaded,
    /// The slowest performance state while it copied.
    p_state: Option<u32>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Loaded {
    least: Option<Lanes>,
    most: Option<Lanes>,
    last: Option<Lanes>,
    samples: u32,
    throttle: Option<ThrottleReasons>,
}

impl Seen {
    /// Takes one look at the link, `copying` where the GPU copied before it and after.
    fn add(&mut self, sample: &LinkSample, copying: bool) {
        let lanes = |generation: u32, width: u32| {
            let (generation, width) = (Generation::new(generation.into())?, Width::new(width.into())?);
            Some(Lanes { generation, width })
        };
        let now = sample.generation.clone().ok().zip(sample.width.clone().ok());
        let now = now.and_then(|(generation, width)| lanes(generation, width));
        if let Ok(replays) = sample.replays {
            let first = self.replays.map_or(replays.into(), |(first, _)| first);
            self.replays = Some((first, replays.into()));
        }
        let first = self.memory_errors.take().map_or_else(|| sample.memory_errors.clone(), |(first, _)| first);
        self.memory_errors = Some((first, sample.memory_errors.clone()));
        self.first = self.first.or(now);
        if !copying {
            return;
        }
        let p_state = sample.p_state.clone().ok();
        self.p_state = self.p_state.max(p_state);
        if p_state.is_some_and(|state| AWAKE_P_STATE_MAX < state) {
            return;
        }
        let loaded = &mut self.loaded;
        if let Ok(reasons) = sample.throttle {
            loaded.throttle = Some(loaded.throttle.unwrap_or_default() | reasons);
        }
        if let Some(now) = now {
            loaded.add(now);
        }
    }
}

impl Loaded {
    /// Takes one look at the link under load.
    fn add(&mut self, now: Lanes) {
        let than = |other: Option<Lanes>, less: bool| match other {
            Some(other) if (other.rate() < now.rate()) == less => other,
            _ => now,
        };
        (self.least, self.most) = (Some(than(self.least, true)), Some(than(self.most, false)));
        self.last = Some(now);
        self.samples += 1;
    }
}

/// What the thread that looks and those that wait for it share.
#[derive(Default)]
struct Shared {
    over: AtomicBool,
    looked: AtomicBool,
    /// By the lower end of each link.
    seen: Mutex<BTreeMap<PciAddress, Seen>>,
    uplinks: Uplinks,
    /// How often it has changed who copies, and who does.
    copying: Mutex<(u64, Vec<PciAddress>)>,
}

impl Shared {
    /// The number of the present set of GPUs that copy, if one of `gpus` is among them.
    fn copies(&self, gpus: &[PciAddress]) -> Option<u64> {
        let copying = self.copying.lock().unwrap_or_else(PoisonError::into_inner);
        gpus.iter().any(|gpu| copying.1.contains(gpu)).then_some(copying.0)
    }

    fn look(&self, nvml: &Nvml, gpu: PciAddress) {
        let before = self.copies(&[gpu]);
        let Ok(sample) = nvml.link(gpu) else { return };
        let copying = before.is_some() && before == self.copies(&[gpu]);
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).entry(gpu).or_default().add(&sample, copying);
    }

    fn look_above(&self, link: &Uplink) {
        let before = self.copies(&link.gpus);
        let Some(now) = self.uplinks.now(link) else { return };
        let copying = before.is_some() && before == self.copies(&link.gpus);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen.entry(link.lower).or_default();
        seen.first = seen.first.or(Some(now));
        if copying {
            seen.loaded.add(now);
        }
    }
}

/// Looks at links until it is dropped.
pub(super) struct Loads(Arc<Shared>);

impl Loads {
    /// Begins to look at `gpus` and at the links above them, and returns once it has seen all for the first time, or cannot.
    pub(super) fn of(gpus: Vec<PciAddress>, uplinks: Uplinks) -> Self {
        let loads = Self(Arc::new(Shared { uplinks, ..Shared::default() }));
        let shared = Arc::clone(&loads.0);
        let look = move || {
            let nvml = Nvml::open();
            while !shared.over.load(Ordering::Relaxed) {
                if let Ok(nvml) = &nvml {
                    gpus.iter().for_each(|gpu| shared.look(nvml, *gpu));
                }
                shared.uplinks.all.iter().for_each(|link| shared.look_above(link));
                shared.looked.store(true, Ordering::Relaxed);
                thread::sleep(INTERVAL);
            }
        };
        let started = thread::Builder::new().name("links".into()).spawn(look);
        let deadline = Instant::now() + FIRST_LIMIT;
        while started.is_ok() && !loads.0.looked.load(Ordering::Relaxed) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        loads
    }

    /// From now on these GPUs copy, and no others.
    pub(super) fn copies(&self, gpus: &[PciAddress]) {
        let mut copying = self.0.copying.lock().unwrap_or_else(PoisonError::into_inner);
        *copying = (copying.0 + 1, gpus.to_vec());
    }

    /// Uncorrected errors of its memory, when it was first looked at and now.
    pub(super) fn memory_errors(&self, gpu: PciAddress) -> CounterLine {
        let seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let none = || (Err(Missing::new(Why::Absent, "NVML")), Err(Missing::new(Why::Absent, "NVML")));
        let (before, after) = seen.get(&gpu).and_then(|seen| seen.memory_errors.clone()).unwrap_or_else(none);
        CounterLine { at: gpu, counter: ErrorCounter::EccUncorrected, before, after }
    }

    /// What was seen of the links above GPUs so far.
    pub(super) fn uplinks(&self) -> Vec<UplinkLine> {
        let seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let line = |link: &Uplink| {
            let Seen { first: at_rest, loaded, .. } = seen.get(&link.lower).cloned().unwrap_or_default();
            let (Uplink { upper, lower, gpus }, Loaded { least, most, last, samples, .. }) = (link.clone(), loaded);
            UplinkLine { upper, lower, gpus, at_rest, least, most, last, samples }
        };
        self.0.uplinks.all.iter().map(line).collect()
    }

    /// What was seen of `gpu` so far, beside what the probe saw before anything ran.
    pub(super) fn line(&self, gpu: PciAddress, topology: &Topology) -> LoadLine {
        let seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner).get(&gpu).cloned().unwrap_or_default();
        let probed = topology.gpu(gpu).filter(|gpu| gpu.link.phase == Phase::AtRest);
        let Loaded { least, most, last, samples, throttle } = seen.loaded;
        LoadLine {
            gpu,
            at_rest: probed.and_then(|gpu| gpu.link.now().ok()).or(seen.first),
            least,
            most,
            last,
            samples,
            p_state: seen.p_state,
            throttle,
            replays: seen.replays.map(|(first, last)| last.saturating_sub(first)),
        }
    }
}

impl Drop for Loads {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

/// The least that each link showed under load, by its lower end: a GPU, or a port above GPUs.
#[must_use]
pub fn least_under_load(lines: &[LinkLine]) -> Vec<(PciAddress, Lanes)> {
    let least = |line: &LinkLine| match line {
        LinkLine::Load(load) => Some((load.gpu, load.least?)),
        LinkLine::Uplink(link) => Some((link.lower, link.least?)),
        _ => None,
    };
    lines.iter().filter_map(least).collect()
}

/// The topology with links as they were while GPUs copied: what the probe's rules judge. `least` is what was seen at the
/// lower end of each link; where nothing was seen under load, the link stays as it was at rest.
#[must_use]
pub fn under_load(mut topology: Topology, least: &[(PciAddress, Lanes)]) -> Topology {
    let gpus = topology.gpus.iter_mut().map(|gpu| (gpu.address, &mut gpu.link));
    let bridges = topology.bridges.iter_mut().map(|bridge| (bridge.address, &mut bridge.link));
    for (address, link) in gpus.chain(bridges) {
        if let Some((_, seen)) = least.iter().find(|(at, _)| *at == address) {
            link.gen_now = Ok(seen.generation);
            link.width_now = Ok(seen.width);
            link.phase = Phase::UnderLoad;
        }
    }
    topology.derived()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::measure::uplinks::tests::{recorded, show};

    fn sample(generation: u32, p_state: u32) -> LinkSample {
        let throttle = Ok(ThrottleReasons(1 << p_state));
        let memory_errors = Ok(p_state.into());
        LinkSample {
            generation: Ok(generation),
            width: Ok(16),
            p_state: Ok(p_state),
            throttle,
            replays: Ok(3),
            memory_errors,
        }
    }

    #[test]
    fn only_what_is_seen_of_an_awake_gpu_that_copies_counts() {
        let mut seen = Seen::default();
        let looks = [
            (sample(1, 8), false),
            (sample(5, 0), true),
            (sample(2, 2), true),
            (sample(1, 8), true),
            (sample(5, 0), false),
        ];
        looks.iter().for_each(|(sample, copying)| seen.add(sample, *copying));
        let generation = |lanes: Option<Lanes>| lanes.map(|lanes| u64::from(lanes.generation));
        assert_eq!((generation(seen.first), seen.p_state), (Some(1), Some(8)));
        let Loaded { least, most, last, samples, throttle } = seen.loaded;
        assert_eq!((generation(least), generation(most), generation(last), samples), (Some(2), Some(5), Some(2), 2));
        assert_eq!(throttle, Some(ThrottleReasons(0b101)), "of a GPU that sleeps, nothing");
    }

    #[test]
    fn a_counter_that_is_not_told_is_unknown_and_one_that_grows_is_a_difference() {
        let mut seen = Seen::default();
        let none = LinkSample { replays: Err(Missing::new(Why::Unsupported, "")), ..sample(4, 0) };
        seen.add(&none, true);
        assert_eq!(seen.replays, None);
        seen.add(&sample(4, 0), true);
        seen.add(&LinkSample { replays: Ok(12), ..sample(4, 0) }, false);
        assert_eq!(seen.replays, Some((3, 12)));
        assert_eq!(seen.memory_errors, Some((Ok(0), Ok(0))));
    }

    #[test]
    fn the_link_above_a_switch_is_seen_while_any_gpu_below_it_copies() {
        let devices = tempfile::tempdir().unwrap();
        let topology = recorded("switch-4gpu");
        let gpus: Vec<PciAddress> = topology.nvidia_gpus().map(|gpu| gpu.address).collect();
        let uplinks = Uplinks::of(devices.path(), &gpus, &topology);
        let loads = Loads(Arc::new(Shared { uplinks, ..Shared::default() }));
        let look = |speed: &str, copying: &[PciAddress]| {
            show(devices.path(), "0000:01:00.0", speed, "16");
            loads.copies(copying);
            loads.0.look_above(&loads.0.uplinks.all[0]);
        };
        look("2.5 GT/s PCIe", &[]);
        look("32.0 GT/s PCIe", &gpus);
        look("8.0 GT/s PCIe", &gpus[2..3]);
        look("32.0 GT/s PCIe", &gpus);
        look("2.5 GT/s PCIe", &["0000:99:00.0".parse().unwrap()]);
        let [line] = &loads.uplinks()[..] else { panic!("one link") };
        let shown = [line.at_rest, line.least, line.most, line.last].map(|lanes| lanes.unwrap().to_string());
        assert_eq!((shown.join(", ").as_str(), line.samples), ("Gen1 x16, Gen3 x16, Gen5 x16, Gen5 x16", 3));
        let least = least_under_load(&[LinkLine::Uplink(line.clone())]);
        let seen = under_load(topology, &least);
        let port = &seen.bridge(line.lower).unwrap().link;
        assert_eq!((port.phase, port.gen_now.clone().map(u64::from)), (Phase::UnderLoad, Ok(3)));
        assert!(seen.nvidia_gpus().all(|gpu| gpu.link.phase == Phase::AtRest));
    }
}
