//! Training rate measured against ideal, as bars.

use crate::record::{Analysis, Device, Point};
use crate::units::grouped;

use super::axis::{Scale, ticks};
use super::scene::{Align, EDGE, Face, Ink, Scene};
use super::{NARROW_BELOW, ranks};

pub(super) fn scene(runs: &[&Analysis], width: f64) -> Option<Scene> {
    let main = runs.first()?;
    let largest = main.points.iter().map(|point| point.solo_rate.0.max(point.ddp_rate.0)).reduce(f64::max)?;
    let subtitle = "Tokens per second over all ranks";
    let (mut scene, top) = Scene::titled(width, "Throughput, measured and ideal", subtitle);
    let top = scene.legend(top - 2.0, &[(Ink::Pale, "ideal"), (Ink::Blue, "measured")]) + 14.0;
    let bottom = top + if width < NARROW_BELOW { 190.0 } else { 240.0 };

    let (values, _) = ticks(0.0, largest * 1.02, 5);
    let labels: Vec<String> = values.iter().map(|value| grouped(*value)).collect();
    let widest = labels.iter().map(|label| Face::BODY.width(label)).fold(0.0, f64::max);
    let (left, right) = (EDGE + widest * 1.06 + 10.0, width - EDGE);
    let y = Scale::new((0.0, largest * 1.02), (bottom, top));
    for (value, label) in values.iter().zip(&labels) {
        let at = y.at(*value);
        scene.line((left, at), (right, at), 1.0, Ink::Grid);
        scene.text((left - 9.0, at + 4.5), Align::End, Face::BODY, Ink::Text, label);
    }
    let slot = (right - left) / main.points.len() as f64;
    for (index, point) in main.points.iter().enumerate() {
        bars(&mut scene, point, main.device, (left + (index as f64 + 0.5) * slot, slot), (bottom, &y));
    }
    scene.line((left, bottom), (right, bottom), 1.25, Ink::Axis);
    scene.height = bottom + 44.0;
    Some(scene)
}

/// The two bars of one world size, around `centre`, with their numbers.
fn bars(scene: &mut Scene, point: &Point, device: Device, (centre, slot): (f64, f64), (bottom, y): (f64, &Scale)) {
    let bar = (slot * 0.32).min(64.0);
    let pairs = [(centre - bar - 1.5, point.solo_rate, Ink::Pale), (centre + 1.5, point.ddp_rate, Ink::Blue)];
    for (x, rate, ink) in pairs {
        let top = y.at(rate.0);
        scene.rect((x, top), (x + bar, bottom), ink);
        let label = grouped(rate.0);
        if Face::SMALL.width(&label) * 1.06 <= bar + 2.0 {
            let text = if ink == Ink::Pale { Ink::Muted } else { Ink::Text };
            scene.plate((x + bar / 2.0, top - 5.0), Align::Middle, Face::SMALL, text, &label);
        }
    }
    let name = ranks(point.world, device);
    let name = if Face::BODY.width(&name) <= slot - 6.0 { name } else { point.world.to_string() };
    if Face::BODY.width(&name) <= slot - 2.0 {
        scene.text((centre, bottom + 20.0), Align::Middle, Face::BODY, Ink::Text, &name);
    }
}
