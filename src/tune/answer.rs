//! What a search found, as people and programs take it: sentences, `nccl.conf`, exports, the tuner plugin's table.

use sha2::{Digest, Sha256};

use crate::record::{
    Device, Finding, NcclSettings, SCHEMA, Setting, TrainConfig, TuneCell, TuneHead, TuneNeed, TuneResult, TuneStanding,
};
use crate::topology::{LinkEnd, Reading, Topology};
use crate::units::{Bytes, Seconds};

use super::conf::{Line, write_conf};
use super::search::{Ended, Found};
use super::space::{Applied, Space};

/// What an answer says beside what was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Binding<'a> {
    /// What was searched.
    pub head: &'a TuneHead,
    /// The training and NCCL's settings with the best setting applied.
    pub applied: &'a Applied,
    /// Efficiency that is wanted.
    pub target: f64,
    /// Size at which a bucket is closed by default.
    pub bucket_bytes: Bytes,
    /// Bandwidth that the target needs and that there is; not told of CPU ranks, between which no link lies.
    pub need: Option<TuneNeed>,
}

/// The answer in every form.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// `tune.json`.
    pub result: TuneResult,
    /// `nccl.conf`.
    pub nccl_conf: String,
    /// `tuner.csv`, for NCCL's example tuner plugin.
    pub tuner_csv: String,
    /// `settings.sh`.
    pub exports: String,
}

/// The answer to a search; none where the default was never launched to its end.
#[must_use]
pub fn answer(found: &Found, binding: &Binding<'_>) -> Option<Answer> {
    let [default_step, best_step] = found.steps()?;
    let efficiencies = found.efficiencies();
    let efficiency = |which: usize| efficiencies.as_ref().map(|both| both[which]);
    let standing = |setting: &Setting, step_s: Seconds, which: usize| TuneStanding {
        setting: setting.clone(),
        step_s,
        efficiency: efficiency(which),
    };
    let head = binding.head;
    let short = efficiency(1).is_some_and(|it| it.high < binding.target);
    let mut result = TuneResult {
        schema: SCHEMA,
        rigscale: env!("CARGO_PKG_VERSION").into(),
        origin: head.origin,
        identity: head.identity.clone(),
        sentences: Vec::new(),
        ended: ended(found, head),
        bucket_bytes: binding.bucket_bytes,
        default: standing(&Setting::default(), default_step, 0),
        best: standing(&found.best, best_step, 1),
        gain: found.confirmed.as_ref().filter(|it| it.accepted).map(|it| it.gain),
        target: binding.target,
        need: binding.need.filter(|_| short && head.identity.device == Device::Cuda),
        space: Space { knobs: head.knobs.clone(), left_out: Vec::new() }.size(),
        tried: found.ledger.tried(),
        launches: found.launches,
        wall_s: found.spent,
        cells: cells(found),
        knobs: head.knobs.clone(),
        left_out: head.left_out.clone(),
        findings: findings(found),
    };
    result.sentences = sentences(found, &result);
    let variables = variables(&binding.applied.nccl);
    Some(Answer {
        nccl_conf: conf(&result, &variables, &binding.applied.config),
        tuner_csv: csv(&result, binding.applied),
        exports: exports(&result, &variables, binding.applied),
        result,
    })
}

fn ended(found: &Found, head: &TuneHead) -> String {
    let tried = found.ledger.tried();
    match found.ended {
        Ended::Settled => format!("no knob promised more after {tried} settings"),
        Ended::Settings => format!("{tried} settings were launched, as many as allowed"),
        Ended::Time => format!("the time was over after {tried} settings; the same folder with more time goes on"),
        Ended::DefaultFailed => format!("{} could not be launched with everything left alone", head.identity.model),
    }
}

fn cells(found: &Found) -> Vec<TuneCell> {
    let cell = |(setting, cell): (&Setting, &super::ledger::Cell)| TuneCell {
        setting: setting.clone(),
        stage: cell.stage.clone(),
        steps_s: cell.logs.iter().map(|log| Seconds(log.exp())).collect(),
        fate: if cell.fate.is_empty() { "what all else was compared with".to_owned() } else { cell.fate.clone() },
    };
    found.ledger.cells().map(cell).collect()
}

fn findings(found: &Found) -> Vec<Finding> {
    found.ledger.cells().filter_map(|(_, cell)| cell.fault.clone()).collect()
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn sentences(found: &Found, result: &TuneResult) -> Vec<String> {
    let ranks = result.identity.world;
    let mut said = Vec::new();
    match (&found.confirmed, &result.gain) {
        (Some(_), Some(gain)) => said.push(format!(
            "{} saves {} of the default's step ({} to {}, 95 % interval on fresh launches): {} instead of {}.",
            result.best.setting,
            percent(gain.estimate),
            percent(gain.low),
            percent(gain.high),
            result.best.step_s,
            result.default.step_s,
        )),
        (Some(other), None) => said.push(format!(
            "Nothing beats the default: {} looked best, and saved {} on fresh launches (95 % interval {} to {}), which is \
             not above noise.",
            other.setting,
            percent(other.gain.estimate),
            percent(other.gain.low),
            percent(other.gain.high),
        )),
        _ if result.tried < 2 => {
            said.push("The time was over before any other setting was launched: give more with --budget.".to_owned());
        }
        _ => said.push(format!(
            "Nothing beats the default: of {} settings launched none was faster than it by more than noise ({} from \
             launch to launch).",
            result.tried,
            percent(found.ledger.scatter().deviation),
        )),
    }
    if let (Some(default), Some(best)) = (result.default.efficiency, result.best.efficiency) {
        let text = |it: crate::record::Interval| format!("{:.3} ({:.3} to {:.3})", it.estimate, it.low, it.high);
        said.push(match result.gain {
            Some(_) => format!("Efficiency at {ranks} ranks: {} instead of {}.", text(best), text(default)),
            None => format!("Efficiency at {ranks} ranks: {}.", text(default)),
        });
    }
    said.extend(short_of(result));
    if !result.findings.is_empty() {
        let words: Vec<&str> = result.findings.iter().map(|finding| finding.code.as_str()).collect();
        said.push(format!("{} of the settings failed: {}.", words.len(), words.join(", ")));
    }
    said.push(format!("The result holds for {}.", bound(result)));
    said
}

/// What is said where no setting reached the target.
fn short_of(result: &TuneResult) -> Option<String> {
    let target = result.target;
    if result.identity.device == Device::Cpu {
        let short = result.best.efficiency.is_some_and(|efficiency| efficiency.high < target);
        return short.then(|| {
            format!(
                "No setting reached {target}: ranks on CPU cores share memory and cores, and no link lies between them whose \
                 bandwidth could be missing."
            )
        });
    }
    let need = result.need?;
    Some(match need.needed {
        Some(needed) => format!(
            "No setting reached {target}: it needs {needed} of bus bandwidth, the link gives {} (if the exchange alone is \
             to blame).",
            need.given
        ),
        None => format!("No setting reached {target}, and no bandwidth would: the ranks lose time elsewhere."),
    })
}

/// What a result is bound to, in a line.
fn bound(result: &TuneResult) -> String {
    let identity = &result.identity;
    let sequences = if identity.batch == 1 { "sequence" } else { "sequences" };
    let mut words = vec![format!(
        "{} with {} {sequences} of {} tokens on {} ranks",
        identity.model, identity.batch, identity.context, identity.world
    )];
    words.extend(identity.nccl.as_ref().map(|version| format!("NCCL {version}")));
    words.extend(identity.driver.as_ref().map(|version| format!("driver {version}")));
    words.push(format!("topology {}", identity.topology_sha256.chars().take(12).collect::<String>()));
    words.join(", ")
}

/// What NCCL is told, all as variables of its environment.
fn variables(nccl: &NcclSettings) -> Vec<(String, String)> {
    let number = |name: &str, value: Option<u32>| value.map(|value| (name.to_owned(), value.to_string()));
    let mut all: Vec<(String, String)> = nccl.environment.clone().into_iter().collect();
    all.extend(number("NCCL_MIN_CTAS", nccl.min_ctas));
    all.extend(number("NCCL_MAX_CTAS", nccl.max_ctas));
    all.extend(number("NCCL_CGA_CLUSTER_SIZE", nccl.cga_cluster_size));
    all.extend(number("NCCL_CTA_POLICY", nccl.cta_policy));
    all
}

/// Where the settings come from, in lines.
fn provenance(result: &TuneResult, config: &TrainConfig) -> Vec<String> {
    let mut lines = vec![
        format!("found by rigscale {} tune, {:?}", result.rigscale, result.origin).to_lowercase(),
        format!("holds for {}", bound(result)),
        format!("topology sha256 {}", result.identity.topology_sha256),
    ];
    lines.extend(result.sentences.first().cloned());
    lines.push(format!(
        "buckets of the training: {}, the first {} (torch: bucket_cap_mb={:.4})",
        config.bucket_bytes,
        config.first_bucket_bytes,
        config.bucket_bytes.0 as f64 / f64::from(1 << 20),
    ));
    lines
}

fn conf(result: &TuneResult, variables: &[(String, String)], config: &TrainConfig) -> String {
    let mut lines: Vec<Line> = provenance(result, config).into_iter().map(Line::Remark).collect();
    lines.push(Line::Remark("copy to ~/.nccl.conf or /etc/nccl.conf, or name it in NCCL_CONF_FILE".into()));
    if variables.is_empty() {
        let why = match result.identity.device {
            Device::Cpu => "nothing is set: CPU ranks use no NCCL",
            Device::Cuda => "nothing is set: NCCL's own choices are the best that was found",
        };
        lines.push(Line::Remark(why.into()));
    }
    lines.extend(variables.iter().map(|(name, value)| Line::Set { name: name.clone(), value: value.clone() }));
    write_conf(&lines)
}

/// A word of the shell, whatever it holds.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "'\\''"))
}

fn exports(result: &TuneResult, variables: &[(String, String)], applied: &Applied) -> String {
    let mut text = String::from("# source this before the training\n");
    for line in provenance(result, &applied.config) {
        text.push_str(&format!("# {line}\n"));
    }
    for (name, value) in variables {
        text.push_str(&format!("export {name}={}\n", quoted(value)));
    }
    if let Some(threads) = applied.threads {
        text.push_str(&format!("export OMP_NUM_THREADS={threads}\n"));
    }
    text
}

/// The table of NCCL's example tuner plugin (`plugins/tuner/example`): one row for the sizes of the training's buckets,
/// where the plugin can set anything. It must name a protocol; where none was chosen it is Simple, which NCCL takes at
/// these sizes on PCIe.
fn csv(result: &TuneResult, applied: &Applied) -> String {
    let mut text = String::from(
        "# for NCCL's example tuner plugin: NCCL_TUNER_PLUGIN, NCCL_TUNER_CONFIG_FILE\n\
         # collective_type,min_bytes,max_bytes,algorithm,protocol,channels,nNodes,nRanks,numPipeOps,regBuff\n",
    );
    for line in provenance(result, &applied.config) {
        text.push_str(&format!("# {}\n", line.replace(',', ";")));
    }
    let told = |name: &str| applied.nccl.environment.get(name).map(|value| value.to_ascii_lowercase());
    let (algorithm, protocol, channels) = (told("NCCL_ALGO"), told("NCCL_PROTO"), applied.nccl.max_ctas);
    if algorithm.is_none() && protocol.is_none() && channels.is_none() {
        text.push_str("# no row: nothing was found that the plugin sets\n");
        return text;
    }
    let element = applied.config.reduced_bytes().0;
    let sizes = applied.config.bucket_layout().buckets.into_iter().map(|bucket| bucket.elements as u64 * element);
    let (least, most) = sizes.fold((u64::MAX, 0), |(least, most), size| (least.min(size), most.max(size)));
    text.push_str(&format!(
        "allreduce,{least},{most},{},{},{},1,{},-1,-1\n",
        algorithm.unwrap_or_else(|| "ring".into()),
        protocol.unwrap_or_else(|| "simple".into()),
        channels.map_or(-1, i64::from),
        result.identity.world,
    ));
    text
}

/// SHA-256 over what of a machine decides how gradients travel, in hexadecimal: processor, cores, bridges, the most that
/// each end of a link offers, GPUs. What changes from minute to minute (clocks, a link asleep) takes no part.
#[must_use]
pub fn topology_hash(topology: &Topology) -> String {
    fn known<T: std::fmt::Debug>(fact: &Reading<T>) -> String {
        fact.as_ref().map_or_else(|_| "?".to_owned(), |fact| format!("{fact:?}"))
    }
    let end = |link: &LinkEnd| format!("{} {}", known(&link.gen_max), known(&link.width_max));
    let mut lines = vec![
        format!("cpu {} {}", known(&topology.cpu.model), known(&topology.cpu.online)),
        format!("iommu {}", known(&topology.iommu.mode)),
    ];
    lines.extend(topology.numa.iter().flatten().map(|node| format!("node {} {}", node.node, known(&node.cpus))));
    let above = |parent: &Option<crate::topology::PciAddress>| parent.map(|at| at.to_string()).unwrap_or_default();
    let bridges = topology.bridges.iter();
    lines.extend(bridges.map(|it| format!("bridge {} {} {}", it.address, above(&it.parent), end(&it.link))));
    lines.extend(
        topology
            .nvidia_gpus()
            .map(|gpu| format!("gpu {} {} {} {}", gpu.address, above(&gpu.parent), known(&gpu.id), end(&gpu.link))),
    );
    Sha256::digest(lines.join("\n")).iter().map(|byte| format!("{byte:02x}")).collect()
}
