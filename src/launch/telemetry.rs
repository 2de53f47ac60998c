//! Telemetry: one thread samples the GPUs of a trial while it runs. Nothing waits for it, and it waits for nobody.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::device::{self, Clock, Nvml};
use crate::record::{GPU_FILE, GpuAbsence, GpuHead, GpuSample, GpuWriter, Plan, RecordError, SCHEMA, Share, Trial};
use crate::topology::{Missing, PciAddress, Reading, Why};
use crate::units::Seconds;

/// From one sample to the next. Cards renew their power readings every 15 to 100 ms (arXiv 2312.02741), so that more
/// would be read twice; fewer would miss what holds a clock for less than a second.
const INTERVAL: Duration = Duration::from_millis(100);

/// A driver that has not answered for so long when the trial is over is not waited for: Ctrl-C ends a run within two
/// seconds, the stopping of its ranks included.
const FINISH_LIMIT: Duration = Duration::from_millis(800);

/// Readings of all GPUs of a trial, in the order of the file's head.
type Readings = Vec<Reading<device::GpuSample>>;

/// The telemetry of one trial. Dropped without [`Telemetry::finish`], it ends by itself.
pub(super) struct Telemetry {
    /// Dropped when the trial is over.
    going: Sender<Infallible>,
    done: Receiver<Result<(), RecordError>>,
    thread: JoinHandle<()>,
    /// None once the file is finished: a call that returns late finds nothing to write to.
    writer: Arc<Mutex<Option<GpuWriter>>>,
    head: GpuHead,
}

/// Turns readings into lines.
struct Sampler {
    writer: Arc<Mutex<Option<GpuWriter>>>,
    head: GpuHead,
    /// What was said to be missing, by place of the GPU and field; once is enough.
    missed: BTreeSet<(usize, Option<&'static str>)>,
}

impl Telemetry {
    /// Begins to sample the GPUs of the trial's shares into its folder; none if the shares have no GPU.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn of(plan: &Plan, trial: &Trial, epoch: Seconds, place: &Path) -> Result<Option<Self>, RecordError> {
        Self::on(gpus(&plan.shares, trial), &trial.name, epoch, &place.join(GPU_FILE))
    }

    /// Begins to sample `gpus`, PCI addresses of this host, into the file at `path`; none if there is none.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn on(gpus: Vec<String>, trial: &str, epoch: Seconds, path: &Path) -> Result<Option<Self>, RecordError> {
        if gpus.is_empty() {
            return Ok(None);
        }
        let head = GpuHead {
            schema: SCHEMA,
            rigscale: env!("CARGO_PKG_VERSION").into(),
            trial: trial.into(),
            gpus,
            interval_s: Seconds(INTERVAL.as_secs_f64()),
            epoch_s: epoch,
        };
        let sample = ask(head.gpus.clone());
        Self::start(head, path, sample).map(Some)
    }

    /// Begins to sample by `sample`, which is called on a thread of its own and may take its time.
    fn start(
        head: GpuHead,
        path: &Path,
        sample: impl FnMut() -> Readings + Send + 'static,
    ) -> Result<Self, RecordError> {
        let writer = Arc::new(Mutex::new(Some(GpuWriter::create(path, &head)?)));
        let sampler = Sampler { writer: Arc::clone(&writer), head: head.clone(), missed: BTreeSet::new() };
        let (going, until) = mpsc::channel();
        let (say_done, done) = mpsc::channel();
        let run = move || {
            // nobody listens any more where the launcher gave up waiting
            let _ = say_done.send(sampler.run(sample, &until));
        };
        let thread = thread::Builder::new().name("telemetry".into()).spawn(run).map_err(|source| {
            RecordError::File { attempt: "start the thread that writes", path: path.into(), source }
        })?;
        Ok(Self { going, done, thread, writer, head })
    }

    /// Ends the sampling and the file. Waits at most [`FINISH_LIMIT`]: what hangs in the driver is left to it, and the
    /// file says so.
    ///
    /// # Errors
    /// A line could not be written.
    pub(super) fn finish(self) -> Result<(), RecordError> {
        let Self { going, done, thread, writer, head } = self;
        drop(going);
        match done.recv_timeout(FINISH_LIMIT) {
            Ok(written) => written,
            Err(RecvTimeoutError::Disconnected) => thread.join().map_err(|panic| resume_unwind(panic)),
            Err(RecvTimeoutError::Timeout) => match lock(&writer).take() {
                Some(writer) => give_up(writer, &head),
                None => Ok(()),
            },
        }
    }
}

/// The GPUs of the trial's shares, each once.
fn gpus(shares: &[Share], trial: &Trial) -> Vec<String> {
    let mut gpus: Vec<String> = Vec::new();
    for gpu in trial.shares.iter().filter_map(|share| shares[*share].gpu.as_ref()) {
        if !gpus.contains(gpu) {
            gpus.push(gpu.clone());
        }
    }
    gpus
}

/// NVML, once asked for: opening it can take seconds, and closing it would let the driver put idle cards to sleep
/// between two trials.
static NVML: OnceLock<Reading<Nvml>> = OnceLock::new();

/// Asks NVML, which is opened at the first call: on the thread that samples, not on the one that starts ranks.
fn ask(gpus: Vec<String>) -> impl FnMut() -> Readings + Send {
    move || {
        let nvml = NVML.get_or_init(Nvml::open).as_ref();
        let sample = |gpu: &String| {
            let address: PciAddress =
                gpu.parse().map_err(|_| Missing::new(Why::Garbled, format!("{gpu:?} is no PCI address")))?;
            nvml.map_err(Clone::clone)?.sample(address)
        };
        gpus.iter().map(sample).collect()
    }
}

/// The last words of a file whose sampler hangs.
fn give_up(mut writer: GpuWriter, head: &GpuHead) -> Result<(), RecordError> {
    let at_s = Clock::since(head.epoch_s).now();
    let why = format!("the driver did not answer within {} after the trial", Seconds(FINISH_LIMIT.as_secs_f64()));
    for gpu in &head.gpus {
        let reason = Missing::new(Why::Absent, why.clone());
        writer.absent(&GpuAbsence { at_s, gpu: gpu.clone(), field: None, reason })?;
    }
    writer.end()
}

fn lock(writer: &Mutex<Option<GpuWriter>>) -> MutexGuard<'_, Option<GpuWriter>> {
    // a panic of the sampler is raised by `finish`; the file is whole, line by line
    writer.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sampler {
    /// Samples until the trial is over.
    fn run(mut self, mut sample: impl FnMut() -> Readings, until: &Receiver<Infallible>) -> Result<(), RecordError> {
        loop {
            let begun = Instant::now();
            let epoch_s = Clock::since(self.head.epoch_s);
            let at_s = epoch_s.now();
            let readings = sample();
            if !self.write(at_s, &readings)? {
                return Ok(());
            }
            // a slow driver is left alone for as long as it worked
            let took = begun.elapsed();
            if until.recv_timeout(INTERVAL.saturating_sub(took).max(took)) != Err(RecvTimeoutError::Timeout) {
                return lock(&self.writer).take().map_or(Ok(()), GpuWriter::end);
            }
        }
    }

    /// Writes what was read since `at_s`. False if the file was finished meanwhile.
    fn write(&mut self, mut at_s: Seconds, readings: &Readings) -> Result<bool, RecordError> {
        let mut guard = lock(&self.writer);
        let Some(writer) = guard.as_mut() else { return Ok(false) };
        for (place, (gpu, reading)) in self.head.gpus.iter().zip(readings).enumerate() {
            let mut absent = Vec::new();
            match reading {
                Ok(sample) => {
                    at_s = sample.at - self.head.epoch_s;
                    writer.sample(&line(sample, gpu, at_s, &mut absent))?;
                }
                Err(missing) => absent.push((None, missing.clone())),
            }
            for (field, reason) in absent {
                if self.missed.insert((place, field)) {
                    let field = field.map(str::to_owned);
                    writer.absent(&GpuAbsence { at_s, gpu: gpu.clone(), field, reason })?;
                }
            }
        }
        Ok(true)
    }
}

/// A sample as it is written, and what of it is missing.
fn line(
    sample: &device::GpuSample,
    gpu: &str,
    at_s: Seconds,
    absent: &mut Vec<(Option<&'static str>, Missing)>,
) -> GpuSample {
    fn told<T: Copy>(
        reading: &Reading<T>,
        field: &'static str,
        absent: &mut Vec<(Option<&'static str>, Missing)>,
    ) -> Option<T> {
        reading.as_ref().map_err(|missing| absent.push((Some(field), missing.clone()))).ok().copied()
    }
    GpuSample {
        at_s,
        gpu: gpu.into(),
        power_w: told(&sample.power, "power_w", absent),
        energy_j: told(&sample.energy, "energy_j", absent),
        temperature_c: told(&sample.temperature, "temperature_c", absent),
        sm_clock_hz: told(&sample.sm_clock, "sm_clock_hz", absent),
        memory_clock_hz: told(&sample.memory_clock, "memory_clock_hz", absent),
        throttle_reasons: told(&sample.throttle, "throttle_reasons", absent),
        pcie_gen: told(&sample.pcie_gen, "pcie_gen", absent),
        pcie_width: told(&sample.pcie_width, "pcie_width", absent),
        pcie_replays: told(&sample.pcie_replays, "pcie_replays", absent),
        memory_used_bytes: told(&sample.memory_used, "memory_used_bytes", absent),
        busy: told(&sample.busy, "busy", absent),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::record::{Arm, GpuFile, read_gpu_file};
    use crate::topology::ThrottleReasons;
    use crate::units::{Bytes, Celsius, Hertz, Joules, Watts};

    const GPUS: [&str; 2] = ["0000:41:00.0", "0000:61:00.0"];

    /// A second card that counts no energy.
    fn reading(place: usize) -> Reading<device::GpuSample> {
        let unsupported = || Err(Missing::new(Why::Unsupported, "NVML: not supported"));
        Ok(device::GpuSample {
            at: Clock::monotonic(),
            power: Ok(Watts(300.0)),
            energy: if place == 0 { Ok(Joules(1e6)) } else { unsupported() },
            temperature: Ok(Celsius(60.0)),
            sm_clock: Ok(Hertz(2e9)),
            memory_clock: Ok(Hertz(1e10)),
            throttle: Ok(ThrottleReasons::POWER_CAP),
            pcie_gen: Ok(4),
            pcie_width: Ok(16),
            pcie_replays: Ok(0),
            memory_used: Ok(Bytes(1 << 30)),
            busy: Ok(1.0),
        })
    }

    fn watched(sample: impl FnMut() -> Readings + Send + 'static) -> (tempfile::TempDir, PathBuf, Telemetry) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(GPU_FILE);
        let head = GpuHead {
            schema: SCHEMA,
            rigscale: "0.1.0".into(),
            trial: "launch-1_ddp-2".into(),
            gpus: GPUS.map(str::to_owned).into(),
            interval_s: Seconds(INTERVAL.as_secs_f64()),
            epoch_s: Clock::monotonic(),
        };
        let telemetry = Telemetry::start(head, &path, sample).unwrap();
        (folder, path, telemetry)
    }

    fn absences(file: &GpuFile) -> Vec<(&str, Option<&str>, &str)> {
        let mut rows = Vec::new();
        for GpuAbsence { gpu, field, reason, .. } in &file.absences {
            rows.push((gpu.as_str(), field.as_deref(), reason.detail.as_str()));
        }
        rows
    }

    #[test]
    fn both_gpus_are_sampled_until_the_trial_is_over() {
        let (say, heard) = mpsc::channel();
        let (_folder, path, telemetry) = watched(move || {
            say.send(()).unwrap();
            vec![reading(0), reading(1)]
        });
        // three sweeps, however slow the host
        (0..3).for_each(|_| heard.recv_timeout(Duration::from_secs(60)).unwrap());
        telemetry.finish().unwrap();
        let file = read_gpu_file(&path).unwrap();
        assert!(file.samples.len() >= 6, "{}", file.samples.len());
        assert!(file.samples.chunks(2).all(|pair| pair[0].gpu == GPUS[0] && pair[1].gpu == GPUS[1]));
        let [first, second] = [&file.samples[0], &file.samples[1]];
        assert_eq!((first.power_w, first.energy_j), (Some(Watts(300.0)), Some(Joules(1e6))));
        assert_eq!((second.power_w, second.energy_j), (Some(Watts(300.0)), None));
        assert!(Seconds(0.0) <= first.at_s && first.at_s < Seconds(60.0), "{:?}", first.at_s);
        assert_eq!(absences(&file), [(GPUS[1], Some("energy_j"), "NVML: not supported")], "said once");
    }

    #[test]
    fn without_nvml_the_file_says_so() {
        let missing = || Err(Missing::new(Why::Absent, "NVML: libnvidia-ml.so.1 cannot be loaded"));
        let (_folder, path, telemetry) = watched(move || vec![missing(), missing()]);
        telemetry.finish().unwrap();
        let file = read_gpu_file(&path).unwrap();
        let why = "NVML: libnvidia-ml.so.1 cannot be loaded";
        assert_eq!((file.samples.len(), absences(&file)), (0, vec![(GPUS[0], None, why), (GPUS[1], None, why)]));
    }

    #[test]
    fn a_driver_that_hangs_holds_nobody_up_and_writes_nothing_afterwards() {
        let (release, released) = mpsc::channel::<()>();
        let (say, returned) = mpsc::channel();
        let mut sweeps = 0;
        let (_folder, path, telemetry) = watched(move || {
            sweeps += 1;
            if sweeps == 2 {
                released.recv().unwrap();
                say.send(()).unwrap();
            }
            vec![reading(0), reading(1)]
        });
        let begun = Instant::now();
        while read_gpu_file(&path).unwrap().samples.is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(60), "no first sweep");
            thread::sleep(Duration::from_millis(5));
        }
        // into the second sweep, which hangs
        thread::sleep(INTERVAL * 2);
        let Telemetry { going, done, thread, writer, head } = telemetry;
        let begun = Instant::now();
        Telemetry { going, done, thread: thread::spawn(|| {}), writer, head }.finish().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        let left = std::fs::read(&path).unwrap();
        let why = "the driver did not answer within 800 ms after the trial";
        assert_eq!(absences(&read_gpu_file(&path).unwrap())[1..], [(GPUS[0], None, why), (GPUS[1], None, why)]);
        release.send(()).unwrap();
        returned.recv().unwrap();
        thread.join().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), left, "the manifest holds the file as it was");
    }

    #[test]
    #[should_panic(expected = "a bug of the sampler")]
    fn a_bug_of_the_sampler_is_raised() {
        // without the hook, which may spell a backtrace for longer than is waited
        let (_folder, _path, telemetry) = watched(|| resume_unwind(Box::new("a bug of the sampler")));
        let _ = telemetry.finish();
    }

    #[test]
    fn a_file_that_cannot_be_written_is_an_error_at_once() {
        let (folder, path, telemetry) = watched(Vec::new);
        let head = telemetry.head.clone();
        telemetry.finish().unwrap();
        for path in [path, folder.path().join("no/such/folder")] {
            assert!(matches!(Telemetry::start(head.clone(), &path, Vec::new), Err(RecordError::File { .. })));
        }
    }

    #[test]
    fn each_gpu_of_a_trial_is_watched_once_and_cpus_not_at_all() {
        let share = |index, gpu: Option<&str>| Share {
            index,
            cpus: vec![index],
            numa_node: None,
            gpu: gpu.map(str::to_owned),
            threads: None,
        };
        let trial = |shares: &[usize]| Trial { name: "t".into(), launch: 1, arm: Arm::Together, shares: shares.into() };
        let shares = [share(0, Some("b")), share(1, Some("a")), share(2, Some("b")), share(3, None)];
        assert_eq!(gpus(&shares, &trial(&[0, 2, 1])), ["b", "a"]);
        assert_eq!(gpus(&shares, &trial(&[1])), ["a"]);
        assert!(gpus(&shares, &trial(&[3])).is_empty());
    }
}
