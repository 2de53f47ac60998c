//! XML of strangers: bounded, without a document type, with errors that point at the place.

use std::fmt::Display;
use std::str::FromStr;

use roxmltree::{Document, Node, ParsingOptions};

use super::{WrongPlace, place_in};

/// The largest published NCCL dump takes 60 KB; lstopo of a 256-core machine about 1 MB.
pub const XML_BYTES_MAX: usize = 16 << 20;
/// lstopo of a 256-core machine writes about 20,000 elements and as many blanks between them.
const NODES_MAX: u32 = 400_000;

/// One element.
pub type XmlNode<'a, 'b> = Node<'a, 'b>;

/// What is being read, for errors.
#[derive(Debug, Clone, Copy)]
pub struct Xml<'a> {
    text: &'a str,
    file: &'a str,
    help: &'static str,
}

impl<'a> Xml<'a> {
    /// Parses a text; `file` is the name for errors, `help` says what would be right.
    ///
    /// # Errors
    /// It is too long, holds too much or a document type, or is no XML: with its place.
    pub fn parse(text: &'a str, file: &'a str, help: &'static str) -> Result<(Self, Document<'a>), Box<WrongPlace>> {
        let xml = Self { text, file, help };
        if XML_BYTES_MAX < text.len() {
            let problem = format!("{} bytes are too many: at most {XML_BYTES_MAX}", text.len());
            return Err(Box::new(place_in("", file, 0, problem, help)));
        }
        let options = ParsingOptions { nodes_limit: NODES_MAX, ..ParsingOptions::default() };
        match Document::parse_with_options(text, options) {
            Ok(document) => Ok((xml, document)),
            Err(error) => Err(xml.misread(&error)),
        }
    }

    fn misread(self, error: &roxmltree::Error) -> Box<WrongPlace> {
        if matches!(error, roxmltree::Error::UnexpectedEndOfStream) {
            let problem = "the file was cut: it ends inside of an element".to_owned();
            return Box::new(place_in(self.text, self.file, self.text.len(), problem, self.help));
        }
        let place = error.pos();
        let rendered = error.to_string();
        let problem = rendered.rsplit_once(" at ").map_or(rendered.as_str(), |(problem, _)| problem).to_owned();
        let problem = match error {
            roxmltree::Error::NodesLimitReached => format!("more than {NODES_MAX} elements and texts"),
            _ => problem,
        };
        let (line, column) = (u64::from(place.row), u64::from(place.col));
        let before = usize::try_from(line.saturating_sub(1)).unwrap_or(usize::MAX);
        let start: usize = self.text.split_inclusive('\n').take(before).map(str::len).sum();
        let columns = usize::try_from(column.saturating_sub(1)).unwrap_or(usize::MAX);
        let inside: usize = self.text[start..].chars().take(columns).map(char::len_utf8).sum();
        Box::new(place_in(self.text, self.file, start + inside, problem, self.help))
    }

    /// The error for an element.
    #[must_use]
    pub fn wrong(self, node: Node<'_, '_>, problem: impl Into<String>) -> Box<WrongPlace> {
        Box::new(place_in(self.text, self.file, node.range().start, problem.into(), self.help))
    }

    /// The text of an attribute that must be there.
    ///
    /// # Errors
    /// It is not.
    pub fn required<'n>(self, node: Node<'n, '_>, name: &str) -> Result<&'n str, Box<WrongPlace>> {
        let lacks = || self.wrong(node, format!("<{}> lacks the attribute `{name}`", node.tag_name().name()));
        node.attribute(name).ok_or_else(lacks)
    }

    /// The value of an attribute, where there is one.
    ///
    /// # Errors
    /// Its text is no such value.
    pub fn optional<T: FromStr<Err: Display>>(
        self,
        node: Node<'_, '_>,
        name: &str,
    ) -> Result<Option<T>, Box<WrongPlace>> {
        let Some(attribute) = node.attribute_node(name) else { return Ok(None) };
        let wrong = |error: T::Err| {
            let shown: String = attribute.value().chars().take(40).collect();
            let problem = format!("`{name}=\"{shown}\"`: {error}");
            Box::new(place_in(self.text, self.file, attribute.range_value().start, problem, self.help))
        };
        attribute.value().trim().parse().map(Some).map_err(wrong)
    }

    /// The value of an attribute that must be there.
    ///
    /// # Errors
    /// It is not there, or its text is no such value.
    pub fn value<T: FromStr<Err: Display>>(self, node: Node<'_, '_>, name: &str) -> Result<T, Box<WrongPlace>> {
        self.required(node, name)?;
        let lacks = || self.wrong(node, format!("<{}> lacks the attribute `{name}`", node.tag_name().name()));
        self.optional(node, name)?.ok_or_else(lacks)
    }
}
