//! `nccl.conf` as NCCL reads it (2.30.7, `src/misc/param.cc`): `NAME=VALUE`, `#` in the first column only, no quotes, no
//! trimming; the value is everything behind the first `=`; lines without one are ignored.

/// NCCL's buffer of a name and of a value holds so many bytes, with the end.
const PART_BYTES_MAX: usize = 1023;

/// One line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A remark: `# ` and the text.
    Remark(String),
    /// A variable.
    Set {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
}

/// Writes a file. A remark of several lines becomes several remarks.
///
/// # Panics
/// A name or value cannot be written so that NCCL reads it back: a bug, as the table of knobs holds no such thing.
#[must_use]
pub fn write_conf(lines: &[Line]) -> String {
    let mut text = String::new();
    for line in lines {
        match line {
            Line::Remark(remark) => {
                remark.split('\n').for_each(|one| text.push_str(&format!("# {}\n", one.replace('\r', " "))));
            }
            Line::Set { name, value } => {
                let plain = |part: &str| !part.contains(['\n', '\r', '\0']) && part.len() <= PART_BYTES_MAX;
                assert!(plain(name) && plain(value), "NCCL cannot read {name:?}={value:?}");
                assert!(!name.is_empty() && !name.contains('=') && !name.starts_with('#'), "{name:?} is no name");
                text.push_str(&format!("{name}={value}\n"));
            }
        }
    }
    text
}

/// The variables that NCCL takes from a file, in order; of one that is set twice it keeps the first.
#[must_use]
pub fn parse_conf(text: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for line in text.split('\n') {
        let line = line.trim_end_matches('\r');
        let Some((name, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) else { continue };
        if !name.is_empty() && found.iter().all(|(known, _)| known != name) {
            found.push((name.to_owned(), value.to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blanks_and_quotes_belong_to_the_words_as_they_do_for_nccl() {
        let text = "#NCCL_A=1\n NCCL_B=2\nNCCL_C=\"x\" \r\nwords\nNCCL_D=a=b\nNCCL_D=c\n=3\n";
        let wanted = [(" NCCL_B", "2"), ("NCCL_C", "\"x\" "), ("NCCL_D", "a=b")];
        assert_eq!(parse_conf(text), wanted.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            rows in prop::collection::btree_map("NCCL_[A-Z0-9_]{1,30}", "[!-~][ -~]{0,40}", 0..20),
            remarks in prop::collection::vec("[ -~\\n]{0,60}", 0..4),
        ) {
            let mut lines: Vec<Line> = remarks.into_iter().map(Line::Remark).collect();
            lines.extend(rows.iter().map(|(name, value)| Line::Set { name: name.clone(), value: value.clone() }));
            let read = parse_conf(&write_conf(&lines));
            prop_assert_eq!(read, rows.into_iter().collect::<Vec<_>>());
        }
    }
}
