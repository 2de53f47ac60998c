//! NVLinks, which join GPUs besides PCIe paths.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ClassCode, Fact, PciAddress, Reading};

/// NVLinks from a GPU to one neighbour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NvLink {
    /// The GPU.
    pub gpu: PciAddress,
    /// The other end: a GPU, an NVSwitch or a processor.
    #[serde(with = "Fact::<PciAddress>")]
    pub target: Reading<PciAddress>,
    /// How many links.
    pub count: u32,
    /// Class of the other end: `0x0302xx` a GPU, `0x0680xx` a switch or a processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_class: Option<ClassCode>,
}
