//! Rotary positions.

use crate::device::cuda::error::CudaError;
use crate::device::cuda::memory::{DeviceSlice, DeviceSliceMut, Element};
use crate::device::cuda::module::{Argument, Function, Geometry, Kernels, int};
use crate::device::cuda::stream::Stream;

use super::KernelSizes;

/// Threads of a block, a warp for each row.
const BLOCK: usize = 256;

/// Launches what `rotary.cu` holds.
#[derive(Debug)]
pub struct RotaryKernels {
    rotary: Function,
    packed_width: usize,
    head_size: usize,
}

impl RotaryKernels {
    pub(super) fn of(kernels: &Kernels, sizes: &KernelSizes) -> Result<Self, CudaError> {
        let packed_width = (sizes.heads + 2 * sizes.kv_heads) * sizes.head_size;
        Ok(Self { rotary: kernels.function("rotary")?, packed_width, head_size: sizes.head_size })
    }

    /// Turns queries and keys of `qkv[B, T, (H + 2K), D]` in place by `turns[T, D]`; the other way if `back`.
    ///
    /// # Errors
    /// The driver refused the launch.
    ///
    /// # Panics
    /// If a buffer is too short: a bug of the caller.
    pub fn rotary(
        &mut self,
        stream: &Stream,
        mut qkv: DeviceSliceMut<'_>,
        turns: DeviceSlice<'_>,
        [batch, context]: [usize; 2],
        back: bool,
    ) -> Result<(), CudaError> {
        let rows = batch * context;
        let mut arguments = [
            qkv.holding(rows * self.packed_width, Element::Bf16).into(),
            turns.holding(context * self.head_size, Element::F32).into(),
            int(batch),
            int(context),
            Argument::from(i32::from(back)),
        ];
        let geometry = Geometry::row(rows.div_ceil(BLOCK / 32), BLOCK);
        // SAFETY: rotary(bf16*, const float*, int, int, int); lengths are checked above
        unsafe { self.rotary.launch(stream, geometry, &mut arguments) }
    }
}
