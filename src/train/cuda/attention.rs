//! Which attention computes: cuDNN's or rigscale's own, each pass chosen by its time on this GPU with these sizes.
//!
//! Both read and write the same layouts, so any forward pass goes with any backward pass.

use crate::device::cuda::cudnn::{AttentionDims, AttentionGraph, AttentionTensors, CudnnHandle};
use crate::device::cuda::kernels::{AttentionKernels, AttentionSaved, AttentionSizes};
use crate::device::cuda::{CudaError, DeviceBuffer, Element, Events, Stream};
use crate::stats;
use crate::train::ops::{Attended, Heads};
use crate::units::Seconds;

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
    cudnn: Option<CudnnHandle>,
    /// Why cuDNN cannot serve.
    missing: Option<String>,
    own: Option<AttentionKernels>,
    forward: Way,
    backward: Way,
    /// What the own backward pass works in, and cuDNN's forward pass.
    delta: DeviceBuffer,
    /// Memory that is free during the backward pass, for cuDNN's.
    spare: Option<DeviceBuffer>,
}

/// Buffers that passes are timed on.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) qkv: DeviceBuffer,
    pub(super) att: DeviceBuffer,
    pub(super) lse: DeviceBuffer,
    pub(super) datt: DeviceBuffer,
    pub(super) dqkv: DeviceBuffer,
}

impl Attention {
    /// Own kernels only, until [`Attention::choose`].
    pub(super) fn own(own: Option<AttentionKernels>, delta: DeviceBuffer) -> Self {
        Self { cudnn: None, missing: None, own, forward: Way::Own, backward: Way::Own, delta, spare: None }
    }

    /// Lets cuDNN work in memory that nobody needs during the backward pass.
    pub(super) fn lend(&mut self, spare: DeviceBuffer) {
        self.spare = Some(spare);
    }

    /// Takes the first way that serves of each pass, untimed: cuDNN's before the own.
    pub(super) fn prefer(
        &mut self,
        stream: &Stream,
        dims: Heads,
        deterministic: bool,
    ) -> Result<Vec<String>, CudaError> {
        let told = vec!["attention was not timed: no memory is left for it".to_owned()];
        let [forwards, backwards] = self.candidates(stream, dims, deterministic);
        self.forward = forwards.into_iter().next_back().ok_or_else(|| unserved(dims))?;
        self.backward = backwards.into_iter().next_back().ok_or_else(|| unserved(dims))?;
        Ok(told)
    }

    /// What serves these sizes, for each pass, the own first.
    fn candidates(&mut self, stream: &Stream, dims: Heads, deterministic: bool) -> [Vec<Way>; 2] {
        let own = || self.own.iter().map(|_| Way::Own).collect();
        let (mut forwards, mut backwards): (Vec<Way>, Vec<Way>) = (own(), own());
        match CudnnHandle::open(stream) {
            Ok(handle) => {
                let sizes = cudnn_dims(dims);
                let spare = self.spare.as_ref().map_or(0, |spare| spare.len() as u64 * spare.element().bytes());
                let forward = AttentionGraph::forward(&handle, sizes).ok();
                let fits = forward.filter(|graph| graph.workspace_bytes() <= 4 * self.delta.len() as u64);
                forwards.extend(fits.map(Box::new).map(Way::Cudnn));
                let backward = if deterministic {
                    AttentionGraph::deterministic_backward(&handle, sizes, spare)
                } else {
                    AttentionGraph::backward(&handle, sizes)
                };
                let fits = backward.ok().filter(|graph| graph.workspace_bytes() <= spare);
                backwards.extend(fits.map(Box::new).map(Way::Cudnn));
                self.cudnn = Some(handle);
            }
            Err(error) => self.missing = Some(error.to_string()),
        }
        [forwards, backwards]
    }

    /// Times what serves these sizes and keeps the fastest of each pass; among those that repeat to the bit if
    /// `deterministic`. Tells each candidate with its time.
    ///
    /// # Errors
    /// Nothing serves these sizes, or the GPU failed.
    pub(super) fn choose(
        &mut self,
        stream: &Stream,
        dims: Heads,
        deterministic: bool,
        trial: &mut Trial,
    ) -> Result<Vec<String>, CudaError> {
        let mut told = Vec::new();
        let [forwards, backwards] = self.candidates(stream, dims, deterministic);
        let mut events = Events::default();
        let mut best = None;
        for way in forwards {
            let mut run = |attention: &mut Self| {
                attention.run_forward(&way, stream, dims, [&mut trial.att, &mut trial.lse], &trial.qkv)
            };
            let time = self.time(stream, &mut events, &mut run)?;
            told.push(format!("attention forward by {}: {time}", self.name(&way)));
            keep(&mut best, time, way);
        }
        self.forward = best.ok_or_else(|| unserved(dims))?.1;
        let mut best = None;
        for way in backwards {
            let mut run = |attention: &mut Self| {
                let saved = Attended { att: &trial.att, lse: &trial.lse, qkv: &trial.qkv };
                attention.run_backward(&way, stream, dims, &mut trial.dqkv, &trial.datt, saved)
            };
            let time = self.time(stream, &mut events, &mut run)?;
            told.push(format!("attention backward by {}: {time}", self.name(&way)));
            keep(&mut best, time, way);
        }
        self.backward = best.ok_or_else(|| unserved(dims))?.1;
        Ok(told)
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
        events: &mut Events,
        run: &mut dyn FnMut(&mut Self) -> Result<(), CudaError>,
    ) -> Result<Seconds, CudaError> {
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
        if let (Way::Cudnn(graph), Some(handle), Some(spare)) = (way, &mut self.cudnn, &mut self.spare) {
            let tensors = AttentionTensors { qkv, att, lse, datt: datt.all() };
            return graph.run_backward(handle, stream, dqkv.all_mut(), tensors, spare.all_mut());
        }
        let own = self.own.as_mut().ok_or_else(|| unserved(dims))?;
        let saved = AttentionSaved { datt: datt.all(), att, lse, qkv };
        own.backward(stream, dqkv.all_mut(), saved, self.delta.all_mut(), sizes(dims))
    }
}

/// Keeps the faster of two.
fn keep(best: &mut Option<(Seconds, Way)>, time: Seconds, way: Way) {
    if best.as_ref().is_none_or(|(fastest, _)| time < *fastest) {
        *best = Some((time, way));
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

/// Buffers for a trial on memory that is not yet in use.
pub(super) fn trial(
    dims: Heads,
    mut take: impl FnMut(usize, Element) -> Result<DeviceBuffer, CudaError>,
) -> Result<Trial, CudaError> {
    let rows = dims.tokens.rows();
    Ok(Trial {
        qkv: take(rows * dims.packed_width(), Element::Bf16)?,
        att: take(rows * dims.width(), Element::Bf16)?,
        lse: take(rows * dims.heads, Element::F32)?,
        datt: take(rows * dims.width(), Element::Bf16)?,
        dqkv: take(rows * dims.packed_width(), Element::Bf16)?,
    })
}
