//! AdamW with exact master weights, and the norm of the gradient.

use crate::device::cuda::error::CudaError;
use crate::device::cuda::memory::{DeviceSlice, DeviceSliceMut, Element};
use crate::device::cuda::module::{Argument, Function, Geometry, Kernels, int};
use crate::device::cuda::stream::Stream;

/// Threads of a block.
const BLOCK: usize = 256;
/// Weights of a block of AdamW.
const TILE: usize = 2048;
/// Blocks of the sum of squares for each multiprocessor: fixed, so that its order is.
const SQUARES_BLOCKS: usize = 8;

/// Launches what `optimizer.cu` holds.
#[derive(Debug)]
pub struct OptimizerKernels {
    adamw: Function,
    squares: Function,
    finish_squares: Function,
}

/// The tensors of one bucket, all of one length: a multiple of 8 elements.
#[derive(Debug)]
pub struct AdamWTensors<'a> {
    /// bf16, what the model computes with.
    pub weight: DeviceSliceMut<'a>,
    /// The lower half of the f32 master weight, as bits.
    pub remainder: DeviceSliceMut<'a>,
    /// First moment, f32.
    pub m: DeviceSliceMut<'a>,
    /// Second moment, f32.
    pub v: DeviceSliceMut<'a>,
    /// bf16
    pub gradient: DeviceSlice<'a>,
    /// `gains[G, 2]`, u64: where ranges that do not decay begin and end, ascending.
    pub gains: DeviceSlice<'a>,
    /// `squares[1]`, f64: sum of the squares of the summed gradient of the whole model.
    pub squares: DeviceSlice<'a>,
}

/// The scalars of an update; see `AdamWUpdate` of the training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWScalars {
    /// `η, λ, β₁, β₂, ε, 1 − β₁ᵗ, 1 − β₂ᵗ`
    pub rule: [f32; 7],
    /// From the summed gradient to its mean.
    pub mean: f64,
    /// Norm to clip to; none: never.
    pub clip_norm: Option<f64>,
}

impl OptimizerKernels {
    pub(super) fn of(kernels: &Kernels) -> Result<Self, CudaError> {
        Ok(Self {
            adamw: kernels.function("adamw")?,
            squares: kernels.function("sum_of_squares")?,
            finish_squares: kernels.function("finish_squares")?,
        })
    }

    /// Elements of f64 that [`OptimizerKernels::add_squares`] works in.
    #[must_use]
    pub fn workspace(multiprocessors: usize) -> usize {
        SQUARES_BLOCKS * multiprocessors
    }

    /// `total += Σ values²`, f64, in one order.
    ///
    /// # Errors
    /// The driver refused a launch.
    ///
    /// # Panics
    /// If a buffer is too short: a bug of the caller.
    pub fn add_squares(
        &mut self,
        stream: &Stream,
        mut total: DeviceSliceMut<'_>,
        values: DeviceSlice<'_>,
        mut workspace: DeviceSliceMut<'_>,
    ) -> Result<(), CudaError> {
        let count = Self::workspace(stream.gpu().multiprocessors());
        let partials = Argument::from(workspace.holding(count, Element::F64));
        let n = Argument::from(values.len as u64);
        let mut arguments = [partials, values.holding(values.len, Element::Bf16).into(), n];
        // SAFETY: sum_of_squares(double*, const bf16*, long long); lengths are checked above
        unsafe { self.squares.launch(stream, Geometry::row(count, BLOCK), &mut arguments) }?;
        let total = Argument::from(total.holding(1, Element::F64));
        let mut arguments = [total, partials, int(count), Argument::from(1_i32)];
        // SAFETY: finish_squares(double*, const double*, int, int); lengths are checked above
        unsafe { self.finish_squares.launch(stream, Geometry::row(1, BLOCK), &mut arguments) }
    }

    /// `total = Σ partials`, f64, in one order.
    ///
    /// # Errors
    /// The driver refused the launch.
    ///
    /// # Panics
    /// If a buffer holds no f64: a bug of the caller.
    pub fn total(
        &mut self,
        stream: &Stream,
        mut total: DeviceSliceMut<'_>,
        partials: DeviceSlice<'_>,
    ) -> Result<(), CudaError> {
        let (count, total) = (partials.len, total.holding(1, Element::F64));
        let mut arguments =
            [total.into(), partials.holding(count, Element::F64).into(), int(count), Argument::from(0_i32)];
        // SAFETY: finish_squares(double*, const double*, int, int); lengths are checked above
        unsafe { self.finish_squares.launch(stream, Geometry::row(1, BLOCK), &mut arguments) }
    }

    /// One update of a bucket, or of a part of one.
    ///
    /// # Errors
    /// The driver refused the launch.
    ///
    /// # Panics
    /// If a buffer is too short: a bug of the caller.
    pub fn adamw(
        &mut self,
        stream: &Stream,
        mut tensors: AdamWTensors<'_>,
        scalars: AdamWScalars,
    ) -> Result<(), CudaError> {
        let n = tensors.gradient.len;
        assert!(n.is_multiple_of(8), "{n} weights where the kernel takes a multiple of 8");
        let gains = tensors.gains.len / 2;
        let [rate, decay, beta1, beta2, epsilon, bias1, bias2] = scalars.rule.map(Argument::from);
        let mut arguments = [
            tensors.weight.holding(n, Element::Bf16).into(),
            tensors.remainder.holding(n, Element::Bf16).into(),
            tensors.m.holding(n, Element::F32).into(),
            tensors.v.holding(n, Element::F32).into(),
            tensors.gradient.holding(n, Element::Bf16).into(),
            Argument::from(n as u64),
            tensors.gains.holding(2 * gains, Element::U64).into(),
            int(gains),
            rate,
            decay,
            beta1,
            beta2,
            epsilon,
            bias1,
            bias2,
            Argument::from(scalars.mean),
            Argument::from(scalars.clip_norm.unwrap_or(0.0)),
            tensors.squares.holding(1, Element::F64).into(),
        ];
        let geometry = Geometry::row(n.div_ceil(TILE), BLOCK);
        // SAFETY: adamw(bf16*, unsigned short*, float* ×2, const bf16*, long long, const unsigned long long*, int,
        // float ×7, double ×2, const double*); lengths are checked above, ranges of gains lie within the bucket
        unsafe { self.adamw.launch(stream, geometry, &mut arguments) }
    }
}
