//! The platforms of `topologies/`, inside the binary.

use super::PredictError;
use super::board::Board;
use super::platform::parse_platform;

/// Name and text of each platform.
macro_rules! platforms {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../topologies/", $name, ".yaml")))),*]
    };
}

const PLATFORMS: &[(&str, &str)] = platforms![
    "am5-chipset",
    "am5-x8x8",
    "asrock-genoad24qm32",
    "asrock-genoad8x-2t",
    "asrock-romed8-2t",
    "asrock-trx40-creator",
    "asrock-wrx90-ws-evo",
    "asus-esc8000a-e13p",
    "asus-trx50-sage",
    "asus-w790e-sage-se",
    "asus-wrx80e-sage-se",
    "asus-wrx90e-sage-se",
    "cloud-vm-2gpu",
    "cloud-vm-4gpu",
    "dell-precision-7960",
    "dual-xeon-8x4090-switches",
    "genoa2d24g-2l",
    "gigabyte-g493-sb1",
    "gigabyte-mz22-g20",
    "gigabyte-mz52-g40",
    "hp-z8-fury-g5",
    "lenovo-p8",
    "supermicro-4029gp-trt",
    "supermicro-4029gp-trt3",
    "supermicro-as-4124gs",
    "supermicro-as-4124gs-bridged",
    "supermicro-as-4125gs",
    "supermicro-x13deg-oa",
    "tinybox-green",
    "turin2d24g-2l",
    "wrx90-two-switches",
    "xeon-8480-direct",
    "xeon-gold-6430",
    "xeon-silver-4310",
    "z790-x8x8",
    "z890-x8x8",
];

/// The names of all platforms, ascending.
pub fn platform_names() -> impl Iterator<Item = &'static str> {
    PLATFORMS.iter().map(|(name, _)| *name)
}

/// The platform of that name.
///
/// # Errors
/// No platform has that name.
pub fn platform(name: &str) -> Result<Board, PredictError> {
    let row = PLATFORMS.iter().find(|(known, _)| *known == name);
    let (_, text) = row.ok_or_else(|| PredictError::UnknownPlatform { asked: name.to_owned() })?;
    parse_platform(text, &format!("topologies/{name}.yaml"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::predict::{Calibration, Exchange, ring};

    #[test]
    fn every_file_of_the_folder_is_a_platform_and_has_a_ring() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/topologies");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let files: BTreeSet<String> = files.filter_map(|name| name.strip_suffix(".yaml").map(str::to_owned)).collect();
        let known: BTreeSet<String> = platform_names().map(str::to_owned).chain(["gpus".to_owned()]).collect();
        assert_eq!(files, known);
        assert!(20 <= PLATFORMS.len());
        for name in platform_names() {
            let board = platform(name).unwrap();
            assert_eq!(board.name, name);
            for count in 1..=board.seats.len() {
                let board = board.with_gpus(count).unwrap();
                let ring = ring(&board, &Exchange::default(), &Calibration::default()).unwrap();
                assert!(0.0 < ring.bus.0 && 0.0 <= ring.latency.0, "{name} {count}");
                assert!(ring.bus.0 < 300e9 || count == 1, "{name} {count}: {}", ring.bus);
            }
        }
    }

    const GOOD: &str = "schema: 1\nname: a\ntitle: a\ncpu: zen3\nmemory: 200 GB/s\nnodes:\n  - {name: s, kind: socket}\n  \
                        - {name: w, kind: switch}\n  - {name: p, kind: slot}\nlinks:\n  - {from: s, to: w, gen: 4, width: \
                        16, source: x, verified: manual}\n  - {from: w, to: p, gen: 4, width: 16, source: x, verified: \
                        manual}\ngpus:\n  - {slot: p, card: rtx-4090}\n";

    #[test]
    fn a_wrong_platform_is_answered_with_line_and_what_would_be_right() {
        assert!(parse_platform(GOOD, "a.yaml").is_ok());
        // what is replaced, by what, the line of the answer, and a word of it
        let rows = [
            ("{from: s, to: w", "{from: p, to: w", 11, "ring"),
            ("{from: s, to: w, gen: 4", "{from: w, to: p, gen: 4", 12, "two parents"),
            (
                "{from: s, to: w, gen: 4, width: 16, source: x, verified: manual}",
                "{from: s, to: s, rate: 1 GB/s, source: x, verified: manual}",
                11,
                "socket",
            ),
            ("card: rtx-4090", "card: rtx-4091", 14, "rtx-4090"),
            ("200 GB/s", "200", 5, "unit"),
            ("200 GB/s", "0 GB/s", 5, "above 0"),
            ("200 GB/s", "-5 GB/s", 5, "above 0"),
            (
                "width: 16, source: x, verified: manual}\ngpus",
                "width: 3, source: x, verified: manual}\ngpus",
                12,
                "no link width",
            ),
            ("slot: p", "slot: q", 14, "not among"),
            ("slot: p", "slot: w", 14, "no slot"),
            ("  - {from: s, to: w, gen: 4, width: 16, source: x, verified: manual}\n", "", 13, "no path"),
            (
                "gen: 4, width: 16, source: x, verified: manual}\n  - {from: w",
                "source: x, verified: manual}\n  - {from: w",
                11,
                "48 GB/s",
            ),
            ("source: x, verified: manual}\n  - {from: w", "source: '', verified: manual}\n  - {from: w", 11, "source"),
            ("cpu: zen3", "cpu: zen9", 4, "zen5"),
            ("gpus:\n  - {slot: p, card: rtx-4090}\n", "gpus: []\n", 13, "no slot holds"),
            (
                "card: rtx-4090}\n",
                "card: rtx-3090}\nnvlinks:\n  - {slots: [p, p], source: x, verified: manual}\n",
                16,
                "itself",
            ),
        ];
        for (old, new, line, word) in rows {
            assert!(GOOD.contains(old), "{old}");
            let Err(PredictError::Platform(wrong)) = parse_platform(&GOOD.replacen(old, new, 1), "a.yaml") else {
                panic!("{new} was taken");
            };
            assert!(wrong.line == line && wrong.problem.contains(word), "{new}: {wrong}");
        }
    }

    #[test]
    fn a_bridge_between_cards_that_take_none_is_refused_in_a_file_and_dropped_in_a_what_if() {
        let text = PLATFORMS.iter().find(|(name, _)| *name == "supermicro-as-4124gs-bridged").unwrap().1;
        let error = parse_platform(&text.replace("a100-pcie-40gb", "rtx-4090"), "a.yaml").unwrap_err().to_string();
        assert!(error.contains("rtx-4090") && error.contains("no NVLink bridge"), "{error}");
        let mut board = platform("supermicro-as-4124gs-bridged").unwrap();
        assert_eq!(board.fill(crate::predict::card("rtx-4090").unwrap()), 4);
        let ring = ring(&board, &Exchange::default(), &Calibration::default()).unwrap();
        assert!(!ring.has(crate::predict::Transport::Nvlink) && ring.bus.0 < 30e9, "{ring:?}");
    }
}
