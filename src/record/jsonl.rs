//! Files of lines, each a JSON record: written line by line as things happen, read one line at a time.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::file::{json, open_regular, read_text, refuse_not_finite};
use super::{RecordError, SCHEMA};

/// No line is longer: the longest is the head of a rank file, with one number for each CPU of the rank.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// A file that grows by whole lines: each reaches it in one write, before the call returns.
#[derive(Debug)]
pub(super) struct LineFile {
    path: PathBuf,
    file: File,
    line: Vec<u8>,
    written: u64,
    limit: u64,
}

impl LineFile {
    /// Creates the file, which must not exist and will never hold more than `limit` bytes.
    ///
    /// # Errors
    /// [`RecordError::File`].
    pub(super) fn create(path: &Path, limit: u64) -> Result<Self, RecordError> {
        let file = File::create_new(path).map_err(|source| RecordError::File {
            attempt: "create",
            path: path.into(),
            source,
        })?;
        Ok(Self { path: path.into(), file, line: Vec::new(), written: 0, limit })
    }

    /// Opens a file that is there, to write behind its last whole line; what follows that is cut off.
    ///
    /// # Errors
    /// [`RecordError::File`]; it is no regular file, or larger than `limit`.
    pub(super) fn go_on(path: &Path, limit: u64) -> Result<Self, RecordError> {
        let fail = |source| RecordError::File { attempt: "write", path: path.into(), source };
        let text = read_text(path, limit)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1) as u64;
        let mut file = File::options().write(true).open(path).map_err(fail)?;
        file.set_len(whole).and_then(|()| file.seek(SeekFrom::End(0))).map_err(fail)?;
        Ok(Self { path: path.into(), file, line: Vec::new(), written: whole, limit })
    }

    /// Writes one line.
    ///
    /// # Errors
    /// [`RecordError::File`], also when a number is not finite; [`RecordError::Full`] before the file becomes larger
    /// than what is read back.
    pub(super) fn write<T: Serialize>(&mut self, line: &T) -> Result<(), RecordError> {
        let fail = |source| RecordError::File { attempt: "write", path: self.path.clone(), source };
        refuse_not_finite(&self.path, line)?;
        self.line.clear();
        serde_json::to_writer(&mut self.line, line).map_err(|error| fail(error.into()))?;
        self.line.push(b'\n');
        let len = self.line.len() as u64;
        if LINE_BYTES_MAX < len || self.limit < self.written + len {
            let limit = if LINE_BYTES_MAX < len { LINE_BYTES_MAX } else { self.limit };
            return Err(RecordError::Full { path: self.path.clone(), limit });
        }
        self.file.write_all(&self.line).map_err(fail)?;
        self.written += len;
        Ok(())
    }

    /// Waits until all lines are on the disk.
    ///
    /// # Errors
    /// [`RecordError::File`].
    pub(super) fn end(self) -> Result<(), RecordError> {
        self.file.sync_all().map_err(|source| RecordError::File { attempt: "write", path: self.path, source })
    }
}

/// The lines of a file, one in memory at a time.
pub(super) struct Lines<'a> {
    path: &'a Path,
    file: BufReader<std::io::Take<File>>,
    line: Vec<u8>,
    number: usize,
}

impl<'a> Lines<'a> {
    /// Opens a file of at most `limit` bytes.
    ///
    /// # Errors
    /// It cannot be read, is no regular file, or is larger.
    pub(super) fn open(path: &'a Path, limit: u64) -> Result<Self, RecordError> {
        let file = open_regular(path)?;
        let len =
            file.metadata().map_err(|source| RecordError::File { attempt: "read", path: path.into(), source })?.len();
        if limit < len {
            return Err(RecordError::TooLarge { path: path.into(), limit });
        }
        Ok(Self { path, file: BufReader::new(file.take(limit)), line: Vec::new(), number: 0 })
    }

    /// The next whole line and its number; none at the end of the file or of its whole lines.
    ///
    /// # Errors
    /// It cannot be read, or is longer than any that rigscale writes.
    pub(super) fn next(&mut self) -> Result<Option<(usize, &[u8])>, RecordError> {
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

/// A line whose kind stands in its field `line`. The fast way first; only a line that fails is parsed again, by
/// `named`, which is given its kind and the other fields and says which of them is wrong.
///
/// # Errors
/// The line is no such record.
pub(super) fn parse<T: DeserializeOwned>(
    path: &Path,
    number: usize,
    line: &[u8],
    named: fn(&Path, usize, &str, &str) -> Result<T, RecordError>,
) -> Result<T, RecordError> {
    if let Ok(line) = serde_json::from_slice(line) {
        return Ok(line);
    }
    let line = str::from_utf8(line).map_err(|_| wrong(path, number, "the line is no UTF-8 text"))?;
    let mut fields = json::<Map<String, Value>>(path, line, number)?;
    let kind = fields.remove("line").and_then(|kind| kind.as_str().map(str::to_owned)).unwrap_or_default();
    named(path, number, &kind, &serde_json::to_string(&fields).unwrap_or_default())
}

/// Refuses a newer schema by name before its fields can confuse anyone.
///
/// # Errors
/// [`RecordError::NewerSchema`].
pub(super) fn check_schema(path: &Path, line: &[u8]) -> Result<(), RecordError> {
    let value = serde_json::from_slice::<Value>(line).unwrap_or_default();
    match value.get("schema").and_then(Value::as_u64) {
        Some(found) if found > u64::from(SCHEMA) => {
            Err(RecordError::NewerSchema { path: path.into(), found, ours: SCHEMA })
        }
        _ => Ok(()),
    }
}

/// What is wrong with a line as a whole.
pub(super) fn wrong(path: &Path, line: usize, problem: &str) -> RecordError {
    RecordError::Json { path: path.into(), line, column: 0, problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_stops_before_its_file_is_larger_than_what_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rank-0.jsonl");
        let mut file = LineFile::create(&path, 10).unwrap();
        file.write(&"1234567").unwrap();
        assert!(matches!(file.write(&1), Err(RecordError::Full { limit: 10, .. })));
        let mut file = LineFile::create(&folder.path().join("rank-1.jsonl"), u64::MAX).unwrap();
        let long = "x".repeat(LINE_BYTES_MAX as usize);
        assert!(matches!(file.write(&long), Err(RecordError::Full { limit: LINE_BYTES_MAX, .. })));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 10);
    }

    #[test]
    fn long_lines_and_large_files_are_refused_without_being_held() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rank-0.jsonl");
        let limit = 4 << 30;
        std::fs::write(&path, vec![b' '; LINE_BYTES_MAX as usize + 1]).unwrap();
        let next = Lines::open(&path, limit).unwrap().next().map(|_| ());
        assert!(matches!(next, Err(RecordError::LongLine { line: 1, .. })));
        File::create(&path).unwrap().set_len(limit + 1).unwrap();
        assert!(matches!(Lines::open(&path, limit), Err(RecordError::TooLarge { .. })));
    }
}
