//! What a tuner launched: every setting with its launches, and the curve of the bucket size.

use crate::record::{TuneCell, TuneResult};
use crate::stats::median;

use super::NARROW_BELOW;
use super::axis::{Scale, ticks, time_unit};
use super::scene::{Align, EDGE, Face, Ink, Scene};

/// More rows than this nobody compares by eye; those beyond are in the table.
const ROWS_MAX: usize = 48;

/// Height of a row.
const ROW: f64 = 22.0;

/// Readers without the chart's own font see wider letters; names of settings are long.
const WIDER: f64 = 1.16;

/// Steps of a cell in the unit of the chart.
fn steps(cell: &TuneCell, unit: f64) -> Vec<f64> {
    cell.steps_s.iter().map(|step| step.0 / unit).collect()
}

/// From below everything to above it, with a margin.
fn range(values: &[f64]) -> (f64, f64) {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let margin = ((high - low) * 0.06).max(high.abs() * 0.005);
    ((low - margin).max(0.0), high + margin)
}

/// Every setting that was launched, in the order in which the search came to it.
pub(super) fn trials(result: &TuneResult, width: f64) -> Option<Scene> {
    let shown: Vec<&TuneCell> = result.cells.iter().take(ROWS_MAX).collect();
    let longest = shown.iter().flat_map(|cell| &cell.steps_s).map(|step| step.0).fold(0.0, f64::max);
    let (unit, name) = time_unit(longest);
    let all: Vec<f64> = shown.iter().flat_map(|cell| steps(cell, unit)).collect();
    if all.is_empty() {
        return None;
    }
    let unshown = match result.cells.len() - shown.len() {
        0 => String::new(),
        more => format!("; {more} more are in the table"),
    };
    let subtitle = format!(
        "Step of {}, one dot a launch, the bar the median; dashed: the default{unshown}",
        Face::BODY.shortened(&result.identity.model, 160.0)
    );
    let (mut scene, top) = Scene::titled(width, "What was tried", &subtitle);
    let widest = shown.iter().map(|cell| Face::SMALL.width(&cell.setting.to_string()) * WIDER).fold(0.0, f64::max);
    let share = if width < NARROW_BELOW { 0.45 } else { 0.5 };
    let (left, right) = (EDGE + widest.min(width * share) + 12.0, width - EDGE - 8.0);
    let bottom = top + ROW * shown.len() as f64 + 6.0;
    let (low, high) = range(&all);
    let x = Scale::new((low, high), (left, right));
    grid(&mut scene, &x, (low, high), (left, right, top, bottom), name);
    let default = x.at(result.default.step_s.0 / unit);
    vertical_dashes(&mut scene, default, (top, bottom));
    for (index, cell) in shown.iter().enumerate() {
        let y = top + ROW * (index as f64 + 0.5) + 2.0;
        let taken = cell.setting == result.best.setting;
        let (face, ink) =
            if taken { (Face { bold: true, ..Face::SMALL }, Ink::Green) } else { (Face::SMALL, Ink::Blue) };
        let text = face.shortened(&cell.setting.to_string(), (left - EDGE - 12.0) / WIDER);
        scene.text((left - 10.0, y + 4.0), Align::End, face, Ink::Text, &text);
        let steps = steps(cell, unit);
        if steps.is_empty() {
            scene.text((left + 6.0, y + 4.0), Align::Start, Face::SMALL, Ink::Danger, "failed");
            continue;
        }
        steps.iter().for_each(|step| scene.dot((x.at(*step), y), 2.5, ink));
        let middle = x.at(median(&steps));
        scene.line((middle, y - 7.0), (middle, y + 7.0), 2.5, ink);
    }
    scene.height = bottom + 54.0;
    Some(scene)
}

fn grid(
    scene: &mut Scene,
    x: &Scale,
    (low, high): (f64, f64),
    (left, right, top, bottom): (f64, f64, f64, f64),
    unit: &str,
) {
    let wanted = ((right - left) / 70.0).floor().clamp(2.0, 7.0) as usize;
    let (values, decimals) = ticks(low, high, wanted);
    for value in values {
        let at = x.at(value);
        scene.line((at, top), (at, bottom), 1.0, Ink::Grid);
        scene.text((at, bottom + 18.0), Align::Middle, Face::BODY, Ink::Text, &format!("{value:.decimals$}"));
    }
    scene.line((left, bottom), (right, bottom), 1.25, Ink::Axis);
    let middle = f64::midpoint(left, right);
    scene.text((middle, bottom + 40.0), Align::Middle, Face::BODY, Ink::Muted, &format!("step, {unit}"));
}

fn vertical_dashes(scene: &mut Scene, x: f64, (top, bottom): (f64, f64)) {
    const DASH: f64 = 7.0;
    let mut y = top;
    while y < bottom {
        scene.line((x, y), (x, (y + DASH).min(bottom)), 1.75, Ink::Orange);
        y += DASH + 5.0;
    }
}

/// Bucket size in MiB and launches of the settings that differ in nothing else; of all such rows the longest.
fn curve(result: &TuneResult) -> Vec<(f64, &TuneCell)> {
    let asked = result.bucket_bytes.0 as f64 / f64::from(1 << 20);
    let size = |cell: &TuneCell| match cell.setting.of("bucket").strip_prefix("bucket-mib=") {
        Some(size) => size.parse::<f64>().ok(),
        None => Some(asked),
    };
    let mut best: Vec<(f64, &TuneCell)> = Vec::new();
    for cell in &result.cells {
        let others = cell.setting.with("bucket", "");
        let row = result.cells.iter().filter(|one| one.setting.with("bucket", "") == others && !one.steps_s.is_empty());
        let mut row: Vec<(f64, &TuneCell)> = row.filter_map(|one| Some((size(one)?, one))).collect();
        row.retain(|(size, _)| 0.0 < *size);
        if best.len() < row.len() {
            row.sort_by(|one, other| one.0.total_cmp(&other.0));
            best = row;
        }
    }
    best
}

/// Step time over the size of a bucket.
pub(super) fn buckets(result: &TuneResult, width: f64) -> Option<Scene> {
    let points = curve(result);
    if points.len() < 3 {
        return None;
    }
    let longest = points.iter().flat_map(|(_, cell)| &cell.steps_s).map(|step| step.0).fold(0.0, f64::max);
    let (unit, name) = time_unit(longest);
    let others = points[0].1.setting.with("bucket", "");
    let with = if others.is_default() { "all else left alone".to_owned() } else { others.to_string() };
    let subtitle = format!("Median step over the size at which a bucket is closed, one dot a launch; {with}");
    let (mut scene, top) = Scene::titled(width, "Step time and bucket size", &subtitle);
    let all: Vec<f64> = points.iter().flat_map(|(_, cell)| steps(cell, unit)).collect();
    let (low, high) = range(&all);
    let (left, right) = (EDGE + 52.0, width - EDGE - 24.0);
    let bottom = top + if width < NARROW_BELOW { 200.0 } else { 260.0 };
    let y = Scale::new((low, high), (bottom, top));
    let ends = (points[0].0.log2(), points[points.len() - 1].0.log2());
    let x = Scale::new(ends, (left + 16.0, right - 16.0));
    let (values, decimals) = ticks(low, high, 5);
    for value in values {
        let at = y.at(value);
        scene.line((left, at), (right, at), 1.0, Ink::Grid);
        let label = format!("{value:.decimals$}");
        scene.text((left - 9.0, at + 4.5), Align::End, Face::BODY, Ink::Text, &label);
    }
    scene.line((left, bottom), (right, bottom), 1.25, Ink::Axis);
    let mut labelled = f64::NEG_INFINITY;
    for (size, _) in &points {
        let at = x.at(size.log2());
        let label = format!("{size}");
        scene.line((at, bottom), (at, bottom + 5.0), 1.0, Ink::Axis);
        if labelled + Face::BODY.width(&label) + 10.0 < at {
            scene.text((at, bottom + 20.0), Align::Middle, Face::BODY, Ink::Text, &label);
            labelled = at;
        }
    }
    let middle = f64::midpoint(left, right);
    scene.text((middle, bottom + 42.0), Align::Middle, Face::BODY, Ink::Muted, &format!("bucket, MiB; step, {name}"));
    let at = |(size, cell): &(f64, &TuneCell)| (x.at(size.log2()), y.at(median(&steps(cell, unit))));
    for pair in points.windows(2) {
        scene.line(at(&pair[0]), at(&pair[1]), 2.25, Ink::Blue);
    }
    for point in &points {
        let (px, py) = at(point);
        steps(point.1, unit).iter().for_each(|step| scene.dot((px, y.at(*step)), 2.25, Ink::Sky));
        scene.dot((px, py), 4.75, if point.1.setting == result.best.setting { Ink::Green } else { Ink::Blue });
    }
    scene.height = bottom + 56.0;
    Some(scene)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Setting;
    use crate::report::chart::scene::register_fonts;
    use crate::report::chart::{NARROW, WIDE};
    use crate::report::tune::tests::result;

    #[test]
    fn rows_and_labels_stand_apart_whatever_was_launched() {
        assert!(register_fonts());
        let mut result = result();
        for width in [WIDE, NARROW] {
            assert_eq!(trials(&result, width).unwrap().collisions(), [""; 0], "{width}");
            assert_eq!(buckets(&result, width).unwrap().collisions(), [""; 0], "{width}");
        }
        assert_eq!(curve(&result).iter().map(|(size, _)| *size).collect::<Vec<_>>(), [1.0, 4.0, 8.0, 25.0]);
        result.cells.retain(|cell| cell.setting == Setting::default());
        assert!(buckets(&result, WIDE).is_none() && trials(&result, WIDE).is_some(), "one size is no curve");
        result.cells[0].steps_s.clear();
        assert!(trials(&result, WIDE).is_none());
    }
}
