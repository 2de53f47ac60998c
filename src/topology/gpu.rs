//! GPUs, the bridges above them, and how two GPUs reach each other.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Bytes;

use super::{
    Bar, Fact, Generation, GpuCondition, LinkEnd, Missing, Narrowest, PciAddress, PcieState, Reading, Width, as_text,
    names,
};

/// PCI vendor and device numbers, as in `10de:2bb5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciId {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
}

impl PciId {
    /// What people call the device, where rigscale knows it.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        names::device(self)
    }

    /// What people call the vendor, where rigscale knows it.
    #[must_use]
    pub fn vendor_name(self) -> Option<&'static str> {
        names::vendor(self.vendor)
    }

    /// True for a bridge that hangs off the chipset, so that its GPU shares the chipset's uplink.
    #[must_use]
    pub fn is_chipset(self) -> bool {
        names::is_chipset(self)
    }

    /// True for an NVIDIA GPU whose window to its memory can be as large as the memory: Ampere and later, and the large
    /// cards for data centres before.
    #[must_use]
    pub fn has_wide_window(self) -> bool {
        names::has_wide_window(self)
    }

    /// True for an NVIDIA GPU of the Blackwell generation.
    #[must_use]
    pub fn is_blackwell(self) -> bool {
        names::is_blackwell(self)
    }
}

impl fmt::Display for PciId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&format!("{:04x}:{:04x}", self.vendor, self.device))
    }
}

impl FromStr for PciId {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| match digits.len() == 4 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            true => u16::from_str_radix(digits, 16).ok(),
            false => None,
        };
        let parsed = text.split_once(':').and_then(|(vendor, device)| Some((number(vendor)?, number(device)?)));
        match parsed {
            Some((vendor, device)) => Ok(Self { vendor, device }),
            None => Err(format!("`{text}` is no PCI id: expected vendor:device in hexadecimal, such as 10de:2bb5")),
        }
    }
}

/// PCI class, subclass and interface, as in `0x030200`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassCode(pub u32);

impl ClassCode {
    /// True for display and 3D controllers: base class 03.
    #[must_use]
    pub fn is_display(self) -> bool {
        self.0 >> 16 == 3
    }

    /// Some display controller, of which the subclass is not known.
    pub const DISPLAY: Self = Self(0x03_0000);
}

impl fmt::Display for ClassCode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&format!("{:#08x}", self.0))
    }
}

impl FromStr for ClassCode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("0x").filter(|digits| digits.len() == 6);
        let digits = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let code = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        code.map(Self).ok_or_else(|| format!("`{text}` is no PCI class: expected six hex digits, such as 0x030200"))
    }
}

/// The bus at which a root complex shows its ports, as in `0000:40`. GPUs below one root complex share a host bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootComplex {
    /// Domain (segment).
    pub domain: u32,
    /// Bus.
    pub bus: u8,
}

impl fmt::Display for RootComplex {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&format!("{:04x}:{:02x}", self.domain, self.bus))
    }
}

impl FromStr for RootComplex {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match format!("{text}:00.0").parse::<PciAddress>() {
            Ok(address) => Ok(Self { domain: address.domain, bus: address.bus }),
            Err(_) => Err(format!("`{text}` is no root complex: expected domain:bus in hexadecimal, such as 0000:40")),
        }
    }
}

as_text!(ClassCode, "^0x[0-9a-f]{6}$");
as_text!(PciId, "^[0-9a-f]{4}:[0-9a-f]{4}$");
as_text!(RootComplex, "^[0-9a-f]{4,8}:[0-9a-f]{2}$");

/// A bridge between a root complex and a GPU: a root port, or a port of a switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bridge {
    /// Where it is.
    pub address: PciAddress,
    /// The root complex above it.
    #[serde(with = "Fact::<RootComplex>")]
    pub root: Reading<RootComplex>,
    /// The bridge directly above it; none for a root port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<PciAddress>,
    /// Vendor and device.
    #[serde(with = "Fact::<PciId>")]
    pub id: Reading<PciId>,
    /// NUMA node.
    #[serde(with = "Fact::<u32>")]
    pub numa_node: Reading<u32>,
    /// Its end of a link: the one towards the device for a root port or a downstream port of a switch, the one
    /// towards the root complex for an upstream port.
    pub link: LinkEnd,
    /// What it tells beyond its link.
    #[serde(default = "PcieState::not_asked")]
    pub pcie: PcieState,
}

/// A display or 3D controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Where it is.
    pub address: PciAddress,
    /// The root complex above it.
    #[serde(with = "Fact::<RootComplex>")]
    pub root: Reading<RootComplex>,
    /// The bridge directly above it; none where it sits on the root complex itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<PciAddress>,
    /// Vendor and device.
    #[serde(with = "Fact::<PciId>")]
    pub id: Reading<PciId>,
    /// Class code: `0x030000` is VGA, `0x030200` a 3D controller.
    pub class: ClassCode,
    /// NUMA node.
    #[serde(with = "Fact::<u32>")]
    pub numa_node: Reading<u32>,
    /// Kernel driver that holds it: `nvidia`, `nouveau`, `vfio-pci`, …
    #[serde(with = "Fact::<String>")]
    pub driver: Reading<String>,
    /// Its isolation group.
    #[serde(with = "Fact::<u32>")]
    pub iommu_group: Reading<u32>,
    /// What the IOMMU does for that group.
    #[serde(with = "Fact::<IommuDomain>")]
    pub iommu_domain: Reading<IommuDomain>,
    /// Its end of the link.
    pub link: LinkEnd,
    /// What it tells beyond its link.
    #[serde(default = "PcieState::not_asked")]
    pub pcie: PcieState,
    /// The window to its memory: the largest region that is 64 bits wide and prefetchable, whatever its number.
    #[serde(default = "not_asked", with = "Fact::<Bar>")]
    pub frame_buffer: Reading<Bar>,
    /// The hop that limits its path. It follows from `bridges`; a file may leave it out.
    #[serde(default = "underived", with = "Fact::<Narrowest>")]
    pub narrowest: Reading<Narrowest>,
    /// What the NVIDIA driver says; none for a GPU of another vendor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvml: Option<GpuState>,
}

/// What stands in a derived field before it is derived.
fn underived<T>() -> Reading<T> {
    Err(Missing::new(super::Why::Absent, ""))
}

fn not_asked<T>() -> Reading<T> {
    Err(Missing::not_asked())
}

/// What an IOMMU group does with addresses: the kernel's words in `/sys/kernel/iommu_groups/*/type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IommuDomain {
    /// `identity`: addresses pass unchanged.
    Identity,
    /// `DMA`: translated, strict flushes.
    Dma,
    /// `DMA-FQ`: translated, flushes queued.
    DmaFq,
    /// Another driver, such as a virtual machine's, set its own.
    Other,
}

/// What the NVIDIA driver says about one GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GpuState {
    /// Product name.
    #[serde(with = "Fact::<String>")]
    pub name: Reading<String>,
    /// Memory.
    #[serde(with = "Fact::<Bytes>")]
    pub memory_bytes: Reading<Bytes>,
    /// Window through which others reach that memory.
    #[serde(with = "Fact::<Bytes>")]
    pub bar1_bytes: Reading<Bytes>,
    /// Compute capability, such as `12.0`.
    #[serde(with = "Fact::<String>")]
    pub compute_capability: Reading<String>,
    /// Version of its firmware.
    #[serde(with = "Fact::<String>")]
    pub vbios: Reading<String>,
    /// Power limit in force, in milliwatts as the driver counts.
    #[serde(with = "Fact::<u32>")]
    pub power_limit_mw: Reading<u32>,
    /// Power limit that it was sold with, in milliwatts.
    #[serde(with = "Fact::<u32>")]
    pub power_default_mw: Reading<u32>,
    /// Lowest power limit that it accepts, in milliwatts.
    #[serde(with = "Fact::<u32>")]
    pub power_min_mw: Reading<u32>,
    /// Highest power limit that it accepts, in milliwatts.
    #[serde(with = "Fact::<u32>")]
    pub power_max_mw: Reading<u32>,
    /// Generation in use, as the driver says.
    #[serde(with = "Fact::<Generation>")]
    pub gen_now: Reading<Generation>,
    /// Lanes in use, as the driver says.
    #[serde(with = "Fact::<Width>")]
    pub width_now: Reading<Width>,
    /// Highest generation of card and slot together.
    #[serde(with = "Fact::<Generation>")]
    pub gen_max: Reading<Generation>,
    /// Most lanes of card and slot together.
    #[serde(with = "Fact::<Width>")]
    pub width_max: Reading<Width>,
    /// Performance state: 0 is full speed, 15 deepest idle.
    #[serde(with = "Fact::<u32>")]
    pub performance_state: Reading<u32>,
    /// True when the driver keeps the GPU initialised between processes.
    #[serde(with = "Fact::<bool>")]
    pub persistence: Reading<bool>,
    /// True when the GPU is divided into instances.
    #[serde(with = "Fact::<bool>")]
    pub mig: Reading<bool>,
    /// The state that it is in.
    #[serde(default = "GpuCondition::not_asked")]
    pub condition: GpuCondition,
}

/// PCI vendor of NVIDIA.
const NVIDIA: u16 = 0x10de;

impl Gpu {
    /// True for a GPU made by NVIDIA: as its PCI id says or, where that is unknown, because only such a GPU has a state
    /// that the NVIDIA driver tells.
    #[must_use]
    pub fn is_nvidia(&self) -> bool {
        self.vendor() == Some(NVIDIA)
    }

    /// PCI vendor, where it is known.
    pub(super) fn vendor(&self) -> Option<u16> {
        match &self.id {
            Ok(id) => Some(id.vendor),
            Err(_) => self.nvml.as_ref().map(|_| NVIDIA),
        }
    }

    /// What people call it: as the driver says, else as the PCI id says, else the PCI id, else the index.
    #[must_use]
    pub fn name(&self) -> Cow<'_, str> {
        match (self.nvml.as_ref().map(|nvml| &nvml.name), &self.id) {
            (Some(Ok(name)), _) => name.into(),
            (_, Ok(id)) => id.name().map_or_else(|| id.to_string().into(), Into::into),
            (_, Err(_)) if self.address.is_index() => format!("GPU{}", self.address.bus).into(),
            (_, Err(_)) => "unknown GPU".into(),
        }
    }
}

/// How two GPUs reach each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// One GPU.
    pub a: PciAddress,
    /// The other; its address is the greater.
    pub b: PciAddress,
    /// What lies between them.
    #[serde(with = "Fact::<PathClass>")]
    pub path: Reading<PathClass>,
}

/// What lies between two GPUs, nearest first, in the words of `nvidia-smi topo -m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum PathClass {
    /// At most one PCIe switch.
    Pix,
    /// Several switches, but no host bridge.
    Pxb,
    /// One host bridge, typically a root complex of the CPU.
    Phb,
    /// Two host bridges of one NUMA node.
    Node,
    /// The interconnect between NUMA nodes.
    Sys,
}

impl fmt::Display for PathClass {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Pix => "PIX",
            Self::Pxb => "PXB",
            Self::Phb => "PHB",
            Self::Node => "NODE",
            Self::Sys => "SYS",
        })
    }
}
