//! What one GPU does at a moment, as NVML tells it.

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::{Clock as Domain, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::error::{Bits, NvmlError};

use crate::topology::{Missing, PciAddress, Reading, ThrottleReasons, Why};
use crate::units::{Bytes, Celsius, Hertz, Joules, Seconds, Watts};

use super::nvml::missing;
use super::{Clock, Nvml};

/// What one GPU does at a moment. What the card does not offer is missing with its reason, never a number.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuSample {
    /// When it was asked, on the host's monotonic clock.
    pub at: Seconds,
    /// Power of the whole card. NVML averages it over a second from Ampere on, but for GA100.
    pub power: Reading<Watts>,
    /// Energy since the driver was loaded.
    pub energy: Reading<Joules>,
    /// Temperature of the chip.
    pub temperature: Reading<Celsius>,
    /// Clock of the multiprocessors.
    pub sm_clock: Reading<Hertz>,
    /// Clock of the memory.
    pub memory_clock: Reading<Hertz>,
    /// Why the clocks are held.
    pub throttle: Reading<ThrottleReasons>,
    /// PCIe generation in use, from 1.
    pub pcie_gen: Reading<u32>,
    /// PCIe lanes in use, from 1.
    pub pcie_width: Reading<u32>,
    /// Packets that the link sent again since the driver was loaded; wraps around.
    pub pcie_replays: Reading<u32>,
    /// Memory in use, by all processes.
    pub memory_used: Reading<Bytes>,
    /// Of NVML's last period, the share in which some kernel ran, 0 to 1.
    pub busy: Reading<f64>,
}

/// The link of one GPU at a moment, and what its speed depends on: a GPU in a slow state slows its link down by design.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkSample {
    /// PCIe generation in use, from 1.
    pub generation: Reading<u32>,
    /// PCIe lanes in use, from 1.
    pub width: Reading<u32>,
    /// Performance state, 0 the fastest, to 15.
    pub p_state: Reading<u32>,
    /// Why the clocks are held.
    pub throttle: Reading<ThrottleReasons>,
    /// Packets that the link sent again since the driver was loaded; wraps around.
    pub replays: Reading<u32>,
    /// Errors of its memory that could not be corrected, since the driver was loaded.
    pub memory_errors: Reading<u64>,
}

impl Nvml {
    /// Looks at the link of the GPU at `address`: less than [`Nvml::sample`] asks, and faster.
    ///
    /// # Errors
    /// As there.
    pub fn link(&self, address: PciAddress) -> Reading<LinkSample> {
        let gpu = self.0.device_by_pci_bus_id(address.to_string()).map_err(missing)?;
        Ok(LinkSample {
            generation: from_one(told(gpu.current_pcie_link_gen()), "generation"),
            width: from_one(told(gpu.current_pcie_link_width()), "width"),
            p_state: gpu.performance_state().map(|state| state.as_c()).map_err(missing),
            throttle: throttle(&gpu),
            replays: told(gpu.pcie_replay_counter()),
            memory_errors: gpu.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile).map_err(missing),
        })
    }

    /// Samples the GPU at `address`. Takes about a millisecond, and much longer on some cards.
    ///
    /// # Errors
    /// The driver shows no such GPU to this process, or does not answer for it. A single fact that is missing is
    /// missing inside the sample.
    pub fn sample(&self, address: PciAddress) -> Reading<GpuSample> {
        let gpu = self.0.device_by_pci_bus_id(address.to_string()).map_err(missing)?;
        let milli = |count: u32| f64::from(count) * 1e-3;
        let hertz = |mega: u32| Hertz(f64::from(mega) * 1e6);
        Ok(GpuSample {
            at: Clock::monotonic(),
            power: told(gpu.power_usage()).map(|power| Watts(milli(power))),
            energy: gpu.total_energy_consumption().map(|energy| Joules(energy as f64 * 1e-3)).map_err(missing),
            temperature: told(gpu.temperature(TemperatureSensor::Gpu)).map(|degrees| Celsius(degrees.into())),
            sm_clock: told(gpu.clock_info(Domain::SM)).map(hertz),
            memory_clock: told(gpu.clock_info(Domain::Memory)).map(hertz),
            throttle: throttle(&gpu),
            pcie_gen: from_one(told(gpu.current_pcie_link_gen()), "generation"),
            pcie_width: from_one(told(gpu.current_pcie_link_width()), "width"),
            pcie_replays: told(gpu.pcie_replay_counter()),
            memory_used: gpu.memory_info().map(|memory| Bytes(memory.used)).map_err(missing),
            busy: told(gpu.utilization_rates().map(|rates| rates.gpu))
                .map(|percent| f64::from(percent.min(100)) / 100.0),
        })
    }
}

/// A number that the driver tells. All bits set is how some drivers say that there is none.
fn told(answer: Result<u32, NvmlError>) -> Reading<u32> {
    match answer {
        Ok(u32::MAX) => Err(Missing::new(Why::Garbled, "NVML: the answer is 0xffffffff")),
        other => other.map_err(missing),
    }
}

/// A link that is there has a generation and a width.
fn from_one(answer: Reading<u32>, what: &str) -> Reading<u32> {
    match answer {
        Ok(0) => Err(Missing::new(Why::Garbled, format!("NVML: the {what} of the PCIe link is 0"))),
        other => other,
    }
}

fn throttle(gpu: &Device<'_>) -> Reading<ThrottleReasons> {
    throttle_bits(gpu).map(ThrottleReasons).map_err(missing)
}

/// All bits, also those that the wrapper does not know: it names them in its error.
pub(super) fn throttle_bits(gpu: &Device<'_>) -> Result<u64, NvmlError> {
    match gpu.current_throttle_reasons_strict() {
        Ok(reasons) => Ok(reasons.bits()),
        Err(NvmlError::IncorrectBits(Bits::U64(bits))) => Ok(bits),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use nvml_wrapper::bitmasks::device::ThrottleReasons as Bits;

    use super::*;

    #[test]
    fn reasons_have_the_bits_of_nvml() {
        let pairs = [
            (ThrottleReasons::NONE, Bits::NONE),
            (ThrottleReasons::IDLE, Bits::GPU_IDLE),
            (ThrottleReasons::CLOCK_SETTING, Bits::APPLICATIONS_CLOCKS_SETTING),
            (ThrottleReasons::POWER_CAP, Bits::SW_POWER_CAP),
            (ThrottleReasons::HARDWARE_SLOWDOWN, Bits::HW_SLOWDOWN),
            (ThrottleReasons::SYNC_BOOST, Bits::SYNC_BOOST),
            (ThrottleReasons::THERMAL, Bits::SW_THERMAL_SLOWDOWN),
            (ThrottleReasons::HARDWARE_THERMAL, Bits::HW_THERMAL_SLOWDOWN),
            (ThrottleReasons::POWER_BRAKE, Bits::HW_POWER_BRAKE_SLOWDOWN),
            (ThrottleReasons::DISPLAY_CLOCK, Bits::DISPLAY_CLOCK_SETTING),
        ];
        for (ours, theirs) in pairs {
            assert_eq!(ours.0, theirs.bits());
        }
    }

    #[test]
    fn an_answer_that_says_nothing_is_missing() {
        assert_eq!(told(Ok(3)), Ok(3));
        assert_eq!(told(Ok(u32::MAX)).unwrap_err().why, Why::Garbled);
        assert_eq!(told(Err(NvmlError::NotSupported)).unwrap_err().why, Why::Unsupported);
        assert_eq!(from_one(Ok(0), "width").unwrap_err().detail, "NVML: the width of the PCIe link is 0");
        assert_eq!(from_one(Ok(4), "width"), Ok(4));
    }

    #[test]
    #[ignore = "needs 1 GPU"]
    fn every_gpu_is_sampled_twice() {
        let nvml = Nvml::open().expect("NVML");
        let count = nvml.0.device_count().unwrap();
        assert!(0 < count, "no GPU");
        for index in 0..count {
            let address = nvml.0.device_by_index(index).unwrap().pci_info().unwrap().bus_id.to_lowercase();
            let address: PciAddress = address.parse().unwrap();
            let first = nvml.sample(address).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(200));
            let second = nvml.sample(address).unwrap();
            println!("{address}: {first:?}\n{address}: {second:?}");
            assert!(first.at < second.at && second.at - first.at < Seconds(2.0), "{first:?} {second:?}");
            for sample in [&first, &second] {
                let power = sample.power.clone().unwrap();
                assert!(Watts(1.0) < power && power < Watts(3000.0), "{power}");
                let temperature = sample.temperature.clone().unwrap();
                assert!(Celsius(5.0) < temperature && temperature < Celsius(120.0), "{temperature}");
                let clock = sample.sm_clock.clone().unwrap();
                assert!(Hertz(1e8) < clock && clock < Hertz(5e9), "{clock}");
                assert!(sample.throttle.is_ok() && sample.memory_used.is_ok(), "{sample:?}");
            }
            if let (Ok(before), Ok(after)) = (&first.energy, &second.energy) {
                assert!(before <= after && *after - *before < Joules(6000.0), "{before} {after}");
            }
        }
    }
}
