//! Error counters of GPUs and of the ports above them, before a measurement and after it.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::record::{CounterLine, ErrorCounter};
use crate::topology::{Missing, PciAddress, Reading, Topology, Why};

/// Where the kernel shows PCI functions.
pub(super) const DEVICES: &str = "/sys/bus/pci/devices";

/// Files of PCIe's advanced error reporting and the line that holds the sum (the kernel's
/// Documentation/ABI/testing/sysfs-bus-pci-devices-aer).
const FILES: [(ErrorCounter, &str, &str); 3] = [
    (ErrorCounter::AerCorrectable, "aer_dev_correctable", "TOTAL_ERR_COR"),
    (ErrorCounter::AerNonFatal, "aer_dev_nonfatal", "TOTAL_ERR_NONFATAL"),
    (ErrorCounter::AerFatal, "aer_dev_fatal", "TOTAL_ERR_FATAL"),
];

/// Counters of links as they stood before.
pub(super) struct Counters<'a> {
    devices: &'a Path,
    before: Vec<(PciAddress, ErrorCounter, Reading<u64>)>,
}

impl<'a> Counters<'a> {
    /// Reads the counters of `gpus` and of every port above them.
    pub(super) fn of(devices: &'a Path, gpus: &[PciAddress], topology: &Topology) -> Self {
        let ports = gpus.iter().filter_map(|gpu| topology.gpu(*gpu)).flat_map(|gpu| topology.chain(gpu));
        let all: BTreeSet<PciAddress> = ports.map(|port| port.address).chain(gpus.iter().copied()).collect();
        let read =
            |at: PciAddress| FILES.map(|(counter, file, total)| (at, counter, total_in(devices, at, file, total)));
        Self { devices, before: all.into_iter().flat_map(read).collect() }
    }

    /// Reads them again.
    pub(super) fn lines(self) -> Vec<CounterLine> {
        let line = |(at, counter, before): (PciAddress, ErrorCounter, Reading<u64>)| {
            let file = FILES.iter().find(|(of, ..)| *of == counter);
            let after = file.map_or_else(|| before.clone(), |(_, file, total)| total_in(self.devices, at, file, total));
            CounterLine { at, counter, before, after }
        };
        self.before.into_iter().map(line).collect()
    }
}

/// `TOTAL_ERR_COR 3`. The files are absent where the firmware keeps the errors to itself.
fn total_in(devices: &Path, at: PciAddress, file: &str, total: &str) -> Reading<u64> {
    let text = fs::read_to_string(devices.join(at.to_string()).join(file)).map_err(|error| {
        let why = match error.kind() {
            ErrorKind::NotFound => Why::Absent,
            ErrorKind::PermissionDenied => Why::Denied,
            _ => Why::Garbled,
        };
        Missing::new(why, file)
    })?;
    let count = text.lines().find_map(|line| line.strip_prefix(total)).and_then(|count| count.trim().parse().ok());
    count.ok_or_else(|| Missing::new(Why::Garbled, file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::from_yaml;

    #[test]
    fn counters_of_a_gpu_and_its_ports_are_read_twice_and_say_what_they_cannot() {
        let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machines/switch-4gpu/topology.yaml");
        let topology = from_yaml(&fs::read_to_string(place).unwrap(), "topology.yaml").unwrap();
        let gpu = topology.nvidia_gpus().next().unwrap().address;
        let port = topology.chain(topology.gpu(gpu).unwrap())[0].address;
        let devices = tempfile::tempdir().unwrap();
        let write = |at: PciAddress, count: u64| {
            let folder = devices.path().join(at.to_string());
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("aer_dev_correctable"), format!("RxErr {count}\nTOTAL_ERR_COR {count}\n")).unwrap();
        };
        write(gpu, 3);
        write(port, 7);
        let counters = Counters::of(devices.path(), &[gpu], &topology);
        write(gpu, 12);
        let lines = counters.lines();
        assert_eq!(lines.len(), 3 * (1 + topology.chain(topology.gpu(gpu).unwrap()).len()));
        let of = |at: PciAddress, counter| lines.iter().find(|line| (line.at, line.counter) == (at, counter)).unwrap();
        assert_eq!(of(gpu, ErrorCounter::AerCorrectable).counted(), Some(9));
        assert_eq!(of(port, ErrorCounter::AerCorrectable).counted(), Some(0));
        let fatal = of(gpu, ErrorCounter::AerFatal);
        assert_eq!((fatal.counted(), fatal.before.clone().unwrap_err().why), (None, Why::Absent));
        // a device that was reset begins anew: nobody knows what it counted
        assert_eq!(CounterLine { after: Ok(1), ..of(gpu, ErrorCounter::AerCorrectable).clone() }.counted(), None);
    }
}
