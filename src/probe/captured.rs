//! A machine that was written down.

use std::collections::BTreeMap;

use miette::{Diagnostic, NamedSource, SourceSpan};

use super::capture::{CAPTURE_SCHEMA, End, Head, Line};
use crate::topology::{Missing, Phase};

use super::{Answer, AskError, Machine, Question};

/// A 256-core machine with 8 GPUs takes about 100 KB.
pub const CAPTURE_BYTES_MAX: usize = 16 << 20;
/// No answer is longer than 64 KiB; escapes may double it.
const LINE_BYTES_MAX: usize = 256 << 10;

/// A capture that cannot be used.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum CaptureError {
    /// It is longer than any machine needs.
    #[error("{file}: {bytes} bytes are too many for a capture: at most {CAPTURE_BYTES_MAX}")]
    #[diagnostic(help("give the file that `rigscale capture` wrote"))]
    TooLarge {
        /// The file.
        file: String,
        /// Its size.
        bytes: usize,
    },
    /// A newer rigscale wrote it.
    #[error("{file}:1: schema {found} is newer than {CAPTURE_SCHEMA}, which this version of rigscale reads")]
    #[diagnostic(help("use the rigscale that wrote it, or a newer one"))]
    Newer {
        /// The file.
        file: String,
        /// Its schema.
        found: u64,
    },
    /// A line makes no sense.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Wrong(Box<WrongLine>),
    /// The end is missing.
    #[error("{file}:{line}: the file was cut: {problem}")]
    #[diagnostic(help("copy the file again, or capture the machine again"))]
    Cut {
        /// The file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// How that shows.
        problem: String,
    },
}

/// A line of a capture that makes no sense.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{file}:{line}: {problem}")]
pub struct WrongLine {
    /// The file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub problem: String,
    /// The line, for the snippet.
    #[source_code]
    pub text: NamedSource<String>,
    /// The place in the line, for the snippet.
    #[label("here")]
    pub at: SourceSpan,
    /// What would be right.
    #[help]
    pub help: &'static str,
}

/// A transcript that answers as the machine did.
#[derive(Debug, Clone)]
pub struct Captured {
    schema: u32,
    answers: BTreeMap<Question, Answer>,
}

impl Captured {
    /// Reads a capture; `file` is the name for errors.
    ///
    /// # Errors
    /// The capture is too long, of a newer schema, cut or garbled: with the line.
    pub fn parse(text: &str, file: &str) -> Result<Self, CaptureError> {
        if CAPTURE_BYTES_MAX < text.len() {
            return Err(CaptureError::TooLarge { file: file.to_owned(), bytes: text.len() });
        }
        let cut = |line: usize, problem: String| CaptureError::Cut { file: file.to_owned(), line, problem };
        let lines: Vec<&str> = text.lines().collect();
        let Some((head, rest)) = lines.split_first() else { return Err(cut(1, "it is empty".into())) };
        let schema = check_head(head, file)?;
        let Some((end, middle)) = rest.split_last() else { return Err(cut(1, "it holds nothing but its head".into())) };
        let mut answers = BTreeMap::<Question, Answer>::new();
        for (index, text) in middle.iter().enumerate() {
            let Line { ask, phase, answer } = parse(text, file, index + 2, LINE_HELP)?;
            let answer = Answer { phase, answer };
            // Under load beats at rest; a question that was answered twice at one time has no answer.
            match answers.get(&ask) {
                Some(known) if answer.phase < known.phase => {}
                Some(known) if answer.phase == known.phase => {
                    let problem = format!("{ask} was already answered above");
                    return Err(wrong(text, file, index + 2, 1, problem, LINE_HELP));
                }
                _ => drop(answers.insert(ask, answer)),
            }
        }
        if !end.starts_with("{\"answers\":") {
            return Err(cut(lines.len(), "its last line is not the count of answers".into()));
        }
        let End { answers: counted } = parse(end, file, lines.len(), END_HELP)?;
        match counted == middle.len() {
            true => Ok(Self { schema, answers }),
            false => Err(cut(lines.len(), format!("its end counts {counted} answers, it holds {}", middle.len()))),
        }
    }
}

impl Machine for Captured {
    fn ask(&self, question: &Question) -> Result<Answer, AskError> {
        match self.answers.get(question) {
            Some(answer) => Ok(answer.clone()),
            None if self.schema < question.since() => {
                Ok(Answer { phase: Phase::AtRest, answer: Err(Missing::not_asked()) })
            }
            None => Err(AskError::NeverAsked { question: question.clone() }),
        }
    }
}

const HEAD_HELP: &str =
    "the first line is {\"capture\":3,\"rigscale\":\"…\",\"redacted\":true}, as `rigscale capture` writes it";
const LINE_HELP: &str = "a line holds one question and its answer: {\"ask\":{\"file\":\"/proc/cmdline\"},\"answer\":\"quiet\"}, or \
                         {\"missing\":\"absent\"} for the answer";
const END_HELP: &str = "the last line is {\"answers\":N} with the number of lines between the first and itself";

/// The schema of the capture.
fn check_head(text: &str, file: &str) -> Result<u32, CaptureError> {
    let found = serde_json::from_str::<serde_json::Value>(text).ok();
    let schema = found.as_ref().and_then(|head| head.get("capture")).and_then(serde_json::Value::as_u64);
    if let Some(found) = schema.filter(|schema| u64::from(CAPTURE_SCHEMA) < *schema) {
        return Err(CaptureError::Newer { file: file.to_owned(), found });
    }
    let head: Head = parse(text, file, 1, HEAD_HELP)?;
    match head.capture {
        schema @ 1..=CAPTURE_SCHEMA => Ok(schema),
        never => Err(wrong(text, file, 1, 1, format!("schema {never} was never written"), HEAD_HELP)),
    }
}

fn parse<'a, T: serde::Deserialize<'a>>(
    text: &'a str,
    file: &str,
    line: usize,
    help: &'static str,
) -> Result<T, CaptureError> {
    if LINE_BYTES_MAX < text.len() {
        let problem = format!("{} bytes are too many for a line: at most {LINE_BYTES_MAX}", text.len());
        let start: String = text.chars().take(80).collect();
        return Err(wrong(&start, file, line, 1, problem, help));
    }
    serde_json::from_str(text).map_err(|error| {
        let rendered = error.to_string();
        let problem = rendered.split(" at line ").next().unwrap_or_default().to_owned();
        wrong(text, file, line, error.column(), problem, help)
    })
}

fn wrong(text: &str, file: &str, line: usize, column: usize, problem: String, help: &'static str) -> CaptureError {
    let at = column.saturating_sub(1).min(text.len());
    CaptureError::Wrong(Box::new(WrongLine {
        file: file.to_owned(),
        line,
        problem,
        text: NamedSource::new(format!("{file}, line {line}"), text.to_owned()),
        at: SourceSpan::from((at, 0)),
        help,
    }))
}
