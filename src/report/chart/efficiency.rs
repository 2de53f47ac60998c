//! Scaling efficiency against world size, with error bars, the target, and every run by name.

use std::collections::BTreeSet;

use crate::record::{Analysis, Interval, Point};

use super::axis::{Scale, ticks};
use super::scene::{Align, EDGE, Face, Ink, SERIES, Scene};
use super::{NARROW_BELOW, ranks_word};

/// The frame of the plot: pixels and scales.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: Scale,
    y: Scale,
}

/// Runs beyond these are in the table only: more lines cannot be told apart.
const RUNS_MAX: usize = SERIES.len();

pub(super) fn scene(runs: &[&Analysis], width: f64) -> Option<Scene> {
    let main = runs.first()?;
    let shown: Vec<&Analysis> = runs.iter().take(RUNS_MAX).filter(|run| !run.points.is_empty()).copied().collect();
    let worlds: BTreeSet<usize> = shown.iter().flat_map(|run| &run.points).map(|point| point.world).collect();
    let (first, last) = (*worlds.first()?, *worlds.last()?);

    let title = format!("Scaling efficiency vs {}", ranks_word(main.device));
    let (mut scene, top) = Scene::titled(width, &title, &subtitle(main, runs.len()));
    let named = 1 < shown.len();
    let top = if named && width < NARROW_BELOW { legend(&mut scene, top, &shown) } else { top + 4.0 };
    let margin = if named && NARROW_BELOW <= width { 196.0 } else { 84.0 };
    let height = if width < NARROW_BELOW { 230.0 } else { 300.0 };
    let (low, high) = range(main.target, &shown);
    let (left, right, bottom) = (EDGE + 38.0, width - margin, top + height);
    let pad = (right - left) * 0.06;
    let frame = Frame {
        left,
        right,
        top,
        bottom,
        x: Scale::new(((first as f64).log2(), (last as f64).log2()), (left + pad, right - pad)),
        y: Scale::new((low, high), (bottom, top)),
    };

    grid(&mut scene, &frame, (low, high), main.target);
    for world in &worlds {
        let x = frame.x.at((*world as f64).log2());
        scene.line((x, bottom), (x, bottom + 5.0), 1.0, Ink::Axis);
        scene.text((x, bottom + 20.0), Align::Middle, Face::BODY, Ink::Text, &world.to_string());
    }
    let middle = f64::midpoint(left, right);
    scene.text((middle, bottom + 42.0), Align::Middle, Face::BODY, Ink::Muted, ranks_word(main.device));

    for (index, run) in shown.iter().enumerate().rev() {
        let dodge = (index as f64 - (shown.len() - 1) as f64 / 2.0) * 3.0;
        series(&mut scene, &frame, &run.points, SERIES[index], dodge);
    }
    labels(&mut scene, &frame, main.target, &shown, named && NARROW_BELOW <= width);
    scene.height = bottom + 56.0;
    Some(scene)
}

fn subtitle(main: &Analysis, runs: usize) -> String {
    let launches = main.points.iter().map(|point| point.launches.len()).max().unwrap_or(0);
    let unshown = if runs > RUNS_MAX { format!("; the first {RUNS_MAX} of {runs} runs") } else { String::new() };
    let plural = if launches == 1 { "launch" } else { "launches" };
    let model = Face::BODY.shortened(&main.config.model, 160.0);
    format!("Measured over ideal training rate, {model}, {launches} {plural}, 95 % intervals{unshown}")
}

/// Names of the runs with their colours, where there is no room for them beside the lines.
fn legend(scene: &mut Scene, top: f64, shown: &[&Analysis]) -> f64 {
    let names: Vec<String> = shown.iter().map(|run| Face::BODY.shortened(&run.run, scene.width - 60.0)).collect();
    let entries: Vec<(Ink, &str)> = SERIES.into_iter().zip(names.iter().map(String::as_str)).collect();
    scene.legend(top - 6.0, &entries) + 4.0
}

/// From below everything drawn to above it, always with the target and 1 inside.
fn range(target: f64, shown: &[&Analysis]) -> (f64, f64) {
    let ends = || shown.iter().flat_map(|run| &run.points).flat_map(|point| ends(point.efficiency));
    let low = ends().fold(target.min(1.0), f64::min);
    let high = ends().fold(target.max(1.0), f64::max);
    let span = (high - low).max(0.12);
    (((low - span * 0.12) * 20.0).floor() / 20.0, high + span * 0.08)
}

/// What is drawn of an interval: its ends and its estimate, or the estimate alone where one launch gives no interval.
fn ends(interval: Interval) -> [f64; 3] {
    match interval.is_known() {
        true => [interval.low, interval.estimate, interval.high],
        false => [interval.estimate; 3],
    }
}

fn grid(scene: &mut Scene, frame: &Frame, (low, high): (f64, f64), target: f64) {
    let target_y = frame.y.at(target);
    scene.rect((frame.left, target_y), (frame.right, frame.bottom), Ink::Shade);
    let (values, decimals) = ticks(low, high, ((high - low) / 0.05).ceil().clamp(4.0, 8.0) as usize);
    for value in values {
        let y = frame.y.at(value);
        scene.line((frame.left, y), (frame.right, y), 1.0, Ink::Grid);
        let label = format!("{value:.*}", decimals.max(2));
        scene.text((frame.left - 9.0, y + 4.5), Align::End, Face::BODY, Ink::Text, &label);
    }
    scene.dashes(frame.left, frame.right, target_y, Ink::Danger);
    scene.line((frame.left, frame.top), (frame.left, frame.bottom), 1.25, Ink::Axis);
    scene.line((frame.left, frame.bottom), (frame.right, frame.bottom), 1.25, Ink::Axis);
}

fn series(scene: &mut Scene, frame: &Frame, points: &[Point], ink: Ink, dodge: f64) {
    const CAP: f64 = 5.0;
    let at = |point: &Point| (frame.x.at((point.world as f64).log2()) + dodge, frame.y.at(point.efficiency.estimate));
    for pair in points.windows(2) {
        scene.line(at(&pair[0]), at(&pair[1]), 2.25, ink);
    }
    for point in points {
        let (x, y) = at(point);
        let [low, _, high] = ends(point.efficiency).map(|value| frame.y.at(value));
        scene.line((x, low), (x, high), 1.5, ink);
        scene.line((x - CAP, low), (x + CAP, low), 1.5, ink);
        scene.line((x - CAP, high), (x + CAP, high), 1.5, ink);
        scene.dot((x, y), 4.75, ink);
        if !point.graded {
            scene.dot((x, y), 2.75, Ink::Paper);
        }
    }
}

/// One label beside the end of every line and of the target, moved apart where they would touch.
fn labels(scene: &mut Scene, frame: &Frame, target: f64, shown: &[&Analysis], named: bool) {
    const LINE: f64 = 17.0;
    let x = frame.right + 10.0;
    let mut entries = vec![(frame.y.at(target), Face::BODY, Ink::Danger, format!("target {target:.2}"))];
    for (run, ink) in shown.iter().zip(SERIES) {
        if let Some(end) = run.points.last() {
            let value = format!("{:.2}", end.efficiency.estimate);
            let room = scene.width - x - EDGE - Face::STRONG.width(&value) * 1.06 - 8.0;
            let text = if named { format!("{}  {value}", Face::STRONG.shortened(&run.run, room)) } else { value };
            entries.push((frame.y.at(end.efficiency.estimate), Face::STRONG, ink, text));
        }
    }
    entries.sort_by(|a, b| a.0.total_cmp(&b.0));
    // The target's label stays beside its line; the others make room above and below it.
    let (upper, lower) = entries.split_at(1 + entries.iter().position(|entry| entry.2 == Ink::Danger).unwrap_or(0));
    let wanted = |part: &[(f64, Face, Ink, String)]| part.iter().map(|entry| entry.0).collect::<Vec<f64>>();
    let mut placed = apart(&wanted(upper), LINE, (frame.top, frame.y.at(target)));
    placed.extend(apart(&wanted(lower), LINE, (frame.y.at(target) + LINE, frame.bottom)));
    for (y, (_, face, ink, text)) in placed.into_iter().zip(&entries) {
        scene.text((x, y + 4.5), Align::Start, *face, *ink, text);
    }
}

/// Ascending positions moved as little as needed so that neighbours are at least `gap` apart and all lie in `range`,
/// if it is wide enough.
fn apart(wanted: &[f64], gap: f64, range: (f64, f64)) -> Vec<f64> {
    let mut placed: Vec<f64> = Vec::with_capacity(wanted.len());
    for want in wanted {
        placed.push(placed.last().map_or(*want, |last| want.max(last + gap)).max(range.0));
    }
    let mut limit = range.1;
    for place in placed.iter_mut().rev() {
        *place = place.min(limit);
        limit = *place - gap;
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::apart;

    #[test]
    fn labels_move_apart_and_stay_inside() {
        assert_eq!(apart(&[10.0, 100.0], 17.0, (0.0, 200.0)), [10.0, 100.0], "far apart: nothing moves");
        assert_eq!(apart(&[10.0, 12.0, 13.0], 17.0, (0.0, 200.0)), [10.0, 27.0, 44.0]);
        assert_eq!(apart(&[198.0, 199.0], 17.0, (0.0, 200.0)), [183.0, 200.0], "pushed up from the lower edge");
    }
}
