//! SwiGLU.

use crate::device::cuda::error::CudaError;
use crate::device::cuda::memory::{DeviceSlice, DeviceSliceMut, Element};
use crate::device::cuda::module::{Argument, Function, Geometry, Kernels, int};
use crate::device::cuda::stream::Stream;

use super::KernelSizes;

/// Threads of a block.
const BLOCK: usize = 256;
/// Elements of `act` that a block takes.
const TILE: usize = 4096;

/// Launches what `swiglu.cu` holds.
#[derive(Debug)]
pub struct SwigluKernels {
    forward: Function,
    backward: Function,
    ffn: usize,
}

impl SwigluKernels {
    pub(super) fn of(kernels: &Kernels, sizes: &KernelSizes) -> Result<Self, CudaError> {
        let (forward, backward) = (kernels.function("swiglu")?, kernels.function("swiglu_backward")?);
        Ok(Self { forward, backward, ffn: sizes.ffn })
    }

    /// `act[N, F] = gate · σ(gate) · up` of `gate_up[N, 2F]`.
    ///
    /// # Errors
    /// The driver refused the launch.
    ///
    /// # Panics
    /// If a buffer is too short: a bug of the caller.
    pub fn swiglu(
        &mut self,
        stream: &Stream,
        mut act: DeviceSliceMut<'_>,
        gate_up: DeviceSlice<'_>,
        rows: usize,
    ) -> Result<(), CudaError> {
        let mut arguments = [
            act.holding(rows * self.ffn, Element::Bf16).into(),
            gate_up.holding(rows * 2 * self.ffn, Element::Bf16).into(),
            int(rows),
        ];
        let geometry = Geometry::row((rows * self.ffn).div_ceil(TILE), BLOCK);
        // SAFETY: swiglu(bf16*, const bf16*, int); lengths are checked above
        unsafe { self.forward.launch(stream, geometry, &mut arguments) }
    }

    /// In place: `gate_up[N, 2F]` becomes its gradient, `dact[N, F]` becomes `act`.
    ///
    /// # Errors
    /// The driver refused the launch.
    ///
    /// # Panics
    /// If a buffer is too short: a bug of the caller.
    pub fn backward(
        &mut self,
        stream: &Stream,
        mut gate_up: DeviceSliceMut<'_>,
        mut dact: DeviceSliceMut<'_>,
        rows: usize,
    ) -> Result<(), CudaError> {
        let gate_up = Argument::from(gate_up.holding(rows * 2 * self.ffn, Element::Bf16));
        let dact = Argument::from(dact.holding(rows * self.ffn, Element::Bf16));
        let mut arguments = [gate_up, dact, dact, gate_up, int(rows)];
        let geometry = Geometry::row((rows * self.ffn).div_ceil(TILE), BLOCK);
        // SAFETY: swiglu_backward(bf16* ×2, const bf16* ×2, int), which may work in place; lengths are checked above
        unsafe { self.backward.launch(stream, geometry, &mut arguments) }
    }
}
