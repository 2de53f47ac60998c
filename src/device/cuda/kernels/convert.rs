//! Gradients widened to f32, and their sums narrowed again.

use crate::device::cuda::error::CudaError;
use crate::device::cuda::memory::{DeviceSlice, DeviceSliceMut, Element};
use crate::device::cuda::module::{Argument, Function, Geometry, Kernels};
use crate::device::cuda::stream::Stream;

use super::blocks;

/// Threads of a block.
const BLOCK: usize = 256;

/// Launches what `convert.cu` holds.
#[derive(Debug)]
pub struct ConvertKernels {
    widen: Function,
    narrow: Function,
}

impl ConvertKernels {
    pub(super) fn of(kernels: &Kernels) -> Result<Self, CudaError> {
        Ok(Self { widen: kernels.function("widen")?, narrow: kernels.function("narrow")? })
    }

    /// `wide = narrow`, f32 from bf16.
    ///
    /// # Errors
    /// The driver refused the launch.
    ///
    /// # Panics
    /// If `wide` is too short: a bug of the caller.
    pub fn widen(
        &mut self,
        stream: &Stream,
        mut wide: DeviceSliceMut<'_>,
        narrow: DeviceSlice<'_>,
    ) -> Result<(), CudaError> {
        let n = narrow.len;
        let mut arguments =
            [wide.holding(n, Element::F32).into(), narrow.holding(n, Element::Bf16).into(), Argument::from(n as u64)];
        let geometry = Geometry::row(blocks(stream.gpu(), n, 2048, 16), BLOCK);
        // SAFETY: widen(float*, const bf16*, long long); lengths are checked above
        unsafe { self.widen.launch(stream, geometry, &mut arguments) }
    }

    /// `narrow = wide`, bf16 from f32, rounded to nearest even.
    ///
    /// # Errors
    /// The driver refused the launch.
    ///
    /// # Panics
    /// If `narrow` is too short: a bug of the caller.
    pub fn narrow(
        &mut self,
        stream: &Stream,
        mut narrow: DeviceSliceMut<'_>,
        wide: DeviceSlice<'_>,
    ) -> Result<(), CudaError> {
        let n = wide.len;
        let mut arguments =
            [narrow.holding(n, Element::Bf16).into(), wide.holding(n, Element::F32).into(), Argument::from(n as u64)];
        let geometry = Geometry::row(blocks(stream.gpu(), n, 2048, 16), BLOCK);
        // SAFETY: narrow(bf16*, const float*, long long); lengths are checked above
        unsafe { self.narrow.launch(stream, geometry, &mut arguments) }
    }
}
