//! What a machine is: sockets, NUMA nodes, cores, PCIe bridges, links, GPUs and pairs of them.
//! Knows how these hang together and how they are written as YAML; hides sysfs spelling.
//! Never asks a machine anything.

mod address;
mod as_text;
mod condition;
mod cores;
mod cpuset;
mod gpu;
mod identity;
mod link;
mod machine;
mod merge;
mod names;
mod nccl_xml;
mod nvlink;
mod paths;
mod pcie;
mod place;
mod reading;
mod software;
mod spread;
mod throttle;
mod untold;
mod xml;
mod yaml;

pub use address::{NotAnAddress, PciAddress};
pub(crate) use as_text::as_text;
pub use condition::{ComputeMode, GpuCondition, PeerAccess, PeerStatus, ThrottleTimes};
pub use cores::Core;
pub use cpuset::{CpuSet, NotACpuSet};
pub use gpu::{Bridge, ClassCode, Gpu, GpuState, IommuDomain, Pair, PathClass, PciId, RootComplex};
pub use link::{Generation, Hop, Lanes, LinkEnd, Narrowest, Phase, Width};
pub use machine::{
    Container, ContainerKind, Cpu, CpuSignature, Iommu, IommuMode, Limit, MachineName, MemorySlot, NumaNode,
    NvidiaDriver, SCHEMA, Settings, Socket, System, Topology,
};
pub use nccl_xml::{from_nccl_xml, to_nccl_xml};
pub use nvlink::NvLink;
pub use pcie::{Acs, Aspm, Bar, CORRECTABLE_BITS, PcieState, UNCORRECTABLE_BITS};
pub use place::{WrongPlace, place_in};
pub use reading::{Fact, Missing, Reading, Why};
pub use software::{Software, Version};
pub use spread::shares_of;
pub use throttle::ThrottleReasons;
pub use xml::{XML_BYTES_MAX, Xml, XmlNode};
pub use yaml::{TopologyError, YAML_BYTES_MAX, from_yaml, parse_yaml, to_yaml};
