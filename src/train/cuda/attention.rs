//! Which attention computes: cuDNN's or rigscale's own, each pass chosen by its time on this GPU with these sizes.
//!
//! Both read and write the same layouts, so any forward pass goes with any backward pass.

use serde::{Deserialize, Serialize};

use crate::device::cuda::cudnn::{AttentionDims, AttentionGraph, AttentionTensors, CudnnHandle};
use crate::device::cuda::kernels::{AttentionKernels, AttentionSaved, AttentionSizes};
use crate::device::cuda::{Cache, CudaError, DeviceBuffer, Events, Stream, cache_key};
use crate::stats;
use crate::train::decoder::AttentionBuffers;
use crate::train::ops::{Attended, Heads};
use crate::units::{Bytes, Seconds};

use super::Cuda;

/// Runs that a candidate is timed over; the median counts.
const RUNS: usize = 5;

/// One way to compute a pass.
#[derive(Debug)]
enum Way {
    /// rigscale's own kernels.
    Own,
    /// A graph of cuDNN.
    Cudnn(Box<AttentionGraph>),
}

/// Attention for one size of heads and sequences.
#[derive(Debug)]
pub(super) struct Attention {
    own: Option<AttentionKernels>,
    forward: Way,
    backward: Way,
    /// After the graphs that are made with it.
    cudnn: Option<CudnnHandle>,
    /// Why cuDNN cannot serve.
    missing: Option<String>,
    /// Each candidate with its time, or why it was none.
    told: Vec<String>,
    /// What the own backward pass works in, and cuDNN's forward pass.
    delta: DeviceBuffer,
    /// Memory that is free during the backward pass, for cuDNN's.
    spare: Option<DeviceBuffer>,
}

/// Buffers that passes are timed on.
pub(super) type Trial<'a> = AttentionBuffers<'a, Cuda>;

/// Which way serves each pass: true for cuDNN's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    forward: bool,
    backward: bool,
}

impl Attention {
    /// Own kernels only, until [`Attention::choose`].
    pub(super) fn own(own: Option<AttentionKernels>, delta: DeviceBuffer) -> Self {
        Self {
            own,
            forward: Way::Own,
            backward: Way::Own,
            cudnn: None,
            missing: None,
            told: Vec::new(),
            delta,
            spare: None,
        }
    }

    /// Lets cuDNN work in memory that nobody needs during the backward pass.
    pub(super) fn lend(&mut self, spare: DeviceBuffer) {
        self.spare = Some(spare);
    }

    /// What serves these sizes, for each pass, the own first. Why cuDNN does not is told.
    fn candidates(&mut self, stream: &Stream, dims: Heads, deterministic: bool) -> [Vec<Way>; 2] {
        let own = || self.own.iter().map(|_| Way::Own).collect();
        let (mut forwards, mut backwards): (Vec<Way>, Vec<Way>) = (own(), own());
        match CudnnHandle::open(stream) {
            Ok(handle) => {
                let sizes = cudnn_dims(dims);
                let spare = self.spare.as_ref().map_or(0, |spare| spare.len() as u64 * spare.element().bytes());
                let forward = AttentionGraph::forward(&handle, sizes);
                let backward = if deterministic {
                    // beside the scores it keeps a number for each query and head
                    let scores = spare.saturating_sub(4 * self.delta.len() as u64 + 4096);
                    AttentionGraph::deterministic_backward(&handle, sizes, scores)
                } else {
                    AttentionGraph::backward(&handle, sizes)
                };
                for (graph, room, ways) in
                    [(forward, 4 * self.delta.len() as u64, &mut forwards), (backward, spare, &mut backwards)]
                {
                    match graph {
                        Ok(graph) if graph.workspace_bytes() <= room => ways.push(Way::Cudnn(Box::new(graph))),
                        Ok(graph) => {
                            let bytes = Bytes(graph.workspace_bytes());
                            self.told.push(format!(
                                "cuDNN's {graph:?} needs {bytes} of workspace; {} are left",
                                Bytes(room)
                            ));
                        }
                        Err(error) => self.told.push(error.to_string()),
                    }
                }
                self.cudnn = Some(handle);
            }
            Err(error) => self.missing = Some(error.to_string()),
        }
        [forwards, backwards]
    }

    /// Times what serves these sizes and keeps the fastest of each pass; among those that repeat to the bit if
    /// `deterministic`. What an earlier start kept under the same key is taken untimed.
    ///
    /// # Errors
    /// Nothing serves these sizes, or the GPU failed.
    pub(super) fn choose(
        &mut self,
        stream: &Stream,
        dims: Heads,
        deterministic: bool,
        trial: Trial<'_>,
        (cache, key_parts): (&mut Cache, &[&str]),
    ) -> Result<(), CudaError> {
        let [forwards, backwards] = self.candidates(stream, dims, deterministic);
        let version = self.cudnn.as_ref().map_or_else(String::new, CudnnHandle::version);
        let file = cache_key("attention", &[key_parts, &[&version, env!("CARGO_PKG_VERSION")]].concat());
        let kept: Option<Kept> = cache.read(&file).and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let Trial { qkv, att, lse, datt, dqkv } = trial;
        self.forward = self.fastest(stream, "forward", forwards, kept.map(|kept| kept.forward), |this, way| {
            this.run_forward(way, stream, dims, [&mut *att, &mut *lse], qkv)
        })?;
        self.backward = self.fastest(stream, "backward", backwards, kept.map(|kept| kept.backward), |this, way| {
            let saved = Attended { att: &*att, lse: &*lse, qkv: &*qkv };
            this.run_backward(way, stream, dims, dqkv, datt, saved)
        })?;
        let chosen =
            Kept { forward: matches!(self.forward, Way::Cudnn(_)), backward: matches!(self.backward, Way::Cudnn(_)) };
        if kept != Some(chosen)
            && let Ok(bytes) = serde_json::to_vec(&chosen)
        {
            cache.write(&file, &bytes);
        }
        Ok(())
    }

    /// The way that an earlier start kept, or the fastest of those that run.
    fn fastest(
        &mut self,
        stream: &Stream,
        pass: &'static str,
        mut ways: Vec<Way>,
        kept: Option<bool>,
        mut run: impl FnMut(&mut Self, &Way) -> Result<(), CudaError>,
    ) -> Result<Way, CudaError> {
        if let Some(at) = kept.and_then(|cudnn| ways.iter().position(|way| matches!(way, Way::Cudnn(_)) == cudnn)) {
            return Ok(ways.swap_remove(at));
        }
        let mut best: Option<(Seconds, Way)> = None;
        for way in ways {
            let time = match self.time(stream, |this| run(this, &way)) {
                Ok(time) => time,
                Err(error) => {
                    self.told.push(format!("attention {pass} by {}: {error}", self.name(&way)));
                    continue;
                }
            };
            self.told.push(format!("attention {pass} by {}: {time}", self.name(&way)));
            if best.as_ref().is_none_or(|(fastest, _)| time < *fastest) {
                best = Some((time, way));
            }
        }
        best.map(|(_, way)| way)
            .ok_or_else(|| CudaError::Unserved { operation: "attention", sizes: self.told.join("; ") })
    }

    /// Each candidate with its time, or why it was none.
    pub(super) fn told(&self) -> &[String] {
        &self.told
    }

    /// Why cuDNN cannot serve, where it cannot.
    pub(super) fn missing(&self) -> Option<&String> {
        self.missing.as_ref()
    }

    /// What was chosen: `cudnn 9.19.0 forward, own backward`.
    pub(super) fn chosen(&self) -> String {
        format!("{} forward, {} backward", self.name(&self.forward), self.name(&self.backward))
    }

    fn name(&self, way: &Way) -> String {
        match (way, &self.cudnn) {
            (Way::Cudnn(graph), Some(cudnn)) => {
                format!("cudnn {}{}", cudnn.version(), if graph.repeats() { "" } else { " (not bit-identical)" })
            }
            _ => "own".into(),
        }
    }

    fn time(
        &mut self,
        stream: &Stream,
        mut run: impl FnMut(&mut Self) -> Result<(), CudaError>,
    ) -> Result<Seconds, CudaError> {
        let mut events = Events::default();
        let mut times = Vec::with_capacity(RUNS);
        // the first run loads code
        for index in 0..=RUNS {
            let begin = events.record(stream)?;
            run(self)?;
            let time = events.record(stream)?.since(&begin)?;
            if 0 < index {
                times.push(time.0);
            }
        }
        Ok(Seconds(stats::median(&times)))
    }

    /// See [`Ops::attention`](crate::train::Ops::attention).
    pub(super) fn forward(
        &mut self,
        stream: &Stream,
        dims: Heads,
        out: [&mut DeviceBuffer; 2],
        qkv: &DeviceBuffer,
    ) -> Result<(), CudaError> {
        let way = std::mem::replace(&mut self.forward, Way::Own);
        let done = self.run_forward(&way, stream, dims, out, qkv);
        self.forward = way;
        done
    }

    /// See [`Ops::attention_backward`](crate::train::Ops::attention_backward).
    pub(super) fn backward(
        &mut self,
        stream: &Stream,
        dims: Heads,
        dqkv: &mut DeviceBuffer,
        datt: &DeviceBuffer,
        saved: Attended<'_, DeviceBuffer>,
    ) -> Result<(), CudaError> {
        let way = std::mem::replace(&mut self.backward, Way::Own);
        let done = self.run_backward(&way, stream, dims, dqkv, datt, saved);
        self.backward = way;
        done
    }

    fn run_forward(
        &mut self,
        way: &Way,
        stream: &Stream,
        dims: Heads,
        [att, lse]: [&mut DeviceBuffer; 2],
        qkv: &DeviceBuffer,
    ) -> Result<(), CudaError> {
        if let (Way::Cudnn(graph), Some(handle)) = (way, &mut self.cudnn) {
            return graph.run_forward(handle, stream, [att.all_mut(), lse.all_mut()], qkv.all(), self.delta.all_mut());
        }
        let own = self.own.as_mut().ok_or_else(|| unserved(dims))?;
        own.forward(stream, [att.all_mut(), lse.all_mut()], qkv.all(), sizes(dims))
    }

    fn run_backward(
        &mut self,
        way: &Way,
        stream: &Stream,
        dims: Heads,
        dqkv: &mut DeviceBuffer,
        datt: &DeviceBuffer,
        saved: Attended<'_, DeviceBuffer>,
    ) -> Result<(), CudaError> {
        let (att, lse, qkv) = (saved.att.all(), saved.lse.all(), saved.qkv.all());
        if let Way::Cudnn(graph) = way {
            let (Some(handle), Some(spare)) = (&mut self.cudnn, &mut self.spare) else { return Err(unserved(dims)) };
            let tensors = AttentionTensors { qkv, att, lse, datt: datt.all() };
            return graph.run_backward(handle, stream, dqkv.all_mut(), tensors, spare.all_mut());
        }
        let own = self.own.as_mut().ok_or_else(|| unserved(dims))?;
        let saved = AttentionSaved { datt: datt.all(), att, lse, qkv };
        own.backward(stream, dqkv.all_mut(), saved, self.delta.all_mut(), sizes(dims))
    }
}

fn sizes(dims: Heads) -> AttentionSizes {
    AttentionSizes { batch: dims.tokens.batch, context: dims.tokens.context }
}

fn cudnn_dims(dims: Heads) -> AttentionDims {
    let Heads { tokens, heads, kv_heads, head_size } = dims;
    AttentionDims { batch: tokens.batch, context: tokens.context, heads, kv_heads, head_size }
}

/// The error of sizes that no attention takes.
fn unserved(dims: Heads) -> CudaError {
    CudaError::Unserved { operation: "attention", sizes: format!("heads of {} elements", dims.head_size) }
}

/// Elements of f32 that the own backward pass works in: one for each query and head.
pub(super) fn delta_len(dims: Heads) -> usize {
    dims.tokens.rows() * dims.heads
}
