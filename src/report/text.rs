//! Strings from outside made safe to print, and escaped for Markdown.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A copy of `record` in which every string can be printed anywhere: characters that no XML file may hold, that steer
/// a terminal, or that turn the direction of text are replaced by `U+FFFD`.
///
/// # Errors
/// A number that is not finite has no JSON, and so no copy.
pub(super) fn printable<T: Serialize + DeserializeOwned>(record: &T) -> Result<T, serde_json::Error> {
    serde_json::from_value(cleaned(serde_json::to_value(record)?))
}

fn cleaned(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(printable_text(&text)),
        Value::Array(items) => Value::Array(items.into_iter().map(cleaned).collect()),
        Value::Object(fields) => fields.into_iter().map(|(name, field)| (name, cleaned(field))).collect(),
        other => other,
    }
}

/// `text` with every character that cannot be printed replaced, and line breaks made spaces.
pub(crate) fn printable_text(text: &str) -> String {
    let replace = |c: char| match c {
        '\n' | '\t' => ' ',
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        '\u{2028}' | '\u{2029}' | '\u{fdd0}'..='\u{fdef}' => '\u{fffd}',
        c if c.is_control() || u32::from(c) & 0xfffe == 0xfffe => '\u{fffd}',
        c => c,
    };
    text.replace("\r\n", " ").chars().map(replace).collect()
}

/// `text` as Markdown that shows it and does nothing else: no markup, no cell border, no link, no HTML.
pub(super) fn markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let digits = text.chars().take_while(char::is_ascii_digit).count();
    for (index, c) in text.chars().enumerate() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '#' | '$' => escaped.extend(['\\', c]),
            // At the start of a line these would open a list or underline a heading; `1.` opens one too.
            '-' | '+' | '=' if index == 0 => escaped.extend(['\\', c]),
            '.' | ')'
                if 0 < digits && index == digits && text.chars().nth(index + 1).is_none_or(char::is_whitespace) =>
            {
                escaped.extend(['\\', c]);
            }
            // A bare address would become a link.
            ':' if text.chars().skip(index + 1).take(2).eq("//".chars()) => escaped.push_str("\\:"),
            '\n' | '\r' => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_steer_are_replaced() {
        assert_eq!(printable_text("a\u{1b}[31mb\0c\u{202e}d\u{ffff}"), "a\u{fffd}[31mb\u{fffd}c\u{fffd}d\u{fffd}");
        assert_eq!(printable_text("two\r\nlines\tand é 漢"), "two lines and é 漢");
    }

    #[test]
    fn strings_are_cleaned_at_any_depth_and_numbers_kept_to_the_bit() {
        let record = (vec!["x\u{7}".to_owned()], 0.1f64 + 0.2, Some(u64::MAX));
        assert_eq!(printable(&record).unwrap(), (vec!["x\u{fffd}".to_owned()], 0.1 + 0.2, Some(u64::MAX)));
        assert!(printable(&vec![f64::NAN]).is_err());
    }

    #[test]
    fn markdown_shows_what_was_written() {
        let rows = [
            ("<b> & | `x`", "&lt;b&gt; &amp; \\| \\`x\\`"),
            ("- item", "\\- item"),
            ("12. item", "12\\. item"),
            ("12.5 ms", "12.5 ms"),
            ("[a](http://b)", "\\[a\\](http\\://b)"),
            ("x - y = z", "x - y = z"),
        ];
        for (text, expected) in rows {
            assert_eq!(markdown(text), expected);
        }
    }
}
