//! Writing down what a machine answers.
//!
//! A capture is a file of JSON lines: a head, then one line for each question with its answer, last a line that counts
//! them, so that a file that was cut is known for one.

use std::cell::RefCell;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, schema_for};
use serde::{Deserialize, Serialize};

use super::{Answer, AskError, Machine, Question, Redactor};

/// The schema of captures that this version writes. A newer one is refused by name; of an older one, what it was not
/// asked is missing as never asked ([`Question::since`]).
pub const CAPTURE_SCHEMA: u32 = 3;

/// The first line of a capture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Head {
    /// [`CAPTURE_SCHEMA`].
    pub(super) capture: u32,
    /// Version of rigscale that wrote it.
    pub(super) rigscale: String,
    /// Whether names, serial numbers and the like were taken out.
    pub(super) redacted: bool,
    /// Where it comes from, if it was not captured on the machine itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) source: String,
}

/// A line in the middle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    /// The question.
    pub(super) ask: Question,
    /// When it was answered.
    #[serde(default, skip_serializing_if = "crate::topology::Phase::is_at_rest")]
    pub(super) phase: crate::topology::Phase,
    /// The answer.
    #[serde(with = "crate::topology::Fact::<super::Value>")]
    pub(super) answer: crate::topology::Reading<super::Value>,
}

/// The last line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct End {
    /// How many answers the file holds.
    pub(super) answers: usize,
}

/// Any line of a capture, for its JSON schema.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used: readers know which line they expect")]
enum AnyLine {
    Head(Head),
    Line(Box<Line>),
    End(End),
}

/// The JSON schema of a line of a capture.
#[must_use]
pub fn capture_schema() -> Schema {
    schema_for!(AnyLine)
}

/// A transcript that cannot be spelled.
#[derive(Debug, thiserror::Error)]
#[error("the answer to {question} could not be written as JSON")]
pub struct RecordError {
    /// The question.
    pub question: String,
    /// Why.
    #[source]
    pub source: serde_json::Error,
}

/// Asks another machine and keeps each answer. Answers are redacted before anyone sees them, so that what is made of
/// them equals what is made of the transcript.
pub struct Recorder<M> {
    machine: M,
    redactor: Option<Redactor>,
    answers: RefCell<BTreeMap<Question, Answer>>,
    order: RefCell<Vec<Question>>,
}

impl<M: Machine> Recorder<M> {
    /// A recorder of `machine`. Without a redactor the transcript may name hosts, users and pieces of hardware.
    pub fn new(machine: M, redactor: Option<Redactor>) -> Self {
        Self { machine, redactor, answers: RefCell::default(), order: RefCell::default() }
    }

    /// The capture of all that was asked so far.
    ///
    /// # Errors
    /// An answer cannot be spelled as JSON.
    pub fn transcript(&self) -> Result<String, RecordError> {
        let rigscale = env!("CARGO_PKG_VERSION").to_owned();
        let redacted = self.redactor.is_some();
        let head = Head { capture: CAPTURE_SCHEMA, rigscale, redacted, source: String::new() };
        let answers = self.answers.borrow();
        let mut text = line(&head, "the head")?;
        for question in self.order.borrow().iter() {
            let Some(Answer { phase, answer }) = answers.get(question).cloned() else { continue };
            text += &line(&Line { ask: question.clone(), phase, answer }, question)?;
        }
        text += &line(&End { answers: answers.len() }, "the end")?;
        Ok(text)
    }
}

fn line(value: &impl Serialize, question: impl ToString) -> Result<String, RecordError> {
    match serde_json::to_string(value) {
        Ok(line) => Ok(line + "\n"),
        Err(source) => Err(RecordError { question: question.to_string(), source }),
    }
}

impl<M: Machine> Machine for Recorder<M> {
    /// Asks each question once; asked again, it gives the same answer.
    fn ask(&self, question: &Question) -> Result<Answer, AskError> {
        if let Some(answer) = self.answers.borrow().get(question) {
            return Ok(answer.clone());
        }
        let mut answer = self.machine.ask(question)?;
        if let Some(redactor) = &self.redactor {
            answer = redactor.redact(question, answer);
        }
        self.order.borrow_mut().push(question.clone());
        self.answers.borrow_mut().insert(question.clone(), answer.clone());
        Ok(answer)
    }
}
