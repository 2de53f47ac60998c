//! Labelled lines that say which machine this is, for a person and for an acceptance sheet.

use std::fmt::Display;

use crate::units::Watts;

use super::{Gpu, Missing, Reading, Topology};

/// The fact, or `unknown` with the reason.
fn say<T: Display>(reading: &Reading<T>) -> String {
    match reading {
        Ok(fact) => fact.to_string(),
        Err(missing) => format!("unknown ({missing})"),
    }
}

/// Several facts in a row, those that are known; `unknown` with the reason of the first where none is.
fn join(readings: &[&Reading<String>]) -> String {
    let known: Vec<&str> = readings.iter().filter_map(|reading| reading.as_deref().ok()).collect();
    match (known.is_empty(), readings.first()) {
        (true, Some(first)) => say(first),
        _ => known.join(" "),
    }
}

/// A kernel command line without the parameters whose values were taken out.
fn told(command_line: &str) -> String {
    let (redacted, told): (Vec<&str>, Vec<&str>) =
        command_line.split_whitespace().partition(|parameter| parameter.ends_with("=redacted"));
    match redacted.len() {
        0 => told.join(" "),
        count => format!("{} (and {count} redacted)", told.join(" ")),
    }
}

impl Topology {
    /// Label and text of each line of the sheet, in reading order. A fact that is missing says why.
    #[must_use]
    pub fn identity(&self) -> Vec<(String, String)> {
        let (machine, system, container) = (&self.machine, &self.system, &self.container);
        let mut lines = vec![
            ("Machine", join(&[&machine.vendor, &machine.product])),
            ("Board", join(&[&machine.board_vendor, &machine.board])),
            ("BIOS", join(&[&machine.bios_version, &machine.bios_date])),
            ("CPU", self.cpu_line()),
            ("Memory", self.memory_line()),
            ("OS", say(&system.os)),
            ("Kernel", say(&system.kernel)),
            ("Command line", say(&system.command_line.as_deref().map(told).map_err(Clone::clone))),
            ("Virtual machine", say(&system.virtual_machine.as_ref().map(yes).map_err(Clone::clone))),
            ("Container", say(&container.kind)),
            ("/dev/shm", say(&container.shm_bytes)),
            ("Locked memory", say(&container.memlock_bytes)),
            ("CPU quota", say(&container.cpu_quota)),
            ("IOMMU", say(&self.iommu.mode)),
        ];
        if self.has_nvidia_gpu() {
            lines.push(("NVIDIA driver", say(&self.nvidia.version)));
            lines.push(("CUDA of the driver", say(&self.nvidia.cuda)));
            let software = &self.software;
            let versions = [("NCCL", &software.nccl), ("cuDNN", &software.cudnn), ("cuBLAS", &software.cublas)];
            // What an older file was never asked takes no line.
            let asked = versions.into_iter().filter(|(_, version)| **version != Err(Missing::not_asked()));
            lines.extend(asked.map(|(label, version)| (label, say(version))));
        }
        let label = |(label, text): (&str, String)| (label.to_owned(), text);
        let gpus = self.gpus.iter().map(|gpu| (format!("GPU {}", gpu.address), gpu_line(gpu)));
        lines.into_iter().map(label).chain(gpus).collect()
    }

    fn cpu_line(&self) -> String {
        let sockets = match &self.cpu.sockets {
            Ok(sockets) => {
                let cores: usize = sockets.iter().map(|socket| socket.cores.len()).sum();
                format!("{}, {}", count(sockets.len(), "socket"), count(cores, "core"))
            }
            Err(_) => "cores unknown".to_owned(),
        };
        let threads = self
            .cpu
            .online
            .as_ref()
            .map_or_else(|_| String::new(), |cpus| format!(", {}", count(cpus.len(), "thread")));
        format!("{}, {sockets}{threads}", say(&self.cpu.model))
    }

    fn memory_line(&self) -> String {
        match self.nodes().len() {
            0 => say(&self.system.memory_bytes),
            nodes => format!("{}, {}", say(&self.system.memory_bytes), count(nodes, "NUMA node")),
        }
    }
}

fn yes(is: &bool) -> &'static str {
    if *is { "yes" } else { "no" }
}

/// `1 socket`, `2 sockets`.
fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn gpu_line(gpu: &Gpu) -> String {
    let mut line = gpu.name().into_owned();
    if let Some(nvml) = &gpu.nvml {
        if let Ok(memory) = &nvml.memory_bytes {
            line += &format!(", {memory}");
        }
        if let Ok(limit) = nvml.power_limit_mw {
            line += &format!(", limit {}", Watts(f64::from(limit) / 1e3));
        }
        if let Ok(vbios) = &nvml.vbios {
            line += &format!(", VBIOS {vbios}");
        }
    }
    match &gpu.narrowest {
        Ok(hop) => line += &format!(", narrowest hop {}", hop.lanes()),
        Err(missing) => line += &format!(", link unknown ({missing})"),
    }
    match gpu.numa_node {
        Ok(node) => line + &format!(", NUMA node {node}"),
        Err(_) => line + ", NUMA node unknown",
    }
}
