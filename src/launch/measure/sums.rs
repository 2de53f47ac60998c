//! A rank that sums with others over NCCL: each size checked once, then timed among many in a row, as nccl-tests does.

use std::fs;
use std::io::{self, BufRead};

use crate::comm::{CommError, Communicator, Nccl};
use crate::device;
use crate::device::cuda::kernels::{LinkKernels, pattern_word};
use crate::device::cuda::{
    Arena, Cache, CudaError, DeviceBuffer, Element, Events, Gpu, NcclId, NcclLibrary, NcclSettings, Nvrtc, Pinned,
};
use crate::launch::{nccl_log, rank};
use crate::record::{Check, LinkLine, SumLine};
use crate::units::{Bytes, Seconds};

use super::copies::spread;
use super::task::{GaveUp, Report, Sums, Task, say};

/// Ranks give up after this part of the limit, so that they can end in order.
const OWN_SHARE: f64 = 0.8;

/// All-reduces before those that count, and in a row that counts: as many as nccl-tests makes, and fewer of those that are
/// so large that launching them weighs nothing.
const WARM_UP: usize = 5;
const IN_A_ROW: usize = 20;
const FEWER_FROM: Bytes = Bytes(128 << 20);
const FEWER_WARM_UP: usize = 1;
const FEWER_IN_A_ROW: usize = 5;

/// Rows.
const SAMPLES: usize = 3;

/// So many words at the beginning and as many at the end are checked; all of what is no larger than both.
const CHECKED: usize = 1 << 20;

/// Sums of every size of the task.
pub(super) fn make(task: &Task, sums: &Sums) -> Result<(), GaveUp> {
    if !sums.shared {
        device::end_with_parent(task.launcher)?;
    }
    let (address, cpus) = sums.sites.get(task.rank).ok_or(CudaError::NoGpu)?;
    let library = NcclLibrary::load()?;
    let mut variables = nccl_log::debug_settings(&task.log.to_string_lossy());
    if sums.shared {
        variables.extend(rank::sharing(&library, task.rank));
    }
    variables.extend(sums.arm.setting().map(|(name, value)| (name.to_owned(), value.to_owned())));
    device::set_environment(variables.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
    device::pin_to(cpus)?;
    let gpu = Gpu::open(*address)?;
    let kernels = LinkKernels::load(&gpu, &Nvrtc::for_gpu(&gpu)?, &mut Cache::of_user())?;
    let largest = sums.sizes.iter().max().copied().unwrap_or_default();
    let mut arena = Arena::new(&gpu, Bytes(largest.0 + 4096))?;
    let buffer = arena.take((largest.0 / 4) as usize, Element::U32)?;
    let nccl = meet(task, sums, &gpu).map_err(unmet)?;
    let log = fs::read_to_string(&task.log).unwrap_or_default();
    let told = nccl_log::transport(&log, task.rank);
    let mut via: Vec<String> = told.via.into_values().collect();
    via.sort_unstable();
    via.dedup();
    let staged = Pinned::zeros(&gpu, CHECKED)?;
    let mut rank = Rank { nccl, kernels, events: Events::default(), buffer, staged };
    for size in &sums.sizes {
        let (check, times) = rank.sum(*size).map_err(unmet)?;
        let world = sums.sites.len();
        let time_s = spread(&times, Seconds);
        let share = 2.0 * (world as f64 - 1.0) / world as f64;
        let line = SumLine {
            ranks: sums.sites.iter().map(|(address, _)| *address).collect(),
            arm: sums.arm,
            bytes: *size,
            bus_bandwidth: size.over(time_s.median) * share,
            time_s,
            check,
            via: via.clone(),
        };
        say(&Report::Measured { of: LinkLine::Sum(line) });
    }
    Ok(())
}

fn unmet(error: CommError) -> GaveUp {
    let unmet = match &error {
        CommError::Late { .. } => true,
        CommError::Gpu(error) => error.is_of_a_peer() || matches!(**error, CudaError::NotMet { .. }),
        _ => false,
    };
    GaveUp { unmet, ..GaveUp::from(error) }
}

fn meet(task: &Task, sums: &Sums, gpu: &Gpu) -> Result<Nccl, CommError> {
    let id = if task.rank == 0 { Some(NcclLibrary::load()?.new_id()?) } else { None };
    say(&Report::Meets { id });
    let mut line = String::new();
    // a launcher that is gone or gave up closes the pipe
    let read = io::stdin().lock().read_line(&mut line).ok();
    let id: NcclId = read.and_then(|_| serde_json::from_str(&line).ok()).ok_or(CudaError::Broken)?;
    let limit = sums.limit * OWN_SHARE;
    let settings = NcclSettings { max_ctas: sums.max_ctas, ..NcclSettings::default() };
    Nccl::join(gpu, &id, (task.rank, sums.sites.len()), settings, (limit, limit), |_| {})
}

struct Rank {
    nccl: Nccl,
    kernels: LinkKernels,
    events: Events,
    buffer: DeviceBuffer,
    staged: Pinned<u32>,
}

impl Rank {
    /// What one size gives: the check of a sum of known numbers, and the seconds of one among many.
    fn sum(&mut self, size: Bytes) -> Result<(Check, Vec<f64>), CommError> {
        let words = (size.0 / 4) as usize;
        let mut part = self.buffer.reuse(0, words, Element::U32).ok_or(CudaError::NoGpu)?;
        let world = self.nccl.world() as u32;
        let key = self.nccl.rank() as u32;
        self.kernels.paint(self.nccl.stream(), part.all_mut(), key)?;
        self.nccl.all_reduce_sum(&mut [&mut part])?;
        self.nccl.wait()?;
        let check = self.check(&part, world)?;
        say(&Report::Busy);
        let (warm_up, in_a_row) = if size < FEWER_FROM { (WARM_UP, IN_A_ROW) } else { (FEWER_WARM_UP, FEWER_IN_A_ROW) };
        let mut times = Vec::new();
        for _ in 0..warm_up {
            self.nccl.all_reduce_sum(&mut [&mut part])?;
        }
        for _ in 0..SAMPLES {
            self.nccl.barrier()?;
            let begin = self.events.record(self.nccl.stream())?;
            for _ in 0..in_a_row {
                self.nccl.all_reduce_sum(&mut [&mut part])?;
            }
            let end = self.events.record(self.nccl.stream())?;
            self.nccl.wait_for(&end)?;
            times.push(end.since(&begin)?.0 / in_a_row as f64);
            say(&Report::Busy);
        }
        Ok((check, times))
    }

    /// Whether `part` holds the sum of what all ranks brought, modulo 2³².
    fn check(&mut self, part: &DeviceBuffer, world: u32) -> Result<Check, CudaError> {
        let words = part.len();
        let ends = if words <= 2 * CHECKED {
            vec![0..words.min(CHECKED), words.min(CHECKED)..words]
        } else {
            vec![0..CHECKED, words - CHECKED..words]
        };
        let mut check = Check::default();
        for range in ends.into_iter().filter(|range| !range.is_empty()) {
            self.nccl.stream().download(&mut self.staged, part.slice(range.clone()))?;
            self.nccl.stream().synchronize()?;
            for (word, index) in self.staged.get().iter().zip(range) {
                let brought = |rank| pattern_word(index as u64, rank);
                let sum = (0..world).fold(0_u32, |sum, rank| sum.wrapping_add(brought(rank)));
                check.words += 1;
                check.wrong += u64::from(*word != sum);
                check.untouched += u64::from(*word != sum && *word == brought(self.nccl.rank() as u32));
            }
        }
        Ok(check)
    }
}
