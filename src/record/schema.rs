//! The JSON schema of every record, generated from the types. `schemas/` holds them; a test holds them true.

use schemars::{Schema, schema_for};

use crate::topology::Topology;

use super::{Analysis, Findings, GpuLine, Line, LinkLine, Manifest, Plan, TuneLine, TuneResult};

/// Name (of the file under `schemas/`) and JSON schema of each record.
#[must_use]
pub fn schemas() -> Vec<(&'static str, Schema)> {
    vec![
        ("analysis", schema_for!(Analysis)),
        ("findings", schema_for!(Findings)),
        ("gpu-line", schema_for!(GpuLine)),
        ("link-line", schema_for!(LinkLine)),
        ("manifest", schema_for!(Manifest)),
        ("plan", schema_for!(Plan)),
        ("rank-line", schema_for!(Line)),
        ("topology", schema_for!(Topology)),
        ("tune", schema_for!(TuneResult)),
        ("tune-line", schema_for!(TuneLine)),
    ]
}
