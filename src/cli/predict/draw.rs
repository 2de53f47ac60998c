//! The variants of a prediction as a chart.

use std::path::Path;

use crate::cli::CliError;
use crate::record::write_whole;
use crate::report::{VARIANTS_MAX, Variant, Variants, variants_chart};

use super::Prediction;

/// Writes the chart of all variants, in the format that the file's name says.
///
/// # Errors
/// Another extension, too many variants, or the file cannot be written.
pub(super) fn draw(prediction: &Prediction, path: &Path) -> Result<(), CliError> {
    let count = prediction.variants.len();
    if VARIANTS_MAX < count {
        let text = format!("--chart holds at most {VARIANTS_MAX} variants, not {count}: sweep fewer values");
        return Err(CliError::Usage(text));
    }
    let png = match path.extension().and_then(|extension| extension.to_str()) {
        Some("svg") => false,
        Some("png") => true,
        _ => return Err(CliError::Usage(format!("--chart {}: expected a file .svg or .png", path.display()))),
    };
    let (text, bytes) = variants_chart(&variants(prediction))?;
    Ok(write_whole(path, if png { &bytes } else { text.as_bytes() })?)
}

fn variants(prediction: &Prediction) -> Variants {
    let varying = prediction.columns(true);
    let name = |row: &super::Variant| {
        let gpus = format!("{} GPU{}", row.forecast.world, if row.forecast.world == 1 { "" } else { "s" });
        let others = varying.iter().map(|(name, of)| match *name {
            "card" => of(row),
            name => format!("{name} {}", of(row)),
        });
        [gpus].into_iter().chain(others).collect::<Vec<_>>().join(", ")
    };
    let row = |variant: &super::Variant| {
        let efficiency = variant.forecast.efficiency;
        Variant { name: name(variant), estimate: efficiency.estimate, low: efficiency.low, high: efficiency.high }
    };
    let first = &prediction.variants[0];
    let common = prediction.columns(false).into_iter().map(|(name, of)| match name {
        "card" => of(first),
        name => format!("{name} {}", of(first)),
    });
    let training = format!("{}, batch {}, context {}", prediction.model, prediction.batch, prediction.context);
    let common = [training].into_iter().chain(common).collect::<Vec<_>>().join(", ");
    Variants {
        title: format!("Predicted on {}", prediction.title),
        subtitle: format!("{common}; 90 % intervals"),
        target: prediction.target,
        rows: prediction.variants.iter().map(row).collect(),
    }
}
