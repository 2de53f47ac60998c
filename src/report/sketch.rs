//! A machine that is known by its description only, as its picture needs it: `machine.json` of a predicted run.

use serde::{Deserialize, Serialize};

use crate::units::BytesPerSecond;

/// Name of the file in a run folder.
pub const SKETCH_FILE: &str = "machine.json";

/// Boxes above each other and boxes in all that are drawn; more is no machine.
const DEPTH_MAX: usize = 12;
const BOXES_MAX: usize = 2_000;

/// A machine as boxes and links.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sketch {
    /// Version of the file.
    pub schema: u32,
    /// What it is.
    pub title: String,
    /// Processors, each with what hangs on it.
    pub hosts: Vec<SketchPart>,
}

/// One box.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SketchPart {
    /// What it is.
    pub kind: SketchKind,
    /// What stands in it, the most important first.
    pub lines: Vec<String>,
    /// The link above it.
    pub link: Option<SketchLink>,
    /// What hangs below it.
    pub below: Vec<SketchPart>,
    /// What joins a processor to the others, in words.
    pub across: Option<String>,
}

/// What a box is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SketchKind {
    /// A processor.
    Host,
    /// A root complex.
    Port,
    /// A switch.
    Switch,
    /// A chipset.
    Chipset,
    /// A slot, with a GPU or empty.
    Slot,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SketchLink {
    /// `Gen4 x16`.
    pub name: String,
    /// One direction.
    #[serde(rename = "rate_bytes_per_s")]
    pub rate: Option<BytesPerSecond>,
    /// Whether somebody checked it: a manual, the machine or a measurement.
    pub checked: bool,
    /// Whether it limits the ring.
    pub limits: bool,
}

impl Sketch {
    /// True where it can be drawn: a file may hold anything.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        fn count(parts: &[SketchPart], depth: usize) -> Option<usize> {
            let mut boxes = parts.len();
            for part in parts {
                let rate = part.link.as_ref().and_then(|link| link.rate);
                if depth == 0
                    || part.lines.is_empty()
                    || 8 < part.lines.len()
                    || rate.is_some_and(|rate| rate.0.is_nan() || rate.0 <= 0.0)
                {
                    return None;
                }
                boxes += count(&part.below, depth - 1)?;
            }
            Some(boxes)
        }
        count(&self.hosts, DEPTH_MAX).is_some_and(|boxes| 0 < boxes && boxes <= BOXES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sketch_that_is_too_deep_or_has_no_rate_is_not_sound() {
        let link =
            SketchLink { name: "Gen4 x16".into(), rate: Some(BytesPerSecond(1e9)), checked: true, limits: false };
        let part = |below: Vec<SketchPart>| SketchPart {
            kind: SketchKind::Switch,
            lines: vec!["a".into()],
            link: Some(link.clone()),
            below,
            across: None,
        };
        let sound = |hosts: Vec<SketchPart>| Sketch { schema: 1, title: "a".into(), hosts }.is_sound();
        assert!(sound(vec![part(vec![part(Vec::new())])]) && !sound(Vec::new()));
        let deep = (0..DEPTH_MAX).fold(part(Vec::new()), |inner, _| part(vec![inner]));
        assert!(!sound(vec![deep]));
        let mut still = part(Vec::new());
        still.link.as_mut().unwrap().rate = Some(BytesPerSecond(f64::NAN));
        assert!(!sound(vec![still]));
    }
}
