//! Token embedding.

use crate::device::cuda::error::CudaError;
use crate::device::cuda::memory::{DeviceSlice, DeviceSliceMut, Element};
use crate::device::cuda::module::{Argument, Function, Geometry, Kernels, int};
use crate::device::cuda::stream::Stream;

use super::KernelSizes;

/// Rows of the sorted batch that are added as one part; CHUNK in the source.
const CHUNK: usize = 32;
/// Ids that a team of threads takes.
const IDS: usize = 4;
/// Threads of a block.
const BLOCK: usize = 256;

/// Launches what `embedding.cu` holds.
#[derive(Debug)]
pub struct EmbeddingKernels {
    embed: Function,
    chunks: Function,
    backward: Function,
    width: usize,
    vocabulary: usize,
}

/// A batch of `N` tokens on the GPU, sorted by id.
#[derive(Debug, Clone, Copy)]
pub struct SortedTokens<'a> {
    /// `ids[N]`
    pub ids: DeviceSlice<'a>,
    /// `order[N]`: rows of id 0, then of id 1, …, ascending within one id.
    pub order: DeviceSlice<'a>,
    /// `starts[V + 1]`: where the rows of each id begin in `order`.
    pub starts: DeviceSlice<'a>,
}

impl EmbeddingKernels {
    pub(super) fn of(kernels: &Kernels, sizes: &KernelSizes) -> Result<Self, CudaError> {
        Ok(Self {
            embed: kernels.function("embed")?,
            chunks: kernels.function("embed_chunks")?,
            backward: kernels.function("embed_backward")?,
            width: sizes.width,
            vocabulary: sizes.vocabulary,
        })
    }

    /// Elements of f32 that [`EmbeddingKernels::embed_backward`] works in, for a batch of `rows` tokens.
    #[must_use]
    pub fn workspace(rows: usize, width: usize) -> usize {
        rows.div_ceil(CHUNK) * 2 * width
    }

    /// `x[N, W] = table[ids[N], W]`.
    ///
    /// # Errors
    /// The driver refused the launch.
    ///
    /// # Panics
    /// If a buffer is too short: a bug of the caller.
    pub fn embed(
        &mut self,
        stream: &Stream,
        mut x: DeviceSliceMut<'_>,
        table: DeviceSlice<'_>,
        ids: DeviceSlice<'_>,
        rows: usize,
    ) -> Result<(), CudaError> {
        let mut arguments = [
            x.holding(rows * self.width, Element::Bf16).into(),
            table.holding(self.vocabulary * self.width, Element::Bf16).into(),
            ids.holding(rows, Element::U32).into(),
            int(rows),
        ];
        let geometry = Geometry::row((rows * self.width).div_ceil(8192), BLOCK);
        // SAFETY: embed(bf16*, const bf16*, const unsigned*, int); lengths are checked above, ids by the host
        unsafe { self.embed.launch(stream, geometry, &mut arguments) }
    }

    /// `dtable[V, W] (+)= Σ dx[rows of the id]`; rows of absent ids become zero where it is not accumulated.
    ///
    /// # Errors
    /// The driver refused a launch.
    ///
    /// # Panics
    /// If a buffer is too short: a bug of the caller.
    #[expect(clippy::too_many_arguments, reason = "a kernel names each of its buffers")]
    pub fn embed_backward(
        &mut self,
        stream: &Stream,
        mut dtable: DeviceSliceMut<'_>,
        accumulate: bool,
        dx: DeviceSlice<'_>,
        tokens: SortedTokens<'_>,
        mut workspace: DeviceSliceMut<'_>,
        rows: usize,
    ) -> Result<(), CudaError> {
        let teams = BLOCK / team(self.width);
        let parts = Argument::from(workspace.holding(Self::workspace(rows, self.width), Element::F32));
        let dx = Argument::from(dx.holding(rows * self.width, Element::Bf16));
        let order = Argument::from(tokens.order.holding(rows, Element::U32));
        let starts = Argument::from(tokens.starts.holding(self.vocabulary + 1, Element::U32));
        let ids = Argument::from(tokens.ids.holding(rows, Element::U32));
        let mut arguments = [parts, dx, ids, order, starts, int(rows)];
        let geometry = Geometry::row((2 * rows.div_ceil(CHUNK)).div_ceil(teams), BLOCK);
        // SAFETY: embed_chunks(float*, const bf16*, const unsigned* ×3, int); lengths are checked above
        unsafe { self.chunks.launch(stream, geometry, &mut arguments) }?;
        let dtable = Argument::from(dtable.holding(self.vocabulary * self.width, Element::Bf16));
        let mut arguments =
            [dtable, dx, order, starts, parts, int(self.vocabulary), Argument::from(i32::from(accumulate))];
        let geometry = Geometry::row(self.vocabulary.div_ceil(IDS).div_ceil(teams), BLOCK);
        // SAFETY: embed_backward(bf16*, const bf16*, const unsigned* ×2, const float*, int, int); as above
        unsafe { self.backward.launch(stream, geometry, &mut arguments) }
    }
}

/// Threads that share a row: `team_of` of the prelude.
pub(super) fn team(width: usize) -> usize {
    let vectors = width / 8;
    let mut team = 32;
    while team < BLOCK && 4 * team < vectors {
        team *= 2;
    }
    team
}
