//! The charts: each a pure function from analyses to a scene, painted as SVG and PNG by one function.

mod axis;
mod distribution;
mod efficiency;
mod links;
mod machine;
mod machine_tree;
mod paint;
mod phases;
mod scene;
mod throughput;
mod timeline;
mod tuning;
mod variants;

use crate::record::{Analysis, Arm, Device, LinksHead, SumLine, TuneResult};
use crate::report::sketch::Sketch;
use crate::topology::Topology;

pub use paint::PaintError;
use scene::{Ink, Scene};
pub use variants::{VARIANTS_MAX, Variant, Variants};

/// Width of a chart on a desk and on paper, in pixels.
const WIDE: f64 = 760.0;
/// Width of a chart on a phone, in pixels; charts narrower than [`NARROW_BELOW`] lay themselves out in one column.
const NARROW: f64 = 360.0;
const NARROW_BELOW: f64 = 560.0;

/// One chart in every form that a report needs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chart {
    /// Name of its files, without extension.
    pub name: &'static str,
    /// What it shows.
    pub title: String,
    /// How to read it, a sentence or two.
    pub caption: &'static str,
    /// `svg` element for a wide page.
    pub wide: String,
    /// `svg` element for a phone.
    pub narrow: String,
    /// SVG file.
    pub svg: String,
    /// PNG file, white, twice the size of the SVG.
    pub png: Vec<u8>,
}

/// Draws the scene of some runs at a width; none where they hold nothing to draw.
type Draw = fn(&[&Analysis], f64) -> Option<Scene>;

/// Name, scene and caption of every chart, in reading order.
const CHARTS: [(&str, Draw, &str); 5] = [
    (
        "efficiency",
        efficiency::scene,
        "Each point is the training rate with gradients exchanged over the sum of the rates of the same devices alone; \
         bars are 95 % intervals over launches. Points in the shaded region are below the target. The hollow point at \
         one rank is the cost of the machinery and is not graded.",
    ),
    (
        "throughput",
        throughput::scene,
        "Ideal is the sum of the rates of the same devices, each measured alone; measured is the rate with gradients \
         exchanged.",
    ),
    (
        "phases",
        phases::scene,
        "Mean time of one step in each arm: solo is one rank alone on the machine, together is all ranks at once without \
         exchange, ddp is with gradients exchanged. Exposed communication is what overlap did not hide.",
    ),
    (
        "distribution",
        distribution::scene,
        "Every counted step of every rank and launch. The box spans the middle half with the median in it, the line \
         the middle 90 %. All panels share one time axis; what lies beyond it is named.",
    ),
    (
        "timeline",
        timeline::scene,
        "One step of every rank: compute above, gradient buckets below. A bucket is thin while it waits for its turn \
         and solid while it moves. What moves before the backward pass ends is hidden; the rest is exposed.",
    ),
];

/// Every chart for which the analyses hold something to draw. The first analysis is the main one; the others appear
/// in the efficiency chart.
///
/// # Errors
/// [`PaintError`] if a backend refuses a mark.
pub(super) fn charts(runs: &[&Analysis]) -> Result<Vec<Chart>, PaintError> {
    if !scene::register_fonts() {
        return Err(PaintError::Font);
    }
    let drawn = CHARTS.iter().filter_map(|(name, draw, caption)| {
        let (wide, narrow) = (draw(runs, WIDE)?, draw(runs, NARROW)?);
        Some(painted(name, caption, &wide, &narrow))
    });
    drawn.collect()
}

/// The picture of a described machine; none for a sketch that is none.
///
/// # Errors
/// [`PaintError`] if a backend refuses a mark.
pub(super) fn sketch(sketch: &Sketch) -> Result<Option<Chart>, PaintError> {
    const CAPTION: &str = "The machine as it was described: processors at the left, slots at the right, each link with the rate of \
                           one direction, as thick as it is fast. Dashed: written down from memory and not checked. Marked !: \
                           what limits the ring.";
    if !sketch.is_sound() {
        return Ok(None);
    }
    if !scene::register_fonts() {
        return Err(PaintError::Font);
    }
    let (wide, narrow) = (machine::sketched(sketch, WIDE), machine::sketched(sketch, NARROW));
    painted("machine", CAPTION, &wide, &narrow).map(Some)
}

/// The picture of a machine; none without NVIDIA GPUs.
///
/// # Errors
/// [`PaintError`] if a backend refuses a mark.
pub(super) fn machine(topology: &Topology) -> Result<Option<Chart>, PaintError> {
    const CAPTION: &str = "Sockets at the left, GPUs at the right: a link is drawn as thick as it is fast. What a path gives is \
                           the least of its links, shared by all that pass there. Dashed, marked ! and named with what the \
                           device could do: a link that is narrower or slower than its device.";
    if !scene::register_fonts() {
        return Err(PaintError::Font);
    }
    let scenes = (machine::scene(topology, WIDE), machine::scene(topology, NARROW));
    let (Some(wide), Some(narrow)) = scenes else { return Ok(None) };
    painted("machine", CAPTION, &wide, &narrow).map(Some)
}

/// All-reduces by size; none where nothing was summed.
///
/// # Errors
/// [`PaintError`] if a backend refuses a mark.
pub(super) fn links(head: &LinksHead, sums: &[&SumLine]) -> Result<Option<Chart>, PaintError> {
    const CAPTION: &str = "Measured before the training: each line is what NCCL was told. The dashed line is what the narrowest link \
                           of the ring could carry, payload before packet headers; P2P reaches nearly all of it, the way \
                           through the host about half.";
    if !scene::register_fonts() {
        return Err(PaintError::Font);
    }
    let scenes = (links::scene(head, sums, WIDE), links::scene(head, sums, NARROW));
    let (Some(wide), Some(narrow)) = scenes else { return Ok(None) };
    painted("links", CAPTION, &wide, &narrow).map(Some)
}

/// A chart of variants as SVG and PNG files.
///
/// # Errors
/// [`PaintError`] if a backend refuses a mark.
pub(super) fn variants(variants: &Variants) -> Result<(String, Vec<u8>), PaintError> {
    if !scene::register_fonts() {
        return Err(PaintError::Font);
    }
    let scene = variants::scene(variants, WIDE);
    Ok((paint::svg_file(&scene)?, paint::png(&scene)?))
}

/// Draws the scene of a tuner's answer at a width; none where it holds nothing to draw.
type DrawTuning = fn(&TuneResult, f64) -> Option<Scene>;

/// The charts of a tuner's answer.
///
/// # Errors
/// [`PaintError`] if a backend refuses a mark.
pub(super) fn tuning(result: &TuneResult) -> Result<Vec<Chart>, PaintError> {
    const ALL: [(&str, DrawTuning, &str); 2] = [
        (
            "trials",
            tuning::trials,
            "Settings in the order in which the search came to them, the default first; green is the one that is taken. \
             Launches of the confirmation are not among the dots.",
        ),
        (
            "buckets",
            tuning::buckets,
            "Settings that differ in the bucket size alone. Small buckets leave sooner, large ones cost fewer launches.",
        ),
    ];
    if !scene::register_fonts() {
        return Err(PaintError::Font);
    }
    let drawn = ALL.iter().filter_map(|(name, draw, caption)| {
        let (wide, narrow) = (draw(result, WIDE)?, draw(result, NARROW)?);
        Some(painted(name, caption, &wide, &narrow))
    });
    drawn.collect()
}

fn painted(name: &'static str, caption: &'static str, wide: &Scene, narrow: &Scene) -> Result<Chart, PaintError> {
    Ok(Chart {
        name,
        title: wide.title.clone(),
        caption,
        wide: paint::inline_svg(wide, &format!("chart-{name}"))?,
        narrow: paint::inline_svg(narrow, &format!("chart-{name}-narrow"))?,
        svg: paint::svg_file(wide)?,
        png: paint::png(wide)?,
    })
}

/// Style rules that turn inline charts dark.
#[must_use]
pub(super) fn dark_rules() -> String {
    Ink::dark_rules(".chart ")
}

/// What ranks are called on this device.
fn ranks_word(device: Device) -> &'static str {
    match device {
        Device::Cpu => "CPU ranks",
        Device::Cuda => "GPUs",
    }
}

/// `1 GPU`, `4 CPU ranks`.
fn ranks(world: usize, device: Device) -> String {
    let word = ranks_word(device);
    format!("{world} {}", if world == 1 { word.trim_end_matches('s') } else { word })
}

/// Name and colour of an arm.
fn arm(arm: Arm) -> (&'static str, Ink) {
    match arm {
        Arm::Solo => ("solo", Ink::Sky),
        Arm::Together => ("together", Ink::Orange),
        Arm::Ddp => ("ddp", Ink::Blue),
    }
}
