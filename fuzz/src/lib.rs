//! What must hold of any text.

use rigscale::probe::import::{Kind, import, import_as};
use rigscale::probe::judge;
use rigscale::topology::{from_nccl_xml, from_yaml, to_nccl_xml, to_yaml};

/// Whatever an import ends with, it is a topology that survives its own files, or an error.
///
/// # Panics
/// It is neither.
pub fn import_holds(kind: Kind, text: &str) {
    let _ = import(text, "x");
    let Ok(topology) = import_as(kind, text, "x") else { return };
    let _ = (judge(&topology), topology.identity(), topology.cores());
    let yaml = to_yaml(&topology).expect("a topology can be written");
    assert_eq!(from_yaml(&yaml, "x").expect("what was written can be read"), topology, "{yaml}");
    if let Ok(read) = from_nccl_xml(&to_nccl_xml(&topology), "x") {
        assert_eq!(from_nccl_xml(&to_nccl_xml(&read), "x").expect("XML that was written can be read"), read);
    }
}
