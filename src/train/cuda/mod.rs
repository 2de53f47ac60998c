//! The CUDA device: bf16 with f32 sums on one GPU, one stream, no waiting. It must match the CPU device.
//!
//! Everything that a step needs lies in one arena that is planned and taken before the first step. Operations only
//! enqueue; a whole pass is recorded once as a graph and replayed.

mod attention;
mod exchange;
mod floor;
mod setup;
mod staging;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;

use crate::device::cuda::kernels::{AdamWScalars, AdamWTensors, KernelSet, NormSaved, SortedTokens};
use crate::device::cuda::{
    Addend, Arena, Cache, CudaError, DeviceBuffer, DeviceSlice, DeviceSliceMut, Element, Event, Events, Gpu, Graph,
    Pinned, Product, Products, Stream,
};
use crate::model::place_in;
use crate::units::{Bytes, Seconds};

use super::ops::{
    AdamWUpdate, Attended, Gated, Heads, Kind, Linear, Logits, Lookup, NORM_ROOM, Norm, Ops, Stretch, Totals, Write,
};

use attention::Attention;
pub use exchange::NcclQueue;
pub use floor::{Floor, Part, PartTime};
use staging::Staging;

/// One GPU and all that a training needs of it.
#[derive(Debug)]
pub struct Cuda {
    gpu: Gpu,
    stream: Stream,
    events: Events,
    arena: Arena,
    kernels: KernelSet,
    products: Products,
    attention: Attention,
    workspace: Workspace,
    /// Loss and squares of the step, f64, and its checksum, u64; and an index, u64.
    totals: DeviceBuffer,
    flag: DeviceBuffer,
    /// f32, where gradients lie while they are summed, if not in bf16; else empty.
    widened: DeviceBuffer,
    outcomes: Vec<Pinned<f64>>,
    /// Which of them is next.
    outcome: usize,
    staging: Staging,
    graphs: BTreeMap<Stretch, Recorded>,
    under_way: Option<UnderWay>,
    /// False while operations are tested one by one.
    records: bool,
    /// Where parts of a step are timed: which began when.
    entered: Option<Vec<(Part, Event)>>,
    software: BTreeMap<String, String>,
    remarks: Vec<String>,
    cache: Cache,
}

/// Memory that kernels work in; nothing in it outlives an operation.
#[derive(Debug)]
struct Workspace {
    /// Partial sums of norms' gains and of embeddings, f32.
    sums: DeviceBuffer,
    /// Partial sums of squares, f64.
    squares: DeviceBuffer,
}

/// The stretch under way.
#[derive(Debug)]
struct UnderWay {
    stretch: Stretch,
    /// The pieces recorded so far; none where the stretch is not recorded.
    pieces: Option<Vec<Graph>>,
    /// False between two pieces, and after the last: the stream then does what it is asked for.
    recording: bool,
}

/// How far the recording of a stretch is.
#[derive(Debug)]
enum Recorded {
    /// It ran once: matrix products are planned, and it can be recorded.
    Planned,
    /// It is replayed, piece by piece.
    Pieces(Vec<Graph>),
}

/// What AdamW keeps of a bucket.
#[derive(Debug)]
pub struct CudaState {
    /// Lower halves of the f32 master weights.
    remainder: DeviceBuffer,
    m: DeviceBuffer,
    v: DeviceBuffer,
    /// Where ranges without decay begin and end.
    gains: DeviceBuffer,
}

/// A batch on the GPU, in one buffer of u32: ids, targets, rows sorted by id, and where each id begins.
#[derive(Debug)]
pub struct CudaTokens {
    all: DeviceBuffer,
    dims: Lookup,
}

impl CudaTokens {
    fn ids(&self) -> DeviceSlice<'_> {
        self.all.slice(0..self.dims.rows)
    }

    fn targets(&self) -> DeviceSlice<'_> {
        self.all.slice(self.dims.rows..2 * self.dims.rows)
    }

    fn sorted(&self) -> SortedTokens<'_> {
        let rows = self.dims.rows;
        let (order, starts) = (self.all.slice(2 * rows..3 * rows), self.all.slice(3 * rows..self.all.len()));
        SortedTokens { ids: self.ids(), order, starts }
    }
}

/// Totals on their way: which of the pinned places, and when they are there.
#[derive(Debug)]
pub struct CudaOutcome {
    place: usize,
    sent: Event,
}

impl Cuda {
    /// The GPU.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Versions of the libraries that compute, and which attention was chosen by which times.
    #[must_use]
    pub fn software(&self) -> &BTreeMap<String, String> {
        &self.software
    }

    /// What people should know about the start, once.
    pub fn remarks(&mut self) -> Vec<String> {
        std::mem::take(&mut self.remarks)
    }

    /// Each attention that was tried, with its time, or why it was not.
    #[must_use]
    pub fn attention_times(&self) -> &[String] {
        self.attention.told()
    }

    /// Memory that the training takes of the GPU.
    #[must_use]
    pub fn memory(&self) -> Bytes {
        self.arena.used()
    }

    /// The stream on which everything runs.
    #[must_use]
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    fn multiply(
        &mut self,
        product: Product,
        out: DeviceSliceMut<'_>,
        write: Write,
        [a, b]: [DeviceSlice<'_>; 2],
    ) -> Result<(), CudaError> {
        let addend = if write == Write::Accumulate { Addend::Destination } else { Addend::Nothing };
        self.products.multiply(&self.stream, product, out, addend, a, b)
    }

    /// Copies elements to the host and waits for them.
    fn read<T: bytemuck::Pod>(&mut self, src: DeviceSlice<'_>, len: usize) -> Result<Pinned<T>, CudaError> {
        let mut host = Pinned::zeros(&self.gpu, len)?;
        self.stream.download(&mut host, src)?;
        self.stream.synchronize()?;
        Ok(host)
    }
}

/// The element of a kind of buffer.
fn element(kind: Kind) -> Element {
    match kind {
        Kind::Working => Element::Bf16,
        Kind::Exact => Element::F32,
    }
}

/// A product of two matrices as they lie.
fn plain(rows: usize, columns: usize, inner: usize) -> Product {
    Product { rows, columns, inner, a_transposed: false, b_transposed: false }
}

/// bf16 to f32.
fn widen(bits: u16) -> f32 {
    half::bf16::from_bits(bits).to_f32()
}

/// The f32 master weight of its two halves: the upper one was rounded half away from zero.
fn join(high: u16, low: u16) -> f32 {
    f32::from_bits((u32::from(high).wrapping_sub(u32::from(low >> 15))) << 16 | u32::from(low))
}

impl Ops for Cuda {
    type Buf = DeviceBuffer;
    type Tokens = CudaTokens;
    type View<'a> = DeviceSlice<'a>;
    type ViewMut<'a> = DeviceSliceMut<'a>;
    type State = CudaState;
    type Mark = Event;
    type Outcome = CudaOutcome;
    type Queue = NcclQueue;
    type Error = CudaError;

    const AHEAD: usize = 1;

    fn zeros(&mut self, len: usize, kind: Kind) -> Result<DeviceBuffer, CudaError> {
        let mut buffer = self.arena.take(len, element(kind))?;
        self.stream.fill(buffer.all_mut(), 0)?;
        Ok(buffer)
    }

    fn sharing(&mut self, other: &DeviceBuffer, lens: &[usize]) -> Result<Vec<DeviceBuffer>, CudaError> {
        let room = other.len() as u64 * other.element().bytes();
        let bytes: Vec<u64> = lens.iter().map(|len| *len as u64 * Element::Bf16.bytes()).collect();
        let (places, used) = place_in(room, &bytes);
        if let Some(spare) = other.reuse(used, (room - used) as usize, Element::Byte) {
            self.attention.lend(spare);
        }
        let arena = &mut self.arena;
        let buffer = |(place, len): (Option<u64>, &usize)| {
            let inside = place.and_then(|offset| other.reuse(offset, *len, Element::Bf16));
            inside.map_or_else(|| arena.take(*len, Element::Bf16), Ok)
        };
        places.into_iter().zip(lens).map(buffer).collect()
    }

    fn tokens(&mut self, dims: Lookup) -> Result<CudaTokens, CudaError> {
        self.staging.prepare(&self.gpu, dims)?;
        Ok(CudaTokens { all: self.arena.take(staging::words(dims), Element::U32)?, dims })
    }

    fn upload_tokens(&mut self, tokens: &mut CudaTokens, inputs: &[u32], targets: &[u32]) -> Result<(), CudaError> {
        self.enter(Part::Other)?;
        let staged = self.staging.fill(inputs, targets, tokens.dims.vocabulary)?;
        self.stream.upload(tokens.all.all_mut(), staged)?;
        self.staging.sent(self.events.record(&self.stream)?);
        Ok(())
    }

    fn upload(&mut self, dst: DeviceSliceMut<'_>, host: &[f32]) -> Result<(), CudaError> {
        if dst.element() == Element::F32 {
            let mut staged = Pinned::<f32>::zeros(&self.gpu, host.len())?;
            staged.get_mut().copy_from_slice(host);
            self.stream.upload(dst, &staged)?;
            return self.stream.synchronize();
        }
        let mut staged = Pinned::<u16>::zeros(&self.gpu, host.len())?;
        staged.get_mut().iter_mut().zip(host).for_each(|(bits, value)| *bits = half::bf16::from_f32(*value).to_bits());
        self.stream.upload(dst, &staged)?;
        self.stream.synchronize()
    }

    fn initial(&mut self, dst: DeviceSliceMut<'_>, key: u64, deviation: f64) -> Result<(), CudaError> {
        self.kernels.weights.initial(&self.stream, dst, key, deviation as f32)
    }

    fn download(&mut self, host: &mut [f32], src: DeviceSlice<'_>) -> Result<(), CudaError> {
        if src.element() == Element::F32 {
            host.copy_from_slice(self.read::<f32>(src, host.len())?.get());
        } else {
            let bits = self.read::<u16>(src, host.len())?;
            host.iter_mut().zip(bits.get()).for_each(|(value, bits)| *value = widen(*bits));
        }
        Ok(())
    }

    fn first_not_finite(&mut self, values: DeviceSlice<'_>) -> Result<Option<usize>, CudaError> {
        self.kernels.check.first_not_finite(&self.stream, self.flag.all_mut(), values)?;
        let mut host = Pinned::<u64>::zeros(&self.gpu, 1)?;
        self.stream.download(&mut host, self.flag.all())?;
        self.stream.synchronize()?;
        Ok(usize::try_from(host.get()[0]).ok().filter(|index| *index != usize::MAX))
    }

    fn view(buf: &DeviceBuffer, range: Range<usize>) -> DeviceSlice<'_> {
        buf.slice(range)
    }

    fn view_mut(buf: &mut DeviceBuffer, range: Range<usize>) -> DeviceSliceMut<'_> {
        buf.slice_mut(range)
    }

    fn len(buf: &DeviceBuffer) -> usize {
        buf.len()
    }

    fn mark(&mut self) -> Result<Event, CudaError> {
        self.events.record(&self.stream)
    }

    fn wait(&mut self, mark: &Event) -> Result<(), CudaError> {
        mark.wait()
    }

    fn follow(&mut self, mark: &Event) -> Result<(), CudaError> {
        self.stream.wait_for(mark)
    }

    fn between(&mut self, earlier: &Event, later: &Event) -> Result<Seconds, CudaError> {
        later.since(earlier)
    }

    fn is_recorded(&self, stretch: Stretch) -> bool {
        matches!(self.graphs.get(&stretch), Some(Recorded::Pieces(_)))
    }

    fn replay(&mut self, stretch: Stretch, piece: usize) -> Result<(), CudaError> {
        match self.graphs.get(&stretch) {
            Some(Recorded::Pieces(pieces)) => self.stream.replay(&pieces[piece]),
            _ => unreachable!("{stretch:?} is replayed before it was recorded"),
        }
    }

    fn begin_stretch(&mut self, stretch: Stretch) -> Result<(), CudaError> {
        let records = matches!(self.graphs.get(&stretch), Some(Recorded::Planned));
        if records {
            self.stream.begin_recording()?;
        }
        self.under_way = Some(UnderWay { stretch, pieces: records.then(Vec::new), recording: records });
        Ok(())
    }

    fn cut(&mut self) -> Result<(), CudaError> {
        let Some(UnderWay { pieces: Some(pieces), recording, .. }) = &mut self.under_way else { return Ok(()) };
        if std::mem::take(recording) {
            let graph = self.stream.end_recording()?;
            self.stream.replay(&graph)?;
            pieces.push(graph);
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), CudaError> {
        let Some(UnderWay { pieces: Some(_), recording, .. }) = &mut self.under_way else { return Ok(()) };
        self.stream.begin_recording()?;
        *recording = true;
        Ok(())
    }

    fn end_stretch(&mut self) -> Result<(), CudaError> {
        self.cut()?;
        match self.under_way.take() {
            Some(UnderWay { stretch, pieces: Some(pieces), .. }) => {
                self.graphs.insert(stretch, Recorded::Pieces(pieces));
            }
            Some(UnderWay { stretch, pieces: None, .. }) => {
                self.products.save(&mut self.cache);
                if self.records {
                    self.graphs.insert(stretch, Recorded::Planned);
                }
            }
            None => {}
        }
        Ok(())
    }

    fn embed(
        &mut self,
        dims: Lookup,
        x: &mut DeviceBuffer,
        table: DeviceSlice<'_>,
        tokens: &CudaTokens,
    ) -> Result<(), CudaError> {
        self.enter(Part::Embedding)?;
        self.kernels.embedding.embed(&self.stream, x.all_mut(), table, tokens.ids(), dims.rows)
    }

    fn embed_backward(
        &mut self,
        dims: Lookup,
        dtable: DeviceSliceMut<'_>,
        write: Write,
        dx: &DeviceBuffer,
        tokens: &CudaTokens,
    ) -> Result<(), CudaError> {
        self.enter(Part::Embedding)?;
        let (add, work) = (write == Write::Accumulate, self.workspace.sums.all_mut());
        let embedding = &mut self.kernels.embedding;
        embedding.embed_backward(&self.stream, dtable, add, dx.all(), tokens.sorted(), work, dims.rows)
    }

    fn norm(
        &mut self,
        dims: Norm,
        h: &mut DeviceBuffer,
        rstd: &mut DeviceBuffer,
        x: &DeviceBuffer,
        gain: DeviceSlice<'_>,
    ) -> Result<(), CudaError> {
        self.enter(Part::Norms)?;
        self.kernels.norm.norm(&self.stream, [h.all_mut(), rstd.all_mut()], x.all(), gain, dims.rows)
    }

    fn norm_backward(
        &mut self,
        dims: Norm,
        dx: &mut DeviceBuffer,
        stream: Write,
        dgain: DeviceSliceMut<'_>,
        write: Write,
        dh: &DeviceBuffer,
        x: &DeviceBuffer,
        rstd: &DeviceBuffer,
        gain: DeviceSlice<'_>,
    ) -> Result<(), CudaError> {
        self.enter(Part::Norms)?;
        let saved = NormSaved { dh: dh.all(), x: x.all(), rstd: rstd.all(), gain };
        let dx = (dx.all_mut(), stream == Write::Accumulate);
        let dgain = (dgain, write == Write::Accumulate);
        let work = self.workspace.sums.all_mut();
        self.kernels.norm.backward(&self.stream, dx, dgain, saved, work, dims.rows)
    }

    fn linear(
        &mut self,
        dims: Linear,
        y: &mut DeviceBuffer,
        x: &DeviceBuffer,
        weight: DeviceSlice<'_>,
    ) -> Result<(), CudaError> {
        self.enter(Part::Products)?;
        let Linear { rows, inputs, outputs } = dims;
        let product = Product { b_transposed: true, ..plain(rows, outputs, inputs) };
        self.multiply(product, y.all_mut(), Write::Overwrite, [x.all(), weight])
    }

    fn linear_add(
        &mut self,
        dims: Linear,
        y: &mut DeviceBuffer,
        residual: &DeviceBuffer,
        x: &DeviceBuffer,
        weight: DeviceSlice<'_>,
    ) -> Result<(), CudaError> {
        self.enter(Part::Products)?;
        let Linear { rows, inputs, outputs } = dims;
        let product = Product { b_transposed: true, ..plain(rows, outputs, inputs) };
        let addend = Addend::Other(residual.all());
        self.products.multiply(&self.stream, product, y.all_mut(), addend, x.all(), weight)
    }

    fn linear_backward_input(
        &mut self,
        dims: Linear,
        dx: &mut DeviceBuffer,
        dy: &DeviceBuffer,
        weight: DeviceSlice<'_>,
    ) -> Result<(), CudaError> {
        self.enter(Part::Products)?;
        let Linear { rows, inputs, outputs } = dims;
        self.multiply(plain(rows, inputs, outputs), dx.all_mut(), Write::Overwrite, [dy.all(), weight])
    }

    fn linear_backward_weight(
        &mut self,
        dims: Linear,
        dweight: DeviceSliceMut<'_>,
        write: Write,
        dy: &DeviceBuffer,
        x: &DeviceBuffer,
    ) -> Result<(), CudaError> {
        self.enter(Part::Products)?;
        let Linear { rows, inputs, outputs } = dims;
        let product = Product { a_transposed: true, ..plain(outputs, inputs, rows) };
        self.multiply(product, dweight, write, [dy.all(), x.all()])
    }

    fn rotary(&mut self, dims: Heads, qkv: &mut DeviceBuffer, turns: &DeviceBuffer) -> Result<(), CudaError> {
        self.enter(Part::Rotary)?;
        let sizes = [dims.tokens.batch, dims.tokens.context];
        self.kernels.rotary.rotary(&self.stream, qkv.all_mut(), turns.all(), sizes, false)
    }

    fn rotary_backward(&mut self, dims: Heads, dqkv: &mut DeviceBuffer, turns: &DeviceBuffer) -> Result<(), CudaError> {
        self.enter(Part::Rotary)?;
        let sizes = [dims.tokens.batch, dims.tokens.context];
        self.kernels.rotary.rotary(&self.stream, dqkv.all_mut(), turns.all(), sizes, true)
    }

    fn attention(
        &mut self,
        dims: Heads,
        att: &mut DeviceBuffer,
        lse: &mut DeviceBuffer,
        qkv: &DeviceBuffer,
    ) -> Result<(), CudaError> {
        self.enter(Part::Attention)?;
        self.attention.forward(&self.stream, dims, [att, lse], qkv)
    }

    fn attention_backward(
        &mut self,
        dims: Heads,
        dqkv: &mut DeviceBuffer,
        datt: &DeviceBuffer,
        saved: Attended<'_, DeviceBuffer>,
    ) -> Result<(), CudaError> {
        self.enter(Part::Attention)?;
        self.attention.backward(&self.stream, dims, dqkv, datt, saved)
    }

    fn swiglu(&mut self, dims: Gated, act: &mut DeviceBuffer, gate_up: &DeviceBuffer) -> Result<(), CudaError> {
        self.enter(Part::Gates)?;
        self.kernels.swiglu.swiglu(&self.stream, act.all_mut(), gate_up.all(), dims.rows)
    }

    fn swiglu_backward(
        &mut self,
        dims: Gated,
        gate_up: &mut DeviceBuffer,
        dact: &mut DeviceBuffer,
    ) -> Result<(), CudaError> {
        self.enter(Part::Gates)?;
        self.kernels.swiglu.backward(&self.stream, gate_up.all_mut(), dact.all_mut(), dims.rows)
    }

    fn cross_entropy(
        &mut self,
        dims: Logits,
        losses: &mut DeviceBuffer,
        logits: &mut DeviceBuffer,
        tokens: &CudaTokens,
    ) -> Result<(), CudaError> {
        self.enter(Part::Loss)?;
        let loss = &mut self.kernels.loss;
        loss.cross_entropy(&self.stream, losses.all_mut(), logits.all_mut(), tokens.targets(), dims.rows)
    }

    fn begin_totals(&mut self) -> Result<(), CudaError> {
        self.stream.fill(self.totals.all_mut(), 0)
    }

    fn add_loss(&mut self, losses: &DeviceBuffer, weight: f64) -> Result<(), CudaError> {
        self.enter(Part::Loss)?;
        self.kernels.loss.add_mean(&self.stream, self.totals.slice_mut(0..1), losses.all(), weight)
    }

    fn add_squares(&mut self, gradients: DeviceSlice<'_>) -> Result<(), CudaError> {
        self.enter(Part::Optimizer)?;
        let work = self.workspace.squares.all_mut();
        self.kernels.optimizer.add_squares(&self.stream, self.totals.slice_mut(1..2), gradients, work)
    }

    /// f64, the first element of each place.
    fn norms(&mut self, world: usize) -> Result<DeviceBuffer, CudaError> {
        let mut norms = self.arena.take(world * NORM_ROOM, Element::F64)?;
        self.stream.fill(norms.all_mut(), 0)?;
        Ok(norms)
    }

    fn put_squares(&mut self, norms: &mut DeviceBuffer, rank: usize) -> Result<(), CudaError> {
        let place = rank * NORM_ROOM;
        self.stream.copy(norms.slice_mut(place..place + 1), self.totals.slice(1..2))
    }

    fn take_squares(&mut self, norms: &DeviceBuffer) -> Result<(), CudaError> {
        self.kernels.optimizer.total(&self.stream, self.totals.slice_mut(1..2), norms.all())
    }

    fn add_checksum(
        &mut self,
        weights: DeviceSlice<'_>,
        rest: Option<DeviceSlice<'_>>,
        first: usize,
    ) -> Result<(), CudaError> {
        self.enter(Part::Other)?;
        self.kernels.weights.add_checksum(&self.stream, self.totals.slice_mut(2..3), weights, rest, first)
    }

    fn outcome(&mut self) -> Result<CudaOutcome, CudaError> {
        self.enter(Part::Other)?;
        // the host reads places in the order in which they are taken, and no more than AHEAD + 1 are under way
        let place = self.outcome;
        self.outcome = (place + 1) % self.outcomes.len();
        self.stream.download(&mut self.outcomes[place], self.totals.all())?;
        Ok(CudaOutcome { place, sent: self.events.record(&self.stream)? })
    }

    fn totals(&mut self, outcome: CudaOutcome) -> Result<Totals, CudaError> {
        outcome.sent.wait()?;
        let totals = self.outcomes[outcome.place].get();
        Ok(Totals { loss: totals[0], squares: totals[1], checksum: totals[2].to_bits() })
    }

    fn state(&mut self, len: usize, gains: Vec<Range<usize>>) -> Result<CudaState, CudaError> {
        let bounds: Vec<u64> = gains.iter().flat_map(|range| [range.start as u64, range.end as u64]).collect();
        let mut staged = Pinned::<u64>::zeros(&self.gpu, bounds.len())?;
        staged.get_mut().copy_from_slice(&bounds);
        let mut gains = self.arena.take(bounds.len(), Element::U64)?;
        if !bounds.is_empty() {
            self.stream.upload(gains.all_mut(), &staged)?;
            self.stream.synchronize()?;
        }
        let remainder = self.zeros(len, Kind::Working)?;
        Ok(CudaState { remainder, m: self.zeros(len, Kind::Exact)?, v: self.zeros(len, Kind::Exact)?, gains })
    }

    fn adamw(
        &mut self,
        update: &AdamWUpdate,
        weights: DeviceSliceMut<'_>,
        state: &mut CudaState,
        gradients: DeviceSlice<'_>,
    ) -> Result<(), CudaError> {
        self.enter(Part::Optimizer)?;
        let AdamWUpdate { learning_rate, weight_decay, beta1, beta2, epsilon, bias1, bias2, mean, clip_norm } = *update;
        let tensors = AdamWTensors {
            weight: weights,
            remainder: state.remainder.all_mut(),
            m: state.m.all_mut(),
            v: state.v.all_mut(),
            gradient: gradients,
            gains: state.gains.all(),
            squares: self.totals.slice(1..2),
        };
        let rule = [learning_rate, weight_decay, beta1, beta2, epsilon, bias1, bias2];
        self.kernels.optimizer.adamw(&self.stream, tensors, AdamWScalars { rule, mean, clip_norm })
    }

    fn rest(state: &CudaState, range: Range<usize>) -> Option<DeviceSlice<'_>> {
        Some(state.remainder.slice(range))
    }

    fn copy(&mut self, dst: DeviceSliceMut<'_>, src: DeviceSlice<'_>) -> Result<(), CudaError> {
        self.stream.copy(dst, src)
    }

    fn master(
        &mut self,
        host: &mut [f32],
        weights: DeviceSlice<'_>,
        rest: Option<DeviceSlice<'_>>,
    ) -> Result<(), CudaError> {
        let high = self.read::<u16>(weights, host.len())?;
        let low = match rest {
            Some(rest) => self.read::<u16>(rest, host.len())?,
            None => Pinned::zeros(&self.gpu, host.len())?,
        };
        let halves = high.get().iter().zip(low.get());
        host.iter_mut().zip(halves).for_each(|(value, (high, low))| *value = join(*high, *low));
        Ok(())
    }

    fn fingerprint(&mut self, weights: DeviceSlice<'_>, rest: Option<DeviceSlice<'_>>) -> Result<Vec<u8>, CudaError> {
        self.kernels.weights.fingerprint(&self.stream, self.flag.all_mut(), weights, rest)?;
        let mut host = Pinned::<u64>::zeros(&self.gpu, 1)?;
        self.stream.download(&mut host, self.flag.all())?;
        self.stream.synchronize()?;
        Ok(host.get()[0].to_le_bytes().to_vec())
    }
}
