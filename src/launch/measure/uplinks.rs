//! Links between ports above GPUs: where they are, and what the kernel shows of them. A switch whose uplink falls under load
//! slows every GPU below it, and no GPU's own link tells.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::topology::{Generation, Lanes, PciAddress, Topology, Width};

/// One link between two ports, and the GPUs below it that copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Uplink {
    pub(super) upper: PciAddress,
    pub(super) lower: PciAddress,
    pub(super) gpus: Vec<PciAddress>,
}

/// Links above GPUs, and where the kernel shows their ports.
#[derive(Debug, Default)]
pub(super) struct Uplinks {
    devices: PathBuf,
    pub(super) all: Vec<Uplink>,
}

impl Uplinks {
    /// The links above `gpus` but their own, of which NVML tells more. None in a virtual machine, whose ports are made up.
    pub(super) fn of(devices: &Path, gpus: &[PciAddress], topology: &Topology) -> Self {
        let mut all: BTreeMap<PciAddress, Uplink> = BTreeMap::new();
        let visible = topology.system.virtual_machine != Ok(true);
        for gpu in gpus.iter().filter_map(|gpu| topology.gpu(*gpu)).filter(|_| visible) {
            for hop in topology.hops(gpu).into_iter().filter(|hop| hop.lower != gpu.address) {
                let (upper, lower) = (hop.upper, hop.lower);
                let link = all.entry(lower).or_insert_with(|| Uplink { upper, lower, gpus: Vec::new() });
                link.gpus.push(gpu.address);
            }
        }
        Self { devices: devices.to_owned(), all: all.into_values().collect() }
    }

    /// Speed and lanes in use, as either end tells: both ends of a link have the same.
    pub(super) fn now(&self, link: &Uplink) -> Option<Lanes> {
        self.at(link.lower).or_else(|| self.at(link.upper))
    }

    fn at(&self, port: PciAddress) -> Option<Lanes> {
        let folder = self.devices.join(port.to_string());
        let read = |file: &str| fs::read_to_string(folder.join(file)).ok();
        let generation = Generation::from_sysfs(&read("current_link_speed")?)?;
        let width = Width::new(read("current_link_width")?.trim().parse().ok()?)?;
        Some(Lanes { generation, width })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::topology::from_yaml;

    /// What the kernel shows of a port.
    pub(in crate::launch::measure) fn show(devices: &Path, port: &str, speed: &str, width: &str) {
        let folder = devices.join(port);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("current_link_speed"), format!("{speed}\n")).unwrap();
        fs::write(folder.join("current_link_width"), format!("{width}\n")).unwrap();
    }

    pub(in crate::launch::measure) fn recorded(machine: &str) -> Topology {
        let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machines").join(machine).join("topology.yaml");
        from_yaml(&fs::read_to_string(place).unwrap(), "topology.yaml").unwrap()
    }

    fn uplinks(devices: &Path, topology: &Topology) -> Uplinks {
        let gpus: Vec<PciAddress> = topology.nvidia_gpus().map(|gpu| gpu.address).collect();
        Uplinks::of(devices, &gpus, topology)
    }

    #[test]
    fn the_uplink_of_a_switch_is_one_link_above_all_its_gpus() {
        let devices = tempfile::tempdir().unwrap();
        let topology = recorded("switch-4gpu");
        let uplinks = uplinks(devices.path(), &topology);
        let [link] = &uplinks.all[..] else { panic!("{uplinks:?}") };
        assert_eq!((link.upper.to_string(), link.lower.to_string()), ("0000:00:01.1".into(), "0000:01:00.0".into()));
        assert_eq!(link.gpus.len(), 4);
        assert_eq!(uplinks.now(link), None, "nothing is told");
        show(devices.path(), "0000:00:01.1", "8.0 GT/s PCIe", "16");
        let shown = |uplinks: &Uplinks| uplinks.now(&uplinks.all[0]).map(|lanes| lanes.to_string());
        assert_eq!(shown(&uplinks).as_deref(), Some("Gen3 x16"), "of the upper end where the lower says nothing");
        show(devices.path(), "0000:01:00.0", "16.0 GT/s PCIe", "8");
        assert_eq!(shown(&uplinks).as_deref(), Some("Gen4 x8"));
        show(devices.path(), "0000:01:00.0", "Unknown", "0");
        assert_eq!(shown(&uplinks).as_deref(), Some("Gen3 x16"), "a port that sleeps says nothing");
    }

    #[test]
    fn gpus_below_root_ports_have_no_other_link_and_a_virtual_machine_makes_its_ports_up() {
        let nowhere = Path::new("/nowhere");
        assert_eq!(uplinks(nowhere, &recorded("threadripper-4gpu")).all, []);
        let mut guest = recorded("switch-4gpu");
        guest.system.virtual_machine = Ok(true);
        assert_eq!(uplinks(nowhere, &guest).all, []);
    }
}
