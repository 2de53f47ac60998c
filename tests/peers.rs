//! Other people's tools beside ours: what they say of this machine, and that the peers of the benchmark run.
#![expect(clippy::unwrap_used, reason = "a test fails where its machine does")]

use std::process::Command;

use rigscale::topology::from_yaml;

/// How many objects of a kind hwloc's XML holds.
fn objects(xml: &str, kind: &str) -> usize {
    xml.matches(&format!("<object type=\"{kind}\"")).count()
}

#[test]
#[ignore = "needs hwloc"]
fn cores_nodes_and_pci_bridges_are_those_that_hwloc_sees() {
    let hwloc = Command::new("lstopo-no-graphics").args(["--of", "xml", "--whole-io"]).output().unwrap();
    let xml = String::from_utf8(hwloc.stdout).unwrap();
    assert!(objects(&xml, "PU") > 0, "{xml}");
    let folder = tempfile::tempdir().unwrap();
    let mut probe = Command::new(env!("CARGO_BIN_EXE_rigscale"));
    let probed = probe.args(["probe", "--quiet", "-o"]).arg(folder.path().join("machine")).output().unwrap();
    assert!(probed.status.success(), "{}", String::from_utf8_lossy(&probed.stderr));
    let path = folder.path().join("machine/topology.yaml");
    let topology = from_yaml(&std::fs::read_to_string(&path).unwrap(), "topology.yaml").unwrap();
    let cores = topology.cores();
    assert_eq!(cores.len(), objects(&xml, "Core"));
    assert_eq!(cores.iter().map(|core| core.cpus.len()).sum::<usize>(), objects(&xml, "PU"));
    assert_eq!(topology.nodes().len(), objects(&xml, "NUMANode"));
    assert_eq!(topology.pci_functions.unwrap() as usize, objects(&xml, "PCIDev") + pci_bridges(&xml));
}

/// hwloc calls host bridges bridges too; only those with a bus id are PCI functions.
fn pci_bridges(xml: &str) -> usize {
    let bridges = xml.split("<object type=\"Bridge\"").skip(1);
    bridges.filter(|bridge| bridge.split('>').next().unwrap().contains("pci_busid")).count()
}

#[test]
#[ignore = "needs Open MPI"]
fn the_all_reduce_peer_runs_and_says_how_long_it_took() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("mpi_allreduce");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/peers/mpi_allreduce.c");
    let compiled = Command::new("mpicc").args(["-O2", "-o"]).arg(&program).arg(source).status().unwrap();
    assert!(compiled.success());
    let run = Command::new("mpirun")
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .args(["--oversubscribe", "-np", "2"])
        .arg(&program)
        .arg("4096")
        .output()
        .unwrap();
    let line = String::from_utf8(run.stdout).unwrap();
    let row: serde_json::Value = serde_json::from_str(line.trim()).unwrap();
    assert_eq!(row["bytes"], 4096);
    assert!(row["seconds_median"].as_f64().unwrap() > 0.0, "{row}");
}
