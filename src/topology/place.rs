//! A place in a text that is wrong.

use miette::{Diagnostic, NamedSource, SourceSpan};

/// A place in an input file that is wrong: YAML, XML, or the output of a tool.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{file}:{line}:{column}: {problem}")]
pub struct WrongPlace {
    /// The file.
    pub file: String,
    /// Line, from 1.
    pub line: u64,
    /// Column, from 1.
    pub column: u64,
    /// What is wrong there.
    pub problem: String,
    /// The text, for the snippet.
    #[source_code]
    pub text: NamedSource<String>,
    /// The place, for the snippet.
    #[label("here")]
    pub at: SourceSpan,
    /// What to do about it.
    #[help]
    pub help: &'static str,
}

/// The error for byte `offset` of `text`.
#[must_use]
pub fn place_in(text: &str, file: &str, offset: usize, problem: String, help: &'static str) -> WrongPlace {
    let offset = (0..=offset.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let before = &text[..offset];
    let line = before.matches('\n').count() as u64 + 1;
    let column = before.chars().rev().take_while(|letter| *letter != '\n').count() as u64 + 1;
    WrongPlace {
        file: file.to_owned(),
        line,
        column,
        problem,
        text: NamedSource::new(file, text.to_owned()),
        at: SourceSpan::from((before.len(), usize::from(before.len() < text.len()))),
        help,
    }
}
