//! `gpu.jsonl`: written sample by sample while a trial runs, read and checked again.

use std::path::Path;

use crate::units::Seconds;

use super::file::json;
use super::jsonl::{LineFile, Lines, check_schema, parse, wrong};
use super::{GpuAbsence, GpuHead, GpuLine, GpuSample, RecordError};

/// No such file is larger, neither written nor read: 8 GPUs, ten samples a second of 300 bytes, for 12 hours.
const GPU_FILE_BYTES_MAX: u64 = 1 << 30;

/// No amount of one GPU is larger in any unit that stands here, whatever a driver answers: sums stay finite.
const AMOUNT_MAX: f64 = 1e17;

/// Moments of a trial lie within three years of its beginning.
const MOMENT_MAX: f64 = 1e8;

/// The telemetry of one trial.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuFile {
    /// First line.
    pub head: GpuHead,
    /// Samples of all GPUs, in the order in which they were taken.
    pub samples: Vec<GpuSample>,
    /// What could not be sampled.
    pub absences: Vec<GpuAbsence>,
}

/// Writes the telemetry of one trial. Every line reaches the file whole, in one write, before the call returns.
#[derive(Debug)]
pub struct GpuWriter {
    file: LineFile,
    gpus: Vec<String>,
    last_s: Seconds,
}

impl GpuWriter {
    /// Creates the file, which must not exist, and writes the head.
    ///
    /// # Errors
    /// [`RecordError::File`], also when a number is not finite.
    pub fn create(path: &Path, head: &GpuHead) -> Result<Self, RecordError> {
        let file = LineFile::create(path, GPU_FILE_BYTES_MAX)?;
        let mut writer = Self { file, gpus: head.gpus.clone(), last_s: Seconds(f64::NEG_INFINITY) };
        writer.file.write(&GpuLine::Gpus(head.clone()))?;
        Ok(writer)
    }

    /// Writes one sample.
    ///
    /// # Errors
    /// [`RecordError::File`], a full disk or a number that is not finite among them; [`RecordError::Full`] before the
    /// file becomes larger than what is read back.
    ///
    /// # Panics
    /// On a GPU that the head does not name, a moment before the last one, or a negative amount: a bug of the sampler.
    pub fn sample(&mut self, sample: &GpuSample) -> Result<(), RecordError> {
        self.check(check_sample(sample, &self.gpus, self.last_s));
        self.file.write(&GpuLine::Sample(sample.clone()))?;
        self.last_s = sample.at_s;
        Ok(())
    }

    /// Writes what cannot be sampled.
    ///
    /// # Errors
    /// As [`GpuWriter::sample`].
    ///
    /// # Panics
    /// As [`GpuWriter::sample`].
    pub fn absent(&mut self, absence: &GpuAbsence) -> Result<(), RecordError> {
        self.check(check_place(&absence.gpu, absence.at_s, &self.gpus, self.last_s));
        self.file.write(&GpuLine::Absent(absence.clone()))?;
        self.last_s = absence.at_s;
        Ok(())
    }

    /// Waits until all lines are on the disk.
    ///
    /// # Errors
    /// [`RecordError::File`].
    pub fn end(self) -> Result<(), RecordError> {
        self.file.end()
    }

    fn check(&self, checked: Result<(), String>) {
        assert!(checked.is_ok(), "a line of gpu.jsonl that no reader takes: {checked:?}");
    }
}

/// Reads the telemetry of one trial.
///
/// A last line without a newline is what a killed launcher leaves of a cut write; it is no record.
///
/// # Errors
/// Names file, line and field of the first line that does not hold what it should.
pub fn read_gpu_file(path: &Path) -> Result<GpuFile, RecordError> {
    let mut lines = Lines::open(path, GPU_FILE_BYTES_MAX)?;
    let Some((_, first)) = lines.next()? else {
        return Err(wrong(path, 1, "the file is empty: it should begin with a `gpus` line"));
    };
    check_schema(path, first)?;
    let GpuLine::Gpus(head) = parse(path, 1, first, named)? else {
        return Err(wrong(path, 1, "the first line should be a `gpus` line"));
    };
    check_head(&head).map_err(|problem| wrong(path, 1, &problem))?;
    let mut file = GpuFile { head, samples: Vec::new(), absences: Vec::new() };
    let mut last_s = Seconds(f64::NEG_INFINITY);
    while let Some((number, line)) = lines.next()? {
        let refuse = |problem: String| wrong(path, number, &problem);
        match parse(path, number, line, named)? {
            GpuLine::Gpus(_) => return Err(wrong(path, number, "a second `gpus` line")),
            GpuLine::Sample(sample) => {
                check_sample(&sample, &file.head.gpus, last_s).map_err(refuse)?;
                last_s = sample.at_s;
                file.samples.push(sample);
            }
            GpuLine::Absent(absence) => {
                check_place(&absence.gpu, absence.at_s, &file.head.gpus, last_s).map_err(refuse)?;
                last_s = absence.at_s;
                file.absences.push(absence);
            }
        }
    }
    Ok(file)
}

/// A line of this `kind`, with the field named that is wrong.
fn named(path: &Path, number: usize, kind: &str, rest: &str) -> Result<GpuLine, RecordError> {
    match kind {
        "gpus" => json(path, rest, number).map(GpuLine::Gpus),
        "sample" => json(path, rest, number).map(GpuLine::Sample),
        "absent" => json(path, rest, number).map(GpuLine::Absent),
        _ => Err(wrong(path, number, "field `line` should be gpus, sample or absent")),
    }
}

fn check_head(head: &GpuHead) -> Result<(), String> {
    if !head.interval_s.is_finite() || head.interval_s.0 <= 0.0 {
        return Err(format!("field `interval_s` is {}, an interval is finite and positive", head.interval_s.0));
    }
    match (1..head.gpus.len()).find(|index| head.gpus[..*index].contains(&head.gpus[*index])) {
        Some(index) => Err(format!("field `gpus` names {} twice", head.gpus[index])),
        None => Ok(()),
    }
}

fn check_place(gpu: &str, at_s: Seconds, gpus: &[String], last_s: Seconds) -> Result<(), String> {
    if !gpus.iter().any(|known| known == gpu) {
        return Err(format!("field `gpu` is {gpu:?}, which the first line does not name"));
    }
    if at_s.0.is_nan() || at_s.0.abs() > MOMENT_MAX {
        return Err(format!("field `at_s` is {}, which is no moment of a trial", at_s.0));
    }
    if at_s < last_s {
        return Err(format!("field `at_s` is {}, which goes back in time", at_s.0));
    }
    Ok(())
}

fn check_sample(sample: &GpuSample, gpus: &[String], last_s: Seconds) -> Result<(), String> {
    check_place(&sample.gpu, sample.at_s, gpus, last_s)?;
    let amounts = [
        ("power_w", sample.power_w.map(|power| power.0)),
        ("energy_j", sample.energy_j.map(|energy| energy.0)),
        ("sm_clock_hz", sample.sm_clock_hz.map(|clock| clock.0)),
        ("memory_clock_hz", sample.memory_clock_hz.map(|clock| clock.0)),
        ("busy", sample.busy),
    ];
    for (field, amount) in amounts {
        if let Some(amount) = amount.filter(|amount| !(0.0..=AMOUNT_MAX).contains(amount)) {
            return Err(format!("field `{field}` is {amount}, an amount is not negative and at most {AMOUNT_MAX:e}"));
        }
    }
    if let Some(temperature) = sample.temperature_c.filter(|degrees| !(-AMOUNT_MAX..=AMOUNT_MAX).contains(&degrees.0)) {
        return Err(format!("field `temperature_c` is {}, which is no temperature", temperature.0));
    }
    if let Some(busy) = sample.busy.filter(|busy| *busy > 1.0) {
        return Err(format!("field `busy` is {busy}, a share is at most 1"));
    }
    for (field, number) in [("pcie_gen", sample.pcie_gen), ("pcie_width", sample.pcie_width)] {
        if number == Some(0) {
            return Err(format!("field `{field}` is 0, a link that is there has one"));
        }
    }
    Ok(())
}
