//! The pages that document the rules, made from the table and from the recorded machines so that they cannot drift.
//!
//! `RIGSCALE_BLESS=1 cargo test --test rules` rewrites them; the diff is the review.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use rigscale::probe::{Captured, EXPECTATIONS, RULES, differences, judge, probe};
use rigscale::record::Severity;
use rigscale::topology::from_yaml;

/// The codes that each recorded machine shows.
fn shown() -> BTreeMap<String, BTreeSet<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machines");
    let folders = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let codes = |folder: &Path| {
        let text = fs::read_to_string(folder.join("machine.jsonl")).unwrap();
        let topology = probe(&Captured::parse(&text, "machine.jsonl").unwrap()).unwrap();
        judge(&topology).into_iter().map(|finding| finding.code).collect()
    };
    let name = |folder: &Path| folder.file_name().unwrap().to_string_lossy().into_owned();
    folders.map(|folder| (name(&folder), codes(&folder))).collect()
}

fn check_page(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    if std::env::var_os("RIGSCALE_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == text, "docs/{name} differs; RIGSCALE_BLESS=1 rewrites it");
}

#[test]
fn the_page_of_rules_is_that_of_the_table() {
    let shown = shown();
    let mut page = format!(
        "# The rules\n\nWhat `rigscale probe` judges: {} rules. This page is made from the table in \
         `src/probe/rules/table.rs` by `tests/rules.rs`; it is not written by hand.\n\nA **fault** is broken, and \
         results on it do not count. A **warning** costs performance or trust. A **note** is worth knowing. A fact that \
         is unknown is never taken for \"off\" or \"fine\", and no link is judged by its speed at rest.\n",
        RULES.len()
    );
    for (severity, title) in [(Severity::Fault, "Faults"), (Severity::Warning, "Warnings"), (Severity::Note, "Notes")] {
        write!(page, "\n## {title}\n").unwrap();
        for rule in RULES.iter().filter(|rule| rule.severity == severity) {
            let machines: Vec<String> = shown
                .iter()
                .filter(|(_, codes)| codes.contains(rule.code))
                .map(|(name, _)| format!("[{name}](../tests/machines/{name}/findings.json)"))
                .collect();
            write!(
                page,
                "\n### `{}`\n\n{}\n\n- Remedy: {}\n- Where the expectation comes from: {}\n- Recorded machines that \
                 show it: {}\n",
                rule.code,
                rule.question,
                rule.remedy,
                rule.source,
                machines.join(", ")
            )
            .unwrap();
        }
    }
    page += "\n## Against a platform\n\nWhat `rigscale probe --expect topology.yaml` compares with a unit that is known to \
             be good.\n\n| code | severity | question | remedy |\n| --- | --- | --- | --- |\n";
    for row in EXPECTATIONS {
        writeln!(page, "| `{}` | {} | {} | {} |", row.code, row.severity, row.question, row.remedy).unwrap();
    }
    check_page("rules.md", &page);
}

/// A platform is a machine that is in order; each row is a machine that differs, with the codes that it must show.
#[test]
fn a_machine_is_held_against_its_platform() {
    let topology = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machines").join(name).join("topology.yaml");
        from_yaml(&fs::read_to_string(path).unwrap(), name).unwrap()
    };
    let rows: &[(&str, &str, &[&str])] = &[
        ("idle-gen1", "idle-gen1", &[]),
        ("odd-links", "idle-gen1", &[]),
        ("threadripper-4gpu", "threadripper-4gpu", &[]),
        ("narrow-link", "threadripper-4gpu", &["platform-gpu-model", "platform-link"]),
        ("riser-gen3", "acs-redirect", &["platform-gpu-model", "platform-link"]),
        ("container-one-gpu", "idle-gen1", &["platform-unknown"]),
        ("driver-mismatch", "idle-gen1", &["platform-unknown"]),
        ("lost-gpu", "threadripper-4gpu", &["platform-unknown"]),
        ("set-by-hand", "riser-gen3", &["platform-peer-access"]),
        ("idle-gen1", "switch-4gpu", &["platform-gpu-count", "platform-gpu-model", "platform-version"]),
        ("slow-under-load", "switch-4gpu", &["platform-gpu-model", "platform-path", "platform-version"]),
        ("bar-256m", "nvlink-bridge", &["platform-gpu-model", "platform-peer-access", "platform-window"]),
        ("older-capture", "threadripper-4gpu", &["platform-unknown", "platform-window"]),
    ];
    let mut seen = BTreeSet::new();
    for (name, platform, expected) in rows {
        let findings = differences(&topology(name), &topology(platform));
        let codes: BTreeSet<String> = findings.iter().map(|finding| finding.code.clone()).collect();
        assert_eq!(codes, expected.iter().map(|code| (*code).to_owned()).collect(), "{name} against {platform}");
        assert!(findings.is_sorted_by_key(|finding| finding.severity));
        seen.extend(codes);
    }
    assert_eq!(seen, EXPECTATIONS.iter().map(|row| row.code.to_owned()).collect());
}

/// A report of others, what it is about, the rule that catches it and the recorded machine that shows it. No rule means
/// that the machine is in order and must stay without a finding.
const THREADS: &[(&str, &str, &str, &str)] = &[
    ("NVIDIA/nccl 2079", "all-reduce hangs, ports redirect", "acs-redirect", "acs-redirect"),
    ("NVIDIA/nccl 606, 629, 631", "hang or wrong data, ACS and VT-d", "acs-redirect", "acs-redirect"),
    ("aikitoria/open-gpu-kernel-modules 6, 12, 13", "peer bandwidth small, ACS", "acs-redirect", "acs-redirect"),
    ("NVIDIA/nccl 1999, vllm 33041", "hang in the first collective", "iommu-translating", "desktop-2gpu-x8"),
    ("NVIDIA/nccl 257", "hang with the IOMMU on", "iommu-translating", "desktop-2gpu-x8"),
    (
        "tinygrad/open-gpu-kernel-modules 17",
        "more than two GPUs go through the host",
        "nccl-host-staged",
        "slow-under-load",
    ),
    ("NVIDIA/nccl 1285", "slow with several NUMA nodes per socket", "gpus-across-numa-nodes", "split-socket"),
    ("NVIDIA/nccl-tests 74", "NPS below 4 and shared memory", "gpus-across-numa-nodes", "split-socket"),
    ("NVIDIA/nccl 814", "numaid is -1", "numa-unknown", "numa-unknown"),
    ("NVIDIA/nccl-tests 307, 269, 270", "slow across two sockets", "gpus-across-sockets", "server-8gpu"),
    ("NVIDIA/nccl 1530", "poor ring on 4090s, through the host", "p2p-refused-product", "numa-unknown"),
    ("NVIDIA/nvbandwidth 45", "peer test waived, without a reason", "p2p-refused-product", "threadripper-4gpu"),
    ("NVIDIA/nccl 1127, 175", "does this card have peer access?", "p2p-refused-product", "desktop-2gpu-x8"),
    ("aikitoria/open-gpu-kernel-modules 25", "BAR1 of 256 MiB", "bar-below-memory", "bar-256m"),
    ("Syllo/nvtop 6, janhq/jan 183", "Gen1 at idle taken for a fault", "", "idle-gen1"),
    ("open-mpi/hwloc 385, 653", "the idle speed shown as the link's", "", "idle-gen1"),
    (
        "local-inference-lab/rtx6kpro pull request 88",
        "hours of training at Gen2",
        "pcie-slow-under-load",
        "slow-under-load",
    ),
    (
        "NVIDIA/open-gpu-kernel-modules 1010",
        "stuck at a low speed, or idle?",
        "pcie-slow-under-load",
        "slow-under-load",
    ),
    ("NVIDIA/NVSentinel 890", "silent throttling and lost lanes", "gpu-hot", "hot-and-hungry"),
    ("NVIDIA/nccl 290, 342, 525, 1518; torchtitan 853", "/dev/shm of 64 MiB", "shm-small", "container-64m"),
    ("NVIDIA/nccl 473", "shared memory in a container", "shm-small", "container-64m"),
    ("pytorch 115305, accelerate 2535", "ranks far from their GPU", "cpus-far-from-gpus", "split-socket"),
    ("local-inference-lab/rtx6kpro, ASPM", "links that vanish at idle", "pcie-aspm", "odd-links"),
    ("NVIDIA/nccl 281, 740, 786, 831, 1261", "wrong results with LL128 forced", "nccl-ll128-forced", "set-by-hand"),
    (
        "voipmonitor/rtx6kpro, collapse report",
        "GPUs behind one uplink (what it costs needs a measurement)",
        "pcie-shared-uplink",
        "switch-4gpu",
    ),
    ("voipmonitor/rtx6kpro, WRX90E slot 6", "a slot of x8", "pcie-slot-below-card", "desktop-2gpu-x8"),
    ("4x4090 cloud report, 2026-01", "no peer access in a guest", "p2p-refused", "vm-no-p2p"),
    ("NVIDIA/DCGM 198", "passes with NVLinks down", "nvlink-down", "nvlink-bridge"),
];

#[test]
fn the_page_of_threads_says_only_what_a_machine_shows() {
    let shown = shown();
    let mut page = "# Threads that a rule catches\n\nReports of others, the rule that catches each, and the recorded \
                    machine that shows it: `tests/rules.rs` holds every row. Threads that need a measurement (a grant of \
                    peer access that delivers nothing, wrong data, a hang) or the version of NCCL are not here: no rule \
                    catches them yet.\n\n| thread | what was seen | rule | machine |\n| --- | --- | --- | --- |\n"
        .to_owned();
    for (thread, seen, rule, machine) in THREADS {
        let codes = &shown[*machine];
        let link = match rule.is_empty() {
            true => {
                assert!(codes.is_empty(), "{thread}: {machine} has findings");
                "none: in order".to_owned()
            }
            false => {
                assert!(codes.contains(*rule), "{thread}: {machine} does not show {rule}");
                format!("[`{rule}`](rules.md#{rule})")
            }
        };
        writeln!(page, "| {thread} | {seen} | {link} | {machine} |").unwrap();
    }
    check_page("threads.md", &page);
}
