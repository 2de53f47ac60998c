//! Facts that the NVIDIA driver tells through NVML, by PCI address.

use nvml_wrapper::error::NvmlError;
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
