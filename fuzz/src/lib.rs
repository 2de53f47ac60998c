//! What must hold of any text.

use rigscale::probe::import::{Kind, import, import_all, import_as};
use rigscale::probe::judge;
use rigscale::topology::{Topology, from_nccl_xml, from_yaml, to_nccl_xml, to_yaml};

/// Between the texts of one input: no tool prints it.
pub const BETWEEN: char = '\u{1e}';

/// Whatever an import ends with, it is a topology that survives its own files, or an error.
///
/// # Panics
/// It is neither.
pub fn import_holds(kind: Kind, text: &str) {
    let _ = import(text, "x");
    if let Ok(topology) = import_as(kind, text, "x") {
        topology_holds(&topology, text.len());
    }
}

/// As [`import_holds`], of all texts of an input made one machine, as `probe --from A --from B` does.
///
/// # Panics
/// It is neither.
pub fn merge_holds(texts: &str) {
    let mut imported = texts.split(BETWEEN).take(4).filter_map(|text| import_all(text, "x").ok());
    let Some((first, _)) = imported.next() else { return };
    topology_holds(&first, texts.len());
    let mut merged = first;
    for (next, _) in imported {
        let Some(both) = merged.merged(&next) else { continue };
        topology_holds(&both, texts.len());
        assert_eq!(both.merged(&next).as_ref(), Some(&both), "what was added once adds nothing again");
        merged = both;
    }
}

/// One text of so many, by its length, also goes through the files: they take twenty times as long as an import, and what
/// breaks them breaks them for many texts.
const THROUGH_FILES: usize = 8;

fn topology_holds(topology: &Topology, length: usize) {
    let _ = (judge(topology), topology.identity(), topology.cores());
    if !length.is_multiple_of(THROUGH_FILES) {
        return;
    }
    let yaml = to_yaml(topology).expect("a topology can be written");
    assert_eq!(&from_yaml(&yaml, "x").expect("what was written can be read"), topology, "{yaml}");
    if let Ok(read) = from_nccl_xml(&to_nccl_xml(topology), "x") {
        assert_eq!(from_nccl_xml(&to_nccl_xml(&read), "x").expect("XML that was written can be read"), read);
    }
}
