//! Links and counters of GPUs while others copy, asked of the driver on a thread that may hang and delays nobody.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::device::Nvml;
use crate::topology::{Generation, Lanes, PciAddress, Width};

/// From one question to the next.
const INTERVAL: Duration = Duration::from_millis(50);

/// A driver that has not answered for so long is not waited for.
const FIRST_LIMIT: Duration = Duration::from_secs(2);

/// What was seen of a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The most that it had.
    pub(super) best: Option<Lanes>,
    /// NVML's replay counter when it was first read, and now.
    pub(super) replays: Option<(u64, u64)>,
}

/// Looks at links until it is dropped.
pub(super) struct Loads {
    over: Arc<AtomicBool>,
    seen: Arc<Mutex<BTreeMap<PciAddress, Seen>>>,
}

impl Loads {
    /// Begins to look, and returns once it has seen all for the first time, or cannot.
    pub(super) fn of(gpus: Vec<PciAddress>) -> Self {
        let loads = Self { over: Arc::default(), seen: Arc::default() };
        let (over, seen) = (Arc::clone(&loads.over), Arc::clone(&loads.seen));
        let first = Arc::new(AtomicBool::new(false));
        let looked = Arc::clone(&first);
        let look = move || {
            let nvml = Nvml::open();
            while !over.load(Ordering::Relaxed) {
                for gpu in &gpus {
                    let Ok(sample) = nvml.as_ref().map_err(Clone::clone).and_then(|nvml| nvml.sample(*gpu)) else {
                        continue;
                    };
                    let lanes = |generation: u32, width: u32| {
                        let (generation, width) = (Generation::new(generation.into())?, Width::new(width.into())?);
                        Some(Lanes { generation, width })
                    };
                    let now =
                        sample.pcie_gen.ok().zip(sample.pcie_width.ok()).and_then(|(speed, width)| lanes(speed, width));
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    let link = seen.entry(*gpu).or_default();
                    link.best = [link.best, now].into_iter().flatten().max_by(|a, b| a.rate().0.total_cmp(&b.rate().0));
                    if let Ok(replays) = sample.pcie_replays {
                        let first = link.replays.map_or(replays.into(), |(first, _)| first);
                        link.replays = Some((first, replays.into()));
                    }
                }
                looked.store(true, Ordering::Relaxed);
                thread::sleep(INTERVAL);
            }
        };
        let started = thread::Builder::new().name("links".into()).spawn(look);
        let deadline = Instant::now() + FIRST_LIMIT;
        while started.is_ok() && !first.load(Ordering::Relaxed) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        loads
    }

    /// What was seen so far.
    pub(super) fn seen(&self, gpu: PciAddress) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(&gpu).copied().unwrap_or_default()
    }
}

impl Drop for Loads {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
