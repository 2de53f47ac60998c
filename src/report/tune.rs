//! The page of a tuner: its answer, charts of what was tried, every setting and what was left out.

use serde::Serialize;

use crate::record::{Device, Origin, TuneConfirmed, TunePredicted, TuneResult};
use crate::stats::median;
use crate::units::Seconds;

use super::chart::{self, Chart};
use super::{Rendered, ReportError, template, text};

/// What the template shows.
#[derive(Debug, Serialize)]
pub(super) struct TunePage {
    title: String,
    kicker: &'static str,
    class: &'static str,
    headline: String,
    sentences: Vec<String>,
    setting: String,
    facts: Vec<(String, String)>,
    charts: Vec<Shown>,
    confirmed: Option<Held>,
    cells: Vec<Row>,
    left_out: Vec<(String, String)>,
    findings: Vec<(String, String, String)>,
    footer: String,
}

#[derive(Debug, Serialize)]
struct Shown {
    name: &'static str,
    wide: String,
    narrow: String,
    caption: &'static str,
}

/// The second look: pairs of fresh launches, pair by pair.
#[derive(Debug, Serialize)]
struct Held {
    setting: String,
    outcome: String,
    pairs: Vec<(String, String, String)>,
}

#[derive(Debug, Serialize)]
struct Row {
    setting: String,
    step: String,
    launches: usize,
    stage: String,
    fate: String,
}

/// `tune.html` and its charts as files.
///
/// # Errors
/// [`ReportError`] if a number is not finite or a chart cannot be drawn.
pub fn tune_page(result: &TuneResult) -> Result<Rendered, ReportError> {
    let run = || result.identity.model.clone();
    let result: TuneResult = text::printable(result).map_err(|source| ReportError::NotFinite { run: run(), source })?;
    let charts = chart::tuning(&result)?;
    let html = template::tune(&page(&result, &charts), &chart::dark_rules())?;
    let mut files = vec![("tune.html".to_owned(), html.into_bytes())];
    for chart in charts {
        files.push((format!("charts/{}.svg", chart.name), chart.svg.into_bytes()));
        files.push((format!("charts/{}.png", chart.name), chart.png));
    }
    Ok(Rendered { files })
}

fn page(result: &TuneResult, charts: &[Chart]) -> TunePage {
    let saved = result.gain.map(|gain| format!("{:.1} % of a step saved", gain.estimate * 100.0));
    let (first, rest) = match result.sentences.split_first() {
        Some((first, rest)) => (first.clone(), rest.to_vec()),
        None => (String::new(), Vec::new()),
    };
    TunePage {
        title: format!("Tuning {}", result.identity.model),
        kicker: match (result.origin, result.identity.device) {
            (Origin::Measured, Device::Cpu) => "CPU ranks: says nothing about GPUs",
            (Origin::Measured, Device::Cuda) => "measured",
            (Origin::Simulated, _) => "simulated: no hardware took part",
            (Origin::SharedGpu, _) => "ranks on one GPU: a laboratory",
        },
        class: if result.gain.is_some() { "good" } else { "none" },
        headline: saved.unwrap_or_else(|| "No gain".to_owned()),
        sentences: std::iter::once(first).chain(rest).collect(),
        setting: result.best.setting.to_string(),
        facts: facts(result),
        charts: charts
            .iter()
            .map(|chart| Shown {
                name: chart.name,
                wide: chart.wide.clone(),
                narrow: chart.narrow.clone(),
                caption: chart.caption,
            })
            .collect(),
        confirmed: result.confirmed.as_ref().map(held),
        cells: rows(result),
        left_out: left_out(result),
        findings: result
            .findings
            .iter()
            .chain(&result.warnings)
            .map(|finding| (finding.code.clone(), finding.seen.clone(), finding.remedy.clone()))
            .collect(),
        footer: format!("rigscale {}; {}", result.rigscale, result.ended),
    }
}

fn facts(result: &TuneResult) -> Vec<(String, String)> {
    let identity = &result.identity;
    let known = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
    let rows = [
        ("Ranks", identity.world.to_string()),
        ("Batch", format!("{} × {} tokens", identity.batch, identity.context)),
        ("NCCL", known(&identity.nccl)),
        ("Driver", known(&identity.driver)),
        ("Topology", identity.topology_sha256.chars().take(16).collect()),
        ("Settings", format!("{} of {} launched", result.tried, result.space)),
        ("Launches", format!("{} in {}", result.launches, result.wall_s)),
    ];
    rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The pairs of the second look, each with what its second launch took longer than its first.
fn held(confirmed: &TuneConfirmed) -> Held {
    let percent = |share: f64| format!("{:+.1} %", share * 100.0);
    let gain = confirmed.gain;
    let verdict = if confirmed.accepted { "a gain" } else { "not taken for a gain" };
    Held {
        setting: confirmed.setting.to_string(),
        outcome: format!(
            "saves {:.1} % of a step (95 % interval {:.1} % to {:.1} %): {verdict}",
            gain.estimate * 100.0,
            gain.low * 100.0,
            gain.high * 100.0
        ),
        pairs: confirmed
            .pairs
            .iter()
            .map(|(first, second)| (first.to_string(), second.to_string(), percent(second.0 / first.0 - 1.0)))
            .collect(),
    }
}

/// What was not offered, and what the model kept from being launched.
fn left_out(result: &TuneResult) -> Vec<(String, String)> {
    let offered = result.left_out.iter().map(|it| (it.what.clone(), it.why.clone()));
    let predicted = |it: &TunePredicted| format!("not launched: predicted to take {}", it.step_s);
    offered.chain(result.hopeless.iter().map(|it| (it.setting.to_string(), predicted(it)))).collect()
}

fn rows(result: &TuneResult) -> Vec<Row> {
    let row = |cell: &crate::record::TuneCell| {
        let steps: Vec<f64> = cell.steps_s.iter().map(|step| step.0).collect();
        let step = (!steps.is_empty()).then(|| median(&steps));
        Row {
            setting: cell.setting.to_string(),
            step: step.map_or_else(|| "—".to_owned(), |step| Seconds(step).to_string()),
            launches: steps.len(),
            stage: cell.stage.clone(),
            fate: cell.fate.clone(),
        }
    };
    result.cells.iter().map(row).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::record::{
        Device, Interval, Setting, TuneCell, TuneConditions, TuneConfirmed, TuneIdentity, TuneLeftOut, TuneStanding,
    };
    use crate::units::Bytes;

    /// A result with four bucket sizes and a setting that failed.
    pub(in crate::report) fn result() -> TuneResult {
        let default = Setting::default();
        let cell = |setting: &Setting, steps: &[f64], fate: &str| TuneCell {
            setting: setting.clone(),
            stage: "bucket".into(),
            steps_s: steps.iter().map(|step| Seconds(*step)).collect(),
            fate: fate.into(),
        };
        let best = default.with("bucket", "bucket-mib=4");
        TuneResult {
            schema: 1,
            rigscale: "0".into(),
            origin: Origin::Measured,
            identity: TuneIdentity {
                nccl: None,
                driver: None,
                topology_sha256: "ab".repeat(32),
                device: Device::Cpu,
                model: "<b>llama</b>".into(),
                world: 2,
                batch: 1,
                context: 128,
                accumulate: 1,
                share_gpu: false,
                conditions: TuneConditions::default(),
            },
            sentences: vec!["bucket-mib=4 saves 5.0 %.".into(), "It holds here.".into()],
            ended: "no knob promised more".into(),
            bucket_bytes: Bytes::mebi(25.0),
            default: TuneStanding { setting: default.clone(), step_s: Seconds(0.02), efficiency: None },
            best: TuneStanding { setting: best.clone(), step_s: Seconds(0.019), efficiency: None },
            gain: Some(Interval { estimate: 0.05, low: 0.03, high: 0.07 }),
            confirmed: Some(TuneConfirmed {
                setting: best.clone(),
                pairs: vec![(Seconds(0.02), Seconds(0.019)), (Seconds(0.021), Seconds(0.0199))],
                gain: Interval { estimate: 0.05, low: 0.03, high: 0.07 },
                accepted: true,
            }),
            target: 0.9,
            need: None,
            space: 64,
            tried: 5,
            launches: 12,
            wall_s: Seconds(9.0),
            cells: vec![
                cell(&default, &[0.02, 0.0201, 0.0199], ""),
                cell(&best, &[0.0189, 0.0191], "taken"),
                cell(&default.with("bucket", "bucket-mib=1"), &[0.022], "dropped"),
                cell(&default.with("bucket", "bucket-mib=8"), &[0.0195], "no better"),
                cell(&default.with("transport", "NCCL_P2P_DISABLE=1").with("protocol", "NCCL_PROTO=LL"), &[], "failed"),
            ],
            knobs: Vec::new(),
            left_out: vec![TuneLeftOut { what: "NCCL_PROTO=LL128".into(), why: "never".into() }],
            hopeless: Vec::new(),
            findings: Vec::new(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn the_page_shows_every_setting_and_escapes_what_it_is_given() {
        let rendered = tune_page(&result()).unwrap();
        let names: Vec<&str> = rendered.files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names[0], "tune.html");
        assert!(names.contains(&"charts/trials.svg") && names.contains(&"charts/buckets.png"), "{names:?}");
        let html = String::from_utf8(rendered.files[0].1.clone()).unwrap();
        assert!(!html.contains("<b>llama") && html.contains("NCCL_P2P_DISABLE=1") && html.contains("LL128"));
        assert!(html.contains("-5.0 %") && html.contains("-5.2 %"), "the confirmation is shown pair by pair");
        assert!(html.contains("says nothing about GPUs"), "as every page of CPU ranks");
        let mut wrong = result();
        wrong.default.step_s = Seconds(f64::NAN);
        assert!(matches!(tune_page(&wrong), Err(ReportError::NotFinite { .. })));
    }
}
