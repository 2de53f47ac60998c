//! A chart as a list of marks, before any backend has seen it.

use plotters::style::{FontStyle, IntoFont, RGBColor, register_font};

/// Name under which the embedded font is registered.
pub(super) const FAMILY: &str = "rigscale";

/// Line height of the embedded font over its em: ascent 1900, descent 500, 2048 units in an em (its `hhea` table).
/// The rasterizer takes line heights, SVG takes ems.
pub(super) const LINE_PER_EM: f64 = 2400.0 / 2048.0;

/// A colour by its role: light pages and PNGs take the first of its pair, dark pages the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    Paper,
    Text,
    Muted,
    Axis,
    Grid,
    Shade,
    Danger,
    Pale,
    Grey,
    Blue,
    Sky,
    Green,
    Orange,
    Vermilion,
    Purple,
}

impl Ink {
    /// Every ink with its light and dark colour. Series colours are Okabe and Ito's palette, which readers with any
    /// of the common colour-vision deficiencies can tell apart; the dark column is the same hue with more light.
    pub(super) const ALL: [(Self, u32, u32); 15] = [
        (Self::Paper, 0xFF_FF_FF, 0x14_18_1D),
        (Self::Text, 0x1F_24_2B, 0xE4_E9_EF),
        (Self::Muted, 0x5B_65_72, 0x9D_A9_B6),
        (Self::Axis, 0x8C_96_A3, 0x5D_68_75),
        (Self::Grid, 0xE3_E7_EC, 0x2A_31_3A),
        (Self::Shade, 0xFD_F3_F2, 0x27_1B_1E),
        (Self::Danger, 0xC6_2A_2F, 0xFF_7B_76),
        (Self::Pale, 0xD5_DB_E3, 0x3A_44_50),
        (Self::Grey, 0x99_99_99, 0x8B_93_9C),
        (Self::Blue, 0x00_72_B2, 0x3F_A0_E0),
        (Self::Sky, 0x56_B4_E9, 0x8F_D0_F7),
        (Self::Green, 0x00_9E_73, 0x2C_C3_97),
        (Self::Orange, 0xE6_9F_00, 0xF5_B8_3D),
        (Self::Vermilion, 0xD5_5E_00, 0xF5_85_3A),
        (Self::Purple, 0xCC_79_A7, 0xE0_9A_C2),
    ];

    fn pair(self) -> (u32, u32) {
        Self::ALL.iter().find(|(ink, ..)| *ink == self).map_or((0, 0), |(_, light, dark)| (*light, *dark))
    }

    /// The colour on white.
    pub(super) fn light(self) -> RGBColor {
        let [_, red, green, blue] = self.pair().0.to_be_bytes();
        RGBColor(red, green, blue)
    }

    /// Style rules that turn the light colours of an SVG below `scope` into the dark ones.
    pub(super) fn dark_rules(scope: &str) -> String {
        let rule = |(_, light, dark): &(Self, u32, u32)| {
            format!(
                "{scope}[fill=\"#{light:06X}\"]{{fill:#{dark:06X}}}{scope}[stroke=\"#{light:06X}\"]{{stroke:#{dark:06X}}}"
            )
        };
        Self::ALL.iter().map(rule).collect()
    }
}

/// Colours of lines, in the order in which they are given out.
pub(super) const SERIES: [Ink; 6] = [Ink::Blue, Ink::Vermilion, Ink::Green, Ink::Purple, Ink::Orange, Ink::Sky];

/// Size and weight of a text; the size is its em in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Face {
    pub(super) em: f64,
    pub(super) bold: bool,
}

impl Face {
    pub(super) const TITLE: Self = Self { em: 18.0, bold: true };
    pub(super) const BODY: Self = Self { em: 12.5, bold: false };
    pub(super) const STRONG: Self = Self { em: 12.5, bold: true };
    pub(super) const SMALL: Self = Self { em: 11.0, bold: false };

    pub(super) fn style(self) -> FontStyle {
        if self.bold { FontStyle::Bold } else { FontStyle::Normal }
    }

    /// Width of `text` in pixels, in the embedded font. Readers' own fonts differ from it by a few percent.
    pub(super) fn width(self, text: &str) -> f64 {
        const FINE: f64 = 16.0;
        let font = (FAMILY, self.em * LINE_PER_EM * FINE, self.style()).into_font();
        font.box_size(text).map_or(0.0, |(width, _)| f64::from(width) / FINE)
    }

    /// `text`, or its two ends with an ellipsis between them, no wider than `limit` pixels.
    pub(super) fn shortened(self, text: &str, limit: f64) -> String {
        /// No label needs more; longer ones are not even measured whole.
        const CHARS_MAX: usize = 200;
        let chars: Vec<char> = text.chars().collect();
        if chars.len() <= CHARS_MAX && self.width(text) <= limit {
            return text.to_owned();
        }
        let kept = (1..chars.len().min(CHARS_MAX)).rev().map(|kept| {
            let (head, tail) = (kept.div_ceil(2), kept / 2);
            let mut short: String = chars.iter().take(head).collect();
            short.push('…');
            short.extend(chars.iter().skip(chars.len() - tail));
            short
        });
        kept.into_iter().find(|short| self.width(short) <= limit).unwrap_or_else(|| "…".to_owned())
    }

    /// `text` broken between words into lines no wider than `limit` pixels, where words allow it.
    pub(super) fn wrapped(self, text: &str, limit: f64) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for word in text.split_whitespace() {
            match lines.last_mut() {
                Some(line) if self.width(&format!("{line} {word}")) <= limit => {
                    line.push(' ');
                    line.push_str(word);
                }
                _ => lines.push(word.to_owned()),
            }
        }
        lines
    }
}

/// Registers the embedded font for measuring and for bitmaps. Registering twice does no harm.
pub(super) fn register_fonts() -> bool {
    let faces: [(FontStyle, &[u8]); 2] = [
        (FontStyle::Normal, include_bytes!("../fonts/Roboto-Regular.ttf")),
        (FontStyle::Bold, include_bytes!("../fonts/Roboto-Bold.ttf")),
    ];
    faces.into_iter().all(|(style, bytes)| register_font(FAMILY, style, bytes).is_ok())
}

/// Where a text stands relative to its `x`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Start,
    Middle,
    End,
}

/// A point in pixels: x to the right, y down.
pub(super) type At = (f64, f64);

/// One thing to draw.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Mark {
    /// A filled rectangle by two corners.
    Rect { from: At, to: At, ink: Ink },
    /// A straight line.
    Line { from: At, to: At, width: f64, ink: Ink },
    /// A filled circle.
    Dot { at: At, radius: f64, ink: Ink },
    /// A filled shape.
    Area { outline: Vec<At>, ink: Ink },
    /// A text; `at` is on its baseline.
    Text { at: At, align: Align, face: Face, ink: Ink, text: String },
}

/// A whole chart.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scene {
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) title: String,
    pub(super) marks: Vec<Mark>,
}

/// Space between the edge of a chart and anything in it.
pub(super) const EDGE: f64 = 14.0;

impl Scene {
    /// A scene with its title and a line or two below it; returns where the chart itself may begin.
    pub(super) fn titled(width: f64, title: &str, subtitle: &str) -> (Self, f64) {
        let mut scene = Self { width, height: 0.0, title: title.to_owned(), marks: Vec::new() };
        let limit = width - 2.0 * EDGE;
        let mut baseline = 28.0;
        scene.text((EDGE, baseline), Align::Start, Face::TITLE, Ink::Text, title);
        baseline += 5.0;
        for line in Face::BODY.wrapped(subtitle, limit) {
            baseline += 17.0;
            scene.text((EDGE, baseline), Align::Start, Face::BODY, Ink::Muted, &line);
        }
        (scene, baseline + 14.0)
    }

    pub(super) fn rect(&mut self, from: At, to: At, ink: Ink) {
        self.marks.push(Mark::Rect { from, to, ink });
    }

    pub(super) fn line(&mut self, from: At, to: At, width: f64, ink: Ink) {
        self.marks.push(Mark::Line { from, to, width, ink });
    }

    pub(super) fn dot(&mut self, at: At, radius: f64, ink: Ink) {
        self.marks.push(Mark::Dot { at, radius, ink });
    }

    pub(super) fn area(&mut self, outline: Vec<At>, ink: Ink) {
        self.marks.push(Mark::Area { outline, ink });
    }

    pub(super) fn text(&mut self, at: At, align: Align, face: Face, ink: Ink, text: &str) {
        self.marks.push(Mark::Text { at, align, face, ink, text: text.to_owned() });
    }

    /// A text on a plate that hides the grid behind it.
    pub(super) fn plate(&mut self, at: At, align: Align, face: Face, ink: Ink, text: &str) {
        let width = face.width(text) * 1.06;
        let left = match align {
            Align::Start => at.0,
            Align::Middle => at.0 - width / 2.0,
            Align::End => at.0 - width,
        };
        self.rect((left - 2.0, at.1 - face.em * 0.85), (left + width + 2.0, at.1 + face.em * 0.25), Ink::Paper);
        self.text(at, align, face, ink, text);
    }

    /// A horizontal line of dashes.
    pub(super) fn dashes(&mut self, from_x: f64, to_x: f64, y: f64, ink: Ink) {
        const DASH: f64 = 7.0;
        const GAP: f64 = 5.0;
        let count = ((to_x - from_x) / (DASH + GAP)).ceil().max(0.0) as usize;
        for dash in 0..count {
            let x = from_x + dash as f64 * (DASH + GAP);
            self.line((x, y), ((x + DASH).min(to_x), y), 1.75, ink);
        }
    }

    /// Coloured squares with their names, in as many lines as they need; returns the y below them.
    pub(super) fn legend(&mut self, top: f64, entries: &[(Ink, &str)]) -> f64 {
        let (mut x, mut baseline) = (EDGE, top + 12.0);
        for (ink, name) in entries {
            let advance = 16.0 + Face::BODY.width(name) * 1.06 + 18.0;
            if EDGE < x && self.width - EDGE < x + advance - 18.0 {
                (x, baseline) = (EDGE, baseline + 19.0);
            }
            self.rect((x, baseline - 10.0), (x + 11.0, baseline + 1.0), *ink);
            self.text((x + 16.0, baseline), Align::Start, Face::BODY, Ink::Text, name);
            x += advance;
        }
        baseline + 14.0
    }
}

#[cfg(test)]
impl Scene {
    /// Pairs of texts that touch, and texts that leave the scene: none in a good chart.
    pub(super) fn collisions(&self) -> Vec<String> {
        let texts: Vec<(f64, f64, f64, f64, &str)> = self
            .marks
            .iter()
            .filter_map(|mark| {
                let Mark::Text { at, align, face, text, .. } = mark else { return None };
                let width = face.width(text);
                let left = match align {
                    Align::Start => at.0,
                    Align::Middle => at.0 - width / 2.0,
                    Align::End => at.0 - width,
                };
                Some((left, at.1 - face.em * 0.75, left + width, at.1 + face.em * 0.22, text.as_str()))
            })
            .collect();
        let outside =
            |it: &&(f64, f64, f64, f64, &str)| it.0 < 0.0 || it.1 < 0.0 || self.width < it.2 || self.height < it.3;
        let mut found: Vec<String> =
            texts.iter().filter(outside).map(|it| format!("{:?} leaves the scene", it.4)).collect();
        for (index, one) in texts.iter().enumerate() {
            for other in &texts[index + 1..] {
                if one.0 < other.2 && other.0 < one.2 && one.1 < other.3 && other.1 < one.3 {
                    found.push(format!("{:?} and {:?}", one.4, other.4));
                }
            }
        }
        found
    }
}
