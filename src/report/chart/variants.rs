//! Variants of a machine or a setting, each with its interval, against the target.

use super::NARROW_BELOW;
use super::axis::{Scale, ticks};
use super::scene::{Align, EDGE, Face, Ink, Scene};

/// More rows than this nobody compares by eye.
pub const VARIANTS_MAX: usize = 40;

/// One row.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// What it is.
    pub name: String,
    /// Efficiency, 0 to 1.
    pub estimate: f64,
    /// Lower end of its interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// A chart of variants. Efficiencies below 0 or above 1.2 lie on the ends of the axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Variants {
    /// What is compared.
    pub title: String,
    /// What all have in common.
    pub subtitle: String,
    /// Efficiency that is wanted.
    pub target: f64,
    /// The rows, in reading order; at most [`VARIANTS_MAX`] are drawn.
    pub rows: Vec<Variant>,
}

/// Height of a row.
const ROW: f64 = 30.0;

pub(super) fn scene(variants: &Variants, width: f64) -> Scene {
    let limit = width - 2.0 * EDGE;
    let title = Face::TITLE.shortened(&variants.title, limit);
    let (mut scene, top) = Scene::titled(width, &title, &variants.subtitle);
    let rows: Vec<&Variant> = variants.rows.iter().take(VARIANTS_MAX).collect();
    let widest = rows.iter().map(|row| Face::BODY.width(&row.name) * 1.06).fold(0.0, f64::max);
    let share = if width < NARROW_BELOW { 0.42 } else { 0.4 };
    let left = EDGE + widest.min(width * share) + 12.0;
    let right = width - EDGE - 44.0;
    let top = top + 18.0;
    let bottom = top + ROW * rows.len() as f64 + 8.0;
    let least = rows.iter().map(|row| row.low).fold(variants.target, f64::min);
    let most = rows.iter().map(|row| row.high).fold(variants.target.max(1.0), f64::max).min(1.2);
    let low = ((least - 0.02).max(0.0) * 20.0).floor() / 20.0;
    let x = Scale::new((low, most), (left, right));
    scene.rect((left, top), (x.at(variants.target), bottom), Ink::Shade);
    grid(&mut scene, &x, (low, most), (left, right, top, bottom));
    target(&mut scene, &x, variants.target, (left, right, top, bottom));
    for (index, row) in rows.iter().enumerate() {
        let y = top + ROW * (index as f64 + 0.5) + 4.0;
        let name = Face::BODY.shortened(&row.name, (left - EDGE - 12.0) / 1.06);
        scene.text((left - 12.0, y + 4.5), Align::End, Face::BODY, Ink::Text, &name);
        interval(&mut scene, &x, row, y);
        let value = format!("{:.2}", row.estimate);
        scene.text((right + 10.0, y + 4.5), Align::Start, Face::STRONG, Ink::Text, &value);
    }
    scene.text(
        (f64::midpoint(left, right), bottom + 40.0),
        Align::Middle,
        Face::BODY,
        Ink::Muted,
        "scaling efficiency",
    );
    scene.height = bottom + 54.0;
    scene
}

fn grid(scene: &mut Scene, x: &Scale, (low, most): (f64, f64), (left, right, top, bottom): (f64, f64, f64, f64)) {
    let wanted = ((right - left) / 60.0).floor().clamp(2.0, 8.0) as usize;
    let (values, decimals) = ticks(low, most, wanted);
    for value in values {
        let at = x.at(value);
        scene.line((at, top), (at, bottom), 1.0, Ink::Grid);
        let label = format!("{value:.*}", decimals.max(1));
        scene.text((at, bottom + 18.0), Align::Middle, Face::BODY, Ink::Text, &label);
    }
    scene.line((left, bottom), (right, bottom), 1.25, Ink::Axis);
}

/// The target as a dashed line with its name above the rows.
fn target(scene: &mut Scene, x: &Scale, target: f64, (left, right, top, bottom): (f64, f64, f64, f64)) {
    const DASH: f64 = 7.0;
    let at = x.at(target);
    let count = ((bottom - top) / (DASH + 5.0)).ceil().max(0.0) as usize;
    for dash in 0..count {
        let y = top + dash as f64 * (DASH + 5.0);
        scene.line((at, y), (at, (y + DASH).min(bottom)), 1.75, Ink::Danger);
    }
    let text = format!("target {target:.2}");
    let half = Face::BODY.width(&text) * 0.53;
    let middle = at.clamp(left + half, (right + 40.0 - half).max(left + half));
    scene.text((middle, top - 6.0), Align::Middle, Face::BODY, Ink::Danger, &text);
}

/// A dot with its interval.
fn interval(scene: &mut Scene, x: &Scale, row: &Variant, y: f64) {
    const CAP: f64 = 5.0;
    let (low, high) = (x.at(row.low), x.at(row.high));
    scene.line((low, y), (high, y), 2.25, Ink::Blue);
    for end in [low, high] {
        scene.line((end, y - CAP), (end, y + CAP), 1.75, Ink::Blue);
    }
    scene.dot((x.at(row.estimate), y), 4.75, Ink::Blue);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::chart::scene::register_fonts;
    use crate::report::chart::{NARROW, WIDE};

    #[test]
    fn rows_stand_apart_whatever_their_names_and_intervals() {
        assert!(register_fonts());
        let row = |name: &str, estimate: f64, low: f64, high: f64| Variant { name: name.into(), estimate, low, high };
        let mut rows = vec![row("2 GPUs", 0.95, 0.9, 1.0), row(&"a very long name ".repeat(9), 0.0, 0.0, 1e9)];
        rows.extend((0..60).map(|_| row("4 GPUs", 0.5, 0.4, 0.6)));
        for target in [0.01, 0.9, 1.99] {
            let variants = Variants { title: "t".repeat(300), subtitle: "s".into(), target, rows: rows.clone() };
            for width in [WIDE, NARROW] {
                assert_eq!(scene(&variants, width).collisions(), [""; 0], "{target} {width}");
            }
        }
        let all = Variants { title: "t".into(), subtitle: "s".into(), target: 0.9, rows };
        assert!(scene(&all, WIDE).height < ROW * (VARIANTS_MAX as f64 + 8.0), "rows beyond the limit are left out");
    }
}
