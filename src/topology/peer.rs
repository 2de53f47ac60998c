//! What joins two GPUs besides PCIe paths: what the driver grants between them, and NVLinks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ClassCode, Fact, PciAddress, Reading};

/// What the driver says of one capability from one GPU to another. A grant is not delivery: only a verified transfer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// The GPU that would reach out.
    pub from: PciAddress,
    /// The GPU that would be reached.
    pub to: PciAddress,
    /// For what.
    #[serde(with = "Fact::<PeerCapability>")]
    pub capability: Reading<PeerCapability>,
    /// What the driver says.
    pub status: PeerStatus,
}

/// What one GPU may do to another: `nvmlGpuP2PCapsIndex_t`, and the letters of `nvidia-smi topo -p2p`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PeerCapability {
    /// `r`: read its memory.
    Read,
    /// `w`: write its memory.
    Write,
    /// `n`: reach it over NVLink.
    Nvlink,
    /// `a`: atomic operations on its memory.
    Atomics,
    /// `p`: reach it over PCIe.
    Pcie,
}

/// The answers of `nvmlDeviceGetP2PStatus` (`nvmlGpuP2PStatus_t`), with the abbreviations of `nvidia-smi topo -p2p`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PeerStatus {
    /// `OK`.
    Ok,
    /// `CNS`: the driver does not accept the chipset.
    ChipsetNotSupported,
    /// `GNS`: the driver refuses it for this GPU.
    GpuNotSupported,
    /// `TNS`: the GPUs hang off different I/O hubs.
    TopologyNotSupported,
    /// `DR`: a registry key switched it off.
    DisabledByRegistry,
    /// `NS`: not supported, for no stated reason.
    NotSupported,
    /// `U`: the driver does not know.
    Unknown,
}

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
