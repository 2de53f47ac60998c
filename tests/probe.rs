//! Recorded machines: each transcript gives the topology and the findings beside it.
//!
//! `RIGSCALE_BLESS=1 cargo test --test probe` rewrites the files; the diff is the review.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rigscale::probe::{
    Answer, Captured, Live, Machine, ProbeError, Question, RULES, Recorder, Redactor, Value, judge, probe, unjudged,
};
use rigscale::record::Finding;
use rigscale::topology::{Missing, PathClass, Topology, Why, from_yaml, to_yaml};

/// At least so many machines are recorded.
const MACHINES: usize = 48;

fn machines() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machines");
    let entries = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    assert!(MACHINES <= folders.len(), "recorded machines are missing");
    folders
}

fn machine(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machines").join(name)
}

fn capture(folder: &Path) -> String {
    fs::read_to_string(folder.join("machine.jsonl")).unwrap()
}

fn probed(folder: &Path) -> (Topology, Vec<Finding>) {
    let captured = Captured::parse(&capture(folder), "machine.jsonl").unwrap();
    let topology = probe(&captured).unwrap_or_else(|error| panic!("{}: {error:?}", folder.display()));
    let findings = judge(&topology);
    (topology, findings)
}

fn check_golden(path: &Path, text: &str) {
    if std::env::var_os("RIGSCALE_BLESS").is_some() {
        fs::write(path, text).unwrap();
    }
    let golden = fs::read_to_string(path).unwrap_or_default();
    assert!(golden == text, "{} differs; RIGSCALE_BLESS=1 rewrites it", path.display());
}

/// The rules that could not judge stand in a file of their own, where there are some.
fn check_unjudged(folder: &Path, topology: &Topology) {
    let (path, rules) = (folder.join("unjudged.json"), unjudged(topology));
    match rules.is_empty() {
        true => assert!(!path.exists(), "{} stands for nothing", path.display()),
        false => check_golden(&path, &(serde_json::to_string_pretty(&rules).unwrap() + "\n")),
    }
}

#[test]
fn recorded_machines_probe_as_recorded() {
    for folder in machines() {
        let (topology, findings) = probed(&folder);
        check_golden(&folder.join("topology.yaml"), &to_yaml(&topology).unwrap());
        check_golden(&folder.join("findings.json"), &(serde_json::to_string_pretty(&findings).unwrap() + "\n"));
        check_unjudged(&folder, &topology);
    }
}

#[test]
fn topologies_survive_a_round_trip() {
    for folder in machines() {
        let (topology, _) = probed(&folder);
        assert_eq!(from_yaml(&to_yaml(&topology).unwrap(), "topology.yaml").unwrap(), topology);
        let json = serde_json::to_string(&topology).unwrap();
        assert_eq!(serde_json::from_str::<Topology>(&json).unwrap(), topology);
    }
}

#[test]
fn every_rule_fires_somewhere_and_a_healthy_machine_is_quiet() {
    let fired: BTreeSet<String> =
        machines().iter().flat_map(|folder| probed(folder).1).map(|finding| finding.code).collect();
    for rule in RULES {
        assert!(fired.contains(rule.code), "{} fires on no recorded machine", rule.code);
    }
    // In order; the links of both idle at Gen1, which is no fault.
    for name in ["idle-gen1", "tesla-t4"] {
        let (topology, findings) = probed(&machine(name));
        assert_eq!((findings, unjudged(&topology)), (vec![], vec![]), "{name}");
    }
    // Nothing is known to be wrong there, and that is said.
    let (topology, findings) = probed(&machine("answers-garbled"));
    assert_eq!(findings, []);
    let codes: BTreeSet<String> = unjudged(&topology).into_iter().map(|rule| rule.code).collect();
    for code in ["p2p-refused", "p2p-disabled", "nccl-host-staged", "gpu-hot", "gpu-power-brake", "ecc-uncorrected"] {
        assert!(codes.contains(code), "{code} is taken for judged");
    }
    // In order too, with what is worth knowing and nothing graver.
    for (name, codes) in [("threadripper-4gpu", ["p2p-refused-product"]), ("switch-4gpu", ["pcie-shared-uplink"])] {
        let found: Vec<String> = probed(&machine(name)).1.into_iter().map(|finding| finding.code).collect();
        assert_eq!(found, codes, "{name}");
    }
}

#[test]
fn a_rule_says_where_its_expectation_comes_from() {
    assert!(40 <= RULES.len());
    for rule in RULES {
        let kebab =
            rule.code.bytes().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == b'-');
        assert!(kebab && rule.question.ends_with('?') && rule.remedy.ends_with('.'), "{}", rule.code);
        assert!(!rule.source.is_empty(), "{}", rule.code);
    }
}

/// Of what an older capture or file does not hold, nothing is said to be in order and nothing to be broken.
#[test]
fn older_captures_and_topologies_still_read() {
    let (topology, findings) = probed(&machine("older-capture"));
    assert_eq!(topology.settings.root.clone().unwrap_err().why, Why::NotAsked);
    assert!(topology.peers.is_empty());
    assert!(topology.gpus.iter().all(|gpu| gpu.pcie.acs.is_err() && gpu.frame_buffer.is_err()));
    let codes: BTreeSet<&str> = findings.iter().map(|finding| finding.code.as_str()).collect();
    assert_eq!(codes, BTreeSet::from(["bar-below-memory", "facts-never-asked"]));

    // What version 0.1.0 wrote, as it lies in the example.
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("reports/example");
    let text = fs::read_to_string(example.join("topology.yaml")).unwrap();
    assert!(text.starts_with("schema: 1\n"));
    let topology = from_yaml(&text, "topology.yaml").unwrap();
    assert_eq!(topology.settings.uptime_s.clone().unwrap_err().why, Why::NotAsked);
    assert_eq!(from_yaml(&to_yaml(&topology).unwrap(), "again.yaml").unwrap(), topology);
    assert!(probe(&Captured::parse(&capture(&example), "machine.jsonl").unwrap()).is_ok());
}

#[test]
fn codes_are_unique() {
    let codes: BTreeSet<&str> = RULES.iter().map(|rule| rule.code).collect();
    assert_eq!(codes.len(), RULES.len());
}

/// The matrix that `nvidia-smi topo -m` printed on this machine (voipmonitor/rtx6kpro, logs/asus-report).
#[test]
fn pairs_are_classed_as_nvidia_smi_does() {
    let (topology, _) = probed(&machine("server-8gpu"));
    assert_eq!(topology.pairs.len(), 8 * 7 / 2);
    let rows = ["XPNNSSSS", "PXNNSSSS", "NNXPSSSS", "NNPXSSSS", "SSSSXPNN", "SSSSPXNN", "SSSSNNXP", "SSSSNNPX"];
    let gpus: Vec<_> = topology.nvidia_gpus().map(|gpu| gpu.address).collect();
    for pair in &topology.pairs {
        let place = |address| gpus.iter().position(|gpu| *gpu == address).unwrap();
        let expected = match rows[place(pair.a)].as_bytes()[place(pair.b)] {
            b'P' => PathClass::Pix,
            b'N' => PathClass::Node,
            _ => PathClass::Sys,
        };
        assert_eq!(pair.path, Ok(expected), "{} {}", pair.a, pair.b);
    }
}

#[test]
fn cores_are_whole_and_ordered() {
    let (topology, _) = probed(&machine("server-8gpu"));
    let cores = topology.cores();
    assert_eq!(cores.len(), 128);
    assert_eq!((cores[0].cpus.as_slice(), cores[0].numa_node), ([0, 128].as_slice(), Some(0)));
    assert_eq!((cores[64].cpus.as_slice(), cores[64].numa_node), ([64, 192].as_slice(), Some(1)));
    assert_eq!(cores[111].cpus, [111], "CPU 239 is offline there");

    let mut narrowed = topology;
    narrowed.cpu.allowed = Ok("0-3,128-130".parse().unwrap());
    let cores: Vec<Vec<usize>> = narrowed.cores().into_iter().map(|core| core.cpus).collect();
    assert_eq!(cores, [vec![0, 128], vec![1, 129], vec![2, 130]], "half of core 3 is no core");
    narrowed.cpu.sockets = Err(Missing::new(Why::Denied, ""));
    assert_eq!(narrowed.cores().len(), 7);
}

#[test]
fn narrowest_hops_count_what_is_shared_above() {
    let (topology, _) = probed(&machine("chipset-uplink"));
    let gpu = topology.gpu("0000:05:00.0".parse().unwrap()).unwrap();
    let narrowest = gpu.narrowest.clone().unwrap();
    assert_eq!(narrowest.lanes().to_string(), "Gen4 x4");
    assert_eq!(narrowest.lower.to_string(), "0000:02:00.0");
}

#[test]
fn this_host_probes_and_its_transcript_gives_the_same() {
    let recorder = Recorder::new(Live::new(), Some(Redactor::new(Live::private_words())));
    let live = probe(&recorder).unwrap();
    let replayed = probe(&Captured::parse(&recorder.transcript().unwrap(), "here").unwrap()).unwrap();
    assert_eq!(live, replayed);
    assert_eq!(judge(&live), judge(&replayed));
    assert!(!live.cores().is_empty());
}

#[test]
fn what_was_never_asked_is_an_error_that_names_the_question() {
    let text = capture(&machine("plain-vm")).replace("{\"start\":\"/proc/cpuinfo\"}", "{\"start\":\"/proc/other\"}");
    let error = probe(&Captured::parse(&text, "x").unwrap()).unwrap_err();
    assert!(
        matches!(&error, ProbeError::Ask(ask) if ask.to_string().contains("{\"start\":\"/proc/cpuinfo\"}")),
        "{error:?}"
    );
}

#[test]
fn broken_captures_are_errors_with_their_line() {
    let whole = capture(&machine("plain-vm"));
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    let cases = [
        (String::new(), "m.jsonl:1: the file was cut: it is empty"),
        (lines[0].to_owned(), "m.jsonl:1: the file was cut"),
        (lines[..lines.len() - 1].concat(), "is not the count of answers"),
        (whole[..whole.len() / 2].to_owned(), "the file was cut"),
        ([&lines[..3], &lines[4..]].concat().concat(), "it holds"),
        (whole.replacen("\"capture\":3", "\"capture\":99", 1), "m.jsonl:1: schema 99 is newer than 3"),
        (whole.replacen("\"capture\":3", "\"capture\":0", 1), "m.jsonl:1: schema 0 was never written"),
        (whole.replacen("\"ask\":{\"file\"", "\"ask\":{\"shell\"", 1), "m.jsonl:2: unknown variant `shell`"),
        (whole.replacen("\"missing\":\"absent\"", "\"missing\":\"gone\"", 1), "m.jsonl:2: unknown variant `gone`"),
        (
            lines[..2].concat() + &whole[lines[0].len()..],
            "m.jsonl:3: {\"file\":\"/sys/class/dmi/id/sys_vendor\"} was already",
        ),
        ("{\"x\": 1}\n".to_owned(), "m.jsonl:1: unknown field `x`"),
        (lines[0].to_owned() + &"[".repeat(100_000) + "\n" + lines[lines.len() - 1], "m.jsonl:2:"),
        (lines[0].to_owned() + &" ".repeat(300_000) + "\n" + lines[lines.len() - 1], "too many for a line"),
        (" ".repeat(17 << 20), "too many for a capture"),
    ];
    for (text, expected) in cases {
        let error = Captured::parse(&text, "m.jsonl").unwrap_err().to_string();
        assert!(error.contains(expected), "{error} lacks {expected}");
    }
}

#[test]
fn wrong_topologies_are_errors_with_their_place() {
    let good = fs::read_to_string(machine("desktop-2gpu-x8").join("topology.yaml")).unwrap();
    let line_of = |what: &str| good.lines().position(|line| line.contains(what)).unwrap() + 1;
    let cases = [
        (
            good.replacen("width_max: 16", "width_max: 17", 1),
            format!("t.yaml:{}:", line_of("width_max: 16")),
            "17 is no link width",
        ),
        (good.replacen("kernel:", "kernle:", 1), format!("t.yaml:{}:", line_of("kernel:")), "kernle"),
        (good.replacen("  vendor:", "  vendor: x\n  vendor:", 1), "t.yaml:4:".into(), "duplicate"),
        (
            good.replacen("virtual_machine: false", "virtual_machine: no", 1),
            format!("t.yaml:{}:", line_of("virtual_machine")),
            "bool",
        ),
        (good.replacen("path: PHB", "path: PIX", 1), format!("t.yaml:{}:", line_of("pairs:")), "do not follow"),
        (good.replacen("schema: 3", "schema: 7", 1), "t.yaml:".into(), "schema 7 is newer than 3"),
        (good.replacen("schema: 3", "schema: 0", 1), "t.yaml:1:".into(), "never written"),
        (
            good.replacen("parent: \"0000:00:01.4\"", "parent: \"0000:00:01.5\"", 1),
            "t.yaml:".into(),
            "not among the bridges",
        ),
        (good[..good.len() / 2].to_owned(), "t.yaml:".into(), ""),
        ("a: &a [1]\nb: *a\n".to_owned(), "t.yaml:".into(), ""),
        ("[".repeat(100_000), "t.yaml:".into(), ""),
        (String::new(), "t.yaml:1:".into(), ""),
        ("x".repeat(5 << 20), "t.yaml".into(), "too many"),
    ];
    for (text, place, expected) in cases {
        let error = from_yaml(&text, "t.yaml").unwrap_err().to_string();
        assert!(error.starts_with(&place) && error.contains(expected), "{error} lacks {place} or {expected}");
    }
}

/// A machine of which some answers are replaced.
struct Edited<'a> {
    machine: &'a Captured,
    edits: Vec<(u64, Missing)>,
}

impl Machine for Edited<'_> {
    fn ask(&self, question: &Question) -> Result<Answer, rigscale::probe::AskError> {
        let answer = self.machine.ask(question)?;
        let hash =
            question.to_string().bytes().fold(7_u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
        match self.edits.iter().find(|(modulus, _)| hash.is_multiple_of(*modulus)) {
            Some((_, missing)) => Ok(Answer { answer: Err(missing.clone()), ..answer }),
            None => Ok(answer),
        }
    }
}

fn any_why() -> impl Strategy<Value = Why> {
    prop::sample::select(vec![Why::Absent, Why::Denied, Why::Unsupported, Why::Garbled])
}

/// Whatever a probe ends with, it is a topology that survives its own file, or an error.
fn holds(machine: &dyn Machine) {
    if let Ok(topology) = probe(machine) {
        let _ = judge(&topology);
        let _ = topology.identity();
        let _ = topology.cores();
        let yaml = to_yaml(&topology).unwrap();
        assert_eq!(from_yaml(&yaml, "t.yaml").unwrap(), topology, "{yaml}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 64, ..ProptestConfig::default() })]

    #[test]
    fn missing_answers_always_give_a_topology(
        index in 0..MACHINES,
        edits in prop::collection::vec((1..40_u64, any_why()), 0..4),
    ) {
        let folder = &machines()[index];
        let captured = Captured::parse(&capture(folder), "x").unwrap();
        let edits = edits.into_iter().map(|(modulus, why)| (modulus, Missing::new(why, "edited"))).collect();
        let edited = Edited { machine: &captured, edits };
        // A fact that turns up missing may lead to a question that the capture was never asked, and to nothing else.
        match probe(&edited) {
            Ok(_) | Err(ProbeError::Ask(_)) => holds(&edited),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn mutated_captures_never_panic(
        index in 0..MACHINES,
        drops in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let text = capture(&machines()[index]);
        let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
        for drop in drops {
            lines.remove(drop.index(lines.len()));
        }
        let mut bytes = lines.concat().into_bytes();
        for (place, byte) in flips {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Ok(captured) = Captured::parse(&String::from_utf8_lossy(&bytes), "x") {
            holds(&captured);
        }
    }

    #[test]
    fn nonsense_in_answers_never_panics(
        index in 0..MACHINES,
        modulus in 1..30_u64,
        nonsense in "(\\PC{0,12}|[0-9a-f:,. x-]{0,24}|0-65535|pci0000:00/0000:00:01.1/0000:00:01.1|-1|4294967295)",
    ) {
        struct Nonsense<'a>(&'a Captured, u64, String);
        impl Machine for Nonsense<'_> {
            fn ask(&self, question: &Question) -> Result<Answer, rigscale::probe::AskError> {
                let mut answer = self.0.ask(question)?;
                if (question.to_string().len() as u64).is_multiple_of(self.1) {
                    answer.answer = Ok(Value::Text(self.2.clone()));
                }
                Ok(answer)
            }
        }
        let captured = Captured::parse(&capture(&machines()[index]), "x").unwrap();
        holds(&Nonsense(&captured, modulus, nonsense));
    }
}
