//! Rank files: written line by line as the rank goes, read and checked again.

use std::path::Path;

use super::file::json;
use super::jsonl::{LineFile, Lines, check_schema, parse, wrong};
use super::{Bucket, Line, RankFile, RecordError, RunEnd, RunHead, Step};

/// No rank file is larger, neither written nor read: ten million steps of 300 bytes, or a million with bucket events.
pub(super) const RANK_FILE_BYTES_MAX: u64 = 4 << 30;

/// Writes one rank file. Every line reaches the file whole, in one write, before the call returns: what a killed
/// rank leaves behind are complete lines.
#[derive(Debug)]
pub struct RankWriter {
    file: LineFile,
    next_step: usize,
}

impl RankWriter {
    /// Creates the file, which must not exist, and writes the head.
    ///
    /// # Errors
    /// [`RecordError::File`], also when a number is not finite.
    pub fn create(path: &Path, head: &RunHead) -> Result<Self, RecordError> {
        let mut writer = Self { file: LineFile::create(path, RANK_FILE_BYTES_MAX)?, next_step: 0 };
        writer.file.write(&Line::Run(Box::new(head.clone())))?;
        Ok(writer)
    }

    /// Writes one step and its bucket events.
    ///
    /// # Errors
    /// [`RecordError::File`], a full disk or a number that is not finite among them; [`RecordError::Full`] before the
    /// file becomes larger than what is read back.
    ///
    /// # Panics
    /// On a step out of order or without a finite duration: a bug of the trainer.
    pub fn step(&mut self, step: &Step, buckets: &[Bucket]) -> Result<(), RecordError> {
        assert_eq!(step.index, self.next_step, "steps are written in order, without gaps");
        assert!(step.step_s.is_finite() && step.step_s.0 > 0.0, "step {} has no duration", step.index);
        self.next_step += 1;
        self.file.write(&Line::Step(step.clone()))?;
        for bucket in buckets {
            assert!(bucket.end_s >= bucket.start_s, "bucket {} ends before it starts", bucket.index);
            self.file.write(&Line::Bucket(bucket.clone()))?;
        }
        Ok(())
    }

    /// Steps written so far.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.next_step
    }

    /// Writes the last line.
    ///
    /// # Errors
    /// [`RecordError::File`].
    pub fn end(mut self, end: &RunEnd) -> Result<(), RecordError> {
        self.file.write(&Line::End(end.clone()))?;
        self.file.end()
    }
}

/// Reads one rank file.
///
/// A last line without a newline is what a full disk leaves of a cut write; it is no record, and the file has no end.
///
/// # Errors
/// Names file, line and field of the first line that does not hold what it should.
pub fn read_rank_file(path: &Path) -> Result<RankFile, RecordError> {
    let mut lines = Lines::open(path, RANK_FILE_BYTES_MAX)?;
    let Some((_, first)) = lines.next()? else {
        return Err(wrong(path, 1, "the file is empty: it should begin with a `run` line"));
    };
    check_schema(path, first)?;
    let head = match parse(path, 1, first, named)? {
        Line::Run(head) => *head,
        _ => return Err(wrong(path, 1, "the first line should be a `run` line")),
    };
    let mut file = RankFile { head, steps: Vec::new(), buckets: Vec::new(), end: None };
    while let Some((number, line)) = lines.next()? {
        if file.end.is_some() {
            return Err(wrong(path, number, "a line follows the `end` line"));
        }
        match parse(path, number, line, named)? {
            Line::Run(_) => return Err(wrong(path, number, "a second `run` line")),
            Line::Step(step) => {
                check_step(&step, file.steps.last()).map_err(|problem| wrong(path, number, &problem))?;
                file.steps.push(step);
            }
            Line::Bucket(bucket) => {
                check_bucket(&bucket, file.steps.last()).map_err(|problem| wrong(path, number, &problem))?;
                file.buckets.push(bucket);
            }
            Line::End(end) => {
                if end.steps != file.steps.len() {
                    let problem = format!("field `steps` says {}, the file holds {}", end.steps, file.steps.len());
                    return Err(wrong(path, number, &problem));
                }
                file.end = Some(end);
            }
        }
    }
    Ok(file)
}

/// A line of this `kind`, with the field named that is wrong.
fn named(path: &Path, number: usize, kind: &str, rest: &str) -> Result<Line, RecordError> {
    match kind {
        "run" => json(path, rest, number).map(Line::Run),
        "step" => json(path, rest, number).map(Line::Step),
        "bucket" => json(path, rest, number).map(Line::Bucket),
        "end" => json(path, rest, number).map(Line::End),
        _ => Err(wrong(path, number, "field `line` should be run, step, bucket or end")),
    }
}

fn check_step(step: &Step, last: Option<&Step>) -> Result<(), String> {
    let expected = last.map_or(0, |last| last.index + 1);
    if step.index != expected {
        return Err(format!("field `index` is {}, the next step is {expected}", step.index));
    }
    let durations = [
        ("step_s", step.step_s),
        ("forward_s", step.forward_s),
        ("backward_s", step.backward_s),
        ("exposed_s", step.exposed_s),
        ("optimizer_s", step.optimizer_s),
    ];
    for (name, duration) in durations {
        if !duration.is_finite() || duration.0 < 0.0 {
            return Err(format!("field `{name}` is {}, a duration is finite and not negative", duration.0));
        }
    }
    if step.step_s.0 == 0.0 {
        return Err("field `step_s` is 0, a step takes time".into());
    }
    match last {
        Some(last) if step.start_s < last.start_s => Err("field `start_s` goes back in time".into()),
        _ => Ok(()),
    }
}

fn check_bucket(bucket: &Bucket, last: Option<&Step>) -> Result<(), String> {
    if last.is_none_or(|step| step.index != bucket.step) {
        return Err(format!("field `step` is {}, a bucket follows its own step", bucket.step));
    }
    if bucket.ready_s > bucket.start_s || bucket.start_s > bucket.end_s {
        return Err("fields `ready_s`, `start_s`, `end_s` should not go back in time".into());
    }
    Ok(())
}
