//! Causal grouped-query flash attention by cuDNN.
//!
//! Knows: how packed q, k, v lie in memory, which engine runs a pass and what workspace it needs.
//! Hides: graphs, engine configurations and plans. Never allocates device memory and never waits for
//! the GPU: `execute` puts work on a stream, which may be under capture.
//!
//! With B sequences of T tokens, H heads, K kv heads (K divides H) of size D:
//! qkv and dqkv are bf16 [B, T, H + 2K, D], heads in the order q, k, v; att and datt are bf16
//! [B, T, H, D]; lse is f32 [B, H, T]; att = softmax(q · kᵀ / √D, token ≥ key) · v.

use std::ffi::c_void;
use std::fmt;

use super::super::error::CudaError;
use super::super::memory::{DeviceSlice, DeviceSliceMut, Element};
use super::super::stream::Stream;
use super::CudnnHandle;
use super::descriptor::{Attribute, Descriptor, HeuristicMode, Kind};
use super::dims::AttentionDims;
use super::nodes::{Id, Nodes};

/// Which way the graph goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// att and lse.
    Forward,
    /// dqkv, dq summed up by atomic additions: the same input may give other bits.
    Backward,
    /// dqkv with the same bits for the same input. cuDNN keeps the scores' gradients in the workspace,
    /// 2 · B · H · T² bytes, so the pass runs in parts: as many sequences at a time, or kv heads of one
    /// sequence, as keep that within `scores_bytes`; at the least one kv head.
    DeterministicBackward {
        /// Bytes of scores' gradients to keep at a time.
        scores_bytes: u64,
    },
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forward => "forward attention",
            Self::Backward => "backward attention",
            Self::DeterministicBackward { .. } => "deterministic backward attention",
        })
    }
}

/// Device addresses of one execution; all are multiples of 16 bytes.
#[derive(Clone, Copy, Debug)]
struct AttentionPointers {
    /// bf16 [B, T, H + 2K, D], read.
    qkv: u64,
    /// bf16 [B, T, H, D]: written by the forward pass, read by the backward pass.
    att: u64,
    /// f32 [B, H, T]: written by the forward pass, read by the backward pass.
    lse: u64,
    /// bf16 [B, T, H, D], read by the backward pass; otherwise unused.
    datt: u64,
    /// bf16 [B, T, H + 2K, D], written by the backward pass in full; otherwise unused.
    dqkv: u64,
}

/// What the backward pass reads.
#[derive(Clone, Copy, Debug)]
pub struct AttentionTensors<'a> {
    /// bf16 `[B, T, H + 2K, D]`
    pub qkv: DeviceSlice<'a>,
    /// bf16 `[B, T, H, D]`
    pub att: DeviceSlice<'a>,
    /// f32 `[B, H, T]`
    pub lse: DeviceSlice<'a>,
    /// bf16 `[B, T, H, D]`
    pub datt: DeviceSlice<'a>,
}

impl fmt::Debug for AttentionGraph {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "AttentionGraph({} {})", self.pass, self.dims)
    }
}

/// One pass of one shape, ready to run.
pub struct AttentionGraph {
    pass: Pass,
    dims: AttentionDims,
    /// What one run of the plan covers.
    part: AttentionDims,
    /// What `execute` runs.
    plan: Plan,
    /// 1/√D, −∞ and 1, which plans read on the host at each execution.
    scalars: Box<[f32; 3]>,
    /// Dropped after the plan, which was made from one of them.
    _configurations: Vec<Descriptor>,
    /// Dropped last: what the configurations were made from.
    _graph: Descriptor,
    _nodes: Nodes,
}

/// A configuration made ready.
struct Plan {
    descriptor: Descriptor,
    /// Bytes of workspace, without what the graph itself keeps there.
    bytes: u64,
}

/// Everything in the workspace starts at a multiple of this many bytes.
const ALIGNED: u64 = 256;

impl AttentionGraph {
    /// att and lse from qkv.
    pub fn forward(handle: &CudnnHandle, dims: AttentionDims) -> Result<Self, CudaError> {
        Self::build(handle, Pass::Forward, dims)
    }

    /// dqkv from qkv, att, lse and datt, fastest.
    pub fn backward(handle: &CudnnHandle, dims: AttentionDims) -> Result<Self, CudaError> {
        Self::build(handle, Pass::Backward, dims)
    }

    /// dqkv from qkv, att, lse and datt, the same bits each time, in parts of about `scores_bytes` of
    /// workspace (see `Pass`).
    pub fn deterministic_backward(
        handle: &CudnnHandle,
        dims: AttentionDims,
        scores_bytes: u64,
    ) -> Result<Self, CudaError> {
        Self::build(handle, Pass::DeterministicBackward { scores_bytes }, dims)
    }

    /// Describes the pass, asks for engines and makes the first ready that can be.
    fn build(handle: &CudnnHandle, pass: Pass, dims: AttentionDims) -> Result<Self, CudaError> {
        if let Some(why) = dims.broken_rule() {
            return Err(CudaError::Unserved { operation: "attention", sizes: format!("{dims}: {why}") });
        }
        let cudnn = &handle.cudnn;
        let (part, nodes) = match pass {
            Pass::Forward => (dims, Nodes::forward(cudnn, dims)?),
            Pass::Backward => (dims, Nodes::backward(cudnn, dims, dims, false)?),
            Pass::DeterministicBackward { scores_bytes } => {
                let part = dims.part(scores_bytes);
                (part, Nodes::backward(cudnn, dims, part, true)?)
            }
        };
        let operations: Vec<_> = nodes.operations().iter().map(Descriptor::raw).collect();
        let mut graph = Descriptor::new(cudnn, Kind::OPERATION_GRAPH)?;
        graph.set_descriptors(Attribute::OPERATIONGRAPH_OPS, &operations)?;
        graph.set_handle(Attribute::OPERATIONGRAPH_HANDLE, handle.raw)?;
        graph.finalize()?;
        let (configurations, plan) = prepare(handle, &graph).map_err(|why| {
            let reason = why.map_or_else(|| cudnn.last_error(), |error| format!(": {error}"));
            CudaError::Unserved { operation: "attention of cuDNN", sizes: format!("{pass} {dims}{reason}") }
        })?;
        let scalars = Box::new([1.0 / (dims.head_size as f32).sqrt(), f32::NEG_INFINITY, 1.0]);
        Ok(Self { pass, dims, part, plan, scalars, _configurations: configurations, _graph: graph, _nodes: nodes })
    }

    /// Bytes of device memory that one execution needs besides its tensors. Contents need no clearing
    /// and are not kept.
    pub fn workspace_bytes(&self) -> u64 {
        let [_, _, plan] = self.workspace_parts();
        plan + self.plan.bytes
    }

    /// Where row sums, f32 sums of dq and the plan's own part start.
    fn workspace_parts(&self) -> [u64; 3] {
        let rows = self.part.rows() as u64 * size_of::<f32>() as u64;
        let (row_sums, dq_sums) = match self.pass {
            Pass::Forward => (0, 0),
            Pass::Backward => (rows, rows * self.part.head_size as u64),
            Pass::DeterministicBackward { .. } => (rows, 0),
        };
        let dq = row_sums.next_multiple_of(ALIGNED);
        [0, dq, dq + dq_sums.next_multiple_of(ALIGNED)]
    }

    /// True if the same input gives the same bits.
    #[must_use]
    pub fn repeats(&self) -> bool {
        self.pass != Pass::Backward
    }

    fn check_workspace(&self, workspace: &DeviceSliceMut<'_>) {
        let bytes = workspace.len as u64 * workspace.element.bytes();
        assert!(self.workspace_bytes() <= bytes, "{} bytes of workspace where {bytes} are", self.workspace_bytes());
    }

    /// Elements of qkv, of att and of lse.
    fn lengths(&self) -> [usize; 3] {
        let AttentionDims { batch, context, heads, head_size, .. } = self.dims;
        let rows = batch * context;
        [rows * self.dims.packed_heads() * head_size, rows * heads * head_size, rows * heads]
    }

    /// att and lse from qkv, on `stream`, which may be recorded into a graph; `workspace` holds
    /// [`AttentionGraph::workspace_bytes`].
    ///
    /// # Errors
    /// cuDNN failed.
    ///
    /// # Panics
    /// If a buffer is too short, or the graph is of the other pass: bugs of the caller.
    pub fn run_forward(
        &self,
        handle: &mut CudnnHandle,
        stream: &Stream,
        [mut att, mut lse]: [DeviceSliceMut<'_>; 2],
        qkv: DeviceSlice<'_>,
        workspace: DeviceSliceMut<'_>,
    ) -> Result<(), CudaError> {
        self.check_workspace(&workspace);
        assert!(self.pass == Pass::Forward, "{} where the forward pass is asked for", self.pass);
        let [packed, attended, queries] = self.lengths();
        let pointers = AttentionPointers {
            qkv: qkv.holding(packed, Element::Bf16),
            att: att.holding(attended, Element::Bf16),
            lse: lse.holding(queries, Element::F32),
            datt: 0,
            dqkv: 0,
        };
        // SAFETY: the buffers hold what the graph reads and writes, and the workspace is large enough
        unsafe { self.execute(handle, stream, workspace.address, &pointers) }
    }

    /// dqkv from what the forward pass read and wrote, and from datt; `workspace` holds
    /// [`AttentionGraph::workspace_bytes`].
    ///
    /// # Errors
    /// cuDNN failed.
    ///
    /// # Panics
    /// If a buffer is too short, or the graph is of the other pass: bugs of the caller.
    pub fn run_backward(
        &self,
        handle: &mut CudnnHandle,
        stream: &Stream,
        mut dqkv: DeviceSliceMut<'_>,
        tensors: AttentionTensors<'_>,
        workspace: DeviceSliceMut<'_>,
    ) -> Result<(), CudaError> {
        assert!(self.pass != Pass::Forward, "{} where the backward pass is asked for", self.pass);
        self.check_workspace(&workspace);
        let [packed, attended, queries] = self.lengths();
        let pointers = AttentionPointers {
            qkv: tensors.qkv.holding(packed, Element::Bf16),
            att: tensors.att.holding(attended, Element::Bf16),
            lse: tensors.lse.holding(queries, Element::F32),
            datt: tensors.datt.holding(attended, Element::Bf16),
            dqkv: dqkv.holding(packed, Element::Bf16),
        };
        // SAFETY: the buffers hold what the graph reads and writes, and the workspace is large enough
        unsafe { self.execute(handle, stream, workspace.address, &pointers) }
    }

    /// Puts one pass on `stream` and returns. Allocates no device memory.
    ///
    /// # Safety
    /// The context of `handle` is current on the calling thread and `stream` belongs to it. Until the stream has passed
    /// this work, and for as long as a graph recorded from it is replayed: each address that the pass uses is device
    /// memory of the stated shape, `workspace` is `workspace_bytes()` bytes of device memory at a multiple of 256 that
    /// nothing else uses, and `self` is alive.
    unsafe fn execute(
        &self,
        handle: &mut CudnnHandle,
        stream: &Stream,
        workspace: u64,
        pointers: &AttentionPointers,
    ) -> Result<(), CudaError> {
        let plan = &self.plan.descriptor;
        handle.set_stream(stream)?;
        for batch in (0..self.dims.batch).step_by(self.part.batch) {
            for kv_head in (0..self.dims.kv_heads).step_by(self.part.kv_heads) {
                let pack = self.pack(handle, workspace, &self.addresses(batch, kv_head, workspace, pointers))?;
                // SAFETY: cuDNN launches kernels that touch the tensors and the workspace, for which the
                // caller answers, and reads the three scalars on the host before it returns, which `self`
                // keeps. Parts follow each other on the stream, so they share the workspace.
                let status =
                    unsafe { (handle.cudnn.functions.cudnnBackendExecute)(handle.raw, plan.raw(), pack.raw()) };
                handle.cudnn.check(status, "cudnnBackendExecute", || format!("{} {}", self.pass, self.dims))?;
            }
        }
        Ok(())
    }

    /// The addresses of one run, as cuDNN takes them.
    fn pack(&self, handle: &CudnnHandle, workspace: u64, tensors: &[(Id, u64)]) -> Result<Descriptor, CudaError> {
        let ids: Vec<i64> = tensors.iter().map(|&(id, _)| id as i64).collect();
        let addresses: Vec<*mut c_void> = tensors.iter().map(|&(_, address)| address as *mut c_void).collect();
        let [_, _, plan] = self.workspace_parts();
        let mut pack = Descriptor::new(&handle.cudnn, Kind::VARIANT_PACK)?;
        pack.set(Attribute::VARIANT_PACK_UNIQUE_IDS, &ids)?
            .set(Attribute::VARIANT_PACK_DATA_POINTERS, &addresses)?
            .set(Attribute::VARIANT_PACK_WORKSPACE, &[(workspace + plan) as *mut c_void])?
            .finalize()?;
        Ok(pack)
    }

    /// The tensors of the part that starts at sequence `batch` and kv head `kv_head`.
    fn addresses(&self, batch: usize, kv_head: usize, workspace: u64, pointers: &AttentionPointers) -> Vec<(Id, u64)> {
        let AttentionDims { context, heads, kv_heads, head_size, .. } = self.dims;
        let head = kv_head * (heads / kv_heads);
        let (size, token) = (head_size as u64 * 2, (batch * context) as u64);
        let packed = |first: usize| (token * self.dims.packed_heads() as u64 + first as u64) * size;
        let (q, k, v) = (packed(head), packed(heads + kv_head), packed(heads + kv_heads + kv_head));
        let att = (token * heads as u64 + head as u64) * size;
        let lse = ((batch * heads + head) * context * size_of::<f32>()) as u64;
        let [row_sum, dq_sum, _] = self.workspace_parts();
        let host = |index: usize| (&raw const self.scalars[index]) as u64;
        let mut all = vec![
            (Id::Q, pointers.qkv + q),
            (Id::K, pointers.qkv + k),
            (Id::V, pointers.qkv + v),
            (Id::Att, pointers.att + att),
            (Id::Lse, pointers.lse + lse),
            (Id::Scale, host(0)),
            (Id::Masked, host(1)),
        ];
        if self.pass != Pass::Forward {
            all.extend([
                (Id::One, host(2)),
                (Id::Datt, pointers.datt + att),
                (Id::Dq, pointers.dqkv + q),
                (Id::Dk, pointers.dqkv + k),
                (Id::Dv, pointers.dqkv + v),
                (Id::RowSum, workspace + row_sum),
            ]);
        }
        if self.pass == Pass::Backward {
            all.push((Id::DqSum, workspace + dq_sum));
        }
        all
    }
}

impl Plan {
    /// Makes a configuration ready, which compiles code: about 60 ms on a fast host.
    fn new(configuration: &Descriptor) -> Result<Self, CudaError> {
        let mut descriptor = Descriptor::new(configuration.cudnn(), Kind::EXECUTION_PLAN)?;
        descriptor.set_descriptors(Attribute::EXECUTION_PLAN_ENGINE_CONFIG, &[configuration.raw()])?.finalize()?;
        let mut bytes = [0_i64];
        descriptor.get(Attribute::EXECUTION_PLAN_WORKSPACE_SIZE, &mut bytes)?;
        Ok(Self { descriptor, bytes: u64::try_from(bytes[0]).unwrap_or(0) })
    }
}

/// Asks the heuristics, first for the estimate of run time, then for what always runs; makes the first
/// configuration ready that can be. An error is why the last could not, if there was one.
///
/// cuDNN's notes of nondeterminism are no help to choose by: no attention engine carries one.
fn prepare(handle: &CudnnHandle, graph: &Descriptor) -> Result<(Vec<Descriptor>, Plan), Option<CudaError>> {
    let mut failed = None;
    for mode in [HeuristicMode::A, HeuristicMode::FALLBACK] {
        let configurations = match ask(handle, graph, mode) {
            Ok(configurations) => configurations,
            Err(error) => {
                failed = Some(error);
                continue;
            }
        };
        for configuration in &configurations {
            match Plan::new(configuration) {
                Ok(plan) => return Ok((configurations, plan)),
                Err(error) => failed = Some(error),
            }
        }
    }
    Err(failed)
}

/// The configurations that one mode of the heuristics gives, best first.
fn ask(handle: &CudnnHandle, graph: &Descriptor, mode: HeuristicMode) -> Result<Vec<Descriptor>, CudaError> {
    let cudnn = &handle.cudnn;
    let mut heuristics = Descriptor::new(cudnn, Kind::ENGINE_HEURISTICS)?;
    heuristics
        .set_descriptors(Attribute::ENGINEHEUR_OPERATION_GRAPH, &[graph.raw()])?
        .set(Attribute::ENGINEHEUR_MODE, &[mode])?;
    heuristics.finalize()?;
    let count = heuristics.count_descriptors(Attribute::ENGINEHEUR_RESULTS)?;
    heuristics.get_descriptors(Attribute::ENGINEHEUR_RESULTS, Kind::ENGINE_CONFIG, count)
}
