//! Turns an analysis into pages and charts: HTML, Markdown, JUnit, SVG and PNG, and a summary for the terminal.
//! Knows how a number is shown; hides the plotting library and the templates.
//! Never computes a result that is not in the analysis, and never lets a string of it act as markup.

mod chart;
mod gpus;
mod junit;
mod links;
mod page;
mod sketch;
mod summary;
mod template;
mod text;
mod tune;
mod worlds;

pub use chart::{PaintError, VARIANTS_MAX, Variant, Variants};
pub use sketch::{SKETCH_FILE, Sketch, SketchKind, SketchLink, SketchPart};
pub use summary::Summary;
pub(crate) use text::printable_text;
pub use tune::tune_page;

use thiserror::Error;

use crate::record::{Analysis, LinkLine, LinksHead};
use crate::topology::Topology;

/// Why a report could not be made.
#[derive(Debug, Error)]
pub enum ReportError {
    /// Nothing was given.
    #[error("a report needs at least one analysis")]
    NoAnalysis,
    /// A number of the analysis is infinite or NaN.
    #[error("the analysis of {run:?} holds a number that is not finite")]
    NotFinite {
        /// Name of the run.
        run: String,
        /// The field's type and what was in its place.
        #[source]
        source: serde_json::Error,
    },
    /// A point of the analysis has no ranks.
    #[error("the analysis of {run:?} has a point at world size 0")]
    NoRanks {
        /// Name of the run.
        run: String,
    },
    /// A chart could not be drawn.
    #[error("could not draw the charts")]
    Chart(#[from] PaintError),
    /// A template could not be filled.
    #[error("could not write {file}")]
    Template {
        /// The file that it would have become.
        file: &'static str,
        /// Where in the template, and why.
        #[source]
        source: minijinja::Error,
    },
}

/// The files of a report, in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    /// Path below the run folder, with `/` between its parts, and content: `report.html`, `report.md`, `junit.xml`,
    /// and `charts/<name>.svg` and `.png` for each chart that has something to show.
    pub files: Vec<(String, Vec<u8>)>,
}

/// Renders the report of the first analysis; the others are laid over its efficiency chart and compared in a table.
///
/// The same analyses give the same bytes.
///
/// # Errors
/// [`ReportError`] if there is no analysis, one holds a number that is not finite, or a chart cannot be drawn.
pub fn render(analyses: &[&Analysis]) -> Result<Rendered, ReportError> {
    render_with(analyses, Beside::default())
}

/// What is known of the machine of a report.
#[derive(Debug, Clone, Copy)]
pub enum Machine<'a> {
    /// A probed one.
    Probed(&'a Topology),
    /// A described one.
    Sketched(&'a Sketch),
}

/// What stands beside the first analysis, where it is known.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beside<'a> {
    /// The machine: drawn if it holds GPUs.
    pub machine: Option<Machine<'a>>,
    /// What its links carried: head and lines of `links.jsonl`.
    pub links: Option<(&'a LinksHead, &'a [LinkLine])>,
}

/// The same with a picture of the machine of the first analysis and what its links carried.
///
/// # Errors
/// As [`render`].
pub fn render_with(analyses: &[&Analysis], beside: Beside<'_>) -> Result<Rendered, ReportError> {
    let runs = analyses.iter().map(|analysis| checked(analysis)).collect::<Result<Vec<_>, _>>()?;
    let runs: Vec<&Analysis> = runs.iter().collect();
    let main = *runs.first().ok_or(ReportError::NoAnalysis)?;

    let mut charts = chart::charts(&runs)?;
    let of_links = |(head, lines)| chart::links(head, &links::of_all_ranks(lines));
    charts.extend(beside.links.map(of_links).transpose()?.flatten());
    charts.extend(match beside.machine {
        Some(Machine::Probed(topology)) => chart::machine(topology)?,
        Some(Machine::Sketched(sketch)) => chart::sketch(sketch)?,
        None => None,
    });
    let page = page::Page::of(&runs, &charts, beside.links.map_or(&[], |(_, lines)| lines));
    let cases = junit::Suite::of(main);
    let mut files = vec![
        ("report.html".to_owned(), template::html(&page, &chart::dark_rules())?.into_bytes()),
        ("report.md".to_owned(), template::markdown(&page)?.into_bytes()),
        ("junit.xml".to_owned(), template::junit(&cases)?.into_bytes()),
    ];
    for chart in charts {
        files.push((format!("charts/{}.svg", chart.name), chart.svg.into_bytes()));
        files.push((format!("charts/{}.png", chart.name), chart.png));
    }
    Ok(Rendered { files })
}

/// A picture of a machine as an SVG file; none for a machine without NVIDIA GPUs.
///
/// # Errors
/// [`ReportError::Chart`].
pub fn machine_svg(topology: &Topology) -> Result<Option<String>, ReportError> {
    Ok(chart::machine(topology)?.map(|chart| chart.svg))
}

/// A picture of a described machine as an SVG file.
///
/// # Errors
/// [`ReportError::Chart`].
pub fn sketch_svg(sketch: &Sketch) -> Result<String, ReportError> {
    Ok(chart::sketch(sketch)?.map(|chart| chart.svg).unwrap_or_default())
}

/// Variants with their intervals against the target, as the text of an SVG file and the bytes of a PNG file.
///
/// # Errors
/// [`ReportError::Chart`].
pub fn variants_chart(variants: &Variants) -> Result<(String, Vec<u8>), ReportError> {
    Ok(chart::variants(variants)?)
}

/// The analysis with every string made printable, if every number of it can be shown.
fn checked(analysis: &Analysis) -> Result<Analysis, ReportError> {
    if analysis.points.iter().any(|point| point.world == 0) {
        return Err(ReportError::NoRanks { run: analysis.run.clone() });
    }
    text::printable(analysis).map_err(|source| ReportError::NotFinite { run: analysis.run.clone(), source })
}
