//! The pages that document the rules, made from the table and from the recorded machines so that they cannot drift.
//!
//! `RIGSCALE_BLESS=1 cargo test --test rules` rewrites them; the diff is the review.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use rigscale::predict::{Calibration, Exchange, from_topology, ring};
use rigscale::probe::{
    Acceptance, Captured, EXPECTATIONS, RULES, accepted, differences, judge, parse_acceptance, probe,
};
use rigscale::record::{Finding, Severity};
use rigscale::topology::{Topology, from_yaml};

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

/// A recorded machine, as its topology.yaml tells it.
fn recorded(name: &str) -> Topology {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machines").join(name).join("topology.yaml");
    from_yaml(&fs::read_to_string(path).unwrap(), name).unwrap()
}

/// A recorded machine, the recorded machine whose platform it is held against, and the codes that it must show.
type PlatformRow<'a> = (&'a str, &'a str, &'a [&'a str]);

/// Checks the codes of `findings` and gives them.
fn shows((name, platform, expected): PlatformRow<'_>, findings: Vec<Finding>) -> BTreeSet<String> {
    let codes: BTreeSet<String> = findings.into_iter().map(|finding| finding.code).collect();
    assert_eq!(codes, expected.iter().map(|code| (*code).to_owned()).collect(), "{name} against {platform}");
    codes
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
    page += "\n## Against a platform\n\nWhat `rigscale probe --expect` compares with a unit that is known to be good: its \
             topology.yaml, the platform.yaml that `rigscale probe -o DIR` writes of it, or a description like those in \
             `topologies/`.\n\n| code | severity | question | remedy |\n| --- | --- | --- | --- |\n";
    for row in EXPECTATIONS {
        writeln!(page, "| `{}` | {} | {} | {} |", row.code, row.severity, row.question, row.remedy).unwrap();
    }
    check_page("rules.md", &page);
}

/// A platform is a machine that is in order; each row is a machine that differs, with the codes that it must show.
#[test]
fn a_machine_is_held_against_its_platform() {
    let rows: &[PlatformRow<'_>] = &[
        ("idle-gen1", "idle-gen1", &[]),
        ("odd-links", "idle-gen1", &[]),
        ("threadripper-4gpu", "threadripper-4gpu", &[]),
        ("narrow-link", "threadripper-4gpu", &["platform-gpu-model", "platform-link"]),
        ("riser-gen3", "acs-redirect", &["platform-gpu-model", "platform-link"]),
        ("container-one-gpu", "idle-gen1", &["platform-unknown"]),
        ("driver-mismatch", "idle-gen1", &["platform-unknown"]),
        ("lost-gpu", "threadripper-4gpu", &["platform-unknown"]),
        ("set-by-hand", "riser-gen3", &["platform-peer-access", "platform-transport"]),
        ("settings-left", "worn-memory", &["platform-transport"]),
        (
            "idle-gen1",
            "switch-4gpu",
            &["platform-gpu-count", "platform-gpu-model", "platform-path", "platform-version"],
        ),
        (
            "slow-under-load",
            "switch-4gpu",
            &["platform-gpu-model", "platform-path", "platform-transport", "platform-version"],
        ),
        (
            "bar-256m",
            "nvlink-bridge",
            &["platform-gpu-model", "platform-peer-access", "platform-transport", "platform-window"],
        ),
        ("older-capture", "threadripper-4gpu", &["platform-unknown", "platform-window"]),
    ];
    let mut seen = BTreeSet::new();
    for row in rows {
        let findings = differences(&recorded(row.0), &recorded(row.1));
        assert!(findings.is_sorted_by_key(|finding| finding.severity));
        seen.extend(shows(*row, findings));
    }
    assert_eq!(seen, EXPECTATIONS.iter().map(|row| row.code.to_owned()).collect());
}

/// What a good unit writes of itself it passes, and a unit that differs does not, by the same codes.
#[test]
fn a_machine_is_held_against_what_a_person_wrote() {
    let rows: &[PlatformRow<'_>] = &[
        ("idle-gen1", "idle-gen1", &[]),
        ("threadripper-4gpu", "threadripper-4gpu", &[]),
        ("server-8gpu", "server-8gpu", &[]),
        ("slot-x8", "slow-under-load", &["platform-link"]),
        ("settings-left", "worn-memory", &["platform-transport"]),
        ("bar-256m", "idle-gen1", &["platform-gpu-model", "platform-link", "platform-transport", "platform-window"]),
        ("lost-gpu", "threadripper-4gpu", &["platform-unknown"]),
        ("idle-gen1", "threadripper-4gpu", &["platform-gpu-count", "platform-gpu-model", "platform-transport"]),
    ];
    for row in rows {
        let wanted = Acceptance::of(&recorded(row.1));
        assert_eq!(parse_acceptance(&wanted.to_text(), row.1).unwrap(), wanted, "{}", wanted.to_text());
        shows(*row, accepted(&recorded(row.0), &wanted));
    }
    let wrong = [
        ("schema: 9\ntitle: x\ngpus: []\n", "schema 9"),
        ("schema: 1\ntitle: x\ngpus: [{lanes: 8}]\n", "lanes"),
        ("schema: 1\ntitle: x\ngpus: [{slot: \"0000:01:00.0\"}, {slot: \"0000:01:00.0\"}]\n", "stands here twice"),
    ];
    for (text, expected) in wrong {
        let error = parse_acceptance(text, "p.yaml").unwrap_err().to_string();
        assert!(error.starts_with("p.yaml:") && error.contains(expected), "{error}");
    }
}

/// The command takes a platform in each of its three forms, and tells them apart.
#[test]
fn the_command_takes_any_platform() {
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let machine = root.join("tests/machines/slot-x8/machine.jsonl");
    let run = |arguments: &[&Path]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rigscale"));
        command.args(["probe", "--json", "--from"]).arg(&machine).args(arguments).output().unwrap()
    };
    let output = run(&[Path::new("-o"), folder.path()]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let own = folder.path().join("platform.yaml");
    let good = root.join("tests/machines/slow-under-load/topology.yaml");
    let catalogue = root.join("topologies/asus-wrx90e-sage-se.yaml");
    for (platform, code) in [(own, 0), (good, 4), (catalogue, 4)] {
        let output = run(&[Path::new("--expect"), &platform]);
        assert_eq!(output.status.code(), Some(code), "{}: {output:?}", platform.display());
    }
}

#[test]
fn one_rule_can_be_shown() {
    let rules = |code: &str| Command::new(env!("CARGO_BIN_EXE_rigscale")).args(["rules", code]).output().unwrap();
    let text = String::from_utf8(rules("acs-redirect").stdout).unwrap();
    let rule = RULES.iter().find(|rule| rule.code == "acs-redirect").unwrap();
    assert!(text.starts_with("warning  acs-redirect\n") && text.contains("disable_acs_redir"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80) && text.contains(&rule.question[..40]), "{text}");
    let unknown = rules("no-such-rule");
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no-such-rule"));
}

/// The rule on NCCL's fallback and the model of NCCL's search tell of the same machines.
#[test]
fn the_rule_on_simple_order_agrees_with_the_model_of_the_search() {
    let (mut with, mut without) = (0, 0);
    for (name, codes) in shown() {
        let Ok(board) = from_topology(&recorded(&name), &name) else { continue };
        let Ok(ring) = ring(&board, &Exchange::default(), &Calibration::default()) else { continue };
        if ring.ranks < 2 {
            continue;
        }
        assert_eq!(codes.contains("nccl-simple-order"), ring.graph.fallback, "{name}: {ring:?}");
        *(if ring.graph.fallback { &mut with } else { &mut without }) += 1;
    }
    assert!(1 <= with && 10 <= without, "{with} machines with and {without} without");
}

#[test]
fn a_fault_is_an_exit_code() {
    let machine = |name: &str| format!("{}/tests/machines/{name}/machine.jsonl", env!("CARGO_MANIFEST_DIR"));
    for (name, code) in [("lost-gpu", 4), ("worn-memory", 4), ("idle-gen1", 0), ("odd-links", 0)] {
        let output = Command::new(env!("CARGO_BIN_EXE_rigscale")).args(["probe", "--from", &machine(name)]).output();
        assert_eq!(output.unwrap().status.code(), Some(code), "{name}");
    }
}

/// What catches a thread.
enum Caught {
    /// A rule of the probe, on a recorded machine.
    Rule(&'static str, &'static str),
    /// A recorded machine that is in order, and stays without a finding.
    InOrder(&'static str),
    /// A rule that says that it could not judge, on a recorded machine.
    Unjudged(&'static str, &'static str),
    /// A verdict of `rigscale measure`, on a recorded measurement.
    Measured(&'static str, &'static str),
    /// What rigscale does in the place of what was asked for, and the test that holds it: file and function.
    Instead(&'static str, &'static str, &'static str),
}

use Caught::{InOrder, Instead, Measured, Rule, Unjudged};

/// The 56 threads: the report, what was seen, what catches it. The first 28 are complaints about NCCL, the others what
/// people ask of tools that probe and measure.
const THREADS: [(&str, &str, Caught); 56] = [
    ("NVIDIA/nccl 2079", "all-reduce of two RTX 5880 Ada hangs", Rule("acs-redirect", "acs-redirect")),
    (
        "NVIDIA/nccl 1999; vllm 33041; local-inference-lab/vllm 262",
        "hang in the first collective",
        Rule("iommu-translating", "iommu-translating"),
    ),
    ("local-inference-lab/rtx6kpro 15", "peers granted, the first all-reduce hangs", Measured("hang-sum", "sum-hang")),
    (
        "NVIDIA/nccl-tests 117; tinygrad/open-gpu-kernel-modules, README",
        "a grant that is none: copies go nowhere",
        Measured("peer-false-grant", "false-grant"),
    ),
    ("NVIDIA/nccl 257", "hang with the IOMMU on", Rule("iommu-translating", "iommu-translating")),
    ("NVIDIA/nccl 606, 629, 631", "hang or wrong data, ACS and VT-d", Rule("acs-redirect", "acs-redirect")),
    ("NVIDIA/nccl-tests 287; NVIDIA/nccl 1637", "NCCL 2.25.1 fails on a 5090", Rule("nccl-too-old", "old-nccl")),
    ("NVIDIA/nccl 2418", "NCCL 2.26.2: illegal memory access from 512 KiB on", Rule("nccl-known-bad", "bad-nccl")),
    (
        "tinygrad/open-gpu-kernel-modules 17",
        "more than two GPUs go through the host",
        Rule("nccl-host-staged", "slow-under-load"),
    ),
    ("NVIDIA/nccl 1285", "slow with several NUMA nodes per socket", Rule("gpus-across-numa-nodes", "split-socket")),
    ("NVIDIA/nccl-tests 74", "NPS below 4 and shared memory", Rule("gpus-across-numa-nodes", "split-socket")),
    ("NVIDIA/nccl 814", "numaid is -1", Rule("numa-unknown", "numa-unknown")),
    ("NVIDIA/nccl-tests 307, 269, 270", "slow across two sockets", Rule("gpus-across-sockets", "server-8gpu")),
    (
        "NVIDIA/nccl 1639",
        "bound by host memory: are all channels populated?",
        Rule("memory-channels-empty", "channels-empty"),
    ),
    ("NVIDIA/nccl 1530", "poor ring on 4090s, through the host", Rule("p2p-refused-product", "numa-unknown")),
    (
        "NVIDIA/nccl pull requests 2036, 2113, 2127",
        "Blackwell across NUMA nodes falls to simple order",
        Rule("nccl-simple-order", "server-8gpu"),
    ),
    ("aikitoria/open-gpu-kernel-modules 25; tinygrad 29, 45", "BAR1 of 256 MiB", Rule("bar-below-memory", "bar-256m")),
    ("janhq/jan 183; Syllo/nvtop 6; open-mpi/hwloc 653", "Gen1 at idle taken for a fault", InOrder("idle-gen1")),
    ("NVIDIA/nccl 290, 342, 525, 1518; torchtitan 853", "/dev/shm of 64 MiB", Rule("shm-small", "container-64m")),
    (
        "pytorch 115305, 148689; accelerate 2535; torchtitan 3519",
        "ranks far from their GPU",
        Rule("cpus-far-from-gpus", "split-socket"),
    ),
    ("dmlc/xgboost 11242", "hang with driver 560", Rule("driver-known-bad", "bad-driver")),
    ("NVIDIA/nccl 1706", "stuck at four ranks", Measured("hang-sum", "sum-hang-every-way")),
    ("local-inference-lab/rtx6kpro, surprise link down", "links that vanish at idle", Rule("pcie-aspm", "odd-links")),
    (
        "NVIDIA/nccl 281, 740, 786, 831, 1261, 2053",
        "wrong results with LL128 forced",
        Rule("nccl-ll128-forced", "set-by-hand"),
    ),
    (
        "local-inference-lab/rtx6kpro, collapse report",
        "writes to several root ports collapse",
        Measured("pattern-collapse", "collapse"),
    ),
    ("local-inference-lab/rtx6kpro, WRX90E slot 6", "a slot of x8", Rule("pcie-slot-below-card", "slot-x8")),
    ("level1techs, GPU to GPU expected bandwidth", "3.32 GB/s between two cards", Measured("peer-slow", "slow-peers")),
    ("4x4090 cloud report, 2026-01", "no peer access in a guest", Rule("p2p-refused", "vm-no-p2p")),
    (
        "NVIDIA/nvbandwidth 66",
        "the list of GPUs in its JSON is null",
        Instead("`probe --json` names each GPU by address", "imports", "the_command_takes_any_kind_and_writes_xml"),
    ),
    ("NVIDIA/nvbandwidth 45", "peer test waived, without a reason", Rule("p2p-cuda-differs", "cuda-differs")),
    ("NVIDIA/nvbandwidth 24, 23", "are asymmetric figures normal?", Measured("peer-asymmetric", "one-direction-slow")),
    (
        "NVIDIA/nvbandwidth 15, 61",
        "libraries of another CUDA than the driver serves",
        Rule("cuda-libraries-newer", "bad-nccl"),
    ),
    (
        "NVIDIA/nvbandwidth pull requests 10, 22, 54",
        "output for machines",
        Instead("every record has a JSON schema", "schemas", "committed_schemas_are_those_of_the_types"),
    ),
    (
        "microsoft/superbenchmark pull request 675",
        "a parser breaks on N/A in the place of a number",
        Instead("a missing fact is an object that says why", "probe", "topologies_survive_a_round_trip"),
    ),
    ("NVIDIA/cuda-samples 357", "what do concurrent figures mean?", Measured("host-shared", "shared-uplink")),
    (
        "NVIDIA/nccl-tests 120, pull request 318",
        "parsing text is brittle",
        Instead("`--json` and text come from one value", "rules", "a_fault_is_an_exit_code"),
    ),
    (
        "NVIDIA/nccl-tests 117, 287, 307",
        "hang or error on new cards, or why is it low?",
        Rule("nccl-too-old", "old-nccl"),
    ),
    ("NVIDIA/nccl 814", "the peer matrix and the bus bandwidth disagree", Rule("numa-unknown", "numa-unknown")),
    ("NVIDIA/nccl 2079", "ACS: nobody told", Rule("acs-redirect", "acs-redirect")),
    ("NVIDIA/nccl 606, 667, 1086, 557", "hang on certain pairs", Measured("hang-peer", "peer-hang")),
    ("NVIDIA/nccl 1127, 175", "does this card have peer access?", Rule("p2p-refused-product", "desktop-2gpu-x8")),
    ("NVIDIA/nccl 342, 473, 1518; torchtitan 853", "shared memory in a container", Rule("shm-small", "container-64m")),
    (
        "NVIDIA/DCGM 195, 234; dcgm-exporter 404",
        "is a GeForce supported?",
        Rule("p2p-refused-product", "threadripper-4gpu"),
    ),
    ("NVIDIA/DCGM 55", "tests skipped in silence", Unjudged("p2p-refused", "answers-garbled")),
    ("NVIDIA/DCGM 49, 198", "passes with NVLinks down", Rule("nvlink-down", "nvlink-bridge")),
    ("NVIDIA/DCGM 247, 272, 254", "the PCIe test hangs", Measured("hang-link", "host-hang")),
    (
        "aws/aws-k8s-tester pull request 806",
        "fewer lanes by design",
        Instead("`--expect` takes a platform that says so", "rules", "a_machine_is_held_against_its_platform"),
    ),
    (
        "huggingface/gpu-fryer 10, 11",
        "nothing was tested, and it is healthy",
        Measured("link-wrong-data", "nothing-checked"),
    ),
    (
        "wilicc/gpu-burn 12, 14; canonical/checkbox 119",
        "faulty, and the exit code is 0",
        Instead("a fault ends with exit code 4", "rules", "a_fault_is_an_exit_code"),
    ),
    ("open-mpi/hwloc 385, 653, 528, 372, 761", "the idle speed shown as the link's", InOrder("idle-gen1")),
    ("Syllo/nvtop 6, 268", "idle Gen1 mistaken for a fault", InOrder("idle-gen1")),
    ("NVIDIA/NVSentinel 890", "silent throttling and lost lanes", Rule("gpu-hot", "hot-and-hungry")),
    (
        "NVIDIA/open-gpu-kernel-modules 1010",
        "stuck at a low speed, or idle?",
        Rule("pcie-slow-under-load", "slow-under-load"),
    ),
    (
        "noonghunna/club-3090 902, 926, 922, 688, 873",
        "a pass is no throughput, and copies are wrong",
        Measured("peer-wrong-data", "wrong-data"),
    ),
    ("aikitoria/open-gpu-kernel-modules 6, 12, 13", "peer bandwidth small", Rule("acs-redirect", "acs-redirect")),
    (
        "local-inference-lab/rtx6kpro pull request 88",
        "hours of training at Gen2",
        Rule("pcie-slow-under-load", "slow-under-load"),
    ),
];

/// The cell of the table, once what it says was seen to hold.
fn caught(thread: &str, caught: &Caught, shown: &BTreeMap<String, BTreeSet<String>>) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let says = |path: &Path, code: &str| {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{thread}: {}: {error}", path.display()));
        assert!(text.contains(&format!("\"code\": \"{code}\"")), "{thread}: {} lacks {code}", path.display());
    };
    match caught {
        Rule(code, machine) => {
            assert!(shown[*machine].contains(*code), "{thread}: {machine} does not show {code}");
            format!("[`{code}`](rules.md#{code}) | [{machine}](../tests/machines/{machine})")
        }
        InOrder(machine) => {
            assert!(shown[*machine].is_empty(), "{thread}: {machine} has findings");
            format!("nothing: in order | [{machine}](../tests/machines/{machine})")
        }
        Unjudged(code, machine) => {
            says(&root.join("machines").join(machine).join("unjudged.json"), code);
            format!("[`{code}`](rules.md#{code}) could not judge | [{machine}](../tests/machines/{machine})")
        }
        Measured(code, folder) => {
            let measured = root.join("measured");
            if measured.exists() {
                says(&measured.join(folder).join("findings.json"), code);
            }
            let verdicts = fs::read_to_string(root.join("../docs/links.md")).unwrap();
            assert!(!measured.exists() || verdicts.contains(&format!("`{code}`")), "{thread}: {code} is no verdict");
            format!("[`{code}`](links.md) of `measure` | [{folder}](../tests/measured/{folder})")
        }
        Instead(what, file, test) => {
            let text = fs::read_to_string(root.join(format!("{file}.rs"))).unwrap();
            assert!(text.contains(&format!("#[test]\nfn {test}()")), "{thread}: tests/{file}.rs has no test {test}");
            format!("{what} | [tests/{file}.rs](../tests/{file}.rs), `{test}`")
        }
    }
}

#[test]
fn the_page_of_threads_says_only_what_is_shown() {
    let shown = shown();
    let mut page = "# Threads, and what catches each\n\nReports of others: 28 complaints about NCCL, and 28 about tools that \
                    probe and measure. Each is caught by a rule of `rigscale probe` or by a verdict of `rigscale measure`, and \
                    a recorded machine or measurement shows it; where the report is about a tool, the table says what \
                    rigscale does instead and which test holds it. `tests/rules.rs` runs every row.\n\n| | thread | what was \
                    seen | caught by | shown by |\n| --- | --- | --- | --- | --- |\n"
        .to_owned();
    for (number, (thread, seen, by)) in (1..).zip(&THREADS) {
        writeln!(page, "| {number} | {thread} | {seen} | {} |", caught(thread, by, &shown)).unwrap();
    }
    check_page("threads.md", &page);
}
