//! The report of PyTorch's `collect_env`: driver, versions of CUDA's libraries, and GPUs by index.

use crate::topology::{PciAddress, Reading, Topology, Version, WrongPlace};

use super::{GPUS_MAX, Kind, Source, topo_m, untold};

const KIND: Kind = Kind::EnvReport;
const HELP: &str = "give the whole text of `python -m torch.utils.collect_env`: a line `PyTorch version: …`, then lines \
                    `Nvidia driver version: …` and `GPU 0: …`";

/// True for a text that collect_env wrote.
pub(super) fn is_one(text: &str) -> bool {
    text.lines().any(|line| line.starts_with("PyTorch version:"))
}

/// Reads driver, libraries and GPUs.
pub(super) fn read(source: Source<'_>) -> Result<Topology, Box<WrongPlace>> {
    let mut names: Vec<(u8, &str)> = Vec::new();
    for (at, line) in source.lines() {
        let Some((index, name)) = gpu(line) else { continue };
        if GPUS_MAX <= usize::from(index) || usize::from(index) != names.len() {
            // The same list may stand in a text twice; a list with a hole is another's.
            match names.contains(&(index, name)) {
                true => continue,
                false => return Err(source.wrong(at, "GPUs are not listed as GPU 0, GPU 1, … in order", HELP)),
            }
        }
        names.push((index, name));
    }
    let addresses = names.iter().map(|(index, _)| PciAddress::of_index(*index)).collect();
    let mut topology = topo_m::gpus(addresses, KIND);
    for (gpu, (_, name)) in topology.gpus.iter_mut().zip(&names) {
        if let Some(state) = &mut gpu.nvml {
            state.name = Ok((*name).to_owned());
        }
    }
    let value = |key: &str| -> Reading<String> {
        let found = source.text.lines().find_map(|line| line.trim().strip_prefix(key)).map(str::trim);
        found.filter(|text| !text.is_empty() && *text != "N/A").map(str::to_owned).ok_or_else(|| untold(KIND))
    };
    topology.nvidia.version = value("Nvidia driver version:");
    topology.system.os = value("OS:");
    topology.software.nccl = package(source.text, "nvidia-nccl-cu");
    topology.software.cudnn = package(source.text, "nvidia-cudnn-cu");
    topology.software.cublas = package(source.text, "nvidia-cublas-cu");
    Ok(topology)
}

/// `GPU 0: NVIDIA GeForce RTX 5090`, also with an identifier behind it.
fn gpu(line: &str) -> Option<(u8, &str)> {
    let (index, name) = line.trim().strip_prefix("GPU ")?.split_once(": ")?;
    let name = name.split(" (UUID").next().unwrap_or(name).trim();
    Some((index.parse().ok()?, name)).filter(|_| index.len() <= 2 && name.starts_with("NVIDIA"))
}

/// `[pip3] nvidia-nccl-cu12==2.26.2` or `[conda] nvidia-nccl-cu12  2.26.2  pypi_0`.
fn package(text: &str, name: &str) -> Reading<Version> {
    let version = text.lines().find_map(|line| {
        let (_, rest) = line.split_once(name)?;
        let rest = rest.trim_start_matches(|letter: char| letter.is_ascii_digit());
        rest.trim_start_matches(['=', ' ']).split_whitespace().next()?.parse().ok()
    });
    version.ok_or_else(|| untold(KIND))
}
