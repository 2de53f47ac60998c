//! Texts of other tools: each gives the topology and the findings beside it, or an error with its place.
//!
//! `RIGSCALE_BLESS=1 cargo test --test imports` rewrites the files; the diff is the review.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rigscale::probe::import::{IMPORT_BYTES_MAX, Kind, import, import_all, import_as};
use rigscale::probe::{Captured, judge, probe, view_differences};
use rigscale::topology::{
    Bridge, Gpu, GpuState, Missing, PathClass, PciAddress, PeerAccess, PeerStatus, Reading, Topology, from_nccl_xml,
    from_yaml, to_nccl_xml, to_yaml,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/imports")
}

/// The name and text of each import.
fn texts() -> Vec<(String, String)> {
    let entries = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    let text = |name: String| (name.clone(), fs::read_to_string(root().join(name).join("input")).unwrap());
    let texts: Vec<_> = names.into_iter().map(text).collect();
    assert!(16 <= texts.len(), "imports are missing");
    texts
}

fn text(name: &str) -> String {
    fs::read_to_string(root().join(name).join("input")).unwrap()
}

fn imported(name: &str) -> Topology {
    import(&text(name), name).unwrap_or_else(|error| panic!("{error}"))
}

fn check_golden(path: &Path, text: &str) {
    if std::env::var_os("RIGSCALE_BLESS").is_some() {
        fs::write(path, text).unwrap();
    }
    let golden = fs::read_to_string(path).unwrap_or_default();
    assert!(golden == text, "{} differs; RIGSCALE_BLESS=1 rewrites it", path.display());
}

#[test]
fn texts_import_as_recorded() {
    for (name, text) in texts() {
        let topology = import(&text, &name).unwrap_or_else(|error| panic!("{error}"));
        let yaml = to_yaml(&topology).unwrap();
        check_golden(&root().join(&name).join("topology.yaml"), &yaml);
        let findings = serde_json::to_string_pretty(&judge(&topology)).unwrap() + "\n";
        check_golden(&root().join(&name).join("findings.json"), &findings);
        assert_eq!(from_yaml(&yaml, "topology.yaml").unwrap(), topology, "{name}");
    }
}

#[test]
fn every_kind_is_known_by_its_own_words() {
    let kinds = [
        ("nccl-", Kind::NcclXml),
        ("lstopo-", Kind::Hwloc),
        ("lspci-", Kind::Lspci),
        ("topo-m-", Kind::TopoMatrix),
        ("topo-p2p-", Kind::TopoP2p),
        ("smi-q-", Kind::SmiQuery),
        ("env-", Kind::EnvReport),
    ];
    let mut seen = BTreeSet::new();
    for (name, text) in texts() {
        let (prefix, kind) = kinds.iter().find(|(prefix, _)| name.starts_with(prefix)).unwrap();
        assert_eq!(Kind::of(&text), Some(*kind), "{name}");
        seen.insert(prefix);
    }
    assert_eq!(seen.len(), Kind::ALL.len());
}

/// What `nvidia-smi -q` says of two cards of which nothing is in order.
const SICK: &[&str] = &[
    "ecc-uncorrected",
    "rows-remap-failed",
    "gpu-power-brake",
    "pcie-replays",
    "pcie-narrow-link",
    "rows-remap-pending",
    "compute-mode-exclusive",
    "gpu-in-use",
    "gpu-drives-display",
    "ecc-pending",
    "gpu-was-held",
];

/// What a text cannot hold is missing for that reason, so that no rule takes it for seen. What it tells is judged.
#[test]
fn rules_are_quiet_about_what_a_text_cannot_hold() {
    let quiet = ["topo-m-2gpu", "topo-m-8gpu", "topo-m-nvlink", "topo-p2p-unnamed"];
    for name in quiet.iter().chain(&["lspci-one-card", "nccl-flat-numa-unknown", "nccl-vm-hidden-switch"]) {
        assert_eq!(judge(&imported(name)), [], "{name}");
    }
    let told: [(&str, &[&str]); 9] = [
        ("topo-p2p-refused", &["p2p-refused-product"]),
        (
            "smi-q-2gpu",
            &["pcie-narrow-link", "pcie-narrow-link", "bar-below-memory", "power-limits-differ", "power-limit-lowered"],
        ),
        ("smi-q-sick", SICK),
        ("env-5090", &["nccl-too-old"]),
        ("smi-q-old-passthrough", &["mig-enabled", "power-limit-lowered"]),
        ("lspci-lost-gpu", &["gpu-lost"]),
        ("lspci-unprivileged", &["pcie-link-unknown", "config-unreadable"]),
        ("lspci-acs", &["acs-redirect", "pcie-errors-remembered", "pcie-aspm"]),
        ("lspci-hex", &["acs-redirect", "pcie-aspm"]),
    ];
    for (name, expected) in told {
        let codes: Vec<String> = judge(&imported(name)).into_iter().map(|finding| finding.code).collect();
        assert_eq!(codes, expected, "{name}");
    }
    // Whether a product has peer access at all, a grid does not tell where the driver blames the chipset.
    let chipset = text("topo-p2p-refused").replace("\tGNS", "\tCNS");
    assert_eq!(judge(&import(&chipset, "x").unwrap()), []);
    let topology = imported("topo-m-2gpu");
    let missing = topology.container.shm_bytes.unwrap_err();
    assert!(missing.is_untold());
    assert_eq!(missing.to_string(), "not in nvidia-smi topo -m");
}

/// Two GPUs below one switch of which nothing else is told: no rule has anything to say.
#[test]
fn rules_are_quiet_about_a_machine_of_which_nothing_is_told() {
    let address = |text: &str| text.parse::<PciAddress>().unwrap();
    let bridge = |at: &str, parent| Bridge { parent, ..Bridge::untold(address(at), "nothing") };
    let gpu = |at: &str| Gpu {
        parent: Some(address("0000:01:00.0")),
        nvml: Some(GpuState::untold("nothing")),
        ..Gpu::untold(address(at), "nothing")
    };
    let (from, to) = ("0000:02:00.0", "0000:03:00.0");
    let topology = Topology {
        bridges: vec![bridge("0000:00:01.0", None), bridge("0000:01:00.0", Some(address("0000:00:01.0")))],
        gpus: vec![gpu(from), gpu(to)],
        peers: vec![PeerAccess::untold(address(from), address(to), "nothing")],
        ..Topology::untold("nothing")
    };
    let findings = judge(&topology.derived());
    let told: Vec<&str> = findings.iter().map(|finding| finding.code.as_str()).collect();
    assert_eq!(told, ["pcie-shared-uplink"], "the tree is told, and nothing else");
}

#[test]
fn paths_are_those_of_the_grid() {
    let topology = imported("topo-m-8gpu");
    let rows = ["XPNNSSSS", "PXNNSSSS", "NNXPSSSS", "NNPXSSSS", "SSSSXPNN", "SSSSPXNN", "SSSSNNXP", "SSSSNNPX"];
    assert_eq!(topology.pairs.len(), 28);
    for pair in &topology.pairs {
        let expected = match rows[usize::from(pair.a.bus)].as_bytes()[usize::from(pair.b.bus)] {
            b'P' => PathClass::Pix,
            b'N' => PathClass::Node,
            _ => PathClass::Sys,
        };
        assert_eq!(pair.path, Ok(expected));
    }
    let bridged = imported("topo-m-nvlink");
    assert_eq!(bridged.nvlinks.as_ref().unwrap().len(), 4, "two bridged pairs, seen from either end");
    assert!(bridged.pairs[0].path.as_ref().unwrap_err().to_string().contains("NV4 in place of the PCIe path"));
    let peers = bridged.peers;
    assert_eq!(peers.len(), 12);
    let refused = |status: &Reading<PeerStatus>| *status == Ok(PeerStatus::NotSupported);
    assert_eq!(peers.iter().filter(|peer| refused(&peer.nvlink)).count(), 8);
    assert!(peers.iter().all(|peer| peer.read.is_ok() && peer.write.as_ref().is_err_and(Missing::is_untold)));
}

fn is_known<T>(reading: &Reading<T>) -> bool {
    reading.is_ok()
}

#[test]
fn lspci_gives_the_links_of_every_hop() {
    let topology = imported("lspci-switch");
    let gpu = topology.gpu("0000:05:00.0".parse().unwrap()).unwrap();
    assert_eq!(topology.hops(gpu).len(), 2);
    assert_eq!(topology.pairs[0].path, Ok(PathClass::Pix));
    assert_eq!(gpu.narrowest.as_ref().unwrap().lanes().to_string(), "Gen5 x16");

    let hidden = imported("lspci-unprivileged");
    let gpu = hidden.nvidia_gpus().next().unwrap();
    assert_eq!(
        gpu.link.gen_max.as_ref().unwrap_err().to_string(),
        "denied (needs root): Capabilities: <access denied>"
    );
    assert_eq!(gpu.name(), "NVIDIA AD102 [GeForce RTX 4090]");
    assert!(is_known(&gpu.nvml.as_ref().unwrap().bar1_bytes));
}

/// XML that rigscale writes reads back as what was written, for imported and for recorded machines.
#[test]
fn nccl_xml_survives_a_round_trip() {
    for (name, text) in texts().into_iter().filter(|(name, _)| name.starts_with("nccl-") && name != "nccl-amd-gpus") {
        let topology = from_nccl_xml(&text, &name).unwrap();
        let written = to_nccl_xml(&topology);
        assert_eq!(from_nccl_xml(&written, &name).unwrap(), topology, "{name}:\n{written}");
    }
    let machines = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machines");
    for folder in fs::read_dir(machines).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        let text = fs::read_to_string(folder.join("machine.jsonl")).unwrap();
        let machine = probe(&Captured::parse(&text, "machine.jsonl").unwrap()).unwrap();
        let written = to_nccl_xml(&machine);
        let read = from_nccl_xml(&written, "x.xml").unwrap();
        assert_eq!(read.nvidia_gpus().count(), machine.nvidia_gpus().count(), "{}", folder.display());
        assert_eq!(to_nccl_xml(&read), written, "{}", folder.display());
        for (read, gpu) in read.nvidia_gpus().zip(machine.nvidia_gpus()) {
            let lanes = |gpu: &Gpu| gpu.narrowest.as_ref().ok().map(|hop| hop.lanes());
            assert!(gpu.narrowest.is_err() || lanes(read) == lanes(gpu), "{}:\n{written}", folder.display());
        }
    }
}

/// NCCL's parser wants one space between attributes and each tag on a line (`src/graph/xml.cc`), at most 16 attributes.
#[test]
fn nccl_xml_is_spelled_as_nccl_reads_it() {
    let written = to_nccl_xml(&imported("nccl-nested-switches"));
    for line in written.lines() {
        let tag = line.trim();
        assert!(tag.starts_with('<') && tag.ends_with('>') && !tag.contains("  "), "{line}");
        assert!(tag.matches("=\"").count() <= 16, "{line}");
    }
    for expected in [
        "<system version=\"1\">\n  <cpu numaid=\"0\" affinity=\"ffffffff,ffffffff,00000000,00000000,ffffffff,ffffffff\" \
         arch=\"x86_64\" vendor=\"AuthenticAMD\" familyid=\"191\" modelid=\"2\">",
        "<pci busid=\"0000:06:00.0\" class=\"0x030200\" vendor=\"0x10de\" device=\"0x2bb5\" link_speed=\"32.0 GT/s PCIe\" \
         link_width=\"16\">\n          <gpu dev=\"0\" sm=\"120\" rank=\"0\"/>",
    ] {
        assert!(written.contains(expected), "{written}");
    }
}

#[test]
fn wrong_texts_are_errors_with_their_place() {
    let nccl = text("nccl-nested-switches");
    let grid = text("topo-m-2gpu");
    let smi = text("smi-q-2gpu");
    let lspci = text("lspci-switch");
    let line_of = |text: &str, what: &str| text.lines().position(|line| line.contains(what)).unwrap() + 1;
    let cases = [
        (String::new(), "x:".into(), "is empty"),
        ("\u{fffd}PNG\r\n\0\0\0\rIHDR".into(), "x:".into(), "no text"),
        ("Dear all,\nmy machine is slow.\n".into(), "x:".into(), "describes no machine"),
        ("<svg/>".into(), "x:".into(), "describes no machine"),
        (" ".repeat(IMPORT_BYTES_MAX + 1), "x:".into(), "too many"),
        (nccl[..nccl.len() / 2].into(), format!("x:{}:", nccl[..nccl.len() / 2].lines().count()), ""),
        (nccl.replacen("version=\"1\"", "version=\"3\"", 1), "x:4:".into(), "expected 1"),
        (nccl.replacen("0000:06:00.0", "06:00", 1), format!("x:{}:", line_of(&nccl, "0000:06")), "is no PCI address"),
        (
            nccl.replacen(" class=\"0x030200\"", "", 1),
            format!("x:{}:", line_of(&nccl, "0000:06")),
            "lacks the attribute",
        ),
        (nccl.replacen("0000:07:00.0", "0000:06:00.0", 1), "x:4:".into(), "stands here twice"),
        (nccl.replacen("numaid=\"0\"", "numaid=\"zero\"", 1), "x:5:".into(), "invalid digit"),
        (nccl.replacen("affinity=\"ff", "affinity=\"xx", 1), "x:5:".into(), "CPU mask"),
        (format!("<system version=\"1\"><cpu numaid=\"0\">{}", nested_pci(40)), "x:1:".into(), "deeper than 15"),
        (format!("<!DOCTYPE s [<!ENTITY a \"b\">]>{nccl}"), "x:1:".into(), "DTD"),
        (grid.replacen("GPU1\tPHB", "GPU1\tFOO", 1), format!("x:{}:", line_of(&grid, "GPU1\tPHB")), "expected PIX"),
        (grid[..grid.find("GPU1\tPHB").unwrap()].into(), "x:5:".into(), "the row of GPU1 is missing"),
        (grid.replacen("GPU0\t X ", "GPU0\tPIX", 1), "x:4:".into(), "is not itself"),
        (smi[..smi.find("GPU 00000000:02").unwrap()].into(), "x:".into(), "the text was cut"),
        (lspci.replacen("0000:06:00.0", "0000:05:00.0", 1), "x:".into(), "stands here twice"),
        (lspci.replacen("primary=01, secondary=02", "primary=01, secondary=01", 1), "x:".into(), ""),
        (text("lstopo-2socket").replacen("version=\"2.0\"", "version=\"1.0\"", 1), "x:5:".into(), "expected 2.0"),
        (text("lstopo-2socket").replacen("0000:17:00.0", "17", 1), "x:".into(), "is no PCI address"),
    ];
    for (text, place, expected) in cases {
        let error = match import(&text, "x") {
            Err(error) => error.to_string(),
            // Half a tree of lspci is a tree of which the upper part is not told.
            Ok(_) if expected.is_empty() => continue,
            Ok(_) => panic!("no error; expected {expected}"),
        };
        assert!(error.starts_with(&place) && error.contains(expected), "{error} lacks {place} or {expected}");
    }
}

fn nested_pci(levels: usize) -> String {
    let open = |level| format!("<pci busid=\"0000:{level:02x}:00.0\" class=\"0x060400\">");
    (0..levels).map(open).collect::<String>() + &"</pci>".repeat(levels) + "</cpu></system>"
}

/// Deep, wide and long texts end in bounded time and memory.
#[test]
fn hostile_texts_end() {
    let million = 1 << 20;
    let texts = [
        format!("<system version=\"1\">{}", "<cpu>".repeat(million)),
        format!(
            "<system version=\"1\"><cpu numaid=\"0\">{}",
            "<pci busid=\"0000:00:00.0\" class=\"0x060400\">".repeat(100_000)
        ),
        format!("<topology version=\"2.0\">{}", "<object>".repeat(million)),
        format!("<topology version=\"2.0\">{}{}</topology>", "<object>".repeat(150_000), "</object>".repeat(150_000)),
        "<".repeat(IMPORT_BYTES_MAX),
        "GPU0 ".repeat(million),
        "GPU0 GPU1\n".repeat(million),
        format!("NVSMI LOG=\n=NVSMI LOG=\n{}", " a : b\n".repeat(million)),
        format!("=NVSMI LOG=\n{}", (0..200_000).map(|depth| " ".repeat(depth % 60) + "key\n").collect::<String>()),
        (0..200_000).map(|index| format!("{:02x}:{:02x}.0 a: b\n", index / 32 % 256, index % 32)).collect(),
        format!("00:00.0 VGA compatible controller: b\n{}", "\tBus: secondary=00,".repeat(million / 4)),
        "\u{1b}[4m".repeat(million),
    ];
    for text in texts {
        let _ = import(&text, "x");
        for kind in Kind::ALL {
            let _ = import_as(kind, &text, "x");
        }
    }
}

#[test]
fn the_command_takes_any_kind_and_writes_xml() {
    let folder = tempfile::tempdir().unwrap();
    let rigscale = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_rigscale")).args(arguments).env("NO_COLOR", "1").output().unwrap()
    };
    let input = root().join("lspci-switch/input");
    let xml = folder.path().join("topology.xml");
    let output = rigscale(&["probe", "--json", "--from", input.to_str().unwrap(), "--nccl-xml", xml.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["topology"]["gpus"][0]["address"], "0000:05:00.0");
    let output = rigscale(&["probe", "--from", xml.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("PIX"), "{output:?}");

    let wrong = [("picture.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".as_slice()), ("empty", b"")];
    for (name, bytes) in wrong {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let output = rigscale(&["probe", "--from", path.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        for kind in [
            "rigscale capture",
            "topology.yaml",
            "NCCL",
            "lstopo",
            "lspci",
            "topo -m",
            "-p2p",
            "nvidia-smi -q",
            "collect_env",
        ] {
            assert!(said.contains(kind), "{said} lacks {kind}");
        }
    }
}

/// Texts about one machine become one: each fact from the first that tells it, GPUs by index in the order of the bus.
#[test]
fn several_texts_become_one_machine() {
    let (lspci, grid) = (imported("lspci-root"), imported("topo-m-2gpu"));
    let merged = lspci.merged(&grid).unwrap();
    let addresses: Vec<String> = merged.nvidia_gpus().map(|gpu| gpu.address.to_string()).collect();
    assert_eq!(addresses, ["0000:21:00.0", "0000:41:00.0"]);
    assert_eq!(merged.nvlinks, Some(vec![]), "of the grid");
    assert_eq!(merged.bridges, lspci.bridges, "of lspci");
    assert_eq!(merged.merged(&lspci).unwrap(), merged);
    assert_eq!(grid.merged(&lspci).unwrap().nvidia_gpus().count(), 2);
    assert!(lspci.merged(&imported("topo-m-8gpu")).is_none(), "nobody knows which of eight the two are");

    let report = format!("{}\n{}\n{}", text("lspci-root"), text("topo-m-2gpu"), text("env-5090"));
    assert_eq!(Kind::all_of(&report), [Kind::Lspci, Kind::TopoMatrix, Kind::EnvReport]);
    let (whole, remarks) = import_all(&report, "issue.txt").unwrap();
    assert_eq!((whole.nvidia_gpus().count(), remarks.len()), (2, 2), "{remarks:?}");
    assert!(remarks.iter().all(|remark| remark.ends_with("was added")), "{remarks:?}");
    assert_eq!(whole.software.nccl.as_ref().unwrap().to_string(), "2.25.1");
    assert!(judge(&whole).iter().any(|finding| finding.code == "nccl-too-old"));
    let (_, remarks) = import_all(&format!("{}\n{}", text("lspci-root"), text("topo-m-8gpu")), "x").unwrap();
    assert!(remarks[0].contains("left out: its GPUs are not those above"), "{remarks:?}");
}

#[test]
fn the_command_takes_several_files_about_one_machine() {
    let rigscale = |names: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rigscale"));
        command.args(["probe", "--json"]).env("NO_COLOR", "1");
        for name in names {
            command.arg("--from").arg(root().join(name).join("input"));
        }
        command.output().unwrap()
    };
    let output = rigscale(&["lspci-root", "topo-m-2gpu", "env-5090"]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["topology"]["software"]["nccl"], "2.25.1");
    assert_eq!(report["nccl"]["pairs"][0]["a"], "0000:21:00.0");
    let output = rigscale(&["lspci-root", "topo-m-8gpu"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("other GPUs"), "{output:?}");
}

#[test]
fn hwlocs_view_is_held_against_ours() {
    let ours = imported("lstopo-2socket");
    assert_eq!(view_differences(&ours, &ours), [""; 0]);
    let edits: [(&str, &str, &str); 2] = [
        ("0000:17:00.0", "0000:18:00.0", "0000:17:00.0 is not seen there"),
        ("os_index=\"1\"", "os_index=\"7\"", "NUMA"),
    ];
    for (from, to, expected) in edits {
        let theirs = import(&text("lstopo-2socket").replace(from, to), "x").unwrap();
        let found = view_differences(&ours, &theirs).join("\n");
        assert!(found.contains(expected), "{from} to {to}: {found}");
    }
}

/// As `scripts/fuzz`, with fixed seeds and for seconds: every kind of text, thousands of times cut, doubled and garbled.
#[test]
fn garbled_texts_of_every_kind_end_in_a_topology_or_an_error() {
    for (number, (_, text)) in (0_u64..).zip(texts()) {
        let kind = Kind::of(&text);
        let mut random = ChaCha8Rng::seed_from_u64(number);
        for _ in 0..30 {
            let garbled = garbled(&text, &mut random);
            holds(None, &garbled);
            holds(kind, &garbled);
            let _ = import_all(&garbled, "x");
        }
    }
}

/// As the target `merged` of `scripts/fuzz`: what one text tells and what another does that is garbled, made one machine.
#[test]
fn garbled_texts_merge_with_others_or_not_at_all() {
    let texts = texts();
    let mut merged = 0;
    for (number, (_, text)) in (0_u64..).zip(&texts) {
        let mut random = ChaCha8Rng::seed_from_u64(number);
        for (_, other) in &texts {
            let first = import(text, "x").unwrap();
            let Ok(second) = import(&garbled(other, &mut random), "x") else { continue };
            for (one, other) in [(&first, &second), (&second, &first)] {
                let Some(both) = one.merged(other) else { continue };
                topology_holds(&both);
                assert_eq!(both.merged(other).as_ref(), Some(&both), "what was added once adds nothing again");
                merged += 1;
            }
        }
    }
    assert!(100 < merged, "{merged} pairs were merged");
}

/// A text with a few places cut, doubled, overwritten, or ended.
fn garbled(text: &str, random: &mut ChaCha8Rng) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..random.random_range(1..12) {
        let (from, len) = (random.random_range(0..bytes.len()), random.random_range(1..64));
        let to = (from + len).min(bytes.len());
        match random.random_range(0..4) {
            0 => bytes[from] = random.random(),
            1 => drop(bytes.drain(from..to)),
            2 => bytes.splice(from..from, bytes[from..to].to_vec()).for_each(drop),
            _ => bytes.truncate(from.max(1)),
        }
        if bytes.is_empty() {
            break;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whatever an import ends with, it is a topology that survives its own files, or an error.
fn holds(kind: Option<Kind>, text: &str) {
    let read = match kind {
        Some(kind) => import_as(kind, text, "x"),
        None => import(text, "x"),
    };
    if let Ok(topology) = read {
        topology_holds(&topology);
    }
}

fn topology_holds(topology: &Topology) {
    let _ = (judge(topology), topology.identity(), topology.cores());
    let yaml = to_yaml(topology).unwrap();
    assert_eq!(&from_yaml(&yaml, "t.yaml").unwrap(), topology, "{yaml}");
    let written = to_nccl_xml(topology);
    if let Ok(read) = from_nccl_xml(&written, "x") {
        assert_eq!(from_nccl_xml(&to_nccl_xml(&read), "x").unwrap(), read, "{written}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, max_shrink_iters: 256, ..ProptestConfig::default() })]

    #[test]
    fn mutated_texts_never_panic(
        index in any::<prop::sample::Index>(),
        cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..3),
        flips in prop::collection::vec((any::<prop::sample::Index>(), "[0-9a-fxXGPU :,=<>/\"\\[\\]\n\t.é-]"), 0..8),
    ) {
        let texts = texts();
        let mut letters: Vec<char> = texts[index.index(texts.len())].1.chars().collect();
        for (from, to) in cuts {
            let (from, to) = (from.index(letters.len().max(1)), to.index(letters.len().max(1)));
            letters.drain(from.min(to)..from.max(to).min(from.min(to) + 200));
        }
        for (place, letter) in flips {
            let place = place.index(letters.len().max(1));
            letters[place] = letter.chars().next().unwrap();
        }
        holds(None, &letters.into_iter().collect::<String>());
    }

    #[test]
    fn swapped_lines_never_panic(
        index in any::<prop::sample::Index>(),
        swaps in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..6),
    ) {
        let texts = texts();
        let mut lines: Vec<&str> = texts[index.index(texts.len())].1.lines().collect();
        for (from, to) in swaps {
            let (from, to) = (from.index(lines.len()), to.index(lines.len()));
            lines[to] = lines[from];
        }
        holds(None, &lines.join("\n"));
    }

    #[test]
    fn any_text_as_any_kind_never_panics(kind in 0..Kind::ALL.len(), text in "(\\PC|[\n\t<>/=\"]|GPU[0-9]|NV[0-9]| : | X |[0-9a-f:.]{2,8}){0,60}") {
        holds(Some(Kind::ALL[kind]), &text);
        holds(None, &text);
    }
}
