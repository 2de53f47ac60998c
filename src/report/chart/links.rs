//! Bus bandwidth of all-reduces against their size, one line for each setting of NCCL, below the ceiling of the ring.

use std::collections::BTreeSet;

use crate::record::{LinksHead, SumArm, SumLine};
use crate::topology::PciAddress;
use crate::units::{Bytes, BytesPerSecond};

use super::NARROW_BELOW;
use super::axis::{Scale, ticks};
use super::scene::{Align, EDGE, Face, Ink, SERIES, Scene};

/// The frame of the plot: pixels and scales.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: Scale,
    y: Scale,
}

/// Draws the sums of all ranks together; none where there are none.
pub(super) fn scene(head: &LinksHead, sums: &[&SumLine], width: f64) -> Option<Scene> {
    let arms: BTreeSet<SumArm> = sums.iter().map(|sum| sum.arm).collect();
    let arms: Vec<SumArm> = arms.into_iter().take(SERIES.len()).collect();
    let sizes = || sums.iter().map(|sum| (sum.bytes.0 as f64).log2());
    let (first, last) = (sizes().reduce(f64::min)?, sizes().reduce(f64::max)?);
    let ceiling = ceiling(head, sums);
    let most = sums.iter().map(|sum| sum.bus_bandwidth.0).chain(ceiling.map(|rate| rate.0)).reduce(f64::max)?;
    let ranks = sums.first()?.ranks.len();
    let subtitle = "Bus bandwidth, 2(N − 1)/N of the bytes over the time, in GB/s";
    let (mut scene, top) = Scene::titled(width, &format!("All-reduce of {ranks} GPUs by size"), subtitle);
    let names: Vec<String> = arms.iter().map(ToString::to_string).collect();
    let entries: Vec<(Ink, &str)> = SERIES.into_iter().zip(names.iter().map(String::as_str)).collect();
    let top = scene.legend(top - 6.0, &entries) + 16.0;
    let height = if width < NARROW_BELOW { 200.0 } else { 260.0 };
    let (left, right, bottom) = (EDGE + 38.0, width - 24.0, top + height);
    let frame = Frame {
        left,
        right,
        top,
        bottom,
        x: Scale::new((first, last), (left + 12.0, right - 12.0)),
        y: Scale::new((0.0, most * 1.05 / 1e9), (bottom, top)),
    };
    grid(&mut scene, &frame, most * 1.05 / 1e9, (first, last));
    if let Some(ceiling) = ceiling {
        let y = frame.y.at(ceiling.0 / 1e9);
        scene.dashes(left, right, y, Ink::Muted);
        let words = format!("the ring's narrowest link, {ceiling}");
        scene.plate((left + 8.0, y - 6.0), Align::Start, Face::SMALL, Ink::Muted, &words);
    }
    for (above, (arm, ink)) in (0..arms.len()).rev().zip(arms.iter().zip(SERIES)) {
        let mut points: Vec<&&SumLine> = sums.iter().filter(|sum| sum.arm == *arm).collect();
        points.sort_by_key(|sum| sum.bytes);
        let at = |sum: &SumLine| (frame.x.at((sum.bytes.0 as f64).log2()), frame.y.at(sum.bus_bandwidth.0 / 1e9));
        // settings that change nothing lie on each other: what is drawn first is wider, so that its edges stay seen
        let (stroke, radius) = (2.25 + 3.0 * above as f64, 3.5 + 2.0 * above as f64);
        points.windows(2).for_each(|pair| scene.line(at(pair[0]), at(pair[1]), stroke, ink));
        points.iter().for_each(|sum| scene.dot(at(sum), radius, ink));
    }
    scene.height = bottom + 34.0;
    Some(scene)
}

/// What the narrowest link of the ranks could carry in one direction; none where one is unknown.
fn ceiling(head: &LinksHead, sums: &[&SumLine]) -> Option<BytesPerSecond> {
    let ranks = &sums.first()?.ranks;
    let rate = |rank: &PciAddress| Some(head.gpus.iter().find(|gpu| gpu.address == *rank)?.lanes?.rate().0);
    let rates: Vec<f64> = ranks.iter().map(rate).collect::<Option<_>>()?;
    rates.into_iter().reduce(f64::min).map(BytesPerSecond)
}

fn grid(scene: &mut Scene, frame: &Frame, high: f64, (first, last): (f64, f64)) {
    let (values, decimals) = ticks(0.0, high, 5);
    for value in values {
        let y = frame.y.at(value);
        scene.line((frame.left, y), (frame.right, y), 1.0, Ink::Grid);
        scene.text((frame.left - 9.0, y + 4.5), Align::End, Face::BODY, Ink::Text, &format!("{value:.decimals$}"));
    }
    scene.line((frame.left, frame.top), (frame.left, frame.bottom), 1.25, Ink::Axis);
    scene.line((frame.left, frame.bottom), (frame.right, frame.bottom), 1.25, Ink::Axis);
    // every power of 16, which is what a label has room for
    let powers = (0..=15).map(|power| f64::from(4 * power)).filter(|size| (first..=last).contains(size));
    for size in powers {
        let x = frame.x.at(size);
        scene.line((x, frame.bottom), (x, frame.bottom + 5.0), 1.0, Ink::Axis);
        let name = Bytes(1 << size as u32).to_string().replace(".00", "").replace(".0", "");
        scene.text((x, frame.bottom + 20.0), Align::Middle, Face::BODY, Ink::Text, &name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{LinkLine, read_links};

    #[test]
    fn lines_and_labels_keep_apart_at_every_width() {
        assert!(super::super::scene::register_fonts());
        for name in ["in-order", "peers-faster", "sum-hang", "peers-refused"] {
            let place = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/measured").join(name);
            let (head, lines) = read_links(&place.join("links.jsonl")).unwrap();
            let sums = lines.iter().filter_map(|line| if let LinkLine::Sum(sum) = line { Some(sum) } else { None });
            let sums: Vec<&SumLine> = sums.collect();
            for width in [super::super::WIDE, super::super::NARROW] {
                let scene = scene(&head, &sums, width).unwrap();
                assert_eq!(scene.collisions(), Vec::<String>::new(), "{name} at {width}");
            }
            assert!(ceiling(&head, &sums).is_some());
        }
        let (head, _) =
            read_links(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/measured/in-order/links.jsonl"))
                .unwrap();
        assert_eq!(scene(&head, &[], super::super::WIDE), None, "nothing was summed");
    }
}
