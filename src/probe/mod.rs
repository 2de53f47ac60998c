//! Asks a machine through a closed set of read-only questions, makes a topology of the answers and judges it.
//! Knows sysfs, procfs and NVML facts; hides where each comes from.
//! Never changes anything on the machine, and never takes a missing answer for "off" or "fine".

mod acceptance;
mod ask;
mod capture;
mod captured;
mod condition;
mod config;
mod expect;
mod host;
pub mod import;
mod live;
mod memory;
mod pci;
mod question;
mod redact;
mod rules;
mod transport;
mod views;

pub use acceptance::{ACCEPTANCE_SCHEMA, Acceptance, AcceptedGpu, accepted, parse_acceptance};
pub use capture::{CAPTURE_SCHEMA, RecordError, Recorder, capture_schema};
pub use captured::{CAPTURE_BYTES_MAX, CaptureError, Captured, WrongLine};
pub use expect::{EXPECTATIONS, Expectation, differences};
pub use live::Live;
pub use question::{Answer, AskError, CgroupFile, HostFact, Machine, Question, Value};
pub use redact::Redactor;
pub use rules::{Breach, Lost, RULES, Rule, judge, unjudged};
pub use transport::{Carrier, NcclSetting, Predicted, SetIn, nccl_setting, nccl_settings, transports};
pub use views::view_differences;

use crate::topology::{self, Topology};

/// Why a probe ended without a topology. A fact that is missing is never a reason.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum ProbeError {
    /// The machine could not be asked.
    #[error("the machine could not be asked")]
    Ask(#[from] AskError),
    /// The machine lists more devices than any has.
    #[error("the machine lists {found} {what}: at most {most} are read")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many.
        found: usize,
        /// The limit.
        most: usize,
    },
}

/// Asks `machine` everything and makes a topology of the answers. A missing answer becomes a missing fact.
///
/// # Errors
/// A capture was never asked what this version asks, or the machine lists more devices than any has.
pub fn probe(machine: &dyn Machine) -> Result<Topology, ProbeError> {
    let numa = host::numa(machine)?;
    let tree = pci::tree(machine, numa.as_deref().unwrap_or_default())?;
    let topology = Topology {
        schema: topology::SCHEMA,
        machine: host::name(machine)?,
        system: host::system(machine)?,
        cpu: host::cpu(machine)?,
        iommu: pci::iommu(machine, &tree.gpus)?,
        container: host::container(machine)?,
        settings: host::settings(machine)?,
        nvidia: pci::nvidia_driver(machine, &tree.gpus)?,
        software: host::software(machine, tree.gpus.iter().any(topology::Gpu::is_nvidia))?,
        peers: condition::peers(machine, &tree.gpus)?,
        pci_functions: tree.functions,
        unknown_devices: tree.unknown,
        bridges: tree.bridges,
        gpus: tree.gpus,
        numa,
        pairs: Vec::new(),
        nvlinks: None,
    };
    Ok(topology.derived())
}
