//! A platform as a person writes it down for the acceptance of equal builds: which GPUs, on how many lanes, with which
//! window, and how NCCL carries their data. What the file leaves out is not compared.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::record::Finding;
use crate::topology::{
    Generation, Gpu, Lanes, PathClass, PciAddress, Topology, Width, WrongPlace, parse_yaml, place_in,
};
use crate::units::Bytes;

use super::Breach;
use super::expect::{gone, row};
use super::transport::{Carrier, transports};

/// The schema of the file.
pub const ACCEPTANCE_SCHEMA: u32 = 1;

const HELP: &str = "`rigscale probe -o DIR` writes a platform.yaml to start from: schema, title, and for each GPU slot, model, \
                    gen, width and window_mib, of which any may be left out; farthest (PIX, PXB, PHB, NODE or SYS) and \
                    carrier (nvlink, peer, host_memory or network) for all pairs";

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acceptance {
    /// [`ACCEPTANCE_SCHEMA`].
    pub schema: u32,
    /// What people call the build.
    pub title: String,
    /// Its NVIDIA GPUs.
    pub gpus: Vec<AcceptedGpu>,
    /// The farthest that two of them may lie apart.
    #[serde(default)]
    pub farthest: Option<PathClass>,
    /// What carries the data of every pair under NCCL.
    #[serde(default)]
    pub carrier: Option<Carrier>,
}

/// One GPU of the build.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptedGpu {
    /// Its PCI address.
    #[serde(default)]
    pub slot: Option<PciAddress>,
    /// Words that its product name holds, in any case.
    #[serde(default)]
    pub model: Option<String>,
    /// Generation of the narrowest hop, awake.
    #[serde(default, rename = "gen")]
    pub generation: Option<Generation>,
    /// Its lanes.
    #[serde(default)]
    pub width: Option<Width>,
    /// Least size of the window to its memory, in MiB.
    #[serde(default)]
    pub window_mib: Option<u64>,
}

/// Reads a file; `file` is its name for errors.
///
/// # Errors
/// No YAML, unknown keys, a newer schema, one slot twice: with the place.
pub fn parse_acceptance(text: &str, file: &str) -> Result<Acceptance, Box<WrongPlace>> {
    let read: Acceptance = parse_yaml(text, file, HELP)?;
    let wrong =
        |what: &str, problem: String| Err(Box::new(place_in(text, file, text.rfind(what).unwrap_or(0), problem, HELP)));
    if read.schema != ACCEPTANCE_SCHEMA {
        return wrong("schema", format!("schema {}; this version reads {ACCEPTANCE_SCHEMA}", read.schema));
    }
    let mut slots: Vec<PciAddress> = read.gpus.iter().filter_map(|gpu| gpu.slot).collect();
    slots.sort_unstable();
    match slots.windows(2).find(|two| two[0] == two[1]) {
        Some(two) => wrong(&two[0].to_string(), format!("{} stands here twice", two[0])),
        None => Ok(read),
    }
}

impl Acceptance {
    /// What a unit that is known to be good shows. A fact that is missing is left out.
    #[must_use]
    pub fn of(topology: &Topology) -> Self {
        let gpu = |gpu: &Gpu| {
            let lanes = gpu.narrowest.as_ref().ok().map(|hop| hop.lanes());
            let known = gpu.nvml.as_ref().is_some_and(|state| state.name.is_ok()) || gpu.id.is_ok();
            AcceptedGpu {
                slot: (!gpu.address.is_index()).then_some(gpu.address),
                model: known.then(|| gpu.name().into_owned()),
                generation: lanes.map(|lanes| lanes.generation),
                width: lanes.map(|lanes| lanes.width),
                window_mib: window(gpu).map(|bytes| bytes.0 >> 20),
            }
        };
        let pairs = transports(topology);
        let first = pairs.first().and_then(|pair| pair.carrier);
        let named = [&topology.machine.board, &topology.machine.product].into_iter().find_map(|name| name.clone().ok());
        Self {
            schema: ACCEPTANCE_SCHEMA,
            title: named.unwrap_or_else(|| "a machine".to_owned()),
            gpus: topology.nvidia_gpus().map(gpu).collect(),
            farthest: topology.pairs.iter().filter_map(|pair| pair.path.clone().ok()).max(),
            carrier: first.filter(|carrier| pairs.iter().all(|pair| pair.carrier == Some(*carrier))),
        }
    }

    /// The file, with a line on what each key means.
    #[must_use]
    pub fn to_text(&self) -> String {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let mut text = format!(
            "# What a unit of this series must show. `rigscale probe --expect` compares it; what a line leaves out is not\n\
             # compared. gen and width: the narrowest hop to the CPU, awake.\nschema: {}\ntitle: {}\n",
            self.schema,
            quoted(&self.title)
        );
        text += if self.gpus.is_empty() { "gpus: []\n" } else { "gpus:\n" };
        for gpu in &self.gpus {
            let keys = [
                gpu.slot.map(|slot| format!("slot: \"{slot}\"")),
                gpu.model.as_deref().map(|model| format!("model: {}", quoted(model))),
                gpu.generation.map(|generation| format!("gen: {}", u64::from(generation))),
                gpu.width.map(|width| format!("width: {}", u64::from(width))),
                gpu.window_mib.map(|window| format!("window_mib: {window}")),
            ];
            let _infallible = writeln!(text, "  - {{{}}}", keys.into_iter().flatten().collect::<Vec<_>>().join(", "));
        }
        if let Some(path) = self.farthest {
            text += &format!("# The farthest that two GPUs may lie apart.\nfarthest: {path}\n");
        }
        if let Some(carrier) = self.carrier {
            let word = serde_json::to_value(carrier).ok().and_then(|word| word.as_str().map(str::to_owned));
            text += &format!("# What carries data between GPUs under NCCL.\ncarrier: {}\n", word.unwrap_or_default());
        }
        text
    }

    /// Each GPU of the machine beside that of the file: by address where the file gives one, the others in order.
    fn beside<'a>(&'a self, topology: &'a Topology) -> Vec<(&'a Gpu, &'a AcceptedGpu)> {
        let (named, others): (Vec<_>, Vec<_>) =
            self.gpus.iter().partition(|want| want.slot.is_some_and(|slot| topology.gpu(slot).is_some()));
        let taken: Vec<PciAddress> = named.iter().filter_map(|want| want.slot).collect();
        let left = topology.nvidia_gpus().filter(|gpu| !taken.contains(&gpu.address));
        let by_address = named.iter().filter_map(|want| Some((topology.gpu(want.slot?)?, *want)));
        by_address.chain(left.zip(others)).collect()
    }
}

/// The window to a GPU's memory, as the driver says, else as its regions show.
fn window(gpu: &Gpu) -> Option<Bytes> {
    let told = gpu.nvml.as_ref().and_then(|state| state.bar1_bytes.clone().ok());
    told.or_else(|| gpu.frame_buffer.as_ref().ok().map(|bar| bar.bytes))
}

/// Holds `topology` against a platform. The gravest findings come first.
#[must_use]
pub fn accepted(topology: &Topology, wanted: &Acceptance) -> Vec<Finding> {
    let mut found: Vec<Finding> = Vec::new();
    let mut add = |code: &str, breach: Breach| found.extend(row(code).map(|row| row.finding(breach)));
    let (count, most) = (topology.nvidia_gpus().count(), wanted.gpus.len());
    if count != most {
        let slots = wanted.gpus.iter().filter_map(|gpu| gpu.slot);
        let addresses = gone(topology, slots);
        add(
            "platform-gpu-count",
            Breach { addresses, seen: format!("{count} NVIDIA GPU(s)"), expected: most.to_string() },
        );
    }
    for (gpu, want) in wanted.beside(topology) {
        of_gpu(gpu, want, &mut add);
    }
    for pair in &topology.pairs {
        if let (Ok(path), Some(farthest)) = (&pair.path, wanted.farthest)
            && farthest < *path
        {
            let addresses = vec![pair.a.to_string(), pair.b.to_string()];
            add(
                "platform-path",
                Breach { addresses, seen: format!("they lie {path} apart"), expected: farthest.to_string() },
            );
        }
    }
    for pair in transports(topology) {
        let addresses = vec![pair.a.to_string(), pair.b.to_string()];
        match (pair.carrier, wanted.carrier) {
            (Some(carrier), Some(want)) if carrier != want => add(
                "platform-transport",
                Breach {
                    addresses,
                    seen: format!("NCCL will use {carrier}: {}", pair.why),
                    expected: want.to_string(),
                },
            ),
            (None, Some(want)) => add(
                "platform-unknown",
                Breach {
                    addresses,
                    seen: format!("what NCCL will use is unknown: {}", pair.why),
                    expected: want.to_string(),
                },
            ),
            _ => {}
        }
    }
    found.sort_by_key(|finding| finding.severity);
    found
}

/// True where a product name holds every word of a model. Words that not every source writes do not count.
fn holds_words(model: &str, name: &str) -> bool {
    const COMMON: [&str; 5] = ["nvidia", "corporation", "geforce", "edition", "generation"];
    let model = model.to_lowercase();
    let mut words = model.split([' ', '-']).filter(|word| !COMMON.contains(word));
    words.all(|word| name.split([' ', '-', '[', ']']).any(|part| part == word))
}

fn of_gpu(gpu: &Gpu, want: &AcceptedGpu, add: &mut impl FnMut(&str, Breach)) {
    let mut say = |code: &str, seen: String, expected: String| {
        let breach =
            Breach { addresses: vec![gpu.address.to_string()], seen: format!("{}: {seen}", gpu.name()), expected };
        add(code, breach);
    };
    if let Some(model) = &want.model {
        let name = gpu.name().to_lowercase();
        let known = gpu.id.is_ok() || gpu.nvml.as_ref().is_some_and(|state| state.name.is_ok());
        let same = holds_words(model, &name);
        match (known, same) {
            (false, _) => say("platform-unknown", "its model is unknown".to_owned(), model.clone()),
            (true, false) => say("platform-gpu-model", "another model".to_owned(), model.clone()),
            (true, true) => {}
        }
    }
    let (generation, width) = (want.generation, want.width);
    let words = [generation.map(|most| most.to_string()), width.map(|most| most.to_string())];
    let text = words.into_iter().flatten().collect::<Vec<_>>().join(" ");
    match gpu.narrowest.as_ref().map(|hop| hop.lanes()) {
        Ok(Lanes { generation: found, width: lanes }) => {
            if generation.is_some_and(|most| found < most) || width.is_some_and(|most| lanes < most) {
                say("platform-link", format!("its narrowest hop is {found} {lanes}"), text);
            }
        }
        Err(missing) if !text.is_empty() => {
            say("platform-unknown", format!("the narrowest hop is unknown: {missing}"), text);
        }
        Err(_) => {}
    }
    match (window(gpu), want.window_mib.map(|mebi| Bytes(mebi << 20))) {
        (Some(found), Some(least)) if found < least => {
            say("platform-window", format!("the window to its memory is {found}"), least.to_string());
        }
        (None, Some(least)) => {
            say("platform-unknown", "the window to its memory is unknown".to_owned(), least.to_string());
        }
        _ => {}
    }
}
