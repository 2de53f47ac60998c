//! The whole machine, but for its PCIe devices.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, IntoDeserializer, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::units::Bytes;

use super::{Bridge, CpuSet, Fact, Gpu, Missing, NvLink, Pair, PciAddress, PeerAccess, Reading, Software};

/// The schema of `topology.yaml` that this version writes. A newer one is refused by name. Schema 1 lacks `settings`,
/// `peers`, and of each device `pcie`, `frame_buffer` and `condition`, schema 2 `software`, memory modules and what else
/// came later: they read as never asked.
pub const SCHEMA: u32 = 3;

/// What a machine is. `topology.yaml` holds one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Schema of the file: [`SCHEMA`].
    pub schema: u32,
    /// Vendor, product, board, firmware.
    pub machine: MachineName,
    /// Operating system, kernel, memory, hypervisor.
    pub system: System,
    /// Processors.
    pub cpu: Cpu,
    /// NUMA nodes, ascending.
    #[serde(with = "Fact::<Vec<NumaNode>>")]
    pub numa: Reading<Vec<NumaNode>>,
    /// Address translation for devices.
    pub iommu: Iommu,
    /// Limits that a container or a service manager sets.
    pub container: Container,
    /// What the host is set to.
    #[serde(default = "Settings::not_asked")]
    pub settings: Settings,
    /// The NVIDIA driver.
    pub nvidia: NvidiaDriver,
    /// CUDA's libraries and what NCCL is told.
    #[serde(default = "Software::not_asked", skip_serializing_if = "Software::was_not_asked")]
    pub software: Software,
    /// PCI functions that the machine lists.
    #[serde(with = "Fact::<u32>")]
    pub pci_functions: Reading<u32>,
    /// PCI functions whose class could not be read: any of them may be a GPU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown_devices: Vec<PciAddress>,
    /// Bridges between a root complex and a GPU, by address.
    pub bridges: Vec<Bridge>,
    /// Display and 3D controllers (class 03xx), by address.
    pub gpus: Vec<Gpu>,
    /// Pairs of GPUs of one vendor and how they reach each other. They follow from `bridges`, `gpus` and `numa`;
    /// a file may leave them out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pairs: Vec<Pair>,
    /// What the NVIDIA driver grants each GPU to do to each other: ordered pairs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerAccess>,
    /// NVLinks; none where nobody asked, empty where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvlinks: Option<Vec<NvLink>>,
}

/// What the firmware calls the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineName {
    /// Who built the machine.
    #[serde(with = "Fact::<String>")]
    pub vendor: Reading<String>,
    /// Its product name.
    #[serde(with = "Fact::<String>")]
    pub product: Reading<String>,
    /// Who built the mainboard.
    #[serde(with = "Fact::<String>")]
    pub board_vendor: Reading<String>,
    /// The mainboard.
    #[serde(with = "Fact::<String>")]
    pub board: Reading<String>,
    /// Version of the firmware.
    #[serde(with = "Fact::<String>")]
    pub bios_version: Reading<String>,
    /// Date of the firmware, as it writes it.
    #[serde(with = "Fact::<String>")]
    pub bios_date: Reading<String>,
}

/// Operating system and what is below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct System {
    /// Name of the distribution.
    #[serde(with = "Fact::<String>")]
    pub os: Reading<String>,
    /// Kernel release.
    #[serde(with = "Fact::<String>")]
    pub kernel: Reading<String>,
    /// Kernel command line.
    #[serde(with = "Fact::<String>")]
    pub command_line: Reading<String>,
    /// Memory of the host.
    #[serde(with = "Fact::<Bytes>")]
    pub memory_bytes: Reading<Bytes>,
    /// The places for memory modules and what is in them.
    #[serde(default = "never", skip_serializing_if = "was_never", with = "Fact::<Vec<MemorySlot>>")]
    pub memory_slots: Reading<Vec<MemorySlot>>,
    /// True inside a virtual machine.
    #[serde(with = "Fact::<bool>")]
    pub virtual_machine: Reading<bool>,
}

/// One place for a memory module (SMBIOS 3.7, structure of type 17).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MemorySlot {
    /// What the board calls the place.
    pub slot: String,
    /// What it calls the channel or bank; empty where it does not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub channel: String,
    /// Size of the module; none where the place is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Bytes>,
    /// Its configured speed in mega-transfers per second, where it is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mega_transfers: Option<u32>,
}

fn never<T>() -> Reading<T> {
    Err(Missing::not_asked())
}

fn was_never<T>(reading: &Reading<T>) -> bool {
    reading.as_ref().is_err_and(|missing| *missing == Missing::not_asked())
}

/// The processors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// Model name.
    #[serde(with = "Fact::<String>")]
    pub model: Reading<String>,
    /// Logical CPUs that are online.
    #[serde(with = "Fact::<CpuSet>")]
    pub online: Reading<CpuSet>,
    /// Logical CPUs that this process may use.
    #[serde(with = "Fact::<CpuSet>")]
    pub allowed: Reading<CpuSet>,
    /// Sockets with their cores.
    #[serde(with = "Fact::<Vec<Socket>>")]
    pub sockets: Reading<Vec<Socket>>,
    /// The frequency governors in use, each once.
    #[serde(with = "Fact::<Vec<String>>")]
    pub governors: Reading<Vec<String>>,
    /// What drives the frequency: `acpi-cpufreq`, `amd-pstate-epp`, `intel_pstate`, …
    #[serde(with = "Fact::<String>")]
    pub frequency_driver: Reading<String>,
    /// Architecture and, on x86, what CPUID says of the first processor; none where not all of it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<CpuSignature>,
}

/// What kind of processor it is, in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CpuSignature {
    /// `x86_64`, `arm64` or `ppc64`.
    pub arch: String,
    /// Vendor as CPUID spells it: `GenuineIntel`, `AuthenticAMD`, …; none on other architectures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// Family as Linux counts (base and extended family added): 23 is Zen 2, 25 Zen 3 and 4, 26 Zen 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<u32>,
    /// Model as Linux counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<u32>,
}

/// One socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Socket {
    /// Number of the package, as the kernel counts.
    pub socket: u32,
    /// The online logical CPUs of each core: SMT siblings together.
    pub cores: Vec<CpuSet>,
}

impl Topology {
    /// The NUMA nodes that are known, ascending.
    #[must_use]
    pub fn nodes(&self) -> &[NumaNode] {
        self.numa.as_deref().unwrap_or_default()
    }
}

/// One NUMA node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NumaNode {
    /// Number of the node.
    pub node: u32,
    /// Its online logical CPUs; empty for memory without CPUs.
    #[serde(with = "Fact::<CpuSet>")]
    pub cpus: Reading<CpuSet>,
    /// Its memory.
    #[serde(with = "Fact::<Bytes>")]
    pub memory_bytes: Reading<Bytes>,
    /// Relative distance to each node in the order of the list; 10 is the node itself (ACPI SLIT).
    #[serde(with = "Fact::<Vec<u32>>")]
    pub distances: Reading<Vec<u32>>,
}

/// Address translation for devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Iommu {
    /// What it does for GPUs, or for the first group where there is no GPU.
    #[serde(with = "Fact::<IommuMode>")]
    pub mode: Reading<IommuMode>,
    /// The translation units: `dmar0`, `ivhd0`, …
    #[serde(with = "Fact::<Vec<String>>")]
    pub units: Reading<Vec<String>>,
    /// How many isolation groups.
    #[serde(with = "Fact::<u32>")]
    pub groups: Reading<u32>,
}

/// What the IOMMU does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IommuMode {
    /// There is none, or it is switched off.
    Off,
    /// Device addresses are memory addresses (`iommu=pt`).
    Passthrough,
    /// Each address is translated.
    Translating,
}

impl fmt::Display for IommuMode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Off => "off",
            Self::Passthrough => "passthrough",
            Self::Translating => "translating",
        })
    }
}

/// What the host is set to, and who asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// True when root asked, who may read all of configuration space.
    #[serde(with = "Fact::<bool>")]
    pub root: Reading<bool>,
    /// Seconds since the machine started: the time over which errors were counted.
    #[serde(with = "Fact::<u64>")]
    pub uptime_s: Reading<u64>,
    /// True when the kernel moves memory between NUMA nodes on its own.
    #[serde(with = "Fact::<bool>")]
    pub numa_balancing: Reading<bool>,
    /// The settings of NCCL for every program, `NAME=VALUE` each: `/etc/nccl.conf`.
    #[serde(with = "Fact::<Vec<String>>")]
    pub nccl_conf: Reading<Vec<String>>,
    /// True where NCCL finds a topology that a hypervisor made up.
    #[serde(with = "Fact::<bool>")]
    pub virtual_topology: Reading<bool>,
}

impl Settings {
    /// Of a file that is older than the questions.
    #[must_use]
    pub fn not_asked() -> Self {
        Self::unknown(&Missing::not_asked())
    }

    /// Nothing is known, for one reason.
    #[must_use]
    pub fn unknown(why: &Missing) -> Self {
        Self {
            root: Err(why.clone()),
            uptime_s: Err(why.clone()),
            numa_balancing: Err(why.clone()),
            nccl_conf: Err(why.clone()),
            virtual_topology: Err(why.clone()),
        }
    }
}

/// Limits that a container or a service manager sets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// The kind of container, as its runtime marks it.
    #[serde(with = "Fact::<ContainerKind>")]
    pub kind: Reading<ContainerKind>,
    /// Size of `/dev/shm`.
    #[serde(with = "Fact::<Bytes>")]
    pub shm_bytes: Reading<Bytes>,
    /// Memory that a process may lock.
    #[serde(with = "Fact::<Limit<Bytes>>")]
    pub memlock_bytes: Reading<Limit<Bytes>>,
    /// CPU time per wall time that this process and its siblings may use, in CPUs.
    #[serde(with = "Fact::<Limit<f64>>")]
    pub cpu_quota: Reading<Limit<f64>>,
}

/// The container runtimes that leave a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ContainerKind {
    /// No runtime left its mark.
    None,
    /// Kubernetes: `/run/secrets/kubernetes.io`.
    Kubernetes,
    /// Docker: `/.dockerenv`.
    Docker,
    /// Podman and its kin: `/run/.containerenv`.
    Podman,
    /// Another, named in `/run/systemd/container`.
    Other,
}

impl fmt::Display for ContainerKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::None => "none",
            Self::Kubernetes => "Kubernetes",
            Self::Docker => "Docker",
            Self::Podman => "Podman",
            Self::Other => "other",
        })
    }
}

/// A limit, or the word `unlimited`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub enum Limit<T> {
    /// At most so much.
    AtMost(T),
    /// No limit.
    Unlimited,
}

impl<T: fmt::Display> fmt::Display for Limit<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => most.fmt(out),
            Self::Unlimited => out.pad("unlimited"),
        }
    }
}

impl<T: Serialize> Serialize for Limit<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::AtMost(most) => most.serialize(serializer),
            Self::Unlimited => serializer.serialize_str("unlimited"),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Limit<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = Limit<T>;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a number or `unlimited`")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Limit<T>, E> {
                T::deserialize(number.into_deserializer()).map(Limit::AtMost)
            }
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Limit<T>, E> {
                T::deserialize(number.into_deserializer()).map(Limit::AtMost)
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<Limit<T>, E> {
                match word {
                    "unlimited" => Ok(Limit::Unlimited),
                    _ => Err(E::invalid_value(de::Unexpected::Str(word), &self)),
                }
            }
        }
        deserializer.deserialize_any(Either(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Limit<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("Limit_of_{}", T::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [generator.subschema_for::<T>(), { "const": "unlimited" }] })
    }
}

/// The NVIDIA driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NvidiaDriver {
    /// What the loaded kernel module says of itself: open or proprietary, version.
    #[serde(with = "Fact::<String>")]
    pub kernel_module: Reading<String>,
    /// Version that NVML reports.
    #[serde(with = "Fact::<String>")]
    pub version: Reading<String>,
    /// Newest CUDA version that the driver serves, such as `13.2`.
    #[serde(with = "Fact::<String>")]
    pub cuda: Reading<String>,
}

impl NvidiaDriver {
    /// True for the open kernel module, false for the proprietary one (the first line of `/proc/driver/nvidia/version`).
    ///
    /// # Errors
    /// No module is loaded, or it does not say.
    pub fn open_module(&self) -> Reading<bool> {
        self.kernel_module.clone().map(|text| text.contains("Open Kernel Module"))
    }
}
