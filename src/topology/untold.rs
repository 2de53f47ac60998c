//! A topology of which nothing is told yet: what an imported text begins with. Every fact is missing, and says in which
//! kind of text it is not.

use super::{
    Bridge, ClassCode, Container, Cpu, Gpu, GpuCondition, GpuState, Iommu, LinkEnd, MachineName, Missing, NvidiaDriver,
    PciAddress, PcieState, Phase, Reading, SCHEMA, Settings, Software, System, Topology, Why,
};

fn none<T>(kind: &str) -> Reading<T> {
    Err(Missing::untold(kind))
}

impl Topology {
    /// A machine of which a text of this kind has told nothing.
    #[must_use]
    pub fn untold(kind: &str) -> Self {
        Self {
            schema: SCHEMA,
            machine: MachineName {
                vendor: none(kind),
                product: none(kind),
                board_vendor: none(kind),
                board: none(kind),
                bios_version: none(kind),
                bios_date: none(kind),
            },
            system: System {
                os: none(kind),
                kernel: none(kind),
                command_line: none(kind),
                memory_bytes: none(kind),
                memory_slots: none(kind),
                virtual_machine: none(kind),
            },
            cpu: Cpu {
                model: none(kind),
                online: none(kind),
                allowed: none(kind),
                sockets: none(kind),
                governors: none(kind),
                frequency_driver: none(kind),
                signature: None,
            },
            numa: none(kind),
            iommu: Iommu { mode: none(kind), units: none(kind), groups: none(kind) },
            container: Container {
                kind: none(kind),
                shm_bytes: none(kind),
                memlock_bytes: none(kind),
                cpu_quota: none(kind),
            },
            settings: Settings::unknown(&Missing::untold(kind)),
            nvidia: NvidiaDriver { kernel_module: none(kind), version: none(kind), cuda: none(kind) },
            software: Software::unknown(&Missing::untold(kind)),
            pci_functions: none(kind),
            unknown_devices: Vec::new(),
            bridges: Vec::new(),
            gpus: Vec::new(),
            pairs: Vec::new(),
            peers: Vec::new(),
            nvlinks: None,
        }
    }
}

impl LinkEnd {
    /// An end of a link of which nothing is told.
    #[must_use]
    pub fn untold(kind: &str) -> Self {
        let (gen_now, width_now, gen_max, width_max) = (none(kind), none(kind), none(kind), none(kind));
        Self { gen_now, width_now, gen_max, width_max, phase: Phase::AtRest }
    }
}

impl Bridge {
    /// A bridge of which only its address is told.
    #[must_use]
    pub fn untold(address: PciAddress, kind: &str) -> Self {
        let (link, pcie) = (LinkEnd::untold(kind), PcieState::unknown(&Missing::untold(kind)));
        Self { address, root: none(kind), parent: None, id: none(kind), numa_node: none(kind), link, pcie }
    }
}

impl Gpu {
    /// A GPU of which only its address is told. Its class is that of any display controller, and it has no state of an
    /// NVIDIA driver.
    #[must_use]
    pub fn untold(address: PciAddress, kind: &str) -> Self {
        Self {
            address,
            root: none(kind),
            parent: None,
            id: none(kind),
            class: ClassCode::DISPLAY,
            numa_node: none(kind),
            driver: none(kind),
            iommu_group: none(kind),
            iommu_domain: none(kind),
            link: LinkEnd::untold(kind),
            pcie: PcieState::unknown(&Missing::untold(kind)),
            frame_buffer: none(kind),
            narrowest: Err(Missing::new(Why::Absent, "")),
            nvml: None,
        }
    }
}

impl GpuState {
    /// The state of an NVIDIA GPU of which nothing is told.
    #[must_use]
    pub fn untold(kind: &str) -> Self {
        Self {
            name: none(kind),
            memory_bytes: none(kind),
            bar1_bytes: none(kind),
            compute_capability: none(kind),
            vbios: none(kind),
            power_limit_mw: none(kind),
            power_default_mw: none(kind),
            power_min_mw: none(kind),
            power_max_mw: none(kind),
            gen_now: none(kind),
            width_now: none(kind),
            gen_max: none(kind),
            width_max: none(kind),
            performance_state: none(kind),
            persistence: none(kind),
            mig: none(kind),
            condition: GpuCondition::unknown(&Missing::untold(kind)),
        }
    }
}
