//! What was found in the forms that programs read: `nccl.conf`, shell exports, the table of NCCL's example tuner plugin.

use std::collections::BTreeMap;

use crate::record::{Device, NcclSettings, TrainConfig, TuneResult};

use super::conf::{Line, write_conf};
use super::space::Applied;

/// Ranks of one host from which on NCCL may take a tree by itself for small sums; below, its cost model takes a ring on PCIe
/// (NCCL 2.30.7, src/graph/tuning.cc, evaluated for 2 to 4 ranks).
const TREE_FROM: usize = 5;

/// What the plugin's table reads as no limit: `strtoull` into `size_t`.
const ANY_SIZE: &str = "18446744073709551615";

/// Everything that the forms are made of.
pub(super) struct Forms<'a> {
    /// The answer.
    pub(super) result: &'a TuneResult,
    /// The training and NCCL's settings with the best setting applied.
    pub(super) applied: &'a Applied,
    /// Channels of collectives, where NCCL's log told them.
    pub(super) channels: Option<u32>,
}

/// What a result is bound to, in a line.
pub(super) fn bound(result: &TuneResult) -> String {
    let identity = &result.identity;
    let sequences = if identity.batch == 1 { "sequence" } else { "sequences" };
    let mut words = vec![format!(
        "{} with {} {sequences} of {} tokens on {} ranks",
        identity.model, identity.batch, identity.context, identity.world
    )];
    words.extend(identity.nccl.as_ref().map(|version| format!("NCCL {version}")));
    words.extend(identity.driver.as_ref().map(|version| format!("driver {version}")));
    if identity.conditions.zero == 1 {
        words.push("ZeRO-1".to_owned());
    }
    if identity.conditions.recompute {
        words.push("recomputation".to_owned());
    }
    if !identity.conditions.environment.is_empty() {
        words.push(format!("{} already set", identity.conditions.variables()));
    }
    words.push(format!("topology {}", identity.topology_sha256.chars().take(12).collect::<String>()));
    words.join(", ")
}

/// What NCCL is told, all as variables of its environment; of what its communicator was told and the environment sets too,
/// the environment's, as NCCL does (`envConfigOverride` in src/init.cc).
#[must_use]
pub fn nccl_variables(told: &NcclSettings, inherited: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let fields = [
        ("NCCL_MIN_CTAS", told.min_ctas),
        ("NCCL_MAX_CTAS", told.max_ctas),
        ("NCCL_CGA_CLUSTER_SIZE", told.cga_cluster_size),
        ("NCCL_CTA_POLICY", told.cta_policy),
    ];
    let number = |(name, value): (&str, Option<u32>)| value.map(|value| (name.to_owned(), value.to_string()));
    let mut all: BTreeMap<String, String> = fields.into_iter().filter_map(number).collect();
    all.extend(inherited.clone());
    all.extend(told.environment.clone());
    all
}

/// A word of the shell, whatever it holds.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', "'\\''"))
}

impl Forms<'_> {
    /// NCCL's variables: what was set already, and what was found. None for ranks that use no NCCL.
    fn variables(&self) -> [Vec<(String, String)>; 2] {
        if self.result.identity.device == Device::Cpu {
            return [Vec::new(), Vec::new()];
        }
        let field = |name: &str| format!("NCCL_{}", name.replace('-', "_").to_ascii_uppercase());
        let setting = &self.result.best.setting;
        let found: Vec<String> = setting
            .assignments()
            .map(|(name, _)| if name.starts_with("NCCL_") { name.to_owned() } else { field(name) })
            .collect();
        let all = nccl_variables(&self.applied.nccl, &self.result.identity.conditions.environment);
        let (found, kept) = all.into_iter().partition(|(name, _)| found.contains(name));
        [kept, found]
    }

    /// Where the settings come from, in lines.
    fn provenance(&self) -> Vec<String> {
        let (result, config) = (self.result, &self.applied.config);
        let mut lines = vec![
            format!("found by rigscale {} tune, {:?}", result.rigscale, result.origin).to_lowercase(),
            format!("holds for {}", bound(result)),
            format!("topology sha256 {}", result.identity.topology_sha256),
        ];
        if result.identity.device == Device::Cpu {
            lines.push("CPU ranks: this says nothing about GPUs".to_owned());
        }
        lines.extend(result.sentences.first().cloned());
        lines.push(buckets(config));
        lines
    }

    /// `nccl.conf`.
    pub(super) fn conf(&self) -> String {
        let mut lines: Vec<Line> = self.provenance().into_iter().map(Line::Remark).collect();
        lines.push(Line::Remark("copy to ~/.nccl.conf or /etc/nccl.conf, or name it in NCCL_CONF_FILE".into()));
        let [kept, found] = self.variables();
        if found.is_empty() {
            let why = match self.result.identity.device {
                Device::Cpu => "nothing is set: CPU ranks use no NCCL",
                Device::Cuda => "nothing was found: what was set already is the best, else NCCL's own choices",
            };
            lines.push(Line::Remark(why.into()));
        }
        let set = |(name, value): &(String, String)| Line::Set { name: name.clone(), value: value.clone() };
        if !kept.is_empty() {
            let why = "set already while it was found, by the environment, NCCL's conf files or --nccl";
            lines.push(Line::Remark(why.into()));
            lines.extend(kept.iter().map(set));
        }
        if !found.is_empty() {
            lines.push(Line::Remark("found".into()));
            lines.extend(found.iter().map(set));
        }
        write_conf(&lines)
    }

    /// `settings.sh`.
    pub(super) fn exports(&self) -> String {
        let mut text = String::from("# source this before the training\n");
        for line in self.provenance() {
            text.push_str(&format!("# {line}\n"));
        }
        for (name, value) in self.variables().into_iter().flatten() {
            text.push_str(&format!("export {name}={}\n", quoted(&value)));
        }
        if let Some(threads) = self.applied.threads {
            text.push_str(&format!("export OMP_NUM_THREADS={threads}\n"));
        }
        if !self.applied.pinned {
            text.push_str(
                "# no variable says it: ranks are not bound to CPUs (no taskset, numactl --physcpubind, mpirun --bind-to)\n",
            );
        }
        text
    }

    /// The table of NCCL's example tuner plugin (`plugins/tuner/example`), or why there is none. The plugin takes one channel
    /// for whatever no row of its table matches, and for `channels` of -1 too (plugin.c: `*nChannels = 1`), so that rows must
    /// cover every collective and size, with the channels that NCCL ran; and a row names an algorithm and a protocol, which
    /// are known only where they were set.
    pub(super) fn csv(&self) -> Result<String, String> {
        let told = |name: &str| self.applied.nccl.environment.get(name).map(|value| value.to_ascii_lowercase());
        let inherited = &self.result.identity.conditions.environment;
        let one = |value: &String| ["ring", "tree", "simple", "ll"].contains(&value.as_str());
        let of = |name: &str| {
            let value = told(name).or_else(|| inherited.get(name).map(|value| value.to_ascii_lowercase()));
            value.map(|value| if one(&value) { Ok(value) } else { Err(()) }).transpose()
        };
        if self.result.identity.device == Device::Cpu {
            return Err("CPU ranks use no NCCL".to_owned());
        }
        let unsaid = |what: &str| format!("{what}, and a row of it must; nccl.conf says all that was found");
        let Ok(Some(protocol)) = of("NCCL_PROTO") else {
            return Err(unsaid("no one protocol was found that the plugin's table could name"));
        };
        let algorithm = match of("NCCL_ALGO") {
            Ok(Some(algorithm)) => algorithm,
            Ok(None) if self.result.identity.world < TREE_FROM => "ring".to_owned(),
            _ => return Err(unsaid("no one algorithm was found that the plugin's table could name")),
        };
        let Some(channels) = self.channels else {
            return Err(unsaid("NCCL's log did not tell its channels"));
        };
        let mut text = String::from(
            "# for NCCL's example tuner plugin: NCCL_TUNER_PLUGIN, NCCL_TUNER_CONFIG_FILE\n\
             # nccl.conf is needed beside it: it sets what the plugin cannot and the channels that the plugin may take\n\
             # small messages take all channels too; NCCL by itself takes fewer below some 100 KB\n\
             # collective_type,min_bytes,max_bytes,algorithm,protocol,channels,nNodes,nRanks,numPipeOps,regBuff\n",
        );
        for line in self.provenance() {
            text.push_str(&format!("# {}\n", line.replace(',', ";")));
        }
        // a tree is for all-reduce alone (NCCL 2.30.7, src/graph/tuning.cc); the others go by the ring then
        for collective in ["allreduce", "reducescatter", "allgather", "broadcast", "reduce"] {
            let algorithm = if collective == "allreduce" { algorithm.as_str() } else { "ring" };
            let ranks = self.result.identity.world;
            text.push_str(&format!("{collective},0,{ANY_SIZE},{algorithm},{protocol},{channels},1,{ranks},-1,-1\n"));
        }
        Ok(text)
    }
}

/// The buckets of a training, in the words of torch too, whose first bucket is 1 MiB unless a cap is set, which counts for
/// the first bucket then (pytorch/pytorch pull request 121640).
fn buckets(config: &TrainConfig) -> String {
    let mebi = |bytes: crate::units::Bytes| bytes.0 as f64 / f64::from(1 << 20);
    let cap = mebi(config.bucket_bytes);
    let first = match config.first_bucket_bytes == config.bucket_bytes {
        true => "",
        false => "; newer torch takes a cap that is set for the first bucket too",
    };
    format!(
        "buckets of the training: {}, the first {} (torch: bucket_cap_mb={cap:.4}{first})",
        config.bucket_bytes, config.first_bucket_bytes
    )
}
