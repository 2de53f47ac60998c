//! NVLinks, which join GPUs besides PCIe paths.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ClassCode, Fact, PciAddress, PeerStatus, Reading, Topology};

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

impl Topology {
    /// True where two GPUs are joined by NVLink, as far as anyone told: by the list of links, or by the driver's grant
    /// over NVLink in either direction.
    #[must_use]
    pub fn is_bridged(&self, a: PciAddress, b: PciAddress) -> bool {
        self.nvlinks_between(a, b).is_some()
            || self
                .peers
                .iter()
                .any(|peer| peer.nvlink == Ok(PeerStatus::Ok) && [(a, b), (b, a)].contains(&(peer.from, peer.to)))
    }

    /// How many NVLinks join two GPUs, where the links are listed one by one.
    #[must_use]
    pub fn nvlinks_between(&self, a: PciAddress, b: PciAddress) -> Option<u32> {
        let between = |link: &&NvLink| {
            let target = link.target.as_ref().ok().copied();
            (link.gpu, target) == (a, Some(b)) || (link.gpu, target) == (b, Some(a))
        };
        self.nvlinks.iter().flatten().find(between).map(|link| link.count)
    }
}
