//! Cross-entropy with its gradient, and the mean of losses.

use crate::device::cuda::error::CudaError;
use crate::device::cuda::memory::{DeviceSlice, DeviceSliceMut, Element};
use crate::device::cuda::module::{Argument, Function, Geometry, Kernels};
use crate::device::cuda::stream::Stream;

use super::KernelSizes;

/// Threads of a block; THREADS in the source.
const BLOCK: usize = 512;
/// Logits that one vector of each thread holds.
const VECTOR: usize = 8 * BLOCK;
/// Vectors of each thread that stay in registers; KEPT in the source.
const KEPT: usize = 8;
/// Threads of the one block that adds losses.
const MEAN_BLOCK: usize = 1024;

/// Vectors of each thread that two blocks find room for in the shared memory of a multiprocessor: 228 KiB of sm_90 and
/// sm_100, 164 of sm_80, 100 of the others (CUDA programming guide, compute capabilities).
pub(super) fn staged_max(architecture: &str) -> usize {
    match architecture {
        "sm_90" | "sm_100" => 14,
        "sm_80" => 9,
        _ => 5,
    }
}

/// Launches what `loss.cu` holds.
#[derive(Debug)]
pub struct LossKernels {
    cross_entropy: Function,
    mean: Function,
    vocabulary: usize,
    /// Vectors of each thread that lie in shared memory.
    staged: usize,
}

impl LossKernels {
    pub(super) fn of(kernels: &Kernels, sizes: &KernelSizes, architecture: &str) -> Result<Self, CudaError> {
        let (cross_entropy, mean) = (kernels.function("cross_entropy")?, kernels.function("mean")?);
        let vectors = sizes.vocabulary.div_ceil(VECTOR);
        let staged = staged_max(architecture).min(vectors.saturating_sub(KEPT));
        Ok(Self { cross_entropy, mean, vocabulary: sizes.vocabulary, staged })
    }

    /// `losses[N]` in nats, and in place of `logits[N, V]` their gradient divided by `N`.
    ///
    /// # Errors
    /// The driver refused the launch.
    ///
    /// # Panics
    /// If a buffer is too short: a bug of the caller.
    pub fn cross_entropy(
        &mut self,
        stream: &Stream,
        mut losses: DeviceSliceMut<'_>,
        mut logits: DeviceSliceMut<'_>,
        targets: DeviceSlice<'_>,
        rows: usize,
    ) -> Result<(), CudaError> {
        let mut arguments = [
            losses.holding(rows, Element::F32).into(),
            logits.holding(rows * self.vocabulary, Element::Bf16).into(),
            targets.holding(rows, Element::U32).into(),
            Argument::from(1.0 / rows as f32),
        ];
        let geometry = Geometry { grid: [rows, 1, 1], block: BLOCK, shared: 2 * VECTOR * self.staged };
        // SAFETY: cross_entropy(float*, bf16*, const unsigned*, float); lengths are checked above, targets by the host
        unsafe { self.cross_entropy.launch(stream, geometry, &mut arguments) }
    }

    /// `total += weight · mean(losses)`, f64.
    ///
    /// # Errors
    /// The driver refused the launch.
    ///
    /// # Panics
    /// If a buffer is too short: a bug of the caller.
    pub fn add_mean(
        &mut self,
        stream: &Stream,
        mut total: DeviceSliceMut<'_>,
        losses: DeviceSlice<'_>,
        weight: f64,
    ) -> Result<(), CudaError> {
        let mut arguments = [
            total.holding(1, Element::F64).into(),
            losses.holding(losses.len, Element::F32).into(),
            Argument::from(losses.len as u64),
            Argument::from(weight),
            Argument::from(1_i32),
        ];
        // SAFETY: mean(double*, const float*, long long, double, int); lengths are checked above
        unsafe { self.mean.launch(stream, Geometry::row(1, MEAN_BLOCK), &mut arguments) }
    }
}
