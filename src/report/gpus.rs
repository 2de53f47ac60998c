//! What the GPUs did under load, as text.

use serde::Serialize;

use crate::record::{EnergySource, GpuLoad, GpuUnderLoad};
use crate::units::{Celsius, Hertz, Watts, grouped};

use super::page::count;
use super::worlds::{arm_name, percent};

/// One GPU in one arm at one world size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct GpuRow {
    ranks: String,
    arm: &'static str,
    gpu: String,
    power: String,
    energy: String,
    tokens_per_joule: String,
    clock: String,
    clock_min: String,
    temperature: String,
    link: String,
    held: String,
}

impl GpuRow {
    pub(super) fn of(row: &GpuUnderLoad) -> Self {
        let load = &row.load;
        Self {
            ranks: row.world.to_string(),
            arm: arm_name(row.arm),
            gpu: row.gpu.clone(),
            power: told(load.power_w.as_ref().map(Watts::to_string)),
            energy: told(energy(load)),
            tokens_per_joule: told(load.tokens_per_joule.map(grouped)),
            clock: told(load.sm_clock_hz.as_ref().map(Hertz::to_string)),
            clock_min: told(load.sm_clock_min_hz.as_ref().map(Hertz::to_string)),
            temperature: told(load.temperature_max_c.as_ref().map(Celsius::to_string)),
            link: link(load),
            held: held(load),
        }
    }
}

/// What was not told is a dash.
fn told(text: Option<String>) -> String {
    text.unwrap_or_else(|| "–".into())
}

fn energy(load: &GpuLoad) -> Option<String> {
    let source = match load.energy_from? {
        EnergySource::Counter => "counted",
        EnergySource::Power => "from power",
    };
    Some(format!("{}, {source}", load.energy_j?))
}

/// `Gen 4 x16`, and how often it had to repeat itself.
fn link(load: &GpuLoad) -> String {
    let known =
        [load.pcie_gen_min.map(|speed| format!("Gen {speed}")), load.pcie_width_min.map(|width| format!("x{width}"))];
    let known = known.into_iter().flatten().collect::<Vec<_>>().join(" ");
    let known = if known.is_empty() { "–".into() } else { known };
    match load.pcie_replays {
        Some(replays @ 1..) => format!("{known}, {} replays", count(usize::try_from(replays).unwrap_or(usize::MAX))),
        _ => known,
    }
}

fn held(load: &GpuLoad) -> String {
    if load.throttle_reasons.is_none() {
        return "not known".into();
    }
    let reasons: Vec<String> =
        load.throttle.iter().map(|held| format!("{} {}", held.reason, percent(held.share))).collect();
    if reasons.is_empty() { "nothing".into() } else { reasons.join(", ") }
}
