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

    /// From the model name, where CPUID was not read; none for a name whose numbers say nothing.
    #[must_use]
    pub fn named(model: &str) -> Option<Self> {
        let words: Vec<&str> = model.split([' ', '-']).collect();
        // the model number: four or five digits, perhaps with letters behind it
        let number = words.iter().find_map(|word| {
            let digits: String = word.chars().take_while(char::is_ascii_digit).collect();
            (4 <= digits.len()).then_some(digits)
        });
        let digit = |at: usize| number.as_ref().and_then(|number| number.chars().nth(at));
        match () {
            () if model.contains("EPYC") => match (digit(0)?, digit(3)?) {
                ('9' | '8', '5') | ('4', '5') => Some(Self::Zen5),
                ('9' | '8', '4') | ('4', '4') => Some(Self::Zen4),
                ('7', '3') => Some(Self::Zen3),
                ('7', '2') => Some(Self::Zen2),
                _ => None,
            },
            () if model.contains("Threadripper") => match digit(0)? {
                '9' => Some(Self::Zen5),
                '7' => Some(Self::Zen4),
                '5' => Some(Self::Zen3),
                '3' => Some(Self::Zen2),
                _ => None,
            },
            () if model.contains("Ryzen") => match digit(0)? {
                '9' => Some(Self::Zen5),
                '7' | '8' => Some(Self::Zen4),
                '5' => Some(Self::Zen3),
                '3' => Some(Self::Zen2),
                _ => None,
            },
            () if model.contains("Xeon") => Self::xeon(model, &words, number.as_deref()),
            () if model.contains("Ultra") => Some(Self::SapphireRapids),
            // Core i5-12400: five digits from the tenth generation on
            () if model.contains("Core") => match number.as_deref() {
                Some(number) if 5 <= number.len() && "12" <= &number[..2] => Some(Self::SapphireRapids),
                Some(_) => Some(Self::Broadwell),
                None => None,
            },
            () => None,
        }
    }

    /// Xeon: `E5-2690`, `w9-3495X`, `w5-2465X`, `Platinum 8480+`, `Silver 4310`, `6980P`.
    fn xeon(model: &str, words: &[&str], number: Option<&str>) -> Option<Self> {
        if words.iter().any(|word| ["E5", "E7"].contains(word)) {
            return Some(Self::Broadwell);
        }
        let number = number?;
        if words.iter().any(|word| ["w3", "w5", "w7", "w9"].contains(word)) {
            // W-2400 and W-3400 are Sapphire Rapids, W-2500 and W-3500 a refresh of it
            return Some(Self::SapphireRapids);
        }
        let scalable = ["Platinum", "Gold", "Silver", "Bronze", "Max"].iter().any(|metal| model.contains(metal));
        match number.chars().nth(1)? {
            '1' | '2' | '3' => Some(Self::Skylake),
            '4' if scalable => Some(Self::SapphireRapids),
            '5' if scalable => Some(Self::EmeraldRapids),
            '5' | '7' | '9' if number.starts_with('6') => Some(Self::EmeraldRapids),
            _ => None,
        }
    }

    /// Memory rate of one processor with every channel filled at the speed that its maker states, for where nobody said
    /// more; and that, in words. The model tells clients and workstations from servers, which are taken where it does not.
    ///
    /// Channels and speeds are those of the makers' product pages (AMD: EPYC 7002 to 9005, Threadripper 3000 to 9000,
    /// Ryzen 3000 to 9000; Intel: ARK), read from memory.
    #[must_use]
    pub fn memory_assumed(self, model: &str) -> (BytesPerSecond, String) {
        let small = model.contains("Ryzen") && !model.contains("Threadripper");
        let client = small || model.contains("Core(TM)");
        let four = (model.contains("Threadripper") && !model.contains("PRO")) || model.contains("-24");
        let eight = model.contains("Threadripper PRO") || model.contains("-34");
        let ice_lake = ["43", "53", "63", "83"].iter().any(|digits| model.contains(&format!(" {digits}")));
        let (channels, kind, mega) = match self {
            Self::Zen2 | Self::Zen3 if client => (2, "DDR4", 3200),
            Self::Zen2 | Self::Zen3 if four => (4, "DDR4", 3200),
            Self::Zen2 | Self::Zen3 => (8, "DDR4", 3200),
            Self::Zen4 if client => (2, "DDR5", 5200),
            Self::Zen4 if four => (4, "DDR5", 5200),
            Self::Zen4 if eight => (8, "DDR5", 5200),
            Self::Zen4 => (12, "DDR5", 4800),
            Self::Zen5 if client => (2, "DDR5", 5600),
            Self::Zen5 if four => (4, "DDR5", 6400),
            Self::Zen5 if eight => (8, "DDR5", 6400),
            Self::Zen5 => (12, "DDR5", 6000),
            Self::Broadwell if client => (2, "DDR4", 2400),
            Self::Broadwell => (4, "DDR4", 2400),
            Self::Skylake if ice_lake => (8, "DDR4", 3200),
            Self::Skylake => (6, "DDR4", 2666),
            Self::SapphireRapids if client => (2, "DDR5", 5600),
            Self::SapphireRapids if four => (4, "DDR5", 4800),
            Self::SapphireRapids => (8, "DDR5", 4800),
            Self::EmeraldRapids => (8, "DDR5", 5600),
        };
        let rate = BytesPerSecond(f64::from(channels * mega) * 8e6);
        (rate, format!("{channels} channels of {kind}-{mega}, {rate}"))
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
            ("AMD Ryzen 9 5950X 16-Core Processor", CpuGeneration::Zen3),
            ("AMD Ryzen 9 7950X 16-Core Processor", CpuGeneration::Zen4),
            ("AMD Ryzen 7 9700X 8-Core Processor", CpuGeneration::Zen5),
            ("AMD Ryzen Threadripper 3970X 32-Core Processor", CpuGeneration::Zen2),
            ("AMD Ryzen Threadripper PRO 9995WX 96-Cores", CpuGeneration::Zen5),
            ("Intel(R) Xeon(R) w7-2495X", CpuGeneration::SapphireRapids),
            ("Intel(R) Xeon(R) w9-3495X", CpuGeneration::SapphireRapids),
            ("Intel(R) Xeon(R) Gold 6548Y+", CpuGeneration::EmeraldRapids),
            ("Intel(R) Xeon(R) 6980P", CpuGeneration::EmeraldRapids),
            ("Intel(R) Xeon(R) CPU E5-2690 v4 @ 2.60GHz", CpuGeneration::Broadwell),
            ("13th Gen Intel(R) Core(TM) i9-13900K", CpuGeneration::SapphireRapids),
            ("Intel(R) Core(TM) Ultra 9 285K", CpuGeneration::SapphireRapids),
            ("Intel(R) Core(TM) i7-6700K CPU @ 4.00GHz", CpuGeneration::Broadwell),
        ];
        for (name, generation) in rows {
            assert_eq!(CpuGeneration::named(name), Some(generation), "{name}");
        }
        for name in ["a board", "AMD EPYC", "Intel(R) Xeon(R) Processor"] {
            assert_eq!(CpuGeneration::named(name), None, "{name}");
        }
    }

    #[test]
    fn memory_is_assumed_by_generation_and_by_kind_of_processor() {
        let rows = [
            ("AMD EPYC 9575F 64-Core Processor", 576.0),
            ("AMD EPYC 9374F 32-Core Processor", 460.8),
            ("AMD Ryzen Threadripper PRO 7975WX 32-Cores", 332.8),
            ("AMD Ryzen Threadripper 3970X 32-Core Processor", 102.4),
            ("AMD Ryzen 9 9950X 16-Core Processor", 89.6),
            ("Intel(R) Xeon(R) w7-2495X", 153.6),
            ("Intel(R) Xeon(R) Platinum 8480+", 307.2),
            ("Intel(R) Xeon(R) Silver 4310 CPU @ 2.10GHz", 204.8),
        ];
        for (name, giga) in rows {
            let (rate, words) = CpuGeneration::named(name).unwrap().memory_assumed(name);
            assert!((rate.0 / 1e9 - giga).abs() < 1e-6 && words.contains("channels"), "{name}: {words}");
        }
    }
}
