//! Where the time of a step goes: stacked bars per world size and arm.

use crate::record::{Analysis, Arm, Phases};
use crate::units::Seconds;

use super::axis::{Scale, ticks, time_unit};
use super::scene::{Align, EDGE, Face, Ink, Scene};
use super::{NARROW_BELOW, arm, ranks};

/// The phases of a step in their order, with name and colour.
pub(super) fn parts(phases: &Phases) -> [(&'static str, Ink, Seconds); 5] {
    [
        ("forward", Ink::Sky, phases.forward_s),
        ("backward", Ink::Blue, phases.backward_s),
        ("exposed communication", Ink::Vermilion, phases.exposed_s),
        ("optimizer", Ink::Green, phases.optimizer_s),
        ("other", Ink::Grey, phases.other_s),
    ]
}

fn total(phases: &Phases) -> Seconds {
    parts(phases).into_iter().map(|(_, _, time)| time).sum()
}

const BAR: f64 = 18.0;
const ROW: f64 = 24.0;
const HEAD: f64 = 24.0;

pub(super) fn scene(runs: &[&Analysis], width: f64) -> Option<Scene> {
    let main = runs.first()?;
    let rows = || main.points.iter().flat_map(|point| point.phases.values());
    let longest = rows().map(|phases| total(phases).0).reduce(f64::max)?;
    let (size, unit) = time_unit(longest);
    let subtitle = format!("Mean step by phase, {unit}");
    let (mut scene, top) = Scene::titled(width, "Where the time goes", &subtitle);
    let entries = parts(&Phases::default()).map(|(name, ink, _)| (ink, name));
    let top = scene.legend(top - 2.0, &entries) + 6.0;

    let left = EDGE + 66.0;
    let right = width - EDGE - 58.0;
    let x = Scale::new((0.0, longest), (left, right));
    let groups = main.points.iter().filter(|point| !point.phases.is_empty());
    let bottom = top + groups.map(|point| HEAD + point.phases.len() as f64 * ROW + 8.0).sum::<f64>();
    let (values, decimals) = ticks(0.0, longest / size, if width < NARROW_BELOW { 4 } else { 8 });
    for value in values {
        let at = x.at(value * size);
        scene.line((at, top), (at, bottom), 1.0, Ink::Grid);
        scene.text((at, bottom + 18.0), Align::Middle, Face::BODY, Ink::Text, &format!("{value:.decimals$}"));
    }
    let mut y = top;
    for point in main.points.iter().filter(|point| !point.phases.is_empty()) {
        let name = ranks(point.world, main.device);
        scene.plate((EDGE, y + 16.0), Align::Start, Face::STRONG, Ink::Text, &name);
        y += HEAD;
        let first = y;
        for (which, phases) in &point.phases {
            row(&mut scene, *which, phases, (left, y), (&x, size));
            y += ROW;
        }
        scene.line((left, first - 3.0), (left, y - ROW + BAR + 3.0), 1.25, Ink::Axis);
        y += 8.0;
    }
    scene.height = bottom + 32.0;
    Some(scene)
}

/// One bar: its arm at the left, its segments, its total at the right.
fn row(scene: &mut Scene, which: Arm, phases: &Phases, (left, top): (f64, f64), (x, size): (&Scale, f64)) {
    let baseline = top + BAR / 2.0 + 4.5;
    scene.text((left - 9.0, baseline), Align::End, Face::BODY, Ink::Text, arm(which).0);
    let mut begun = 0.0;
    for (_, ink, time) in parts(phases) {
        let (from, to) = (x.at(begun), x.at(begun + time.0));
        begun += time.0;
        if 0.0 < time.0 {
            scene.rect((from, top), (to, top + BAR), ink);
            // A hairline keeps neighbours apart in print and for readers who see no hue.
            scene.rect((to - 0.75, top), (to, top + BAR), Ink::Paper);
        }
    }
    let label = crate::units::grouped(total(phases).0 / size);
    scene.plate((x.at(begun) + 7.0, baseline), Align::Start, Face::STRONG, Ink::Text, &label);
}
