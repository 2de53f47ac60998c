//! What measures links between GPUs and the host.

use crate::device::cuda::cache::Cache;
use crate::device::cuda::driver::Gpu;
use crate::device::cuda::error::CudaError;
use crate::device::cuda::gate::Gate;
use crate::device::cuda::memory::{DeviceSlice, DeviceSliceMut, Element, Pinned};
use crate::device::cuda::module::{Argument, Function, Geometry, Kernels};
use crate::device::cuda::nvrtc::Nvrtc;
use crate::device::cuda::stream::Stream;
use crate::units::Seconds;

use super::{Source, blocks, compiled_alone};

/// Threads of a block.
const BLOCK: usize = 256;

/// Words of a vector.
const VECTOR: usize = 4;

/// The file.
pub(super) const LINKS: Source = Source { file: "links.cu", text: include_str!("links.cu"), macros: &[] };

/// Word `index` of the pattern `key`, as `links.cu` computes it.
#[must_use]
pub fn pattern_word(index: u64, key: u32) -> u32 {
    let mut word = (index as u32).wrapping_mul(0x9e37_79b1) ^ (index >> 32) as u32 ^ key;
    word = (word ^ (word >> 16)).wrapping_mul(0x85eb_ca6b);
    word = (word ^ (word >> 13)).wrapping_mul(0xc2b2_ae35);
    word ^ (word >> 16)
}

/// Launches what `links.cu` holds.
#[derive(Debug)]
pub struct LinkKernels {
    hold: Function,
    paint: Function,
    compare: Function,
    carry: Function,
    chase: Function,
}

impl LinkKernels {
    /// Compiles the file unless the cache holds it, and loads it.
    ///
    /// # Errors
    /// It does not compile or load.
    pub fn load(gpu: &Gpu, nvrtc: &Nvrtc, cache: &mut Cache) -> Result<Self, CudaError> {
        let cubin = compiled_alone(nvrtc, cache, &gpu.architecture(), &LINKS)?;
        let kernels = Kernels::load(gpu, &cubin, LINKS.file)?;
        Ok(Self {
            hold: kernels.function("hold")?,
            paint: kernels.function("paint")?,
            compare: kernels.function("compare")?,
            carry: kernels.function("carry")?,
            chase: kernels.function("chase")?,
        })
    }

    /// What `stream` is asked for from here on waits for `gate`, and at most for `limit`.
    ///
    /// # Errors
    /// The driver refused the launch.
    pub fn hold(&mut self, stream: &Stream, gate: &Gate, limit: Seconds) -> Result<(), CudaError> {
        let mut arguments = [gate.address().into(), Argument::from((limit.0 * 1e9) as u64)];
        // SAFETY: hold(const unsigned*, unsigned long long); the gate is one word that lives until streams are done
        unsafe { self.hold.launch(stream, Geometry::row(1, 1), &mut arguments) }
    }

    /// Fills `out`, u32, with the pattern `key`.
    ///
    /// # Errors
    /// The driver refused the launch.
    ///
    /// # Panics
    /// If `out` holds other elements than words in whole vectors: a bug of the caller.
    pub fn paint(&mut self, stream: &Stream, mut out: DeviceSliceMut<'_>, key: u32) -> Result<(), CudaError> {
        let vectors = vectors(out.len);
        let mut arguments = [out.holding(out.len, Element::U32).into(), Argument::from(vectors as u64), word(key)];
        // SAFETY: paint(uint4*, long long, unsigned); the length is checked above
        unsafe { self.paint.launch(stream, row(stream, vectors), &mut arguments) }
    }

    /// Adds to `report[0]`, u64, the number of words of `data` that are not the pattern `key`, and to `report[1]` how many
    /// of them still are the pattern `before`. Reads memory, not what a cache holds of it.
    ///
    /// # Errors
    /// The driver refused the launch.
    ///
    /// # Panics
    /// If a slice holds other elements or fewer: a bug of the caller.
    pub fn compare(
        &mut self,
        stream: &Stream,
        mut report: DeviceSliceMut<'_>,
        data: DeviceSlice<'_>,
        (key, before): (u32, u32),
    ) -> Result<(), CudaError> {
        let vectors = vectors(data.len);
        let mut arguments = [
            report.holding(2, Element::U64).into(),
            data.holding(data.len, Element::U32).into(),
            Argument::from(vectors as u64),
            word(key),
            word(before),
        ];
        // SAFETY: compare(unsigned long long*, const uint4*, long long, unsigned, unsigned); lengths are checked above
        unsafe { self.compare.launch(stream, row(stream, vectors), &mut arguments) }
    }

    /// Copies `from` to `to` by the multiprocessors of the stream's GPU; either may lie on another GPU that it may access.
    ///
    /// # Errors
    /// The driver refused the launch.
    ///
    /// # Panics
    /// If the two differ in length, or hold no words: a bug of the caller.
    pub fn carry(
        &mut self,
        stream: &Stream,
        mut to: DeviceSliceMut<'_>,
        from: DeviceSlice<'_>,
    ) -> Result<(), CudaError> {
        assert_eq!(to.len, from.len, "a copy between ranges of two sizes");
        let vectors = vectors(from.len);
        let (to, from) = (to.holding(to.len, Element::U32), from.holding(from.len, Element::U32));
        let mut arguments = [to.into(), from.into(), Argument::from(vectors as u64)];
        // SAFETY: carry(uint4*, const uint4*, long long); lengths are checked above
        unsafe { self.carry.launch(stream, row(stream, vectors), &mut arguments) }
    }

    /// As [`LinkKernels::carry`], from the beginning of memory of the host.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there.
    pub fn carry_from_host(
        &mut self,
        stream: &Stream,
        mut to: DeviceSliceMut<'_>,
        from: &Pinned<u32>,
    ) -> Result<(), CudaError> {
        assert!(to.len <= from.get().len(), "a copy from less than it takes");
        let vectors = vectors(to.len);
        let to = to.holding(to.len, Element::U32);
        let mut arguments = [to.into(), Argument::from(from.address() as u64), Argument::from(vectors as u64)];
        // SAFETY: as in `carry`; pinned memory has one address on host and GPU
        unsafe { self.carry.launch(stream, row(stream, vectors), &mut arguments) }
    }

    /// As [`LinkKernels::carry`], to the beginning of memory of the host.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there.
    pub fn carry_to_host(
        &mut self,
        stream: &Stream,
        to: &mut Pinned<u32>,
        from: DeviceSlice<'_>,
    ) -> Result<(), CudaError> {
        assert!(from.len <= to.get().len(), "a copy to less than it gives");
        let vectors = vectors(from.len);
        let from = from.holding(from.len, Element::U32);
        let mut arguments = [Argument::from(to.address() as u64), from.into(), Argument::from(vectors as u64)];
        // SAFETY: as in `carry`; pinned memory has one address on host and GPU
        unsafe { self.carry.launch(stream, row(stream, vectors), &mut arguments) }
    }

    /// Follows `hops` links of `chain`, each a word that holds the index of the next, and leaves the last in `end`, u32.
    ///
    /// # Errors
    /// The driver refused the launch.
    ///
    /// # Panics
    /// If a slice holds no words: a bug of the caller.
    pub fn chase(
        &mut self,
        stream: &Stream,
        end: DeviceSliceMut<'_>,
        chain: DeviceSlice<'_>,
        hops: u32,
    ) -> Result<(), CudaError> {
        self.chase_at(stream, end, chain.holding(chain.len, Element::U32), hops)
    }

    /// As [`LinkKernels::chase`], through the memory of the host.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there.
    pub fn chase_host(
        &mut self,
        stream: &Stream,
        end: DeviceSliceMut<'_>,
        chain: &Pinned<u32>,
        hops: u32,
    ) -> Result<(), CudaError> {
        self.chase_at(stream, end, chain.address() as u64, hops)
    }

    fn chase_at(
        &mut self,
        stream: &Stream,
        mut end: DeviceSliceMut<'_>,
        chain: u64,
        hops: u32,
    ) -> Result<(), CudaError> {
        let mut arguments = [end.holding(1, Element::U32).into(), chain.into(), word(hops)];
        // SAFETY: chase(unsigned*, const unsigned*, unsigned); the chain names indices of its own only
        unsafe { self.chase.launch(stream, Geometry::row(1, 1), &mut arguments) }
    }
}

fn word(value: u32) -> Argument {
    Argument::from(u64::from(value))
}

fn vectors(words: usize) -> usize {
    assert!(words.is_multiple_of(VECTOR), "{words} words are no whole vectors");
    words / VECTOR
}

fn row(stream: &Stream, vectors: usize) -> Geometry {
    Geometry::row(blocks(stream.gpu(), vectors, BLOCK, 16), BLOCK)
}
