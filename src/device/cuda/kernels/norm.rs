//! RMSNorm, and its gradient fused with that of the residual stream.

use crate::device::cuda::error::CudaError;
use crate::device::cuda::memory::{DeviceSlice, DeviceSliceMut, Element};
use crate::device::cuda::module::{Argument, Function, Geometry, Kernels, int};
use crate::device::cuda::stream::Stream;

use super::KernelSizes;
use super::embedding::team;

/// Threads of a block.
const BLOCK: usize = 256;
/// Threads of a block that adds partial sums.
const GAIN_BLOCK: usize = 512;

/// Launches what `norm.cu` holds.
#[derive(Debug)]
pub struct NormKernels {
    norm: Function,
    backward: Function,
    gain: Function,
    width: usize,
}

/// What a norm's backward pass reads.
#[derive(Debug, Clone, Copy)]
pub struct NormSaved<'a> {
    /// `dh[N, W]`: the gradient of the norm's result.
    pub dh: DeviceSlice<'a>,
    /// `x[N, W]`
    pub x: DeviceSlice<'a>,
    /// `rstd[N]`, f32
    pub rstd: DeviceSlice<'a>,
    /// `gain[W]`
    pub gain: DeviceSlice<'a>,
}

impl NormKernels {
    pub(super) fn of(kernels: &Kernels, sizes: &KernelSizes) -> Result<Self, CudaError> {
        Ok(Self {
            norm: kernels.function("norm_forward")?,
            backward: kernels.function("norm_backward")?,
            gain: kernels.function("norm_gain")?,
            width: sizes.width,
        })
    }

    /// Elements of f32 that [`NormKernels::backward`] works in.
    #[must_use]
    pub fn workspace(multiprocessors: usize, width: usize) -> usize {
        2 * multiprocessors * width
    }

    /// `h[N, W] = x · rstd · gain[W]` and `rstd[N]`.
    ///
    /// # Errors
    /// The driver refused the launch.
    ///
    /// # Panics
    /// If a buffer is too short: a bug of the caller.
    pub fn norm(
        &mut self,
        stream: &Stream,
        [mut h, mut rstd]: [DeviceSliceMut<'_>; 2],
        x: DeviceSlice<'_>,
        gain: DeviceSlice<'_>,
        rows: usize,
    ) -> Result<(), CudaError> {
        let mut arguments = [
            h.holding(rows * self.width, Element::Bf16).into(),
            rstd.holding(rows, Element::F32).into(),
            x.holding(rows * self.width, Element::Bf16).into(),
            gain.holding(self.width, Element::Bf16).into(),
            int(rows),
        ];
        let geometry = Geometry::row(rows.div_ceil(BLOCK / team(self.width)), BLOCK);
        // SAFETY: norm_forward(bf16*, float*, const bf16* ×2, int); lengths are checked above
        unsafe { self.norm.launch(stream, geometry, &mut arguments) }
    }

    /// `dx[N, W] (+)=` the gradient below the norm, `dgain[W] (+)=` that of its gain.
    ///
    /// # Errors
    /// The driver refused a launch.
    ///
    /// # Panics
    /// If a buffer is too short: a bug of the caller.
    pub fn backward(
        &mut self,
        stream: &Stream,
        (mut dx, add_dx): (DeviceSliceMut<'_>, bool),
        (mut dgain, add_dgain): (DeviceSliceMut<'_>, bool),
        saved: NormSaved<'_>,
        mut workspace: DeviceSliceMut<'_>,
        rows: usize,
    ) -> Result<(), CudaError> {
        let blocks = 2 * stream.gpu().multiprocessors();
        let partials = Argument::from(workspace.holding(blocks * self.width, Element::F32));
        let len = rows * self.width;
        let mut arguments = [
            dx.holding(len, Element::Bf16).into(),
            Argument::from(i32::from(add_dx)),
            partials,
            saved.dh.holding(len, Element::Bf16).into(),
            saved.x.holding(len, Element::Bf16).into(),
            saved.rstd.holding(rows, Element::F32).into(),
            saved.gain.holding(self.width, Element::Bf16).into(),
            int(rows),
        ];
        // SAFETY: norm_backward(bf16*, int, float*, const bf16* ×2, const float*, const bf16*, int); checked above
        unsafe { self.backward.launch(stream, Geometry::row(blocks, BLOCK), &mut arguments) }?;
        let dgain = Argument::from(dgain.holding(self.width, Element::Bf16));
        let mut arguments = [dgain, Argument::from(i32::from(add_dgain)), partials, int(blocks)];
        let geometry = Geometry::row(self.width.div_ceil(32), GAIN_BLOCK);
        // SAFETY: norm_gain(bf16*, int, const float*, int); lengths are checked above
        unsafe { self.gain.launch(stream, geometry, &mut arguments) }
    }
}
