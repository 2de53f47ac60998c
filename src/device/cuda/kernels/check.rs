//! Numbers that are NaN or infinite.

use crate::device::cuda::error::CudaError;
use crate::device::cuda::memory::{DeviceSlice, DeviceSliceMut, Element};
use crate::device::cuda::module::{Argument, Function, Geometry, Kernels};
use crate::device::cuda::stream::Stream;

/// Threads of a block.
const BLOCK: usize = 256;

/// Launches what `check.cu` holds.
#[derive(Debug)]
pub struct CheckKernels {
    bf16: Function,
    f32: Function,
}

impl CheckKernels {
    pub(super) fn of(kernels: &Kernels) -> Result<Self, CudaError> {
        let (bf16, f32) = (kernels.function("first_not_finite_bf16")?, kernels.function("first_not_finite_f32")?);
        Ok(Self { bf16, f32 })
    }

    /// `first[1]`, u64, becomes the index of the first element that is NaN or infinite, all ones where there is none.
    ///
    /// # Errors
    /// The driver refused the launch.
    ///
    /// # Panics
    /// If the values are neither bf16 nor f32: a bug of the caller.
    pub fn first_not_finite(
        &mut self,
        stream: &Stream,
        mut first: DeviceSliceMut<'_>,
        values: DeviceSlice<'_>,
    ) -> Result<(), CudaError> {
        let address = first.holding(1, Element::U64);
        stream.fill(first, 0xff)?;
        let function = if values.element == Element::Bf16 { &mut self.bf16 } else { &mut self.f32 };
        let wanted = if values.element == Element::Bf16 { Element::Bf16 } else { Element::F32 };
        let values_address = values.holding(values.len, wanted);
        let mut arguments = [address.into(), values_address.into(), Argument::from(values.len as u64)];
        let geometry = Geometry::row(8 * stream.gpu().multiprocessors(), BLOCK);
        // SAFETY: both are (unsigned long long*, const data*, long long); lengths are checked above
        unsafe { function.launch(stream, geometry, &mut arguments) }
    }
}
