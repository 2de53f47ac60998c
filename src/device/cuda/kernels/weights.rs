//! Initial weights, and two sums that tell weights apart.

use crate::device::cuda::error::CudaError;
use crate::device::cuda::memory::{DeviceSlice, DeviceSliceMut, Element};
use crate::device::cuda::module::{Argument, Function, Geometry, Kernels};
use crate::device::cuda::stream::Stream;

use super::blocks;

/// Threads of a block.
const BLOCK: usize = 256;

/// Launches what `weights.cu` holds.
#[derive(Debug)]
pub struct WeightKernels {
    initial: Function,
    fingerprint: Function,
    checksum: Function,
}

impl WeightKernels {
    pub(super) fn of(kernels: &Kernels) -> Result<Self, CudaError> {
        let (initial, fingerprint) = (kernels.function("initial")?, kernels.function("fingerprint")?);
        Ok(Self { initial, fingerprint, checksum: kernels.function("checksum")? })
    }

    /// Fills `out`, bf16, with normal numbers of mean 0 that depend on `key` alone.
    ///
    /// # Errors
    /// The driver refused the launch.
    ///
    /// # Panics
    /// If `out` is no bf16: a bug of the caller.
    pub fn initial(
        &mut self,
        stream: &Stream,
        mut out: DeviceSliceMut<'_>,
        key: u64,
        deviation: f32,
    ) -> Result<(), CudaError> {
        let n = out.len;
        let mut arguments =
            [out.holding(n, Element::Bf16).into(), Argument::from(n as u64), key.into(), deviation.into()];
        let geometry = Geometry::row(blocks(stream.gpu(), n, 2048, 16), BLOCK);
        // SAFETY: initial(bf16*, long long, unsigned long long, float); the length is checked above
        unsafe { self.initial.launch(stream, geometry, &mut arguments) }
    }

    /// `sum[1]`, u64, becomes a number that changes with each bit of the master weights and with its place; without
    /// `remainder` their lower halves are 0.
    ///
    /// # Errors
    /// The driver refused the launch.
    ///
    /// # Panics
    /// If a buffer is too short: a bug of the caller.
    pub fn fingerprint(
        &mut self,
        stream: &Stream,
        mut sum: DeviceSliceMut<'_>,
        weight: DeviceSlice<'_>,
        remainder: Option<DeviceSlice<'_>>,
    ) -> Result<(), CudaError> {
        let n = weight.len;
        let address = sum.holding(1, Element::U64);
        stream.fill(sum, 0)?;
        let mut arguments = [
            address.into(),
            weight.holding(n, Element::Bf16).into(),
            lower(remainder, n).into(),
            Argument::from(n as u64),
        ];
        let geometry = Geometry::row(blocks(stream.gpu(), n, 2048, 16), BLOCK);
        // SAFETY: fingerprint(unsigned long long*, const bf16*, const unsigned short*, long long); checked above
        unsafe { self.fingerprint.launch(stream, geometry, &mut arguments) }
    }
    /// Adds to `sum[1]`, 8 bytes that hold an integer, what changes with any one of the master weights, whose places count
    /// from `first`; without `remainder` their lower halves are 0.
    ///
    /// # Errors
    /// The driver refused the launch.
    ///
    /// # Panics
    /// If a buffer is too short: a bug of the caller.
    pub fn add_checksum(
        &mut self,
        stream: &Stream,
        mut sum: DeviceSliceMut<'_>,
        weight: DeviceSlice<'_>,
        remainder: Option<DeviceSlice<'_>>,
        first: usize,
    ) -> Result<(), CudaError> {
        let n = weight.len;
        let mut arguments = [
            sum.holding(1, Element::F64).into(),
            weight.holding(n, Element::Bf16).into(),
            lower(remainder, n).into(),
            Argument::from(n as u64),
            Argument::from(first as u64),
        ];
        let geometry = Geometry::row(blocks(stream.gpu(), n, 2048, 16), BLOCK);
        // SAFETY: checksum(unsigned long long*, const bf16*, const unsigned short*, long long, unsigned long long); lengths
        // are checked above, and the sum lies in 8 bytes of its own
        unsafe { self.checksum.launch(stream, geometry, &mut arguments) }
    }
}

/// Where the lower halves of `n` masters are: null where they are 0.
fn lower(remainder: Option<DeviceSlice<'_>>, n: usize) -> u64 {
    remainder.map_or(0, |remainder| remainder.holding(n, Element::Bf16))
}
