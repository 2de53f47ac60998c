//! Whole files: bounded reading, and writing that leaves either the old file or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::topology::parse_yaml;

use super::finite::check_finite;
use super::{RecordError, SCHEMA};

/// No single record is larger: 15 trials of 10,000 steps with buckets stay below 100 MB.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// No plan or topology is larger.
const YAML_BYTES_MAX: u64 = 4 << 20;

/// What to do about a plan that is wrong.
const YAML_HELP: &str = "`rigscale qualify` and `rigscale train` write plan.yaml; restore it from where it came";

/// Whether something has this path: a link that points nowhere is something.
///
/// # Errors
/// [`RecordError::File`] where the operating system does not say: what cannot be looked at is not absent.
pub fn is_there(path: &Path) -> Result<bool, RecordError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(RecordError::File { attempt: "read", path: path.into(), source }),
    }
}

/// Opens a regular file for reading. A pipe would wait for a writer for ever, a device never end, and opening some
/// devices changes them.
///
/// # Errors
/// The file cannot be opened, or is something else.
pub(super) fn open_regular(path: &Path) -> Result<File, RecordError> {
    let fail = |source| RecordError::File { attempt: "read", path: path.into(), source };
    let regular = |is_file| if is_file { Ok(()) } else { Err(RecordError::NotAFile { path: path.into() }) };
    regular(fs::metadata(path).map_err(fail)?.is_file())?;
    // the path may have been given to something else meanwhile: that must not wait either
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(fail)?;
    regular(file.metadata().map_err(fail)?.is_file())?;
    Ok(file)
}

/// Reads a text file of at most `limit` bytes.
///
/// # Errors
/// The file cannot be read, is no regular file or no text, or is larger.
pub fn read_text(path: &Path, limit: u64) -> Result<String, RecordError> {
    let fail = |source| RecordError::File { attempt: "read", path: path.into(), source };
    let mut text = String::new();
    open_regular(path)?.take(limit + 1).read_to_string(&mut text).map_err(fail)?;
    if text.len() as u64 > limit {
        return Err(RecordError::TooLarge { path: path.into(), limit });
    }
    Ok(text)
}

/// Writes a file whole: into a neighbour first, then renamed into place. What has the neighbour's name is what an
/// earlier write left, or a trap: it is removed, and never written through.
///
/// # Errors
/// [`RecordError::File`]; then neither a new nor half a file is there.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), RecordError> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".part");
    let part = path.with_file_name(name);
    let written = match fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => File::create_new(&part)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&part, path)),
    };
    written.map_err(|source| {
        let _ = fs::remove_file(&part);
        RecordError::File { attempt: "write", path: path.into(), source }
    })
}

/// Refuses a number that is not finite, naming its field.
pub(super) fn refuse_not_finite<T: Serialize + ?Sized>(path: &Path, record: &T) -> Result<(), RecordError> {
    check_finite(record).map_err(|wrong| RecordError::File {
        attempt: "write",
        path: path.into(),
        source: io::Error::new(io::ErrorKind::InvalidData, wrong),
    })
}

/// Writes a record as indented JSON with a final newline.
///
/// # Errors
/// [`RecordError::File`], also when a number is not finite.
pub fn write_json<T: Serialize>(path: &Path, record: &T) -> Result<(), RecordError> {
    refuse_not_finite(path, record)?;
    let mut bytes = serde_json::to_vec_pretty(record).map_err(|error| RecordError::File {
        attempt: "write",
        path: path.into(),
        source: error.into(),
    })?;
    bytes.push(b'\n');
    write_whole(path, &bytes)
}

/// Reads a JSON record of this or an older schema.
///
/// # Errors
/// Names file, line, column and field of the first problem.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, RecordError> {
    let text = read_text(path, FILE_BYTES_MAX)?;
    check_schema(path, &text)?;
    json(path, &text, 1)
}

/// Refuses a newer schema by name before its fields can confuse anyone.
fn check_schema(path: &Path, text: &str) -> Result<(), RecordError> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        schema: u64,
    }
    match serde_json::from_str::<Versioned>(text) {
        Ok(Versioned { schema }) if schema > u64::from(SCHEMA) => {
            Err(RecordError::NewerSchema { path: path.into(), found: schema, ours: SCHEMA })
        }
        _ => Ok(()),
    }
}

/// Parses `text`, which begins on line `first_line` of the file, and names the field that is wrong.
pub(super) fn json<T: DeserializeOwned>(path: &Path, text: &str, first_line: usize) -> Result<T, RecordError> {
    let mut parser = serde_json::Deserializer::from_str(text);
    let parsed = serde_path_to_error::deserialize(&mut parser).map_err(|error| {
        let field = error.path().to_string();
        let inner = error.into_inner();
        let cause = inner.to_string();
        let cause = cause.rsplit_once(" at line ").map_or(cause.as_str(), |(cause, _)| cause);
        let problem = if field == "." || inner.is_syntax() || inner.is_eof() {
            cause.to_owned()
        } else {
            format!("field `{field}`: {cause}")
        };
        RecordError::Json {
            path: path.into(),
            line: first_line + inner.line().saturating_sub(1),
            column: inner.column(),
            problem,
        }
    })?;
    parser.end().map_err(|error| RecordError::Json {
        path: path.into(),
        line: first_line + error.line().saturating_sub(1),
        column: error.column(),
        problem: "more text follows the record".into(),
    })?;
    Ok(parsed)
}

/// Writes a record as YAML.
///
/// # Errors
/// [`RecordError::File`], also when a number is not finite.
pub fn write_yaml<T: Serialize>(path: &Path, record: &T) -> Result<(), RecordError> {
    refuse_not_finite(path, record)?;
    let text = serde_saphyr::to_string(record).map_err(|error| RecordError::File {
        attempt: "write",
        path: path.into(),
        source: io::Error::other(error.to_string()),
    })?;
    write_whole(path, text.as_bytes())
}

/// Reads a YAML record of this or an older schema. YAML can spell numbers that are not finite (`.nan`); none is taken.
///
/// # Errors
/// Names file, line and field, with a snippet; file and field of a number that is not finite.
pub fn read_yaml<T: Serialize + DeserializeOwned>(path: &Path) -> Result<T, RecordError> {
    let text = read_text(path, YAML_BYTES_MAX)?;
    let schema = text.lines().find_map(|line| line.strip_prefix("schema:")).and_then(|value| value.trim().parse().ok());
    match schema {
        Some(found) if found > u64::from(SCHEMA) => {
            Err(RecordError::NewerSchema { path: path.into(), found, ours: SCHEMA })
        }
        _ => {
            let record = parse_yaml(&text, &path.display().to_string(), YAML_HELP)?;
            check_finite(&record).map_err(|wrong| RecordError::NotFinite { path: path.into(), field: wrong.field })?;
            Ok(record)
        }
    }
}
