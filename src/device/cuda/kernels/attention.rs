//! rigscale's own flash attention: serves where cuDNN is missing or slower.

use crate::device::cuda::error::CudaError;
use crate::device::cuda::memory::{DeviceSlice, DeviceSliceMut, Element};
use crate::device::cuda::module::{Argument, Function, Geometry, Kernels, int};
use crate::device::cuda::stream::Stream;

use super::KernelSizes;

/// Query rows, and key rows, of a block.
const TILE: usize = 128;

/// Launches what `attention.cu` holds.
#[derive(Debug)]
pub struct AttentionKernels {
    forward: Function,
    delta: Function,
    backward_keys: Function,
    backward_queries: Function,
    heads: usize,
    kv_heads: usize,
    head_size: usize,
}

/// Sequences that attention runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionSizes {
    /// Sequences, `B`.
    pub batch: usize,
    /// Tokens of a sequence, `T`.
    pub context: usize,
}

/// What the backward pass reads.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSaved<'a> {
    /// `datt[B, T, H, D]`
    pub datt: DeviceSlice<'a>,
    /// `att[B, T, H, D]`
    pub att: DeviceSlice<'a>,
    /// `lse[B, H, T]`, f32
    pub lse: DeviceSlice<'a>,
    /// `qkv[B, T, (H + 2K), D]`, turned
    pub qkv: DeviceSlice<'a>,
}

impl AttentionKernels {
    pub(super) fn of(kernels: &Kernels, sizes: &KernelSizes) -> Result<Self, CudaError> {
        Ok(Self {
            forward: kernels.function("attention_forward")?,
            delta: kernels.function("attention_delta")?,
            backward_keys: kernels.function("attention_backward_keys")?,
            backward_queries: kernels.function("attention_backward_queries")?,
            heads: sizes.heads,
            kv_heads: sizes.kv_heads,
            head_size: sizes.head_size,
        })
    }

    /// Elements of f32 that [`AttentionKernels::backward`] works in: one for each query and head.
    #[must_use]
    pub fn workspace(&self, sizes: AttentionSizes) -> usize {
        sizes.batch * sizes.context * self.heads
    }

    fn lengths(&self, sizes: AttentionSizes) -> [usize; 3] {
        let rows = sizes.batch * sizes.context;
        [
            rows * (self.heads + 2 * self.kv_heads) * self.head_size,
            rows * self.heads * self.head_size,
            rows * self.heads,
        ]
    }

    /// Shared memory of a block, for heads of 64 and of 128.
    fn shared(&self, small: usize, large: usize) -> usize {
        if self.head_size == 64 { small } else { large }
    }

    /// `att[B, T, H, D]` and `lse[B, H, T]` of `qkv[B, T, (H + 2K), D]`.
    ///
    /// # Errors
    /// The driver refused the launch.
    ///
    /// # Panics
    /// If a buffer is too short: a bug of the caller.
    pub fn forward(
        &mut self,
        stream: &Stream,
        [mut att, mut lse]: [DeviceSliceMut<'_>; 2],
        qkv: DeviceSlice<'_>,
        sizes: AttentionSizes,
    ) -> Result<(), CudaError> {
        let [packed, attended, queries] = self.lengths(sizes);
        let AttentionSizes { batch, context } = sizes;
        let mut arguments = [
            att.holding(attended, Element::Bf16).into(),
            lse.holding(queries, Element::F32).into(),
            qkv.holding(packed, Element::Bf16).into(),
            int(batch),
            int(context),
        ];
        let blocks = batch * self.heads * context.div_ceil(TILE);
        let geometry = Geometry { grid: [blocks, 1, 1], block: 128, shared: self.shared(49_152, 65_536) };
        // SAFETY: attention_forward(bf16*, float*, const bf16*, int, int); lengths are checked above
        unsafe { self.forward.launch(stream, geometry, &mut arguments) }
    }

    /// `dqkv[B, T, (H + 2K), D]`; `workspace` holds [`AttentionKernels::workspace`] elements.
    ///
    /// # Errors
    /// The driver refused a launch.
    ///
    /// # Panics
    /// If a buffer is too short: a bug of the caller.
    pub fn backward(
        &mut self,
        stream: &Stream,
        mut dqkv: DeviceSliceMut<'_>,
        saved: AttentionSaved<'_>,
        mut workspace: DeviceSliceMut<'_>,
        sizes: AttentionSizes,
    ) -> Result<(), CudaError> {
        let [packed, attended, queries] = self.lengths(sizes);
        let AttentionSizes { batch, context } = sizes;
        let delta = Argument::from(workspace.holding(queries, Element::F32));
        let att = saved.att.holding(attended, Element::Bf16).into();
        let datt = Argument::from(saved.datt.holding(attended, Element::Bf16));
        let mut arguments = [delta, att, datt, int(batch), int(context)];
        let geometry = Geometry::row(attended.div_ceil(2048), 256);
        // SAFETY: attention_delta(float*, const bf16* ×2, int, int); lengths are checked above
        unsafe { self.delta.launch(stream, geometry, &mut arguments) }?;
        let dqkv = Argument::from(dqkv.holding(packed, Element::Bf16));
        let lse = saved.lse.holding(queries, Element::F32).into();
        let qkv = saved.qkv.holding(packed, Element::Bf16).into();
        let mut arguments = [dqkv, datt, lse, delta, qkv, int(batch), int(context)];
        let tiles = batch * context.div_ceil(TILE);
        let geometry =
            Geometry { grid: [tiles * self.kv_heads, 1, 1], block: 256, shared: self.shared(100_352, 99_328) };
        // SAFETY: attention_backward_keys(bf16*, const bf16*, const float* ×2, const bf16*, int, int); checked above
        unsafe { self.backward_keys.launch(stream, geometry, &mut arguments) }?;
        let geometry = Geometry { grid: [tiles * self.heads, 1, 1], block: 128, shared: self.shared(65_536, 98_304) };
        // SAFETY: attention_backward_queries takes the same; lengths are checked above
        unsafe { self.backward_queries.launch(stream, geometry, &mut arguments) }
    }
}
