//! A place in a text that is wrong.

use miette::{Diagnostic, NamedSource, SourceSpan};

/// Lines up to this length are shown whole.
const LINE_BYTES_SHOWN: usize = 1000;
/// Of longer ones, so much on either side of the place.
const SIDE_BYTES_SHOWN: usize = 80;

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
    let (shown, at) = snippet(text, offset);
    let length = usize::from(at < shown.len());
    WrongPlace {
        file: file.to_owned(),
        line,
        column,
        problem,
        text: NamedSource::new(file, shown.to_owned()),
        at: SourceSpan::from((at, length)),
        help,
    }
}

/// The text from which a snippet is cut, and the offset in it: the text itself or, where a line near the place is long,
/// what stands beside the place. A file of one line of megabytes would otherwise be printed whole.
fn snippet(text: &str, offset: usize) -> (&str, usize) {
    let start = text[..offset].rmatch_indices('\n').nth(2).map_or(0, |(at, _)| at + 1);
    let end = text[offset..].match_indices('\n').nth(2).map_or(text.len(), |(at, _)| offset + at);
    if text[start..end].lines().all(|line| line.len() <= LINE_BYTES_SHOWN) {
        return (text, offset);
    }
    let boundary = |at: &usize| text.is_char_boundary(*at);
    let start = (offset.saturating_sub(SIDE_BYTES_SHOWN)..=offset).find(boundary).unwrap_or(offset);
    let end = (offset..=(offset + SIDE_BYTES_SHOWN).min(text.len())).rev().find(boundary).unwrap_or(offset);
    (&text[start..end], offset - start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_shown_in_part() {
        let long = format!("first\n{}é{}\nlast", "x".repeat(5000), "y".repeat(5000));
        let wrong = place_in(&long, "f", 5007, "bad".into(), "");
        assert_eq!((wrong.line, wrong.column), (2, 5001));
        assert_eq!(&long[5006..5008], "é");
        let (shown, at) = snippet(&long, 5006);
        assert!(shown.len() <= 2 * SIDE_BYTES_SHOWN && shown[at..].starts_with('é'), "{shown}");
        assert_eq!(snippet("a\nb\nc", 2), ("a\nb\nc", 2));
    }
}
