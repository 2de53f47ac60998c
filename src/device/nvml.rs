//! Facts that the NVIDIA driver tells through NVML, by PCI address.

use nvml_wrapper::enum_wrappers::device::{
    ComputeMode, EccCounter, MemoryError, P2pCapabilitiesIndex as Capability, P2pStatus,
};
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::{Device, cuda_driver_version_major, cuda_driver_version_minor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::topology::{Missing, PciAddress, Reading, Why};

/// NVML, loaded and initialised. Nothing here needs unsafe code: `nvml-wrapper` checks symbols and return codes.
#[derive(Debug)]
pub struct Nvml(pub(super) nvml_wrapper::Nvml);

/// A fact about the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DriverFact {
    /// Version of the driver.
    Version,
    /// Newest CUDA version that it serves, `major.minor`.
    Cuda,
}

/// A fact about one GPU. Numbers are answered in decimal, switches as `true` or `false`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GpuFact {
    /// Product name.
    Name,
    /// Memory in bytes.
    MemoryBytes,
    /// Window to that memory in bytes.
    Bar1Bytes,
    /// Compute capability, `major.minor`.
    ComputeCapability,
    /// Version of its firmware.
    Vbios,
    /// Power limit in force, in milliwatts.
    PowerLimitMw,
    /// Power limit as sold, in milliwatts.
    PowerDefaultMw,
    /// Lowest power limit, in milliwatts.
    PowerMinMw,
    /// Highest power limit, in milliwatts.
    PowerMaxMw,
    /// PCIe generation in use.
    GenNow,
    /// PCIe lanes in use.
    WidthNow,
    /// Highest PCIe generation of card and slot together.
    GenMax,
    /// Most PCIe lanes of card and slot together.
    WidthMax,
    /// Performance state, 0 to 15.
    PerformanceState,
    /// Whether the driver keeps the GPU initialised between processes.
    Persistence,
    /// Whether the GPU is divided into instances.
    Mig,
    /// Why the clocks are held: NVML's set of bits.
    Throttle,
    /// Whether memory errors are corrected (ECC).
    Ecc,
    /// Whether they will be after the next restart.
    EccNext,
    /// Memory errors that could not be corrected, since the driver was loaded.
    EccUncorrected,
    /// Memory rows replaced after errors that were corrected.
    RowsCorrected,
    /// Memory rows replaced after errors that were not.
    RowsUncorrected,
    /// Whether a row waits for the next reset to be replaced.
    RowsPending,
    /// Whether a row could not be replaced.
    RowsFailed,
    /// Who may compute: `default`, `exclusive_thread`, `exclusive_process` or `prohibited`.
    ComputeMode,
    /// Processes that compute on it.
    ComputeProcesses,
    /// Whether it drives a display.
    DisplayActive,
    /// Packets that the link sent again since the driver was loaded; wraps around.
    PcieReplays,
    /// NVLinks that are up.
    NvlinksUp,
    /// NVLinks that are down.
    NvlinksDown,
    /// Microseconds at the power limit since the driver was loaded.
    PowerCapUs,
    /// Microseconds of slow-down by heat as the driver decides.
    ThermalUs,
    /// Microseconds of slow-down by heat as the card decides.
    HardwareThermalUs,
    /// Microseconds of power brake.
    PowerBrakeUs,
    /// Instances that it is divided into (MIG).
    MigInstances,
}

/// What one GPU may do to the memory of another: NVML's `nvmlGpuP2PCapsIndex_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PeerFact {
    /// Read it.
    Read,
    /// Write it.
    Write,
    /// Work on it in one step that nothing can part.
    Atomics,
    /// Any of these over NVLink.
    Nvlink,
    /// Reach it at all, as CUDA answers (`cuDeviceCanAccessPeer`): `true` or `false`.
    Cuda,
}

impl Nvml {
    /// Loads `libnvidia-ml.so.1` and initialises it.
    ///
    /// # Errors
    /// Absent without the library or the driver; otherwise as the library says.
    pub fn open() -> Reading<Self> {
        let library = std::ffi::OsStr::new("libnvidia-ml.so.1");
        nvml_wrapper::Nvml::builder().lib_path(library).init().map(Self).map_err(missing)
    }

    /// Asks about the driver.
    ///
    /// # Errors
    /// As the driver says.
    pub fn driver(&self, fact: DriverFact) -> Reading<String> {
        let answer = match fact {
            DriverFact::Version => self.0.sys_driver_version(),
            DriverFact::Cuda => self.0.sys_cuda_driver_version().map(|version| {
                format!("{}.{}", cuda_driver_version_major(version), cuda_driver_version_minor(version))
            }),
        };
        answer.map_err(missing)
    }

    /// Asks about the GPU at `address`.
    ///
    /// # Errors
    /// Absent where the driver shows no such GPU to this process; otherwise as the driver says.
    pub fn gpu(&self, address: PciAddress, fact: GpuFact) -> Reading<String> {
        let gpu = self.0.device_by_pci_bus_id(address.to_string()).map_err(missing)?;
        ask(&gpu, fact).map_err(missing)
    }

    /// Asks what the driver grants the GPU `from` to do to the memory of the GPU `to`: `ok`, or why not, as
    /// `nvmlGpuP2PStatus_t` says. A grant is no proof that data arrive.
    ///
    /// # Errors
    /// Absent where the driver shows one of the GPUs not to this process; otherwise as the driver says.
    pub fn peer(&self, from: PciAddress, to: PciAddress, fact: PeerFact) -> Reading<String> {
        let gpu = |address: PciAddress| self.0.device_by_pci_bus_id(address.to_string()).map_err(missing);
        let index = match fact {
            PeerFact::Read => Capability::Read,
            PeerFact::Write => Capability::Write,
            PeerFact::Atomics => Capability::Atomics,
            PeerFact::Nvlink => Capability::NvLink,
            PeerFact::Cuda => return Err(Missing::new(Why::Unsupported, "no question for NVML")),
        };
        let status = gpu(from)?.p2p_status(&gpu(to)?, index).map_err(missing)?;
        Ok(match status {
            P2pStatus::Ok => "ok",
            P2pStatus::ChipsetNotSupported => "chipset_not_supported",
            P2pStatus::GpuNotSupported => "gpu_not_supported",
            P2pStatus::IohTopologyNotSupported => "topology_not_supported",
            P2pStatus::DisabledByRegkey => "disabled_by_registry",
            P2pStatus::NotSupported => "not_supported",
            P2pStatus::Unknown => "unknown",
        }
        .to_owned())
    }
}

/// Fields of NVML that no function of its own tells (nvml.h, `NVML_FI_DEV_REMAPPED_COR` and the three after it).
const ROWS_CORRECTED: u32 = 142;
const ROWS_UNCORRECTED: u32 = 143;
const ROWS_PENDING: u32 = 144;
const ROWS_FAILED: u32 = 145;
/// Nanoseconds of held clocks (nvml.h, `NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP` and its kin).
const POWER_CAP_NS: u32 = 74;
const THERMAL_NS: u32 = 251;
const HARDWARE_THERMAL_NS: u32 = 252;
const POWER_BRAKE_NS: u32 = 253;
/// More NVLinks than any GPU has (nvml.h, `NVML_NVLINK_MAX_LINKS`).
const NVLINKS_MAX: u32 = 18;

/// The number in a field.
fn field(gpu: &Device<'_>, field: u32) -> Result<u64, NvmlError> {
    let sample = gpu.field_values_for(&[FieldId(field)])?.into_iter().next().ok_or(NvmlError::NoData)??;
    match sample.value? {
        SampleValue::U32(number) => Ok(number.into()),
        SampleValue::U64(number) => Ok(number),
        SampleValue::I64(_) | SampleValue::F64(_) => Err(NvmlError::Unknown),
    }
}

/// How many NVLinks are up, or down. A GPU without any does not offer the question.
fn nvlinks(gpu: &Device<'_>, up: bool) -> Result<u32, NvmlError> {
    let mut count = 0;
    for link in 0..NVLINKS_MAX {
        match gpu.link_wrapper_for(link).is_active() {
            Ok(active) => count += u32::from(active == up),
            Err(NvmlError::NotSupported | NvmlError::InvalidArg) if 0 < link => break,
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// How many instances there are. A GPU that cannot be divided does not offer the question.
fn mig_instances(gpu: &Device<'_>) -> Result<u32, NvmlError> {
    let mut count = 0;
    for index in 0..gpu.mig_device_count()? {
        match gpu.mig_device_by_index(index) {
            Ok(_) => count += 1,
            Err(NvmlError::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

fn ask(gpu: &Device<'_>, fact: GpuFact) -> Result<String, NvmlError> {
    Ok(match fact {
        GpuFact::Name => gpu.name()?,
        GpuFact::MemoryBytes => gpu.memory_info()?.total.to_string(),
        GpuFact::Bar1Bytes => gpu.bar1_memory_info()?.total.to_string(),
        GpuFact::ComputeCapability => {
            let capability = gpu.cuda_compute_capability()?;
            format!("{}.{}", capability.major, capability.minor)
        }
        GpuFact::Vbios => gpu.vbios_version()?,
        GpuFact::PowerLimitMw => gpu.power_management_limit()?.to_string(),
        GpuFact::PowerDefaultMw => gpu.power_management_limit_default()?.to_string(),
        GpuFact::PowerMinMw => gpu.power_management_limit_constraints()?.min_limit.to_string(),
        GpuFact::PowerMaxMw => gpu.power_management_limit_constraints()?.max_limit.to_string(),
        GpuFact::GenNow => gpu.current_pcie_link_gen()?.to_string(),
        GpuFact::WidthNow => gpu.current_pcie_link_width()?.to_string(),
        GpuFact::GenMax => gpu.max_pcie_link_gen()?.to_string(),
        GpuFact::WidthMax => gpu.max_pcie_link_width()?.to_string(),
        GpuFact::PerformanceState => gpu.performance_state()?.as_c().to_string(),
        GpuFact::Persistence => gpu.is_in_persistent_mode()?.to_string(),
        GpuFact::Mig => (gpu.mig_mode()?.current == 1).to_string(),
        GpuFact::Throttle => super::gpu_sample::throttle_bits(gpu)?.to_string(),
        GpuFact::Ecc => gpu.is_ecc_enabled()?.currently_enabled.to_string(),
        GpuFact::EccNext => gpu.is_ecc_enabled()?.pending_enabled.to_string(),
        GpuFact::EccUncorrected => gpu.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile)?.to_string(),
        GpuFact::RowsCorrected => field(gpu, ROWS_CORRECTED)?.to_string(),
        GpuFact::RowsUncorrected => field(gpu, ROWS_UNCORRECTED)?.to_string(),
        GpuFact::RowsPending => (field(gpu, ROWS_PENDING)? != 0).to_string(),
        GpuFact::RowsFailed => (field(gpu, ROWS_FAILED)? != 0).to_string(),
        GpuFact::ComputeMode => match gpu.compute_mode()? {
            ComputeMode::Default => "default",
            ComputeMode::ExclusiveThread => "exclusive_thread",
            ComputeMode::ExclusiveProcess => "exclusive_process",
            ComputeMode::Prohibited => "prohibited",
        }
        .to_owned(),
        GpuFact::ComputeProcesses => gpu.running_compute_processes_count()?.to_string(),
        GpuFact::DisplayActive => gpu.is_display_active()?.to_string(),
        GpuFact::PcieReplays => gpu.pcie_replay_counter()?.to_string(),
        GpuFact::NvlinksUp => nvlinks(gpu, true)?.to_string(),
        GpuFact::NvlinksDown => nvlinks(gpu, false)?.to_string(),
        GpuFact::PowerCapUs => (field(gpu, POWER_CAP_NS)? / 1000).to_string(),
        GpuFact::ThermalUs => (field(gpu, THERMAL_NS)? / 1000).to_string(),
        GpuFact::HardwareThermalUs => (field(gpu, HARDWARE_THERMAL_NS)? / 1000).to_string(),
        GpuFact::PowerBrakeUs => (field(gpu, POWER_BRAKE_NS)? / 1000).to_string(),
        GpuFact::MigInstances => mig_instances(gpu)?.to_string(),
    })
}

/// What an error of NVML means for a fact. The text keeps the library's own words.
pub(super) fn missing(error: NvmlError) -> Missing {
    let why = match error {
        NvmlError::LibloadingError(_)
        | NvmlError::LibraryNotFound
        | NvmlError::DriverNotLoaded
        | NvmlError::NotFound
        | NvmlError::NoData => Why::Absent,
        NvmlError::NoPermission | NvmlError::OperatingSystem => Why::Denied,
        NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound => Why::Unsupported,
        _ => Why::Garbled,
    };
    match error {
        // The reason is the error's source: a path of the loader, which says nothing about the GPU.
        NvmlError::LibloadingError(_) => Missing::new(why, "NVML: libnvidia-ml.so.1 cannot be loaded"),
        _ => Missing::new(why, format!("NVML: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_library_become_reasons() {
        assert_eq!(missing(NvmlError::NotSupported).why, Why::Unsupported);
        assert_eq!(missing(NvmlError::DriverNotLoaded).why, Why::Absent);
        assert_eq!(missing(NvmlError::NoPermission).why, Why::Denied);
        assert_eq!(missing(NvmlError::GpuLost).why, Why::Garbled);
    }

    #[test]
    #[ignore = "needs 1 GPU"]
    fn a_driver_tells_its_version() {
        let version = Nvml::open().unwrap().driver(DriverFact::Version).unwrap();
        assert!(version.contains('.'), "{version}");
    }
}
