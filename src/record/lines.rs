//! Rank files: written line by line as the rank goes, read and checked again.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use super::file::{json, open_regular, refuse_not_finite};
use super::{Bucket, Line, RankFile, RecordError, RunEnd, RunHead, SCHEMA, Step};

/// No rank file is larger, neither written nor read: ten million steps of 300 bytes, or a million with bucket events.
pub(super) const RANK_FILE_BYTES_MAX: u64 = 4 << 30;

/// No line is longer: the longest is the head, with one number for each CPU of the rank.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// Writes one rank file. Every line reaches the file whole, in one write, before the call returns: what a killed
/// rank leaves behind are complete lines.
#[derive(Debug)]
pub struct RankWriter {
    path: PathBuf,
    file: File,
    next_step: usize,
    line: Vec<u8>,
    written: u64,
}

impl RankWriter {
    /// Creates the file, which must not exist, and writes the head.
    ///
    /// # Errors
    /// [`RecordError::File`], also when a number is not finite.
    pub fn create(path: &Path, head: &RunHead) -> Result<Self, RecordError> {
        let file = File::create_new(path).map_err(|source| RecordError::File {
            attempt: "create",
            path: path.into(),
            source,
        })?;
        let mut writer = Self { path: path.into(), file, next_step: 0, line: Vec::new(), written: 0 };
        writer.write(&Line::Run(Box::new(head.clone())))?;
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
        self.write(&Line::Step(step.clone()))?;
        for bucket in buckets {
            assert!(bucket.end_s >= bucket.start_s, "bucket {} ends before it starts", bucket.index);
            self.write(&Line::Bucket(bucket.clone()))?;
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
        self.write(&Line::End(end.clone()))?;
        self.file.sync_all().map_err(|source| RecordError::File { attempt: "write", path: self.path, source })
    }

    fn write(&mut self, line: &Line) -> Result<(), RecordError> {
        let fail = |source| RecordError::File { attempt: "write", path: self.path.clone(), source };
        refuse_not_finite(&self.path, line)?;
        self.line.clear();
        serde_json::to_writer(&mut self.line, line).map_err(|error| fail(error.into()))?;
        self.line.push(b'\n');
        let len = self.line.len() as u64;
        if LINE_BYTES_MAX < len || RANK_FILE_BYTES_MAX < self.written + len {
            let limit = if LINE_BYTES_MAX < len { LINE_BYTES_MAX } else { RANK_FILE_BYTES_MAX };
            return Err(RecordError::Full { path: self.path.clone(), limit });
        }
        self.file.write_all(&self.line).map_err(fail)?;
        self.written += len;
        Ok(())
    }
}

/// The lines of a rank file, one in memory at a time.
struct Lines<'a> {
    path: &'a Path,
    file: BufReader<std::io::Take<File>>,
    line: Vec<u8>,
    number: usize,
}

impl<'a> Lines<'a> {
    fn open(path: &'a Path) -> Result<Self, RecordError> {
        let file = open_regular(path)?;
        let len =
            file.metadata().map_err(|source| RecordError::File { attempt: "read", path: path.into(), source })?.len();
        if RANK_FILE_BYTES_MAX < len {
            return Err(RecordError::TooLarge { path: path.into(), limit: RANK_FILE_BYTES_MAX });
        }
        Ok(Self { path, file: BufReader::new(file.take(RANK_FILE_BYTES_MAX)), line: Vec::new(), number: 0 })
    }

    /// The next whole line and its number; none at the end of the file or of its whole lines.
    fn next(&mut self) -> Result<Option<(usize, &[u8])>, RecordError> {
        self.line.clear();
        self.number += 1;
        let read = (&mut self.file).take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line);
        let read = read.map_err(|source| RecordError::File { attempt: "read", path: self.path.into(), source })?;
        match self.line.last() {
            Some(b'\n') => Ok(Some((self.number, &self.line))),
            Some(_) if read as u64 == LINE_BYTES_MAX => {
                Err(RecordError::LongLine { path: self.path.into(), line: self.number, limit: LINE_BYTES_MAX })
            }
            _ => Ok(None),
        }
    }
}

/// Reads one rank file.
///
/// A last line without a newline is what a full disk leaves of a cut write; it is no record, and the file has no end.
///
/// # Errors
/// Names file, line and field of the first line that does not hold what it should.
pub fn read_rank_file(path: &Path) -> Result<RankFile, RecordError> {
    let mut lines = Lines::open(path)?;
    let Some((_, first)) = lines.next()? else {
        return Err(wrong(path, 1, "the file is empty: it should begin with a `run` line"));
    };
    check_line_schema(path, first)?;
    let head = match parse(path, 1, first)? {
        Line::Run(head) => *head,
        _ => return Err(wrong(path, 1, "the first line should be a `run` line")),
    };
    let mut file = RankFile { head, steps: Vec::new(), buckets: Vec::new(), end: None };
    while let Some((number, line)) = lines.next()? {
        if file.end.is_some() {
            return Err(wrong(path, number, "a line follows the `end` line"));
        }
        match parse(path, number, line)? {
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

/// The fast way first; only a line that fails is parsed again to name its field.
fn parse(path: &Path, number: usize, line: &[u8]) -> Result<Line, RecordError> {
    if let Ok(line) = serde_json::from_slice(line) {
        return Ok(line);
    }
    let line = str::from_utf8(line).map_err(|_| wrong(path, number, "the line is no UTF-8 text"))?;
    #[derive(serde::Deserialize)]
    struct Tagged {
        line: String,
    }
    let named = json::<serde_json::Map<String, serde_json::Value>>(path, line, number)?;
    let rest: String = serde_json::to_string(&without_tag(&named)).unwrap_or_default();
    let kind = serde_json::from_str::<Tagged>(line).map(|tagged| tagged.line).unwrap_or_default();
    match kind.as_str() {
        "run" => json(path, &rest, number).map(Line::Run),
        "step" => json(path, &rest, number).map(Line::Step),
        "bucket" => json(path, &rest, number).map(Line::Bucket),
        "end" => json(path, &rest, number).map(Line::End),
        _ => Err(wrong(path, number, "field `line` should be run, step, bucket or end")),
    }
}

fn without_tag(named: &serde_json::Map<String, serde_json::Value>) -> serde_json::Map<String, serde_json::Value> {
    named.iter().filter(|(key, _)| *key != "line").map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn check_line_schema(path: &Path, line: &[u8]) -> Result<(), RecordError> {
    let value = serde_json::from_slice::<serde_json::Value>(line).unwrap_or_default();
    match value.get("schema").and_then(serde_json::Value::as_u64) {
        Some(found) if found > u64::from(SCHEMA) => {
            Err(RecordError::NewerSchema { path: path.into(), found, ours: SCHEMA })
        }
        _ => Ok(()),
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

fn wrong(path: &Path, line: usize, problem: &str) -> RecordError {
    RecordError::Json { path: path.into(), line, column: 0, problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::EndReason;

    #[test]
    fn a_writer_stops_before_its_file_is_larger_than_what_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rank-0.jsonl");
        let file = File::create_new(&path).unwrap();
        let written = RANK_FILE_BYTES_MAX - 100;
        let writer = RankWriter { path: path.clone(), file, next_step: 0, line: Vec::new(), written };
        let end = RunEnd {
            reason: EndReason::Completed,
            steps: 0,
            parameters_sha256: "ab".repeat(32),
            peak_memory_bytes: crate::units::Bytes(1),
            stolen: None,
        };
        assert!(matches!(writer.end(&end), Err(RecordError::Full { limit: RANK_FILE_BYTES_MAX, .. })));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    }

    #[test]
    fn long_lines_and_large_files_are_refused_without_being_held() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rank-0.jsonl");
        std::fs::write(&path, vec![b' '; LINE_BYTES_MAX as usize + 1]).unwrap();
        assert!(matches!(read_rank_file(&path), Err(RecordError::LongLine { line: 1, .. })));
        File::create(&path).unwrap().set_len(RANK_FILE_BYTES_MAX + 1).unwrap();
        assert!(matches!(read_rank_file(&path), Err(RecordError::TooLarge { .. })));
    }
}
