//! Generations of processors: what decides how GPUs reach each other through them.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::topology::CpuSignature;
use crate::units::BytesPerSecond;

/// A generation of processors. Constants of the model belong to one, never to a board.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CpuGeneration {
    /// AMD Zen 2: EPYC 7002, Threadripper 3000.
    Zen2,
    /// AMD Zen 3: EPYC 7003, Threadripper PRO 5000.
    Zen3,
    /// AMD Zen 4: EPYC 9004, Threadripper 7000, Ryzen 7000.
    Zen4,
    /// AMD Zen 5: EPYC 9005, Threadripper 9000, Ryzen 9000.
    Zen5,
    /// Intel up to Broadwell.
    Broadwell,
    /// Intel Skylake to Ice Lake servers.
    Skylake,
    /// Intel Sapphire Rapids, and client processors from Alder Lake on.
    SapphireRapids,
    /// Intel Emerald Rapids and later.
    EmeraldRapids,
}

impl CpuGeneration {
    /// From CPUID numbers as Linux counts them; Intel as NCCL classes them (`topo.cc`, `ncclTopoGetInterCpuBw`).
    #[must_use]
    pub fn of(signature: &CpuSignature) -> Option<Self> {
        match (signature.vendor.as_deref()?, signature.family?, signature.model.unwrap_or(0)) {
            ("AuthenticAMD", 23, _) => Some(Self::Zen2),
            ("AuthenticAMD", 25, 0x10..=0x1f | 0x60..=0xaf) => Some(Self::Zen4),
            ("AuthenticAMD", 25, _) => Some(Self::Zen3),
            ("AuthenticAMD", 26.., _) => Some(Self::Zen5),
            ("GenuineIntel", 6, 0xcf..) => Some(Self::EmeraldRapids),
            ("GenuineIntel", 6, 0x8f..) => Some(Self::SapphireRapids),
            ("GenuineIntel", 6, 0x55..) => Some(Self::Skylake),
            ("GenuineIntel", 6, _) => Some(Self::Broadwell),
            _ => None,
        }
    }

    /// From the model name, where CPUID was not read.
    #[must_use]
    pub fn named(model: &str) -> Option<Self> {
        let has = |words: &[&str]| words.iter().any(|word| model.contains(word));
        let epyc = |digit: char| {
            let number = model.split_whitespace().find(|word| word.starts_with(['7', '9']) && 4 <= word.len());
            model.contains("EPYC") && number.is_some_and(|word| word.chars().nth(3) == Some(digit))
        };
        Some(match () {
            () if model.contains("EPYC 9") && epyc('5') => Self::Zen5,
            () if model.contains("EPYC 9") => Self::Zen4,
            () if model.contains("EPYC 7") && epyc('3') => Self::Zen3,
            () if model.contains("EPYC 7") => Self::Zen2,
            () if model.contains("Threadripper") && has(&[" 9"]) => Self::Zen5,
            () if model.contains("Threadripper") && has(&[" 7"]) => Self::Zen4,
            () if model.contains("Threadripper") && has(&[" 5"]) => Self::Zen3,
            () if model.contains("Threadripper") => Self::Zen2,
            () if model.contains("Ryzen") && has(&[" 9"]) && has(&[" 99", " 98", " 97", " 96"]) => Self::Zen5,
            () if model.contains("Ryzen") => Self::Zen4,
            () if model.contains("Xeon") && has(&["w9-34", "w7-34", "w5-34", " 84", " 64", " 54", " 44"]) => {
                Self::SapphireRapids
            }
            () if model.contains("Xeon") && has(&[" 85", " 65", " 69", " 67"]) => Self::EmeraldRapids,
            () if model.contains("Xeon") && has(&["E5-", "E7-"]) => Self::Broadwell,
            () if model.contains("Xeon") => Self::Skylake,
            () if has(&["Core", "Intel"]) => Self::SapphireRapids,
            () => return None,
        })
    }

    /// True for AMD.
    #[must_use]
    pub fn is_amd(self) -> bool {
        matches!(self, Self::Zen2 | Self::Zen3 | Self::Zen4 | Self::Zen5)
    }

    /// What NCCL 2.30.7 takes for the link between two sockets or NUMA nodes (`src/graph/topo.h`, l. 17–39).
    #[must_use]
    pub fn nccl_inter_socket(self) -> BytesPerSecond {
        BytesPerSecond(match self {
            Self::Zen2 | Self::Zen3 | Self::Zen4 | Self::Zen5 => 16e9,
            Self::Broadwell => 6e9,
            Self::Skylake => 10e9,
            Self::SapphireRapids => 22e9,
            Self::EmeraldRapids => 40e9,
        })
    }
}

impl fmt::Display for CpuGeneration {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Zen2 => "AMD Zen 2",
            Self::Zen3 => "AMD Zen 3",
            Self::Zen4 => "AMD Zen 4",
            Self::Zen5 => "AMD Zen 5",
            Self::Broadwell => "Intel Broadwell",
            Self::Skylake => "Intel Skylake to Ice Lake",
            Self::SapphireRapids => "Intel Sapphire Rapids class",
            Self::EmeraldRapids => "Intel Emerald Rapids class",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_follow_from_numbers_and_from_names() {
        let amd = |family, model| {
            let vendor = Some("AuthenticAMD".to_owned());
            CpuGeneration::of(&CpuSignature { arch: "x86_64".into(), vendor, family: Some(family), model: Some(model) })
        };
        assert_eq!(amd(23, 0x31), Some(CpuGeneration::Zen2));
        assert_eq!(amd(25, 0x01), Some(CpuGeneration::Zen3));
        assert_eq!(amd(25, 0x18), Some(CpuGeneration::Zen4));
        assert_eq!(amd(26, 0x02), Some(CpuGeneration::Zen5));
        let rows = [
            ("AMD EPYC 7662 64-Core Processor", CpuGeneration::Zen2),
            ("AMD EPYC 7763 64-Core Processor", CpuGeneration::Zen3),
            ("AMD EPYC 9575F 64-Core Processor", CpuGeneration::Zen5),
            ("AMD EPYC 9374F 32-Core Processor", CpuGeneration::Zen4),
            ("AMD Ryzen Threadripper PRO 7975WX 32-Cores", CpuGeneration::Zen4),
            ("AMD Ryzen Threadripper PRO 5995WX 64-Cores", CpuGeneration::Zen3),
            ("Intel(R) Xeon(R) Platinum 8480+", CpuGeneration::SapphireRapids),
            ("Intel(R) Xeon(R) Silver 4310 CPU @ 2.10GHz", CpuGeneration::Skylake),
        ];
        for (name, generation) in rows {
            assert_eq!(CpuGeneration::named(name), Some(generation), "{name}");
        }
        assert_eq!(CpuGeneration::named("a board"), None);
    }
}
