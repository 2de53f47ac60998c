//! Distribution of step times: one panel per world size, one row per arm.

use crate::record::{Analysis, Arm, Device, Distribution, Point};
use crate::units::{Seconds, grouped};

use super::axis::{Scale, ticks, time_unit};
use super::scene::{Align, EDGE, Face, Ink, Scene};
use super::{NARROW_BELOW, arm, ranks};

/// Positions of quantiles in [`Distribution::quantiles_s`].
const LEAST: usize = 0;
const P05: usize = 1;
const P25: usize = 2;
const MEDIAN: usize = 3;
const P75: usize = 4;
const P95: usize = 5;
const MOST: usize = 6;

const ROW: f64 = 62.0;
const HEAD: f64 = 26.0;
const HILL: f64 = 32.0;

/// Panels beyond these are in the table only.
const PANELS_MAX: usize = 12;

pub(super) fn scene(runs: &[&Analysis], width: f64) -> Option<Scene> {
    let main = runs.first()?;
    let panels: Vec<&Point> =
        main.points.iter().filter(|point| !point.distribution.is_empty()).take(PANELS_MAX).collect();
    let all = || panels.iter().flat_map(|point| point.distribution.values());
    let (low, high) = (extreme(all(), LEAST, f64::min)?, shown_until(all())?);
    let (size, unit) = time_unit(high);
    let subtitle = format!("Duration of every counted step, {unit}");
    let (mut scene, top) = Scene::titled(width, "Distribution of step times", &subtitle);
    let columns = if width < NARROW_BELOW || panels.len() == 1 { 1 } else { 2 };
    let gap = 28.0;
    let panel_width = (width - 2.0 * EDGE - gap * (columns - 1) as f64) / columns as f64;
    let mut bottom = top;
    let mut row_top = top;
    for (index, point) in panels.iter().enumerate() {
        if index % columns == 0 {
            row_top = bottom;
        }
        let left = EDGE + (index % columns) as f64 * (panel_width + gap);
        let x = Scale::new((low, high), (left + 70.0, left + panel_width - 54.0));
        let frame = Panel { left, x, low, high, size, device: main.device };
        bottom = bottom.max(panel(&mut scene, point, row_top, &frame));
    }
    scene.height = bottom + 4.0;
    Some(scene)
}

/// What panels share.
struct Panel {
    left: f64,
    x: Scale,
    low: f64,
    high: f64,
    size: f64,
    device: Device,
}

fn extreme<'a>(of: impl Iterator<Item = &'a Distribution>, quantile: usize, keep: fn(f64, f64) -> f64) -> Option<f64> {
    of.map(|distribution| distribution.quantiles_s[quantile].0).reduce(keep)
}

/// End of the time axis: the slowest step, unless a few stragglers would press everything else into a corner.
fn shown_until<'a>(all: impl Iterator<Item = &'a Distribution> + Clone) -> Option<f64> {
    let most = extreme(all.clone(), MOST, f64::max)?;
    let usual = extreme(all.clone(), P95, f64::max)?;
    let least = extreme(all, LEAST, f64::min)?;
    Some(most.min(usual + 0.35 * (usual - least).max(usual * 0.02)))
}

/// One panel; returns the y below it.
fn panel(scene: &mut Scene, point: &Point, top: f64, frame: &Panel) -> f64 {
    let name = ranks(point.world, frame.device);
    scene.text((frame.left, top + 15.0), Align::Start, Face::STRONG, Ink::Text, &name);
    let mut y = top + HEAD;
    let bottom = y + point.distribution.len() as f64 * ROW;
    let (values, decimals) = ticks(frame.low / frame.size, frame.high / frame.size, 6);
    for value in values {
        let x = frame.x.at(value * frame.size);
        scene.line((x, y - 6.0), (x, bottom), 1.0, Ink::Grid);
        scene.text((x, bottom + 17.0), Align::Middle, Face::SMALL, Ink::Text, &format!("{value:.decimals$}"));
    }
    for (which, distribution) in &point.distribution {
        row(scene, *which, distribution, y, frame);
        y += ROW;
    }
    bottom + 40.0
}

/// One arm: a hill of counts over a box of quantiles, its median as a number.
fn row(scene: &mut Scene, which: Arm, distribution: &Distribution, top: f64, frame: &Panel) {
    let (name, ink) = arm(which);
    let base = top + HILL + 4.0;
    scene.text((frame.left, base), Align::Start, Face::BODY, Ink::Text, name);
    hill(scene, distribution, base, ink, frame);
    let at = |quantile: usize| frame.x.at(distribution.quantiles_s[quantile].0);
    let middle = base + 9.0;
    scene.rect((at(P05), middle - 0.75), (at(P95), middle + 0.75), ink);
    scene.rect((at(P25), middle - 4.0), (at(P75), middle + 4.0), ink);
    scene.rect((at(MEDIAN) - 1.0, middle - 6.0), (at(MEDIAN) + 1.0, middle + 6.0), Ink::Text);
    let end = frame.x.at(frame.high) + 8.0;
    let median = grouped(distribution.quantiles_s[MEDIAN].0 / frame.size);
    scene.text((end, base), Align::Start, Face::STRONG, Ink::Text, &median);
    let slowest = distribution.quantiles_s[MOST].0;
    if frame.high < slowest {
        let text = format!("to {}", grouped(Seconds(slowest).0 / frame.size));
        scene.text((end, base + 14.0), Align::Start, Face::SMALL, Ink::Muted, &text);
    }
}

/// Counts as columns that touch; bins that lie beyond the axis are not drawn.
fn hill(scene: &mut Scene, distribution: &Distribution, base: f64, ink: Ink, frame: &Panel) {
    let (from, to) = (distribution.quantiles_s[LEAST].0, distribution.quantiles_s[MOST].0);
    let Some(tallest) = distribution.bins.iter().copied().max().filter(|count| 0 < *count) else { return };
    if to <= from {
        let x = frame.x.at(from);
        return scene.rect((x - 1.0, base - HILL), (x + 1.0, base), ink);
    }
    let wide = (to - from) / distribution.bins.len() as f64;
    let mut outline = vec![(frame.x.at(from), base)];
    for (index, count) in distribution.bins.iter().enumerate() {
        let start = from + index as f64 * wide;
        if frame.high <= start {
            break;
        }
        let y = base - HILL * *count as f64 / tallest as f64;
        outline.extend([(frame.x.at(start), y), (frame.x.at(start + wide), y)]);
    }
    let end = outline.last().map_or(0.0, |at| at.0);
    outline.push((end, base));
    scene.area(outline, ink);
}
